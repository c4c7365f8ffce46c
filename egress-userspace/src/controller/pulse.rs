//! `takeover_after`: this server says that it is there, and takes over from those that are not (CLU-3).
//!
//! Its data plane has a time at which it stops by itself, whatever has become of the daemon. It is put off only once the
//! store has taken a sign of life, and counts from before that was sent. A sign of life is taken only while nobody has taken this
//! server for gone since what is in force was read: so what is in force is this server's until then.
//!
//! All of this waits for the store alone. The controller, which may be busy for long with a whole table, tells it what is in force.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use egress_common::placement::digest;

use super::{Controller, Service};
use crate::control::protocol::{Cause, Failure};
use crate::dataplane::api::{DataPlaneError, Deadline};
use crate::ownership::{LOOKS, Promise, Watch, nanoseconds};
use crate::store::{self, Pulse, StoreError, Stored};

/// Signs of life in the time after which others take over: four before this server stops.
const BEATS: u32 = 6;
/// Between two signs of life where one failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two rounds where nobody has promised anything; a change begins one at once.
const IDLE: Duration = Duration::from_secs(60);

/// What this server has promised, as it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Vow {
    promise: Promise,
    /// What is said of it in [`crate::ownership::Ownership::forgotten`].
    mark: Option<i64>,
}

/// What is in force.
#[derive(Default)]
struct Known {
    server: String,
    vow: Option<Vow>,
    stored: Option<Arc<Stored>>,
    /// How often that has changed.
    changes: u64,
    /// No more rounds are wanted.
    ends: bool,
}

/// What is done when, by the clock of the deadline.
#[derive(Default)]
struct Rounds {
    /// What the last sign of life was for that was taken, and when the next one is due, ns.
    beaten: Option<Vow>,
    beat_at: u64,
    /// When to look for the others' next, ns.
    look_at: u64,
    watch: Watch,
    /// Which [`Known::changes`] have been seen.
    changes: u64,
}

/// The signs of life, this server's and others'.
pub(super) struct Signs {
    pulse: Option<Arc<dyn Pulse>>,
    deadline: Arc<dyn Deadline>,
    known: Mutex<Known>,
    changed: Condvar,
    rounds: Mutex<Rounds>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time between two of so many in a time, ns.
fn between(time: Duration, times: u32) -> u64 {
    nanoseconds(time / times)
}

impl Signs {
    pub(super) fn new(pulse: Option<Arc<dyn Pulse>>, deadline: Arc<dyn Deadline>) -> Self {
        Self {
            pulse,
            deadline,
            known: Mutex::default(),
            changed: Condvar::new(),
            rounds: Mutex::default(),
        }
    }

    /// Refuses to promise anything where the data plane cannot be told times.
    pub(super) fn check(&self) -> Result<(), DataPlaneError> {
        self.deadline.check()
    }

    /// Says what is in force. Once this returns nothing is put off by an earlier promise.
    fn publish(&self, server: &str, vow: Option<Vow>, stored: Option<&Arc<Stored>>) {
        let mut known = lock(&self.known);
        let promises = |stored: Option<&Arc<Stored>>| {
            let ownership = stored.and_then(|stored| stored.ownership.as_ref());
            ownership.map(|all| (all.promises.clone(), all.forgotten.clone()))
        };
        if known.vow != vow || promises(known.stored.as_ref()) != promises(stored) {
            known.changes += 1;
            self.changed.notify_all();
        }
        server.clone_into(&mut known.server);
        known.vow = vow;
        known.stored = stored.cloned();
    }

    /// A round of what is due.
    fn round(&self) -> Result<(), Failure> {
        let mut rounds = lock(&self.rounds);
        rounds.changes = lock(&self.known).changes;
        let Some(pulse) = self.pulse.as_deref() else {
            // Nobody is to hear of this server.
            (rounds.beat_at, rounds.look_at) = (u64::MAX, u64::MAX);
            return Ok(());
        };
        let beaten = self.beat(pulse, &mut rounds);
        let looked = self.look(pulse, &mut rounds);
        beaten.and(looked)
    }

