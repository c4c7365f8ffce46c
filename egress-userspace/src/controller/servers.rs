//! Handing slices over to other servers and taking them from them (CLU-3), and what operators say of servers (FWD-7).

use std::time::{Duration, Instant};

use super::{Controller, Writer};
use crate::config::Config;
use crate::control::protocol::Failure;
use crate::inventory::{self, ServerRecord};
use crate::liveness::State;
use crate::ownership::{Keeper, Step};
use crate::placed;
use crate::resource::{Drain, Kind, Object, Owner};
use crate::store::{Change, StoreError, Stored, now};

/// How often steps that others make void are made anew at once; then it is tried again a second later.
const ATTEMPTS: usize = 4;

/// The longest time between two looks at what is left in slices that are to leave.
const LOOKS: Duration = Duration::from_secs(3);
/// As many times longer than a look the time after it is.
const PAUSE: u32 = 20;

impl Controller {
    /// After something was put in force: what this server opens nothing in from now on, and what it has lost.
    pub(super) fn note_ownership(&mut self) {
        if let Some(ownership) = &self.in_force.ownership {
            self.keeper
                .in_force(ownership, &self.config.server.name, Instant::now());
        }
        if let Err(failure) = self.end_lost() {
            tracing::error!("connections on slices that are another server's by now: {failure}");
        }
        if let Err(error) = self.note_promise() {
            tracing::error!(%error, "`takeover_after` is off, and holds here for now");
        }
    }

    /// Ends what is left on slices that this server has lost.
    fn end_lost(&mut self) -> Result<(), Failure> {
        if self.keeper.lost().is_empty() {
            return Ok(());
        }
        let ended = self.dataplane.reset_slices(self.keeper.lost())?;
        self.keeper.has_ended_lost();
        if ended > 0 {
            tracing::warn!(
                connections = ended,
                "ended: their slices are not this server's any more"
            );
        }
        Ok(())
    }

    /// The step by which this server promises what its configuration says, unless it has.
    fn to_promise(&self) -> Option<Step> {
        let after = self.config.handover.takeover_after;
        let ownership = self.in_force.ownership.as_ref()?;
        ownership.promise(&self.config.server.name, after)
    }

    /// Whether there is something to hand over, or to take.
    pub fn has_to_hand_over(&self) -> bool {
        let Some(ownership) = &self.in_force.ownership else {
            return false;
        };
        let name = &self.config.server.name;
        self.unclaimed
            || !self.keeper.lost().is_empty()
            || !self.keeper.resting().is_empty()
            || !self.keeper.stopped().is_empty()
            || ownership.is_fenced(name)
            || self.to_promise().is_some()
            || self.stops_in_vain().unwrap_or(true)
    }
}

