//! Flows that end without their doing, for idleness or on purpose: both ends are told.
//!
//! Nothing is sent from here. Two segments are made as the origin would have sent them, and put on the uplink's
//! way in, where the data plane does with them what it does with every packet of an origin: the RST is translated
//! back to the inside, by whatever realm, mark, masquerade or socket it belongs to; the acknowledgment meets a flow
//! that is over and is turned round into the RST for the origin. So the origin's comes from the egress IP, and by
//! the route that the kernel has for it. A raw socket would have its packets dropped by our own guard and
//! programs (SAFE-6), would need a next hop where they are not, and could not speak for the origin at all.

use std::net::IpAddr;

use aya::maps::{MapData, RingBuf};
use egress_common::checksum::{fold, pseudo, sum};
use egress_common::ended::Ended;
use egress_common::family::{Address, V4, V6};
use egress_common::ipv6::IPV6;
use egress_common::key::{Reference, TCP};
use egress_common::packet::{IPV4_MIN, TCP_MIN, control};
use egress_common::record::Cause;
use egress_common::reply::TTL;
use egress_common::slot::{Slot, SlotWord, State, flag};
use egress_common::tcp;

use super::interfaces::Interface;
use super::maps::{Maps, Records};
use super::object::Object;
use super::sys;
use crate::dataplane::api::DataPlaneError;

/// The sender's link-layer address in frames we make: locally administered, nobody's.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0];
/// Flows told at a stretch: others wait for the same thread.
const BATCH: usize = 4_096;
/// Rounds in which flows are looked for that a program was about to admit.
const ROUNDS: usize = 3;

/// A TCP segment without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bare {
    ports: (u16, u16),
    numbers: (u32, u32),
    control: u8,
}

