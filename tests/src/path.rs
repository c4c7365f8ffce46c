//! A path through the standard network that takes less than its interfaces, of either family, and what is said of it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use ipnet::IpNet;

use crate::{
    capture::Frame,
    leak::Rules,
    netns::Namespace,
    packet::{ICMP, ICMPV6, Transport},
    pattern,
    site::Site,
    standard::{A, BOUND_ADDRESS, BOUND_ADDRESS_V6, GATEWAY, INSIDE_BOUND, NET, POOL, RANGE},
};

/// How long a byte may be missing before a transfer counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are received before they are read, at most, in [`echo_across`].
const UNREAD: u64 = 1 << 20;
/// Bytes at a time.
const BLOCK: usize = 1 << 16;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// A port of an origin.
    #[must_use]
    pub fn at(self, site: &Site, origin: &str, port: u16) -> SocketAddr {
        let address = match self {
            Self::V4 => site.kind.origin(origin).into(),
            Self::V6 => site.kind.origin_v6(origin).into(),
        };
        SocketAddr::new(address, port)
    }

    /// The pool's addresses, which are all that may leave.
    #[must_use]
    pub fn rules(self) -> Rules {
        match self {
            Self::V4 => Rules::new().allow(POOL),
            Self::V6 => Rules::new().allow_range(RANGE.into()),
        }
    }

    /// Whether an address is one of the pool.
    #[must_use]
    pub fn is_egress(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => POOL.iter().any(|pool| address == *pool),
            Self::V6 => IpNet::from(RANGE).contains(&address),
        }
    }

    /// Type and code of "too big".
    const fn too_big(self) -> (u8, u8) {
        match self {
            Self::V4 => (3, 4),
            Self::V6 => (2, 0),
        }
    }

    const fn icmp(self) -> u8 {
        match self {
            Self::V4 => ICMP,
            Self::V6 => ICMPV6,
        }
    }

    /// Whether a frame holds an address of the inside, wherever: the client's, or the gateway's towards it.
    #[must_use]
    pub fn names_the_inside(self, frame: &Frame) -> bool {
        let (client, gateway) = match self {
            Self::V4 => (BOUND_ADDRESS.octets().to_vec(), vec![10, 1, 0, 1]),
            Self::V6 => {
                let mut gateway = BOUND_ADDRESS_V6.octets().to_vec();
                gateway[15] = 1;
                (BOUND_ADDRESS_V6.octets().to_vec(), gateway)
            }
        };
        let bytes = frame.bytes.windows(client.len());
        bytes
            .into_iter()
            .any(|part| part == client || part == gateway)
    }

    /// Lowers what the router behind the uplink takes towards an origin, in a routed network.
    ///
    /// # Errors
    /// When the route cannot be changed.
    pub fn narrow_behind(self, site: &Site, origin: &str, mtu: u32) -> Result<()> {
        let route = match (self, origin == A) {
            (Self::V4, true) => "198.51.100.0/24 dev a0 proto kernel scope link src 198.51.100.1",
            (Self::V4, false) => "192.0.2.0/24 dev b0 proto kernel scope link src 192.0.2.1",
            (Self::V6, true) => "2001:db8:a::/64 dev a0 proto kernel metric 256",
            (Self::V6, false) => "2001:db8:b::/64 dev b0 proto kernel metric 256",
        };
        narrow(&site.node(NET), route, mtu)
    }

    /// Lowers what the gateway takes towards the bound client.
    ///
    /// # Errors
    /// When the route cannot be changed.
    pub fn narrow_inside(self, site: &Site, mtu: u32) -> Result<()> {
        let route = match self {
            Self::V4 => {
                format!("10.1.0.0/24 dev {INSIDE_BOUND} proto kernel scope link src 10.1.0.1")
            }
            Self::V6 => format!("fd00:1::/64 dev {INSIDE_BOUND} proto kernel metric 256"),
        };
        narrow(&site.node(GATEWAY), &route, mtu)
    }

    /// ICMP errors that left the gateway: how many say that a packet was too big.
    ///
    /// # Errors
    /// When one comes from elsewhere than the pool, or names somebody inside.
    pub fn complaints(self, frames: &[Frame]) -> Result<usize> {
        let mut count = 0;
        for frame in frames.iter().filter(|frame| frame.received) {
            let Some(packet) = frame.packet() else {
                continue;
            };
            let (true, Transport::Icmp { kind, code, .. }) =
                (packet.protocol == self.icmp(), packet.transport)
            else {
                continue;
            };
            // Of ICMPv6 neighbour discovery is a part, and no concern of the pool's.
            if self == Self::V6 && kind >= 128 {
                continue;
            }
            ensure!(self.is_egress(packet.source), "{packet}");
            ensure!(
                !self.names_the_inside(frame),
                "an inside address left: {:02x?}",
                frame.bytes
            );
            count += usize::from((kind, code) == self.too_big());
        }
        Ok(count)
    }
}

fn narrow(node: &Namespace, route: &str, mtu: u32) -> Result<()> {
    node.ip(&format!("route replace {route} mtu lock {mtu}"))?;
    Ok(())
}

/// Whether a node has learned that packets to an address may have `mtu` bytes.
///
/// # Errors
/// When its routes cannot be asked.
pub fn learned(node: &Namespace, to: IpAddr, mtu: u32) -> Result<bool> {
    Ok(node
        .ip(&format!("route get {to}"))?
        .contains(&format!("mtu {mtu}")))
}

/// As [`echo`], with much to come after `midway`: the node takes in no more than [`UNREAD`] before it is read.
///
/// # Errors
/// As above, or when the node's limit cannot be set.
pub fn echo_across(
    node: &Namespace,
    target: SocketAddr,
    midway: impl FnOnce() -> Result<()>,
) -> Result<()> {
    node.sysctl("net.ipv4.tcp_rmem", &format!("4096 131072 {UNREAD}"))?;
    echo(node, target, 16 * UNREAD, midway)
}

/// Sends the pattern to an echo server and reads it back, each byte compared; `midway` is called once.
///
/// # Errors
/// When a byte is wrong, or missing for longer than [`PATIENCE`].
pub fn echo(
    node: &Namespace,
    target: SocketAddr,
    bytes: u64,
    midway: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stream = node.run(|| TcpStream::connect_timeout(&target, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut midway = Some(midway);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let mut block = vec![0; BLOCK];
            let mut at = 0;
            while at < bytes {
                let length = BLOCK.min(usize::try_from(bytes - at)?);
                pattern::fill(&mut block[..length], at);
                (&stream)
                    .write_all(&block[..length])
                    .with_context(|| format!("sending after {at} of {bytes} bytes"))?;
                at += length as u64;
            }
            Ok(())
        });
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        let received = (|| {
            while at < bytes {
                let got = (&stream)
                    .read(&mut block)
                    .with_context(|| format!("reading after {at} of {bytes} bytes"))?;
                ensure!(got > 0, "the echo ended after {at} of {bytes} bytes");
                ensure!(pattern::matches(&block[..got], at), "wrong data at {at}");
                at += got as u64;
                if at >= bytes / 2
                    && let Some(midway) = midway.take()
                {
                    midway()?;
                }
            }
            Ok(())
        })();
        if received.is_err() {
            // The sender is not to wait for somebody who has given up.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        received.and(sent)
    })
}
