//! The packet socket: opened, read in batches, asked what it lost.

use std::{
    ffi::c_int,
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use super::Frame;

/// What is kept of a packet: all headers that [`crate::packet::Packet`] reads, with room for options.
const KEPT: usize = 192;
/// The socket's buffer; the kernel counts some 800 bytes a short packet.
const BUFFER: c_int = 256 << 20;
/// Packets taken from the socket at once.
const BATCH: usize = 64;

/// A socket that receives from now on whatever passes an interface of the current namespace.
pub(super) fn open(interface: &str) -> Result<OwnedFd> {
    const EVERY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

    let index = nix::net::if_::if_nametoindex(interface)?;
    // Protocol 0: nothing arrives before the socket is bound to the interface.
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("opening a packet socket");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // `ret #KEPT`: the whole program says how much to keep of each packet.
    let keep = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: KEPT as u32,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: (&raw const keep).cast_mut(),
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
        .context("cutting packets")?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER)
        .context("enlarging the buffer")?;
    set_option(fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1)
        .context("asking for lengths and tags")?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1).context("asking for times")?;
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = EVERY_PROTOCOL;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is as long as said.
    let bound = unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error()).context("binding a packet socket");
    }
    Ok(socket)
}

fn set_option<T>(fd: RawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is as long as said and lives until the call returns.
    match unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many packets did not fit into the buffer since this was asked last.
pub(super) fn lost(socket: &OwnedFd) -> Result<u64> {
    // SAFETY: all zeroes is a valid value.
    let mut statistics: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length = size_of_val(&statistics) as u32;
    // SAFETY: value and length live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("reading the capture's counters");
    }
    Ok(statistics.tp_drops.into())
}

/// Room for one call of `recvmmsg`.
pub(super) struct Batch {
    data: Vec<[u8; KEPT]>,
    addresses: Vec<libc::sockaddr_ll>,
    control: Vec<[u64; 16]>,
    vectors: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

impl Batch {
    pub(super) fn new() -> Self {
        // SAFETY: all zeroes is valid for each of these plain structures.
        unsafe {
            Self {
                data: vec![[0; KEPT]; BATCH],
                addresses: vec![mem::zeroed(); BATCH],
                control: vec![[0; 16]; BATCH],
                vectors: vec![mem::zeroed(); BATCH],
                messages: vec![mem::zeroed(); BATCH],
            }
        }
    }

    /// Takes what is there, without waiting; 0 when there is nothing.
    pub(super) fn receive(&mut self, socket: &OwnedFd) -> Result<usize> {
        for index in 0..BATCH {
            self.vectors[index] = libc::iovec {
                iov_base: self.data[index].as_mut_ptr().cast(),
                iov_len: KEPT,
            };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.control[index].as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&self.control[index]);
        }
        // SAFETY: every header points to room of the length it says, all of it in `self`.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(received) => Ok(received),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                // The interface went down or away: it says so once, and may come back.
                error if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(0),
                error => Err(error).context("reading captured packets"),
            },
        }
    }

    /// The frames of the last call.
    pub(super) fn frames(&self, count: usize) -> impl Iterator<Item = Frame> {
        let read = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (0..count).map(move |index| {
            let message = &self.messages[index];
            let kept = (message.msg_len as usize).min(KEPT);
            let auxiliary: Option<libc::tpacket_auxdata> =
                told(&message.msg_hdr, libc::SOL_PACKET, libc::PACKET_AUXDATA);
            let passed: Option<libc::timespec> =
                told(&message.msg_hdr, libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS);
            let passed = passed.map(|at| {
                Duration::new(at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs() as u32)
            });
            Frame {
                at: passed.unwrap_or(read),
                received: self.addresses[index].sll_pkttype != libc::PACKET_OUTGOING,
                length: auxiliary.map_or(kept, |found| found.tp_len as usize),
                vlan: auxiliary
                    .filter(|found| found.tp_status & libc::TP_STATUS_VLAN_VALID != 0)
                    .map(|found| found.tp_vlan_tci & 0x0fff),
                bytes: self.data[index][..kept].to_vec(),
            }
        })
    }
}

/// What the kernel says beside a packet.
fn told<T: Copy>(header: &libc::msghdr, level: c_int, kind: c_int) -> Option<T> {
    // SAFETY: the kernel filled header and control room; the macros walk within its length. `T` is plain data of the kernel's, and
    // what does not hold one is not read.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            let holds = found.cmsg_len >= libc::CMSG_LEN(size_of::<T>() as u32) as usize;
            if found.cmsg_level == level && found.cmsg_type == kind && holds {
                let mut value = MaybeUninit::<T>::uninit();
                ptr::copy_nonoverlapping(
                    libc::CMSG_DATA(control),
                    value.as_mut_ptr().cast(),
                    size_of::<T>(),
                );
                return Some(value.assume_init());
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
