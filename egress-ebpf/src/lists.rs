//! Taking records off the free lists, and putting them back (`egress_common::free`).

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_loop};
use egress_common::free::{self, FreeList, Links, Popped};

use crate::word::MapWord;
use crate::{globals, word};

/// Steps of a search through the free lists: another list, or the same one again because another CPU
/// changed it.
const STEPS: u32 = 1_024;

/// A search through the free lists. Whole words: narrower fields would be set together by stores that
/// the verifier calls misaligned.
#[repr(C)]
pub struct Search {
    /// List to look at first.
    start: u64,
    /// Set if another CPU was in the way since the last round began: then there is another round.
    lost: u64,
    /// What was found.
    taken: u64,
}

/// Takes a record off this CPU's list, or off another one. `step` is [`search`] over those lists.
///
/// A `bpf_loop`, because the verifier would walk through every step of a loop over lists and attempts.
#[inline(always)]
pub fn take(step: unsafe extern "C" fn(u32, *mut c_void) -> i64) -> Option<u32> {
    let mut search = Search {
        // SAFETY: a helper without preconditions.
        start: unsafe { bpf_get_smp_processor_id() } as u64,
        lost: 0,
        taken: free::NONE as u64,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    unsafe {
        bpf_loop(
            STEPS,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    // SAFETY: written by the callback, which the compiler does not see.
    let taken = unsafe { core::ptr::read_volatile(&raw const search.taken) } as u32;
    (taken != free::NONE).then_some(taken)
}

/// One step of a search; 1 ends it. Nothing in the record grows with the steps, or the verifier would
/// walk through all of them.
#[inline(always)]
pub fn search(
    nth: u32,
    search: *mut c_void,
    head: impl Fn(u32) -> Option<*mut FreeList>,
    links: &impl Links,
) -> i64 {
    // SAFETY: the record that `take` handed to the loop.
    let search = unsafe { &mut *search.cast::<Search>() };
    let lists = globals::lists();
    if nth != 0 && free::home(nth, lists) == 0 {
        if search.lost == 0 {
            return 1;
        }
        search.lost = 0;
    }
    let list = free::home((search.start as u32).wrapping_add(nth), lists);
    let Some(free) = head(list) else {
        return 1;
    };
    // SAFETY: list heads are 8-aligned map values that begin with the word.
    let head_word = unsafe { MapWord::first_of(free) };
    match free::pop(&head_word, links) {
        Popped::Taken(index) => {
            // SAFETY: a live map value.
            unsafe { word::add(&raw mut (*free).available, u64::MAX) };
            search.taken = index as u64;
            1
        }
        Popped::Empty => 0,
        Popped::Contended => {
            search.lost = 1;
            0
        }
    }
}

/// Returns a record to its home list; false if other CPUs were in the way too often.
#[inline(always)]
pub fn give(head: impl Fn(u32) -> Option<*mut FreeList>, links: &impl Links, index: u32) -> bool {
    let Some(free) = head(free::home(index, globals::lists())) else {
        return false;
    };
    // SAFETY: as in `take`.
    let head_word = unsafe { MapWord::first_of(free) };
    if free::push(&head_word, links, index) {
        // SAFETY: a live map value.
        unsafe { word::add(&raw mut (*free).available, 1) };
        return true;
    }
    false
}
