//! Packets we make ourselves: RST and ICMP unreachable (CAP-5, NAT-11).

use crate::packet::{Segment, control};

/// ICMP destination unreachable (RFC 792).
pub const UNREACHABLE: u8 = 3;
/// Protocol unreachable.
pub const CODE_PROTOCOL: u8 = 2;
/// Fragmentation needed, and not allowed (RFC 1191).
pub const CODE_TOO_LONG: u8 = 4;
/// Communication administratively prohibited (RFC 1812, 5.2.7.1; RFC 5508 REQ-8).
pub const CODE_PROHIBITED: u8 = 13;
/// Bytes of the offending packet's payload that an ICMP error carries (RFC 792).
pub const QUOTED: usize = 8;
/// Length of an ICMP error's own header.
pub const ICMP_HEADER: usize = 8;
/// TTL of packets we make.
pub const TTL: u8 = 64;

/// Sequence numbers and control bits of the RST that answers a segment without a connection
/// (RFC 9293, 3.10.7.1), or `None` for a RST.
#[inline(always)]
pub const fn reset(segment: &Segment) -> Option<(u32, u32, u8)> {
    if segment.has(control::RST) {
        return None;
    }
    if segment.has(control::ACK) {
        Some((segment.acknowledgment, 0, control::RST))
    } else {
        let ack = segment.sequence.wrapping_add(segment.length());
        Some((0, ack, control::RST | control::ACK))
    }
}

/// A token bucket that bounds how many packets we make (NAT-11), one a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it was last filled, ns.
    pub filled: u64,
    /// Replies that may be made now.
    pub tokens: u64,
}

impl Bucket {
    /// Replies a second and CPU.
    pub const RATE: u64 = 20_000;
    /// Replies that may be made at once.
    pub const BURST: u64 = 20_000;

    /// Takes a token; false if there is none.
    #[inline(always)]
    pub fn take(&mut self, now: u64) -> bool {
        const INTERVAL: u64 = 1_000_000_000 / Bucket::RATE;
        let earned = now.saturating_sub(self.filled) / INTERVAL;
        if self.filled == 0 || earned >= Self::BURST {
            self.tokens = Self::BURST;
            self.filled = now;
        } else if earned > 0 {
            let tokens = self.tokens + earned;
            self.tokens = if tokens > Self::BURST {
                Self::BURST
            } else {
                tokens
            };
            self.filled += earned * INTERVAL;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(control: u8) -> Segment {
        Segment {
            sequence: 10,
            acknowledgment: 99,
            control,
            header: 20,
            window: 0,
            payload: 5,
        }
    }

    #[test]
    fn rfc_9293_closed_state() {
        assert_eq!(
            reset(&segment(control::SYN)),
            Some((0, 16, control::RST | control::ACK))
        );
        assert_eq!(
            reset(&segment(control::SYN | control::ACK)),
            Some((99, 0, control::RST))
        );
        assert_eq!(
            reset(&segment(control::FIN)),
            Some((0, 16, control::RST | control::ACK))
        );
        assert_eq!(reset(&segment(control::RST)), None);
        assert_eq!(reset(&segment(control::RST | control::ACK)), None);
    }

    #[test]
    fn nat_11_replies_are_bounded() {
        let mut bucket = Bucket::default();
        let burst = (0..100_000).filter(|_| bucket.take(1_000)).count() as u64;
        assert_eq!(burst, Bucket::BURST);
        let second: u64 = (1..=1_000u64)
            .map(|ms| {
                (0..1_000)
                    .filter(|_| bucket.take(1_000 + ms * 1_000_000))
                    .count() as u64
            })
            .sum();
        assert_eq!(second, Bucket::RATE);
    }
}
