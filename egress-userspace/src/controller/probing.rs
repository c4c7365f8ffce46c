//! Probes (POOL-10): asked for by `egress probe`, or required before a zone is enabled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::Writer;
use super::requests::{Item, Service, gone, value};
use super::setting::SettingError;
use crate::config::Config;
use crate::control::Failure;
use crate::dataplane::Probes;
use crate::inventory::find_pool;
use crate::probe::{self, Each, MAX_PATIENCE, Permit, Task};

/// How often a change is tried whose conditions change while they are probed.
const ATTEMPTS: usize = 3;

/// What carries probes out.
pub(super) type RunProbes = fn(&Config, &Task, Each<'_>) -> Result<(), Failure>;

/// Carries probes out, by the data plane that is pinned.
pub(super) fn run_probes(config: &Config, task: &Task, each: Each<'_>) -> Result<(), Failure> {
    probe::run(&Probes::open(&config.dataplane)?, task, each)
}

impl Service {
    /// Connects to an origin from every address of a pool.
    pub(super) fn probe(
        &self,
        origin: SocketAddr,
        pool: &str,
        seconds: u64,
        item: Item<'_>,
    ) -> Result<Value, Failure> {
        let patience = Duration::from_secs(seconds);
        if patience.is_zero() || patience > MAX_PATIENCE {
            return Err(Failure::usage(
                format!("an origin is given 1 to {} seconds", MAX_PATIENCE.as_secs()),
                "--timeout 5",
            ));
        }
        let (config, task) = {
            let (stored, config) = {
                let controller = self.controller();
                (
                    Arc::clone(controller.stored()),
                    Arc::clone(controller.config()),
                )
            };
            let resources = stored.resources();
            let pool = find_pool(&resources, pool)?;
            let number = stored.numbers.pools.get(&pool.id).copied();
            let task = Task {
                pool: number.unwrap_or(0),
                name: pool.id.clone(),
                origins: vec![origin],
                patience,
                enough: usize::MAX,
            };
            (config, task)
        };
        let mut broken = None;
        (self.run_probes)(&config, &task, &mut |record| match value(&record)
            .and_then(|value| item(value).map_err(gone))
        {
            Ok(()) => true,
            Err(failure) => {
                broken = Some(failure);
                false
            }
        })?;
        broken.map_or(Ok(Value::Null), Err)
    }

    /// Changes a setting; where the zone requires probes for that, only after all of them have succeeded.
    ///
    /// They are made while nobody has the store, and what is needed may be something else afterwards: then they
    /// are made again.
    ///
    /// # Errors
    /// As the change; [`SettingError::NotLetIn`] with who does not let which address in.
    pub(crate) fn permitted<T>(
        &self,
        mut permit: Permit,
        mut change: impl FnMut(&mut Writer<'_>, &Permit) -> Result<T, SettingError>,
    ) -> Result<T, SettingError> {
        for _ in 0..ATTEMPTS {
            let (need, config) = {
                let mut writer = self.writer().map_err(SettingError::Failed)?;
                match change(&mut writer, &permit) {
                    Err(SettingError::Unprobed(need)) => (need, Arc::clone(&writer.config)),
                    done => return done,
                }
            };
            let mut records = Vec::new();
            let made = (self.run_probes)(&config, &need.task(), &mut |record| {
                records.push(record);
                true
            });
            made.and_then(|()| need.judge(&records))
                .map_err(SettingError::NotLetIn)?;
            permit = Permit::Probed(*need);
        }
        Err(SettingError::Failed(Failure::failed(
            "the pool changes while it is probed; nothing was changed",
            "try again",
        )))
    }
}
