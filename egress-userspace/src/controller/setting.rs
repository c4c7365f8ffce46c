//! A zone's setting `aegis` (ZONE-1): who may change it, and into what.

use super::Writer;
use crate::control::protocol::Failure;
use crate::inventory::{ZoneRecord, find_pool, find_zone, zone_record};
use crate::probe::{Need, Permit};
use crate::resource::check::eligible;
use crate::resource::{Aegis, Object, Owner, Pool, Resources, Setting, Zone};
use crate::store::Change;

/// Why a setting was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such zone.
    #[error("{0}")]
    NoZone(Failure),
    /// The resources file says what it is.
    #[error("{0}")]
    FileOwned(Failure),
    /// It may not become what was asked for.
    #[error("{0}")]
    Invalid(Failure),
    /// Origins have to let the pool in before, and it is not known whether they do (POOL-10).
    #[error("zone {} requires probes before it is enabled", .0.zone)]
    Unprobed(Box<Need>),
    /// An origin that the zone requires to does not let the pool in (POOL-10).
    #[error("{0}")]
    NotLetIn(Failure),
    /// It may, but the change did not work, and was undone.
    #[error("{0}")]
    Failed(Failure),
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        match error {
            // Only until it has been probed.
            SettingError::Unprobed(_) => Self::failed(error.to_string(), "try again"),
            SettingError::NoZone(failure)
            | SettingError::FileOwned(failure)
            | SettingError::Invalid(failure)
            | SettingError::NotLetIn(failure)
            | SettingError::Failed(failure) => failure,
        }
    }
}

/// A merge patch of the setting (RFC 7396): absent keys stay, `Some(None)` takes a key away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AegisPatch {
    /// On or off; taken away, off.
    pub enabled: Option<Option<bool>>,
    /// The pool, by id.
    pub pool_id: Option<Option<String>>,
}

impl Writer<'_> {
    /// Changes a zone's setting (ZONE-1). Without `pool` the zone keeps the one it has.
    pub fn zone_set(
        &mut self,
        zone: &str,
        enabled: bool,
        pool: Option<&str>,
        permit: &Permit,
    ) -> Result<ZoneRecord, SettingError> {
        let resources = self.stored.resources();
        let zone = find_zone(&resources, zone).map_err(SettingError::NoZone)?;
        let before = resources.aegis(zone);
        let aegis = Aegis {
            enabled,
            pool_id: pool.map(str::to_owned).or(before.pool_id),
        };
        self.put_aegis(&zone.id, &aegis, permit)?;
        let resources = self.stored.resources();
        let zone = find_zone(&resources, &zone.id).map_err(SettingError::NoZone)?;
        Ok(zone_record(&self.stored, &resources, zone))
    }

    /// Merges a patch into the setting of the zone with this id. A pool that is new to the zone must be one of those
    /// that `may_use` lets through.
    ///
    /// # Errors
    /// Which kind of mistake it was; the setting is then as before.
    pub fn patch_aegis(
        &mut self,
        zone: &str,
        patch: &AegisPatch,
        permit: &Permit,
        may_use: impl Fn(&Resources, &Zone, &Pool) -> bool,
    ) -> Result<(), SettingError> {
        let resources = self.stored.resources();
        let found = find_zone(&resources, zone).map_err(SettingError::NoZone)?;
        let mut aegis = resources.aegis(found);
        if let Some(enabled) = patch.enabled {
            aegis.enabled = enabled.unwrap_or(false);
        }
        if let Some(pool_id) = &patch.pool_id {
            let new = pool_id
                .as_ref()
                .filter(|id| aegis.pool_id.as_ref() != Some(id));
            if let Some(id) = new {
                let pool = resources.pools.iter().find(|pool| pool.id == *id);
                if !pool.is_some_and(|pool| may_use(&resources, found, pool)) {
                    return Err(SettingError::Invalid(Failure::usage(
                        format!("there is no pool {id} that this token may use"),
                        "ask the operator for the pool's id",
                    )));
                }
            }
            aegis.pool_id.clone_from(pool_id);
        }
        self.put_aegis(zone, &aegis, permit)
    }

    fn put_aegis(
        &mut self,
        zone: &str,
        aegis: &Aegis,
        permit: &Permit,
    ) -> Result<(), SettingError> {
        let resources = self.stored.resources();
        let zone = find_zone(&resources, zone).map_err(SettingError::NoZone)?;
        if zone.aegis.is_some() {
            return Err(SettingError::FileOwned(Failure::failed(
                format!(
                    "the setting of zone {} belongs to the resources file",
                    zone.name
                ),
                "change [zone.aegis] there and run `egress apply -f FILE`; or remove that section, which leaves \
                 the setting to API and command line",
            )));
        }
        let pool = match aegis.pool_id.as_deref() {
            Some(id) if resources.pool(id).is_none() && is_remembered(&resources, zone, id) => {
                if aegis.enabled {
                    return Err(SettingError::Invalid(Failure::usage(
                        format!("pool {id}, which zone {} had, is gone", zone.name),
                        format!("egress zone enable {} --pool POOL", zone.name),
                    )));
                }
                // What is off needs no pool: this one is forgotten.
                None
            }
            Some(id) => Some(find_pool(&resources, id).map_err(SettingError::Invalid)?),
            None => None,
        };
        match pool {
            Some(pool) if aegis.enabled => {
                eligible(&resources, zone, pool).map_err(|error| {
                    SettingError::Invalid(Failure::failed(
                        format!(
                            "zone {} may not be enabled on pool {}: {error}",
                            zone.name, pool.id
                        ),
                        error.remedy(),
                    ))
                })?;
            }
            None if aegis.enabled => {
                return Err(SettingError::Invalid(Failure::usage(
                    format!("zone {} has no pool yet", zone.name),
                    format!("egress zone enable {} --pool POOL", zone.name),
                )));
            }
            _ => {}
        }
        if let Some(pool) = pool.filter(|_| aegis.enabled)
            && let Some(need) = self.need(&resources, zone, pool)
            && !permit.covers(&need)
        {
            return Err(SettingError::Unprobed(Box::new(need)));
        }
        let setting = Setting {
            zone: zone.id.clone(),
            aegis: Aegis {
                enabled: aegis.enabled,
                pool_id: pool.map(|pool| pool.id.clone()),
            },
        };
        self.commit(&[Change::Put {
            owner: Owner::Api,
            object: Object::Setting(setting),
        }])
        .map_err(SettingError::Failed)
    }
}

impl Writer<'_> {
    /// What must be probed before the zone leaves by the pool; nothing where it does so already.
    fn need(&self, resources: &Resources, zone: &Zone, pool: &Pool) -> Option<Need> {
        if zone.require_probe.is_empty() {
            return None;
        }
        let now = resources.aegis(zone);
        let leaves_by = now.pool_id.as_deref().and_then(|id| resources.pool(id));
        if now.enabled && leaves_by.is_some_and(|now| now.id == pool.id) {
            return None;
        }
        Some(Need {
            zone: zone.name.clone(),
            pool: self
                .stored
                .numbers
                .pools
                .get(&pool.id)
                .copied()
                .unwrap_or(0),
            pool_id: pool.id.clone(),
            addresses: pool.addresses.clone(),
            origins: zone.require_probe.clone(),
        })
    }
}

/// Whether the zone's setting names this pool now.
fn is_remembered(resources: &Resources, zone: &Zone, id: &str) -> bool {
    resources.aegis(zone).pool_id.as_deref() == Some(id)
}
