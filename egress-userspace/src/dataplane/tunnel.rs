//! The tunnel's interface (FWD-6): one VXLAN device whose packets say themselves where they go. The daemon makes it,
//! in one request, and knows it again by its link-layer address, which nobody else has a use for; it stays when the
//! daemon ends, like everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use egress_common::placement::digest;

use super::interfaces::{self, Interface};
use super::netlink::{Request, attribute};
use super::pins::Pins;
use super::route;
use crate::dataplane::api::DataPlaneError;
use crate::desired::DesiredTunnel;

/// Length of `struct ifinfomsg`, and where in it flags and their mask are.
const INFO: usize = 16;
const INFO_INDEX: usize = 4;
const INFO_FLAGS: usize = 8;
const INFO_CHANGE: usize = 12;
/// Attributes of a VXLAN device (linux/if_link.h).
mod vxlan {
    pub(super) const LEARNING: u16 = 7;
    pub(super) const PORT: u16 = 15;
    pub(super) const UDP_ZERO_CSUM6_RX: u16 = 20;
    pub(super) const COLLECT_METADATA: u16 = 25;
}

/// The tunnel's interface, made if it is not there.
///
/// # Errors
/// [`DataPlaneError::Refused`] where its name or port is somebody else's, or the kernel has no VXLAN.
pub(super) fn ensure(pins: &Pins, tunnel: &DesiredTunnel) -> Result<Interface, DataPlaneError> {
    let name = &tunnel.device;
    // One of another name or port was ours before the configuration changed.
    let mut found = None;
    for interface in ours(pins)? {
        if interface.name == *name && interface.mac == address(pins, tunnel.port) {
            found = Some(interface);
        } else {
            remove_one(&interface)?;
        }
    }
    if let Some(interface) = found {
        if !interface.up {
            raise(&interface)?;
        }
        return Ok(Interface {
            up: true,
            ..interface
        });
    }
    if let Some(other) = Interface::find(name)?
        && !is_ours(pins, &other)
    {
        return Err(DataPlaneError::Refused {
            reason: format!("interface {name} ([tunnel] device) is somebody else's"),
            remedy: "remove it, or write another name under [tunnel] device".to_owned(),
        });
    }
    make(pins, tunnel).map_err(|error| refused(tunnel, error))?;
    Interface::find(name)?.ok_or_else(|| {
        DataPlaneError::failed(format!("making interface {name}"), "it is gone already")
    })
}

/// Bytes of the headers around a packet: IPv4 or IPv6, UDP, VXLAN, and the Ethernet header inside.
const AROUND_V4: u32 = 20 + 8 + 8 + 14;
const AROUND_V6: u32 = 40 + 8 + 8 + 14;

/// Whether the other servers can be reached as they should be: from an address of this host, not by way of the inside
/// (FWD-6), and by links that take what the uplinks bring.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names what is wrong.
pub(super) fn check(
    tunnel: &DesiredTunnel,
    uplinks: &[Interface],
    insides: &[String],
) -> Result<(), DataPlaneError> {
    if !interfaces::addresses()?.contains_key(&tunnel.own) {
        return Err(refusal(
            format!(
                "the others are to reach this server at {}, which is an address of none of its interfaces",
                tunnel.own
            ),
            "write one that is as `tunnel` of this server; nothing was changed",
        ));
    }
    let longest = uplinks.iter().map(|uplink| uplink.mtu).max().unwrap_or(0);
    let around = around(tunnel);
    let all = Interface::all()?;
    let mut short = BTreeSet::new();
    for peer in &tunnel.peers {
        let way = route::out(peer.address, tunnel.own)?;
        let by = way.and_then(|way| all.iter().find(|one| one.index == way.interface));
        let Some(by) = by else {
            tracing::warn!(server = peer.name, address = %peer.address, "there is no route to this server now");
            continue;
        };
        if insides.contains(&by.name) {
            return Err(refusal(
                format!(
                    "server {} at {} is reached by inside interface {}, where every host could send in its name",
                    peer.name, peer.address, by.name
                ),
                "connect the servers by a network of their own; nothing was changed",
            ));
        }
        let wanted = longest + around;
        if by.mtu >= wanted || !short.insert(by.index) {
            continue;
        }
        // Unlike IPv4, the kernel fragments no packet of a tunnel over IPv6.
        if !tunnel.own.is_ipv4() {
            return Err(refusal(
                format!(
                    "interface {} towards server {} takes {} bytes, and a packet of {longest} bytes needs {wanted} \
                     in the tunnel over IPv6",
                    by.name, peer.name, by.mtu
                ),
                "raise the MTU of that interface, or reach the servers by IPv4, where long packets are fragmented; \
                 nothing was changed",
            ));
        }
        tracing::warn!(
            interface = by.name,
            mtu = by.mtu,
            wanted,
            "long packets to other servers are sent in fragments: raise this interface's MTU to spare that"
        );
    }
    Ok(())
}

