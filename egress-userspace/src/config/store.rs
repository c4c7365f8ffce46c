//! `[store]`: where resources are kept between runs (CLU-1).

use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::{Table, Value};

/// Where resources are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Path of the SQLite file: the store, `/var/lib/egress/egress.db` by default; or the copy of what etcd holds,
    /// `/var/lib/egress/etcd-copy.db` by default.
    pub sqlite: PathBuf,
    /// The store that servers share, if there is one.
    pub etcd: Option<Etcd>,
}

/// An etcd cluster, and where in it our keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// `http://HOST:PORT` or `https://HOST:PORT`, of some or all members.
    pub endpoints: Vec<String>,
    /// Before all our keys; `/egress` by default, without a slash at the end.
    pub prefix: String,
    /// Name to log in with.
    pub user: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// PEM file with the authority that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// PEM file with this server's certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key to that.
    pub key: Option<PathBuf>,
}

impl Etcd {
    /// What its keys are told from others' by.
    pub fn source(&self) -> String {
        let endpoint = self.endpoints.first().map_or("etcd", String::as_str);
        format!("{endpoint}{}", self.prefix)
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            sqlite: "/var/lib/egress/egress.db".into(),
            etcd: None,
        }
    }
}

/// Where the copy is by default.
const COPY: &str = "/var/lib/egress/etcd-copy.db";

impl Store {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let sqlite = table
            .get("sqlite", "sqlite = \"/var/lib/egress/egress.db\"")
            .and_then(|value| value.name())
            .map(|path| resolve(directory, &path));
        let endpoints = endpoints(&mut table);
        let prefix = table.get("prefix", "prefix = \"/egress\"").and_then(prefix);
        let user = table
            .get("etcd_user", "etcd_user = \"egress\"")
            .and_then(|value| value.name());
        let mut file = |key, example| {
            let path = table.get(key, example).and_then(|value| value.name());
            path.map(|path| resolve(directory, &path))
        };
        let etcd = Etcd {
            prefix: prefix.unwrap_or_else(|| "/egress".to_owned()),
            user,
            password_file: file(
                "etcd_password_file",
                "etcd_password_file = \"etcd.password\"",
            ),
            ca: file("etcd_ca", "etcd_ca = \"etcd-ca.crt\""),
            certificate: file("etcd_certificate", "etcd_certificate = \"etcd.crt\""),
            key: file("etcd_key", "etcd_key = \"etcd.key\""),
            endpoints,
        };
        if etcd.certificate.is_some() != etcd.key.is_some() {
            table.lacks(
                ["etcd_certificate", "etcd_key"],
                "`etcd_certificate` and `etcd_key` go together",
                "write both, or neither",
            );
        }
        let etcd = Some(etcd).filter(|etcd| !etcd.endpoints.is_empty());
        table.finish();
        let default = match etcd {
            Some(_) => COPY.into(),
            None => Self::default().sqlite,
        };
        Self {
            sqlite: sqlite.unwrap_or(default),
            etcd,
        }
    }
}

fn endpoints(table: &mut Table<'_, '_>) -> Vec<String> {
    let Some(value) = table.get("etcd", "etcd = [\"http://192.0.2.1:2379\"]") else {
        return Vec::new();
    };
    let Some(values) = value.array() else {
        return Vec::new();
    };
    if values.is_empty() {
        value.refuse(
            "`etcd` names no member",
            "write, for instance, etcd = [\"http://192.0.2.1:2379\"]; or leave it out",
        );
    }
    values.into_iter().filter_map(endpoint).collect()
}

fn endpoint(value: Value<'_, '_>) -> Option<String> {
    let text = value.name()?;
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let host = rest
        .and_then(|rest| rest.rsplit_once(':'))
        .filter(|(host, port)| {
            !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
        });
    if host.is_none() {
        value.refuse(
            format!("\"{text}\" is no address of an etcd member"),
            "write http://HOST:PORT or https://HOST:PORT, for instance \"http://192.0.2.1:2379\"",
        );
        return None;
    }
    Some(text)
}

fn prefix(value: Value<'_, '_>) -> Option<String> {
    let text = value.name()?;
    let good = text.starts_with('/')
        && !text.ends_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !good {
        value.refuse(
            format!("\"{text}\" is no prefix of keys"),
            "begin with a slash and do not end with one, for instance prefix = \"/egress\"",
        );
        return None;
    }
    Some(text)
}
