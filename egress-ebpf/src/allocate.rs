//! Admitting a new flow: an egress IP with a free place, and a free source port on it.
//!
//! The order is fixed by what must never happen. A place is taken below the cap before a port is
//! looked for; inserting the reverse entry with "no exist" is the reservation of the port; the slot
//! becomes visible before the flow entry is inserted. Whatever fails half-way gives back what it
//! took. The steps communicate through a per-CPU scratch record, because callbacks of `bpf_loop`
//! share no stack.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_loop};
use aya_ebpf::programs::TcContext;
use egress_common::clock::{Epoch, Moment};
use egress_common::expiry;
use egress_common::family::{V4, V6};
use egress_common::key::{FlowKey, Reference, TCP};
use egress_common::port::{PROBES, Sequence, preferred};
use egress_common::range::Inside;
use egress_common::reason::Reason;
use egress_common::settings::{
    Candidate, MAX_CANDIDATES, MAX_POOLS, MAX_TRIED, Pool, candidate_flag,
};
use egress_common::slot::{Slot, SlotWord, State, advance, flag};
use egress_common::tcp::{self, Last};
use egress_common::word::Word;

use crate::classify::Configuration;
use crate::count;
use crate::family::Family;
use crate::flow;
use crate::index::{self, ByEgress, ByInside, Inserted};
use crate::maps::{POOLS, SCRATCH_OPEN4, SCRATCH_OPEN6, SECRET};
use crate::outgoing::{Outgoing, next};
use crate::report;
use crate::slots;
use crate::verdict;

/// Probes that look for a port nobody uses before one that still has to rest is taken early.
const FRESH_PROBES: u32 = 4;

/// How far the allocation got.
#[repr(C)]
pub struct Open<A> {
    key: FlowKey<A>,
    candidate: Candidate<A>,
    mine: Reference,
    place: Reference,
    sequence: Sequence,
    now: u64,
    /// How long a closed flow's port rests before anybody may take it, ns.
    quarantine: u64,
    version: u32,
    /// First candidate of the pool, and how many there are.
    first: u32,
    candidates: u32,
    /// Where among the candidates to begin (CAP-9).
    start: u32,
    /// The SYN's sequence number and timestamp.
    syn: u32,
    timestamp: u32,
    has_timestamp: u32,
    /// [`Reason`] of the last failure.
    reason: u32,
    /// Set when a port is ours.
    port: u16,
    /// The longest resting port met, when `oldest` is not 0.
    oldest_port: u16,
    /// 1 once `sequence` has begun.
    seeded: u32,
    /// Its slot, and that slot's generation.
    oldest: Reference,
    /// How long it has rested, ns.
    oldest_age: u64,
    /// First candidate that was full: its counter records the refusal.
    full: A,
    was_full: u32,
    pad2: u32,
}

/// Families with a scratch record of their own.
pub trait Scratch: Family {
    fn scratch() -> Option<*mut Open<Self>>;
}

impl Scratch for V4 {
    #[inline(always)]
    fn scratch() -> Option<*mut Open<Self>> {
        SCRATCH_OPEN4.get_ptr_mut(0)
    }
}

impl Scratch for V6 {
    #[inline(always)]
    fn scratch() -> Option<*mut Open<Self>> {
        SCRATCH_OPEN6.get_ptr_mut(0)
    }
}

/// Admits a flow or says why not.
///
/// The steps are functions of their own: with the callbacks' their stacks must fit 512 bytes.
#[inline(never)]
pub fn open<A: Scratch>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let step = begin(ctx, packet);
    if step != next::ADMIT {
        return step;
    }
    // SAFETY: the callback is given nothing.
    unsafe {
        bpf_loop(
            MAX_TRIED,
            try_candidate::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    finish(ctx, packet)
}

/// What a failure means for the packet.
#[inline(always)]
fn failed<A>(ctx: &TcContext, packet: &mut Outgoing<A>, reason: Reason) -> i32 {
    if matches!(reason, Reason::Contended) {
        // Not a refusal: the sender will try again, and find the place or the flow then.
        return report::drop(ctx, reason);
    }
    packet.reason = reason;
    next::REFUSE
}

/// Takes a slot and fills it and the scratch record in.
#[inline(never)]
fn begin<A: Scratch>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    match try_begin(ctx, packet) {
        Ok(()) => next::ADMIT,
        Err(reason) => failed(ctx, packet, reason),
    }
}

