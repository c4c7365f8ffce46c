//! Egress policies as the data plane decides them: the first one that matches, at the same cost for one and for five
//! hundred (POLICY-1).
//!
//! A policy is an "or" of rules, a rule an "and" over the fields of a packet. Every value of a field belongs to a
//! set: the rules that this value satisfies. So a packet has one set for each field, its rules are what all of these
//! have in common, and the first of them is the one that counts, because rules are numbered by precedence. What a
//! value's set is, the daemon works out: one look into a table for each field, whatever the rules are.

/// Rules of a configuration: a policy takes one for each alternative (`or`) of its expression.
pub const MAX_RULES: u32 = 1_024;
/// Sets of a configuration; values that the same rules accept share one.
pub const MAX_SETS: u32 = 8_192;
/// Fields by which rules decide; see [`Sets`].
pub const FIELDS: usize = 6;
/// Elements of a version's port table: source ports, then destination ports.
pub const PORTS: u32 = 2 * PORTS_OF_A_SIDE;
/// Ports there are.
pub const PORTS_OF_A_SIDE: u32 = 65_536;

const WORDS: usize = (MAX_RULES / u64::BITS) as usize;

/// Sets with a number of their own.
pub mod set {
    /// No rule: of a zone whose account has no policies.
    pub const NONE: u32 = 0;
    /// Rules that accept TCP.
    pub const TCP: u32 = 1;
    /// Rules that accept UDP.
    pub const UDP: u32 = 2;
    /// The first one that is shared by values.
    pub const SHARED: u32 = 3;
}

/// Rules that accept a value: bit n of word w is rule `64 w + n`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSet {
    words: [u64; WORDS],
}

const _: () = assert!(size_of::<RuleSet>() == 128);

impl RuleSet {
    /// Adds a rule; one that no configuration can have is left out.
    pub fn insert(&mut self, rule: u32) {
        if let Some(word) = self.words.get_mut((rule / u64::BITS) as usize) {
            *word |= 1 << (rule % u64::BITS);
        }
    }

    /// Whether it has this rule.
    pub fn contains(&self, rule: u32) -> bool {
        self.words
            .get((rule / u64::BITS) as usize)
            .is_some_and(|word| word >> (rule % u64::BITS) & 1 != 0)
    }

    /// The first rule that all of `sets` have.
    #[inline(always)]
    pub fn first_of_all(sets: [&Self; FIELDS]) -> Option<u32> {
        let [a, b, c, d, e, f] = sets;
        let mut at = 0;
        while at < WORDS {
            let word =
                a.words[at] & b.words[at] & c.words[at] & d.words[at] & e.words[at] & f.words[at];
            if word != 0 {
                return Some(at as u32 * u64::BITS + word.trailing_zeros());
            }
            at += 1;
        }
        None
    }
}

/// The numbers of a packet's sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Its zone's.
    pub zone: u32,
    /// Its source address's.
    pub source: u32,
    /// Its destination address's.
    pub destination: u32,
    /// Its source port's.
    pub source_port: u32,
    /// Its destination port's.
    pub destination_port: u32,
    /// Its protocol's.
    pub protocol: u32,
}

/// Where a version's element of the port table is.
#[inline(always)]
pub fn of_source_port(version: u32, port: u16) -> u32 {
    version * PORTS + port as u32
}

/// As [`of_source_port`], for destination ports.
#[inline(always)]
pub fn of_destination_port(version: u32, port: u16) -> u32 {
    version * PORTS + PORTS_OF_A_SIDE + port as u32
}

/// What a rule's policy wants; element `rule` of its version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Number of the policy, by precedence from 0.
    pub policy: u32,
    /// How IPv4 leaves.
    pub exit4: Exit,
    /// How IPv6 leaves.
    pub exit6: Exit,
}

/// By which address a policy's new flows leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The pool that the address belongs to; 0: the default egress.
    pub pool: u32,
    /// The address: a candidate, counted from the beginning of the version's part, from 1. 0: this server has none,
    /// and new flows are refused. With [`Exit::ELSEWHERE`] the number of an exit: another server has it.
    pub candidate: u32,
}

impl Exit {
    /// Bit of [`Exit::candidate`]: other servers translate, by the exit with this number (FWD-2).
    pub const ELSEWHERE: u32 = 1 << 31;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(rules: &[u32]) -> RuleSet {
        let mut set = RuleSet::default();
        rules.iter().for_each(|rule| set.insert(*rule));
        set
    }

    #[test]
    fn rules_beyond_the_last_are_in_no_set() {
        let set = set(&[0, MAX_RULES - 1, MAX_RULES, u32::MAX]);
        assert!(set.contains(0) && set.contains(MAX_RULES - 1));
        assert!(!set.contains(MAX_RULES) && !set.contains(u32::MAX) && !set.contains(1));
    }

    proptest! {
        #[test]
        fn the_first_rule_of_all_is_the_least_that_each_has(
            fields in proptest::collection::vec(
                proptest::collection::btree_set(prop_oneof![0..96u32, 0..MAX_RULES], 0..120),
                FIELDS,
            ),
            shared in proptest::collection::vec(0..MAX_RULES, 0..3),
        ) {
            let sets: Vec<RuleSet> = fields
                .iter()
                .map(|field| set(&field.iter().chain(&shared).copied().collect::<Vec<_>>()))
                .collect();
            let expected = (0..MAX_RULES)
                .find(|rule| shared.contains(rule) || fields.iter().all(|field| field.contains(rule)));
            let sets = std::array::from_fn(|at| &sets[at]);
            prop_assert_eq!(RuleSet::first_of_all(sets), expected);
        }
    }
}
