//! The tracepoints by which the data plane learns of cgroups itself: a selected one that is created anew belongs to
//! its zone before anybody can enter it, with or without a daemon (ZONE-2, SAFE-1).
//!
//! Their links are pinned beside those of the interfaces. Such a link cannot be given another program, so a start
//! attaches its own beside the old one and puts it in its place; for an instant both do the same.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use super::object::Object;
use super::pins::Pins;
use super::sys;
use super::types::Types;
use crate::dataplane::api::{DataPlaneError, HookStatus};

/// A program and its tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracepoint {
    /// A cgroup was created.
    Born,
    /// A cgroup and its last socket are gone.
    Gone,
}

impl Tracepoint {
    pub(super) const ALL: [Self; 2] = [Self::Gone, Self::Born];

    /// The program's name in the object and of its pin.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Born => "cgroup_born",
            Self::Gone => "cgroup_gone",
        }
    }

    /// The kernel's name of the place.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Born => "cgroup_mkdir",
            Self::Gone => "cgroup_release",
        }
    }
}

/// Constants of the programs: where the running kernel keeps what they read.
///
/// # Errors
/// The kernel says nothing about its types, or has other ones.
pub(super) fn places() -> io::Result<[(&'static str, u32); 4]> {
    let types = Types::of_kernel()?;
    let place = |structure, field| {
        types
            .offset(structure, field)
            .ok_or_else(|| io::Error::other(format!("this kernel has no {structure}.{field}")))
    };
    Ok([
        ("CGROUP_ROOT", place("cgroup", "root")?),
        ("CGROUP_NODE", place("cgroup", "kn")?),
        ("ROOT_HIERARCHY", place("cgroup_root", "hierarchy_id")?),
        ("NODE_ID", place("kernfs_node", "id")?),
    ])
}

/// Puts both programs in their places; says what was not there.
///
/// # Errors
/// The kernel refused one.
pub(super) fn ensure(object: &mut Object, pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let mut done = Vec::new();
    for tracepoint in Tracepoint::ALL {
        let program = object.tracepoint(tracepoint)?;
        let failed = |error| {
            DataPlaneError::failed(
                format!(
                    "attaching {} to tracepoint {}",
                    tracepoint.program(),
                    tracepoint.name()
                ),
                error,
            )
        };
        let path = pins.tracepoint(tracepoint);
        let there = attached(&path).map_err(failed)?;
        if there == Some(program.id) {
            continue;
        }
        attach(program.fd, tracepoint, &path).map_err(failed)?;
        let what = if there.is_some() {
            "replaced"
        } else {
            "attached"
        };
        done.push(format!("{} was {what}", tracepoint.program()));
    }
    Ok(done)
}

fn attach(program: BorrowedFd<'_>, tracepoint: Tracepoint, path: &Path) -> io::Result<()> {
    let link = sys::open_raw_tracepoint(program, tracepoint.name())?;
    let mut beside = path.as_os_str().to_owned();
    beside.push("-new");
    let beside = Path::new(&beside);
    // Left by a start that was killed here.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::pin(link.as_fd(), beside)?;
    fs::rename(beside, path)
}

/// The program of a pinned link.
fn attached(path: &Path) -> io::Result<Option<u32>> {
    match sys::open_pin(path) {
        Ok(link) => Ok(Some(sys::link_info(link.as_fd())?.program)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes both programs off; says which were there. Their links end with their pins.
pub(super) fn remove(pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let mut removed = Vec::new();
    for tracepoint in Tracepoint::ALL.into_iter().rev() {
        let path = pins.tracepoint(tracepoint);
        match fs::remove_file(&path) {
            Ok(()) => removed.push(format!(
                "program: {} on tracepoint {}",
                tracepoint.program(),
                tracepoint.name()
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(DataPlaneError::failed(
                    format!("removing {}", path.display()),
                    error,
                ));
            }
        }
    }
    Ok(removed)
}

/// What is attached, for `egress status`.
pub(super) fn status(pins: &Pins) -> Result<Vec<HookStatus>, DataPlaneError> {
    Tracepoint::ALL
        .into_iter()
        .map(|tracepoint| {
            let path = pins.tracepoint(tracepoint);
            let program_id = attached(&path).map_err(|error| {
                DataPlaneError::failed(format!("looking at link {}", path.display()), error)
            })?;
            Ok(HookStatus {
                hook: tracepoint.program().to_owned(),
                interface: tracepoint.name().to_owned(),
                kind: "tracepoint".to_owned(),
                program_id,
                in_place: program_id.is_some(),
            })
        })
        .collect()
}
