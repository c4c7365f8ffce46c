//! ANN-1: ARP for an egress IP is answered, byte by byte.

use egress_common::settings::{EgressAddress, egress_flag};

use crate::harness::{DataPlane, Hook};
use crate::run::{Meta, Outcome, Verdict};
use crate::world::{EGRESS, INSIDE, UPLINK_MAC};

const ASKER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const ASKER_IP: [u8; 4] = [198, 51, 100, 254];

fn arp(
    to: [u8; 6],
    from: [u8; 6],
    operation: u8,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(sender.1);
    frame.extend(target.0);
    frame.extend(target.1);
    frame.extend([0; 18]);
    frame
}

fn ask(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    arp([0xff; 6], ASKER, 1, (ASKER, sender), ([0; 6], target))
}

fn arrive(plane: &DataPlane, frame: &[u8]) -> Outcome {
    plane
        .try_bytes(Hook::UplinkIngress, frame, Meta::default())
        .unwrap()
}

#[test]
fn ann_1_who_asks_for_an_egress_ip_is_told_the_uplinks_address() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // The second is a probe (RFC 5227): the asker has no address yet.
    for sender in [ASKER_IP, [0; 4]] {
        let outcome = arrive(&plane, &ask(sender, EGRESS));
        assert_eq!(outcome.verdict, Verdict::Redirect);
        assert_eq!(
            outcome.bytes,
            arp(ASKER, UPLINK_MAC, 2, (UPLINK_MAC, EGRESS), (ASKER, sender))
        );
    }
}

#[test]
fn ann_1_other_arp_is_the_kernels() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let reply = arp(
        UPLINK_MAC,
        ASKER,
        2,
        (ASKER, ASKER_IP),
        (UPLINK_MAC, EGRESS),
    );
    let mut short = ask(ASKER_IP, EGRESS);
    short.truncate(40);
    for frame in [ask(ASKER_IP, INSIDE.0), ask(EGRESS, EGRESS), reply, short] {
        let outcome = arrive(&plane, &frame);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Next, frame));
    }
    let frame = ask(ASKER_IP, EGRESS);
    plane.hash(
        "EGRESS4",
        EGRESS,
        EgressAddress {
            flags: egress_flag::RETIRED,
            owner: 0,
        },
    );
    assert_eq!(arrive(&plane, &frame).verdict, Verdict::Next);
    plane.hash(
        "EGRESS4",
        EGRESS,
        EgressAddress {
            flags: egress_flag::ANSWER,
            owner: 0,
        },
    );
    plane.change(|world| world.settings.answer_arp = 0);
    assert_eq!(arrive(&plane, &frame).verdict, Verdict::Next);
}
