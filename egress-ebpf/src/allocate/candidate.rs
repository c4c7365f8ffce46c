//! Trying the pool's egress IPs, one after the other (CAP-9).

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use egress_common::port::PROBES;
use egress_common::range::Inside;
use egress_common::reason::Reason;
use egress_common::settings::{Candidate, MAX_CANDIDATES, candidate_flag};

use super::{Open, Scratch, port};
use crate::count;
use crate::maps::SECRET;
use crate::probe;

/// Tries one egress IP: a place below its cap, then a port. Ends the loop when both were found.
///
/// Its steps are functions of their own, so that what they need of the stack is not added to what the
/// search for a port needs.
pub unsafe extern "C" fn attempt<A: Scratch>(nth: u32, _: *mut c_void) -> i64 {
    match choose::<A>(nth) {
        chosen::USABLE => {}
        chosen::NOT_NOW => return 0,
        _ => return 1,
    }
    if !take_place::<A>() {
        return 0;
    }
    // SAFETY: the callback is given nothing.
    unsafe {
        bpf_loop(
            PROBES + 1,
            port::attempt::<A> as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    if port::settle::<A>() { 1 } else { 0 }
}

/// What [`choose`] says.
mod chosen {
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
        return chosen::END;
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
        return chosen::END;
    };
    if round >= A::ROUNDS {
        return chosen::END;
    }
    let mut offset = start + nth;
    if offset >= candidates {
        offset -= candidates;
    }
    let index = first + offset;
    if index >= MAX_CANDIDATES {
        return chosen::END;
    }
    let Some(mut wanted) = A::candidate((version & 1) * MAX_CANDIDATES + index) else {
        return chosen::END;
    };
    // SAFETY: as above.
    let cookie = unsafe { (*open).probe };
    if cookie != 0 && !probe::is_for(cookie, wanted.address.wide()) {
        return chosen::END;
    }
    if wanted.flags & candidate_flag::DRAINING != 0 || wanted.slices == 0 || wanted.capacity == 0 {
        return chosen::NOT_NOW;
    }
    // SAFETY: as above.
    let Some(address) = (unsafe { address(open, &wanted, round) }) else {
        return chosen::NOT_NOW;
    };
    wanted.address = address;
    // SAFETY: as above.
    unsafe { (*open).candidate = wanted };
    chosen::USABLE
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
