//! The daemon's judgement: every request becomes a change of the store and of the data plane together, or of
//! neither (SAFE-5).
//!
//! The order is always: read, plan, check the whole, commit, put in force; when putting in force fails, the
//! commit is undone. A daemon that dies in between finds the commit at its next start and puts it in force then.
//!
//! Two locks. A [`Writer`] has the store, for as long as that takes: what is stored and how it is put in force changes in
//! its hands only. The [`Controller`] is locked for moments, by everybody, and by nobody who waits for the store: looking after
//! hooks and guard, following the other servers' health and answering go on whatever a shared store does. Who needs
//! both takes the store first.

mod budget;
mod change;
mod courtesy;
mod draining;
mod farewell;
mod impostor;
mod policy;
mod probing;
mod pulse;
mod realms;
mod requests;
mod servers;
mod setting;
mod take_over;
mod turns;
mod writer;

use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::control::protocol::{Cause, Failure};
use crate::dataplane::api::{DataPlane, DataPlaneError};
use crate::desired::Desired;
use crate::diagnostic::{Diagnostics, Report, Source, SourceError};
use crate::flow_log::{self, Directory, Shared};
use crate::liveness::{Healths, Watched};
use crate::ownership::Keeper;
use crate::plan::Plan;
use crate::resolve::{self, ResolveError};
use crate::resource;
use crate::resource::check::check;
use crate::store::{StoreError, Stored, Trouble};

pub use change::ChangeError;
pub use policy::PolicyError;
use pulse::Signs;
pub(crate) use requests::origins;
pub use requests::{OpenView, Service};
pub use setting::{AegisPatch, SettingError};
pub use writer::Writer;

/// What is stored and in force, and the data plane, of a running daemon.
pub struct Controller {
    /// How it is put in force.
    config: Arc<Config>,
    dataplane: Box<dyn DataPlane>,
    /// What the store held when it was asked last: what changes are made to.
    stored: Arc<Stored>,
    /// What of that is in force.
    in_force: Arc<Stored>,
    desired: Desired,
    detached: bool,
    flow_log: Arc<Shared>,
    /// Why what the store holds is not in force here, if it is not.
    behind: Option<Behind>,
    /// Why an empty store is not put in force, while it is not: the data plane that was taken over binds zones.
    kept: Option<String>,
    /// Why the store cannot be had, if it cannot.
    trouble: Trouble,
    /// What is known of the other servers.
    healths: Healths,
    /// What this server is to pass on to others (CLU-3).
    keeper: Keeper,
    /// Slices could not be divided as they are to be.
    unclaimed: bool,
    /// Before when what is to be passed on is not looked at again.
    next_look: Option<Instant>,
    /// Why what is to be passed on is not, if it is not.
    stuck: Option<String>,
    /// What the data plane uses of its slices goes by this (CLU-3).
    signs: Arc<Signs>,
    /// Whether what is in force was worked out while it uses nothing of them.
    lapsed: bool,
}

