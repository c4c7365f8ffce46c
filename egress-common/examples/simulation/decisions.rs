//! A million flows: order, speed, and who draws again when a server goes.

use std::time::Instant;

use egress_common::family::V4;
use egress_common::forward::{Choice, Decision, Regions, Site, Tier, tier};
use egress_common::siphash::Secret;

use crate::random::Random;
use crate::world::{POOL, World};

const SECRET: Secret = Secret { k0: 1, k1: 2 };
/// Servers that die in a row, each for itself.
const DEATHS: usize = 5;
/// Rounds of measuring with noise.
const ROUNDS: usize = 200;
/// Noise of a measurement: a fifth up or down.
const NOISE: f64 = 0.2;

/// Who may translate, as a data plane would have it: one list a pool.
struct Offer {
    site: Site,
    address: u64,
    slices: u32,
}

/// A new connection.
struct Flow {
    here: usize,
    pool: usize,
    inside: u64,
}

/// Decides, checks, prints; returns how many decisions were wrong.
pub(crate) fn simulate(world: &World, count: u64, random: &mut Random) -> u64 {
    let mut pools = pools(world);
    let flows: Vec<Flow> = (0..count).map(|_| flow(world, &pools, random)).collect();
    let settled = settled(world);

    let begin = Instant::now();
    let choices: Vec<Option<Choice>> = flows
        .iter()
        .map(|flow| decide(world, &pools, &settled, flow))
        .collect();
    let elapsed = begin.elapsed().as_secs_f64();
    let offers: usize = flows.iter().map(|flow| pools[flow.pool].len()).sum();
    println!(
        "\n{count} decisions in {elapsed:.2} s on one CPU: {:.0} a second, {:.1} owners offered to each",
        count as f64 / elapsed,
        offers as f64 / count as f64
    );

    let wrong = flows
        .iter()
        .zip(&choices)
        .filter(|(flow, choice)| !is_right(world, &pools[flow.pool], flow, **choice))
        .count() as u64;
    for wanted in [
        Tier::Here,
        Tier::DataCenter,
        Tier::Location,
        Tier::Elsewhere,
    ] {
        let of_tier = choices
            .iter()
            .flatten()
            .filter(|choice| choice.tier == wanted);
        println!("  {:<12}{:>10}", format!("{wanted:?}"), of_tier.count());
    }
    println!(
        "  {:<12}{wrong:>10}  (held against the rule as it is written)",
        "wrong"
    );
    let wrong = wrong + deaths(world, &mut pools, &flows, &choices, &settled, random);
    wrong + noise(world, &pools, &flows, &choices, random)
}

/// One offer for each owner of slices of each address of the pool.
fn pools(world: &World) -> Vec<Vec<Offer>> {
    let offers = |pool: &[crate::world::Address]| {
        let of_address = |address: &crate::world::Address| {
            let number = u64::from(address.number);
            let offer = |(server, slices): (usize, u32)| Offer {
                site: world.sites[server],
                address: number,
                slices,
            };
            address.owners().map(offer).collect::<Vec<_>>()
        };
        pool.iter().flat_map(of_address).collect()
    };
    world.addresses.chunks(POOL).map(offers).collect()
}

/// A connection at an owner, in a data center or a location of one, or anywhere: a quarter each.
fn flow(world: &World, pools: &[Vec<Offer>], random: &mut Random) -> Flow {
    let pool = random.below(pools.len());
    let owner = random.one_of(&pools[pool]).site;
    let with = |matches: &dyn Fn(&Site) -> bool, random: &mut Random| loop {
        let here = random.below(world.sites.len());
        if matches(&world.sites[here]) {
            return here;
        }
    };
    let of_data_center = |data_center: u16, random: &mut Random| {
        *random.one_of(&world.data_centers[usize::from(data_center) - 1].servers)
    };
    let here = match random.below(4) {
        0 => usize::from(owner.server) - 1,
        1 => of_data_center(owner.data_center, random),
        2 => {
            let there: Vec<u16> = world
                .data_centers
                .iter()
                .filter(|one| one.location == owner.location)
                .map(|one| one.number)
                .collect();
            of_data_center(*random.one_of(&there), random)
        }
        _ => with(&|_| true, random),
    };
    Flow {
        here,
        pool,
        inside: random.next(),
    }
}

