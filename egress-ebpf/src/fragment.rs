//! Fragments (NAT-6): the first one of a datagram finds the flow, later ones find the first one's note.
//!
//! Notes stand in an array of records, in groups of a few that are searched one by one. A group has a
//! lock, because the network likes to deliver fragments of one datagram on several CPUs at once. It is
//! our own lock, not the kernel's: under that one no helper may be called.
//!
//! What a record says is in `egress_common::fragment`; frames that wait for their first fragment are in
//! [`crate::held`]; the steps that the programs take are in [`out`] and [`back`].

pub mod back;
pub mod out;

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update, bpf_loop};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::family::{V4, V6};
use egress_common::fragment::{
    Choice, Datagram, DatagramKey, Direction, Fate, Fit, Piece, Survey, WAYS, Words, identification,
};
use egress_common::ipv6::IPV6;
use egress_common::key::Reference;
use egress_common::packet::Ip;
use egress_common::reason::Reason;
use egress_common::siphash::Secret;
use egress_common::word::Word;

use crate::extensions;
use crate::family::Family;
use crate::family6::words;
use crate::flow::{self, Found};
use crate::frame::Frame;
use crate::maps::{
    Both, DATAGRAM_LOCKS4, DATAGRAM_LOCKS6, DATAGRAMS4, DATAGRAMS6, IDENTIFICATIONS,
    SCRATCH_FRAGMENT, SECRET,
};
use crate::word::MapWord;
use crate::{held, slots};

/// Attempts at a group's lock; whoever has it gives it back within a microsecond.
const ATTEMPTS: u32 = 4_096;

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

/// A fragment's header as it stands in the packet.
pub struct Part {
    identification: u32,
    /// In units of eight bytes.
    offset: u16,
    more: bool,
    /// Bytes behind it.
    payload: u32,
    /// Bytes before it that count for the longest datagram.
    before: u32,
}

/// What differs between the families.
pub trait Fragmented: Family + Words {
    fn work() -> Option<*mut Work<Self>>;
    fn datagram(index: u32) -> Option<*mut Datagram<Self>>;
    fn lock(group: u32) -> Option<*mut Single>;
    /// Reads what makes the packet a fragment.
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part>;
    /// Gives a fragment another identification; `network` is where its IP header starts.
    fn renumber(frame: &Frame, network: usize, identification: u32) -> Result<(), ()>;
    /// Corrects a device's sum of the packet after an address was replaced in a fragment without a
    /// transport checksum.
    fn moved(ctx: &TcContext, from: Self, to: Self);
}

impl Fragmented for V4 {
    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH_FRAGMENT.get_ptr_mut(0).map(Both::four)
    }
    #[inline(always)]
    fn datagram(index: u32) -> Option<*mut Datagram<Self>> {
        DATAGRAMS4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn lock(group: u32) -> Option<*mut Single> {
        DATAGRAM_LOCKS4.get_ptr_mut(group)
    }
    #[inline(always)]
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part> {
        let [i0, i1, f0, f1] = frame.read::<4>(ip.network() + 4)?;
        let field = u16::from_be_bytes([f0, f1]);
        Some(Part {
            identification: u16::from_be_bytes([i0, i1]) as u32,
            offset: field & 0x1fff,
            more: field & 0x2000 != 0,
            payload: ip.payload(),
            before: ip.header() as u32,
        })
    }
    #[inline(always)]
    fn renumber(frame: &Frame, network: usize, identification: u32) -> Result<(), ()> {
        let (Some(field), Some(sum)) = (frame.at::<2>(network + 4), frame.at::<2>(network + 10))
        else {
            return Err(());
        };
        let [_, _, i0, i1] = identification.to_be_bytes();
        // SAFETY: both places were checked to lie within the packet.
        unsafe {
            let [o0, o1] = *field;
            let old = u16::from_be_bytes(*sum);
            let new = egress_common::checksum::replaced(old, [o0, o1, 0, 0], [i0, i1, 0, 0]);
            *sum = new.to_be_bytes();
            *field = [i0, i1];
        }
        Ok(())
    }
    /// The header's own checksum has made up for it.
    #[inline(always)]
    fn moved(_ctx: &TcContext, _from: Self, _to: Self) {}
}