impl Writer<'_> {
    /// Makes the steps that the division asks for; returns what is stored afterwards.
    pub(super) fn claimed(&mut self, config: &Config, mut stored: Stored) -> Stored {
        let mut why = "others have changed who owns what meanwhile".to_owned();
        for _ in 0..ATTEMPTS {
            let steps = match &stored.ownership {
                Some(ownership) => ownership.to_do(&stored.resources(), &config.server.name),
                None => return stored,
            };
            if steps.is_empty() {
                self.controller().unclaimed = false;
                return stored;
            }
            match self.store.hand_over(&steps) {
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => {
                    why = error.to_string();
                    break;
                }
            }
            match self.store.current() {
                Ok(now) => stored = now,
                Err(error) => {
                    why = error.to_string();
                    break;
                }
            }
        }
        tracing::warn!(why, "slices could not be divided anew: tried again");
        self.controller().unclaimed = true;
        stored
    }

    /// Passes on what is to leave this server and has nothing left, and takes what comes.
    ///
    /// # Errors
    /// When data plane or store fail; the next call tries again.
    pub(super) fn hand_over(&mut self) -> Result<(), Failure> {
        let steps = {
            let mut controller = self.controller();
            let controller = &mut *controller;
            let in_force = std::sync::Arc::clone(&controller.in_force);
            let Some(ownership) = &in_force.ownership else {
                return Ok(());
            };
            controller.end_lost()?;
            let name = &controller.config.server.name;
            let limit = controller.config.handover.drain_limit;
            let overdue = controller.keeper.overdue(limit, Instant::now());
            if !overdue.is_empty() {
                let ended = controller.dataplane.reset_slices(&overdue)?;
                tracing::warn!(
                    connections = ended,
                    "ended: their slices have been leaving this server for `drain_limit`"
                );
            }
            let stopped = controller.keeper.stopped();
            let mut left = controller.keeper.resting().clone();
            for (address, slices) in &stopped {
                *left.entry(*address).or_default() |= slices;
            }
            let mut steps = Vec::new();
            if !left.is_empty() && controller.next_look.is_none_or(|at| Instant::now() >= at) {
                let began = Instant::now();
                let occupied = controller.dataplane.occupied(&left)?;
                // The larger the tables, the more rarely: somebody else may want the lock.
                controller.next_look = Some(Instant::now() + LOOKS.min(began.elapsed() * PAUSE));
                controller.keeper.have_rested(&occupied);
                steps = Keeper::release(ownership, name, &stopped, &occupied);
            }
            controller.note_promise()?;
            // It was declared fenced, and is back. While a port rests, a late packet of its flow is translated, and others
            // have given out that port by now.
            if controller.keeper.is_clear() {
                steps.extend(ownership.may_return(name));
            }
            if stopped.is_empty() {
                controller.stuck = None;
            }
            steps.extend(controller.to_promise());
            steps
        };
        let outcome = if steps.is_empty() {
            Ok(())
        } else {
            self.store.hand_over(&steps)
        };
        if outcome.is_ok() && !steps.is_empty() {
            tracing::info!(steps = steps.len(), "slices were passed on");
        }
        if !steps.is_empty() {
            self.controller().stuck = match &outcome {
                Err(error @ StoreError::Uncopied { .. }) => Some(error.to_string()),
                _ => None,
            };
        }
        // What others do is heard of.
        let asks = {
            let controller = self.controller();
            let name = &controller.config.server.name;
            let ownership = controller.in_force.ownership.as_ref();
            // Others say when nothing names it any more.
            controller.unclaimed || ownership.is_some_and(|all| all.is_fenced(name))
        };
        if asks || !steps.is_empty() {
            self.refresh()?;
        }
        match outcome {
            Ok(()) | Err(StoreError::Conflict) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps new flows from a server: other servers get them, and its slices as they empty (FWD-7).
    ///
    /// # Errors
    /// When there is no such server, or this cannot be stored.
    pub fn drain_server(&mut self, name: &str) -> Result<ServerRecord, Failure> {
        self.known_server(name)?;
        let subject = Drain::of_server(name);
        if !self.stored.resources().drains.contains(&subject) {
            self.commit(&[Change::Put {
                owner: Owner::Api,
                object: Object::Drain(Drain { subject }),
            }])?;
        }
        self.server(name)
    }

    /// Lets a server have new flows again, and its slices.
    ///
    /// # Errors
    /// When there is no such server, or this cannot be stored.
    pub fn undrain_server(&mut self, name: &str) -> Result<ServerRecord, Failure> {
        self.known_server(name)?;
        let subject = Drain::of_server(name);
        if self.stored.resources().drains.contains(&subject) {
            self.commit(&[Change::Remove {
                kind: Kind::Drain,
                id: subject,
            }])?;
        }
        self.server(name)
    }

    /// Gives away what a server holds, which the operator says is fenced.
    ///
    /// # Errors
    /// When it is this server or one that answers, when it is unknown, or this cannot be stored.
    pub fn forget_server(&mut self, name: &str, force: bool) -> Result<ServerRecord, Failure> {
        let stored = self.store.current()?;
        let Some(ownership) = &stored.ownership else {
            return Err(Failure::usage(
                "this server shares no store with others: nothing of theirs can be given away",
                "name the servers' etcd under [store]; or change shares and locations in the resources of each",
            ));
        };
        if name == self.config.server.name {
            return Err(Failure::usage(
                format!("{name} is this server, which is at work"),
                "to give away what it holds: `egress server drain`. For a host that was set up anew, while the daemon does not run \
                 there: `egress server claim`",
            ));
        }
        if !ownership.names(name) && self.known_server(name).is_err() {
            return Err(no_server(name));
        }
        let resources = stored.resources();
        let tunnel = placed::servers(&resources)
            .find(|one| one.server.name == name)
            .and_then(|one| one.server.tunnel);
        let health = tunnel.and_then(|at| self.controller().healths().get(&at).copied());
        if health.is_some_and(|health| health.state == State::Alive) && !force {
            return Err(Failure::failed(
                format!("{name} answers: its data plane may go on to use what it holds"),
                "switch it off or cut it off from its network first; or, where it is all the same certain that it \
                 sends nothing any more, --force",
            ));
        }
        // What it held is given away by whoever sees this first: by this server, as a rule.
        self.store.hand_over(&[ownership.fence(name, now())])?;
        tracing::warn!(server = name, "declared fenced: others get what it held");
        self.refresh()?;
        self.server(name)
    }

    fn server(&self, name: &str) -> Result<ServerRecord, Failure> {
        let healths = self.controller().healths().clone();
        let all = inventory::servers(&self.stored, &healths, &self.config.server.name);
        let found = all.into_iter().find(|record| record.server == name);
        found.ok_or_else(|| no_server(name))
    }

    /// Refuses the name of a server that is in no location; without locations this one is the only one.
    fn known_server(&self, name: &str) -> Result<(), Failure> {
        let resources = self.stored.resources();
        let known = placed::servers(&resources).any(|one| one.server.name == name);
        let only = resources.locations.is_empty() && name == self.config.server.name;
        if known || only {
            Ok(())
        } else {
            Err(no_server(name))
        }
    }
}

fn no_server(name: &str) -> Failure {
    Failure::usage(
        format!("there is no server {name}"),
        "`egress server list` lists servers",
    )
}
