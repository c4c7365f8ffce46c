//! NAT-6: fragments leave and arrive in any order, and nothing of a zone leaves that is not translated.

mod bad;
mod flow;
mod order;
mod random;
mod room;
mod six;

use egress_common::reason::Reason;

use crate::harness::{DataPlane, Hook, done};
use crate::packet::{Endpoint, Packet};
use crate::pieces::reassemble;
use crate::run::{Meta, Outcome, Verdict};
use crate::world::ORIGIN;

const LINK: usize = 14;
/// The second inside host.
const NEIGHBOUR: Endpoint = ([10, 1, 0, 3], 40_000);

/// `length` bytes that differ.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|nth| (nth * 7 + nth / 256) as u8).collect()
}

/// A datagram from the inside, with an identification.
fn datagram(from: Endpoint, id: u16, length: usize) -> Packet {
    Packet {
        id,
        fragment: 0,
        ..Packet::udp(from, ORIGIN, &bytes(length))
    }
}

#[track_caller]
fn out(plane: &DataPlane, frame: &[u8]) -> Outcome {
    plane
        .try_bytes(Hook::UplinkEgress, frame, Meta::default())
        .expect("a frame the kernel takes")
}

#[track_caller]
fn back(plane: &DataPlane, frame: &[u8]) -> Outcome {
    let meta = Meta {
        summed: true,
        ..Meta::default()
    };
    plane
        .try_bytes(Hook::UplinkIngress, frame, meta)
        .expect("a frame the kernel takes")
}

/// A fragment leaves or arrives translated: its bytes.
#[track_caller]
fn passes(outcome: Outcome) -> Vec<u8> {
    let head = outcome.bytes.get(..64).unwrap_or(&outcome.bytes);
    assert_eq!(outcome.verdict, Verdict::Next, "{head:02x?}");
    outcome.bytes
}

/// A fragment is dropped for this reason.
#[track_caller]
fn refused(plane: &DataPlane, hook: Hook, frame: &[u8], reason: Reason) {
    let before = plane.reason(reason);
    let outcome = plane.try_bytes(hook, frame, Meta::default()).unwrap();
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert_eq!(
        plane.reason(reason),
        before + 1,
        "{:?}",
        plane.all_reasons()
    );
}

/// A later fragment is held: it goes nowhere, and that is no drop.
#[track_caller]
fn held(plane: &DataPlane, hook: Hook, frame: &[u8]) {
    let before = plane.all_reasons();
    let outcome = plane.try_bytes(hook, frame, Meta::default()).unwrap();
    assert_eq!(outcome.verdict, Verdict::Redirect);
    assert_eq!(plane.all_reasons(), before);
}

/// All fragments leave, in order; the datagram they make.
#[track_caller]
fn leaves(plane: &DataPlane, frames: &[Vec<u8>]) -> Packet {
    let left: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let outcome = out(plane, frame);
            assert_eq!(outcome.mark, done(plane.world.mark_mask));
            passes(outcome)
        })
        .collect();
    reassemble(&left, LINK)
}

/// The same datagram, but for the identification it was given.
fn with_id(packet: &Packet, id: u16) -> Packet {
    Packet {
        id,
        ..packet.clone()
    }
}

/// Every order of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    orders(n - 1)
        .into_iter()
        .flat_map(|order| {
            (0..n).map(move |at| {
                let mut order = order.clone();
                order.insert(at, n - 1);
                order
            })
        })
        .collect()
}
