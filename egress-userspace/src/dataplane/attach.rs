//! Programs on interfaces: put there, replaced without losing a packet, and taken off.
//!
//! With tcx, each program is held by a link that is pinned: the kernel keeps it while the pin exists and the
//! interface does. A start that finds the pin puts its own program into the same link, in one step. With clsact
//! there is nothing to pin: a filter stays until it is removed, and is found again by its place.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

use super::clsact;
use super::hook::{Hook, Order};
use super::interfaces::Interface;
use super::neighbours;
use super::pins::Pins;
use super::sys::{self, Direction, LinkInfo};
use crate::config::Attach;
use crate::dataplane::api::DataPlaneError;

/// How programs are attached on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Links on the tcx hook, Linux 6.6 and later.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

impl Kind {
    /// What the configuration and this kernel lead to.
    ///
    /// # Errors
    /// tcx was demanded and the kernel has none.
    pub(super) fn choose(wanted: Attach, interface: &Interface) -> Result<Self, DataPlaneError> {
        let supported = match sys::tcx(interface.index, Direction::Egress) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => {
                return Err(DataPlaneError::failed(
                    format!("asking {} for its tcx programs", interface.name),
                    error,
                ));
            }
        };
        match wanted {
            Attach::Clsact => Ok(Self::Clsact),
            Attach::Auto | Attach::Tcx if supported => Ok(Self::Tcx),
            Attach::Auto => Ok(Self::Clsact),
            Attach::Tcx => Err(DataPlaneError::Refused {
                reason:
                    "[dataplane] attach is \"tcx\", and this kernel has no tcx (Linux 6.6 and later)"
                        .to_owned(),
                remedy: "write attach = \"auto\" or \"clsact\"".to_owned(),
            }),
        }
    }

    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What became of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The program was in place already.
    Unchanged,
    /// Another program was there and was replaced in one step.
    Replaced,
    /// Nothing was there.
    Attached,
}

/// Puts a program in its place.
pub(super) fn ensure(
    program: &mut SchedClassifier,
    pins: &Pins,
    kind: Kind,
    interface: &Interface,
    hook: Hook,
) -> Result<Outcome, DataPlaneError> {
    let id = program
        .info()
        .map_err(|error| {
            DataPlaneError::failed(format!("looking at program {}", hook.program()), error)
        })?
        .id();
    match kind {
        Kind::Tcx => {
            let outcome = ensure_link(program, id, pins, interface, hook)?;
            // Left from a run with attach = "clsact".
            if own_filter(pins, interface, hook)?.is_some() {
                clsact::uninstall(interface, hook)?;
            }
            Ok(outcome)
        }
        Kind::Clsact => {
            let outcome = match clsact::installed(interface, hook)? {
                Some(filter) if filter.program == id => Outcome::Unchanged,
                found => {
                    neighbours::check_interface(pins, interface, hook.key())?;
                    clsact::install(program, interface, hook, &neighbours::programs(pins)?)?;
                    if found.is_some() {
                        Outcome::Replaced
                    } else {
                        Outcome::Attached
                    }
                }
            };
            // Left from a run with tcx.
            remove_link(&pins.link(&interface.name, hook))?;
            Ok(outcome)
        }
    }
}