/// Why what the store holds is not in force.
enum Behind {
    /// It was not answered what that is.
    Unread(String),
    /// It could not be put in force here.
    Refused(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let cause = match &error {
            StoreError::Unavailable { .. } => Cause::Unavailable,
            StoreError::Unknown { .. } => Cause::Unknown,
            StoreError::Conflict => Cause::Conflict,
            _ => Cause::Other,
        };
        Self {
            usage: matches!(error, StoreError::TooLarge { .. }),
            ..Self::failed(error.to_string(), error.remedy()).because_of(cause)
        }
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
    fn new(
        config: Config,
        stored: Stored,
        trouble: Trouble,
        dataplane: Box<dyn DataPlane>,
        signs: Arc<Signs>,
    ) -> Self {
        let stored = Arc::new(stored);
        Self {
            config: Arc::new(config),
            dataplane,
            in_force: Arc::clone(&stored),
            stored,
            desired: Desired::default(),
            detached: false,
            flow_log: Arc::default(),
            behind: None,
            kept: None,
            trouble,
            healths: Healths::new(),
            keeper: Keeper::default(),
            unclaimed: false,
            next_look: None,
            stuck: None,
            signs,
            lapsed: false,
        }
    }

    /// What is in force.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The configuration in use.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// What the flow log shares with its writer.
    pub fn flow_log(&self) -> &Arc<Shared> {
        &self.flow_log
    }

    /// Everything stored.
    pub fn stored(&self) -> &Arc<Stored> {
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

    /// Why what is stored cannot be put in force here, if it cannot: what was in force before still is.
    pub fn behind(&self) -> Option<&str> {
        match &self.behind {
            Some(Behind::Refused(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Whether what is stored is not in force yet, and could be.
    pub fn is_behind(&self) -> bool {
        self.behind.is_some() && (self.trouble)().is_none()
    }

    /// Why the configuration cannot be changed now, if it cannot (CLU-2).
    pub fn frozen(&self) -> Option<String> {
        (self.trouble)().or_else(|| match &self.behind {
            Some(Behind::Unread(reason)) => Some(reason.clone()),
            _ => None,
        })
    }

    /// Why slices that are to leave this server do not, but for connections that are left in them (CLU-3).
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// What is known of the other servers.
    pub fn healths(&self) -> &Healths {
        &self.healths
    }

    /// Sends new connections where they are to go now that this is known of the other servers (FWD-7). That goes by
    /// what was put in force last, also where something else is stored by now.
    ///
    /// # Errors
    /// When that cannot be put in force; the next call tries again.
    pub fn heard(&mut self, healths: Healths) -> Result<(), Failure> {
        let (stored, config) = (Arc::clone(&self.in_force), Arc::clone(&self.config));
        self.put_in_force(&stored, &config, healths)
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

    /// Takes everything off (SAFE-4).
    pub fn detach(&mut self) -> Result<Vec<String>, Failure> {
        let removed = self.dataplane.detach()?;
        self.detached = true;
        self.note_promise()?;
        Ok(removed)
    }

    /// Something may have changed that could not be read yet, for this reason: it is asked for again.
    fn has_news(&mut self, reason: String) {
        self.behind.get_or_insert(Behind::Unread(reason));
    }

    /// Puts all of this in force, or leaves in force what is.
    fn put_in_force(
        &mut self,
        stored: &Arc<Stored>,
        config: &Arc<Config>,
        healths: Healths,
    ) -> Result<(), Failure> {
        if self.detached {
            return Err(Failure::failed(
                "everything has been taken off (`egress detach`), and the daemon ends",
                "start it again",
            ));
        }
        if config.handover.takeover_after.is_some() {
            self.signs.check()?;
        }
        let name = &config.server.name;
        let before = self.in_force.ownership.as_ref();
        if before.is_some_and(|all| all.is_another_hosts(name)) {
            self.stop_what_may_be_others(stored)?;
        }
        let lapsed = self.has_lapsed();
        let mut resources = stored.resources();
        if let Some(ownership) = resources.ownership.as_mut().filter(|_| lapsed) {
            ownership.set_aside(name);
        }
        let desired = resolve::resolve_among(&resources, config, &stored.numbers, &healths)?;
        self.allows(&desired)?;
        let report = self.dataplane.apply(&desired)?;
        tracing::info!(
            changed = report.changed,
            zones = desired.zones.len(),
            pools = desired.pools.len(),
            "configuration in force"
        );
        self.kept = None;
        self.desired = desired;
        self.in_force = Arc::clone(stored);
        self.config = Arc::clone(config);
        self.healths = healths;
        self.lapsed = lapsed;
        self.note_ownership();
        self.publish_names(report.version);
        Ok(())
    }

    /// Keeps in force what was taken over where the store it came from is empty: lost, wiped, or another one. Nobody asked
    /// for all zones to be unbound (SAFE-1, SAFE-5).
    fn keep_bound(&mut self) -> Result<(), DataPlaneError> {
        let bound = self.dataplane.bound()?;
        if bound > 0 && self.stored.objects.is_empty() {
            self.kept = Some(format!(
                "the store is empty, and the data plane that was taken over binds {bound} zones, which stay bound"
            ));
        }
        Ok(())
    }

    /// Whether this may be put in force.
    fn allows(&self, desired: &Desired) -> Result<(), Failure> {
        match &self.kept {
            Some(reason) if !desired.zones.iter().any(|zone| zone.enabled) => Err(Failure::failed(
                reason.clone(),
                "restore the store and start again; or `egress apply -f FILE` with all that is to be in force, or with \
                 `account = []` alone to let go of everything",
            )),
            _ => Ok(()),
        }
    }

    /// Tells the flow log the names that go with this version in the maps.
    fn publish_names(&self, version: u64) {
        if self.config.flow_log.is_none() {
            return;
        }
        let policies = self.desired.policies.iter();
        self.flow_log.publish(Directory::new(
            &self.in_force,
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

#[cfg(test)]
mod tests;
