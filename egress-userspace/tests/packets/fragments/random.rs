//! Random datagrams, and both CPUs at once.

use egress_common::reason::Reason;

use super::{LINK, datagram, out, with_id};
use crate::harness::DataPlane;
use crate::loopback::{Loopback, Sent};
use crate::packet::Packet;
use crate::pieces::{cut, cut_for_ethernet, reassemble};
use crate::run::Verdict;
use crate::seed::{Random, cases};
use crate::world::{EGRESS, INSIDE, ORIGIN};

#[test]
fn nat_6_random_datagrams_arrive_whole_or_not_at_all() {
    if !crate::harness::permitted() {
        return;
    }
    let mut random = Random::announced("fragments");
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    for case in 0..cases(400) {
        let id = random.number() as u16;
        let port = 20_000 + (case % 40_000) as u16;
        let length = 1 + random.below(6_000) as usize;
        let packet = datagram(([10, 1, 3, case as u8], port), id, length);
        let mut frames = Vec::new();
        let mut sizes = vec![(1 + random.below(100) as usize) * 8];
        sizes.extend((0..40).map(|_| (1 + random.below(60) as usize) * 8));
        let honest = cut(&packet, &sizes);
        // Some twice, some out of place.
        for frame in &honest {
            frames.push(frame.clone());
            if random.once_in(6) {
                frames.push(frame.clone());
            }
        }
        for _ in 0..random.below(8) {
            let (a, b) = (
                random.below(frames.len() as u64),
                random.below(frames.len() as u64),
            );
            frames.swap(a as usize, b as usize);
        }
        let mut left = Vec::new();
        for frame in &frames {
            let outcome = out(&plane, frame);
            if outcome.verdict == Verdict::Next {
                left.push(outcome.bytes);
            }
        }
        // What was released is on the wire by now, and what else came in meanwhile.
        let sent = wire
            .rest()
            .into_iter()
            .filter(|(sent, _)| *sent == Sent::Out);
        left.extend(sent.map(|(_, bytes)| bytes));
        let all = honest.len();
        if all == 1 {
            // Not a fragment: every copy leaves.
            assert!(
                left.iter()
                    .all(|frame| <Packet>::read(frame).source == EGRESS)
            );
            continue;
        }
        // A datagram that was complete begins anew with a late copy of its first fragment.
        let late = left.len() - all;
        assert!(left.len() >= all, "case {case}: {} of {all}", left.len());
        let first_copies = frames.iter().filter(|frame| **frame == honest[0]).count();
        assert!(late <= (first_copies - 1) * all, "case {case}: {late}");
        for frame in &left {
            assert_eq!(frame[26..30], EGRESS, "case {case}");
        }
        let mut parts = std::collections::HashMap::new();
        for frame in left {
            let id = u16::from_be_bytes([frame[18], frame[19]]);
            parts.entry(id).or_insert_with(Vec::new).push(frame);
        }
        let whole = parts.values().filter(|parts| parts.len() == all).count();
        assert!(whole >= 1, "case {case}");
        for (id, parts) in parts {
            if parts.len() == all {
                let expected = packet.clone().sent_from((EGRESS, port));
                assert_eq!(
                    reassemble(&parts, LINK),
                    with_id(&expected, id),
                    "case {case}"
                );
            }
        }
    }
    println!("{:?}", plane.all_reasons());
    assert_eq!(plane.reason(Reason::FragmentOverlap), 0);
    plane.consistent();
}

#[test]
fn nat_6_fragments_of_one_datagram_on_two_cpus() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    let mut contended = 0;
    let mut spoilt = 0;
    for id in 0..1_000 {
        let packet = datagram(INSIDE, id, 7_000);
        let frames = cut_for_ethernet(&packet);
        let (plane, frames) = (&plane, &frames);
        let mut left: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers: Vec<_> = [[0, 2, 4], [1, 3, 5]]
                .map(|nths: [usize; 3]| {
                    scope.spawn(move || {
                        nths.into_iter()
                            .filter_map(|nth| frames.get(nth))
                            .map(|frame| out(plane, frame))
                            .filter(|outcome| outcome.verdict == Verdict::Next)
                            .map(|outcome| outcome.bytes)
                            .collect::<Vec<_>>()
                    })
                })
                .into_iter()
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect()
        });
        let before = std::mem::replace(&mut contended, plane.reason(Reason::Contended));
        if contended != before {
            // A virtual CPU was stopped while it had the lock: what the other one brought meanwhile is lost.
            spoilt += 1;
            wire.rest();
            continue;
        }
        let missing = frames.len() - left.len();
        left.extend(wire.frames(Sent::Out, missing));
        let left = reassemble(&left, LINK);
        assert_eq!(
            left,
            with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
        );
    }
    assert!(
        spoilt <= 100,
        "{spoilt} of 1,000 datagrams lost a fragment to the lock"
    );
    let mut reasons = plane.all_reasons();
    reasons.retain(|(reason, _)| *reason != Reason::Contended);
    assert_eq!(reasons, vec![]);
}
