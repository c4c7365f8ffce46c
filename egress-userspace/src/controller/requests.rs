//! Requests of the control socket, answered by a [`Controller`].

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockResult};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::probing::{RunProbes, run_probes};
use super::pulse::Signs;
use super::turns::Turns;
use super::{Controller, Writer, impostor};
use crate::config::Config;
use crate::control::line::LineError;
use crate::control::protocol::{Applied, Cause};
use crate::control::{Failure, Handler, Request};
use crate::dataplane::api::{DataPlane, DataPlaneError, DataPlaneView, Names, OriginRecord};
use crate::diagnostic::Source;
use crate::explain::{Live, explain};
use crate::inventory::{self, Status};
use crate::probe::Permit;
use crate::store::{StateStore, Stored};

/// Opens a second, read-only view of the data plane: long lists are read from it without the daemon's lock, so
/// that a slow reader holds up nobody.
pub type OpenView = fn(&Config, Names) -> Result<Box<dyn DataPlaneView>, DataPlaneError>;

/// How long somebody who wants to change something waits for those before.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the daemon waits for the turn to follow the others: longer than any change takes.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(120);

/// What serves the control socket.
pub struct Service {
    config_path: PathBuf,
    controller: Mutex<Controller>,
    turns: Turns,
    pub(super) signs: Arc<Signs>,
    open_view: OpenView,
    pub(super) run_probes: RunProbes,
}

impl Service {
    /// Takes over: applies the resources file if there is one, and puts what the store then says in force.
    ///
    /// # Errors
    /// When file or store are not usable; what was in force stays in force.
    pub fn start(
        config_path: &Path,
        config: Config,
        store: Box<dyn StateStore>,
        dataplane: Box<dyn DataPlane>,
        open_view: OpenView,
    ) -> Result<(Self, Applied), Failure> {
        let stored = store.load()?;
        impostor::may_start(&stored, dataplane.as_ref())?;
        let signs = Arc::new(Signs::new(store.pulse(), dataplane.deadline()));
        let trouble = store.trouble();
        let mut controller =
            Controller::new(config, stored, trouble, dataplane, Arc::clone(&signs));
        controller.keep_bound()?;
        controller.stop_what_may_be_others(&controller.in_force)?;
        let service = Self {
            config_path: config_path.to_owned(),
            controller: Mutex::new(controller),
            signs,
            turns: Turns::new(store),
            open_view,
            run_probes,
        };
        let applied = {
            let mut writer = service.writer()?;
            let config = Arc::clone(&writer.config);
            // After a boot nothing is in force: a file that is wrong by now keeps nothing bound that was.
            writer.bind(&config)?;
            match writer.take_over(&config) {
                Ok(applied) => applied,
                // Only a daemon that runs can be told what is to be bound.
                Err(failure) if writer.keeps_bound(&failure) => Applied::default(),
                Err(failure) => return Err(failure),
            }
        };
        Ok((service, applied))
    }

    /// The turn to change something, once those before have had theirs.
    ///
    /// # Errors
    /// When that takes too long: a shared store is slow.
    pub fn writer(&self) -> Result<Writer<'_>, Failure> {
        self.writer_within(TURN_PATIENCE)
    }

    fn writer_within(&self, patience: Duration) -> Result<Writer<'_>, Failure> {
        let turn = self.turns.take(patience).ok_or_else(|| {
            Failure::failed(
                format!(
                    "other changes have been under way for {} seconds; nothing was changed",
                    patience.as_secs()
                ),
                "try again; `egress status` says whether the store is slow or gone",
            )
            .because_of(Cause::Unavailable)
        })?;
        Ok(Writer::new(self, turn))
    }

    /// Everything stored.
    pub fn stored(&self) -> Arc<Stored> {
        Arc::clone(self.controller().stored())
    }

    /// Reads configuration and resources file again, as SIGHUP asks for. All or nothing: on an error everything
    /// stays as it was.
    ///
    /// # Errors
    /// What is wrong with them, or why they could not be put in force.
    pub fn reload(&self) -> Result<Applied, Failure> {
        self.writer()?.reload(&self.config_path)
    }

    /// Puts in force what others have changed; says whether they have (CLU-1).
    ///
    /// # Errors
    /// What kept it from that; it is tried again.
    pub fn follow(&self) -> Result<bool, Failure> {
        if self.controller().is_detached() {
            return Ok(false);
        }
        let mut writer = self
            .writer_within(FOLLOW_PATIENCE)
            .inspect_err(|failure| self.controller().has_news(failure.reason.clone()))?;
        writer.refresh()
    }

    /// Passes on what is to leave this server, and takes what comes (CLU-3).
    ///
    /// # Errors
    /// What kept it from that; it is tried again.
    pub fn hand_over(&self) -> Result<(), Failure> {
        if self.controller().is_detached() {
            return Ok(());
        }
        self.writer()?.hand_over()
    }

    /// The controller, for a moment: whoever waits for the store has a [`Writer`] instead.
    pub fn controller(&self) -> MutexGuard<'_, Controller> {
        // A panic elsewhere leaves the controller as it was before or after a whole step: go on with it.
        self.controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller, if nobody has it now.
    pub(super) fn try_controller(&self) -> TryLockResult<MutexGuard<'_, Controller>> {
        self.controller.try_lock()
    }

    /// A view of the data plane, with the names of now.
    pub(crate) fn view(&self) -> Result<Box<dyn DataPlaneView>, Failure> {
        let (config, names) = {
            let controller = self.controller();
            (Arc::clone(controller.config()), controller.stored().names())
        };
        Ok((self.open_view)(&config, names)?)
    }
}