    /// Says that this server is there, if that is due.
    fn beat(&self, pulse: &dyn Pulse, rounds: &mut Rounds) -> Result<(), Failure> {
        let (server, vow) = {
            let known = lock(&self.known);
            let Some(vow) = known.vow.clone() else {
                rounds.beaten = None;
                return Ok(());
            };
            (known.server.clone(), vow)
        };
        let now = self.deadline.now();
        if rounds.beaten.as_ref() == Some(&vow) && now < rounds.beat_at {
            return Ok(());
        }
        let pause = between(vow.promise.over_after(), BEATS);
        rounds.beat_at = now.saturating_add(pause.min(nanoseconds(AGAIN)));
        let Some(sent) = self.set_out(&vow)? else {
            return Ok(());
        };
        pulse.beat(&server, vow.promise, vow.mark)?;
        self.put_off(&vow, sent)?;
        rounds.beat_at = now.saturating_add(pause);
        rounds.beaten = Some(vow);
        Ok(())
    }

    /// Before a sign of life is sent, from which others may count soon, however much less time they give than was promised before, and
    /// whether or not this server hears that it was taken. Returns when that was; none where something else is in force by now.
    fn set_out(&self, vow: &Vow) -> Result<Option<u64>, DataPlaneError> {
        let known = lock(&self.known);
        if known.vow.as_ref() != Some(vow) {
            return Ok(None);
        }
        let sent = self.deadline.now();
        let until = sent.saturating_add(nanoseconds(vow.promise.good_for()));
        let at = self.deadline.get()?;
        if at == 0 || at > until {
            self.deadline.set(until)?;
        }
        Ok(Some(sent))
    }

    /// After a sign of life was taken.
    fn put_off(&self, vow: &Vow, sent: u64) -> Result<(), DataPlaneError> {
        let known = lock(&self.known);
        if known.vow.as_ref() != Some(vow) {
            return Ok(());
        }
        let had_come = self.deadline.has_come();
        self.deadline
            .set(sent.saturating_add(nanoseconds(vow.promise.good_for())))?;
        if had_come && !self.deadline.has_come() {
            tracing::warn!("etcd is reached: this server's IPv4 egress IPs are used again");
        }
        Ok(())
    }

