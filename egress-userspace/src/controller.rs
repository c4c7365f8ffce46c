//! The daemon's judgement: every request becomes a change of the store and of the data plane together, or of
//! neither (SAFE-5).
//!
//! The order is always: read, plan, check the whole, commit, put in force; when putting in force fails, the
//! commit is undone. A daemon that dies in between finds the commit at its next start and puts it in force then.

mod change;
mod draining;
mod farewell;
mod policy;
mod probing;
mod realms;
mod requests;
mod setting;
mod take_over;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, ConfigError};
use crate::control::protocol::{Applied, Failure};
use crate::dataplane::api::{DataPlane, DataPlaneError};
use crate::desired::Desired;
use crate::diagnostic::{Diagnostics, Report, Source, SourceError};
use crate::flow_log::{self, Directory, Shared};
use crate::liveness::{Healths, Watched};
use crate::plan::Plan;
use crate::resolve::{self, ResolveError};
use crate::resource::check::check;
use crate::resource::{self, Kind};
use crate::store::{Change, StateStore, StoreError, Stored};

pub use change::ChangeError;
pub use policy::PolicyError;
pub(crate) use requests::origins;
pub use requests::{OpenView, Service};
pub use setting::{AegisPatch, SettingError};

/// Configuration, store and data plane of a running daemon.
pub struct Controller {
    config_path: PathBuf,
    config: Config,
    store: Box<dyn StateStore>,
    dataplane: Box<dyn DataPlane>,
    stored: Stored,
    desired: Desired,
    detached: bool,
    flow_log: Arc<Shared>,
    /// What is stored is not in force yet.
    behind: bool,
    /// What is known of the other servers.
    healths: Healths,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::failed(error.to_string(), error.remedy())
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        Self::failed(error.to_string(), error.remedy())
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::usage(
            error.to_string(),
            "check the path and this user's permissions",
        )
    }
}

impl From<DataPlaneError> for Failure {
    fn from(error: DataPlaneError) -> Self {
        let remedy = error.remedy().unwrap_or_default();
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            reason.push_str(": ");
            reason.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::failed(reason, remedy)
    }
}

impl Controller {
    /// Takes over: applies the resources file if there is one, and puts what the store then says in force.
    ///
    /// # Errors
    /// When file or store are not usable; what was in force stays in force.
    pub fn start(
        config_path: &Path,
        config: Config,
        store: Box<dyn StateStore>,
        dataplane: Box<dyn DataPlane>,
    ) -> Result<(Self, Applied), Failure> {
        let stored = store.load()?;
        let mut controller = Self {
            config_path: config_path.to_owned(),
            config,
            store,
            dataplane,
            stored,
            desired: Desired::default(),
            detached: false,
            flow_log: Arc::default(),
            behind: false,
            healths: Healths::new(),
        };
        let applied = match controller.config.resources.file.clone() {
            Some(file) => controller.apply(&Source::read(&file)?, false)?,
            None => {
                controller.put_in_force()?;
                Applied {
                    applied: true,
                    ..Applied::default()
                }
            }
        };
        Ok((controller, applied))
    }

    /// What is in force.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The configuration in use.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the flow log shares with its writer.
    pub fn flow_log(&self) -> &Arc<Shared> {
        &self.flow_log
    }

    /// Everything stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The data plane.
    pub fn dataplane(&self) -> &dyn DataPlane {
        self.dataplane.as_ref()
    }

    /// The data plane, to be looked after.
    pub fn dataplane_mut(&mut self) -> &mut dyn DataPlane {
        self.dataplane.as_mut()
    }

    /// Whether `egress detach` has taken everything off: the daemon has nothing left to do.
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// Plans a resources file and, unless it is a dry run, applies it.
    pub fn apply(&mut self, source: &Source, dry_run: bool) -> Result<Applied, Failure> {
        let (plan, warnings) = plan_file(source, &self.stored, &self.config)?;
        let mut applied = Applied {
            plan,
            applied: false,
            warnings,
            notes: Vec::new(),
        };
        if dry_run {
            let addresses = resolve::addresses(applied.plan.after(), &self.config);
            self.dataplane.check(&addresses)?;
            return Ok(applied);
        }
        self.commit(applied.plan.changes())?;
        applied.applied = true;
        Ok(applied)
    }

    /// Reads configuration and resources file again, as SIGHUP asks for. All or nothing: on an error everything
    /// stays as it was.
    pub fn reload(&mut self) -> Result<Applied, Failure> {
        let (new, warnings) = Config::load(&self.config_path).map_err(|error| match error {
            ConfigError::Source(error) => error.into(),
            ConfigError::Invalid(found) => {
                Failure::invalid(&self.config_path.display().to_string(), found)
            }
        })?;
        let notes = restart_needed(&self.config, &new);
        let mut config = self.config.clone();
        config.exempt = new.exempt;
        config.timers = new.timers;
        config.flow_log = new.flow_log;
        config.dataplane.refuse = new.dataplane.refuse;
        config.resources = new.resources;
        let before = std::mem::replace(&mut self.config, config);
        match self.reload_resources() {
            Ok(mut applied) => {
                let mut all = warnings;
                all.extend(applied.warnings);
                applied.warnings = all;
                applied.notes.extend(notes);
                Ok(applied)
            }
            Err(failure) => {
                self.config = before;
                Err(failure)
            }
        }
    }

