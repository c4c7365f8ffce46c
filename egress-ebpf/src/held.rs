//! Frames of later fragments that wait for their first one.
//!
//! Each source has a window of the buffers, by a keyed hash of its address: it can fill that and no
//! more. A frame that waited too long gives its buffer back in the sweep; one that is in the way of a
//! new one, at once, the oldest first.
//!
//! A frame is claimed by a compare-and-swap on its word, and checked again: buffers are not under the
//! lock of the group that their datagram belongs to.

use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use egress_common::fragment::{FRAME, FRAMES, LIFETIME, WINDOW};
use egress_common::packet::ETHERNET;
use egress_common::reason::Reason;
use egress_common::tag::Tag;
use egress_common::word::Word;

use crate::family::End;
use crate::fragment::{Fragmented, Work};
use crate::frame::{Frame, opaque};
use crate::maps::HELD;
use crate::report;
use crate::verdict;
use crate::word::MapWord;

/// Word of a buffer that somebody fills or empties. Any greater one is the time it was filled.
const BUSY: u64 = 1;
/// Beside the place of a network header: the frame came through the tunnel.
pub const TUNNELLED: u32 = 1 << 31;
/// Buffers looked at in a tick of the sweep: all of them in a second.
const AGED: u32 = FRAMES as u32 / 100 + 1;

/// One buffer.
#[repr(C, align(8))]
pub struct Buffer {
    /// 0: empty; [`BUSY`]; else when it was filled, ns.
    word: u64,
    /// Whose: see [`Work::owner`].
    owner: u64,
    /// Length of the frame, bytes.
    length: u32,
    /// Where its network header starts, and [`TUNNELLED`].
    network: u32,
    bytes: [u8; FRAME],
}

/// A search for a buffer; whole words, as in [`crate::slots::Search`].
#[repr(C)]
struct Search {
    /// First buffer of the window.
    base: u64,
    now: u64,
    /// Best so far, plus one, and its word.
    place: u64,
    word: u64,
}

/// The word of a buffer.
#[inline(always)]
fn word_of(buffer: *mut Buffer) -> MapWord {
    // SAFETY: buffers are 8-aligned map values that begin with the word.
    unsafe { MapWord::first_of(buffer) }
}

#[inline(always)]
fn expired(word: u64, now: u64) -> bool {
    now > word.saturating_add(LIFETIME)
}

/// Keeps a copy of the frame; false if it is too long or other CPUs were in the way.
#[inline(always)]
pub fn put<A: Fragmented>(ctx: &TcContext, work: *mut Work<A>, now: u64) -> bool {
    let length = ctx.len();
    if length > FRAME as u32 {
        return false;
    }
    // SAFETY: this CPU's own record.
    let (base, owner, network) =
        unsafe { ((*work).window() * WINDOW, (*work).owner(), (*work).network) };
    let mut search = Search {
        base: base as u64,
        now,
        place: 0,
        word: 0,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    let (place, seen) = unsafe {
        bpf_loop(WINDOW, consider as *mut c_void, (&raw mut search).cast(), 0);
        (
            core::ptr::read_volatile(&raw const search.place) as u32,
            core::ptr::read_volatile(&raw const search.word),
        )
    };
    if place == 0 {
        return false;
    }
    let Some(buffer) = HELD.get_ptr_mut(place - 1) else {
        return false;
    };
    let word = word_of(buffer);
    if word.swap(seen, BUSY).is_err() {
        return false;
    }
    // SAFETY: claimed; the length is within the buffer.
    unsafe {
        if seen != 0 {
            abandoned(buffer, seen, now);
        }
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            0,
            (&raw mut (*buffer).bytes).cast(),
            bounded(length),
        );
        (*buffer).owner = owner;
        (*buffer).length = length;
        (*buffer).network = network;
        let _ = word.swap(BUSY, if status == 0 { now } else { 0 });
        status == 0
    }
}

