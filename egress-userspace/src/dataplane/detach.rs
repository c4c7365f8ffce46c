//! Taking everything off again (SAFE-4), from pins alone, and as often as one likes.
//!
//! In an order that a SIGKILL may cut anywhere: programs first, then the guard, then the pins, which are renamed
//! before they are removed so that no start ever finds half of them.

use std::path::Path;

use super::attach;
use super::births;
use super::clsact;
use super::guard;
use super::hook::Hook;
use super::interfaces::Interface;
use super::lock::Lock;
use super::neighbours;
use super::pins::{Pins, State};
use super::privileges;
use super::routes::Routes;
use super::tunnel;
use crate::dataplane::api::DataPlaneError;

/// Removes what belongs to a pin directory: programs, guard and pins. Returns what it removed, one line each;
/// nothing when there was nothing.
///
/// # Errors
/// [`DataPlaneError::Refused`] when a daemon is using the pins, or they are not ours.
pub fn detach(pin: &Path) -> Result<Vec<String>, DataPlaneError> {
    privileges::check()?;
    let pins = Pins::new(pin);
    pins.check_filesystem()?;
    let lock = Lock::take(pin)?;
    let removed = everything(&pins)?;
    lock.discard();
    Ok(removed)
}

/// [`detach`] for whoever holds the lock.
pub(super) fn everything(pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let state = pins.state()?;
    if state == State::Foreign {
        return Err(foreign(pins));
    }
    // First of all: nobody is to send here any more.
    let routes = Routes::of(pins).remove_all()?;
    let mut removed = Vec::new();
    if routes > 0 {
        removed.push(format!("announced routes: {routes}"));
    }
    removed.extend(departed(pins, |_, _| false)?);
    removed.extend(births::remove(pins)?);
    let tunnels = tunnel::remove(pins)?;
    removed.extend(
        tunnels
            .iter()
            .map(|name| format!("tunnel: interface {name}")),
    );
    removed.extend(guard::remove(pins)?);
    if state == State::Present {
        let maps = pins.count_maps()?;
        pins.gone().remove()?;
        pins.rename(&pins.gone())?;
        removed.push(format!("pins: {} ({maps} maps)", pins.root().display()));
    }
    pins.gone().remove()?;
    // An empty directory that somebody made for us stays theirs; ours went with the renaming.
    if pins.fresh().remove()? {
        removed.push(format!(
            "left-overs of an interrupted start: {}",
            pins.fresh().root().display()
        ));
    }
    Ok(removed)
}

/// The error for a pin directory that holds something else.
pub(super) fn foreign(pins: &Pins) -> DataPlaneError {
    DataPlaneError::Refused {
        reason: format!(
            "{} holds something that egress did not put there",
            pins.root().display()
        ),
        remedy: "give [dataplane] pin a directory of its own, one that does not exist yet"
            .to_owned(),
    }
}

/// Takes our programs off wherever `keep` does not want them; says where.
pub(super) fn departed(
    pins: &Pins,
    keep: impl Fn(&str, Hook) -> bool,
) -> Result<Vec<String>, DataPlaneError> {
    let mut removed = Vec::new();
    let mut links = pins.all_links()?;
    // The reverse of the order in which they were attached.
    links.sort_by_key(|link| {
        std::cmp::Reverse(Hook::ALL.iter().position(|hook| *hook == link.hook))
    });
    for link in links {
        if !keep(&link.interface, link.hook) && attach::remove_link(&link.path)? {
            removed.push(format!(
                "program: {} on {} (tcx)",
                link.hook.program(),
                link.interface
            ));
        }
    }
    let programs = neighbours::programs(pins)?;
    for interface in Interface::all()? {
        let mut found = false;
        for hook in Hook::ALL.into_iter().rev() {
            let Some(filter) = clsact::installed(&interface, hook)? else {
                continue;
            };
            if !keep(&interface.name, hook)
                && filter.name == hook.program()
                && programs.contains(&filter.program)
            {
                clsact::uninstall(&interface, hook)?;
                removed.push(format!(
                    "program: {} on {} (clsact)",
                    hook.program(),
                    interface.name
                ));
                found = true;
            }
        }
        if found && clsact::remove_if_empty(&interface)? {
            removed.push(format!("qdisc: clsact on {}", interface.name));
        }
    }
    Ok(removed)
}
