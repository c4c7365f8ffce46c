use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const ADDRESS: u32 = 0xc000_020a;

/// A placement: a share and a number of servers for each data center.
fn placement(parts: &[(u32, usize)]) -> (Vec<Group>, Vec<Member>) {
    let mut groups = Vec::new();
    let mut members = Vec::new();
    for (at, (share, servers)) in parts.iter().enumerate() {
        groups.push(Group {
            name: digest(&format!("dc{at}")),
            share: *share,
            slices: 0,
        });
        for server in 0..*servers {
            members.push(Member {
                name: digest(&format!("dc{at}-s{server}")),
                group: at,
                ..Member::default()
            });
        }
    }
    (groups, members)
}

fn divided(parts: &[(u32, usize)], before: &[Member]) -> (Vec<Group>, Vec<Member>) {
    let (mut groups, mut members) = placement(parts);
    for member in &mut members {
        let old = before.iter().find(|old| old.name == member.name);
        member.owned = old.map_or(0, |old| old.owned);
    }
    divide(ADDRESS, &mut groups, &mut members);
    (groups, members)
}

fn moved(before: &[Member], after: &[Member]) -> u32 {
    let kept = |old: &Member| {
        let same = after.iter().find(|new| new.name == old.name);
        same.map_or(0, |new| (new.owned & old.owned).count_ones())
    };
    before
        .iter()
        .map(|old| old.owned.count_ones() - kept(old))
        .sum()
}

/// Whether the numbers are what highest averages allow: no slice given for less than one not given.
fn is_apportionment(parts: &[(u32, usize)], counts: &[u32]) -> bool {
    let takes = |at: usize| parts[at].0 > 0 && parts[at].1 > 0;
    if counts.iter().sum::<u32>() != SLICES
        || (0..parts.len()).any(|at| !takes(at) && counts[at] > 0)
    {
        return false;
    }
    (0..parts.len()).all(|given| {
        counts[given] == 0
            || (0..parts.len()).filter(|other| takes(*other)).all(|other| {
                // share / (2n - 1) of the last one given, share / (2n + 1) of the next one not given.
                parts[given].0 * (2 * counts[other] + 1) >= parts[other].0 * (2 * counts[given] - 1)
            })
    })
}

/// The fewest moves to any division with allowed numbers: every one is tried.
fn fewest_moves(parts: &[(u32, usize)], before: &[Member]) -> u32 {
    let (_, members) = placement(parts);
    let had = |member: &Member| {
        let old = before.iter().find(|old| old.name == member.name);
        old.map_or(0, |old| old.owned.count_ones())
    };
    // The most slices that can stay in a data center that gets `slices`: every choice of who gets one more.
    let stay = |group: usize, slices: u32| -> u32 {
        let of_group: Vec<u32> = members
            .iter()
            .filter(|member| member.group == group)
            .map(had)
            .collect();
        let servers = of_group.len() as u32;
        if servers == 0 {
            return 0;
        }
        let (base, more) = (slices / servers, slices % servers);
        (0u32..1 << servers)
            .filter(|chosen| chosen.count_ones() == more)
            .map(|chosen| {
                let kept = |(at, had): (usize, &u32)| (*had).min(base + (chosen >> at & 1));
                of_group.iter().enumerate().map(kept).sum()
            })
            .max()
            .unwrap()
    };
    let mut best = None;
    let mut counts = vec![0; parts.len()];
    fn every(at: usize, left: u32, counts: &mut Vec<u32>, each: &mut dyn FnMut(&[u32])) {
        if at + 1 == counts.len() {
            counts[at] = left;
            each(counts);
            return;
        }
        for n in 0..=left {
            counts[at] = n;
            every(at + 1, left - n, counts, each);
        }
    }
    every(0, SLICES, &mut counts, &mut |counts| {
        if is_apportionment(parts, counts) {
            let kept: u32 = counts.iter().enumerate().map(|(g, n)| stay(g, *n)).sum();
            best = best.max(Some(kept));
        }
    });
    let all: u32 = before.iter().map(|old| old.owned.count_ones()).sum();
    all - best.unwrap_or(0)
}

fn parts() -> impl Strategy<Value = Vec<(u32, usize)>> {
    proptest::collection::vec((0u32..12, 0usize..5), 1..5)
}