/// Counts a frame whose first fragment did not come in time.
#[inline(always)]
unsafe fn abandoned(buffer: *mut Buffer, word: u64, now: u64) {
    // SAFETY: promised by the caller: a claimed buffer.
    let length = unsafe { (*buffer).length };
    if expired(word, now) {
        report::count_bytes(Reason::FragmentNoFirst, length);
    } else {
        report::count_bytes(Reason::FragmentsFull, length);
    }
}

/// A length between 1 and [`FRAME`], in a way the verifier can see.
#[inline(always)]
fn bounded(length: u32) -> u32 {
    ((opaque(length as usize) as u32).wrapping_sub(1) & (FRAME as u32 - 1)) + 1
}

/// Looks at one buffer; 1 ends the search.
unsafe extern "C" fn consider(nth: u32, search: *mut c_void) -> i64 {
    // SAFETY: the record that `put` handed to the loop.
    let search = unsafe { &mut *search.cast::<Search>() };
    let index = search.base as u32 + nth;
    let Some(buffer) = HELD.get_ptr_mut(index) else {
        return 1;
    };
    let word = word_of(buffer).load();
    if word == BUSY {
        return 0;
    }
    if word == 0 || search.place == 0 || word < search.word {
        search.place = index as u64 + 1;
        search.word = word;
    }
    (word == 0) as i64
}

/// What becomes of frames that are released.
#[repr(C)]
pub struct Release<A> {
    ctx: *mut __sk_buff,
    owner: u64,
    /// First buffer of the window.
    base: u64,
    /// 1: they leave from `egress` with `identification`; 0: they stay as they are.
    rewrite: u64,
    /// Length of the longest frame that the tunnel takes, where every packet has an Ethernet header; 0: they do not go
    /// through it.
    tunnel: u64,
    /// `BPF_F_INGRESS`, or 0.
    flags: u64,
    /// 1: they keep the mark of the packet.
    marked: u64,
    identification: u64,
    inside: A,
    egress: A,
}

impl<A: Fragmented> Release<A> {
    /// Frames go where the packet goes, as they are.
    #[inline(always)]
    pub fn new(ctx: &TcContext, work: &Work<A>, flags: u64) -> Self {
        Self {
            ctx: ctx.skb.skb,
            owner: work.owner(),
            base: (work.window() * WINDOW) as u64,
            rewrite: 0,
            tunnel: 0,
            flags,
            marked: 0,
            identification: 0,
            inside: work.key.source,
            egress: A::default(),
        }
    }

    /// Frames leave from an egress IP.
    #[inline(always)]
    pub fn from(mut self, egress: A, identification: u32) -> Self {
        self.rewrite = 1;
        self.egress = egress;
        self.identification = identification as u64;
        self
    }

    /// Frames go through the tunnel, where the packet was aimed, unless they are longer than `most`, without the link
    /// layer; 0: none is too long.
    #[inline(always)]
    pub fn through_tunnel(mut self, most: u32) -> Self {
        self.tunnel = if most == 0 {
            FRAME as u64
        } else {
            most as u64 + ETHERNET as u64
        };
        self
    }

    /// Frames have the packet's mark.
    #[inline(always)]
    pub fn marked(mut self) -> Self {
        self.marked = 1;
        self
    }

    /// Sends the packet on, then every frame that was held for it; the packet itself, which carried them
    /// one after the other, is used up.
    ///
    /// A copy that leaves meets our own programs again before this returns: it must be marked as done.
    #[inline(always)]
    pub fn run(mut self, ctx: &TcContext) -> i32 {
        // SAFETY: helpers that check what they are given; the callback is given the record it expects,
        // which outlives the loop.
        unsafe {
            bpf_clone_redirect(ctx.skb.skb, verdict::interface(ctx), self.flags);
            bpf_loop(
                WINDOW,
                release_one::<A> as *mut c_void,
                (&raw mut self).cast(),
                0,
            );
        }
        verdict::used_up()
    }
}

