//! What is not as the configuration supposes, as it is now: interfaces, addresses and cgroups that others changed.

use super::addresses;
use super::cgroups;
use super::deadline;
use super::interfaces::Interface;
use super::maps::Maps;
use super::taken;
use super::versions;
use crate::dataplane::api::{DataPlaneError, Deadline as _, Names, Trouble, TroubleKind};
use crate::resource::Address;

/// Looks at these interfaces, and at the addresses and cgroups that are in force.
pub(super) fn look(
    maps: &Maps,
    names: &Names,
    uplinks: &[String],
    insides: &[String],
) -> Result<Vec<Trouble>, DataPlaneError> {
    let mut found = Vec::new();
    for (interface, is_uplink) in uplinks
        .iter()
        .map(|name| (name, true))
        .chain(insides.iter().map(|name| (name, false)))
    {
        found.extend(of_interface(interface, is_uplink)?);
    }
    let wanted: Vec<Address> = addresses::in_use(maps)?;
    found.extend(taken::troubles(&wanted)?);
    for (path, zone) in versions::cgroup_paths(maps)? {
        let zone = u16::try_from(zone).map_or_else(|_| zone.to_string(), |zone| names.zone(zone));
        found.extend(of_cgroup(&path, &zone));
    }
    found.extend(deadline::Pinned::of(maps).has_come().then(lapsed));
    Ok(found)
}

fn lapsed() -> Trouble {
    Trouble {
        kind: TroubleKind::Lapsed,
        subject: "takeover_after".to_owned(),
        text: "etcd has not heard of this server for so long that others may have its IPv4 egress IPs by now: it uses none of them until it is heard of"
            .to_owned(),
        remedy: "see that its daemon runs and reaches etcd; if there is none any more: `egress detach`, and start it again"
            .to_owned(),
    }
}

/// Why an interface cannot be used as it is; one that is not there is a hook that is missing.
pub(super) fn of_interface(name: &str, is_uplink: bool) -> Result<Option<Trouble>, DataPlaneError> {
    let Some(interface) = Interface::find(name)? else {
        return Ok(None);
    };
    Ok(match interface.check_kind() {
        Ok(()) => None,
        Err(DataPlaneError::Refused { reason, remedy }) => Some(Trouble {
            kind: TroubleKind::Interface,
            subject: name.to_owned(),
            text: if is_uplink {
                format!("{reason}; nothing bound leaves by it")
            } else {
                reason
            },
            remedy,
        }),
        Err(error) => return Err(error),
    })
}

fn of_cgroup(path: &str, zone: &str) -> Option<Trouble> {
    let place = match cgroups::directory(path) {
        Ok(directory) if directory.exists() => return None,
        Ok(directory) => format!("there is no {}", directory.display()),
        Err(error) => error.to_string(),
    };
    Some(Trouble {
        kind: TroubleKind::Cgroup,
        subject: path.to_owned(),
        text: format!("zone {zone} selects cgroup {path}, and {place}: until there is one, it selects nothing by it"),
        remedy: "start the service, or correct the path: it is told below the cgroup2 mount (`/proc/PID/cgroup` behind `0::/`)"
            .to_owned(),
    })
}