pub(super) type Item<'a> = &'a mut dyn FnMut(Value) -> Result<(), LineError>;

impl Handler for Service {
    fn handle(&self, request: Request, item: Item<'_>) -> Result<Value, Failure> {
        match request {
            Request::Status => {
                let controller = self.controller();
                let dataplane = controller.status()?;
                let desired = controller.desired();
                let status = Status {
                    frozen: controller.frozen(),
                    behind: controller.behind().map(str::to_owned),
                    stuck: controller.stuck().map(str::to_owned),
                    servers: controller.healths().clone(),
                    ..Status::new(dataplane, Some(std::process::id()))
                };
                value(&status.without(&desired.withdrawn, desired.addresses()))
            }
            Request::Flows { filter } => {
                let filter = inventory::flow_filter(&self.stored(), &filter)?;
                flows(self.view()?.as_ref(), &filter, item)
            }
            Request::Origins { filter } => {
                let filter = inventory::origin_filter(&self.stored(), &filter)?;
                list(origins(self.view()?.as_ref(), &filter)?, item)
            }
            Request::Pools { filter } => {
                let live = self.view()?.pools()?;
                let pools = inventory::pools(&self.stored(), &live, &filter)?;
                list(pools, item)
            }
            Request::Zones { filter } => {
                let zones = inventory::zones(&self.stored(), &filter)?;
                list(zones, item)
            }
            Request::Apply {
                file,
                text,
                dry_run,
            } => value(&self.writer()?.apply(&Source::new(file, text), dry_run)?),
            Request::ZoneSet {
                zone,
                enabled,
                pool,
                force,
            } => {
                let permit = if force { Permit::Forced } else { Permit::None };
                value(&self.permitted(permit, |writer, permit| {
                    writer.zone_set(&zone, enabled, pool.as_deref(), permit)
                })?)
            }
            Request::Probe {
                origin,
                pool,
                seconds,
            } => self.probe(origin, &pool, seconds, item),
            Request::Drain { subject, reset } => value(&self.writer()?.drain(&subject, reset)?),
            Request::Undrain { subject } => value(&self.writer()?.undrain(&subject)?),
            Request::Servers => {
                let (stored, healths, name) = {
                    let controller = self.controller();
                    let name = controller.config().server.name.clone();
                    (
                        Arc::clone(controller.stored()),
                        controller.healths().clone(),
                        name,
                    )
                };
                list(inventory::servers(&stored, &healths, &name), item)
            }
            Request::ServerDrain { server } => value(&self.writer()?.drain_server(&server)?),
            Request::ServerUndrain { server } => value(&self.writer()?.undrain_server(&server)?),
            Request::ServerForget { server, force } => {
                value(&self.writer()?.forget_server(&server, force)?)
            }
            Request::Why { query } => {
                if let Some(cgroup) = &query.cgroup {
                    inventory::require_cgroup(cgroup)?;
                }
                let view = self.view()?;
                let controller = self.controller();
                value(&explain(controller.desired(), &query, &Live(view.as_ref())))
            }
            Request::Reload => value(&self.reload()?),
            Request::Detach => value(&self.controller().detach()?),
        }
    }
}

/// Connection counts in a stable order: by egress IP, origin, protocol.
pub(crate) fn origins(
    view: &dyn DataPlaneView,
    filter: &crate::dataplane::api::OriginFilter,
) -> Result<Vec<OriginRecord>, Failure> {
    let mut records = view.origins(filter)?;
    let key = |record: &OriginRecord| -> (IpAddr, _, _) {
        (record.egress_ip, record.origin, record.protocol)
    };
    records.sort_by_key(key);
    Ok(records)
}

fn flows(
    view: &dyn DataPlaneView,
    filter: &crate::dataplane::api::FlowFilter,
    item: Item<'_>,
) -> Result<Value, Failure> {
    let mut broken = None;
    view.flows(
        filter,
        &mut |flow| match value(&flow).and_then(|value| item(value).map_err(gone)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                broken = Some(failure);
                ControlFlow::Break(())
            }
        },
    )?;
    broken.map_or(Ok(Value::Null), Err)
}

fn list<T: Serialize>(records: Vec<T>, item: Item<'_>) -> Result<Value, Failure> {
    for record in records {
        item(value(&record)?).map_err(gone)?;
    }
    Ok(Value::Null)
}

pub(super) fn value<T: Serialize>(answer: &T) -> Result<Value, Failure> {
    serde_json::to_value(answer)
        .map_err(|error| Failure::failed(format!("the answer cannot be written: {error}"), ""))
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn gone(error: LineError) -> Failure {
    Failure::failed(format!("the client is gone: {error}"), "")
}
