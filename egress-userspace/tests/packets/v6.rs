//! What both families must do alike, over IPv6.
//!
//! The files of tests are compiled once for each family: what differs, they take from here.

use egress_common::family::V6;

use crate::world;

type Address = V6;
type DataPlane = crate::harness::Plane<V6>;
type Packet = crate::packet::Packet<V6>;
type Endpoint = crate::packet::Endpoint<V6>;

const INSIDE: Endpoint = (at(world::INSIDE.0), world::INSIDE.1);
const ORIGIN: Endpoint = (at(world::ORIGIN.0), world::ORIGIN.1);
const STRANGER: V6 = at(world::STRANGER);
const EGRESS: V6 = at(world::EGRESS);
const EGRESS_2: V6 = at(world::EGRESS_2);

/// Bytes of a network header without extensions.
const HEADER: usize = 40;
/// Extension headers in front of a TCP segment: for the destination, and for every hop before that.
const OPTIONS: [&[u8]; 2] = [
    &[60, 6, 0, 1, 4, 0, 0, 0, 0],
    &[0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
];

/// The address that has this one's part in a world.
const fn at(address: [u8; 4]) -> V6 {
    crate::family::v6_of(address)
}

#[path = "admission.rs"]
mod admission;
#[path = "choice.rs"]
mod choice;
#[path = "closing.rs"]
mod closing;
#[path = "concurrency.rs"]
mod concurrency;
#[path = "icmp/six.rs"]
mod errors;
#[path = "full.rs"]
mod full;
#[path = "icmp.rs"]
mod icmp;
#[path = "link.rs"]
mod link;
#[path = "over.rs"]
mod over;
#[path = "quarantine.rs"]
mod quarantine;
#[path = "realm.rs"]
mod realm;
#[path = "rfc.rs"]
mod rfc;
#[path = "sweep.rs"]
mod sweep;
#[path = "translation.rs"]
mod translation;
#[path = "versions.rs"]
mod versions;
