//! By what a host knows itself again: a file beside its copy of the shared store, and the machine id (CLU-3).
//!
//! A file of its own: whoever moves a damaged copy away does not make the host another one by it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{StoreError, hash_of, random};
use crate::ownership::{Host, Impostor};

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Made at random.
    pub(super) id: String,
    /// The machine that it was made on, or last known to be right on.
    pub(super) machine: String,
    /// The start of the kernel under which that was.
    #[serde(default)]
    pub(super) boot: String,
    /// The server that it was found to be, or not to be, last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<String>,
    /// The host that has this server's name instead, where it was found to be another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lost_to: Option<Host>,
}

/// Where it is kept: `egress.host` beside `egress.db`.
pub(super) fn beside(copy: &Path) -> PathBuf {
    copy.with_extension("host")
}

impl Identity {
    /// The one that is kept there; a new one where there is none.
    pub(super) fn at(path: &Path) -> Result<Self, StoreError> {
        if let Some(kept) = Self::kept(path)? {
            return Ok(kept);
        }
        let made = Self::make().map_err(|error| inaccessible(path, &error))?;
        made.keep(path)?;
        Ok(made)
    }

    /// The one that is kept there, if there is one.
    pub(super) fn kept(path: &Path) -> Result<Option<Self>, StoreError> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| StoreError::NoIdentity {
                path: path.to_owned(),
                reason: error.to_string(),
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(inaccessible(path, &error)),
        }
    }

    /// Why this host is not the server that it goes by, as far as it is known without asking anybody.
    pub(super) fn impostor(&self, server: &str, own: &Host) -> Option<Impostor> {
        let is_moved = self.machine != own.machine && !own.is_of_boot(&self.boot);
        let is_other = self.server.as_ref().is_some_and(|known| known != server);
        (is_moved || is_other || self.lost_to.is_some()).then(|| Impostor {
            server: server.to_owned(),
            own: own.clone(),
            // Who has another name has not this one.
            other: self.lost_to.clone().filter(|_| !is_other),
        })
    }

    fn make() -> std::io::Result<Self> {
        let id: [u8; 16] = random()?;
        Ok(Self {
            id: hex(&id),
            machine: machine(),
            boot: boot(),
            server: None,
            lost_to: None,
        })
    }

    /// Writes it, wholly or not at all.
    pub(super) fn keep(&self, path: &Path) -> Result<(), StoreError> {
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_string(self)?;
            let new = path.with_extension("host.new");
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|error| inaccessible(path, &error))
    }

    /// This host, before it has started under a name.
    pub(super) fn host(&self) -> Host {
        let hostname = kernel("hostname");
        Host {
            id: self.id.clone(),
            machine: machine(),
            hostname,
            since: super::now(),
            start: 0,
            mark: String::new(),
            boot: boot(),
            asked: None,
        }
    }
}

fn kernel(name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"));
    text.unwrap_or_default().trim().to_owned()
}

/// The start of this kernel, which has a name.
fn boot() -> String {
    kernel("random/boot_id")
}

/// A digest of this machine's id, which is nobody else's business; empty where it has none.
fn machine() -> String {
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    digest(text.trim())
}

fn digest(machine_id: &str) -> String {
    // So it is called until the first boot is over.
    if machine_id.is_empty() || machine_id == "uninitialized" {
        return String::new();
    }
    let hash = hash_of(&format!("egress host {machine_id}"));
    hex(&hash[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn inaccessible(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Inaccessible {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_knows_itself_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = beside(&directory.path().join("egress.db"));
        assert!(path.ends_with("egress.host"));
        let made = Identity::at(&path).unwrap();
        assert_eq!(made.id.len(), 32);
        assert_eq!(Identity::at(&path).unwrap(), made);
        assert_ne!(Identity::make().unwrap().id, made.id);
        // Before etcd was asked it is whatever server it is said to be; then it is that one.
        let own = made.host();
        assert_eq!(made.impostor("s1", &own), None);
        let found = Identity {
            server: Some("s1".into()),
            ..made.clone()
        };
        assert_eq!(found.impostor("s1", &own), None);
        let lost = |identity: &Identity, server| {
            let found = identity.impostor(server, &own);
            found.map(|impostor| impostor.other.is_some())
        };
        assert_eq!(lost(&found, "s2"), Some(false));
        let other = Identity {
            lost_to: Some(own.clone()),
            ..found.clone()
        };
        assert_eq!(lost(&other, "s1"), Some(true));
        assert_eq!(lost(&other, "s2"), Some(false));
        // Another machine id is another machine's, unless the kernel is the same.
        let moved = Identity {
            machine: "0123456789abcdef".into(),
            ..found
        };
        assert_eq!(lost(&moved, "s1"), None);
        let copied = Identity {
            boot: "another".into(),
            ..moved
        };
        assert_eq!(lost(&copied, "s1"), Some(false));
        let lost = Identity {
            lost_to: Some(made.host()),
            ..made
        };
        lost.keep(&path).unwrap();
        assert_eq!(Identity::at(&path).unwrap(), lost);
        fs::write(&path, "{\"id\":").unwrap();
        let error = Identity::at(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::NoIdentity { .. }) && error.remedy().contains("claim"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_id_is_told_by_its_digest_alone() {
        let id = "4c4c4544004d3510804cb4c04f4e3332";
        assert_eq!(digest(id).len(), 16);
        assert_ne!(digest(id), digest("4c4c4544004d3510804cb4c04f4e3333"));
        assert!(digest("").is_empty() && digest("uninitialized").is_empty());
    }
}
