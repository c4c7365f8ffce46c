//! SAFE-1: whatever a packet of a bound zone looks like, it leaves with its flow's address or not at
//! all, and what is no packet changes nothing.

use egress_common::key::ReverseKey;
use egress_common::reason::Reason;

use super::errors::NO_PORT;
use super::{
    Address, DataPlane, EGRESS, HEADER, INSIDE, OPTIONS, ORIGIN, PROTOCOL, Packet, SOURCE,
};
use crate::harness::{Hook, tagged};
use crate::packet::{ACK, Net as _, SYN};
use crate::run::{Meta, Verdict};
use crate::seed::{Random, cases};
use crate::world::{INSIDE_INTERFACE, World, ZONE};

/// Bytes of an address.
const ADDRESS: usize = size_of::<Address>();

/// The address of a frame at `offset`.
fn address(frame: &[u8], offset: usize) -> Address {
    frame[offset..offset + ADDRESS].try_into().unwrap()
}

#[test]
fn safe_1_random_packets_never_leave_with_another_address() {
    if !crate::harness::permitted() {
        return;
    }
    let mut random = Random::announced("malformed packets");
    let Some(plane) = DataPlane::of(World::default().with_flows(4_096)) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let templates = [
        Packet::tcp(INSIDE, ORIGIN, ACK)
            .numbers(2, 2)
            .payload(b"some data")
            .bytes(),
        Packet::tcp(INSIDE, ORIGIN, SYN)
            .with_options(&[2, 4, 5, 180, 1, 3, 3, 7])
            .bytes(),
        Packet::udp(INSIDE, ORIGIN, b"datagram").bytes(),
        Packet::icmp(INSIDE.0, ORIGIN.0, NO_PORT.0, NO_PORT.1, &[0x45; 28]).bytes(),
        Packet::other(INSIDE.0, ORIGIN.0, 47, b"gre gre gre").bytes(),
        Packet {
            options: OPTIONS[0].to_vec(),
            ..Packet::tcp(INSIDE, ORIGIN, SYN)
        }
        .bytes(),
        Packet {
            vlans: vec![5],
            ..Packet::udp(INSIDE, ORIGIN, b"vlan")
        }
        .bytes(),
    ];
    // The zone is known from where the packet entered: nothing in it can change that.
    let out = Meta {
        mark: tagged(0xffff_0000, ZONE),
        ingress: INSIDE_INTERFACE,
        ..Meta::default()
    };
    let mut left = 0;
    for case in 0..cases(40_000) {
        let mut bytes = templates[random.below(templates.len() as u64) as usize].clone();
        for _ in 0..random.below(4) {
            // Behind the addresses of the link layer and its type.
            let at = 14 + random.below(bytes.len() as u64 - 14) as usize;
            bytes[at] = random.number() as u8;
        }
        if random.once_in(4) {
            bytes.truncate(14 + random.below(bytes.len() as u64 - 13) as usize);
        }
        let Some(outcome) = plane.try_bytes(Hook::UplinkEgress, &bytes, out) else {
            continue;
        };
        match outcome.verdict {
            Verdict::Drop | Verdict::Redirect => {}
            Verdict::Next => {
                let at = if bytes[12] == 0x81 { 18 } else { 14 };
                // What became a ping is no flow's (POLICY-7), behind whatever header it stands.
                let ping = bytes[at + PROTOCOL] == Address::ICMP || HEADER != 20;
                let source = address(&outcome.bytes, at + SOURCE);
                assert!(
                    source == egress.0 || (ping && outcome.bytes == bytes),
                    "case {case}: {bytes:02x?}"
                );
                left += 1;
            }
            Verdict::Other(verdict) => panic!("case {case}: verdict {verdict}: {bytes:02x?}"),
        }
        // And what comes back.
        let mut back = Packet::tcp(ORIGIN, egress, ACK)
            .numbers(2, 2)
            .payload(b"answer")
            .bytes();
        let at = 14 + random.below(back.len() as u64 - 14) as usize;
        back[at] = random.number() as u8;
        if let Some(outcome) = plane.try_bytes(Hook::UplinkIngress, &back, Meta::default())
            && outcome.verdict == Verdict::Next
            && outcome.bytes != back
        {
            // Other packets here may have closed the flow and opened another on its port.
            let ports = 14 + HEADER;
            let key = ReverseKey {
                egress: EGRESS,
                origin: address(&back, 14 + SOURCE),
                origin_port: u16::from_be_bytes([back[ports], back[ports + 1]]),
                egress_port: u16::from_be_bytes([back[ports + 2], back[ports + 3]]),
                protocol: back[14 + PROTOCOL],
                ..ReverseKey::default()
            };
            let holder = plane.holder(&key).unwrap();
            let inside = plane.slots.get(&holder, 0).unwrap().flow.inside;
            let to = address(&outcome.bytes, 14 + SOURCE + ADDRESS);
            assert_eq!(to, inside, "case {case}: {back:02x?}");
        }
    }
    println!("{left} left; {:?}", plane.all_reasons());
    assert_eq!(plane.reason(Reason::IndexInconsistent), 0);
    assert!(plane.count(EGRESS, ORIGIN, 6).is_some());
    plane.consistent();
}
