//! Routing rules (`ip rule`) that go by the packet mark.
//!
//! The fast path asks for a flow's route before netfilter has marked anything. So it would not follow a rule that looks
//! at a mark which is set on the way: while there is such a rule, no flow passes routing by.

use std::fmt;
use std::os::fd::OwnedFd;

use super::netlink::{self, Request};
use crate::dataplane::api::DataPlaneError;

/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;

// `FRA_...` of linux/fib_rules.h.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;

/// Bit mask of the groups in which changes of rules are announced.
pub(super) const GROUPS: u32 =
    1 << (libc::RTNLGRP_IPV4_RULE - 1) | 1 << (libc::RTNLGRP_IPV6_RULE - 1);

/// A rule that looks at the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    ipv6: bool,
    priority: u32,
    mark: u32,
    mask: u32,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = if self.ipv6 { "ip -6 rule" } else { "ip rule" };
        write!(
            f,
            "`{command}` {} (fwmark {:#x}/{:#x})",
            self.priority, self.mark, self.mask
        )
    }
}

/// The rules as they were seen last, and the announcements of their changes.
pub(super) struct Rules {
    socket: OwnedFd,
    /// Bits of the mark that are ours.
    ours: u32,
    looked: bool,
}

impl Rules {
    /// Listens in this thread's network namespace.
    pub(super) fn listen(ours: u32) -> Result<Self, DataPlaneError> {
        let socket = netlink::socket(libc::NETLINK_ROUTE, GROUPS)
            .map_err(|error| DataPlaneError::failed("listening to changes of ip rules", error))?;
        Ok(Self {
            socket,
            ours,
            looked: false,
        })
    }

    /// Looks if there was a change since, or nobody has looked: the first rule that goes by bits of others, if there
    /// is one; `None` if nothing is new.
    pub(super) fn look(&mut self) -> Result<Option<Option<Rule>>, DataPlaneError> {
        if !netlink::announced(&self.socket) && self.looked {
            return Ok(None);
        }
        self.looked = false;
        let found = foreign(self.ours)?;
        self.looked = true;
        Ok(Some(found))
    }
}

/// The first rule of either family that looks at bits of the mark beside `ours`.
fn foreign(ours: u32) -> Result<Option<Rule>, DataPlaneError> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; HEADER];
        header[0] = family as u8;
        let request = Request::new(libc::RTM_GETRULE, libc::NLM_F_DUMP as u16, &header);
        let answer = match request.send(libc::NETLINK_ROUTE) {
            Ok(answer) => answer,
            // A kernel without routing rules, or without the family.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                ) =>
            {
                continue;
            }
            Err(error) => return Err(DataPlaneError::failed("listing the ip rules", error)),
        };
        let found = answer
            .iter()
            .filter(|message| message.kind == libc::RTM_NEWRULE)
            .filter_map(|message| parse(&message.body))
            .find(|rule| rule.mask & !ours != 0);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// `struct fib_rule_hdr` and its attributes; nothing for other families, such as multicast routing.
fn parse(body: &[u8]) -> Option<Rule> {
    let family = i32::from(*body.first()?);
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return None;
    }
    let mut rule = Rule {
        ipv6: family == libc::AF_INET6,
        priority: 0,
        mark: 0,
        mask: 0,
    };
    for (kind, content) in netlink::attributes(body.get(HEADER..)?) {
        match kind {
            FRA_PRIORITY => rule.priority = netlink::number(content)?,
            FRA_FWMARK => rule.mark = netlink::number(content)?,
            FRA_FWMASK => rule.mask = netlink::number(content)?,
            _ => {}
        }
    }
    Some(rule)
}
