//! The time of day: each daemon's is another one, and is set now and then, forwards and back.
//!
//! What `SystemTime` asks for is this program's, so daemons that run in it can each be told something else.

use std::cell::Cell;

use super::random::Random;

/// Ten years, s.
const MOST: u64 = 10 * 365 * 24 * 3_600;

thread_local! {
    /// What is added to the time of day here, s.
    static OFF: Cell<i64> = const { Cell::new(0) };
}

/// From now on this thread has another time of day; sometimes it has again.
pub(crate) fn set(random: &mut Random) {
    if OFF.get() == 0 || random.below(20) == 0 {
        let off = i64::try_from(random.below(2 * MOST)).unwrap();
        OFF.set(off - i64::try_from(MOST).unwrap());
    }
}

/// As the C library's.
///
/// # Safety
/// `time` can be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> i32 {
    // SAFETY: as the caller promises.
    let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if outcome == 0 && clock == libc::CLOCK_REALTIME {
        // SAFETY: it was written a moment ago.
        unsafe { (*time).tv_sec += OFF.get() };
    }
    if outcome == 0 { 0 } else { -1 }
}
