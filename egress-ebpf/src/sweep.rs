//! The timer that ends idle flows and frees what ended, with or without a daemon (NAT-7, SAFE-2).
//!
//! One timer sweeps a bounded part of the slots every tick: a timer per flow fails on newer kernels.
//! An armed timer keeps the program it was armed with, so the daemon arms it anew after every load.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_loop, bpf_timer_cancel, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start,
};
use egress_common::armed;
use egress_common::count::LISTED;
use egress_common::expiry::{self, Cursor, Pressure, Sweep};
use egress_common::family::{V4, V6};
use egress_common::record::Cause;
use egress_common::settings::Timers;
use egress_common::slot::{SlotWord, State, advance, flag};
use egress_common::usage::Period;
use egress_common::word::Word;

use crate::classify::Configuration;
use crate::count;
use crate::end;
use crate::family::Family;
use crate::flow::Found;
use crate::globals;
use crate::held;
use crate::maps::{SCRATCH_SWEEP, SWEEPER, Sweeper};
use crate::slots;
use crate::usage;

/// Time between two ticks, ns.
const TICK: u64 = 10_000_000;
/// Ticks in which a whole table of moderate size is swept: one second.
const TICKS: u32 = 100;
/// Most slots judged in a tick.
const SLOTS: u32 = 8_192;
/// Most counters judged in a tick.
const COUNTS: u32 = 1_024;
/// Most flows unlinked in a tick: about half a millisecond.
const UNLINKED: u32 = 640;
/// The least a counter at zero rests before it may be given to another origin, ns.
const LISTED_AT_LEAST: u64 = 2_000_000_000;
/// Free lists that are looked at to judge how full a table is.
const SAMPLE: u32 = 64;
const CLOCK_MONOTONIC: u64 = 1;
/// `-ENOMEM`: the kernel may not wait for memory here, so it has none now and then.
const NO_MEMORY: i64 = -12;

/// What one tick needs between callbacks of `bpf_loop`; not pinned.
#[repr(C)]
pub struct Scratch {
    timers: Timers,
    now: u64,
    pressure: Pressure,
    /// First slot and counter of this tick.
    slot: u32,
    count: u32,
    unlinked: u32,
    /// Counters idle since before this may be retired.
    idle_before: u64,
    /// Slot at which the tick stopped early, plus one.
    stopped: u32,
    /// The period that is.
    period: u32,
}

/// Arms the timer with this load's sweep: a code of [`armed`].
#[inline(always)]
pub fn arm() -> i32 {
    let Some(sweeper) = SWEEPER.get_ptr_mut(0) else {
        return armed::NO_SWEEPER;
    };
    // SAFETY: a map value that holds a timer, as the helpers require.
    unsafe {
        let timer = &raw mut (*sweeper).timer;
        // Already initialised by an earlier load: then only the callback changes.
        let made = bpf_timer_init(
            timer,
            (&raw const SWEEPER).cast_mut().cast(),
            CLOCK_MONOTONIC,
        );
        if made == NO_MEMORY {
            return armed::NO_MEMORY;
        }
        bpf_timer_cancel(timer);
        if bpf_timer_set_callback(timer, tick as *mut c_void) != 0 {
            return armed::NO_CALLBACK;
        }
        (*sweeper).progress.armed_by = globals::load_id();
        if bpf_timer_start(timer, TICK, 0) != 0 {
            return armed::NOT_STARTED;
        }
    }
    armed::DONE
}

/// One tick.
unsafe extern "C" fn tick(_map: *mut c_void, _key: *mut u32, sweeper: *mut Sweeper) -> i32 {
    // SAFETY: the kernel hands the callback a live map value; the helpers are called as required.
    unsafe {
        let progress = &raw mut (*sweeper).progress;
        sweep::<V4>(&raw mut (*progress).ipv4);
        sweep::<V6>(&raw mut (*progress).ipv6);
        held::age((*progress).ticks, slots::now());
        (*progress).ticks += 1;
        (*progress).run_by = globals::load_id();
        bpf_timer_start(&raw mut (*sweeper).timer, TICK, 0);
    }
    0
}

