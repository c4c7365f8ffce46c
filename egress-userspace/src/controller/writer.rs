//! Whoever changes the configuration: one at a time, with the store in hand and without holding up anybody else.

use std::path::Path;
use std::sync::{Arc, MutexGuard};

use super::requests::Service;
use super::turns::Turn;
use super::{Behind, Controller, courtesy, plan_file};
use crate::config::{Config, ConfigError};
use crate::control::protocol::{Applied, Failure};
use crate::diagnostic::Source;
use crate::resolve;
use crate::resource::{Kind, Resources};
use crate::store::{Change, StoreError, Stored};

/// The one whose turn it is: nobody else changes what is stored, nor how it is put in force.
pub struct Writer<'s> {
    service: &'s Service,
    pub(super) store: Turn<'s>,
    /// What changes are made to.
    pub(super) stored: Arc<Stored>,
    pub(super) config: Arc<Config>,
}

impl<'s> Writer<'s> {
    pub(super) fn new(service: &'s Service, store: Turn<'s>) -> Self {
        let (stored, config) = {
            let controller = service.controller();
            (
                Arc::clone(controller.stored()),
                Arc::clone(controller.config()),
            )
        };
        Self {
            service,
            store,
            stored,
            config,
        }
    }

    /// Everything stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The controller, for a moment: never while the store is asked.
    pub(super) fn controller(&self) -> MutexGuard<'s, Controller> {
        self.service.controller()
    }

    /// Plans a resources file and, unless it is a dry run, applies it.
    ///
    /// # Errors
    /// What is wrong with it, or why it could not be applied; everything is then as before.
    pub fn apply(&mut self, source: &Source, dry_run: bool) -> Result<Applied, Failure> {
        self.apply_under(&Arc::clone(&self.config), source, dry_run)
    }

    fn apply_under(
        &mut self,
        config: &Arc<Config>,
        source: &Source,
        dry_run: bool,
    ) -> Result<Applied, Failure> {
        let (plan, warnings) = plan_file(source, &self.stored, config)?;
        let mut applied = Applied {
            plan,
            applied: false,
            warnings,
            notes: Vec::new(),
        };
        self.is_meant(source)?;
        applied.notes.extend(self.lets_go(applied.plan.after())?);
        if dry_run {
            let addresses = resolve::addresses(applied.plan.after(), config);
            self.controller().dataplane().check(&addresses)?;
            return Ok(applied);
        }
        // Whoever writes a file says what is to be bound.
        let kept = self.controller().kept.take();
        self.commit_under(config, applied.plan.changes())
            .inspect_err(|_| self.controller().kept = kept)?;
        applied.applied = true;
        Ok(applied)
    }

    /// Puts in force what is stored where nothing is, before the resources file is read.
    pub(super) fn bind(&mut self, config: &Arc<Config>) -> Result<(), Failure> {
        let is_in_force = self.controller().dataplane().status()?.configured;
        if is_in_force || self.stored.objects.is_empty() {
            return Ok(());
        }
        if let Err(failure) = self.commit_under(config, &[]) {
            tracing::warn!("what is stored could not be put in force: {failure}");
        }
        Ok(())
    }

    /// Whether this is why what was taken over stays in force; says so.
    pub(super) fn keeps_bound(&self, failure: &Failure) -> bool {
        let mut controller = self.controller();
        let keeps = controller.kept.as_ref() == Some(&failure.reason);
        if keeps {
            tracing::error!("{failure}");
            controller.behind = Some(Behind::Refused(failure.reason.clone()));
        }
        keeps
    }

    /// What a store that was lost had bound and these resources do not: nobody knows the zones' names any more.
    fn lets_go(&self, after: &Resources) -> Result<Option<String>, Failure> {
        let controller = self.controller();
        if controller.kept.is_none() {
            return Ok(None);
        }
        let bound = controller.dataplane().bound()?;
        let zones = after.zones.iter();
        let enabled = zones.filter(|zone| after.aegis(zone).enabled).count();
        Ok((enabled < bound).then(|| {
            format!(
                "{bound} zones are bound, and this file enables {enabled}: the others take the default egress, unless they are \
                 enabled in it ([zone.aegis])"
            )
        }))
    }

    /// A file without any key is one that was cut off: it does not unbind what is bound.
    fn is_meant(&self, source: &Source) -> Result<(), Failure> {
        let is_blank = source
            .text()
            .parse::<toml::Table>()
            .is_ok_and(|table| table.is_empty());
        let bound = self.controller().dataplane().bound()?;
        if !is_blank || bound == 0 {
            return Ok(());
        }
        Err(Failure::usage(
            format!(
                "{} is empty, and {bound} zones are bound: a file that was cut off unbinds nothing",
                source.name()
            ),
            "write the file anew; or `account = []` in it, to let go of everything",
        ))
    }

    /// Applies the resources file, where there is one, and puts what is then stored in force under this
    /// configuration.
    pub(super) fn take_over(&mut self, config: &Arc<Config>) -> Result<Applied, Failure> {
        match &config.resources.file {
            Some(file) => self.apply_under(config, &Source::read(file)?, false),
            None => {
                self.commit_under(config, &[])?;
                Ok(Applied {
                    applied: true,
                    ..Applied::default()
                })
            }
        }
    }

    /// Reads configuration and resources file again, as SIGHUP asks for. All or nothing: on an error everything
    /// stays as it was.
    pub(super) fn reload(&mut self, path: &Path) -> Result<Applied, Failure> {
        let (new, warnings) = Config::load(path).map_err(|error| match error {
            ConfigError::Source(error) => error.into(),
            ConfigError::Invalid(found) => Failure::invalid(&path.display().to_string(), found),
        })?;
        let notes = restart_needed(&self.config, &new);
        let mut config = Config::clone(&self.config);
        config.exempt = new.exempt;
        config.timers = new.timers;
        config.flow_log = new.flow_log;
        config.dataplane.refuse = new.dataplane.refuse;
        config.resources = new.resources;
        config.handover = new.handover;
        let mut applied = self.take_over(&Arc::new(config))?;
        let mut all = warnings;
        all.extend(applied.warnings);
        applied.warnings = all;
        applied.notes.extend(notes);
        Ok(applied)
    }

    /// Puts in force what the store holds now; says whether that is something else (CLU-1).
    ///
    /// # Errors
    /// When the store cannot be read, or what it holds cannot be put in force here: what was in force stays so, and
    /// the next call tries again.
    pub fn refresh(&mut self) -> Result<bool, Failure> {
        let current = self.store.current();
        let current = current.map(|stored| self.claimed(&Arc::clone(&self.config), stored));
        if let Ok(stored) = &current {
            self.be_courteous(stored);
        }
        let mut controller = self.controller();
        let stored = match current {
            Ok(stored) => stored,
            Err(error) => {
                controller.has_news(error.to_string());
                return Err(error.into());
            }
        };
        if controller.behind.is_none() && stored == *self.stored {
            return Ok(false);
        }
        // Whatever comes of it, this is what the next change is made to.
        self.stored = Arc::new(stored);
        controller.stored = Arc::clone(&self.stored);
        let healths = controller.healths.clone();
        let outcome = controller.put_in_force(&self.stored, &self.config, healths);
        controller.behind = outcome
            .as_ref()
            .err()
            .map(|failure| Behind::Refused(failure.reason.clone()));
        outcome.map(|()| true)
    }

    /// Waits before this is put in force, if others would else have connections refused.
    fn be_courteous(&self, after: &Stored) {
        let (before, own) = {
            let controller = self.controller();
            let own = controller.config.server.name.clone();
            (Arc::clone(&controller.in_force), own)
        };
        courtesy::wait(&before, after, &own);
    }

    /// Commits and puts in force.
    pub(super) fn commit(&mut self, changes: &[Change]) -> Result<(), Failure> {
        self.commit_under(&Arc::clone(&self.config), changes)
    }

    /// Commits what could be put in force, and puts it in force under this configuration; undoes the commit when that
    /// fails nevertheless.
    fn commit_under(&mut self, config: &Arc<Config>, changes: &[Change]) -> Result<(), Failure> {
        let limits = resolve::limits(config);
        let before = Arc::clone(&self.stored);
        let after = if changes.is_empty() {
            match &before.ownership {
                Some(_) => Arc::new(self.claimed(config, Stored::clone(&before))),
                None => Arc::clone(&before),
            }
        } else {
            let mut refusal = None;
            let service = self.service;
            let mut agrees = |after: &Stored| match could_be_in_force(service, config, after) {
                Ok(()) => true,
                Err(failure) => {
                    refusal = Some(failure);
                    false
                }
            };
            match self.store.commit_if(changes, limits, &mut agrees) {
                Ok(after) => Arc::new(self.claimed(config, after)),
                Err(error) => {
                    match &error {
                        StoreError::Conflict => {
                            if let Err(failure) = self.refresh() {
                                tracing::warn!("following the shared store: {failure}");
                            }
                        }
                        // The commit may have been made: that is found out as soon as it can be.
                        StoreError::Unknown { .. } => {
                            self.controller().has_news(error.to_string());
                        }
                        _ => {}
                    }
                    return Err(refusal.unwrap_or_else(|| error.into()));
                }
            }
        };
        self.be_courteous(&after);
        let failure = {
            let mut controller = self.controller();
            let healths = controller.healths.clone();
            match controller.put_in_force(&after, config, healths) {
                Ok(()) => {
                    controller.stored = Arc::clone(&after);
                    controller.behind = None;
                    self.stored = after;
                    self.config = Arc::clone(config);
                    return Ok(());
                }
                Err(failure) => failure,
            }
        };
        if changes.is_empty() {
            return Err(failure);
        }
        // Only on top of this commit: what another server has made of it since stays.
        match self.store.commit(&undo(&before, changes), limits) {
            Ok(stored) => {
                self.stored = Arc::new(stored);
                self.controller().stored = Arc::clone(&self.stored);
                Err(failure)
            }
            Err(error) => {
                tracing::error!(%error, "the store could not be set back after a failed change");
                self.stored = after;
                let mut controller = self.controller();
                controller.stored = Arc::clone(&self.stored);
                controller.behind = Some(Behind::Refused(failure.reason.clone()));
                Err(Failure {
                    reason: format!(
                        "{}; the change is stored all the same ({error})",
                        failure.reason
                    ),
                    ..failure
                })
            }
        }
    }
}

