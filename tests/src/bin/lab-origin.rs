//! An origin in a lab. See [`egress_tests::origin`] for what it serves.

use std::net::IpAddr;

use anyhow::Result;
use clap::Parser;
use egress_tests::{
    origin::serve::Server,
    worker::{pin, raise_file_limit},
};

/// Tells callers which address it sees, holds connections, streams data.
#[derive(Debug, Parser)]
struct Args {
    /// An address to listen on.
    #[arg(long, required = true)]
    address: Vec<IpAddr>,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Go on when standard input has ended.
    #[arg(long)]
    detached: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_file_limit()?;
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    Server::new(&args.address)?.run(args.detached)
}
