//! A data plane of pinned maps with one flow.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;

use super::super::Backend;
use crate::config::Config;
use crate::control::Failure;
use crate::dataplane::api::{
    DataPlaneError, DataPlaneStatus, DataPlaneView, FlowFilter, FlowKey, FlowRecord, HookStatus,
    Meter, Names, OriginFilter, OriginRecord, PoolLive, Protocol, Traveller, UsageLook, Way,
    utilization,
};
use crate::resource::Address;

/// An address of the host.
pub(super) const OWN: &str = "192.0.2.99";

/// Pinned maps with one flow, or none at all.
pub(super) struct Pinned(pub(super) bool);

struct View(Names);

impl DataPlaneView for View {
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        let hook = HookStatus {
            hook: "uplink_egress".into(),
            interface: "up0".into(),
            kind: "tcx".into(),
            program_id: Some(7),
            in_place: true,
        };
        Ok(DataPlaneStatus {
            hooks: vec![hook],
            guard: true,
            configured: true,
            ..DataPlaneStatus::default()
        })
    }

    fn flows(
        &self,
        filter: &FlowFilter,
        each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError> {
        if filter.zone.is_none_or(|zone| zone == 1) {
            let _ = each(FlowRecord {
                protocol: Protocol::Tcp,
                inside: "10.1.0.2:4000".parse().unwrap(),
                egress: "192.0.2.1:4000".parse().unwrap(),
                origin: "203.0.113.5:443".parse().unwrap(),
                zone: self.0.zone(1),
                pool: self.0.pool(1),
                state: "established".into(),
                age_s: 1,
                idle_s: 0,
                packets_out: 1,
                packets_in: 1,
                bytes_out: 60,
                bytes_in: 60,
                path: "local".into(),
            });
        }
        Ok(())
    }

    fn flow(&self, _: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError> {
        Ok(None)
    }

    fn origins(&self, filter: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError> {
        let record = |ip: &str| OriginRecord {
            egress_ip: ip.parse().unwrap(),
            origin: "203.0.113.5:443".parse().unwrap(),
            protocol: Protocol::Tcp,
            active: 1,
            peak: 2,
            capacity: 40_000,
            utilization: utilization(1, 40_000),
            refused: 0,
        };
        let all = [record("192.0.2.9"), record("192.0.2.1")];
        Ok(all
            .into_iter()
            .filter(|r| filter.matches(r.egress_ip, r.origin, r.protocol))
            .collect())
    }

    fn usage(&self) -> Result<UsageLook, DataPlaneError> {
        Ok(UsageLook::default())
    }

    fn meters(&self, _: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn way(&self, _: &Traveller) -> Result<Way, DataPlaneError> {
        Ok(Way::default())
    }

    fn candidate_order(
        &self,
        _: u16,
        _: IpAddr,
        _: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        Ok(Vec::new())
    }
}

impl Backend for Pinned {
    fn open_view(
        &self,
        config: &Config,
        names: Names,
    ) -> Result<Box<dyn DataPlaneView>, DataPlaneError> {
        if self.0 {
            Ok(Box::new(View(names)))
        } else {
            Err(DataPlaneError::Absent {
                pin: config.dataplane.pin.clone(),
            })
        }
    }

    fn check_pins(&self, config: &Config) -> Result<(), DataPlaneError> {
        if self.0 {
            return Ok(());
        }
        Err(DataPlaneError::Refused {
            reason: format!("{} is hidden", config.dataplane.pin.display()),
            remedy: "enter with nsenter".into(),
        })
    }

    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError> {
        match addresses.iter().find(|one| one.to_string() == OWN) {
            None => Ok(()),
            Some(address) => Err(DataPlaneError::Refused {
                reason: format!("{address} is configured on interface up0 of this host"),
                remedy: "remove it".into(),
            }),
        }
    }

    fn detach(&self, _: &Config) -> Result<Vec<String>, DataPlaneError> {
        Ok(vec!["the guard".into()])
    }

    fn run(&self, _: &Path, _: Config) -> Result<(), Failure> {
        Err(Failure::failed("not here", "elsewhere"))
    }
}