/// Whether this could be put in force here, as far as that can be told before.
fn could_be_in_force(service: &Service, config: &Config, after: &Stored) -> Result<(), Failure> {
    let resources = after.resources();
    let healths = service.controller().healths().clone();
    let desired = resolve::resolve_among(&resources, config, &after.numbers, &healths)?;
    let addresses = resolve::addresses(&resources, config);
    let controller = service.controller();
    controller.allows(&desired)?;
    controller.dataplane().check(&addresses)?;
    Ok(())
}

/// The changes that lead back to `before`.
fn undo(before: &Stored, changes: &[Change]) -> Vec<Change> {
    let keys = changes.iter().map(|change| match change {
        Change::Put { object, .. } => (object.kind(), object.id()),
        Change::Remove { kind, id } => (*kind, id.clone()),
    });
    keys.map(
        |(kind, id): (Kind, String)| match before.objects.get(&(kind, id.clone())) {
            Some((owner, object)) => Change::Put {
                owner: *owner,
                object: object.clone(),
            },
            None => Change::Remove { kind, id },
        },
    )
    .collect()
}

/// What changed in the file but takes effect with the next start only.
fn restart_needed(running: &Config, new: &Config) -> Vec<String> {
    let mut dataplane = new.dataplane.clone();
    dataplane.refuse = running.dataplane.refuse;
    [
        ("[server]", running.server == new.server),
        ("[dataplane]", running.dataplane == dataplane),
        ("[store]", running.store == new.store),
        ("[utilization]", running.utilization == new.utilization),
        ("[control]", running.control == new.control),
        ("[api]", running.api == new.api),
        ("[cluster]", running.cluster == new.cluster),
        ("[announce]", running.announce == new.announce),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(section, _)| {
        format!("{section} has changed: that takes effect when the daemon is restarted")
    })
    .collect()
}
