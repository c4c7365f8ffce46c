//! What an account's policies may take of the data plane's tables, which are everybody's.

use egress_common::policy::{MAX_RULES, MAX_SETS};
use ipnet::IpNet;

use super::compile::{MAX_PREFIXES, TooMuch, compile};
use crate::desired::{Desired, DesiredExit, DesiredPolicy};
use crate::resource::Policy;

/// What policies take of the tables, were there no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    rules: usize,
    sets: usize,
    /// Of the field and family that has most.
    prefixes: usize,
}

/// An account's policies take more than it may have. It tells of that account alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policies of this account would make {count} {what}, and it may have {most} (policy_percent of the account in the \
     operator's resources file)"
)]
pub struct OverBudget {
    what: &'static str,
    count: usize,
    most: usize,
}

impl Taken {
    /// What these policies take, those that are off as well: switching one on needs no room then.
    ///
    /// # Errors
    /// They do not fit even alone.
    pub fn by<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Result<Self, TooMuch> {
        let desired = |policy: &Policy| DesiredPolicy {
            name: policy.name.clone(),
            zones: Vec::new(),
            traffic: policy.expression().ok().flatten(),
            ipv4: DesiredExit::Default,
            ipv6: DesiredExit::Default,
        };
        let alone = Desired {
            policies: policies.into_iter().map(desired).collect(),
            ..Desired::default()
        };
        let tables = compile(&alone, |_| Default::default())?;
        let families = [&tables.from, &tables.to].into_iter().flat_map(|prefixes| {
            let ipv6 = prefixes.keys().filter(|net| matches!(net, IpNet::V6(_)));
            let ipv6 = ipv6.count();
            [ipv6, prefixes.len() - ipv6]
        });
        Ok(Self {
            rules: tables.rules.len(),
            sets: tables.sets.len(),
            prefixes: families.max().unwrap_or(0),
        })
    }

    /// Whether this is within so many percent of the tables, or in nothing more than `before`, which may have been let in
    /// by the operator.
    ///
    /// # Errors
    /// It is not.
    pub fn within(&self, percent: u32, before: &Self) -> Result<(), OverBudget> {
        let limits = [
            (
                "rules (one for each alternative)",
                MAX_RULES as usize,
                self.rules,
                before.rules,
            ),
            ("sets of rules", MAX_SETS as usize, self.sets, before.sets),
            (
                "prefixes of one field",
                MAX_PREFIXES,
                self.prefixes,
                before.prefixes,
            ),
        ];
        for (what, all, count, before) in limits {
            let most = all * percent as usize / 100;
            if count > most && count > before {
                return Err(OverBudget { what, count, most });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(traffic: &str) -> Policy {
        Policy {
            name: "p".into(),
            account: "a".into(),
            precedence: 1,
            enabled: false,
            traffic: traffic.into(),
            egress: None,
            made: None,
        }
    }

    #[test]
    fn rules_sets_and_prefixes_are_each_held_to_a_part_of_their_table() {
        let addresses = |count: u32| {
            let all = (0..count).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string());
            format!("net.dst.ip in {{{}}}", all.collect::<Vec<_>>().join(" "))
        };
        let none = Taken::default();
        let many = Taken::by([&policy(&addresses(400))]).unwrap();
        assert_eq!((many.rules, many.prefixes), (1, 401), "and all others");
        assert!(many.within(2, &none).is_ok());
        let over = many.within(1, &none).unwrap_err();
        assert_eq!(
            (over.what, over.count, over.most),
            ("prefixes of one field", 401, 327)
        );
        assert!(many.within(0, &many).is_ok(), "it was so before");
        let rules: Vec<_> = (1..=11)
            .map(|n| policy(&format!("net.dst.port == {n}")))
            .collect();
        let rules = Taken::by(&rules).unwrap();
        assert!(rules.within(2, &none).is_ok());
        let over = rules.within(1, &none).unwrap_err();
        assert_eq!((over.count, over.most), (11, 10));
        let before = Taken { rules: 12, ..none };
        assert!(rules.within(1, &before).is_ok(), "fewer than before");
        // Each pair of ports has a set of its own.
        let ports: Vec<_> = (0..6)
            .map(|bit| {
                let ranges = (0..64_u32)
                    .filter(|n| n >> bit & 1 == 1)
                    .map(|n| (1_000 + n).to_string());
                policy(&format!(
                    "net.dst.port in {{{}}}",
                    ranges.collect::<Vec<_>>().join(" ")
                ))
            })
            .collect();
        let sets = Taken::by(&ports).unwrap();
        assert!(sets.sets >= 64, "{sets:?}");
        assert!(matches!(
            sets.within(0, &rules),
            Err(OverBudget {
                what: "sets of rules",
                ..
            })
        ));
    }
}
