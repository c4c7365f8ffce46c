//! `egress.toml`: how this server is set up. One file a section; each states its defaults once.

mod announce;
mod api;
mod cluster;
mod control;
mod dataplane;
mod exempt;
mod flow_log;
mod handover;
mod resources;
mod server;
mod store;
mod timers;
mod tunnel;
mod utilization;

use std::path::{Path, PathBuf};

pub use announce::{Announce, WhenDown};
pub use api::{Api, Tls};
pub use cluster::Cluster;
pub use control::Control;
pub use dataplane::{Attach, Dataplane, Refuse, Xdp};
pub(crate) use dataplane::{interface_problem, parse_mark};
pub use exempt::{DNS_PORT, Exempt, IcmpQueries};
pub use flow_log::{EVENTS, FlowLog, Target};
pub use handover::Handover;
pub use resources::ResourcesFile;
pub use server::Server;
pub use store::{Etcd, Store};
pub use timers::Timers;
pub use tunnel::Tunnel;

use crate::diagnostic::{Diagnostics, Report, Source, SourceError};
use crate::document::{self, Table};
use crate::utilization::Retention;

/// Where `--config` points unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/egress/egress.toml";

/// The configuration of one server. Relative paths have been resolved against the file's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[server]`: what this server is called.
    pub server: Server,
    /// `[dataplane]`: interfaces, sizes, pins.
    pub dataplane: Dataplane,
    /// `[exempt]`: what takes the default egress (POLICY-7).
    pub exempt: Exempt,
    /// `[timers]`: idle times and holds (NAT-7).
    pub timers: Timers,
    /// `[store]`: where resources are kept.
    pub store: Store,
    /// `[utilization]`: how long its history is kept.
    pub utilization: Retention,
    /// `[control]`: the control socket.
    pub control: Control,
    /// `[api]`: the HTTP listener; nothing listens without the section.
    pub api: Option<Api>,
    /// `[resources]`: the file applied at start and on SIGHUP.
    pub resources: ResourcesFile,
    /// `[tunnel]`: this server's end of the tunnel to the other servers.
    pub tunnel: Tunnel,
    /// `[cluster]`: how the servers' daemons ask each other; they do not without the section.
    pub cluster: Option<Cluster>,
    /// `[announce]`: routes for a routing daemon to export; none without the section.
    pub announce: Option<Announce>,
    /// `[flow_log]`: the log of connections; none without the section.
    pub flow_log: Option<FlowLog>,
    /// `[handover]`: how servers that share a store hand slices over (CLU-3).
    pub handover: Handover,
}

/// The top-level keys of this kind of file; `egress validate` tells the kinds apart by them.
pub const SECTIONS: [&str; 14] = [
    "server",
    "dataplane",
    "exempt",
    "timers",
    "store",
    "utilization",
    "control",
    "api",
    "resources",
    "tunnel",
    "announce",
    "flow_log",
    "cluster",
    "handover",
];

impl Config {
    /// Reads and checks a file; returns it with its warnings.
    pub fn load(path: &Path) -> Result<(Self, Diagnostics), ConfigError> {
        let source = Source::read(path)?;
        let (config, found) = Self::parse(&source, path.parent().unwrap_or(Path::new(".")));
        match config {
            Some(config) => Ok((config, found)),
            None => Err(ConfigError::Invalid(found)),
        }
    }

    /// Checks a text; `directory` is what relative paths are relative to. `None` when there are errors.
    pub fn parse(source: &Source, directory: &Path) -> (Option<Self>, Diagnostics) {
        let report = Report::new(source);
        let document = document::parse(&report);
        let config = Self::read(Table::root(&document, &report), directory);
        let valid = !report.has_errors();
        (valid.then_some(config), report.finish())
    }

    /// What can be read of a file that may have mistakes, defaults for the rest; and whether that is the file's own
    /// word about `pin`, which says what instance is meant. `None` when there is no text to read.
    pub fn salvage(path: &Path) -> Option<(Self, bool)> {
        let source = Source::read(path).ok()?;
        let report = Report::new(&source);
        let document = document::parse(&report);
        let readable = !report.is_incomplete();
        let directory = path.parent().unwrap_or(Path::new("."));
        let config = Self::read(Table::root(&document, &report), directory);
        drop(document);
        let of_pin = |reason: &str| reason.starts_with("`pin`") || reason.contains("unknown key");
        let known = readable && !report.finish().0.iter().any(|found| of_pin(&found.reason));
        Some((config, known))
    }

    fn read(mut root: Table<'_, '_>, directory: &Path) -> Self {
        let report = root.report();
        let dataplane = root.section("dataplane");
        if dataplane.is_none() {
            root.lacks(
                ["dataplane"],
                "there is no [dataplane] section",
                "add [dataplane] with uplink = [\"eth0\"], the interfaces that lead to the origins",
            );
        }
        let store = root
            .section("store")
            .map(|table| Store::read(table, directory))
            .unwrap_or_default();
        let resources = match root.section("resources") {
            Some(table) if store.etcd.is_some() => {
                report.error(
                    table.span(),
                    "[resources] feeds this server's file into a store that servers share",
                    "leave the section out, and use `egress apply -f FILE` on any of the servers",
                );
                ResourcesFile::default()
            }
            Some(table) => ResourcesFile::read(table, directory),
            None => ResourcesFile::default(),
        };
        let announce = root.section("announce").map(Announce::read);
        let handover = root
            .section("handover")
            .map(|table| Handover::read(table, &store, announce.as_ref()))
            .unwrap_or_default();
        let config = Self {
            server: root.section("server").map(Server::read).unwrap_or_default(),
            dataplane: dataplane.map(Dataplane::read).unwrap_or_default(),
            exempt: root.section("exempt").map(Exempt::read).unwrap_or_default(),
            timers: root.section("timers").map(Timers::read).unwrap_or_default(),
            store,
            utilization: root
                .section("utilization")
                .map(utilization::read)
                .unwrap_or_default(),
            control: root
                .section("control")
                .map(|table| Control::read(table, directory))
                .unwrap_or_default(),
            api: root.section("api").map(|table| Api::read(table, directory)),
            resources,
            tunnel: root.section("tunnel").map(Tunnel::read).unwrap_or_default(),
            cluster: root
                .section("cluster")
                .map(|table| Cluster::read(table, directory)),
            announce,
            flow_log: root
                .section("flow_log")
                .map(|table| FlowLog::read(table, directory)),
            handover,
        };
        root.finish();
        config
    }
}

/// `path`, taken from `directory` when it is relative.
fn resolve(directory: &Path, path: &str) -> PathBuf {
    directory.join(path)
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file has errors.
    #[error("{0}")]
    Invalid(Diagnostics),
}

#[cfg(test)]
mod tests;
