//! A client in a lab: reads requests as JSON lines and answers each with a line. See
//! [`egress_tests::client`] for what it can be asked.

use std::{io::stdin, net::IpAddr, os::fd::OwnedFd, time::Duration};

use anyhow::Result;
use clap::Parser;
use egress_tests::{
    client::{Outcome, Request, churn, fetch, open::Held, socket::Maker, udp},
    worker::{Line, pin, raise_file_limit, say},
};

/// Opens, holds, counts and closes connections on command.
#[derive(Debug, Parser)]
struct Args {
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// The mark of all sockets.
    #[arg(long)]
    mark: Option<u32>,
    /// The local address of all sockets.
    #[arg(long)]
    bind: Option<IpAddr>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_file_limit()?;
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    let maker = Maker {
        mark: args.mark,
        bind: args.bind,
    };
    let mut held = Held::default();
    let mut datagrams = Vec::new();
    say(&Line::<()>::Ready)?;
    for line in stdin().lines() {
        let result = serde_json::from_str(&line?)
            .map_err(anyhow::Error::from)
            .and_then(|request| serve(&maker, &mut held, &mut datagrams, &request));
        match result {
            Ok(outcome) => say(&Line::Done(outcome))?,
            Err(error) => say(&Line::<()>::Failed(format!("{error:#}")))?,
        }
    }
    Ok(())
}

fn serve(
    maker: &Maker,
    held: &mut Held,
    datagrams: &mut Vec<OwnedFd>,
    request: &Request,
) -> Result<Outcome> {
    match request {
        Request::Open(open) => held.open(maker, open),
        Request::Close(close) => {
            datagrams.clear();
            held.close(close)
        }
        Request::Check { timeout_ms } => held.check(Duration::from_millis(*timeout_ms)),
        Request::Churn(request) => churn::churn(maker, request),
        Request::Paced(request) => churn::paced(maker, request),
        Request::Fetch(request) => {
            fetch::fetch(maker, request, |done| say(&Line::<()>::Progress(done)))
        }
        Request::Udp(request) => udp::udp(maker, request, datagrams),
    }
}
