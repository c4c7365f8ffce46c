//! NAT-1: where a packet begins. A link layer's address may look like the start of an IP header.

use egress_common::reason::Reason;

use super::{DataPlane, INSIDE, ORIGIN, Packet, STRANGER};
use crate::harness::Hook;
use crate::packet::{ACK, PSH};

/// Whatever the first byte of the addresses is, an Ethernet frame is one, on an interface that is known to be
/// Ethernet: 0x45 and 0x60 begin IP packets as well.
#[test]
fn nat_1_an_address_that_looks_like_an_ip_header_is_an_address() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    for first in 0..=u8::MAX {
        let to = [first, 0, 0, 0x28, 0, 1];
        let out = Packet {
            to,
            ..Packet::tcp(INSIDE, ORIGIN, ACK | PSH).numbers(2, 2)
        };
        assert_eq!(plane.leaves(&out), egress, "to {first:#04x}");
        let back = Packet {
            to,
            ..Packet::tcp(ORIGIN, egress, ACK | PSH).numbers(2, 2)
        };
        plane.arrives(&back, INSIDE);
        let claims = Packet {
            to,
            ..Packet::tcp(egress, (STRANGER, 80), ACK)
        };
        plane.dropped(Hook::UplinkEgress, &claims, Reason::ClaimsEgressIp);
    }
}