/// The distances that decide, in microseconds.
fn settled(world: &World) -> Vec<Vec<u32>> {
    let row = |row: &Vec<egress_common::distance::Distance>| {
        row.iter().map(|distance| distance.settled()).collect()
    };
    world.distances.iter().map(row).collect()
}

fn decide(
    world: &World,
    pools: &[Vec<Offer>],
    settled: &[Vec<u32>],
    flow: &Flow,
) -> Option<Choice> {
    let here = world.sites[flow.here];
    let distances = &settled[usize::from(here.location)];
    let mut decision = Decision::new::<V4>(here, Regions::default(), SECRET, flow.inside);
    for offer in &pools[flow.pool] {
        let distance = distances[usize::from(offer.site.location)];
        decision.offer(&offer.site, offer.address, offer.slices, distance);
    }
    decision.made()
}

/// Whether nobody is nearer, by round trips without noise.
fn is_right(world: &World, offers: &[Offer], flow: &Flow, choice: Option<Choice>) -> bool {
    let here = world.sites[flow.here];
    let trip =
        |location: u16| world.round_trips[usize::from(here.location)][usize::from(location)] as u32;
    let nearness = |site: &Site| {
        let tier = tier(&here, site);
        let trip = if tier == Tier::Elsewhere {
            trip(site.location)
        } else {
            0
        };
        (tier, trip)
    };
    let able = offers.iter().filter(|offer| offer.site.out == 0);
    let best = able.clone().map(|offer| nearness(&offer.site)).min();
    match (choice, best) {
        (None, None) => true,
        (Some(choice), Some(best)) => able
            .filter(|offer| offer.site.server == choice.server)
            .any(|offer| nearness(&offer.site) == best && choice.tier == best.0),
        _ => false,
    }
}

/// Servers die one at a time: those that drew them draw again, nobody else does (FWD-7).
fn deaths(
    world: &World,
    pools: &mut [Vec<Offer>],
    flows: &[Flow],
    choices: &[Option<Choice>],
    settled: &[Vec<u32>],
    random: &mut Random,
) -> u64 {
    let (mut used, mut others, mut lost) = (0u64, 0u64, 0u64);
    for _ in 0..DEATHS {
        let dead = choices[random.below(choices.len())].map_or(1, |choice| choice.server);
        let mark = |pools: &mut [Vec<Offer>], out: u16| {
            for offer in pools.iter_mut().flatten() {
                if offer.site.server == dead {
                    offer.site.out = out;
                }
            }
        };
        mark(pools, 1);
        for (flow, choice) in flows.iter().zip(choices) {
            let again = decide(world, pools, settled, flow);
            let drew = choice.is_some_and(|choice| choice.server == dead);
            used += u64::from(drew);
            lost += u64::from(drew && again.is_none());
            others += u64::from(!drew && again != *choice);
        }
        mark(pools, 0);
    }
    println!(
        "\n{DEATHS} servers die, each for itself: {used} new connections go elsewhere, {lost} have nowhere left to go, \
         {others} that did not use it change their way"
    );
    others
}

/// Measuring goes on, with noise: no decision may change (FWD-3).
fn noise(
    world: &World,
    pools: &[Vec<Offer>],
    flows: &[Flow],
    choices: &[Option<Choice>],
    random: &mut Random,
) -> u64 {
    let mut distances = world.distances.clone();
    for _ in 0..ROUNDS {
        for (row, trips) in distances.iter_mut().zip(&world.round_trips) {
            for (distance, trip) in row.iter_mut().zip(trips) {
                let part = random.below(2_001) as f64 / 1_000.0 - 1.0;
                *distance = distance.measured((trip * (1.0 + NOISE * part)) as u32);
            }
        }
    }
    let row = |row: &Vec<egress_common::distance::Distance>| {
        row.iter().map(|distance| distance.settled()).collect()
    };
    let settled: Vec<Vec<u32>> = distances.iter().map(row).collect();
    let differ = |(flow, choice): &(&Flow, &Option<Choice>)| {
        decide(world, pools, &settled, flow) != **choice
    };
    let changed = flows.iter().zip(choices).filter(differ).count() as u64;
    println!(
        "{ROUNDS} rounds of measuring with {:.0} % of noise: {changed} decisions change",
        NOISE * 100.0
    );
    changed
}
