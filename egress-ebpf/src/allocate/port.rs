//! A source port on the chosen egress IP: the client's own, a random one, or one that has rested
//! (NAT-9, CAP-7).

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use egress_common::clock::Moment;
use egress_common::expiry;
use egress_common::key::{Reference, TCP};
use egress_common::port::Sequence;
use egress_common::reason::Reason;
use egress_common::slot::{Slot, State, advance, flag};
use egress_common::tcp::{self, Last};

use super::{Open, Scratch};
use crate::family::Family;
use crate::flow;
use crate::index::{self, ByEgress, ByInside, Inserted};
use crate::maps::SECRET;
use crate::{count, slots};

/// Probes that look for a port nobody uses before one that still has to rest is taken early.
const FRESH_PROBES: u32 = 4;

/// Tries one source port: the client's own first, then random ones. Ends the loop on success.
pub unsafe extern "C" fn attempt<A: Scratch>(nth: u32, _: *mut c_void) -> i64 {
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
        (*open).tried += 1;
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

/// Whether a port was found, be it one that yields; gives the place back if not.
#[inline(never)]
pub fn settle<A: Scratch>() -> bool {
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
