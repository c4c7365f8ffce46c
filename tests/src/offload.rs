//! Checksum offload and receive offload of an interface, by the `SIOCETHTOOL` ioctl.

use std::io;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netns::Namespace;

/// `ETHTOOL_STXCSUM` of linux/ethtool.h.
const SET_TX_CHECKSUM: u32 = 0x17;
/// `ETHTOOL_SGRO`.
const SET_GRO: u32 = 0x2c;
/// `ETHTOOL_STSO`.
const SET_TSO: u32 = 0x1f;
/// `ETHTOOL_SGSO`.
const SET_GSO: u32 = 0x24;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// An offload that can be switched.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// The checksum of what is sent is left to the device.
    TxChecksum,
    /// Received packets are merged; on veth this also switches NAPI on.
    Gro,
    /// Large TCP packets are cut by the device.
    Tso,
    /// Large packets are cut as late as possible.
    Gso,
}

/// Switches an offload of an interface.
///
/// # Errors
/// When the interface does not exist or cannot do it.
pub fn set(namespace: &Namespace, interface: &str, offload: Offload, on: bool) -> Result<()> {
    let command = match offload {
        Offload::TxChecksum => SET_TX_CHECKSUM,
        Offload::Gro => SET_GRO,
        Offload::Tso => SET_TSO,
        Offload::Gso => SET_GSO,
    };
    namespace
        .run(|| {
            ethtool(
                interface,
                Value {
                    command,
                    data: on.into(),
                },
            )
        })?
        .with_context(|| {
            format!(
                "switching {offload:?} of {interface} in {} to {on}",
                namespace.name()
            )
        })
}

fn ethtool(interface: &str, mut value: Value) -> Result<()> {
    use std::os::fd::AsRawFd as _;

    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        bail!("{interface} is too long for an interface name");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value it points to live until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error()).context("SIOCETHTOOL");
    }
    Ok(())
}
