//! Filters on an interface's clsact qdisc: how programs are attached where the kernel has no tcx (before 6.6).

use std::collections::BTreeSet;
use std::mem::size_of;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};

use super::hook::Hook;
use super::interfaces::Interface;
use super::netlink::{self, Request};
use super::sys::Direction;
use crate::dataplane::api::DataPlaneError;

/// Handle of our filters below their priority.
const HANDLE: TcHandle = TcHandle::new(0, 1);

// `TCA_...` of linux/rtnetlink.h and `TCA_BPF_...` of linux/pkt_cls.h.
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// `TC_H_MAKE(TC_H_CLSACT, 0)` and `TC_H_CLSACT` itself.
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

/// Length of `struct tcmsg`.
const TCMSG: usize = 20;

/// A BPF filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Low runs first.
    pub(super) priority: u16,
    /// Which one of its priority.
    pub(super) handle: u32,
    /// The program's name.
    pub(super) name: String,
    /// The program's id.
    pub(super) program: u32,
}

/// The BPF filters of one direction; none where there is no clsact qdisc.
pub(super) fn filters(
    interface: &Interface,
    direction: Direction,
) -> Result<Vec<Filter>, DataPlaneError> {
    let mut header = header(interface);
    header[12..16].copy_from_slice(&parent(direction).to_ne_bytes());
    let answer = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP as u16, &header)
        .send(libc::NETLINK_ROUTE);
    let answer = match answer {
        Ok(answer) => answer,
        // No qdisc, or no interface any more.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("listing the filters of", interface, error)),
    };
    Ok(answer
        .iter()
        .filter(|message| message.kind == libc::RTM_NEWTFILTER)
        .filter_map(|message| parse(&message.body))
        .collect())
}

const fn parent(direction: Direction) -> u32 {
    // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
    match direction {
        Direction::Ingress => 0xffff_fff2,
        Direction::Egress => 0xffff_fff3,
    }
}

fn parse(body: &[u8]) -> Option<Filter> {
    const {
        assert!(TCMSG == 5 * size_of::<u32>());
    }
    let word = |at: usize| body.get(at..).and_then(netlink::number);
    let mut filter = Filter {
        priority: u16::try_from(word(16)? >> 16).ok()?,
        handle: word(8)?,
        name: String::new(),
        program: 0,
    };
    let options = netlink::attributes(body.get(TCMSG..)?)
        .find(|(kind, _)| *kind == TCA_OPTIONS)
        .map(|(_, content)| content)?;
    for (kind, content) in netlink::attributes(options) {
        match kind {
            TCA_BPF_NAME => filter.name = netlink::text(content),
            TCA_BPF_ID => filter.program = netlink::number(content)?,
            _ => {}
        }
    }
    // Filters of other kinds, and the heads of priorities, have no program.
    (filter.program != 0).then_some(filter)
}

/// The filter at a hook's place, if it is one of ours by name.
pub(super) fn installed(
    interface: &Interface,
    hook: Hook,
) -> Result<Option<Filter>, DataPlaneError> {
    Ok(filters(interface, hook.direction())?
        .into_iter()
        .find(|filter| is_at(filter, hook)))
}

fn is_at(filter: &Filter, hook: Hook) -> bool {
    filter.priority == hook.priority() && filter.handle == u32::from(HANDLE)
}

/// Installs the program, or replaces the one that is there, if it is among `ours`, without a packet in between.
pub(super) fn install(
    program: &mut SchedClassifier,
    interface: &Interface,
    hook: Hook,
    ours: &BTreeSet<u32>,
) -> Result<(), DataPlaneError> {
    let name = &interface.name;
    let doing = || format!("attaching {} to {name} (clsact)", hook.program());
    let existing = installed(interface, hook)?;
    if let Some(filter) = &existing
        && !ours.contains(&filter.program)
    {
        return Err(DataPlaneError::Refused {
            reason: format!(
                "another program's filter, {}, is at priority {} of {name}'s clsact qdisc",
                filter.name, filter.priority
            ),
            remedy: format!(
                "remove it: `tc filter del dev {name} {} prio {}`",
                match hook.direction() {
                    Direction::Ingress => "ingress",
                    Direction::Egress => "egress",
                },
                filter.priority
            ),
        });
    }
    match tc::qdisc_add_clsact(name) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(DataPlaneError::failed(doing(), error)),
    }
    let link = match existing {
        // Without NLM_F_EXCL the kernel swaps the program in the filter.
        Some(_) => {
            SchedClassifierLink::attached(name, direction(hook), hook.priority(), HANDLE, None)
                .map_err(|error| DataPlaneError::failed(doing(), error))
                .and_then(|link| {
                    program
                        .attach_to_link(link)
                        .map_err(|error| DataPlaneError::failed(doing(), error))
                })
        }
        None => program
            .attach_with_options(
                name,
                direction(hook),
                TcAttachOptions::Netlink(NlOptions {
                    priority: hook.priority(),
                    handle: HANDLE,
                    classid: None,
                }),
            )
            .map_err(|error| DataPlaneError::failed(doing(), error)),
    }?;
    let link = program
        .take_link(link)
        .map_err(|error| DataPlaneError::failed(doing(), error))?;
    // Dropped, it would take the filter off again; the filter shall outlive this process.
    std::mem::forget(link);
    Ok(())
}

