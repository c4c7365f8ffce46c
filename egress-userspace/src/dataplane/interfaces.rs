//! Interfaces as the kernel knows them in this network namespace.
//!
//! Asked over netlink, never read from `/sys/class/net`: that shows the namespace in which sysfs was mounted,
//! which need not be ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::netlink::{self, Request};
use crate::dataplane::api::DataPlaneError;

/// Length of `struct ifinfomsg`.
const INFO: usize = 16;
/// Length of `struct ifaddrmsg`.
const ADDRESS_INFO: usize = 8;
/// An interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its name.
    pub(super) name: String,
    /// Its index: another one each time an interface of this name is created.
    pub(super) index: u32,
    /// Its link-layer address; zeros where there is none (tun).
    pub(super) mac: [u8; 6],
    /// Whether it is switched on.
    pub(super) up: bool,
    /// What its packets begin with.
    pub(super) link: Link,
    /// Longest IP packet it takes, bytes.
    pub(super) mtu: u32,
    /// The interface that takes its packets over, if there is one.
    pub(super) port_of: Option<Owner>,
}

/// An interface that other ones are ports of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Its index.
    index: u32,
    /// What it is: `bridge`, `bond`.
    kind: String,
}

impl Owner {
    /// Kinds whose ports' packets become the kind's own. (A VRF's do not.)
    const KINDS: [&str; 4] = ["bridge", "bond", "team", "openvswitch"];
}

/// What the packets of an interface begin with, as the programs see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The network header: tun, wireguard.
    Bare,
    /// Something else, of this hardware type (`ARPHRD_*` of linux/if_arp.h).
    Other(u16),
}

impl Link {
    fn of(hardware: u16) -> Self {
        match hardware {
            libc::ARPHRD_ETHER => Self::Ethernet,
            libc::ARPHRD_NONE => Self::Bare,
            other => Self::Other(other),
        }
    }
}

impl Interface {
    /// The interface of this name, if there is one.
    pub(super) fn find(name: &str) -> Result<Option<Self>, DataPlaneError> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &[0; INFO]);
        request = request.text(libc::IFLA_IFNAME, name);
        let answer = match request.send(libc::NETLINK_ROUTE) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => {
                return Err(DataPlaneError::failed(
                    format!("asking the kernel for interface {name}"),
                    error,
                ));
            }
        };
        Ok(answer
            .iter()
            .filter(|message| message.kind == libc::RTM_NEWLINK)
            .find_map(|message| parse(&message.body))
            .filter(|found| found.name == name))
    }

    /// Every interface of this namespace.
    pub(super) fn all() -> Result<Vec<Self>, DataPlaneError> {
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16, &[0; INFO]);
        let answer = request
            .send(libc::NETLINK_ROUTE)
            .map_err(|error| DataPlaneError::failed("listing the interfaces", error))?;
        Ok(answer
            .iter()
            .filter_map(|message| parse(&message.body))
            .collect())
    }

    /// The interface of this name, which must exist.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] that names it and its key in the configuration.
    pub(super) fn require(name: &str, key: &str) -> Result<Self, DataPlaneError> {
        let found = Self::find(name)?.ok_or_else(|| DataPlaneError::Refused {
            reason: format!("interface {name} ([dataplane] {key}) does not exist"),
            remedy: "`ip link` lists the interfaces of this network namespace; create it, or correct the name"
                .to_owned(),
        })?;
        found.check_kind()?;
        Ok(found)
    }

    /// Refuses an interface on which the programs would not find addresses: what they cannot read they cannot
    /// hold back (SAFE-1). And one that is a port: what it receives routing and netfilter know as its bridge's, so the
    /// guard would not tell it from anybody else's, and would let nothing bound leave (SAFE-6).
    pub(super) fn check_kind(&self) -> Result<(), DataPlaneError> {
        if let Some(owner) = &self.port_of {
            return Err(self.is_port(owner)?);
        }
        let Link::Other(hardware) = self.link else {
            return Ok(());
        };
        Err(DataPlaneError::Refused {
            reason: format!(
                "the packets of interface {} begin neither with an Ethernet nor with an IP header (hardware type \
                 {hardware}: loopback, ppp, gre, ipip, sit or the like)",
                self.name
            ),
            remedy: "name an Ethernet interface (VLAN, bond, bridge, macvlan and vxlan devices are), a tun or a \
                     wireguard device"
                .to_owned(),
        })
    }

    fn is_port(&self, owner: &Owner) -> Result<DataPlaneError, DataPlaneError> {
        let (name, kind) = (&self.name, &owner.kind);
        let whose = Self::all()?
            .into_iter()
            .find(|interface| interface.index == owner.index)
            .map_or_else(|| format!("#{}", owner.index), |interface| interface.name);
        Ok(DataPlaneError::Refused {
            reason: format!(
                "interface {name} is a port of the {kind} {whose}: to routing and netfilter its packets are {whose}'s, \
                 where the guard would not know them"
            ),
            remedy: format!("name {whose} instead, or take {name} out of it"),
        })
    }
}