    /// Takes over from those that are gone, if it is time to look.
    fn look(&self, pulse: &dyn Pulse, rounds: &mut Rounds) -> Result<(), Failure> {
        let (server, stored) = {
            let known = lock(&self.known);
            (known.server.clone(), known.stored.clone())
        };
        let ownership = stored.as_ref().and_then(|all| all.ownership.as_ref());
        let soonest = ownership.and_then(|all| all.soonest(&server));
        let Some((ownership, soonest)) = ownership.zip(soonest) else {
            rounds.watch = Watch::default();
            rounds.look_at = u64::MAX;
            return Ok(());
        };
        let pause = between(soonest, LOOKS);
        let asked = self.deadline.now();
        if asked < rounds.look_at && rounds.look_at - asked <= pause {
            return Ok(());
        }
        rounds.look_at = asked.saturating_add(pause);
        let beats = pulse.beats()?;
        let now = self.deadline.now();
        rounds.look_at = now.saturating_add(pause);
        let mut overdue = rounds.watch.overdue(ownership, &beats, asked, now);
        // All others see the same: not all begin with the same one.
        overdue.sort_by_key(|(other, _)| digest(&format!("{server} {other}")));
        for (other, silence) in overdue {
            // Those that are left are overdue next time, too; this server is to be heard of meanwhile.
            if rounds.beaten.is_some() && self.deadline.now() >= rounds.beat_at {
                break;
            }
            if other == server || !ownership.names(&other) {
                continue;
            }
            let step = ownership.fence(&other, store::now());
            match pulse.take_over(&step.after_silence(silence)) {
                Ok(()) => tracing::warn!(
                    server = other,
                    "not heard of for its `takeover_after`: others get what it held"
                ),
                // It is there, or another server was faster.
                Err(StoreError::Conflict) => {}
                // A store that takes nothing has heard of nobody, and says nothing about who is there.
                Err(error) => {
                    rounds.watch = Watch::default();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// How long it is until something is due.
    fn until(&self) -> Duration {
        let rounds = lock(&self.rounds);
        let beat_at = match lock(&self.known).vow {
            Some(_) => rounds.beat_at,
            None => u64::MAX,
        };
        let left = beat_at
            .min(rounds.look_at)
            .saturating_sub(self.deadline.now());
        Duration::from_nanos(left).min(IDLE)
    }
}

impl Controller {
    /// Before this is put in force: a data plane that does not know when it has to stop, after a boot or where another host was this
    /// server, uses nothing that others may have by now until the store has taken a sign of life.
    pub(super) fn stop_what_may_be_others(&self, stored: &Stored) -> Result<(), DataPlaneError> {
        let ownership = stored.ownership.as_ref();
        let promised = ownership.and_then(|all| all.promised(&self.config.server.name));
        if promised.is_some() && self.signs.deadline.get()? == 0 {
            self.signs.deadline.set(1)?;
        }
        Ok(())
    }

    /// After something was put in force, or what was lost has ended: what this server has to keep. Where it has promised nothing it
    /// stops at no time; but what it has lost, and what rests of that, must not be used again before.
    pub(super) fn note_promise(&self) -> Result<(), DataPlaneError> {
        let stored = (!self.detached).then_some(&self.in_force);
        self.signs
            .publish(&self.config.server.name, self.vow(), stored);
        if self.stops_in_vain()? {
            self.signs.deadline.set(0)?;
        }
        Ok(())
    }

    /// Whether the data plane has a time at which it stops, though nobody takes over from this server.
    pub(super) fn stops_in_vain(&self) -> Result<bool, DataPlaneError> {
        // Who shares nothing any more has not heard what became of it.
        let Some(ownership) = &self.in_force.ownership else {
            return Ok(false);
        };
        let name = &self.config.server.name;
        let may_be_others = ownership.promised(name).is_some()
            || ownership.is_fenced(name)
            || !self.keeper.is_clear();
        Ok(!may_be_others && !self.detached && self.signs.deadline.get()? != 0)
    }

    /// What this server has to keep; none where it has promised nothing, or something is left of what was taken from it.
    fn vow(&self) -> Option<Vow> {
        let ownership = self.in_force.ownership.as_ref()?;
        let server = &self.config.server.name;
        // What a daemon before has left in force is not known to be what was read.
        if self.detached || !self.keeper.is_whole() || ownership.is_fenced(server) {
            return None;
        }
        Some(Vow {
            promise: ownership.promised(server)?,
            mark: ownership.forgotten.get(server).copied(),
        })
    }

    /// Whether the data plane has stopped to use this server's slices.
    pub fn has_lapsed(&self) -> bool {
        self.signs.deadline.has_come()
    }

    /// Sends new connections to other servers while this one uses nothing of its own, and no longer.
    ///
    /// # Errors
    /// When that cannot be put in force; the next call tries again.
    pub fn follow_lapse(&mut self) -> Result<(), Failure> {
        if self.detached || self.has_lapsed() == self.lapsed {
            return Ok(());
        }
        let (stored, config) = (Arc::clone(&self.in_force), Arc::clone(&self.config));
        let healths = self.healths.clone();
        self.put_in_force(&stored, &config, healths)
    }
}

impl Service {
    /// A round of signs of life, as far as any is due.
    ///
    /// # Errors
    /// When store or data plane fail: what others may have soon is used no more, unless a later call succeeds.
    pub fn pulse(&self) -> Result<(), Failure> {
        let outcome = self.signs.round();
        // Whoever is busy in there looks by itself soon.
        let mut controller = match self.try_controller() {
            Ok(controller) => controller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return outcome,
        };
        if let Err(failure) = &outcome
            && failure.cause == Cause::Conflict
        {
            controller.has_news(failure.reason.clone());
        }
        outcome.and(controller.follow_lapse())
    }

    /// How long it is to the next round.
    pub fn until_pulse(&self) -> Duration {
        self.signs.until()
    }

    /// Waits until a round is due; false once there is to be none.
    pub fn wait_for_pulse(&self) -> bool {
        let (until, seen) = (self.until_pulse(), lock(&self.signs.rounds).changes);
        let known = lock(&self.signs.known);
        let waited = self
            .signs
            .changed
            .wait_timeout_while(known, until, |known| !known.ends && known.changes == seen);
        let (known, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !known.ends
    }

    /// There are to be no more rounds.
    pub fn end_pulse(&self) {
        lock(&self.signs.known).ends = true;
        self.signs.changed.notify_all();
    }
}
