//! Waiting fragments take bounded room, and a flood leaves others theirs.

use std::time::{Duration, Instant};

use egress_common::fragment::{DATAGRAMS, Datagram, FRAME, LIFETIME, WINDOW};
use egress_common::reason::Reason;

use super::{LINK, NEIGHBOUR, datagram, held, leaves, out, passes, refused, with_id};
use crate::harness::{DataPlane, Hook, eventually};
use crate::loopback::{Loopback, Sent};
use crate::packet::Packet;
use crate::pieces::{cut, cut_for_ethernet, reassemble};
use crate::run::Verdict;
use crate::world::{EGRESS, INSIDE, World};

#[test]
fn nat_6_what_cannot_be_held_is_dropped_and_counted() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = datagram(INSIDE, 1, 9_000);
    let long = cut(&packet, &[1_480, FRAME / 8 * 8])[1].clone();
    assert!(long.len() > FRAME);
    refused(&plane, Hook::UplinkEgress, &long, Reason::FragmentsFull);
    // After the first one it may be of any length.
    let packet = datagram(INSIDE, 2, 9_000);
    let left = leaves(&plane, &cut(&packet, &[1_480, 2_800, 2_800, 2_800]));
    assert_eq!(
        left,
        with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
    );
}

#[test]
fn nat_6_later_fragments_without_a_first_take_bounded_room_and_leave_others_theirs() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    // Other hosts wait for their first fragments.
    let hosts: Vec<Packet> = (0..32)
        .map(|host| datagram(([10, 1, 1, host], 40_000), 7, 2_000))
        .collect();
    let began = Instant::now();
    for packet in &hosts {
        held(&plane, Hook::UplinkEgress, &cut_for_ethernet(packet)[1]);
    }
    // One host sends later fragments only, for less time than the others wait.
    let flood = 4 * u64::from(WINDOW);
    let mut sent = 0;
    for id in 0..20_000 {
        if sent > flood && began.elapsed() > Duration::from_secs(2) {
            break;
        }
        sent += 1;
        let frame = cut(&datagram(INSIDE, id, 16), &[8])[1].clone();
        assert_eq!(out(&plane, &frame).verdict, Verdict::Redirect);
    }
    let lost = plane.reason(Reason::FragmentsFull);
    let in_time = || began.elapsed() < Duration::from_nanos(LIFETIME);
    assert!(
        !in_time() || lost >= sent - 2 * u64::from(WINDOW),
        "{lost} of {sent}"
    );
    let mut kept = 0;
    for packet in &hosts {
        let outcome = out(&plane, &cut_for_ethernet(packet)[0]);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let sent = wire.rest().into_iter();
        let left: Vec<Vec<u8>> = sent
            .filter(|(sent, _)| *sent == Sent::Out)
            .map(|(_, bytes)| bytes)
            .collect();
        if left.len() == 2 {
            assert_eq!(reassemble(&left, LINK).source, EGRESS);
            kept += 1;
        }
    }
    if !in_time() {
        return println!(
            "SKIPPED: {}: this machine is slower than fragments wait",
            std::thread::current().name().unwrap_or("fragments::room")
        );
    }
    // All but those whose source happens to share the window: one in sixteen.
    assert!(kept >= 24, "{kept} of 32");
    println!("{kept} of 32 hosts kept their fragments; {lost} of {sent} found no room");
}

#[test]
fn nat_6_a_flood_of_first_fragments_does_not_stop_others() {
    let Some(plane) = DataPlane::of(World::default().with_flows(4_096)) else {
        return;
    };
    // Others send long datagrams while one host sends nothing but first fragments.
    let hosts: Vec<Packet> = (0..64)
        .map(|host| datagram(([10, 1, 1, host], 40_000), 7, 7_000))
        .collect();
    let frames: Vec<Vec<Vec<u8>>> = hosts.iter().map(cut_for_ethernet).collect();
    let mut left = vec![Vec::new(); hosts.len()];
    let mut id = 0;
    for nth in 0..frames[0].len() {
        for (frames, left) in frames.iter().zip(&mut left) {
            left.push(passes(out(&plane, &frames[nth])));
        }
        // More than there are records, but not longer than others' datagrams are remembered, where the machine is
        // slow.
        let burst = Instant::now();
        for _ in 0..12_000 {
            if burst.elapsed() > Duration::from_secs(1) {
                break;
            }
            let frame = cut(&datagram(INSIDE, id, 16), &[8])[0].clone();
            passes(out(&plane, &frame));
            id += 1;
        }
    }
    for (packet, frames) in hosts.iter().zip(&left) {
        let left = reassemble(frames, LINK);
        assert_eq!(left.payload_length(), packet.payload_length());
    }
    let mut records = plane.datagrams();
    assert_eq!(records.len(), DATAGRAMS);
    records.retain(|record: &Datagram<[u8; 4]>| record.key.source == INSIDE.0);
    println!(
        "{} of {DATAGRAMS} records after {id} first fragments",
        records.len()
    );
    // And new ones get through.
    let left = leaves(&plane, &cut_for_ethernet(&datagram(NEIGHBOUR, 1, 60_000)));
    assert_eq!(left.source, EGRESS);
}

#[test]
fn nat_6_whoever_waits_in_vain_is_counted_and_makes_room() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    let frames = cut_for_ethernet(&datagram(INSIDE, 1, 4_000));
    let began = DataPlane::now();
    held(&plane, Hook::UplinkEgress, &frames[1]);
    held(&plane, Hook::UplinkEgress, &frames[2]);
    assert_eq!(plane.buffers().len(), 2);
    plane.arm();
    let left = 1_000_000_000;
    plane.rewind(LIFETIME - left);
    let ticks = plane.progress().ticks;
    eventually("a whole sweep", || plane.progress().ticks > ticks + 20);
    let waiting = plane.buffers().len();
    // Twenty ticks take a fifth of a second, and longer where a machine is emulated or has others to serve.
    assert!(
        waiting == 2 || DataPlane::now() - began >= left,
        "not yet: {waiting}"
    );
    plane.rewind(LIFETIME);
    eventually("both are counted", || {
        plane.reason(Reason::FragmentNoFirst) == 2
    });
    assert!(plane.buffers().is_empty());
    // The first one finds nobody.
    assert_eq!(out(&plane, &frames[0]).verdict, Verdict::Redirect);
    let sent = wire.rest();
    assert_eq!(
        sent.iter().filter(|(sent, _)| *sent == Sent::Out).count(),
        1
    );
}
