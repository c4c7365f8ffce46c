//! The labs there are, by the names of the command line.

use std::str::FromStr;

use anyhow::{Result, bail};
use egress_tests::{
    cities,
    standard::{self, Kind, Masquerade, Options},
};

/// A lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// One gateway, two clients, two origins.
    Standard(Kind),
    /// Eight servers in three locations.
    ThreeLocations,
}

impl Topology {
    /// All of them.
    const ALL: [Self; 3] = [
        Self::Standard(Kind::Routed),
        Self::Standard(Kind::Segment),
        Self::ThreeLocations,
    ];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Standard(kind) => kind.name(),
            Self::ThreeLocations => cities::NAME,
        }
    }

    /// Its nodes.
    pub(crate) fn nodes(self) -> Vec<String> {
        let topology = match self {
            Self::Standard(kind) => standard::topology(&options(kind)),
            Self::ThreeLocations => cities::topology(),
        };
        topology.nodes().map(str::to_owned).collect()
    }
}

impl FromStr for Topology {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|one| one.name() == name) {
            Some(found) => Ok(found),
            None => bail!(
                "no topology {name}; there are: {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}

/// The standard lab as `run` and `lab` set it up.
pub(crate) fn options(kind: Kind) -> Options {
    Options {
        kind,
        masquerade: Masquerade::Unbound,
        ..Options::default()
    }
}
