//! What an account's pools may take of the data plane's tables, which are everybody's: a single IPv6 prefix has addresses
//! for all of them.

use egress_common::settings::{MAX_CANDIDATES, MAX_POOLS};

use crate::control::protocol::Failure;
use crate::resource::{Address, POOL_PERCENT, Resources};

/// What an account's pools take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    pools: usize,
    ipv4: usize,
    ipv6: usize,
}

impl Taken {
    fn by(resources: &Resources, account: &str) -> Self {
        let pools = resources.pools.iter();
        let own = pools.filter(|pool| resources.same_account(&pool.account, account));
        let mut taken = Self::default();
        for pool in own {
            taken.pools += 1;
            for address in &pool.addresses {
                match address {
                    Address::V4(_) => taken.ipv4 += 1,
                    Address::V6(_) => taken.ipv6 += 1,
                }
            }
        }
        taken
    }
}

/// Whether what an account has after a change is within its part of the tables, or in nothing more than it had before,
/// which the operator may have let in.
///
/// # Errors
/// It is not; it tells of that account alone.
pub(super) fn within(before: &Resources, after: &Resources, account: &str) -> Result<(), Failure> {
    let percent = after.account(account).and_then(|one| one.pool_percent);
    let percent = percent.unwrap_or(POOL_PERCENT) as usize;
    let (had, has) = (Taken::by(before, account), Taken::by(after, account));
    let candidates = MAX_CANDIDATES as usize;
    let limits = [
        ("pools", MAX_POOLS as usize - 1, had.pools, has.pools),
        ("IPv4 addresses in pools", candidates, had.ipv4, has.ipv4),
        (
            "IPv6 addresses and ranges in pools",
            candidates,
            had.ipv6,
            has.ipv6,
        ),
    ];
    for (what, all, before, count) in limits {
        let most = all * percent / 100;
        if count > most && count > before {
            return Err(Failure::usage(
                format!(
                    "this account would have {count} {what}, and {most} may be made through the API \
                     (pool_percent of the account in the operator's resources file)"
                ),
                "remove some, use ranges of IPv6 (/64) instead of single addresses, or ask the operator for more",
            ));
        }
    }
    Ok(())
}
