//! Names for the numbers in records, as they are when a line is written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Server;
use crate::dataplane::api::Names;
use crate::placed;
use crate::resource::Resources;
use crate::store::Stored;

/// The names of a configuration that is in force.
#[derive(Debug, Default)]
pub struct Directory {
    server: String,
    data_center: String,
    names: Names,
    /// Account ids by zone number.
    accounts: BTreeMap<u16, String>,
    /// Data centers of other servers, by where these are reached.
    data_centers: BTreeMap<IpAddr, String>,
    policies: Policies,
    /// Those of the configuration before.
    before: Option<Arc<Policies>>,
}

/// The policies of a version of the configuration.
#[derive(Clone, Debug, Default)]
struct Policies {
    /// Their names, by number.
    names: Vec<String>,
    /// Of the two versions in the maps.
    version: u32,
    /// When it was known to be in force, ns of the monotonic clock.
    since: u64,
}

/// What is known of a policy's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy<'a> {
    /// Its name.
    Known(&'a str),
    /// It is of a configuration that nobody remembers.
    Forgotten,
    /// It is of a configuration that has only just come into force.
    ToCome,
}

impl Directory {
    /// The names of what is in force since `since`, ns of the monotonic clock, as this version in the maps.
    pub fn new<'a>(
        stored: &Stored,
        policies: impl IntoIterator<Item = &'a str>,
        server: &Server,
        version: u32,
        since: u64,
    ) -> Self {
        let resources = stored.resources();
        Self {
            server: server.name.clone(),
            data_center: placed::data_center(&resources, server).to_owned(),
            names: stored.names(),
            accounts: accounts(stored, &resources),
            data_centers: placed::servers(&resources)
                .filter_map(|one| Some((one.server.tunnel?, one.data_center.name.clone())))
                .collect(),
            policies: Policies {
                names: policies.into_iter().map(str::to_owned).collect(),
                version,
                since,
            },
            before: None,
        }
    }

    /// It follows another one, whose flows may still be told of.
    pub(super) fn after(mut self, before: &Self) -> Self {
        self.before = if before.policies.version == self.policies.version {
            // Names may have changed, which policies there are has not.
            before.before.clone()
        } else {
            Some(Arc::new(before.policies.clone()))
        };
        if before.policies.version == self.policies.version && before.policies.since != 0 {
            self.policies.since = before.policies.since;
        }
        self
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn data_center(&self) -> &str {
        &self.data_center
    }

    pub(super) fn zone(&self, number: u16) -> Option<String> {
        (number != 0).then(|| self.names.zone(number))
    }

    pub(super) fn pool(&self, number: u16) -> Option<String> {
        (number != 0).then(|| self.names.pool(number))
    }

    /// The name of another server, and its data center if it is known.
    pub(super) fn other(&self, address: IpAddr) -> (String, Option<&str>) {
        let data_center = self.data_centers.get(&address);
        (self.names.server(address), data_center.map(String::as_str))
    }

    /// The account of a zone.
    pub(super) fn account(&self, zone: u16) -> Option<&str> {
        self.accounts.get(&zone).map(String::as_str)
    }

    /// The policy with this number of a version of the configuration, that decided at `time`.
    pub(super) fn policy(&self, version: u32, number: u32, time: u64) -> Policy<'_> {
        let before = self.before.as_deref();
        let policies = if version == self.policies.version {
            // Two configurations ago the version was the same.
            let recent = before.is_none_or(|before| time >= before.since);
            recent.then_some(&self.policies)
        } else if time >= self.policies.since {
            return Policy::ToCome;
        } else {
            before
        };
        let number = usize::try_from(number).ok();
        policies
            .zip(number)
            .and_then(|(policies, number)| policies.names.get(number))
            .map_or(Policy::Forgotten, |name| Policy::Known(name))
    }
}

/// The account of each zone that has a number.
fn accounts(stored: &Stored, resources: &Resources) -> BTreeMap<u16, String> {
    let numbered = resources.zones.iter().filter_map(|zone| {
        let number = stored.numbers.zones.get(&zone.id)?;
        let account = resources.account(&zone.account);
        let id = account.map_or(&zone.account, |account| &account.id);
        Some((*number, id.clone()))
    });
    numbered.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::flow_log) fn directory(policies: &[&str], version: u32, since: u64) -> Directory {
        Directory {
            server: "fra01-s1".into(),
            data_center: "fra01".into(),
            names: Names {
                zones: [(7, "shop.example".to_owned())].into(),
                pools: [(3, "partners".to_owned())].into(),
                servers: [([192, 0, 2, 201].into(), "ams01-s1".to_owned())].into(),
            },
            accounts: [(7, "acme".to_owned())].into(),
            data_centers: [([192, 0, 2, 201].into(), "ams01".to_owned())].into(),
            policies: Policies {
                names: policies.iter().map(|name| (*name).to_owned()).collect(),
                version,
                since,
            },
            before: None,
        }
    }

    #[test]
    fn a_policy_is_named_as_it_was_when_it_decided() {
        let first = directory(&["a", "b"], 0, 100);
        assert_eq!(first.policy(0, 1, 50), Policy::Known("b"));
        assert_eq!(first.policy(0, 1, 150), Policy::Known("b"));
        assert_eq!(first.policy(0, 2, 150), Policy::Forgotten);
        assert_eq!(first.policy(1, 0, 150), Policy::ToCome);
        assert_eq!(first.policy(1, 0, 50), Policy::Forgotten);
        let second = directory(&["b", "a"], 1, 200).after(&first);
        assert_eq!(second.policy(0, 0, 150), Policy::Known("a"));
        assert_eq!(
            second.policy(1, 0, 190),
            Policy::Known("b"),
            "just switched"
        );
        assert_eq!(second.policy(1, 0, 250), Policy::Known("b"));
        assert_eq!(second.policy(0, 0, 250), Policy::ToCome);
        // The same version again: another name of a zone, say.
        let same = directory(&["b", "a"], 1, 300).after(&second);
        assert_eq!(same.policy(0, 0, 150), Policy::Known("a"));
        assert_eq!(same.policy(1, 1, 250), Policy::Known("a"));
        let third = directory(&["c"], 0, 400).after(&same);
        assert_eq!(third.policy(0, 0, 450), Policy::Known("c"));
        assert_eq!(third.policy(1, 0, 250), Policy::Known("b"));
        assert_eq!(third.policy(0, 0, 150), Policy::Forgotten);
    }
}
