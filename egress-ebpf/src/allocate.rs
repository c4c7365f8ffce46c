//! Admitting a new flow: an egress IP with a free place, and a free source port on it.
//!
//! The order is fixed by what must never happen. A place is taken below the cap before a port is
//! looked for; inserting the reverse entry with "no exist" is the reservation of the port; the slot
//! becomes visible before the flow entry is inserted. Whatever fails half-way gives back what it
//! took. The steps communicate through a per-CPU scratch record, because callbacks of `bpf_loop`
//! share no stack.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::programs::TcContext;
use egress_common::clock::{Epoch, Moment};
use egress_common::family::{V4, V6};
use egress_common::key::{FlowKey, Reference, TCP};
use egress_common::port::{Sequence, preferred};
use egress_common::reason::Reason;
use egress_common::settings::{Candidate, MAX_EXITS, MAX_TRIED, Pool};
use egress_common::slot::{Slot, SlotWord, State, advance, flag};
use egress_common::tcp;
use egress_common::word::Word;

use crate::classify::Configuration;
use crate::count;
use crate::family::Family;
use crate::flow;
use crate::index::{self, ByEgress, ByInside, Inserted};
use crate::maps::{Both, POOLS, SCRATCH_OPEN, SECRET};
use crate::outgoing::{Outgoing, next};
use crate::probe;
use crate::record;
use crate::report;
use crate::slots;
use crate::verdict;

mod candidate;
mod pin;
mod port;

/// How far the allocation got.
#[repr(C)]
pub struct Open<A> {
    key: FlowKey<A>,
    candidate: Candidate<A>,
    mine: Reference,
    place: Reference,
    sequence: Sequence,
    now: u64,
    /// Cookie of the socket of a [`probe`], else 0.
    probe: u64,
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
    /// Ports that were asked for.
    tried: u32,
}

/// Families with a scratch record of their own.
pub trait Scratch: Family {
    fn scratch() -> Option<*mut Open<Self>>;
}

impl Scratch for V4 {
    #[inline(always)]
    fn scratch() -> Option<*mut Open<Self>> {
        SCRATCH_OPEN.get_ptr_mut(0).map(Both::four)
    }
}

impl Scratch for V6 {
    #[inline(always)]
    fn scratch() -> Option<*mut Open<Self>> {
        SCRATCH_OPEN.get_ptr_mut(0).map(Both::six)
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
            candidate::attempt::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    finish(ctx, packet)
}

/// Gives a flow that another server translates its slot: counted by server, and without an egress IP.
#[inline(never)]
pub fn pin<A: Scratch>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let step = begin(ctx, packet);
    if step != next::ADMIT {
        return step;
    }
    if pin::place(packet) {
        // SAFETY: the callback is given nothing.
        unsafe { port::attempt::<A>(0, core::ptr::null_mut()) };
        port::settle::<A>();
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
    if packet.probe != 0 {
        probe::was_refused(packet.probe, reason);
    }
    packet.reason = reason;
    next::REFUSE
}

/// Takes a slot and fills it and the scratch record in.
#[inline(never)]
fn begin<A: Scratch>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    match try_begin(ctx, packet) {
        Ok(()) => next::ADMIT,
        // This server has nothing of the pool: another one may have (FWD-2).
        Err(Reason::NoAddress) if A::FORWARDS && packet.probe == 0 => next::FORWARD,
        // Or uses nothing of it (CLU-3).
        Err(Reason::Lapsed)
            if A::FORWARDS && packet.probe == 0 && packet.only == 0 && packet.kind == 0 =>
        {
            next::FORWARD
        }
        Err(reason) => failed(ctx, packet, reason),
    }
}

#[inline(always)]
fn try_begin<A: Scratch>(ctx: &TcContext, packet: &Outgoing<A>) -> Result<(), Reason> {
    let configuration = Configuration::of(packet.version).ok_or(Reason::Blocked)?;
    let open = A::scratch().ok_or(Reason::TableFull)?;
    let number = if packet.exit == 0 {
        packet.pool
    } else {
        packet.exit
    };
    let pool = pool(&configuration, number).ok_or(Reason::Blocked)?;
    if packet.kind != flag::FORWARDED && A::candidates(&pool).1 == 0 {
        return Err(Reason::NoAddress);
    }
    if packet.kind != flag::FORWARDED && flow::lapsed::<A>() {
        return Err(Reason::Lapsed);
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
            if packet.probe != 0
                && let Some(found) = flow::at::<A>(index)
            {
                let generation = found.word.generation;
                probe::admitted(packet.probe, Reference { index, generation });
            }
            next::LEAVE
        }
        // All that this server has of the pool is draining: another one may take it (FWD-2, POOL-9).
        Err(Reason::NoAddress)
            if A::FORWARDS && packet.probe == 0 && packet.only == 0 && packet.kind == 0 =>
        {
            next::FORWARD
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
    if number == 0 || number >= MAX_EXITS {
        return None;
    }
    POOLS
        .get(configuration.version * MAX_EXITS + number)
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
    let (first, count) = match packet.only {
        0 => A::candidates(&pool),
        only => (only - 1, 1),
    };
    // SAFETY: this CPU's own record.
    unsafe {
        (*open).key = *key;
        (*open).probe = packet.probe;
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
        (*open).tried = 0;
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
    let redirect = packet.kind | if packet.redirect { flag::REDIRECT } else { 0 };
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
            if packet.kind != flag::FORWARDED {
                // SAFETY: this CPU's own record.
                report::effort(unsafe { (*open).tried });
            }
            count::admitted::<A>(place);
            record::opened(mine, slot, packet);
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
                    // Who ended it has said so: it must have opened before.
                    record::opened(mine, slot, packet);
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
                Inserted::Exists(winner) => flow::at::<A>(winner)
                    .map(|winner| winner.index)
                    .ok_or(Reason::Contended),
                Inserted::Busy => Err(Reason::Contended),
                _ => Err(Reason::TableFull),
            }
        }
    }
}
