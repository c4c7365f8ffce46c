//! Routes of ours in a table of our own: what a routing daemon exports, and nobody forwards by (ANN-1).
//!
//! They are known again by their protocol number and their metric, which tells the instance. Those of the same protocol and
//! another metric are another instance's.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use egress_common::placement::digest;
use ipnet::IpNet;

use super::netlink::{self, Request};
use super::pins::Pins;
use crate::dataplane::api::DataPlaneError;

/// Who made a route: a number that no routing daemon uses (rtnetlink.h, `RTPROT_*`; /etc/iproute2/rt_protos).
const PROTOCOL: u8 = 0xe9;
/// Length of `struct rtmsg`, and where in it things are.
const HEADER: usize = 12;
const LENGTH: usize = 1;
const TABLE: usize = 4;
const MAKER: usize = 5;
const SCOPE: usize = 6;
const KIND: usize = 7;
/// The kernel filters what it lists by what the request says (linux/netlink.h).
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;

/// A route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// The table it is in.
    pub(super) table: u32,
    /// What it leads to.
    pub(super) prefix: IpNet,
    /// The interface it hangs on; one that hangs on none leads nowhere.
    pub(super) device: Option<u32>,
}

/// The routes of one instance.
#[derive(Debug)]
pub(super) struct Routes {
    metric: u32,
}

impl Routes {
    /// Those of a pin directory.
    pub(super) fn of(pins: &Pins) -> Self {
        let [a, b, c, d, ..] = digest(&pins.root().to_string_lossy()).to_be_bytes();
        // Zero would mean none, and the topmost bit makes `ip route` print it oddly.
        let metric = (u32::from_be_bytes([a, b, c, d]) >> 1).max(1);
        Self { metric }
    }

    /// All that there are, in any table.
    ///
    /// # Errors
    /// When the kernel does not list its routes.
    pub(super) fn all(&self) -> Result<BTreeSet<Entry>, DataPlaneError> {
        let mut found = BTreeSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0; HEADER];
            header[0] = family as u8;
            header[MAKER] = PROTOCOL;
            let request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP as u16, &header);
            let listed = strict()
                .and_then(|socket| netlink::exchange(&socket, [request]))
                .map_err(|error| DataPlaneError::failed("listing the announced routes", error))?;
            found.extend(listed.iter().filter_map(|message| self.ours(&message.body)));
        }
        Ok(found)
    }

    /// What they lead to, each once.
    ///
    /// # Errors
    /// When the kernel does not list its routes.
    pub(super) fn prefixes(&self) -> Result<Vec<IpNet>, DataPlaneError> {
        let all: BTreeSet<IpNet> = self.all()?.iter().map(|entry| entry.prefix).collect();
        Ok(all.into_iter().collect())
    }

    /// The entry in a message, if it is one of this instance's.
    fn ours(&self, body: &[u8]) -> Option<Entry> {
        let header = body.first_chunk::<HEADER>()?;
        if header[MAKER] != PROTOCOL {
            return None;
        }
        let mut table = u32::from(header[TABLE]);
        let (mut metric, mut device) = (0, None);
        let mut address = match i32::from(header[0]) {
            libc::AF_INET => IpAddr::from([0; 4]),
            _ => IpAddr::from([0; 16]),
        };
        for (kind, content) in netlink::attributes(body.get(HEADER..)?) {
            match kind {
                libc::RTA_TABLE => table = netlink::number(content)?,
                libc::RTA_PRIORITY => metric = netlink::number(content)?,
                libc::RTA_OIF => device = netlink::number(content),
                libc::RTA_DST => address = parse(content)?,
                _ => {}
            }
        }
        let entry = Entry {
            table,
            prefix: IpNet::new(address, header[LENGTH]).ok()?,
            // The kernel hangs IPv6 routes that lead nowhere on the loopback interface.
            device: device.filter(|_| header[KIND] == libc::RTN_UNICAST),
        };
        (metric == self.metric).then_some(entry)
    }

    /// Makes a route; one that is there already is as good.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn add(&self, entry: Entry) -> Result<(), DataPlaneError> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK) as u16;
        match self.request(libc::RTM_NEWROUTE, flags, entry) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(
                DataPlaneError::failed(format!("announcing {}", entry.prefix), error),
            ),
            _ => Ok(()),
        }
    }

    /// Takes a route away; one that is gone already is as good.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn remove(&self, entry: Entry) -> Result<(), DataPlaneError> {
        match self.request(libc::RTM_DELROUTE, libc::NLM_F_ACK as u16, entry) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(DataPlaneError::failed(
                format!("withdrawing {}", entry.prefix),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Takes all of this instance's routes away; returns how many there were.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn remove_all(&self) -> Result<usize, DataPlaneError> {
        let all = self.all()?;
        for entry in &all {
            self.remove(*entry)?;
        }
        Ok(all.len())
    }

    fn request(&self, kind: u16, flags: u16, entry: Entry) -> io::Result<()> {
        let (family, address) = match entry.prefix.network() {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        let mut header = [0; HEADER];
        header[0] = family as u8;
        header[LENGTH] = entry.prefix.prefix_len();
        header[MAKER] = PROTOCOL;
        (header[SCOPE], header[KIND]) = match entry.device {
            Some(_) => (libc::RT_SCOPE_LINK, libc::RTN_UNICAST),
            None => (libc::RT_SCOPE_UNIVERSE, libc::RTN_BLACKHOLE),
        };
        let mut request = Request::new(kind, flags, &header)
            .attribute(libc::RTA_DST, &address)
            .attribute(libc::RTA_TABLE, &entry.table.to_ne_bytes())
            .attribute(libc::RTA_PRIORITY, &self.metric.to_ne_bytes());
        if let Some(device) = entry.device {
            request = request.attribute(libc::RTA_OIF, &device.to_ne_bytes());
        }
        request.send(libc::NETLINK_ROUTE).map(drop)
    }
}

/// A socket on which the kernel lists what was asked for and not everything.
fn strict() -> io::Result<OwnedFd> {
    let socket = netlink::socket(libc::NETLINK_ROUTE, 0)?;
    let on: libc::c_int = 1;
    // SAFETY: the value is ours and as long as we say.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            NETLINK_GET_STRICT_CHK,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn parse(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
