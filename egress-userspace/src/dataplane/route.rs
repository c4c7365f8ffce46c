//! Which interface a packet leaves by: asked of the kernel's own routing (`RTM_GETROUTE`).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::interfaces::Interface;
use super::netlink::{self, Request};
use crate::dataplane::api::{DataPlaneError, Traveller};

/// Length of `struct rtmsg`.
const HEADER: usize = 12;
/// Length of `struct rtnexthop`.
const HOP: usize = 8;

/// What the kernel answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// It leaves by the interface of this index.
    By(u32),
    /// It is for this host itself.
    Here,
    /// Nowhere, and why.
    None(String),
}

/// The route of a packet. Where it is not said by which interface it enters, it is a packet of this host if its source
/// is, and else enters where the way back to its source leaves.
pub(super) fn of(traveller: &Traveller) -> Result<Route, DataPlaneError> {
    let entering = match &traveller.interface {
        _ if traveller.own => None,
        Some(name) => match Interface::find(name)? {
            Some(interface) => Some(interface.index),
            None => return Ok(Route::None(format!("there is no interface {name}"))),
        },
        None => match ask(traveller.source, None, None, 0)? {
            Route::By(index) => Some(index),
            Route::Here => None,
            Route::None(text) => {
                return Ok(Route::None(format!("no way back to its source: {text}")));
            }
        },
    };
    let source = (!traveller.own).then_some(traveller.source);
    ask(traveller.destination, source, entering, traveller.mark)
}

/// How this host's own packets reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Index of the interface.
    pub(super) interface: u32,
    /// Length of the longest packet that reaches it, bytes, where the route says so, or a router on the way has said so.
    pub(super) mtu: Option<u32>,
}

/// How this host's own packets from `source` reach an address; `None` where none does.
pub(super) fn out(destination: IpAddr, source: IpAddr) -> Result<Option<Way>, DataPlaneError> {
    let Ok(body) = answer(destination, Some(source), None, 0)? else {
        return Ok(None);
    };
    Ok(match parse(&body, false) {
        Some(Route::By(interface)) => Some(Way {
            interface,
            mtu: mtu(&body),
        }),
        _ => None,
    })
}

/// `RTAX_MTU` (linux/rtnetlink.h).
const MTU: u16 = 2;

/// The path MTU that an answer tells.
fn mtu(body: &[u8]) -> Option<u32> {
    let (_, metrics) =
        netlink::attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == libc::RTA_METRICS)?;
    netlink::attributes(metrics)
        .find(|(kind, _)| *kind == MTU)
        .and_then(|(_, content)| netlink::number(content))
}

fn ask(
    destination: IpAddr,
    source: Option<IpAddr>,
    entering: Option<u32>,
    mark: u32,
) -> Result<Route, DataPlaneError> {
    Ok(match answer(destination, source, entering, mark)? {
        Ok(body) => parse(&body, entering.is_some())
            .unwrap_or_else(|| Route::None("the kernel names no interface".to_owned())),
        Err(text) => Route::None(text),
    })
}

/// The kernel's answer about a route; or why there is none.
fn answer(
    destination: IpAddr,
    source: Option<IpAddr>,
    entering: Option<u32>,
    mark: u32,
) -> Result<Result<Vec<u8>, String>, DataPlaneError> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, bits) = match destination {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let mut header = [0; HEADER];
    header[0] = family as u8;
    header[1] = bits;
    header[2] = source.map_or(0, |_| bits);
    let mut request = Request::new(libc::RTM_GETROUTE, 0, &header)
        .attribute(libc::RTA_DST, &bytes(destination))
        .attribute(libc::RTA_MARK, &mark.to_ne_bytes());
    if let Some(source) = source {
        request = request.attribute(libc::RTA_SRC, &bytes(source));
    }
    if let Some(index) = entering {
        request = request.attribute(libc::RTA_IIF, &index.to_ne_bytes());
    }
    match request.send(libc::NETLINK_ROUTE) {
        Ok(answer) => Ok(Ok(answer
            .into_iter()
            .next()
            .map(|message| message.body)
            .unwrap_or_default())),
        Err(error) => refusal(&error, destination).map(Err).ok_or_else(|| {
            DataPlaneError::failed(
                format!("asking the kernel for the route to {destination}"),
                error,
            )
        }),
    }
}

fn parse(body: &[u8], entered: bool) -> Option<Route> {
    match *body.get(7)? {
        libc::RTN_LOCAL => return Some(Route::Here),
        libc::RTN_MULTICAST if entered => {
            return Some(Route::None(
                "multicast, which this host does not forward".to_owned(),
            ));
        }
        // The kernel forwards no broadcast: what enters is received here and goes no further.
        libc::RTN_BROADCAST if entered => return Some(Route::Here),
        _ => {}
    }
    netlink::attributes(body.get(HEADER..)?)
        .find(|(kind, _)| *kind == libc::RTA_OIF)
        .and_then(|(_, content)| netlink::number(content))
        .map(Route::By)
}

/// The routers that routes of this host go by, in any table.
///
/// # Errors
/// When the kernel does not list its routes.
pub(super) fn next_hops() -> Result<BTreeSet<IpAddr>, DataPlaneError> {
    let mut found = BTreeSet::new();
    let header = [0; HEADER];
    Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP as u16, &header)
        .visit(libc::NETLINK_ROUTE, |kind, body| {
            if kind == libc::RTM_NEWROUTE {
                found.extend(next_hops_of(body));
            }
        })
        .map_err(|error| DataPlaneError::failed("listing the routes", error))?;
    Ok(found)
}

/// The next hops of one route; none for one that needs no router, or is of another family.
fn next_hops_of(body: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let (Some(family), Some(rest)) = (body.first(), body.get(HEADER..)) else {
        return found;
    };
    if ![libc::AF_INET, libc::AF_INET6].contains(&i32::from(*family)) {
        return found;
    }
    found.extend(gateways(rest));
    let several = netlink::attributes(rest).filter(|(kind, _)| *kind == libc::RTA_MULTIPATH);
    for (_, mut hops) in several {
        while let Some(hop) = hops.first_chunk::<HOP>() {
            let length = usize::from(u16::from_ne_bytes([hop[0], hop[1]]));
            let Some(content) = hops.get(HOP..length) else {
                break;
            };
            found.extend(gateways(content));
            hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    found
}

/// The addresses of routers among the attributes of a route or of one of its next hops.
fn gateways(attributes: &[u8]) -> impl Iterator<Item = IpAddr> {
    netlink::attributes(attributes).filter_map(|(kind, content)| match kind {
        libc::RTA_GATEWAY => address(content),
        // `struct rtvia`: the family, and an address of that.
        libc::RTA_VIA => address(content.get(2..)?),
        _ => None,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// What the kernel's routing means by an error; `None` for one that is not about the packet.
fn refusal(error: &io::Error, destination: IpAddr) -> Option<String> {
    Some(
        match error.raw_os_error()? {
            libc::ENETUNREACH => "network unreachable",
            libc::EHOSTUNREACH => "host unreachable, or this host does not forward",
            libc::EACCES => "prohibited",
            libc::EINVAL if destination.is_multicast() => {
                "multicast, which this host does not forward"
            }
            libc::EINVAL if destination.is_loopback() || destination.is_unspecified() => {
                "an address that no packet from elsewhere may be for"
            }
            libc::EINVAL => "a black hole, or a source that cannot enter there",
            libc::EXDEV => "the reverse path filter drops it",
            _ => return None,
        }
        .to_owned(),
    )
}
