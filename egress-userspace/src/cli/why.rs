//! `egress why`: which way a packet leaves, and why (OBS-5).

use std::net::IpAddr;

use super::context::{self, Context};
use super::endpoint::Endpoint;
use super::{CliError, Exit};
use crate::config::parse_mark;
use crate::control::{Failure, Request};
use crate::explain::{Explanation, Live, NothingLive, Query, Traffic, explain};
use crate::resolve::resolve;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The inside address; with a port, a live flow is looked for.
    #[arg(value_name = "SRC[:PORT]")]
    source: Endpoint,
    /// The origin.
    #[arg(value_name = "DST:PORT")]
    destination: Endpoint,
    /// The protocol.
    #[arg(long, default_value = "tcp", value_parser = traffic)]
    protocol: Traffic,
    /// The packet's firewall mark, decimal or hexadecimal.
    #[arg(long, default_value = "0", value_parser = mark)]
    mark: u32,
    /// The interface by which the packet enters.
    #[arg(long)]
    interface: Option<String>,
    /// The cgroup of the sending socket, below the cgroup2 mount.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
}

fn traffic(text: &str) -> Result<Traffic, String> {
    match text {
        "tcp" => Ok(Traffic::Tcp),
        "udp" => Ok(Traffic::Udp),
        "icmp" => Ok(Traffic::Icmp),
        _ => Err("expected tcp, udp or icmp".into()),
    }
}

fn mark(text: &str) -> Result<u32, String> {
    parse_mark(text).ok_or_else(|| "expected a 32-bit number, for instance 161 or 0xa1".into())
}

pub(super) fn run(context: &mut Context<'_>, args: Args) -> Result<Exit, CliError> {
    let query = query(args)?;
    let (config, _) = context.config()?;
    let explanation: Explanation = match context::ask(
        &config,
        &Request::Why {
            query: query.clone(),
        },
        &mut |_| Ok(()),
    )? {
        Some(answer) => serde_json::from_value(answer)?,
        None => {
            let local = context.local(config)?;
            let stored = &local.stored;
            let desired = resolve(&stored.resources(), &local.config, &stored.numbers)
                .map_err(Failure::from)?;
            match &local.view {
                Some(view) => explain(&desired, &query, &Live(view.as_ref())),
                None => explain(&desired, &query, &NothingLive),
            }
        }
    };
    context.print(&explanation, || explanation.to_string())?;
    Ok(Exit::Done)
}

fn query(args: Args) -> Result<Query, Failure> {
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let (source, destination) = (args.source, args.destination);
    if source.address.is_ipv4() != destination.address.is_ipv4() {
        return Err(Failure::usage(
            format!(
                "{} is {}, {} is {}: no packet has both",
                source.address,
                family(source.address),
                destination.address,
                family(destination.address)
            ),
            "give two addresses of one family",
        ));
    }
    let destination_port = match (destination.port, args.protocol) {
        (Some(port), _) => port,
        (None, Traffic::Icmp) => 0,
        (None, _) => {
            return Err(Failure::usage(
                format!("{} has no port", destination.address),
                format!("write DST:PORT, for instance {}:443", destination.address),
            ));
        }
    };
    Ok(Query {
        source: source.address,
        source_port: source.port,
        destination: destination.address,
        destination_port,
        protocol: args.protocol,
        mark: args.mark,
        interface: args.interface,
        cgroup: args.cgroup,
    })
}