/// Releases one frame, if it is the datagram's.
unsafe extern "C" fn release_one<A: Fragmented>(nth: u32, release: *mut c_void) -> i64 {
    // SAFETY: the record that `run` handed to the loop.
    let release = unsafe { &*release.cast::<Release<A>>() };
    let Some(buffer) = HELD.get_ptr_mut(release.base as u32 + nth) else {
        return 1;
    };
    let word = word_of(buffer);
    let seen = word.load();
    if seen <= BUSY {
        return 0;
    }
    // SAFETY: a live map value.
    let owner = unsafe { core::ptr::read_volatile(&raw const (*buffer).owner) };
    if owner != release.owner {
        return 0;
    }
    if word.swap(seen, BUSY).is_err() {
        return 0;
    }
    // SAFETY: claimed.
    if unsafe { core::ptr::read_volatile(&raw const (*buffer).owner) } != release.owner {
        // Somebody else's by now.
        let _ = word.swap(BUSY, seen);
        return 0;
    }
    // SAFETY: claimed; the context is the program's.
    unsafe {
        let length = (*buffer).length;
        if release.tunnel != 0 && length as u64 > release.tunnel {
            // Nobody is told of a later fragment.
            report::count_bytes(Reason::ForwardedTooLong, length);
        } else if send(release, buffer).is_err() {
            report::count_bytes(Reason::FragmentsFull, length);
        }
    }
    let _ = word.swap(BUSY, 0);
    0
}

/// Makes the packet the frame, and sends a copy of it on.
#[inline(always)]
unsafe fn send<A: Fragmented>(release: &Release<A>, buffer: *mut Buffer) -> Result<(), ()> {
    let ctx = TcContext::new(release.ctx);
    // SAFETY: promised by the caller; lengths are within the buffer.
    unsafe {
        if release.tunnel != 0 && (*buffer).network as usize != ETHERNET {
            return Err(());
        }
        let length = bounded((*buffer).length);
        // A sum that a device has made of the packet is forgotten as soon as its length changes.
        if bpf_skb_change_tail(release.ctx, length + 1, 0) != 0
            || bpf_skb_change_tail(release.ctx, length, 0) != 0
            || bpf_skb_store_bytes(
                release.ctx.cast(),
                0,
                (&raw const (*buffer).bytes).cast(),
                length,
                0,
            ) != 0
        {
            return Err(());
        }
        if release.rewrite != 0 {
            let network = (*buffer).network as usize;
            let frame = Frame::now(&ctx);
            A::write(&frame, network, End::Source, release.inside, release.egress)?;
            A::renumber(&frame, network, release.identification as u32)?;
        }
        if release.flags != 0 && release.marked == 0 {
            let tunnelled = (*buffer).network & TUNNELLED != 0;
            verdict::set_tag(&ctx, if tunnelled { Tag::Done } else { Tag::None });
        }
        if bpf_clone_redirect(release.ctx, verdict::interface(&ctx), release.flags) != 0 {
            return Err(());
        }
    }
    Ok(())
}

/// Empties buffers whose first fragment has not come in time; called by the sweep alone, once a tick.
#[inline(always)]
pub fn age(tick: u64, now: u64) {
    let mut part = Part {
        base: (tick as u32).wrapping_mul(AGED) as u64,
        now,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    unsafe {
        bpf_loop(AGED, age_one as *mut c_void, (&raw mut part).cast(), 0);
    }
}

/// A part of the buffers; whole words, as in [`crate::slots::Search`].
#[repr(C)]
struct Part {
    base: u64,
    now: u64,
}

/// Looks at one buffer.
unsafe extern "C" fn age_one(nth: u32, part: *mut c_void) -> i64 {
    // SAFETY: the record that `age` handed to the loop.
    let part = unsafe { &*part.cast::<Part>() };
    let index = (part.base as u32).wrapping_add(nth) & (FRAMES as u32 - 1);
    let Some(buffer) = HELD.get_ptr_mut(index) else {
        return 1;
    };
    let word = word_of(buffer);
    let seen = word.load();
    if seen > BUSY && expired(seen, part.now) && word.swap(seen, BUSY).is_ok() {
        // SAFETY: claimed.
        unsafe { abandoned(buffer, seen, part.now) };
        let _ = word.swap(BUSY, 0);
    }
    0
}
