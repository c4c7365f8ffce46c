//! `egress why`: which way a packet leaves, and why (OBS-5).

use std::net::IpAddr;

use super::context::{self, Context};
use super::endpoint::Endpoint;
use super::{CliError, Exit};
use crate::config::parse_mark;
use crate::control::{Failure, Request};
use crate::explain::{Explanation, Live, NothingLive, Query, Traffic, explain};
use crate::inventory::require_cgroup;
use crate::resolve::resolve;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The inside address; with a port, a live flow is looked for.
    #[arg(value_name = "SRC[:PORT]")]
    source: Endpoint,
    /// The origin.
    #[arg(value_name = "DST:PORT")]
    destination: Endpoint,
    /// The protocol: tcp, udp or icmp; or another one's name (sctp, gre, esp, ah, ipip) or number.
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
    Traffic::try_from(text.to_owned())
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
            if let Some(cgroup) = &query.cgroup {
                require_cgroup(cgroup)?;
            }
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
    let destination_port = port(destination, args.protocol)?;
    if source.port == Some(0) {
        return Err(Failure::usage(
            format!("no socket of {} has port 0", source.address),
            "leave the port away to ask about a new connection",
        ));
    }
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

/// The port to ask about; 0 for ICMP, which has none. Of other protocols nobody looks at it.
fn port(destination: Endpoint, protocol: Traffic) -> Result<u16, Failure> {
    let address = destination.address;
    match (destination.port, protocol) {
        (None, Traffic::Icmp | Traffic::Other(_)) => Ok(0),
        (Some(_), Traffic::Icmp) => Err(Failure::usage(
            "ICMP has no ports",
            format!("write the address alone: {address}"),
        )),
        (Some(port), Traffic::Other(_)) => Ok(port),
        (_, Traffic::Tcp | Traffic::Udp) => destination.socket().map(|socket| socket.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(source: &str, destination: &str, protocol: Traffic) -> Result<Query, Failure> {
        query(Args {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            mark: 0,
            interface: None,
            cgroup: None,
        })
    }

    #[test]
    fn ports_that_nothing_has_are_refused_with_an_example_of_the_same_family() {
        let refused = |source, destination, protocol| {
            let failure = asked(source, destination, protocol).unwrap_err();
            failure.to_string()
        };
        let v6 = refused("2001:db8::1", "2001:db8:1::5", Traffic::Tcp);
        assert!(v6.contains("[2001:db8:1::5]:443"), "{v6}");
        let v4 = refused("10.1.0.2", "203.0.113.5", Traffic::Udp);
        assert!(v4.contains("203.0.113.5:443"), "{v4}");
        let zero = refused("10.1.0.2", "203.0.113.5:0", Traffic::Tcp);
        assert!(zero.contains("port 0"), "{zero}");
        let any = refused("10.1.0.2:0", "203.0.113.5:443", Traffic::Tcp);
        assert!(any.contains("port 0"), "{any}");
        let ping = refused("10.1.0.2", "203.0.113.5:53", Traffic::Icmp);
        assert!(ping.contains("ICMP has no ports"), "{ping}");
    }

    #[test]
    fn what_is_complete_is_asked() {
        let tcp = asked("10.1.0.2", "203.0.113.5:443", Traffic::Tcp).unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port), (None, 443));
        let ping = asked("10.1.0.2", "203.0.113.5", Traffic::Icmp).unwrap();
        assert_eq!(ping.destination_port, 0);
    }
}
