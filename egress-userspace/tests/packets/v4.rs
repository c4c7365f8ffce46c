//! What both families must do alike, over IPv4.
//!
//! The files of tests are compiled once for each family: what differs, they take from here.

use egress_common::family::V4;

use crate::world;

type Address = V4;
type DataPlane = crate::harness::Plane<V4>;
type Packet = crate::packet::Packet<V4>;
type Endpoint = crate::packet::Endpoint<V4>;

const INSIDE: Endpoint = (at(world::INSIDE.0), world::INSIDE.1);
const ORIGIN: Endpoint = (at(world::ORIGIN.0), world::ORIGIN.1);
const STRANGER: V4 = at(world::STRANGER);
const EGRESS: V4 = at(world::EGRESS);
const EGRESS_2: V4 = at(world::EGRESS_2);

/// Bytes of a network header without options.
const HEADER: usize = 20;
/// Options of a TCP segment's network header: a router alert, and as many as there may be.
const OPTIONS: [&[u8]; 2] = [&[0x94, 4, 0, 0, 1, 1, 1, 0], &[1; 40]];

/// The address that has this one's part in a world.
const fn at(address: [u8; 4]) -> V4 {
    address
}

#[path = "admission.rs"]
mod admission;
#[path = "choice.rs"]
mod choice;
#[path = "closing.rs"]
mod closing;
#[path = "concurrency.rs"]
mod concurrency;
#[path = "icmp/four.rs"]
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
