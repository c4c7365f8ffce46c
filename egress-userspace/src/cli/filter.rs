//! The filters that every list has.

use std::net::IpAddr;

use super::endpoint::Endpoint;
use crate::control::Filter;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this zone (id or name).
    #[arg(long)]
    zone: Option<String>,
    /// Only this pool (id or name).
    #[arg(long)]
    pool: Option<String>,
    /// Only this origin: an address, with or without a port.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    origin: Option<Endpoint>,
    /// Only this egress IP.
    #[arg(long, value_name = "ADDRESS")]
    egress_ip: Option<IpAddr>,
}

impl From<Args> for Filter {
    fn from(args: Args) -> Self {
        Self {
            zone: args.zone,
            pool: args.pool,
            origin: args.origin.map(Into::into),
            egress_ip: args.egress_ip,
        }
    }
}
