//! Numbers of exits: what certain traffic may use of a pool (FWD-8, POLICY-3).
//!
//! An exit keeps its number as long as its tunnel id and its locations are wanted. Forwarded flows carry the number
//! too, and are opened anew elsewhere under the tunnel id that it stands for: so it is given to no other while one does.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::placement::digest;
use egress_common::settings::{MAX_EXITS, MAX_POOLS, NO_EXIT};
use egress_common::share::Forward;

use super::carried::Carried;
use super::maps::Maps;
use crate::dataplane::api::DataPlaneError;
use crate::desired::{Desired, DesiredPart};

/// The numbers of [`crate::desired::DesiredTunnel::exits`], in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExitNumbers(pub(super) Vec<u32>);

impl ExitNumbers {
    /// The number of the nth exit.
    pub(super) fn of(&self, nth: usize) -> u32 {
        self.0.get(nth).copied().unwrap_or(NO_EXIT)
    }
}

/// What tells an exit: tunnel id, and a digest of its locations.
type Identity = (u32, u32);

/// Gives numbers to what is wanted.
pub(super) fn number(maps: &Maps, desired: &Desired) -> Result<ExitNumbers, DataPlaneError> {
    let exits = desired.tunnel.iter().flat_map(|tunnel| &tunnel.exits);
    let wanted: Vec<Identity> = exits.map(|exit| (exit.target, regions(exit))).collect();
    if wanted.is_empty() {
        return Ok(ExitNumbers::default());
    }
    let known: BTreeMap<Identity, u32> = maps
        .entries::<u32, Forward>("FORWARDS")?
        .into_iter()
        .filter(|(number, _)| *number > NO_EXIT)
        .map(|(number, forward)| ((forward.target, forward.regions), number))
        .collect();
    let carried = if wanted.iter().all(|one| known.contains_key(one)) {
        BTreeSet::new()
    } else {
        Carried::read(maps)?.exits
    };
    assign(&known, &carried, &wanted)
        .map(ExitNumbers)
        .ok_or_else(|| DataPlaneError::Refused {
            reason: format!(
                "there are {} exits (addresses of policies, and pools of zones that are confined to regions), and \
                 there may be {}, with those that flows leave by still",
                wanted.len(),
                MAX_EXITS - MAX_POOLS - 1
            ),
            remedy: "nothing was changed; remove some, or wait until flows have ended".to_owned(),
        })
}

/// Those they have, else such as neither an exit nor a flow has.
fn assign(
    known: &BTreeMap<Identity, u32>,
    carried: &BTreeSet<u32>,
    wanted: &[Identity],
) -> Option<Vec<u32>> {
    let taken: BTreeSet<u32> = known.values().copied().collect();
    let is_free = |number: &u32| !taken.contains(number) && !carried.contains(number);
    let mut free = (NO_EXIT + 1..MAX_EXITS).filter(is_free);
    let mut given = BTreeSet::new();
    wanted
        .iter()
        .map(|identity| {
            let same = known.get(identity).copied();
            let number = same.filter(|_| given.insert(*identity));
            number.or_else(|| free.next())
        })
        .collect()
}

/// A digest of the locations of an exit; 0 for everywhere.
pub(super) fn regions(exit: &DesiredPart) -> u32 {
    let mut names: Vec<&str> = exit.regions.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return 0;
    }
    // Names have no spaces.
    (digest(&names.join(" ")) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fwd_4_an_exit_keeps_its_number_and_no_other_gets_it_while_a_flow_has_it() {
        let first = NO_EXIT + 1;
        let none = BTreeSet::new();
        let given = assign(&BTreeMap::new(), &none, &[(77, 0), (77, 5)]).unwrap();
        assert_eq!(given, [first, first + 1]);
        let known = [((77, 0), first), ((77, 5), first + 1)].into();
        let given = assign(&known, &none, &[(88, 0), (77, 5)]).unwrap();
        assert_eq!(given, [first + 2, first + 1]);
        let known = [((77, 5), first + 1)].into();
        let given = assign(&known, &[0, first].into(), &[(99, 0), (77, 5)]).unwrap();
        assert_eq!(given, [first + 2, first + 1]);
        // Two that cannot be told apart are two all the same.
        let given = assign(&known, &none, &[(77, 5), (77, 5)]).unwrap();
        assert_eq!(given, [first + 1, first]);
        let all: Vec<Identity> = (1..MAX_EXITS - NO_EXIT).map(|one| (one, 0)).collect();
        assert!(assign(&BTreeMap::new(), &none, &all).is_some());
        assert!(assign(&BTreeMap::new(), &[first].into(), &all).is_none());
    }
}