fn ensure_link(
    program: &mut SchedClassifier,
    id: u32,
    pins: &Pins,
    interface: &Interface,
    hook: Hook,
) -> Result<Outcome, DataPlaneError> {
    let path = pins.link(&interface.name, hook);
    let doing = || format!("attaching {} to {} (tcx)", hook.program(), interface.name);
    if let Some((_, info)) = pinned(&path)? {
        if is_on(&info, interface, hook)? {
            if info.program == id {
                return Ok(Outcome::Unchanged);
            }
            let link = PinnedLink::from_pin(&path)
                .and_then(|link| SchedClassifierLink::try_from(FdLink::from(link)))
                .map_err(|error| DataPlaneError::failed(doing(), error))?;
            let link = program
                .attach_to_link(link)
                .map_err(|error| DataPlaneError::failed(doing(), error))?;
            // Dropped, this descriptor is closed; the pin keeps the link.
            drop(
                program
                    .take_link(link)
                    .map_err(|error| DataPlaneError::failed(doing(), error))?,
            );
            return Ok(Outcome::Replaced);
        }
        if let Some(before @ 1..) = place(&info, interface, hook)? {
            tracing::warn!(
                interface = interface.name,
                program = hook.program(),
                before,
                "somebody else's tcx programs ran before ours, which must be first: it is attached anew, before them"
            );
        }
        // Or the interface it was on is gone, and this is another one of the same name.
        remove_link(&path)?;
    }
    neighbours::check_interface(pins, interface, hook.key())?;
    let order = match hook.order() {
        Order::First => LinkOrder::first(),
        Order::Last => LinkOrder::last(),
    };
    let direction = match hook.direction() {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let link = program
        .attach_with_options(&interface.name, direction, TcAttachOptions::TcxOrder(order))
        .and_then(|link| program.take_link(link))
        .map_err(|error| DataPlaneError::failed(doing(), error))?;
    // Until it is pinned, the link goes with this process: a SIGKILL here leaves the hook as it was.
    FdLink::try_from(link)
        .map_err(|error| DataPlaneError::failed(doing(), error))?
        .pin(&path)
        .map_err(|error| DataPlaneError::failed(format!("pinning {}", path.display()), error))?;
    match pinned(&path)? {
        Some((_, info)) if info.interface == interface.index => Ok(Outcome::Attached),
        // Recreated between looking and attaching: whoever looks next finds the pin to be stale.
        _ => Err(DataPlaneError::failed(
            doing(),
            "the interface was replaced meanwhile",
        )),
    }
}

/// A pinned link and what it is attached to.
fn pinned(path: &Path) -> Result<Option<(OwnedFd, LinkInfo)>, DataPlaneError> {
    let failed =
        |error| DataPlaneError::failed(format!("looking at link {}", path.display()), error);
    let link = match sys::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let info = sys::link_info(link.as_fd()).map_err(failed)?;
    Ok(Some((link, info)))
}

/// Whether a link holds a program on this very interface, of this network namespace, where it sees every packet.
fn is_on(info: &LinkInfo, interface: &Interface, hook: Hook) -> Result<bool, DataPlaneError> {
    // What runs before the translation may end the chain (TCX_PASS), and then neither it nor the guard sees the
    // packet. Elsewhere, a packet that was not seen is dropped by who comes next.
    Ok(place(info, interface, hook)?.is_some_and(|place| place == 0 || hook != Hook::UplinkEgress))
}

/// How many programs run before a link's on this very interface; `None` if it is not there.
fn place(
    info: &LinkInfo,
    interface: &Interface,
    hook: Hook,
) -> Result<Option<usize>, DataPlaneError> {
    // The index alone could be one of another namespace; the interface itself knows its links.
    if info.interface != interface.index {
        return Ok(None);
    }
    Ok(attached(interface, hook)?
        .iter()
        .position(|attached| attached.link == info.id))
}

fn attached(interface: &Interface, hook: Hook) -> Result<Vec<sys::Attached>, DataPlaneError> {
    match sys::tcx(interface.index, hook.direction()) {
        Ok(attached) => Ok(attached),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(DataPlaneError::failed(
            format!("asking {} for its tcx programs", interface.name),
            error,
        )),
    }
}

/// Takes a pinned link off and removes its pin; false if there was none.
pub(super) fn remove_link(path: &Path) -> Result<bool, DataPlaneError> {
    let Some((link, info)) = pinned(path)? else {
        return Ok(false);
    };
    let failed = |error| DataPlaneError::failed(format!("removing link {}", path.display()), error);
    // First off the interface, then out of sight: the other way round, a SIGKILL in between would leave a link
    // that is only taken off when the kernel gets round to it.
    if info.interface != 0 {
        match sys::link_detach(link.as_fd()) {
            Ok(()) => {}
            // The interface went this very moment.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    fs::remove_file(path).map_err(failed)?;
    Ok(true)
}

/// The program of ours that is on a hook now, and by what kind of attachment: asked of the kernel.
pub(super) fn in_place(
    pins: &Pins,
    interface: &Interface,
    hook: Hook,
) -> Result<Option<(Kind, u32)>, DataPlaneError> {
    if let Some((_, info)) = pinned(&pins.link(&interface.name, hook))?
        && is_on(&info, interface, hook)?
    {
        return Ok(Some((Kind::Tcx, info.program)));
    }
    Ok(own_filter(pins, interface, hook)?.map(|program| (Kind::Clsact, program)))
}

/// The program of our filter at a hook's place: one of the same name may be another instance's.
fn own_filter(
    pins: &Pins,
    interface: &Interface,
    hook: Hook,
) -> Result<Option<u32>, DataPlaneError> {
    match clsact::installed(interface, hook)? {
        Some(filter) if filter.name == hook.program() => {
            let ours = neighbours::programs(pins)?.contains(&filter.program);
            Ok(ours.then_some(filter.program))
        }
        _ => Ok(None),
    }
}
