//! A member of a pool: an IPv4 address, an IPv6 address or an IPv6 prefix (POOL-1).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::document::Value;

/// The shortest IPv6 prefix a pool takes: a whole registry allocation.
const MIN_V6_LENGTH: u8 = 32;

/// A member of a pool. Written as in the file: `192.0.2.10`, `2001:db8:aa::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    /// One IPv4 egress IP.
    V4(Ipv4Addr),
    /// A range of IPv6 egress IPs (POOL-6); one of a single address is written without its length.
    V6(Ipv6Net),
}

impl Address {
    /// The addresses it stands for.
    pub fn net(self) -> IpNet {
        match self {
            Self::V4(address) => IpNet::from(IpAddr::V4(address)),
            Self::V6(net) => IpNet::V6(net),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

/// Why a text is no member of a pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither address nor prefix.
    #[error("\"{0}\" is neither an address nor an IPv6 prefix")]
    Unreadable(String),
    /// An IPv4 prefix.
    #[error("{0} is an IPv4 prefix; a pool takes single IPv4 addresses")]
    V4Prefix(IpNet),
    /// Bits outside the prefix.
    #[error("{0} has bits set outside its prefix")]
    HostBits(Ipv6Net),
    /// Too large a range.
    #[error("{0} is too large: IPv6 prefixes of a pool are /{MIN_V6_LENGTH} to /128")]
    TooLarge(Ipv6Net),
    /// Loopback, multicast and the like.
    #[error("{0} cannot be a source address on a network: it is {1}")]
    NotUnicast(Address, &'static str),
}

impl AddressError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreadable(_) => {
                "write, for instance, \"192.0.2.10\" or \"2001:db8:aa::/64\"".into()
            }
            Self::V4Prefix(net) => format!(
                "list its addresses one by one, beginning with \"{}\"",
                net.addr()
            ),
            Self::HostBits(net) => format!("write \"{}\"", net.trunc()),
            Self::TooLarge(_) => "a /64 for each account is usual".into(),
            Self::NotUnicast(..) => "use an address that the network routes to this server".into(),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
            (Ok(IpAddr::V4(address)), _) => Self::V4(address),
            (Ok(IpAddr::V6(address)), _) => Self::V6(address.into()),
            (_, Ok(net @ IpNet::V4(_))) => return Err(AddressError::V4Prefix(net)),
            (_, Ok(IpNet::V6(net))) if net != net.trunc() => {
                return Err(AddressError::HostBits(net));
            }
            (_, Ok(IpNet::V6(net))) if net.prefix_len() < MIN_V6_LENGTH => {
                return Err(AddressError::TooLarge(net));
            }
            (_, Ok(IpNet::V6(net))) => Self::V6(net),
            _ => return Err(AddressError::Unreadable(text.to_owned())),
        };
        not_unicast(address.net().addr()).map_or(Ok(address), |why| {
            Err(AddressError::NotUnicast(address, why))
        })
    }
}

fn not_unicast(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    // `::ffff:0:0/96` stands for IPv4 within programs, and `64:ff9b::/96` for it behind a translator.
    let stands_for_ipv4 = matches!(address, IpAddr::V6(address)
        if address.to_ipv4_mapped().is_some() || address.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]);
    let zero_net = matches!(address, IpAddr::V4(address) if address.octets()[0] == 0);
    let reserved = matches!(address, IpAddr::V4(address) if address.octets()[0] >= 240);
    if address.is_unspecified() || zero_net {
        Some("unspecified")
    } else if address.is_loopback() {
        Some("loopback")
    } else if address.is_multicast() {
        Some("multicast")
    } else if link_local {
        Some("link-local")
    } else if stands_for_ipv4 {
        Some("an IPv4 address written as IPv6")
    } else if reserved {
        Some("reserved")
    } else {
        None
    }
}

/// A prefix without host bits, or an address that stands for itself.
pub(super) fn net(value: Value<'_, '_>) -> Option<IpNet> {
    if let Ok(address) = value.string()?.parse::<IpAddr>() {
        return Some(address.into());
    }
    let net: IpNet = value.parsed("an IP prefix")?;
    if net != net.trunc() {
        value.refuse(
            format!("{net} has bits set outside its prefix"),
            format!("write \"{}\"", net.trunc()),
        );
        return None;
    }
    Some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_addresses_and_ipv6_prefixes() {
        for good in ["192.0.2.10", "2001:db8:aa::/64", "2001:db8::1", "10.0.0.1"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        let long: Address = "2001:db8::1/128".parse().unwrap();
        assert_eq!(long, "2001:DB8:0::1".parse().unwrap());
    }

    #[test]
    fn every_other_form_says_what_is_wrong_with_it() {
        let reason = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert!(reason("192.0.2.0/24").contains("single IPv4 addresses"));
        assert!(reason("192.0.2.1/32").contains("single IPv4 addresses"));
        assert!(reason("2001:db8::1/64").contains("bits set outside"));
        assert!(reason("2000::/3").contains("too large"));
        assert!(reason("127.0.0.1").contains("loopback"));
        assert!(reason("224.0.0.1").contains("multicast"));
        assert!(reason("0.0.0.0").contains("unspecified"));
        assert!(reason("255.255.255.255").contains("reserved"));
        assert!(reason("fe80::/64").contains("link-local"));
        assert!(reason("fe80::1").contains("link-local"));
        assert!(reason("ff02::/64").contains("multicast"));
        assert!(reason("::1").contains("loopback"));
        assert!(reason("::/64").contains("unspecified"));
        assert!(reason("::ffff:192.0.2.1").contains("written as IPv6"));
        assert!(reason("64:ff9b::/96").contains("written as IPv6"));
        assert!(reason("2001:db8::/129").contains("neither"));
        assert!(reason("2001:db8::1%eth0").contains("neither"));
        assert!(reason("192.0.2.256").contains("neither"));
    }
}