/// `struct ifinfomsg` and its attributes.
fn parse(body: &[u8]) -> Option<Interface> {
    let [_, _, k0, k1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *body.first_chunk::<INFO>()?;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let mut interface = Interface {
        name: String::new(),
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        mac: [0; 6],
        up: flags & libc::IFF_UP as u32 != 0,
        link: Link::of(u16::from_ne_bytes([k0, k1])),
        mtu: 0,
        port_of: None,
    };
    let (mut owner, mut owners_kind) = (None, None);
    for (kind, content) in netlink::attributes(body.get(INFO..)?) {
        match kind {
            libc::IFLA_IFNAME => interface.name = netlink::text(content),
            libc::IFLA_MTU => interface.mtu = netlink::number(content).unwrap_or(0),
            libc::IFLA_ADDRESS => {
                if let Ok(mac) = content.try_into() {
                    interface.mac = mac;
                }
            }
            libc::IFLA_MASTER => owner = netlink::number(content),
            libc::IFLA_LINKINFO => {
                owners_kind = netlink::attributes(content)
                    .find(|(kind, _)| *kind == libc::IFLA_INFO_SLAVE_KIND)
                    .map(|(_, content)| netlink::text(content));
            }
            _ => {}
        }
    }
    interface.port_of = owner
        .zip(owners_kind.filter(|kind: &String| Owner::KINDS.contains(&kind.as_str())))
        .map(|(index, kind)| Owner { index, kind });
    Some(interface)
}

/// The addresses of this namespace's interfaces, with their names.
pub(super) fn addresses() -> Result<BTreeMap<IpAddr, String>, DataPlaneError> {
    let doing = "listing the addresses of the interfaces";
    let mut header = [0; ADDRESS_INFO];
    header[0] = libc::AF_UNSPEC as u8;
    let answer = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &header)
        .send(libc::NETLINK_ROUTE)
        .map_err(|error| DataPlaneError::failed(doing, error))?;
    let names: BTreeMap<u32, String> = Interface::all()?
        .into_iter()
        .map(|interface| (interface.index, interface.name))
        .collect();
    Ok(answer
        .iter()
        .filter_map(|message| address(&message.body))
        .map(|(address, index)| {
            let name = names.get(&index).cloned();
            (address, name.unwrap_or_else(|| format!("#{index}")))
        })
        .collect())
}

/// `struct ifaddrmsg` and its attributes: the address and its interface's index.
fn address(body: &[u8]) -> Option<(IpAddr, u32)> {
    let [_, _, _, _, i0, i1, i2, i3] = *body.first_chunk::<ADDRESS_INFO>()?;
    let (mut own, mut prefix) = (None, None);
    for (kind, content) in netlink::attributes(body.get(ADDRESS_INFO..)?) {
        let single = <[u8; 4]>::try_from(content).map(IpAddr::from);
        let found = single
            .or_else(|_| <[u8; 16]>::try_from(content).map(IpAddr::from))
            .ok();
        match kind {
            libc::IFA_LOCAL => own = found,
            // Of a point-to-point interface this is the other end's.
            libc::IFA_ADDRESS => prefix = found,
            _ => {}
        }
    }
    Some((own.or(prefix)?, u32::from_ne_bytes([i0, i1, i2, i3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_nonsense_is_not() {
        let lo = Interface::find("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.index, lo.mac), ("lo", 1, [0; 6]));
        assert!(Interface::all().unwrap().contains(&lo));
        assert_eq!(Interface::find("nosuchif0").unwrap(), None);
        let error = Interface::require("nosuchif0", "uplink").unwrap_err();
        assert!(error.to_string().contains("nosuchif0"), "{error}");
    }
}
