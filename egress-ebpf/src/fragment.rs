//! Fragments (NAT-6): the first one of a datagram finds the flow, later ones find the first one's note.
//!
//! Notes stand in an array of records, in groups of a few that are searched one by one. A group has a
//! lock, because the network likes to deliver fragments of one datagram on several CPUs at once. It is
//! our own lock, not the kernel's: under that one no helper may be called.
//!
//! What a record says is in `egress_common::fragment`; frames that wait for their first fragment are in
//! [`crate::held`]; what differs between the families is in [`family`]; records are looked up, under their group's
//! lock, in [`record`]; the steps that the programs take are in [`out`] and [`back`].

pub mod back;
mod family;
pub mod out;
mod record;

use core::ptr::write_volatile;

use aya_ebpf::programs::TcContext;
use egress_common::fragment::{
    Choice, DatagramKey, Direction, Fate, Piece, Survey, Words, identification,
};
use egress_common::key::{Reference, realm};
use egress_common::packet::Ip;
use egress_common::reason::Reason;
use egress_common::siphash::Secret;
use egress_common::word::Word;

pub use self::family::Fragmented;
use self::record::file;
use crate::flow::{self, Found};
use crate::frame::Frame;
use crate::maps::{IDENTIFICATIONS, SECRET};
use crate::word::MapWord;

/// A word on its own: a lock, or a counter.
#[repr(C)]
pub struct Single {
    pub word: u64,
}

/// One fragment while it is looked at, and what its datagram's record said.
#[repr(C)]
pub struct Work<A> {
    pub key: DatagramKey<A>,
    choice: Choice,
    survey: Survey,
    direction: u32,
    /// What is asked for: see [`ask`].
    ask: u32,
    /// Fate that a first fragment gives its datagram; then, the fate it has.
    pub fate: u32,
    /// Identification it leaves with.
    pub identification: u32,
    /// Egress IP of the flow that a first fragment belongs to.
    pub egress: A,
    /// Flow it belongs to.
    pub flow: Reference,
    /// Group and record.
    group: u32,
    pub record: u32,
    pub generation: u32,
    /// Frames that were held for it.
    pub held: u32,
    /// Where the network header starts.
    pub network: u32,
    pad: u32,
}

/// What is asked for a fragment.
mod ask {
    /// It is a later one; nothing is noted of a datagram that is not known.
    pub(super) const KNOWN: u32 = 0;
    /// It is a later one that may be held.
    pub(super) const HELD: u32 = 1;
    /// It is a first one.
    pub(super) const FIRST: u32 = 2;
    /// It is a first one, and nothing is noted yet.
    pub(super) const FORESEEN: u32 = 3;
}

/// What becomes of a fragment. Positive, as in [`crate::outgoing::next`].
pub mod answer {
    /// A first one: go on. A later one: as its datagram's fate says.
    pub const GO_ON: i32 = 0;
    /// Nothing is known of its datagram.
    pub const UNKNOWN: i32 = 1;
    /// It is held.
    pub const HELD: i32 = 2;
    /// Dropped for the reason with this number, above this one.
    pub const DROPPED: i32 = 0x100;

    pub(super) const fn dropped(reason: egress_common::reason::Reason) -> i32 {
        DROPPED + reason as i32
    }
}

/// The reason of an answer that is one.
#[inline(always)]
pub const fn reason(answer: i32) -> Option<Reason> {
    match answer - answer::DROPPED {
        n if n == Reason::Contended as i32 => Some(Reason::Contended),
        n if n == Reason::FragmentMalformed as i32 => Some(Reason::FragmentMalformed),
        n if n == Reason::FragmentOverlap as i32 => Some(Reason::FragmentOverlap),
        n if n == Reason::FragmentDuplicate as i32 => Some(Reason::FragmentDuplicate),
        n if n == Reason::FragmentRefused as i32 => Some(Reason::FragmentRefused),
        n if n >= 0 => Some(Reason::FragmentsFull),
        _ => None,
    }
}

/// Takes note of a fragment, before anything is asked about it. What no datagram can have is noted as
/// an empty piece and answered for when it is asked about.
#[inline(always)]
pub fn note<A: Fragmented>(
    ctx: &TcContext,
    ip: &Ip<A>,
    realm: u16,
    direction: Direction,
) -> Option<()> {
    let work = A::work()?;
    let header = A::part_of(&Frame::now(ctx), ip)?;
    let piece =
        Piece::new(header.offset, header.payload, header.more, header.before).unwrap_or_default();
    // SAFETY: this CPU's own record.
    unsafe {
        let key = &raw mut (*work).key;
        // One by one: both addresses at once would be read where the stack has no whole word.
        write_volatile(&raw mut (*key).source, ip.source);
        write_volatile(&raw mut (*key).destination, ip.destination);
        (*key).identification = header.identification;
        (*key).realm = realm as u32;
        (*key).protocol = ip.protocol as u32;
        (*key).pad = 0;
        (*work).survey = Survey::new(piece);
        (*work).direction = direction as u32;
        (*work).network = ip.network_at as u32;
    }
    Some(())
}

