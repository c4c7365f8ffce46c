//! NAT-1: a flow leaves from its egress IP and its replies arrive, with every checksum right.

use egress_common::key::{TCP, UDP};
use egress_common::slot::State;

use crate::harness::DataPlane;
use crate::packet::{ACK, PSH, Packet, SYN};
use crate::run::Meta;
use crate::harness::Hook;
use crate::world::{EGRESS, INSIDE, ORIGIN, World};

#[test]
fn nat_1_tcp_out_and_back_with_the_port_kept() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    assert_eq!(egress, (EGRESS, INSIDE.1));
    let data = Packet::tcp(INSIDE, ORIGIN, ACK | PSH).numbers(1_001, 9_001).payload(b"GET /");
    assert_eq!(plane.leaves(&data), egress);
    let answer = Packet::tcp(ORIGIN, egress, ACK | PSH).numbers(9_001, 1_006).payload(b"an odd length");
    plane.arrives(&answer, INSIDE);
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.word().state, State::TcpEstablished);
    assert_eq!((slot.packets_out, slot.packets_in), (3, 2));
    assert_eq!((slot.bytes_out, slot.bytes_in), (40 + 40 + 45, 40 + 53));
    plane.consistent();
}
