//! Requests to the kernel over netlink, as small as our few questions need them.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Room for one datagram: the kernel sends dumps in pieces of at most 32 KiB.
const BUFFER: usize = 32 * 1024;
/// Seconds to wait for an answer.
const ANSWER_LIMIT: libc::time_t = 10;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// Bits of an attribute's type that are not flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// A message of an answer.
pub(super) struct Message {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// What follows the header.
    pub(super) body: Vec<u8>,
}

/// An attribute's bytes, for one that holds others.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE + value.len();
    let mut bytes = u16::try_from(length)
        .unwrap_or(u16::MAX)
        .to_ne_bytes()
        .to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    pad(&mut bytes);
    bytes
}

/// A message to send.
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a type, with `flags` beside `NLM_F_REQUEST`, and the family's own header.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        bytes.extend_from_slice(header);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Adds an attribute that is a text with a terminating zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend(attribute(kind, value));
        self
    }

    /// Sends the request and returns all messages of the answer.
    ///
    /// # Errors
    /// What the kernel answered, as an operating-system error.
    pub(super) fn send(self, protocol: libc::c_int) -> io::Result<Vec<Message>> {
        exchange(&socket(protocol, 0)?, [self])
    }

    /// Sends a request for a list that may be long, and shows type and body of each message of the answer.
    ///
    /// # Errors
    /// What the kernel answered, as an operating-system error.
    pub(super) fn visit(
        self,
        protocol: libc::c_int,
        each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let socket = socket(protocol, 0)?;
        let many = send(&socket, [self])?;
        receive(&socket, many, each)
    }

    fn is_dump(&self) -> bool {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        flags & libc::NLM_F_DUMP as u16 == libc::NLM_F_DUMP as u16
    }
}

/// Sends requests in one piece, of which one is answered, and returns all messages of the answer.
///
/// # Errors
/// What the kernel answered, as an operating-system error.
pub(super) fn exchange(
    socket: &OwnedFd,
    requests: impl IntoIterator<Item = Request>,
) -> io::Result<Vec<Message>> {
    let many = send(socket, requests)?;
    let mut messages = Vec::new();
    receive(socket, many, |kind, body| {
        messages.push(Message {
            kind,
            body: body.to_vec(),
        });
    })?;
    Ok(messages)
}

/// Sends requests in one piece; says whether their answer ends with a message of its own.
fn send(socket: &OwnedFd, requests: impl IntoIterator<Item = Request>) -> io::Result<bool> {
    let mut bytes = Vec::new();
    let mut many = false;
    for request in requests {
        many |= request.is_dump() || !bytes.is_empty();
        let length = u32::try_from(request.bytes.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(request.bytes.get(4..).unwrap_or_default());
    }
    // SAFETY: the buffer is ours and as long as we say.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(many)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Opens a netlink socket that listens to the groups of this (old-style) bit mask.
pub(super) fn socket(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // The kernel answers before `send` returns; if ever it does not, that is to be an error and no silence.
    let limit = libc::timeval {
        tv_sec: ANSWER_LIMIT,
        tv_usec: 0,
    };
    // SAFETY: the limit is ours and as long as we say.
    let limited = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            std::ptr::from_ref(&limit).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if limited < 0 {
        return Err(io::Error::last_os_error());
    }
    if groups != 0 {
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        // SAFETY: the address is ours and as long as we say.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}

fn receive(socket: &OwnedFd, dump: bool, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut any = false;
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        // SAFETY: the buffer is ours and as long as we say.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, after)) = split_message(rest) {
            rest = after;
            if i32::from(kind) == libc::NLMSG_DONE {
                return Ok(());
            }
            if i32::from(kind) == libc::NLMSG_ERROR {
                return match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => Ok(()),
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                    None => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            any = true;
            each(kind, body);
        }
        if !dump && any {
            return Ok(());
        }
    }
}

/// Reads and forgets all announcements; true if there were any, or too many.
pub(super) fn announced(socket: &OwnedFd) -> bool {
    let mut buffer = [0_u8; 4096];
    let mut any = false;
    loop {
        // SAFETY: the buffer is ours and as long as we say.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        if length <= 0 {
            let overrun = io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
            return any || length < 0 && overrun;
        }
        any = true;
    }
}

/// Type and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = bytes.first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, k0, k1, ..] = *header;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let kind = u16::from_ne_bytes([k0, k1]);
    let body = bytes.get(HEADER..length)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((kind, body, bytes.get(next..)?))
}

/// The attributes in `bytes`: type and content.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]) & TYPE_MASK;
        let content = rest.get(ATTRIBUTE..length)?;
        let next = length.next_multiple_of(4).min(rest.len());
        rest = rest.get(next..)?;
        Some((kind, content))
    })
}

/// An attribute's content as a text without its terminating zero.
pub(super) fn text(content: &[u8]) -> String {
    String::from_utf8_lossy(content.strip_suffix(&[0]).unwrap_or(content)).into_owned()
}

/// An attribute's content as a number in the machine's byte order.
pub(super) fn number(content: &[u8]) -> Option<u32> {
    content
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_within_bounds() {
        let bytes = [
            8, 0, 1, 0, 7, 0, 0, 0, 6, 0, 2, 0x80, b'x', 0, 0, 0, 99, 0, 3, 0,
        ];
        let found: Vec<(u16, Vec<u8>)> = attributes(&bytes)
            .map(|(kind, content)| (kind, content.to_vec()))
            .collect();
        // The last one claims more bytes than there are.
        assert_eq!(found, [(1, vec![7, 0, 0, 0]), (2, vec![b'x', 0])]);
        assert_eq!(number(&found[0].1), Some(7));
        assert_eq!(text(&found[1].1), "x");
    }

    #[test]
    fn a_cut_message_is_none() {
        assert!(split_message(&[20, 0, 0, 0, 3, 0]).is_none());
        let mut long = [0_u8; 16];
        long[0] = 200;
        assert!(split_message(&long).is_none());
    }
}
