//! `cargo xtask simulate`: placement and forwarding in a world of hundreds of data centers.
//!
//! Runs the code that is meant for kernel and daemon, and holds every decision against the rule as it is written
//! (FWD-2). Ends with an error if one of them is wrong.

mod changes;
mod decisions;
mod random;
mod world;

use std::process::ExitCode;

use random::Random;
use world::World;

/// What can be told on the command line, as `--name number`.
struct Options {
    data_centers: u64,
    servers: u64,
    addresses: u64,
    flows: u64,
    changes: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("simulation: {problem}");
            return ExitCode::from(2);
        }
    };
    let mut random = Random(options.seed);
    let world = World::make(&options, &mut random);
    println!(
        "{} locations, {} data centers, {} servers, {} egress IPs in pools of {}; seed {}",
        world.locations,
        options.data_centers,
        world.sites.len(),
        world.addresses.len(),
        world::POOL,
        options.seed
    );
    let mut wrong = decisions::simulate(&world, options.flows, &mut random);
    wrong += changes::simulate(&world, options.changes, &mut random);
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        eprintln!("simulation: {wrong} times a rule was broken");
        ExitCode::FAILURE
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        data_centers: 300,
        servers: 10_000,
        addresses: 4_000,
        flows: 1_000_000,
        changes: 500,
        seed: std::process::id().into(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next();
        let number = value.as_ref().and_then(|value| value.parse::<u64>().ok());
        let (place, range) = match name.as_str() {
            "--data-centers" => (&mut options.data_centers, 12..=10_000),
            "--servers" => (&mut options.servers, 12..=60_000),
            "--addresses" => (&mut options.addresses, 4..=100_000),
            "--flows" => (&mut options.flows, 1..=100_000_000),
            "--changes" => (&mut options.changes, 1..=1_000_000),
            "--seed" => (&mut options.seed, 0..=u64::MAX),
            _ => return Err(format!("there is no option {name}")),
        };
        *place = number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("{name} takes a number from {range:?}"))?;
    }
    if options.servers < options.data_centers {
        return Err("there must be at least as many servers as data centers".into());
    }
    Ok(options)
}
