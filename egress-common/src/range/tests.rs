use std::collections::HashSet;

use super::*;
use proptest::prelude::*;

const SECRET: Secret = Secret { k0: 5, k1: 7 };

fn candidate(address: u128, length: u32) -> Candidate<V6> {
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Candidate {
        address: (address & mask).to_be_bytes(),
        slices: u32::MAX,
        capacity: 1,
        flags: 0,
        length,
    }
}

fn host(address: u128) -> Inside<V6> {
    Inside {
        address: address.to_be_bytes(),
        realm: 0,
    }
}

fn pick(candidate: &Candidate<V6>, inside: Inside<V6>, round: u32) -> Option<u128> {
    V6::address(candidate, SECRET, inside, round).map(u128::from_be_bytes)
}

proptest! {
    #[test]
    fn nat_3_an_address_lies_in_its_range_and_stays_the_same(
        prefix: u128, length in 48u32..=128, inside: u128, round in 0u32..256
    ) {
        let candidate = candidate(prefix, length);
        if let Some(found) = pick(&candidate, host(inside), round) {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            prop_assert_eq!(found & mask, u128::from_be_bytes(candidate.address));
            prop_assert_eq!(pick(&candidate, host(inside), round), Some(found));
            prop_assert!(length >= 127 || found & !mask != 0);
        } else {
            prop_assert!(length > 48);
        }
    }

    #[test]
    fn nat_3_rounds_meet_every_address_of_a_small_range_once(
        prefix: u128, length in 120u32..=128, inside: u128
    ) {
        let candidate = candidate(prefix, length);
        let found: Vec<u128> =
            (0..V6::ROUNDS).filter_map(|round| pick(&candidate, host(inside), round)).collect();
        let distinct: HashSet<_> = found.iter().collect();
        let size = 1usize << (128 - length);
        prop_assert_eq!(found.len(), distinct.len());
        prop_assert_eq!(found.len(), if size > 2 { size - 1 } else { size });
    }

    #[test]
    fn nat_3_rounds_of_a_large_range_differ(prefix: u128, length in 48u32..=64, inside: u128) {
        let candidate = candidate(prefix, length);
        let found: HashSet<_> =
            (0..V6::ROUNDS).filter_map(|round| pick(&candidate, host(inside), round)).collect();
        prop_assert!(found.len() >= 255);
    }

    #[test]
    fn ipv6_keeps_every_port_but_zero(port: u16, seed: u64) {
        prop_assert_eq!(V6::may_keep(u32::MAX, port), port != 0);
        prop_assert!(V6::next_port(&mut Sequence(seed), 0) >= 1_024);
    }
}

#[test]
fn nat_3_inside_addresses_realms_ranges_and_secrets_all_tell() {
    let range = candidate(0x2001_0db8 << 96, 64);
    let mut found = HashSet::new();
    for inside in 0..1_000u128 {
        assert!(found.insert(pick(&range, host(inside), 0)), "{inside}");
        // Two that a digest of the halves would take for the same.
        assert!(found.insert(pick(&range, host((inside + 1) << 64), 0)));
        let realm = Inside {
            realm: 9,
            ..host(inside)
        };
        assert!(found.insert(pick(&range, realm, 0)));
    }
    let low = |found: Option<u128>| found.map(|address| address as u64);
    let neighbour = candidate(0x2001_0db8_0000_0001 << 64, 64);
    assert_ne!(
        low(pick(&range, host(1), 0)),
        low(pick(&neighbour, host(1), 0))
    );
    let other = V6::address(&range, Secret { k0: 5, k1: 8 }, host(1), 0).map(u128::from_be_bytes);
    assert_ne!(pick(&range, host(1), 0), other);
}

#[test]
fn nat_3_a_range_is_used_evenly() {
    let range = candidate(0x2001_0db8 << 96, 124);
    let mut tally = [0u32; 16];
    for inside in 0..16_000u128 {
        if let Some(found) = pick(&range, host(inside), 0) {
            tally[(found & 15) as usize] += 1;
        }
    }
    assert_eq!(tally[0], 0, "the first address is nobody's");
    assert!(
        tally[1..].iter().all(|hits| (850..1_150).contains(hits)),
        "{tally:?}"
    );
}

#[test]
fn an_ipv4_candidate_is_one_address() {
    let one = Candidate::<V4> {
        address: [192, 0, 2, 1],
        ..Candidate::default()
    };
    let inside = Inside {
        address: [10, 0, 0, 1],
        realm: 3,
    };
    assert_eq!(V4::address(&one, SECRET, inside, 0), Some([192, 0, 2, 1]));
}
