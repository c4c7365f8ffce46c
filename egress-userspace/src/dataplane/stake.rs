//! An interface that is there for as long as the daemon is: the kernel removes it, and the routes that hang on it, when
//! its file is closed, however the daemon ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use super::interfaces::Interface;
use super::netlink::Request;
use crate::dataplane::api::DataPlaneError;

/// The device that makes interfaces, and the name they get: the kernel puts a number in.
const TUN: &str = "/dev/net/tun";
const NAME: &[u8] = b"egressd%d";
/// Length of `struct ifinfomsg`, and where in it things are.
const INFO: usize = 16;
const INDEX: usize = 4;
const FLAGS: usize = 8;
const CHANGE: usize = 12;

/// The interface.
#[derive(Debug)]
pub(super) struct Stake {
    index: u32,
    _file: File,
}

impl Stake {
    /// Makes it, and brings it up.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] where the kernel has no tun devices.
    pub(super) fn drive() -> Result<Self, DataPlaneError> {
        let (file, name) = make().map_err(|error| DataPlaneError::Refused {
            reason: format!(
                "routes can hang on this daemon's life only by a tun interface, and {TUN} makes none: {error}"
            ),
            remedy: "load the module tun, or write when_down = \"keep\" under [announce]".to_owned(),
        })?;
        let interface = Interface::find(&name)?.ok_or_else(|| {
            DataPlaneError::failed(format!("making interface {name}"), "it is gone already")
        })?;
        raise(&interface).map_err(|error| {
            DataPlaneError::failed(format!("bringing up interface {name}"), error)
        })?;
        Ok(Self {
            index: interface.index,
            _file: file,
        })
    }

    /// Its index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }
}

fn make() -> io::Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(NAME) {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is ours; the kernel reads it and writes the name it chose.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name = name.map(|byte| char::from(*byte as u8)).collect();
    Ok((file, name))
}

fn raise(interface: &Interface) -> io::Result<()> {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut header = [0; INFO];
    header[INDEX..INDEX + 4].copy_from_slice(&interface.index.to_ne_bytes());
    header[FLAGS..FLAGS + 4].copy_from_slice(&up);
    header[CHANGE..CHANGE + 4].copy_from_slice(&up);
    Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK as u16, &header)
        .send(libc::NETLINK_ROUTE)
        .map(drop)
}