impl Bare {
    /// The segment; `pseudo` is the sum over its pseudo-header.
    fn bytes(self, pseudo: u32) -> [u8; TCP_MIN] {
        let mut bytes = [0; TCP_MIN];
        bytes[0..2].copy_from_slice(&self.ports.0.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.numbers.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.numbers.1.to_be_bytes());
        bytes[12] = 5 << 4;
        bytes[13] = self.control;
        let checksum = !fold(pseudo + sum(&bytes));
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// Families whose packets can be made.
trait Made: Address + Into<IpAddr> {
    /// The map of its flows' slots.
    const SLOTS: &'static str;

    /// An IP packet with the segment in it.
    fn packet(source: Self, destination: Self, segment: Bare) -> Vec<u8>;
}

impl Made for V4 {
    const SLOTS: &'static str = "SLOTS4";

    fn packet(source: Self, destination: Self, segment: Bare) -> Vec<u8> {
        const LENGTH: u16 = (IPV4_MIN + TCP_MIN) as u16;
        let mut header = [0; IPV4_MIN];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&LENGTH.to_be_bytes());
        // Not to be fragmented, so that it needs no identification (RFC 6864).
        header[6] = 0x40;
        header[8] = TTL;
        header[9] = TCP;
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&destination);
        let checksum = !fold(sum(&header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        let pseudo = pseudo(source, destination, TCP, TCP_MIN as u16);
        [header.as_slice(), &segment.bytes(pseudo)].concat()
    }
}

impl Made for V6 {
    const SLOTS: &'static str = "SLOTS6";

    fn packet(source: Self, destination: Self, segment: Bare) -> Vec<u8> {
        let mut header = [0; IPV6];
        header[0] = 0x60;
        header[4..6].copy_from_slice(&(TCP_MIN as u16).to_be_bytes());
        header[6] = TCP;
        header[7] = TTL;
        header[8..24].copy_from_slice(&source);
        header[24..40].copy_from_slice(&destination);
        let pseudo = pseudo(source, destination, TCP, TCP_MIN as u16);
        [header.as_slice(), &segment.bytes(pseudo)].concat()
    }
}

/// What the origin would have sent: the RST for the inside, and the segment whose answer is the RST for the
/// origin. Without link-layer header.
fn segments<A: Made>(slot: &Slot<A>) -> [Vec<u8>; 2] {
    let ends = tcp::farewell(slot.word(), &slot.out, &slot.back);
    let ports = (slot.flow.origin_port, slot.egress_port);
    let packet = |numbers, control| {
        let segment = Bare {
            ports,
            numbers,
            control,
        };
        A::packet(slot.flow.origin, slot.egress, segment)
    };
    let (expected, sent) = ends.origin;
    [
        packet(ends.inside, control::RST | control::ACK),
        packet((sent, expected), control::ACK),
    ]
}

/// A frame for an interface.
fn frame<A: Made>(to: &Interface, packet: &[u8]) -> Vec<u8> {
    [&to.mac[..], &NOBODY, &A::ETHERTYPE.to_be_bytes(), packet].concat()
}

/// Tells both ends of a flow that it is over, on every uplink: which one it took is not remembered, and a second
/// RST does no harm. False if there is nobody to tell.
fn tell<A: Made>(
    object: &mut Object,
    uplinks: &[&Interface],
    slot: &Slot<A>,
) -> Result<bool, DataPlaneError> {
    let word = slot.word();
    let over = word.state == State::Closed && word.has(flag::EXPIRED) && !word.has(flag::ORPHAN);
    if !over || slot.flow.protocol != TCP {
        return Ok(false);
    }
    let segments = segments(slot);
    for uplink in uplinks {
        for segment in &segments {
            object.inject(&frame::<A>(uplink, segment), uplink.index)?;
        }
    }
    Ok(true)
}

fn read(bytes: &[u8]) -> Option<Ended> {
    let bytes: &[u8; size_of::<Ended>()] = bytes.first_chunk()?;
    // SAFETY: as many bytes as the record has, which is `repr(C)` of integers, at whatever alignment.
    Some(unsafe { bytes.as_ptr().cast::<Ended>().read_unaligned() })
}

/// Tells the ends of the flows that the sweep has ended; returns how many. What it ended while no daemon ran is
/// among them, as long as its port rests.
pub(super) fn tell_ended(
    maps: &Maps,
    object: &mut Object,
    ring: &mut RingBuf<MapData>,
    uplinks: &[&Interface],
) -> Result<u64, DataPlaneError> {
    let mut ended = Vec::new();
    while ended.len() < BATCH
        && let Some(item) = ring.next()
    {
        ended.extend(read(&item));
    }
    let (six, four): (Vec<Ended>, Vec<Ended>) =
        ended.into_iter().partition(|flow| flow.version == 6);
    Ok(
        tell_all::<V4>(maps, object, uplinks, &four)?
            + tell_all::<V6>(maps, object, uplinks, &six)?,
    )
}

fn tell_all<A: Made>(
    maps: &Maps,
    object: &mut Object,
    uplinks: &[&Interface],
    ended: &[Ended],
) -> Result<u64, DataPlaneError>
where
    Slot<A>: aya::Pod,
{
    if ended.is_empty() {
        return Ok(0);
    }
    let slots = maps.records::<Slot<A>>(A::SLOTS)?;
    let mut told = 0;
    for flow in ended {
        if let Some(slot) = slots.copy(flow.index)
            && slot.generation == flow.generation
            && tell(object, uplinks, &slot)?
        {
            told += 1;
        }
    }
    Ok(told)
}

/// What decides whether a flow is to end.
pub(super) struct Candidate {
    /// Its egress IP.
    pub(super) egress: IpAddr,
    /// Its port there.
    pub(super) port: u16,
    /// Whether another server translates it: then these are not its egress IP and port.
    pub(super) forwarded: bool,
    /// The zone that was admitted.
    pub(super) zone: u16,
    /// Where its inside address means something.
    pub(super) realm: u16,
}

/// Ends every live flow that is meant, for this cause, and tells both ends; returns how many there were.
pub(super) fn reset(
    maps: &Maps,
    object: &mut Object,
    uplinks: &[&Interface],
    cause: Cause,
    meant: impl Fn(&Candidate) -> bool,
) -> Result<u64, DataPlaneError> {
    let four = maps.records::<Slot<V4>>(V4::SLOTS)?;
    let six = maps.records::<Slot<V6>>(V6::SLOTS)?;
    let mut ended = 0;
    for _ in 0..ROUNDS {
        // A program that began before the change that it is ended for may be about to admit a flow.
        sys::wait_for_running_programs();
        let found = reset_once(&four, object, uplinks, cause, &meant)?
            + reset_once(&six, object, uplinks, cause, &meant)?;
        ended += found;
        if found == 0 {
            break;
        }
    }
    Ok(ended)
}

fn reset_once<A: Made>(
    slots: &Records<Slot<A>>,
    object: &mut Object,
    uplinks: &[&Interface],
    cause: Cause,
    meant: impl Fn(&Candidate) -> bool,
) -> Result<u64, DataPlaneError>
where
    Slot<A>: aya::Pod,
{
    let mut ended = 0;
    for index in 0..slots.len() {
        let Some(word) = slots.word(index).map(SlotWord::from_bits) else {
            break;
        };
        if !word.state.is_counted() {
            continue;
        }
        let Some(slot) = slots.copy(index) else { break };
        let candidate = Candidate {
            egress: slot.egress.into(),
            port: slot.egress_port,
            forwarded: slot.flags & flag::FORWARDED != 0,
            zone: slot.zone,
            realm: slot.flow.realm,
        };
        if slot.generation != word.generation || !meant(&candidate) {
            continue;
        }
        let flow = Ended::new::<A>(Reference {
            index,
            generation: word.generation,
        })
        .because(cause);
        if !object.end(flow)? {
            continue;
        }
        ended += 1;
        // Again: now it is over, and its numbers are the last ones.
        if let Some(slot) = slots.copy(index)
            && slot.generation == flow.generation
        {
            tell(object, uplinks, &slot)?;
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::key::FlowKey;
    use egress_common::slot::Side;

    fn slot() -> Slot<V4> {
        Slot {
            state: State::Closed as u8,
            flags: flag::EXPIRED | flag::SYN_IN,
            flow: FlowKey {
                inside: [10, 1, 0, 2],
                origin: [192, 0, 2, 7],
                inside_port: 40_000,
                origin_port: 443,
                protocol: TCP,
                ..FlowKey::default()
            },
            egress: [198, 51, 100, 1],
            egress_port: 50_000,
            out: Side {
                end: 1_000,
                ack: 5_000,
            },
            back: Side {
                end: 5_000,
                ack: 1_000,
            },
            ..Slot::default()
        }
    }

    /// RFC 1071, word by word.
    fn summed(bytes: &[u8]) -> u16 {
        let mut total = 0_u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn both_segments_are_the_origins_and_sum_up() {
        for (packet, control, numbers) in segments(&slot())
            .iter()
            .zip([
                (control::RST | control::ACK, (5_000_u32, 1_000_u32)),
                (control::ACK, (5_000, 1_000)),
            ])
            .map(|(packet, (control, numbers))| (packet, control, numbers))
        {
            assert_eq!(packet.len(), 40);
            assert_eq!(packet[12..16], [192, 0, 2, 7]);
            assert_eq!(packet[16..20], [198, 51, 100, 1]);
            assert_eq!(packet[20..24], [1, 0xbb, 0xc3, 0x50]);
            assert_eq!(packet[24..28], numbers.0.to_be_bytes());
            assert_eq!(packet[28..32], numbers.1.to_be_bytes());
            assert_eq!(packet[33], control);
            assert_eq!(summed(&packet[..20]), 0xffff);
            let pseudo = [&packet[12..20], &[0, TCP, 0, 20], &packet[20..]].concat();
            assert_eq!(summed(&pseudo), 0xffff);
        }
    }
}
