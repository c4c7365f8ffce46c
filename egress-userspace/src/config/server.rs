//! `[server]`: the names this server goes by.

use crate::document::Table;

/// The server's place in the world: server < data center < location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The server's name, unique in a cluster; the host's name by default.
    pub name: String,
    /// The data center it stands in; `default` by default.
    pub data_center: String,
    /// The location (city) of the data center; `default` by default.
    pub location: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            name: host_name(),
            data_center: "default".into(),
            location: "default".into(),
        }
    }
}

impl Server {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let mut name = |key, example, default| {
            table
                .get(key, example)
                .and_then(|value| value.name())
                .unwrap_or(default)
        };
        let server = Self {
            name: name("name", "name = \"fra01-s1\"", default.name),
            data_center: name(
                "data_center",
                "data_center = \"fra01\"",
                default.data_center,
            ),
            location: name("location", "location = \"frankfurt\"", default.location),
        };
        table.finish();
        server
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}
