//! Ctrl-C and SIGTERM take the labs of this process down before it ends.

use std::{
    process,
    sync::{
        Mutex, Once, PoisonError, Weak,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::lab::Standing;

/// The end of a pipe that the signal handler writes to.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// Whether a signal came.
static CAUGHT: AtomicBool = AtomicBool::new(false);
/// Whether the program ends by itself when a signal came, see [`defer`].
static DEFERRED: AtomicBool = AtomicBool::new(false);
/// The labs that stand.
static LABS: Mutex<Vec<Weak<Standing>>> = Mutex::new(Vec::new());

/// The program looks at [`caught`] by itself and drops its labs; a second signal still ends it at once.
pub fn defer() {
    DEFERRED.store(true, Ordering::SeqCst);
}

/// Whether Ctrl-C or SIGTERM came.
#[must_use]
pub fn caught() -> bool {
    CAUGHT.load(Ordering::SeqCst)
}

/// Remembers a lab, and installs the handlers the first time.
pub(crate) fn watch(lab: Weak<Standing>) -> Result<()> {
    static INSTALL: Once = Once::new();
    let mut outcome = Ok(());
    INSTALL.call_once(|| outcome = install());
    outcome?;
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    labs.retain(|known| known.strong_count() > 0);
    labs.push(lab);
    Ok(())
}

fn install() -> Result<()> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error()).context("creating a pipe");
    }
    PIPE.store(ends[1], Ordering::SeqCst);
    let reader = ends[0];
    thread::spawn(move || {
        let mut byte = [0u8];
        // SAFETY: `byte` is one byte long; the descriptor stays open for the life of the process.
        while unsafe { libc::read(reader, byte.as_mut_ptr().cast(), 1) } == 1 {
            let again = CAUGHT.swap(true, Ordering::SeqCst);
            if again || !DEFERRED.load(Ordering::SeqCst) {
                take_down();
                process::exit(128 + i32::from(byte[0]));
            }
        }
    });
    let action = SigAction::new(
        SigHandler::Handler(handle),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: `handle` only makes a system call that is allowed in a handler.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handling {signal}"))?;
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int) {
    let byte = [u8::try_from(signal).unwrap_or(0)];
    // SAFETY: write is async-signal-safe, and the byte lives until it returns.
    unsafe { libc::write(PIPE.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
}

fn take_down() {
    let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    for lab in labs.iter().filter_map(Weak::upgrade) {
        if let Err(error) = lab.take_down() {
            eprintln!("cleaning up: {error:#}");
        }
    }
}
