//! Which zones may be enabled on which pools (POOL-7).

use std::collections::HashSet;

use ipnet::IpNet;

use super::super::{Pool, PoolKind, Resources, Service, Zone};

/// Why a zone may not be enabled on a pool (POOL-7).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ineligible {
    /// The pool is BYOIP and a prefix of it belongs to somebody else.
    #[error(
        "account {account} neither owns the BYOIP prefix {prefix} nor was it delegated (POOL-7)"
    )]
    NotDelegated {
        /// The zone's account.
        account: String,
        /// The prefix.
        prefix: IpNet,
    },
    /// The zone's account has no addresses at all.
    #[error("account {account} owns no leased IPs and was delegated no BYOIP prefix (POOL-7)")]
    NoAddresses {
        /// The zone's account.
        account: String,
    },
}

impl Ineligible {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::NotDelegated { account, prefix } => {
                format!(
                    "add \"{account}\" to delegated_to of the [[prefix]] {prefix}, or use another pool"
                )
            }
            Self::NoAddresses { account } => {
                format!(
                    "give account {account} a pool of leased addresses, or delegate a [[prefix]] to it"
                )
            }
        }
    }
}

/// Accounts that own leased IPs or may use a BYOIP prefix for egress: those whose zones may be enabled.
#[derive(Debug)]
pub(super) struct Holders<'a>(HashSet<&'a str>);

impl<'a> Holders<'a> {
    pub(super) fn of(resources: &'a Resources) -> Self {
        let owners = resources.pools.iter().filter_map(|pool| {
            let leased = pool
                .addresses
                .iter()
                .any(|address| resources.byoip(address.net()).is_none());
            // An emptied pool still says whose it is.
            (leased || (pool.addresses.is_empty() && pool.kind != Some(PoolKind::Byoip)))
                .then_some(&pool.account)
        });
        let users = resources
            .prefixes
            .iter()
            .filter(|prefix| prefix.services().any(|one| one == Service::CdnEgress))
            .flat_map(|prefix| {
                let parts = prefix.registration.iter().flat_map(|one| &one.delegations);
                prefix
                    .users(prefix.cidr)
                    .chain(parts.map(|one| &one.account))
            });
        let lessees = resources.leases.iter().map(|lease| &lease.account);
        Self(
            owners
                .chain(users)
                .chain(lessees)
                .filter_map(|reference| resources.account(reference))
                .map(|a| a.id.as_str())
                .collect(),
        )
    }
}

/// POOL-7: whether `zone` may be enabled on `pool`, which may belong to another account (POOL-4).
pub fn eligible(resources: &Resources, zone: &Zone, pool: &Pool) -> Result<(), Ineligible> {
    eligible_among(resources, &Holders::of(resources), zone, pool)
}

pub(super) fn eligible_among(
    resources: &Resources,
    holders: &Holders<'_>,
    zone: &Zone,
    pool: &Pool,
) -> Result<(), Ineligible> {
    // An unknown account is another error, reported elsewhere.
    let Some(account) = resources.account(&zone.account) else {
        return Ok(());
    };
    let foreign = pool
        .addresses
        .iter()
        .filter_map(|address| Some((address.net(), resources.byoip(address.net())?)))
        .find(|(net, prefix)| !prefix.is_for(resources, &account.id, *net));
    if let Some((_, prefix)) = foreign {
        return Err(Ineligible::NotDelegated {
            account: zone.account.clone(),
            prefix: prefix.cidr,
        });
    }
    if !holders.0.contains(account.id.as_str()) {
        return Err(Ineligible::NoAddresses {
            account: zone.account.clone(),
        });
    }
    Ok(())
}