#[inline(always)]
fn try_begin<A: Scratch>(ctx: &TcContext, packet: &Outgoing<A>) -> Result<(), Reason> {
    let configuration = Configuration::of(packet.version).ok_or(Reason::Blocked)?;
    let open = A::scratch().ok_or(Reason::TableFull)?;
    let pool = pool(&configuration, packet.pool).ok_or(Reason::Blocked)?;
    if A::candidates(&pool).1 == 0 {
        return Err(Reason::NoAddress);
    }
    let (index, generation) = slots::obtain::<A>().ok_or(Reason::TableFull)?;
    let slot = A::slot(index).ok_or(Reason::TableFull)?;
    let now = slots::now();
    prepare(open, &configuration, packet, pool, now);
    // SAFETY: `open` is this CPU's own; the slot is ours while it is `Opening`.
    unsafe {
        (*open).mine = Reference { index, generation };
        (*slot).last_seen = Moment::of(now);
        (*slot).flow = packet.key;
        (*slot).zone = packet.zone as u16;
        (*slot).pool = packet.pool as u16;
        (*slot).interface = verdict::ingress_interface(ctx);
        (*slot).packets_out = 0;
        (*slot).packets_in = 0;
        (*slot).bytes_out = 0;
        (*slot).bytes_in = 0;
        (*slot).opened = Epoch::of(now);
    }
    Ok(())
}

/// Puts the flow into the index, or gives the slot back.
#[inline(never)]
fn finish<A: Scratch>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    match try_finish(packet) {
        Ok(index) => {
            packet.slot = index;
            next::LEAVE
        }
        Err(reason) => failed(ctx, packet, reason),
    }
}

#[inline(always)]
fn try_finish<A: Scratch>(packet: &Outgoing<A>) -> Result<u32, Reason> {
    let open = A::scratch().ok_or(Reason::TableFull)?;
    // SAFETY: this CPU's own record.
    let (mine, port) = unsafe { ((*open).mine, (*open).port) };
    if port == 0 {
        slots::discard::<A>(mine.index);
        // Another CPU may have admitted this very flow, with the last place.
        if let Some(winner) = flow::outgoing(&packet.key) {
            return Ok(winner.index);
        }
        // SAFETY: as above.
        unsafe {
            if (*open).was_full != 0 {
                count::refused(&packet.key.counted((*open).full));
            }
            return Err(reason((*open).reason));
        }
    }
    let slot = A::slot(mine.index).ok_or(Reason::TableFull)?;
    publish(open, packet, slot, mine.generation)
}

#[inline(always)]
fn reason(number: u32) -> Reason {
    match number {
        0 => Reason::CapReached,
        1 => Reason::NoPort,
        2 => Reason::TableFull,
        3 => Reason::OriginTableFull,
        6 => Reason::Contended,
        _ => Reason::NoAddress,
    }
}

#[inline(always)]
fn pool(configuration: &Configuration, number: u32) -> Option<Pool> {
    if number == 0 || number >= MAX_POOLS {
        return None;
    }
    POOLS
        .get(configuration.version * MAX_POOLS + number)
        .copied()
}

/// Fills the scratch record.
#[inline(always)]
fn prepare<A: Scratch>(
    open: *mut Open<A>,
    configuration: &Configuration,
    packet: &Outgoing<A>,
    pool: Pool,
    now: u64,
) {
    let key = &packet.key;
    let (first, count) = A::candidates(&pool);
    // SAFETY: this CPU's own record.
    unsafe {
        (*open).key = *key;
        (*open).now = now;
        (*open).quarantine = configuration.settings().timers.quarantine;
        (*open).version = configuration.version;
        (*open).first = first;
        (*open).candidates = count;
        (*open).start = if count < 2 {
            0
        } else {
            let secret = SECRET.get(0).copied().unwrap_or_default();
            preferred(secret, key.inside.digest(), key.realm, count)
        };
        (*open).syn = packet.segment.sequence;
        (*open).timestamp = packet.options.timestamp.unwrap_or(0);
        (*open).has_timestamp = packet.options.timestamp.is_some() as u32;
        (*open).reason = Reason::NoAddress as u32;
        (*open).port = 0;
        (*open).seeded = 0;
        (*open).was_full = 0;
    }
}