/// Whether this fragment, which leaves, is of the datagram that this CPU has looked up last.
#[inline(always)]
pub fn is_noted<A: Fragmented>(ctx: &TcContext, ip: &Ip<A>) -> bool {
    let (Some(work), Some(header)) = (A::work(), A::part_of(&Frame::now(ctx), ip)) else {
        return false;
    };
    let key = DatagramKey {
        source: ip.source,
        destination: ip.destination,
        identification: header.identification,
        realm: realm::COMMON as u32,
        protocol: ip.protocol as u32,
        pad: 0,
    };
    // SAFETY: this CPU's own record.
    let work = unsafe { &*work };
    work.direction == Direction::Out as u32 && work.key.same(&key)
}

/// A later fragment, if its datagram is known.
#[inline(always)]
pub fn known<A: Fragmented>(ctx: &TcContext) -> i32 {
    asked::<A>(ctx, ask::KNOWN)
}

/// A later fragment of something that must not pass: translated, or held.
#[inline(always)]
pub fn later<A: Fragmented>(ctx: &TcContext) -> i32 {
    asked::<A>(ctx, ask::HELD)
}

#[inline(always)]
fn asked<A: Fragmented>(ctx: &TcContext, ask: u32) -> i32 {
    let Some(work) = A::work() else {
        return answer::dropped(Reason::Contended);
    };
    // SAFETY: this CPU's own record.
    unsafe { (*work).ask = ask };
    file::<A>(ctx)
}

/// A first fragment of this flow; the datagram leaves with a number of its own.
#[inline(always)]
pub fn first<A: Fragmented>(ctx: &TcContext, found: &Found<A>) -> i32 {
    let Some(work) = A::work() else {
        return answer::dropped(Reason::Contended);
    };
    // SAFETY: this CPU's own record, and a live map value.
    unsafe {
        (*work).flow = Reference {
            index: found.index,
            generation: found.word.generation,
        };
        (*work).egress = (*found.slot).egress;
        if (*work).direction == Direction::Out as u32 {
            (*work).identification = next_identification(
                (*work).egress,
                (*work).key.destination,
                (*work).key.protocol,
            );
        }
    }
    fated::<A>(ctx, Fate::Flow)
}

/// Whether a first fragment will be dropped, before it opens a flow.
#[inline(always)]
pub fn foreseen<A: Fragmented>(ctx: &TcContext) -> i32 {
    asked::<A>(ctx, ask::FORESEEN)
}

/// A first fragment that decides what becomes of the others.
#[inline(always)]
pub fn fated<A: Fragmented>(ctx: &TcContext, fate: Fate) -> i32 {
    let Some(work) = A::work() else {
        return answer::dropped(Reason::Contended);
    };
    // SAFETY: this CPU's own record.
    unsafe {
        (*work).ask = ask::FIRST;
        (*work).fate = fate as u32;
    }
    file::<A>(ctx)
}

/// The flow a later fragment belongs to, if it is still alive.
#[inline(always)]
pub fn flow<A: Fragmented>() -> Option<Found<A>> {
    let work = A::work()?;
    // SAFETY: this CPU's own record.
    let Reference { index, generation } = unsafe { (*work).flow };
    if flow::usable::<A>(index.wrapping_add(1)) == 0 {
        return None;
    }
    flow::at::<A>(index).filter(|found| found.word.generation == generation)
}

/// An identification nobody else has had for a while (RFC 6864, RFC 7857 section 9).
#[inline(always)]
pub fn next_identification<A: Words>(egress: A, origin: A, protocol: u32) -> u32 {
    let (counter, start) = identification(secret(), egress, origin, protocol);
    let Some(counter) = IDENTIFICATIONS.get_ptr_mut(counter) else {
        return start;
    };
    // SAFETY: an 8-aligned map value.
    let nth = unsafe { MapWord::first_of(counter) }.add(1);
    start.wrapping_add(nth as u32)
}

#[inline(always)]
fn secret() -> Secret {
    SECRET.get(0).copied().unwrap_or_default()
}

impl<A: Fragmented> Work<A> {
    /// The window its frames are held in.
    #[inline(always)]
    pub fn window(&self) -> u32 {
        let direction = if self.direction == 0 {
            Direction::Out
        } else {
            Direction::Back
        };
        self.key.window(secret(), direction)
    }

    /// Whether what was held is handed back to the hook that it came in by: what arrives from an origin, and from
    /// another server.
    #[inline(always)]
    pub fn is_handed_back(&self) -> bool {
        self.direction == Direction::Back as u32 || realm::peer(self.key.realm as u16).is_some()
    }

    /// Who a frame is held for: record and generation.
    #[inline(always)]
    pub fn owner(&self) -> u64 {
        ((A::LEN as u64) << 59) | (self.record as u64) << 32 | self.generation as u64
    }
}
