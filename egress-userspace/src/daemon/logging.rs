//! The flow log, written as the configuration in use says (OBS-4).

use std::sync::Arc;

use crate::config::FlowLog;
use crate::controller::Service;
use crate::dataplane::FlowRecords;
use crate::dataplane::api::DataPlaneError;
use crate::flow_log::Writing;

/// The log, or that there is none.
pub(super) struct Logging {
    records: FlowRecords,
    config: Option<FlowLog>,
    writing: Option<Writing>,
}

impl Logging {
    pub(super) const fn new(records: FlowRecords) -> Self {
        Self {
            records,
            config: None,
            writing: None,
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
        if self.config != config {
            // First it ends: the ring has one reader.
            self.writing = None;
            self.config = config;
        }
        if let Some(config) = self.config.as_ref().filter(|_| self.writing.is_none()) {
            let ring = self.records.open()?;
            let writing = Writing::start(ring, config, shared)
                .map_err(|error| DataPlaneError::failed("beginning the flow log", error))?;
            self.writing = Some(writing);
        }
        Ok(Vec::new())
    }
}
