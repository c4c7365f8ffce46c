//! From a cgroup's path to what kernel programs and nftables know it by (ZONE-2).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use egress_common::settings::{CGROUP_PATH, CgroupPath};

use crate::dataplane::api::DataPlaneError;

/// The deepest level at which a cgroup may be selected: the data plane looks no deeper.
pub(super) const MAX_LEVEL: u32 = 16;

/// Where `nft` looks for cgroups, wherever cgroup2 is mounted.
const NFT_ROOT: &str = "/sys/fs/cgroup";

/// A cgroup that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// Its id: the inode number of its directory (kernfs, on 64-bit kernels). A restarted service has another.
    pub(super) id: u64,
    /// How many levels it is below the root.
    pub(super) level: u32,
    /// Its path as `nft` wants it: relative to `/sys/fs/cgroup`.
    pub(super) nft: String,
}

/// The selected cgroups that exist, by path below the cgroup2 mount.
pub(super) type Cgroups = BTreeMap<String, Cgroup>;

/// Looks up the paths; those that do not exist are not in the result.
///
/// # Errors
/// A path is selected and no cgroup2 is mounted, or the path cannot be looked at.
pub(super) fn find<'a>(paths: impl Iterator<Item = &'a String>) -> Result<Cgroups, DataPlaneError> {
    let mut found = Cgroups::new();
    let mut mount = None;
    for path in paths {
        let mount: &PathBuf = match &mount {
            Some(mount) => mount,
            None => mount.insert(mounted(path)?),
        };
        if let Some(cgroup) = look_up(mount, path)? {
            found.insert(path.clone(), cgroup);
        }
    }
    Ok(found)
}

/// Where the cgroup of this path is, or would be.
///
/// # Errors
/// No cgroup2 file system is mounted.
pub fn directory(path: &str) -> Result<PathBuf, DataPlaneError> {
    Ok(mounted(path)?.join(path.trim_matches('/')))
}

fn mounted(path: &str) -> Result<PathBuf, DataPlaneError> {
    const MOUNTS: &str = "/proc/self/mounts";
    let mounts = fs::read_to_string(MOUNTS)
        .map_err(|error| DataPlaneError::failed(format!("reading {MOUNTS}"), error))?;
    mount_point(&mounts).ok_or_else(|| DataPlaneError::Refused {
        reason: format!("a zone selects cgroup {path}, and no cgroup2 file system is mounted"),
        remedy: "mount one: `mount -t cgroup2 none /sys/fs/cgroup`".to_owned(),
    })
}

/// The first cgroup2 mount of a `/proc/self/mounts`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let _device = fields.next()?;
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// How many levels a path is below the root.
pub(super) fn level(path: &str) -> u32 {
    u32::try_from(path.split('/').count()).unwrap_or(u32::MAX)
}

fn look_up(mount: &Path, path: &str) -> Result<Option<Cgroup>, DataPlaneError> {
    let refused = |reason: String, remedy: &str| DataPlaneError::Refused {
        reason,
        remedy: remedy.to_owned(),
    };
    let level = level(path);
    if level > MAX_LEVEL {
        return Err(refused(
            format!("cgroup {path} is {level} levels deep; at most {MAX_LEVEL} are looked at"),
            "select one of the cgroups around it",
        ));
    }
    if CgroupPath::new(0, path).is_none() {
        return Err(refused(
            format!(
                "cgroup {path} is {} bytes long; at most {} are looked at",
                path.len(),
                CGROUP_PATH - 2
            ),
            "select one of the cgroups around it",
        ));
    }
    // The root has no type; where there is one, somebody's cgroup namespace only calls it the root.
    if mount.join("cgroup.type").exists() {
        return Err(refused(
            format!(
                "the cgroup2 file system at {} is that of a cgroup namespace, and its paths are not this host's",
                mount.display()
            ),
            "run the daemon outside of cgroup namespaces (in a container: with the host's)",
        ));
    }
    let directory = mount.join(path);
    let found = match fs::metadata(&directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(DataPlaneError::failed(
                format!("looking at cgroup {}", directory.display()),
                error,
            ));
        }
    };
    let Some(nft) = directory
        .strip_prefix(NFT_ROOT)
        .ok()
        .and_then(Path::to_str)
        .filter(|name| !name.contains(['"', '\\', '\n']))
    else {
        return Err(refused(
            format!(
                "cgroup {} cannot be named to nftables, which guards it",
                directory.display()
            ),
            "mount cgroup2 at or below /sys/fs/cgroup, and use no quotes in names",
        ));
    };
    Ok(Some(Cgroup {
        id: found.ino(),
        level,
        nft: nft.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            mount_point(hybrid).unwrap(),
            Path::new("/sys/fs/cgroup/unified")
        );
        assert_eq!(mount_point("tmpfs / tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_left_out() {
        assert_eq!(
            look_up(Path::new("/sys/fs/cgroup"), "no/such.slice").unwrap(),
            None
        );
        let error = look_up(Path::new("/"), &"a/".repeat(20)).unwrap_err();
        assert!(error.to_string().contains("levels deep"), "{error}");
    }
}
