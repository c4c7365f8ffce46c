//! Changes of placements: slices moved, against the fewest that can be.

use std::time::Instant;

use egress_common::placement::{Member, divide};

use crate::random::Random;
use crate::world::{Address, World};

/// What changes.
#[derive(Clone, Copy)]
enum Change {
    Share,
    ServerGone,
    ServerNew,
    DataCenterGone,
    DataCenterNew,
}

const CHANGES: [(&str, Change); 5] = [
    ("a share changes", Change::Share),
    ("a server goes", Change::ServerGone),
    ("a server comes", Change::ServerNew),
    ("a data center goes", Change::DataCenterGone),
    ("a data center comes", Change::DataCenterNew),
];

/// Changes placements, prints; returns how often more moved than had to.
pub(crate) fn simulate(world: &World, count: u64, random: &mut Random) -> u64 {
    println!(
        "\nslices moved, of 31, on the average of {count} changes each:\n{:<24}{:>10}{:>10}{:>8}{:>18}{:>8}",
        "", "least", "moved", "ratio", "without history", "ratio"
    );
    let (mut wrong, mut divisions, mut elapsed) = (0, 0u64, 0.0);
    for (name, change) in CHANGES {
        let (mut least, mut moves, mut fresh) = (0u64, 0u64, 0u64);
        for _ in 0..count {
            let before = random.one_of(&world.addresses).clone();
            let Some(mut after) = changed(world, &before, change, random) else {
                continue;
            };
            let mut anew = after.clone();
            let begin = Instant::now();
            divide(after.number, &mut after.groups, &mut after.members);
            elapsed += begin.elapsed().as_secs_f64();
            divisions += 1;
            anew.members.iter_mut().for_each(|member| member.owned = 0);
            divide(anew.number, &mut anew.groups, &mut anew.members);
            let needed = fewest(&before, &after);
            let moved = differing(&before, &after);
            wrong += u64::from(moved != needed);
            least += u64::from(needed);
            moves += u64::from(moved);
            fresh += u64::from(differing(&before, &anew));
        }
        let mean = |sum: u64| sum as f64 / count as f64;
        let ratio = |sum: u64| {
            if least == 0 {
                1.0
            } else {
                sum as f64 / least as f64
            }
        };
        println!(
            "{name:<24}{:>10.2}{:>10.2}{:>8.3}{:>18.2}{:>8.3}",
            mean(least),
            mean(moves),
            ratio(moves),
            mean(fresh),
            ratio(fresh)
        );
    }
    println!("{:.0} divisions a second", divisions as f64 / elapsed);
    wrong
}

/// The placement after a change; `None` where that change cannot be made.
fn changed(
    world: &World,
    before: &Address,
    change: Change,
    random: &mut Random,
) -> Option<Address> {
    let mut after = before.clone();
    let group = random.below(after.groups.len());
    match change {
        Change::Share => {
            let old = after.groups[group].share;
            let new = random.below(9) as u32 + 1;
            after.groups[group].share = if new == old { old + 1 } else { new };
        }
        Change::ServerGone => {
            // One that owns something: another one's leaving moves nothing.
            let owning: Vec<usize> = (0..after.members.len())
                .filter(|at| after.members[*at].owned != 0)
                .collect();
            let gone = *random.one_of(&owning);
            after.members.remove(gone);
            after.servers.remove(gone);
        }
        Change::ServerNew => world.add(&mut after, world.sites.len() + random.below(1_000), group),
        Change::DataCenterGone => {
            if after.groups.len() < 2 {
                return None;
            }
            after.groups[group].share = 0;
        }
        Change::DataCenterNew => {
            let new = random.below(world.data_centers.len());
            world.join(&mut after, new, random.below(9) as u32 + 1);
        }
    }
    Some(after)
}

fn owned(address: &Address, name: u64) -> Option<&Member> {
    address.members.iter().find(|member| member.name == name)
}

/// Slices whose owner is another one.
fn differing(before: &Address, after: &Address) -> u32 {
    let gone = |old: &Member| {
        let kept = owned(after, old.name).map_or(0, |new| new.owned);
        (old.owned & !kept).count_ones()
    };
    before.members.iter().map(gone).sum()
}

/// What each server has beyond its new number, which must go whatever is done.
fn fewest(before: &Address, after: &Address) -> u32 {
    let beyond = |old: &Member| {
        let may = owned(after, old.name).map_or(0, |new| new.slices);
        old.owned.count_ones().saturating_sub(may)
    };
    before.members.iter().map(beyond).sum()
}