/// Bytes that the tunnel puts around each packet.
fn around(tunnel: &DesiredTunnel) -> u32 {
    if tunnel.own.is_ipv4() {
        AROUND_V4
    } else {
        AROUND_V6
    }
}

/// Paths that are asked for at a time.
const FEW: usize = 64;

/// What fits the tunnel, and the interfaces and routes that say so (NAT-5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// Length of the longest packet that reaches every other server uncut, as far as this host knows; 0 if
    /// there is no way to any of them.
    pub(super) bytes: u32,
    /// The interfaces towards the others, and the longest packet that each takes.
    ways: BTreeMap<String, u32>,
    /// The longest packet that reaches each of the others, where a router on the way has said so, or a route.
    paths: BTreeMap<IpAddr, u32>,
    /// There is no way to some of them.
    lacking: bool,
}

impl Room {
    pub(super) fn of(tunnel: &DesiredTunnel) -> Result<Self, DataPlaneError> {
        let all = Interface::all()?;
        let mut room = Self::default();
        for peer in &tunnel.peers {
            let Some(way) = route::out(peer.address, tunnel.own)? else {
                room.lacking = true;
                continue;
            };
            room.paths.extend(way.mtu.map(|mtu| (peer.address, mtu)));
            match all.iter().find(|one| one.index == way.interface) {
                Some(by) => {
                    room.ways.insert(by.name.clone(), by.mtu);
                }
                None => room.lacking = true,
            }
        }
        // No packet has more than 16 bits of length.
        let most = u32::from(u16::MAX);
        let least = room.ways.values().chain(room.paths.values()).min();
        room.bytes = least.map_or(0, |mtu| mtu.saturating_sub(around(tunnel)).min(most));
        Ok(room)
    }

