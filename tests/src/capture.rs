//! What was on the wire: an `AF_PACKET` socket on an interface, read by a thread.
//!
//! The kernel hands over a packet before the sender goes on, so when [`Tap::stop`] returns, everything
//! that was sent before the call has been seen, or is counted as lost.

use std::{
    ffi::c_int,
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    ptr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{netns::Namespace, packet::Packet, pcap};

/// What is kept of a packet: all headers that [`Packet`] reads, with room for options.
const KEPT: usize = 192;
/// The socket's buffer; the kernel counts some 800 bytes a short packet.
const BUFFER: c_int = 256 << 20;
/// Packets taken from the socket at once.
const BATCH: usize = 64;
/// How often the thread looks whether it should end.
const POLL: c_int = 20;

/// A captured frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it was read, since the epoch.
    pub at: Duration,
    /// Whether the interface received it; otherwise it sent it.
    pub received: bool,
    /// Its length on the wire.
    pub length: usize,
    /// The VLAN tag, when the kernel keeps it beside the frame.
    pub vlan: Option<u16>,
    /// Its first bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The headers, if it is an IP packet.
    #[must_use]
    pub fn packet(&self) -> Option<Packet> {
        let packet = Packet::parse(&self.bytes)?;
        Some(Packet {
            vlan: packet.vlan.or(self.vlan),
            ..packet
        })
    }
}

/// What the socket counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Packets handed to the sink.
    pub seen: u64,
    /// Packets that did not fit into the buffer.
    pub lost: u64,
}

/// A running capture that hands each frame to a sink.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Counts>>>,
}

impl Tap {
    /// Starts to capture; when this returns, no packet is missed any more.
    ///
    /// # Errors
    /// When the interface does not exist or packet sockets are not allowed.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        sink: impl FnMut(Frame) + Send + 'static,
    ) -> Result<Self> {
        let socket = namespace
            .run(|| open(interface))?
            .with_context(|| format!("capturing on {interface} in {}", namespace.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let should_stop = Arc::clone(&stop);
        let thread = thread::spawn(move || read_all(&socket, &should_stop, sink));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Reads what is left and ends.
    ///
    /// # Errors
    /// When reading failed.
    pub fn stop(mut self) -> Result<Counts> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else {
            bail!("the capture ended before")
        };
        thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A capture that keeps its frames in memory.
#[derive(Debug)]
pub struct Capture {
    tap: Tap,
    frames: Arc<(Mutex<Vec<Frame>>, Condvar)>,
}

impl Capture {
    /// Starts to capture.
    ///
    /// # Errors
    /// As [`Tap::start`].
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let frames = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let shared = Arc::clone(&frames);
        let tap = Tap::start(namespace, interface, move |frame| {
            shared
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(frame);
            shared.1.notify_all();
        })?;
        Ok(Self { tap, frames })
    }

    /// Waits until the packets so far satisfy a condition.
    ///
    /// # Errors
    /// When they do not within `limit`; the message lists the last ones.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&[Frame]) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        let mut frames = self.frames.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if done(&frames) {
                return Ok(());
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                break;
            };
            frames = self
                .frames
                .1
                .wait_timeout(frames, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let last: Vec<_> = frames
            .iter()
            .rev()
            .filter_map(Frame::packet)
            .take(10)
            .map(|packet| packet.to_string())
            .collect();
        bail!(
            "waited {limit:?} for {what} among {} frames; the last: {}",
            frames.len(),
            last.join("; ")
        )
    }

    /// The frames so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.frames
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends and returns all frames.
    ///
    /// # Errors
    /// When packets were lost.
    pub fn finish(self) -> Result<Vec<Frame>> {
        let counts = self.tap.stop()?;
        if counts.lost > 0 {
            bail!(
                "the capture lost {} of {} packets",
                counts.lost,
                counts.seen + counts.lost
            );
        }
        Ok(mem::take(
            &mut *self.frames.0.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Writes frames to a pcap file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(frames: &[Frame], path: &Path) -> Result<()> {
        let mut writer = pcap::Writer::create(path)?;
        for frame in frames {
            writer.add(frame.at, &frame.bytes, frame.length)?;
        }
        writer.finish()
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
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

fn read_all(socket: &OwnedFd, stop: &AtomicBool, mut sink: impl FnMut(Frame)) -> Result<Counts> {
    let mut batch = Batch::new();
    let mut counts = Counts::default();
    loop {
        // Looked at before reading: what came before the flag was set is read in any case.
        let last = stop.load(Ordering::SeqCst);
        while let n @ 1.. = batch.receive(socket)? {
            for frame in batch.frames(n) {
                counts.seen += 1;
                sink(frame);
            }
        }
        if last {
            break;
        }
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, alive until the call returns.
        unsafe { libc::poll(&raw mut poll, 1, POLL) };
    }
    counts.lost = lost(socket)?;
    Ok(counts)
}

fn lost(socket: &OwnedFd) -> Result<u64> {
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
struct Batch {
    data: Vec<[u8; KEPT]>,
    addresses: Vec<libc::sockaddr_ll>,
    control: Vec<[u64; 8]>,
    vectors: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: all zeroes is valid for each of these plain structures.
        unsafe {
            Self {
                data: vec![[0; KEPT]; BATCH],
                addresses: vec![mem::zeroed(); BATCH],
                control: vec![[0; 8]; BATCH],
                vectors: vec![mem::zeroed(); BATCH],
                messages: vec![mem::zeroed(); BATCH],
            }
        }
    }

    /// Takes what is there, without waiting; 0 when there is nothing.
    fn receive(&mut self, socket: &OwnedFd) -> Result<usize> {
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

    fn frames(&self, count: usize) -> impl Iterator<Item = Frame> {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (0..count).map(move |index| {
            let message = &self.messages[index];
            let kept = (message.msg_len as usize).min(KEPT);
            let auxiliary = auxiliary(&message.msg_hdr);
            Frame {
                at,
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

fn auxiliary(header: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: the kernel filled header and control room; the macros walk within its length.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == libc::PACKET_AUXDATA {
                let mut value = MaybeUninit::<libc::tpacket_auxdata>::uninit();
                ptr::copy_nonoverlapping(
                    libc::CMSG_DATA(control),
                    value.as_mut_ptr().cast(),
                    size_of::<libc::tpacket_auxdata>(),
                );
                return Some(value.assume_init());
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