    fn reload_resources(&mut self) -> Result<Applied, Failure> {
        match self.config.resources.file.clone() {
            Some(file) => self.apply(&Source::read(&file)?, false),
            None => {
                self.put_in_force()?;
                Ok(Applied {
                    applied: true,
                    ..Applied::default()
                })
            }
        }
    }

    /// Puts in force what the store holds now; says whether that is something else (CLU-1).
    ///
    /// # Errors
    /// When the store cannot be read, or what it holds cannot be put in force here: what was in force stays so, and
    /// the next call tries again.
    pub fn refresh(&mut self) -> Result<bool, Failure> {
        // Something has changed, whatever comes of asking what.
        let was_behind = std::mem::replace(&mut self.behind, true);
        let stored = self.store.current()?;
        if stored == self.stored && !was_behind {
            self.behind = false;
            return Ok(false);
        }
        // Whatever comes of it, this is what the next change is made to.
        self.stored = stored;
        self.put_in_force()?;
        self.behind = false;
        Ok(true)
    }

    /// Whether what is stored is not in force yet, and could be.
    pub fn is_behind(&self) -> bool {
        self.behind && self.store.trouble().is_none()
    }

    /// What is known of the other servers.
    pub fn healths(&self) -> &Healths {
        &self.healths
    }

    /// Sends new connections where they are to go now that this is known of the other servers (FWD-7).
    ///
    /// # Errors
    /// When that cannot be put in force; the next call tries again.
    pub fn heard(&mut self, healths: Healths) -> Result<(), Failure> {
        let before = std::mem::replace(&mut self.healths, healths);
        self.put_in_force().inspect_err(|_| self.healths = before)
    }

    /// Whom to ask whether they are there.
    pub fn watched(&self) -> Watched {
        let tunnel = self.desired.tunnel.as_ref();
        let tunnel = tunnel.filter(|_| self.config.tunnel.probes);
        Watched {
            own: tunnel.map(|tunnel| tunnel.own),
            others: tunnel
                .iter()
                .flat_map(|tunnel| &tunnel.peers)
                .map(|peer| peer.address)
                .collect(),
        }
    }

    /// Why the configuration cannot be changed now, if it cannot (CLU-2).
    pub fn frozen(&self) -> Option<String> {
        let behind = "what the store holds could not be put in force here (the log says why)";
        let behind = self.behind.then(|| behind.to_owned());
        self.store.trouble().or(behind)
    }

    /// Takes everything off (SAFE-4).
    pub fn detach(&mut self) -> Result<Vec<String>, Failure> {
        let removed = self.dataplane.detach()?;
        self.detached = true;
        Ok(removed)
    }

    /// Commits, reads back and puts in force; undoes the commit when that fails.
    fn commit(&mut self, changes: &[Change]) -> Result<(), Failure> {
        let limits = resolve::limits(&self.config);
        if !changes.is_empty() {
            match self.store.commit(changes, limits) {
                Err(StoreError::Conflict) => {
                    self.refresh()?;
                    return Err(StoreError::Conflict.into());
                }
                other => other?,
            }
        }
        let before = self.stored.clone();
        let failure = match self.store.current() {
            Ok(stored) => {
                self.stored = stored;
                match self.put_in_force() {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                }
            }
            Err(error) => error.into(),
        };
        if let Err(error) = self.store.commit(&undo(&before, changes), limits) {
            tracing::error!(%error, "the store could not be set back after a failed change");
        }
        self.stored = before;
        Err(failure)
    }

    fn put_in_force(&mut self) -> Result<(), Failure> {
        let desired = resolve::resolve_among(
            &self.stored.resources(),
            &self.config,
            &self.stored.numbers,
            &self.healths,
        )?;
        let report = self.dataplane.apply(&desired)?;
        tracing::info!(
            version = report.version,
            changed = report.changed,
            zones = desired.zones.len(),
            pools = desired.pools.len(),
            "configuration in force"
        );
        self.desired = desired;
        self.publish_names(report.version);
        Ok(())
    }

    /// Tells the flow log the names that go with this version in the maps.
    fn publish_names(&self, version: u64) {
        if self.config.flow_log.is_none() {
            return;
        }
        let policies = self.desired.policies.iter();
        self.flow_log.publish(Directory::new(
            &self.stored,
            policies.map(|policy| policy.name.as_str()),
            &self.config.server,
            (version & 1) as u32,
            flow_log::monotonic(),
        ));
    }
}

/// What a resources file would change about `stored`, with its warnings; everything wrong with it is an error.
pub fn plan_file(
    source: &Source,
    stored: &Stored,
    config: &Config,
) -> Result<(Plan, Diagnostics), Failure> {
    let report = Report::new(source);
    let (file, places) = resource::read(&report);
    let (plan, conflicts) = Plan::new(stored, &file);
    for conflict in conflicts {
        let span = places.span(conflict.place).cloned().unwrap_or(0..0);
        report.error(&span, conflict.reason, conflict.remedy);
    }
    check(plan.after(), &places, Some(config), &report);
    if !report.has_errors() {
        let before = stored.resources();
        farewell::warn(&before, &plan, &report);
        realms::warn(&before, &plan, &places, &report);
        take_over::warn(&before, &plan, &places, config, &report);
    }
    let valid = !report.has_errors();
    let found = report.finish();
    if valid {
        Ok((plan, found))
    } else {
        Err(Failure::invalid(source.name(), found))
    }
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
        ("[announce]", running.announce == new.announce),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(section, _)| {
        format!("{section} has changed: that takes effect when the daemon is restarted")
    })
    .collect()
}

#[cfg(test)]
mod tests;