    /// Whether one of the interfaces takes something else by now.
    pub(super) fn has_changed(&self) -> Result<bool, DataPlaneError> {
        for (name, mtu) in &self.ways {
            if Interface::find(name)?.is_none_or(|by| by.mtu != *mtu) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something else is known by now of the paths to some of the others: to the `nth` few of them. Over IPv4
    /// routers cut, and say nothing.
    pub(super) fn is_outdated(
        &self,
        tunnel: &DesiredTunnel,
        nth: usize,
    ) -> Result<bool, DataPlaneError> {
        if tunnel.own.is_ipv4() {
            return Ok(false);
        }
        let parts = tunnel.peers.len().div_ceil(FEW).max(1);
        for peer in tunnel.peers.iter().skip(nth % parts * FEW).take(FEW) {
            let way = route::out(peer.address, tunnel.own)?;
            if way.and_then(|way| way.mtu) != self.paths.get(&peer.address).copied() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there was no way to some of the others.
    pub(super) fn is_lacking(&self) -> bool {
        self.lacking
    }
}

fn refusal(reason: String, remedy: &str) -> DataPlaneError {
    DataPlaneError::Refused {
        reason,
        remedy: remedy.to_owned(),
    }
}

/// Brings the interface up again.
fn raise(interface: &Interface) -> Result<(), DataPlaneError> {
    let mut header = up();
    header[INFO_INDEX..INFO_INDEX + 4].copy_from_slice(&interface.index.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK as u16, &header)
        .send(libc::NETLINK_ROUTE)
        .map(drop)
        .map_err(|error| {
            DataPlaneError::failed(format!("bringing up interface {}", interface.name), error)
        })
}

/// A `struct ifinfomsg` that says: up.
fn up() -> [u8; INFO] {
    let mut header = [0; INFO];
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    header[INFO_FLAGS..INFO_FLAGS + 4].copy_from_slice(&up);
    header[INFO_CHANGE..INFO_CHANGE + 4].copy_from_slice(&up);
    header
}

/// Makes the interface and brings it up, in one request.
fn make(pins: &Pins, tunnel: &DesiredTunnel) -> io::Result<()> {
    let data = [
        attribute(vxlan::COLLECT_METADATA, &[1]),
        attribute(vxlan::LEARNING, &[0]),
        // What a sender may leave out (RFC 7348, section 4.1).
        attribute(vxlan::UDP_ZERO_CSUM6_RX, &[1]),
        attribute(vxlan::PORT, &tunnel.port.to_be_bytes()),
    ]
    .concat();
    let info = [
        attribute(libc::IFLA_INFO_KIND, b"vxlan\0"),
        attribute(libc::IFLA_INFO_DATA, &data),
    ]
    .concat();
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16;
    Request::new(libc::RTM_NEWLINK, flags, &up())
        .text(libc::IFLA_IFNAME, &tunnel.device)
        .attribute(libc::IFLA_ADDRESS, &address(pins, tunnel.port))
        .attribute(libc::IFLA_LINKINFO, &info)
        .send(libc::NETLINK_ROUTE)
        .map(drop)
}

fn refused(tunnel: &DesiredTunnel, error: io::Error) -> DataPlaneError {
    let (reason, remedy) = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => (
            "this kernel has no VXLAN devices, by which servers reach each other".to_owned(),
            "load the module vxlan, or take `tunnel` out of the servers' resources",
        ),
        Some(libc::EADDRINUSE | libc::EEXIST) => (
            format!("UDP port {} ([tunnel] port) is in use", tunnel.port),
            "write another one under [tunnel] port, the same on all servers",
        ),
        _ => {
            return DataPlaneError::failed(format!("making interface {}", tunnel.device), error);
        }
    };
    DataPlaneError::Refused {
        reason,
        remedy: remedy.to_owned(),
    }
}

/// Removes the interfaces that belong to a pin directory; returns their names.
pub(super) fn remove(pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let mut removed = Vec::new();
    for interface in ours(pins)? {
        remove_one(&interface)?;
        removed.push(interface.name);
    }
    Ok(removed)
}

fn remove_one(interface: &Interface) -> Result<(), DataPlaneError> {
    let mut header = [0; INFO];
    header[INFO_INDEX..INFO_INDEX + 4].copy_from_slice(&interface.index.to_ne_bytes());
    match Request::new(libc::RTM_DELLINK, libc::NLM_F_ACK as u16, &header).send(libc::NETLINK_ROUTE)
    {
        Ok(_) => Ok(()),
        // Somebody was faster.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(DataPlaneError::failed(
            format!("removing interface {}", interface.name),
            error,
        )),
    }
}

/// The interfaces of this pin directory.
fn ours(pins: &Pins) -> Result<Vec<Interface>, DataPlaneError> {
    let mut all = Interface::all()?;
    all.retain(|interface| is_ours(pins, interface));
    Ok(all)
}

fn is_ours(pins: &Pins, interface: &Interface) -> bool {
    let [.., p0, p1] = interface.mac;
    interface.mac == address(pins, u16::from_be_bytes([p0, p1]))
}

/// The link-layer address of an instance's tunnel: locally administered, three bytes that tell the instance, and the
/// UDP port.
fn address(pins: &Pins, port: u16) -> [u8; 6] {
    let [a, b, c, ..] = digest(&pins.root().to_string_lossy()).to_be_bytes();
    let [p0, p1] = port.to_be_bytes();
    [2, a, b, c, p0, p1]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_instances_tunnel_is_known_by_its_address() {
        let (one, other) = (Pins::new(Path::new("/a/b")), Pins::new(Path::new("/a/c")));
        let interface = |mac| Interface {
            name: "egress0".into(),
            index: 7,
            mac,
            up: true,
            link: interfaces::Link::Ethernet,
            mtu: 1_500,
            port_of: None,
        };
        let found = interface(address(&one, 4789));
        assert!(is_ours(&one, &found) && !is_ours(&other, &found));
        assert!(is_ours(&one, &interface(address(&one, 8472))));
        assert_eq!(found.mac[0] & 3, 2, "locally administered, of one host");
        assert!(!is_ours(&one, &interface([0; 6])));
    }
}
