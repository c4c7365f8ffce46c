//! `cargo xtask`: sets up, builds, runs, tests and measures.
//!
//! Every task installs what it lacks by itself, says so in a line, and may be repeated at any time.

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod build;
mod dist;
mod fuzz;
mod kernels;
mod lab;
mod libraries;
mod packages;
mod programs;
mod report;
mod run;
mod setup;
mod simulate;
mod story;
mod test;
mod toolchain;
mod topology;
mod workspace;

/// Sets up, builds, runs, tests and measures egress.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Build the release binary, target/release/egress
    Build(build::Args),
    /// Check formatting and lints, and run all tests
    Test(test::Args),
    /// Show egress at work in a small lab, or run the daemon on this host
    Run(run::Args),
    /// Set up a lab of network namespaces and work in it
    Lab(lab::Args),
    /// Build a Debian package, at target/dist
    Dist(dist::Args),
    /// Measure
    Bench(bench::Args),
    /// Look for inputs and packets that break a promise
    Fuzz(fuzz::Args),
    /// Simulate placement and forwarding in hundreds of data centers
    Simulate(simulate::Args),
    /// Be the first process of a virtual machine (`test --kernels` starts it)
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let result = match &Task::parse() {
        // Prints its own verdict, as the last line.
        Task::Test(args) => test::main(args),
        Task::Guest => Ok(kernels::guest::main()),
        Task::Build(args) => build::main(args).map(|()| ExitCode::SUCCESS),
        Task::Dist(args) => dist::main(args).map(|()| ExitCode::SUCCESS),
        Task::Run(args) => run::main(args).map(|()| ExitCode::SUCCESS),
        Task::Lab(args) => lab::main(args).map(|()| ExitCode::SUCCESS),
        Task::Bench(args) => bench::main(args).map(|()| ExitCode::SUCCESS),
        Task::Simulate(args) => simulate::main(args).map(|()| ExitCode::SUCCESS),
        Task::Fuzz(args) => fuzz::main(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
