//! A TCP segment's header, and its options.

use super::{Malformed, TCP_MIN};
use crate::bytes::Bytes;

/// TCP control bits (RFC 9293, section 3.1).
pub mod control {
    /// No more data from the sender.
    pub const FIN: u8 = 1 << 0;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 1 << 4;
}

/// A TCP segment as the state machine sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number; meaningless without ACK.
    pub acknowledgment: u32,
    /// See [`control`].
    pub control: u8,
    /// Header length in bytes.
    pub header: u8,
    /// Window as it stands in the header, not scaled.
    pub window: u16,
    /// Payload bytes.
    pub payload: u32,
}

impl Segment {
    /// Whether all of `bits` are set.
    #[inline(always)]
    pub const fn has(&self, bits: u8) -> bool {
        self.control & bits == bits
    }

    /// SEG.LEN: payload plus one for SYN and one for FIN (RFC 9293, section 3.4).
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        self.payload
            .wrapping_add(self.has(control::SYN) as u32)
            .wrapping_add(self.has(control::FIN) as u32)
    }

    /// Opens a connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.control & (control::SYN | control::ACK | control::RST) == control::SYN
    }
}

/// Reads a TCP header at `offset`, followed by `length` bytes in all.
///
/// # Errors
/// Cut short, or a data offset that contradicts the length.
#[inline(always)]
pub fn tcp(
    packet: &(impl Bytes + ?Sized),
    offset: usize,
    length: u32,
) -> Result<Segment, Malformed> {
    let header = packet.read::<TCP_MIN>(offset).ok_or(Malformed)?;
    let [
        _,
        _,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        a0,
        a1,
        a2,
        a3,
        data,
        bits,
        w0,
        w1,
        ..,
    ] = header;
    let header_len = (data >> 4) * 4;
    if (header_len as usize) < TCP_MIN || header_len as u32 > length {
        return Err(Malformed);
    }
    Ok(Segment {
        sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        acknowledgment: u32::from_be_bytes([a0, a1, a2, a3]),
        control: bits,
        header: header_len,
        window: u16::from_be_bytes([w0, w1]),
        payload: length - header_len as u32,
    })
}

/// TCP options the data plane looks at (RFC 7323), of a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Window scale shift, at most 14.
    pub scale: Option<u8>,
    /// Timestamp value.
    pub timestamp: Option<u32>,
}

/// Longest list of TCP options (RFC 9293, section 3.1).
pub const OPTIONS_MAX: usize = 40;

/// A walk along a list of TCP options, one option a step: bounded wherever it runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct OptionWalk {
    /// Where the next option begins, from the start of the list.
    pub at: u32,
    /// Length of the list, at most [`OPTIONS_MAX`].
    pub end: u32,
    /// Found so far.
    pub found: Options,
    /// Where the segment size (MSS) stands, from the start of the list; 0 if none was met.
    pub segment_size_at: u32,
}

impl OptionWalk {
    /// A walk along the options of a TCP header of `header` bytes.
    #[inline(always)]
    pub const fn new(header: u8) -> Self {
        Self {
            at: 0,
            end: (header as u32).saturating_sub(TCP_MIN as u32) & 0x3f,
            found: Options {
                scale: None,
                timestamp: None,
            },
            segment_size_at: 0,
        }
    }

    /// Reads the option at `at`; false at the end of the list.
    ///
    /// `list` are the options' bytes. Options that lie about their length end the list; nothing is
    /// an error.
    #[inline(always)]
    pub fn step(&mut self, list: &(impl Bytes + ?Sized)) -> bool {
        if self.at >= self.end || self.at >= OPTIONS_MAX as u32 {
            return false;
        }
        let at = self.at as usize;
        let Some(kind) = list.u8(at) else {
            return false;
        };
        if kind == 0 {
            return false;
        }
        if kind == 1 {
            self.at += 1;
            return true;
        }
        let Some(length) = list.u8(at + 1) else {
            return false;
        };
        let length = length as u32;
        if length < 2 || self.at + length > self.end {
            return false;
        }
        if kind == 3 && length == 3 {
            self.found.scale = list
                .u8(at + 2)
                .map(|shift| if shift > 14 { 14 } else { shift });
        } else if kind == 8 && length == 10 {
            self.found.timestamp = list.u32(at + 2);
        } else if kind == 2 && length == 4 {
            self.segment_size_at = self.at + 2;
        }
        self.at += length;
        true
    }
}

/// The timestamp value of a segment whose options begin NOP, NOP, timestamp (RFC 7323, appendix A):
/// the only layout looked for outside of SYNs.
#[inline(always)]
pub fn usual_timestamp(packet: &(impl Bytes + ?Sized), offset: usize, header: u8) -> Option<u32> {
    if header < 32 || packet.u32(offset + TCP_MIN)? != 0x0101_080a {
        return None;
    }
    packet.u32(offset + TCP_MIN + 4)
}