/// Removes one of our filters.
pub(super) fn uninstall(interface: &Interface, hook: Hook) -> Result<(), DataPlaneError> {
    let gone = |error: &ProgramError| match error {
        ProgramError::NetlinkError(error) => matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
        ),
        _ => false,
    };
    let link = SchedClassifierLink::attached(
        &interface.name,
        direction(hook),
        hook.priority(),
        HANDLE,
        None,
    )
    .map_err(|error| failed("taking a filter off", interface, error))?;
    match detach(link) {
        Err(error) if !gone(&error) => Err(failed("taking a filter off", interface, error)),
        _ => Ok(()),
    }
}

/// Removes the clsact qdisc if no filter of any kind is left on it; true if it did.
pub(super) fn remove_if_empty(interface: &Interface) -> Result<bool, DataPlaneError> {
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut header = header(interface);
        header[12..16].copy_from_slice(&parent(direction).to_ne_bytes());
        let left = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP as u16, &header)
            .send(libc::NETLINK_ROUTE)
            .map_err(|error| failed("listing the filters of", interface, error))?;
        if !left.is_empty() {
            return Ok(false);
        }
    }
    let mut header = header(interface);
    header[8..12].copy_from_slice(&CLSACT_HANDLE.to_ne_bytes());
    header[12..16].copy_from_slice(&CLSACT_PARENT.to_ne_bytes());
    Request::new(libc::RTM_DELQDISC, libc::NLM_F_ACK as u16, &header)
        .send(libc::NETLINK_ROUTE)
        .map_err(|error| failed("removing the clsact qdisc of", interface, error))?;
    Ok(true)
}

/// `struct tcmsg` for an interface.
fn header(interface: &Interface) -> [u8; TCMSG] {
    let mut header = [0_u8; TCMSG];
    header[4..8].copy_from_slice(&interface.index.to_ne_bytes());
    header
}

fn detach(link: SchedClassifierLink) -> Result<(), ProgramError> {
    use aya::programs::links::Link as _;

    link.detach()
}

const fn direction(hook: Hook) -> TcAttachType {
    match hook.direction() {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

fn failed(
    doing: &str,
    interface: &Interface,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DataPlaneError {
    DataPlaneError::failed(format!("{doing} {}", interface.name), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_from_what_the_kernel_sends() {
        let mut body = vec![0_u8; TCMSG];
        body[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        body[16..20].copy_from_slice(&(17_u32 << 16 | 3).to_ne_bytes());
        let name = b"uplink_egress\0";
        let mut options = Vec::new();
        options.extend_from_slice(&(4 + name.len() as u16).to_ne_bytes());
        options.extend_from_slice(&TCA_BPF_NAME.to_ne_bytes());
        options.extend_from_slice(name);
        options.resize(options.len().next_multiple_of(4), 0);
        options.extend_from_slice(&8_u16.to_ne_bytes());
        options.extend_from_slice(&TCA_BPF_ID.to_ne_bytes());
        options.extend_from_slice(&42_u32.to_ne_bytes());
        body.extend_from_slice(&(4 + options.len() as u16).to_ne_bytes());
        body.extend_from_slice(&TCA_OPTIONS.to_ne_bytes());
        body.extend_from_slice(&options);
        let filter = parse(&body).unwrap();
        assert_eq!(
            (filter.name.as_str(), filter.program),
            ("uplink_egress", 42)
        );
        assert!(is_at(&filter, Hook::UplinkEgress));
        assert!(!is_at(&filter, Hook::UplinkGuard));
    }
}
