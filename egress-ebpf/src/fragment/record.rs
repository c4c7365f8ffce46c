//! A datagram's record: found, or begun, and written under its group's lock.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::programs::TcContext;
use egress_common::fragment::{Choice, Direction, Fate, Fit, WAYS};
use egress_common::reason::Reason;
use egress_common::word::Word;

use super::{Fragmented, Work, answer, ask, secret};
use crate::word::MapWord;
use crate::{held, slots};

/// Attempts at a group's lock; whoever has it gives it back within a microsecond.
const ATTEMPTS: u32 = 4_096;

/// Looks the datagram up under its group's lock, and does what is asked.
#[inline(never)]
pub(super) fn file<A: Fragmented>(ctx: &TcContext) -> i32 {
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
            if (*datagram).fate == (*work).fate && (*datagram).flow == (*work).flow {
                // It is back: others have left with the number that it had.
                (*work).identification = (*datagram).identification;
            }
            (*datagram).fate = (*work).fate;
            (*datagram).flow = (*work).flow;
            (*datagram).identification = (*work).identification;
            if (*work).held != 0 && (*work).is_handed_back() {
                // All of them are handed back to the hook, the first one first: what was seen of them is seen again.
                // What comes meanwhile is not held, or the same would go round for ever.
                (*datagram).seen.count = 0;
                (*datagram).seen.end = 0;
                (*datagram).seen.complete = 0;
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
