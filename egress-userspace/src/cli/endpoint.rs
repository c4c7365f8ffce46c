//! Addresses with ports as people write them: `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]:443`.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::control::Failure;
use crate::dataplane::api::OriginMatch;

/// An address, and a port if one was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, zone)) = text.split_once('%') {
            let zone = zone.split(']').next().unwrap_or(zone);
            return Err(format!(
                "leave %{zone} away: link-local addresses stay on their link, and others need no zone id"
            ));
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: socket.ip(),
                port: Some(socket.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        bare.parse()
            .map(|address| Self {
                address,
                port: None,
            })
            .map_err(|_| {
                "expected ADDRESS or ADDRESS:PORT, for instance 192.0.2.1:443 or [2001:db8::1]:443"
                    .into()
            })
    }
}

impl Endpoint {
    /// Address and port, which must be given.
    ///
    /// # Errors
    /// With an example of the same family.
    pub(super) fn socket(self) -> Result<SocketAddr, Failure> {
        let address = self.address;
        let complaint = match self.port {
            Some(0) => "no origin is asked for at port 0".to_owned(),
            Some(port) => return Ok(SocketAddr::new(address, port)),
            None => format!("{address} has no port"),
        };
        Err(Failure::usage(
            complaint,
            format!("write {}, for instance", SocketAddr::new(address, 443)),
        ))
    }
}

impl From<Endpoint> for OriginMatch {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            address: endpoint.address,
            port: endpoint.port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_optional_in_both_families() {
        let parsed = |text: &str| {
            text.parse::<Endpoint>()
                .map(|e| (e.address.to_string(), e.port))
        };
        assert_eq!(parsed("192.0.2.1"), Ok(("192.0.2.1".into(), None)));
        assert_eq!(parsed("192.0.2.1:443"), Ok(("192.0.2.1".into(), Some(443))));
        assert_eq!(parsed("2001:db8::1"), Ok(("2001:db8::1".into(), None)));
        assert_eq!(
            parsed("[2001:db8::1]:443"),
            Ok(("2001:db8::1".into(), Some(443)))
        );
        assert!(parsed("example.com:443").is_err());
        assert!(parsed("192.0.2.1:70000").is_err());
        for text in ["fe80::1%eth0", "[fe80::1%2]:443"] {
            let said = parsed(text).unwrap_err();
            assert!(said.starts_with("leave %") && !said.contains(']'), "{said}");
        }
    }
}