impl Fragmented for V6 {
    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH_FRAGMENT.get_ptr_mut(0).map(Both::six)
    }
    #[inline(always)]
    fn datagram(index: u32) -> Option<*mut Datagram<Self>> {
        DATAGRAMS6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn lock(group: u32) -> Option<*mut Single> {
        DATAGRAM_LOCKS6.get_ptr_mut(group)
    }
    #[inline(always)]
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part> {
        // Where the walk along this packet's headers met it.
        let (at, field) = extensions::fragment()?;
        let place = ip.network() + IPV6 + at as usize;
        let before = at.wrapping_add(8);
        Some(Part {
            identification: frame.u32(place + 4)?,
            offset: (field >> 3) as u16,
            more: field & 1 != 0,
            payload: ip.length.wrapping_sub(IPV6 as u32).wrapping_sub(before),
            before: at,
        })
    }
    /// Its sender has 32 bits to choose from: it keeps what it has.
    #[inline(always)]
    fn renumber(_frame: &Frame, _network: usize, _identification: u32) -> Result<(), ()> {
        Ok(())
    }
    #[inline(always)]
    fn moved(ctx: &TcContext, from: Self, to: Self) {
        let (mut from, mut to) = (words(from), words(to));
        // SAFETY: both are sixteen bytes. The second helper says so where no device has summed the packet.
        unsafe {
            let difference = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            bpf_csum_update(ctx.skb.skb, difference as u32);
        }
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

/// Looks the datagram up under its group's lock, and does what is asked.
#[inline(never)]
fn file<A: Fragmented>(ctx: &TcContext) -> i32 {
    let Some(work) = A::work() else {
        return answer::dropped(Reason::Contended);
    };
    // SAFETY: this CPU's own record.
    let group = unsafe {
        (*work).choice = Choice::new(slots::now(), (*work).ask < ask::FIRST);
        group_of::<A>()
    };
    let Some(lock) = A::lock(group) else {
        return answer::dropped(Reason::Contended);
    };
    let mut attempt = Attempt {
        group: group as u64,
        taken: 0,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    let taken = unsafe {
        bpf_loop(
            ATTEMPTS,
            attempt_once::<A> as *mut c_void,
            (&raw mut attempt).cast(),
            0,
        );
        read_volatile(&raw const attempt.taken)
    };
    if taken == 0 {
        return answer::dropped(Reason::Contended);
    }
    let answer = locked::<A>(ctx, work);
    // SAFETY: an 8-aligned map value; ours until now.
    let _ = unsafe { MapWord::first_of(lock) }.swap(1, 0);
    answer
}

/// Finds and notes the group: a function of its own, because hashing takes much of the stack.
#[inline(never)]
fn group_of<A: Fragmented>() -> u32 {
    let Some(work) = A::work() else { return 0 };
    // SAFETY: this CPU's own record.
    unsafe {
        let direction = if (*work).direction == 0 {
            Direction::Out
        } else {
            Direction::Back
        };
        (*work).group = (*work).key.group(secret(), direction);
        (*work).group
    }
}

/// A lock on its way to be taken; whole words, as in [`slots::Search`].
#[repr(C)]
struct Attempt {
    group: u64,
    taken: u64,
}

/// One attempt at a lock; 1 ends them.
unsafe extern "C" fn attempt_once<A: Fragmented>(_: u32, attempt: *mut c_void) -> i64 {
    // SAFETY: the record that `file` handed to the loop.
    let attempt = unsafe { &mut *attempt.cast::<Attempt>() };
    let Some(lock) = A::lock(attempt.group as u32) else {
        return 1;
    };
    // SAFETY: an 8-aligned map value.
    let word = unsafe { MapWord::first_of(lock) };
    if word.load() == 0 && word.swap(0, 1).is_ok() {
        attempt.taken = 1;
        return 1;
    }
    0
}

/// What `file` does while the group is its own.
#[inline(always)]
fn locked<A: Fragmented>(ctx: &TcContext, work: *mut Work<A>) -> i32 {
    // SAFETY: this CPU's own record; map values that the lock makes ours.
    unsafe {
        bpf_loop(
            WAYS,
            look_at_record::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
        let ask = (*work).ask;
        let found = read_volatile(&raw const (*work).choice.found);
        let place = if found != 0 {
            found
        } else if ask == ask::KNOWN {
            return answer::UNKNOWN;
        } else {
            (*work).choice.place()
        };
        if (*work).survey.piece.end == 0 {
            return answer::dropped(Reason::FragmentMalformed);
        }
        if place == 0 {
            return answer::dropped(Reason::FragmentsFull);
        }
        (*work).record = (*work).group * WAYS + (place - 1);
        let Some(datagram) = A::datagram((*work).record) else {
            return answer::dropped(Reason::Contended);
        };
        if ask == ask::FORESEEN && (found == 0 || (*datagram).seen.complete != 0) {
            return answer::GO_ON;
        }
        let first = ask == ask::FIRST;
        if found == 0 || (first && (*datagram).seen.complete != 0) {
            (*datagram).begin(&(*work).key);
        }
        (*work).generation = (*datagram).generation;
        if (*datagram).fate == Fate::Dropped as u32 {
            return answer::dropped(Reason::FragmentRefused);
        }
        bpf_loop(
            (*datagram).seen.count as u32,
            look_at_run::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
        let fit = if ask == ask::FORESEEN {
            (*datagram).seen.fit(&(*work).survey)
        } else {
            (*datagram).seen.add(&(*work).survey)
        };
        match fit {
            Fit::New => {}
            Fit::Duplicate => return answer::dropped(Reason::FragmentDuplicate),
            Fit::Overlap => {
                (*datagram).fate = Fate::Dropped as u32;
                return answer::dropped(Reason::FragmentOverlap);
            }
            Fit::TooMany => return answer::dropped(Reason::FragmentsFull),
        }
        if ask == ask::FORESEEN {
            return answer::GO_ON;
        }
        let now = (*work).choice.now;
        write_volatile(&raw mut (*datagram).time, now);
        if first {
            (*work).held = (*datagram).held;
            (*datagram).held = 0;
            (*datagram).fate = (*work).fate;
            (*datagram).flow = (*work).flow;
            (*datagram).identification = (*work).identification;
            if (*work).held != 0 && (*work).direction == Direction::Back as u32 {
                // All of them are handed back to the hook, the first one first: the record of what was
                // seen begins anew.
                write_volatile(&raw mut (*datagram).time, 0);
            }
            return answer::GO_ON;
        }
        if (*datagram).fate == Fate::Awaited as u32 {
            if !held::put::<A>(ctx, work, now) {
                return answer::dropped(Reason::FragmentsFull);
            }
            (*datagram).held += 1;
            return answer::HELD;
        }
        (*work).fate = (*datagram).fate;
        (*work).flow = (*datagram).flow;
        (*work).identification = (*datagram).identification;
        answer::GO_ON
    }
}

/// Looks at one record of the group.
unsafe extern "C" fn look_at_record<A: Fragmented>(nth: u32, _: *mut c_void) -> i64 {
    let Some(work) = A::work() else { return 1 };
    // SAFETY: this CPU's own record; a map value that the lock makes ours.
    unsafe {
        let Some(datagram) = A::datagram((*work).group * WAYS + nth) else {
            return 1;
        };
        (*work).choice.look(nth, &(*work).key, &*datagram);
    }
    0
}

/// Looks at one run of the datagram.
unsafe extern "C" fn look_at_run<A: Fragmented>(nth: u32, _: *mut c_void) -> i64 {
    let Some(work) = A::work() else { return 1 };
    // SAFETY: as above.
    unsafe {
        let Some(datagram) = A::datagram((*work).record) else {
            return 1;
        };
        (*work).survey.look(nth, (*datagram).seen.run(nth));
    }
    0
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

    /// Who a frame is held for: record and generation.
    #[inline(always)]
    pub fn owner(&self) -> u64 {
        ((A::LEN as u64) << 59) | (self.record as u64) << 32 | self.generation as u64
    }
}
