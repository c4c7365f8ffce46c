//! Packets that no honest host sends, put on the wire as they are: wrong flags, cut headers, fragments,
//! errors about nothing, other protocols. For all of them: nothing may leave, and nothing may change.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::{netns::Namespace, seed::Random};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;
/// Protocols that cannot be translated: IGMP, IPIP, GRE, ESP, AH, OSPF, SCTP, UDP-Lite, and an unassigned one.
const OTHER_PROTOCOLS: [u8; 9] = [2, 4, 47, 50, 51, 89, 132, 136, 253];
/// ICMP types that are errors.
const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The sender's link-layer address.
    pub from: [u8; 6],
    /// The gateway's.
    pub to: [u8; 6],
    /// The inside address.
    pub source: Ipv4Addr,
    /// The origin.
    pub destination: Ipv4Addr,
}

/// Makes one odd packet.
#[must_use]
pub fn packet(path: &Path, random: &mut Random) -> Vec<u8> {
    let mut frame = match random.below(6) {
        0 => tcp(path, random),
        1 => fragment(path, random),
        2 => icmp_error(path, random),
        3 => {
            let protocol = OTHER_PROTOCOLS[random.below(OTHER_PROTOCOLS.len() as u64) as usize];
            let body = noise(random);
            ip(path, protocol, 0, &body)
        }
        4 => {
            // A UDP length that does not fit.
            let mut body = udp(random);
            body[4..6].copy_from_slice(&(random.number() as u16).to_be_bytes());
            ip(path, 17, 0, &body)
        }
        _ => {
            // An IP header that contradicts itself: length, options or version.
            let body = udp(random);
            let mut frame = ip(path, 17, 0, &body);
            match random.below(3) {
                0 => frame[ETHERNET] = 0x45 + random.below(11) as u8,
                1 => frame[ETHERNET] = (random.below(16) as u8) << 4 | 5,
                _ => frame[ETHERNET + 2..ETHERNET + 4]
                    .copy_from_slice(&(random.number() as u16).to_be_bytes()),
            }
            checksum_header(&mut frame);
            frame
        }
    };
    if random.below(4) == 0 {
        // Cut anywhere; the link does not care.
        let length = ETHERNET + random.below((frame.len() - ETHERNET) as u64 + 1) as usize;
        frame.truncate(length);
    }
    frame
}

/// A ping.
#[must_use]
pub fn ping(path: &Path, sequence: u16) -> Vec<u8> {
    let [high, low] = sequence.to_be_bytes();
    let mut body = vec![8, 0, 0, 0, 0x12, 0x34, high, low];
    body.extend(b"as long as any ping");
    let sum = checksum(&body, 0);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(path, 1, 0, &body)
}

/// TCP that opens nothing: any flags but a plain SYN.
fn tcp(path: &Path, random: &mut Random) -> Vec<u8> {
    const SYN: u8 = 0x02;

    let mut body = vec![0; 20];
    body[0..2].copy_from_slice(&(random.number() as u16).to_be_bytes());
    body[2..4].copy_from_slice(&80u16.to_be_bytes());
    body[4..12].copy_from_slice(&random.number().to_be_bytes());
    body[12] = 5 << 4;
    let flags = random.number() as u8;
    // SYN with FIN or RST opens nothing either; SYN alone would be an honest connection.
    body[13] = if flags & 0x07 == SYN {
        flags | 0x01
    } else {
        flags
    };
    body.extend(noise(random));
    checksum_transport(path, 6, &mut body, 16);
    ip(path, 6, 0, &body)
}

/// A fragment: first, middle or last, of either protocol.
fn fragment(path: &Path, random: &mut Random) -> Vec<u8> {
    const MORE: u16 = 0x2000;

    let offset = random.below(4) as u16;
    let more = if offset == 0 || random.below(2) == 0 {
        MORE
    } else {
        0
    };
    let protocol = if random.below(2) == 0 { 6 } else { 17 };
    let mut body = udp(random);
    body.resize(32, 7);
    ip(path, protocol, offset | more, &body)
}