/// The next random port; the sequence begins with the first one asked for, since most flows keep
/// their own.
#[inline(always)]
unsafe fn random_port<A: Scratch>(open: *mut Open<A>) -> u16 {
    // SAFETY: this CPU's own record.
    unsafe {
        if (*open).seeded == 0 {
            (*open).seeded = 1;
            let secret = SECRET.get(0).copied().unwrap_or_default();
            let key = &(*open).key;
            let ports = (key.inside_port as u64) << 32
                | (key.origin_port as u64) << 16
                | key.protocol as u64;
            // The fine clock: two flows with the same endpoints never share a sequence.
            let nonce = bpf_ktime_get_ns();
            (*open).sequence = Sequence::new(
                secret,
                key.inside.digest(),
                key.origin.digest(),
                ports,
                nonce,
            );
        }
        A::next_port(&mut (*open).sequence, (*open).candidate.slices)
    }
}

/// Tries one egress IP: a place below its cap, then a port. Ends the loop when both were found.
///
/// Its steps are functions of their own, so that what they need of the stack is not added to what the
/// search for a port needs.
unsafe extern "C" fn try_candidate<A: Scratch>(nth: u32, _: *mut c_void) -> i64 {
    match choose::<A>(nth) {
        candidate::USABLE => {}
        candidate::NOT_NOW => return 0,
        _ => return 1,
    }
    if !take_place::<A>() {
        return 0;
    }
    // SAFETY: the callback is given nothing.
    unsafe {
        bpf_loop(
            PROBES + 1,
            try_port::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    if settle::<A>() { 1 } else { 0 }
}

/// What [`choose`] says.
mod candidate {
    /// The candidate is in the scratch record.
    pub const USABLE: i32 = 1;
    /// This one takes no flows.
    pub const NOT_NOW: i32 = 2;
    /// There are no more.
    pub const END: i32 = 3;
}

/// Puts the nth candidate into the scratch record, with the address the flow would leave from.
#[inline(never)]
fn choose<A: Scratch>(nth: u32) -> i32 {
    let Some(open) = A::scratch() else {
        return candidate::END;
    };
    // SAFETY: this CPU's own record, here and below.
    let (candidates, start, first, version) = unsafe {
        (
            (*open).candidates,
            (*open).start,
            (*open).first,
            (*open).version,
        )
    };
    // One round asks each candidate once; a range has other addresses for later rounds.
    let (Some(round), Some(nth)) = (nth.checked_div(candidates), nth.checked_rem(candidates))
    else {
        return candidate::END;
    };
    if round >= A::ROUNDS {
        return candidate::END;
    }
    let mut offset = start + nth;
    if offset >= candidates {
        offset -= candidates;
    }
    let index = first + offset;
    if index >= MAX_CANDIDATES {
        return candidate::END;
    }
    let Some(mut chosen) = A::candidate((version & 1) * MAX_CANDIDATES + index) else {
        return candidate::END;
    };
    if chosen.flags & candidate_flag::DRAINING != 0 || chosen.slices == 0 || chosen.capacity == 0 {
        return candidate::NOT_NOW;
    }
    // SAFETY: as above.
    let Some(address) = (unsafe { address(open, &chosen, round) }) else {
        return candidate::NOT_NOW;
    };
    chosen.address = address;
    // SAFETY: as above.
    unsafe { (*open).candidate = chosen };
    candidate::USABLE
}

/// Takes a place below the candidate's cap; false if there is none.
#[inline(never)]
fn take_place<A: Scratch>() -> bool {
    let Some(open) = A::scratch() else {
        return false;
    };
    // SAFETY: this CPU's own record.
    unsafe {
        let address = (*open).candidate.address;
        let key = (*open).key.counted(address);
        match count::reserve(&key, (*open).candidate.capacity, (*open).now) {
            Ok(place) => {
                (*open).place = place;
                (*open).oldest_port = 0;
                (*open).oldest_age = 0;
                note(open, Reason::NoPort);
                true
            }
            Err(reason) => {
                if reason as u32 == Reason::CapReached as u32 && (*open).was_full == 0 {
                    (*open).was_full = 1;
                    (*open).full = address;
                }
                note(open, reason);
                false
            }
        }
    }
}

/// Whether a port was found, be it one that yields; gives the place back if not.
#[inline(never)]
fn settle<A: Scratch>() -> bool {
    let Some(open) = A::scratch() else {
        return true;
    };
    // SAFETY: this CPU's own record.
    unsafe {
        if (*open).port == 0 && (*open).oldest_port != 0 {
            yield_oldest::<A>(open);
        }
        if (*open).port != 0 {
            return true;
        }
        count::give_back::<A>((*open).place.index, (*open).now);
    }
    false
}

/// The address of a candidate that the flow's inside address leaves from.
#[inline(always)]
unsafe fn address<A: Scratch>(
    open: *mut Open<A>,
    candidate: &Candidate<A>,
    round: u32,
) -> Option<A> {
    let secret = SECRET.get(0).copied().unwrap_or_default();
    // SAFETY: this CPU's own record.
    let key = unsafe { &(*open).key };
    let inside = Inside {
        address: key.inside,
        realm: key.realm,
    };
    A::address(candidate, secret, inside, round)
}

/// Notes why a candidate would not do. Another CPU in the way stays the reason whatever comes after
/// it: there may be a free place behind (CAP-2).
#[inline(always)]
unsafe fn note<A: Scratch>(open: *mut Open<A>, reason: Reason) {
    // SAFETY: this CPU's own record.
    unsafe {
        if (*open).reason != Reason::Contended as u32 {
            (*open).reason = reason as u32;
        }
    }
}

/// Tries one source port: the client's own first, then random ones. Ends the loop on success.
unsafe extern "C" fn try_port<A: Scratch>(nth: u32, _: *mut c_void) -> i64 {
    let Some(open) = A::scratch() else { return 1 };
    // SAFETY: this CPU's own record, here and below.
    unsafe {
        let slices = (*open).candidate.slices;
        let port = if nth == 0 {
            (*open).key.inside_port
        } else {
            random_port(open)
        };
        if !A::may_keep(slices, port) {
            return 0;
        }
        let mine = (*open).mine.index;
        let Some(slot) = A::slot(mine) else { return 1 };
        // The slot is ours and in no index: it says what is asked for before it is asked.
        (*slot).egress = (*open).candidate.address;
        (*slot).egress_port = port;
        let key = (*open).key.reverse((*open).candidate.address, port);
        let holder = match index::insert::<A, ByEgress>(&key, mine) {
            Inserted::Done => {
                (*open).port = port;
                return 1;
            }
            Inserted::Exists(holder) => holder,
            Inserted::Full => {
                (*open).reason = Reason::TableFull as u32;
                return 1;
            }
            Inserted::Busy => {
                (*open).reason = Reason::Contended as u32;
                return 0;
            }
        };
        let Some(holder) = flow::at::<A>(holder) else {
            return 0;
        };
        if holder.word.state as u8 != State::Closed as u8 {
            return 0;
        }
        let age = (*holder.slot).last_seen.age((*open).now);
        let timestamp = ((*open).has_timestamp != 0).then_some((*open).timestamp);
        if expiry::has_rested(age, (*open).quarantine)
            || (nth == 0 || nth > FRESH_PROBES)
                && (*open).key.protocol == TCP
                && tcp::reusable(holder.word, last(holder.slot), (*open).syn, timestamp)
        {
            if take_over(open, &holder, port) {
                return 1;
            }
            return 0;
        }
        if (*open).oldest_port == 0 || age > (*open).oldest_age {
            (*open).oldest = Reference {
                index: holder.index,
                generation: holder.word.generation,
            };
            (*open).oldest_port = port;
            (*open).oldest_age = age;
        }
        0
    }
}

/// What the origin's TIME_WAIT remembers of a closed flow.
#[inline(always)]
unsafe fn last<A: Family>(slot: *const Slot<A>) -> Last {
    // SAFETY: a live map value.
    unsafe {
        Last {
            end: (*slot).out.end,
            timestamp: (*slot).timestamp,
        }
    }
}

/// No free port was met: the longest resting one yields (CAP-8).
#[inline(always)]
unsafe fn yield_oldest<A: Scratch>(open: *mut Open<A>) {
    // SAFETY: this CPU's own record; live map values.
    unsafe {
        let Some(holder) = flow::at::<A>((*open).oldest.index) else {
            return;
        };
        if holder.word.generation != (*open).oldest.generation {
            return;
        }
        let port = (*open).oldest_port;
        let key = (*open).key.reverse((*open).candidate.address, port);
        if holder.word.state as u8 == State::Closed as u8 && (*holder.slot).reverse() == key {
            take_over(open, &holder, port);
        }
    }
}

/// Takes a resting port from its closed flow; true if it is ours now.
#[inline(always)]
unsafe fn take_over<A: Scratch>(open: *mut Open<A>, holder: &flow::Found<A>, port: u16) -> bool {
    let seen = holder.word;
    // SAFETY: live map values. The winner of the swap owns both entries of the closed flow: the
    // flow entry is removed, the reverse entry is handed over, so the port is never free between.
    unsafe {
        let mine = (*open).mine.index;
        let Some(slot) = A::slot(mine) else {
            return false;
        };
        (*slot).egress = (*open).candidate.address;
        (*slot).egress_port = port;
        (*holder.slot).last_seen = Moment::of((*open).now);
        if !advance(
            &slots::word_of(holder.slot),
            seen,
            seen.with_state(State::Unlinked),
        ) {
            return false;
        }
        if !seen.has(flag::ORPHAN) {
            let old = (*holder.slot).flow;
            index::remove::<A, ByInside>(&old, holder.index);
        }
        let key = (*open).key.reverse((*open).candidate.address, port);
        if index::hand_over::<A, ByEgress>(&key, holder.index, mine) == 0 {
            return false;
        }
        (*open).port = port;
        true
    }
}

/// Makes the slot visible and inserts the flow.
#[inline(always)]
fn publish<A: Scratch>(
    open: *mut Open<A>,
    packet: &Outgoing<A>,
    slot: *mut Slot<A>,
    generation: u32,
) -> Result<u32, Reason> {
    let opening = SlotWord {
        state: State::Opening,
        scale: 0,
        flags: 0,
        generation,
    };
    // SAFETY: the slot is ours while it is `Opening`; the swap below orders these writes before it.
    let (mine, place, now) = unsafe {
        (*slot).count = (*open).place.index;
        ((*open).mine.index, (*open).place.index, (*open).now)
    };
    let redirect = if packet.redirect { flag::REDIRECT } else { 0 };
    let ready = if packet.key.protocol == TCP {
        let (out, back, flags, scale) = tcp::opened(&packet.segment, &packet.options);
        // SAFETY: as above.
        unsafe {
            (*slot).out = out.side();
            (*slot).back = back.side();
            (*slot).windows = [0; 2];
            (*slot).timestamp = packet.options.timestamp.unwrap_or(0);
        }
        SlotWord {
            state: State::TcpHalfOpen,
            scale,
            flags: flags | redirect,
            generation,
        }
    } else {
        SlotWord {
            state: State::UdpUnanswered,
            scale: 0,
            flags: redirect,
            generation,
        }
    };
    if !advance(&slots::word_of(slot), opening, ready) {
        // Cannot be: nobody else may change an `Opening` slot.
        return Err(Reason::Contended);
    }
    match index::insert::<A, ByInside>(&packet.key, mine) {
        Inserted::Done => {
            count::admitted::<A>(place);
            Ok(mine)
        }
        outcome => {
            // Another CPU admitted the same flow first, or the index is full: undo everything. The
            // flow entry, if there is one, is the winner's.
            // SAFETY: a live map value.
            let reverse = unsafe {
                (*slot).last_seen = Moment::of(now);
                (*slot).reverse()
            };
            // Again if the origin's answer to the winner has advanced this slot meanwhile: its place
            // must be given back once.
            let word = slots::word_of(slot);
            for _ in 0..4 {
                let seen = SlotWord::from_bits(word.load());
                if seen.generation != generation || !seen.state.is_counted() {
                    break;
                }
                let over = seen.with_state(State::Unlinked).with_flags(flag::ORPHAN);
                if advance(&word, seen, over) {
                    index::remove::<A, ByEgress>(&reverse, mine);
                    count::give_back::<A>(place, now);
                    break;
                }
            }
            match outcome {
                // The winner's slot serves this packet too.
                Inserted::Exists(winner) => flow::at::<V4>(winner)
                    .map(|winner| winner.index)
                    .ok_or(Reason::Contended),
                Inserted::Busy => Err(Reason::Contended),
                _ => Err(Reason::TableFull),
            }
        }
    }
}
