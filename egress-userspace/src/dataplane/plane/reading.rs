//! The daemon reads as everybody does: through a [`View`](crate::dataplane::View).

use std::net::IpAddr;
use std::ops::ControlFlow;

use super::Plane;
use crate::dataplane::api::{
    DataPlaneError, DataPlaneStatus, DataPlaneView, FlowFilter, FlowKey, FlowRecord, Meter,
    OriginFilter, OriginRecord, PoolLive, Traveller, UsageLook, Way,
};

impl DataPlaneView for Plane {
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        self.view.status()
    }

    fn flows(
        &self,
        filter: &FlowFilter,
        each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError> {
        self.view.flows(filter, each)
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError> {
        self.view.flow(key)
    }

    fn origins(&self, filter: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError> {
        self.view.origins(filter)
    }

    fn usage(&self) -> Result<UsageLook, DataPlaneError> {
        self.view.usage()
    }

    fn meters(&self, each: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
        self.view.meters(each)
    }

    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        self.view.pools()
    }

    fn candidate_order(
        &self,
        pool: u16,
        inside: IpAddr,
        realm: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        self.view.candidate_order(pool, inside, realm)
    }

    fn way(&self, traveller: &Traveller) -> Result<Way, DataPlaneError> {
        self.view.way(traveller)
    }
}
