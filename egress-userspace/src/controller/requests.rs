//! Requests of the control socket, answered by a [`Controller`].

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;

use super::Controller;
use super::probing::{RunProbes, run_probes};
use crate::config::Config;
use crate::control::line::LineError;
use crate::control::{Failure, Filter, Handler, Request};
use crate::dataplane::api::{DataPlaneError, DataPlaneView, Names, OriginRecord};
use crate::diagnostic::Source;
use crate::explain::{Live, explain};
use crate::inventory::{self, Status};
use crate::probe::Permit;

/// Opens a second, read-only view of the data plane: long lists are read from it without the daemon's lock, so
/// that a slow reader holds up nobody.
pub type OpenView = fn(&Config, Names) -> Result<Box<dyn DataPlaneView>, DataPlaneError>;

/// What serves the control socket.
pub struct Service {
    controller: Mutex<Controller>,
    open_view: OpenView,
    pub(super) run_probes: RunProbes,
}

impl Service {
    /// Serves with this controller.
    pub fn new(controller: Controller, open_view: OpenView) -> Self {
        Self {
            controller: Mutex::new(controller),
            open_view,
            run_probes,
        }
    }

    /// The controller, once nobody else has it.
    pub fn controller(&self) -> MutexGuard<'_, Controller> {
        // A panic elsewhere leaves the controller as it was before or after a whole step: go on with it.
        self.controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A view of the data plane, with the names of now.
    pub(crate) fn view(&self) -> Result<Box<dyn DataPlaneView>, Failure> {
        let (config, names) = {
            let controller = self.controller();
            (controller.config().clone(), controller.stored().names())
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
                let dataplane = controller.dataplane().status()?;
                value(&Status {
                    frozen: controller.frozen(),
                    servers: controller.healths().clone(),
                    ..Status::new(dataplane, Some(std::process::id()))
                })
            }
            Request::Flows { filter } => {
                let filter = inventory::flow_filter(self.controller().stored(), &filter)?;
                flows(self.view()?.as_ref(), &filter, item)
            }
            Request::Origins { filter } => {
                let filter = inventory::origin_filter(self.controller().stored(), &filter)?;
                list(origins(self.view()?.as_ref(), &filter)?, item)
            }
            Request::Pools { filter } => {
                let live = self.view()?.pools()?;
                let pools = inventory::pools(self.controller().stored(), &live, &filter)?;
                list(pools, item)
            }
            Request::Zones { filter } => {
                let zones = zones(&self.controller(), &filter)?;
                list(zones, item)
            }
            Request::Apply {
                file,
                text,
                dry_run,
            } => value(&self.controller().apply(&Source::new(file, text), dry_run)?),
            Request::ZoneSet {
                zone,
                enabled,
                pool,
                force,
            } => {
                let permit = if force { Permit::Forced } else { Permit::None };
                value(&self.permitted(permit, |controller, permit| {
                    controller.zone_set(&zone, enabled, pool.as_deref(), permit)
                })?)
            }
            Request::Probe {
                origin,
                pool,
                seconds,
            } => self.probe(origin, &pool, seconds, item),
            Request::Drain { subject, reset } => value(&self.controller().drain(&subject, reset)?),
            Request::Undrain { subject } => value(&self.controller().undrain(&subject)?),
            Request::Why { query } => {
                let view = self.view()?;
                let controller = self.controller();
                value(&explain(controller.desired(), &query, &Live(view.as_ref())))
            }
            Request::Reload => value(&self.controller().reload()?),
            Request::Detach => value(&self.controller().detach()?),
        }
    }
}

fn zones(controller: &Controller, filter: &Filter) -> Result<Vec<inventory::ZoneRecord>, Failure> {
    inventory::zones(controller.stored(), filter)
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
