//! The daemon's two files for a lab, written from a few choices.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::standard::{
    INSIDE_BOUND, INSIDE_UNBOUND, POOL, RANGE, UPLINK, ZONE_PREFIX, ZONE_PREFIX_V6,
};

/// The pool's name.
pub const POOL_NAME: &str = "partners";
/// The zone's name.
pub const ZONE_NAME: &str = "shop.example";
/// The zone's id.
pub const ZONE_ID: &str = "023e105f4ecef8ad9ca31a8372d0c353";

/// What `egress.toml` says, apart from paths.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its data center.
    pub data_center: String,
    /// The location of that.
    pub location: String,
    /// The uplinks.
    pub uplink: Vec<String>,
    /// The inside interfaces.
    pub inside: Vec<String>,
    /// The fast path.
    pub accelerate: bool,
    /// Places in the flow table.
    pub max_flows: u32,
    /// More lines for `[dataplane]`.
    pub dataplane: String,
    /// Whole sections, such as `[timers]`.
    pub sections: String,
    /// A member of the etcd that servers share; then nothing is read from a resources file.
    pub etcd: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            name: "lab-s1".to_owned(),
            data_center: "lab".to_owned(),
            location: "lab".to_owned(),
            uplink: vec![UPLINK.to_owned()],
            inside: vec![INSIDE_BOUND.to_owned(), INSIDE_UNBOUND.to_owned()],
            accelerate: true,
            max_flows: 262_144,
            dataplane: String::new(),
            sections: String::new(),
            etcd: None,
        }
    }
}

/// What `resources.toml` says: one account, one pool, one zone.
#[derive(Clone, Debug)]
pub struct Resources {
    /// The pool's addresses, quoted as they are.
    pub addresses: Vec<String>,
    /// The cap of the pool.
    pub connections_per_origin: u32,
    /// More lines for the pool.
    pub pool: String,
    /// The zone's selectors, as lines.
    pub selectors: String,
    /// Whether the zone is enabled.
    pub enabled: bool,
    /// Whole sections.
    pub sections: String,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            addresses: POOL.iter().map(ToString::to_string).collect(),
            connections_per_origin: 40_000,
            pool: String::new(),
            selectors: format!("sources = [\"{ZONE_PREFIX}\"]"),
            enabled: true,
            sections: String::new(),
        }
    }
}

impl Server {
    /// The file's text for an instance in `directory` with its pins at `pin`.
    #[must_use]
    pub fn text(&self, directory: &Path, pin: &Path) -> String {
        let (etcd, resources) = match &self.etcd {
            Some(member) => (format!("etcd = [\"{member}\"]\n"), ""),
            None => (String::new(), "[resources]\nfile = \"resources.toml\"\n"),
        };
        format!(
            "[server]\nname = \"{name}\"\ndata_center = \"{data_center}\"\nlocation = \"{location}\"\n\n\
             [dataplane]\nuplink = {uplink}\ninside = {inside}\naccelerate = {accelerate}\n\
             max_flows = {max_flows}\npin = \"{pin}\"\n{dataplane}\n\n{sections}\n\n\
             [store]\nsqlite = \"{directory}/egress.db\"\n{etcd}\n\
             [control]\nsocket = \"{directory}/egress.sock\"\n\n{resources}",
            name = self.name,
            data_center = self.data_center,
            location = self.location,
            uplink = quoted(&self.uplink),
            inside = quoted(&self.inside),
            accelerate = self.accelerate,
            max_flows = self.max_flows,
            pin = pin.display(),
            dataplane = self.dataplane,
            sections = self.sections,
            directory = directory.display(),
        )
    }
}

impl Resources {
    /// A pool of IPv4 addresses and an IPv6 range, and a zone of both families.
    #[must_use]
    pub fn both_families() -> Self {
        let ipv4 = POOL.iter().map(ToString::to_string);
        Self {
            addresses: ipv4.chain([RANGE.to_string()]).collect(),
            selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
            ..Self::default()
        }
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(
            "[[account]]\nid = \"7f8a5b0c3d2e4f60718293a4b5c6d7e8\"\nname = \"acme\"\negress_tcp = true\negress_udp = true\n",
        );
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[pool]]\nid = \"{POOL_NAME}\"\naccount = \"acme\"\nkind = \"leased\"\naddresses = {}\n\
             connections_per_origin = {}\n{}\n\
             \n[[zone]]\nid = \"{ZONE_ID}\"\nname = \"{ZONE_NAME}\"\naccount = \"acme\"\n{}\n\
             [zone.aegis]\nenabled = {}\npool_id = \"{POOL_NAME}\"\n\n{}\n",
            quoted(&self.addresses),
            self.connections_per_origin,
            self.pool,
            self.selectors,
            self.enabled,
            self.sections,
        );
        text
    }
}

/// Both files in a directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// Where they are, with database and socket.
    pub directory: PathBuf,
    /// The pins.
    pub pin: PathBuf,
}

impl Files {
    /// The path of `egress.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("egress.toml")
    }

    /// The path of `resources.toml`.
    #[must_use]
    pub fn resources(&self) -> PathBuf {
        self.directory.join("resources.toml")
    }

    /// Writes `egress.toml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_server(&self, server: &Server) -> Result<()> {
        write(&self.config(), &server.text(&self.directory, &self.pin))
    }

    /// Writes `resources.toml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_resources(&self, resources: &Resources) -> Result<()> {
        write(&self.resources(), &resources.text())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn quoted(values: &[String]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
