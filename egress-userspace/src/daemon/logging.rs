//! The flow log, written as the configuration in use says (OBS-4).

use std::sync::Arc;

use crate::control::Failure;
use crate::controller::Service;
use crate::dataplane::FlowRecords;
use crate::dataplane::api::DataPlaneError;
use crate::flow_log::Turn;

/// The log, or that there is none.
pub(super) struct Logging {
    records: FlowRecords,
    turn: Turn,
}

impl From<Failure> for DataPlaneError {
    fn from(failure: Failure) -> Self {
        Self::failed("beginning the flow log", failure)
    }
}

impl Logging {
    pub(super) fn new(records: FlowRecords) -> Self {
        Self {
            records,
            turn: Turn::default(),
        }
    }

    /// Does what the configuration says by now.
    ///
    /// # Errors
    /// The log cannot be begun; it is tried again the next time.
    pub(super) fn follow(&mut self, service: &Service) -> Result<Vec<String>, DataPlaneError> {
        let (config, shared) = {
            let controller = service.controller();
            (
                controller.config().flow_log.clone(),
                Arc::clone(controller.flow_log()),
            )
        };
        self.turn.follow(config, &shared, || self.records.open())
    }
}