/// An error about a packet that was never received.
fn icmp_error(path: &Path, random: &mut Random) -> Vec<u8> {
    let about = Path {
        source: path.destination,
        destination: path.source,
        ..*path
    };
    let inner = ip(&about, 6, 0, &udp(random));
    let mut body = vec![
        ERRORS[random.below(ERRORS.len() as u64) as usize],
        random.below(16) as u8,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    body.extend(&inner[ETHERNET..]);
    let sum = checksum(&body, 0);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(path, 1, 0, &body)
}

fn udp(random: &mut Random) -> Vec<u8> {
    let mut body = vec![0; 16];
    body[0..2].copy_from_slice(&(random.number() as u16).to_be_bytes());
    body[2..4].copy_from_slice(&9999u16.to_be_bytes());
    body[4..6].copy_from_slice(&16u16.to_be_bytes());
    body
}

fn noise(random: &mut Random) -> Vec<u8> {
    let length = random.below(40) as usize;
    (0..length).map(|_| random.number() as u8).collect()
}

pub(crate) fn ip(path: &Path, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + IPV4 + body.len());
    frame.extend(path.to);
    frame.extend(path.from);
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(((IPV4 + body.len()) as u16).to_be_bytes());
    frame.extend([0x12, 0x34]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(path.source.octets());
    frame.extend(path.destination.octets());
    frame.extend(body);
    checksum_header(&mut frame);
    frame
}

/// Makes the IP header's checksum right, so that the packet fails for its oddity only.
fn checksum_header(frame: &mut [u8]) {
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let length = (usize::from(frame[ETHERNET] & 0x0f) * 4).min(frame.len() - ETHERNET);
    let sum = checksum(&frame[ETHERNET..ETHERNET + length], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
}

pub(crate) fn checksum_transport(path: &Path, protocol: u8, body: &mut [u8], at: usize) {
    let mut pseudo = Vec::new();
    pseudo.extend(path.source.octets());
    pseudo.extend(path.destination.octets());
    pseudo.extend([0, protocol]);
    pseudo.extend((body.len() as u16).to_be_bytes());
    let sum = checksum(body, !checksum(&pseudo, 0));
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8], start: u16) -> u16 {
    let mut sum = u32::from(start);
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Puts frames on the wire of an interface.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    interface: u32,
}

impl Sender {
    /// For an interface of a node.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run(|| {
            let interface = nix::net::if_::if_nametoindex(interface)?;
            // SAFETY: a plain system call.
            let fd =
                unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("opening a packet socket");
            }
            // SAFETY: the descriptor is new and nobody else's.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Self { socket, interface })
        })?
    }

    /// Sends frames; returns how many the kernel took.
    #[must_use]
    pub fn send(&self, frames: &[Vec<u8>]) -> usize {
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.interface.cast_signed();
        let sent = |frame: &&Vec<u8>| {
            // SAFETY: frame and address are as long as said.
            let sent = unsafe {
                libc::sendto(
                    self.socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const address).cast(),
                    size_of_val(&address) as u32,
                )
            };
            sent >= 0
        };
        frames.iter().filter(sent).count()
    }
}

/// Puts frames on the wire of an interface; returns how many the kernel took.
///
/// # Errors
/// When the interface does not exist.
pub fn send(namespace: &Namespace, interface: &str, frames: &[Vec<u8>]) -> Result<usize> {
    Ok(Sender::open(namespace, interface)?.send(frames))
}

/// The link-layer address of an interface.
///
/// # Errors
/// When the interface does not exist.
pub fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let text = namespace.ip(&format!("-o link show dev {interface}"))?;
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let address = words
        .nth(1)
        .with_context(|| format!("{interface} has no link-layer address"))?;
    let bytes: Vec<_> = address
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes
        .try_into()
        .map_err(|_| anyhow::anyhow!("an odd address {address}"))
}