/// One tick in the tables of a family.
#[inline(never)]
fn sweep<A: Family>(cursor: *mut Cursor) -> i32 {
    let Some(configuration) = Configuration::now() else {
        return 1;
    };
    let Some(scratch) = SCRATCH_SWEEP.get_ptr_mut(0) else {
        return 1;
    };
    let now = slots::now();
    // Unanswered flows hold counters as well as slots: the fuller table decides.
    let origins = fill(globals::max_origins(), A::free_counts);
    let pressure = fill(globals::max_flows(), A::free_slots).or(origins);
    let crowded = origins.0 > 224;
    // SAFETY: a map value, and this CPU's own scratch; the helpers are called as required.
    unsafe {
        (*scratch).timers = configuration.settings().timers;
        (*scratch).now = now;
        (*scratch).period = usage::place(now).period.0 as u32;
        (*scratch).pressure = pressure;
        (*scratch).slot = (*cursor).slot;
        (*scratch).count = (*cursor).count;
        (*scratch).unlinked = 0;
        (*scratch).stopped = 0;
        (*scratch).idle_before = now.saturating_sub(if crowded { LISTED_AT_LEAST } else { LISTED });
        let slots = share(globals::max_flows(), SLOTS);
        bpf_loop(
            slots,
            judge_slot::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
        let judged = match (*scratch).stopped {
            0 => slots,
            stopped => stopped,
        };
        (*cursor).slot = wrapped((*cursor).slot + judged, globals::max_flows());
        let counts = share(globals::max_origins(), COUNTS);
        bpf_loop(
            counts,
            judge_count::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
        (*cursor).count = wrapped((*cursor).count + counts, globals::max_origins());
    }
    0
}

/// Elements of a table judged in one tick.
#[inline(always)]
fn share(total: u32, most: u32) -> u32 {
    let share = total / TICKS + 1;
    if share > most { most } else { share }
}

#[inline(always)]
fn wrapped(index: u32, total: u32) -> u32 {
    if index >= total { 0 } else { index }
}

/// How full a table is, from its free lists.
#[inline(always)]
fn fill(total: u32, head: impl Fn(u32) -> Option<*mut egress_common::free::FreeList>) -> Pressure {
    let lists = globals::lists();
    let mut available = 0;
    for list in 0..SAMPLE {
        if list >= lists {
            break;
        }
        if let Some(free) = head(list) {
            // SAFETY: a live map value; a hint is enough.
            available += unsafe { core::ptr::read_volatile(&raw const (*free).available) };
        }
    }
    if lists > SAMPLE {
        // Possible CPUs are many on some machines: the first lists stand for all.
        available = available * lists as u64 / SAMPLE as u64;
    }
    Pressure::of(available, total as u64)
}

/// Judges one slot.
unsafe extern "C" fn judge_slot<A: Family>(nth: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = SCRATCH_SWEEP.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's own scratch; live map values.
    unsafe {
        let index = (*scratch).slot + nth;
        let Some(slot) = A::slot(index) else { return 1 };
        let word = SlotWord::from_bits(slots::word_of(slot).load());
        let now = (*scratch).now;
        let age = core::ptr::read_volatile(&raw const (*slot).last_seen).age(now);
        let found = Found { index, slot, word };
        match expiry::judge(word, age, &(*scratch).timers, (*scratch).pressure) {
            Sweep::Keep => {}
            Sweep::Free => {
                if !slots::is_referred_to::<A>(&found, now) {
                    slots::free::<A>(index, word);
                }
            }
            Sweep::Expire => {
                let closed = word.with_state(State::Closed).with_flags(flag::EXPIRED);
                let cause = Cause::of_idleness(word, age, &(*scratch).timers);
                if slots::close(&found, word, closed, cause, now) {
                    end::tell(&found);
                }
            }
            Sweep::Silence => {
                // A lost race is an end.
                advance(&slots::word_of(slot), word, word.with_flags(flag::EXPIRED));
            }
            Sweep::Unlink => {
                let cause = Cause::of_idleness(word, age, &(*scratch).timers);
                slots::unlink(&found, cause, now);
                (*scratch).unlinked += 1;
                if (*scratch).unlinked >= UNLINKED {
                    (*scratch).stopped = nth + 1;
                    return 1;
                }
            }
        }
    }
    0
}

/// Judges one counter.
unsafe extern "C" fn judge_count<A: Family>(nth: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = SCRATCH_SWEEP.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's own scratch.
    let (index, before, now, period) = unsafe {
        (
            (*scratch).count + nth,
            (*scratch).idle_before,
            (*scratch).now,
            Period((*scratch).period as u16),
        )
    };
    if index >= globals::max_origins() {
        return 1;
    }
    count::retire::<A>(index, before, now, period);
    0
}