fn has_anybody(parts: &[(u32, usize)]) -> bool {
    parts
        .iter()
        .any(|(share, servers)| *share > 0 && *servers > 0)
}

proptest! {
    #[test]
    fn pool_5_every_slice_has_one_owner_and_numbers_follow_the_shares(parts in parts(), before in parts()) {
        let (_, before) = divided(&before, &[]);
        let (groups, members) = divided(&parts, &before);
        let mut seen = 0;
        for member in &members {
            prop_assert_eq!(seen & member.owned, 0, "two owners");
            seen |= member.owned;
            prop_assert_eq!(member.owned.count_ones(), member.slices);
        }
        prop_assert_eq!(seen, if has_anybody(&parts) { ALL_SLICES } else { 0 });
        if !has_anybody(&parts) {
            return Ok(());
        }
        let counts: Vec<u32> = groups.iter().map(|group| group.slices).collect();
        prop_assert!(is_apportionment(&parts, &counts), "{:?} for {:?}", counts, parts);
        for (at, group) in groups.iter().enumerate() {
            let of_group = members.iter().filter(|member| member.group == at);
            let numbers: Vec<u32> = of_group.map(|member| member.slices).collect();
            prop_assert_eq!(numbers.iter().sum::<u32>(), group.slices);
            let spread = numbers.iter().max().unwrap_or(&0) - numbers.iter().min().unwrap_or(&0);
            prop_assert!(spread <= 1, "{:?}", numbers);
        }
    }

    #[test]
    fn pool_5_a_change_moves_as_few_slices_as_can_be(first in parts(), second in parts(), third in parts()) {
        let mut before = divided(&first, &[]).1;
        for parts in [second, third] {
            if !has_anybody(&parts) {
                continue;
            }
            let after = divided(&parts, &before).1;
            prop_assert_eq!(moved(&before, &after), fewest_moves(&parts, &before));
            before = after;
        }
    }

    #[test]
    fn pool_5_nothing_moves_when_nothing_changes(parts in parts()) {
        let (_, before) = divided(&parts, &[]);
        let (_, after) = divided(&parts, &before);
        prop_assert_eq!(moved(&before, &after), 0);
    }

    #[test]
    fn pool_5_the_order_in_which_it_is_written_does_not_matter(parts in parts(), seed: u64) {
        let (_, straight) = divided(&parts, &[]);
        let (mut groups, mut members) = placement(&parts);
        groups.reverse();
        let last = groups.len() - 1;
        for member in &mut members {
            member.group = last - member.group;
        }
        members.sort_by_key(|member| siphash(Secret { k0: seed, k1: 0 }, [member.name]));
        divide(ADDRESS, &mut groups, &mut members);
        let by_name = |members: &[Member]| -> BTreeMap<u64, u32> {
            members.iter().map(|member| (member.name, member.owned)).collect()
        };
        prop_assert_eq!(by_name(&straight), by_name(&members));
    }

    #[test]
    fn cap_3_capacities_of_all_owners_add_up(parts in parts(), total in 1u32..=40_000) {
        let (_, members) = divided(&parts, &[]);
        let sum: u32 = members.iter().map(|member| crate::port::capacity_of(total, member.owned)).sum();
        prop_assert_eq!(sum, if has_anybody(&parts) { total } else { 0 });
    }
}

#[test]
fn pool_5_a_rising_share_takes_no_slice_from_its_own_data_center() {
    for share in 1..100 {
        let of_first = |share| divided(&[(share, 2), (7, 3), (3, 1)], &[]).0[0].slices;
        assert!(of_first(share + 1) >= of_first(share), "share {share}");
    }
}

#[test]
fn pool_5_addresses_prefer_different_servers() {
    // Three servers share one slice too many: who gets it differs by address.
    let mut most = [0; 3];
    for address in 0..300 {
        let (mut groups, mut members) = placement(&[(1, 3)]);
        divide(address, &mut groups, &mut members);
        for (server, member) in members.iter().enumerate() {
            most[server] += u32::from(member.slices == 11);
        }
    }
    assert!(most.iter().all(|n| (60..140).contains(n)), "{most:?}");
}

#[test]
fn names_have_different_digests() {
    let names: std::collections::BTreeSet<u64> = (0..10_000)
        .map(|n| digest(&format!("fra{n:02}-s1")))
        .collect();
    assert_eq!(names.len(), 10_000);
}
