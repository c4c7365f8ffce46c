//! Whose turn it is: tests of one binary go one after the other, and of those of different binaries, which run side by
//! side, none that floods the machine runs beside one that looks at the clock.

use std::{
    fs::File,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{registry, wait};

/// How long a test waits for those of other binaries. Longer than any of them takes.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// What a test does to others, and others to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Neither: it may run beside any.
    Ordinary,
    /// It says how long something may take, so no loud one runs meanwhile.
    Timed,
    /// It takes all of the machine that there is: only ordinary ones run meanwhile.
    Loud,
}

/// A turn; dropping it ends it, and so does the death of the process that has it.
#[derive(Debug)]
#[must_use]
pub struct Turn {
    _binary: MutexGuard<'static, ()>,
    _machine: Option<Flock<File>>,
}

/// Waits for a turn.
pub(crate) fn take(manner: Manner) -> Turn {
    static TURN: Mutex<()> = Mutex::new(());

    // A test that panicked in its turn leaves nothing that the next one would trip over.
    let binary = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = registry::file("turn").and_then(|path| share(&path, manner, LIMIT));
    let machine = machine.unwrap_or_else(|error| {
        // A test beside a loud one is better than none.
        eprintln!("nobody is kept from running beside this: {error:#}");
        None
    });
    Turn {
        _binary: binary,
        _machine: machine,
    }
}

/// Waits until nobody else is in the way of such a test, in this process or another one.
fn share(path: &Path, manner: Manner, limit: Duration) -> Result<Option<Flock<File>>> {
    let how = match manner {
        Manner::Ordinary => return Ok(None),
        Manner::Timed => FlockArg::LockSharedNonblock,
        Manner::Loud => FlockArg::LockExclusiveNonblock,
    };
    let mut file = Some(registry::open_lock(path)?);
    wait::until("another test's end", limit, || {
        let Some(open) = file.take() else {
            return Ok(None);
        };
        match Flock::lock(open, how) {
            Ok(lock) => Ok(Some(Some(lock))),
            Err((open, Errno::EWOULDBLOCK)) => {
                file = Some(open);
                Ok(None)
            }
            Err((_, error)) => Err(error).context("locking it"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process, thread};

    use super::{Duration, Manner, share};

    #[test]
    fn a_loud_one_runs_beside_ordinary_ones_only() {
        let path = env::temp_dir().join(format!("egress-turn-{}", process::id()));
        let at_once = |manner| share(&path, manner, Duration::ZERO).ok();
        let is_free = |manner| at_once(manner).is_some();

        let timed = at_once(Manner::Timed);
        assert!(timed.is_some() && is_free(Manner::Timed) && is_free(Manner::Ordinary));
        assert!(!is_free(Manner::Loud));
        drop(timed);

        let loud = at_once(Manner::Loud);
        assert!(loud.is_some() && is_free(Manner::Ordinary));
        assert!(!is_free(Manner::Loud) && !is_free(Manner::Timed));
        // Who waits has it as soon as it is free.
        thread::scope(|scope| {
            let waits = scope.spawn(|| share(&path, Manner::Timed, Duration::from_secs(60)));
            drop(loud);
            waits.join().unwrap().unwrap();
        });
        fs::remove_file(&path).unwrap();
    }
}
