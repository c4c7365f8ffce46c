//! Packets written byte by byte, checksums right unless a draw says otherwise.

use super::read::{self, Address, End, fold};
use crate::packet::{FROM, TO};
use crate::seed::Random;

/// Writes one frame.
pub(crate) struct Builder<'a> {
    bytes: &'a mut Vec<u8>,
    pub(crate) random: &'a mut Random,
}

fn six(address: &Address) -> bool {
    address[..12] != [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

impl<'a> Builder<'a> {
    pub(crate) fn new(bytes: &'a mut Vec<u8>, random: &'a mut Random) -> Self {
        Self { bytes, random }
    }

    fn ethernet(&mut self, kind: [u8; 2]) {
        self.bytes.extend(TO);
        self.bytes.extend(FROM);
        let tags = match self.random.below(24) {
            0 => 1,
            1 => 2,
            2 if self.random.once_in(4) => 3,
            _ => 0,
        };
        for nth in 0..tags {
            self.bytes.extend(if nth + 1 < tags {
                [0x88, 0xa8]
            } else {
                [0x81, 0]
            });
            let tag = self.random.number() as u16;
            self.bytes.extend(tag.to_be_bytes());
        }
        self.bytes.extend(kind);
    }

    /// Some payload.
    fn payload(&mut self) {
        let length = match self.random.below(64) {
            0 => self.random.below(1_400),
            1..8 => self.random.below(64),
            8..32 => self.random.below(9),
            _ => 8,
        };
        let mut left = length;
        while left >= 8 {
            self.bytes.extend(self.random.number().to_ne_bytes());
            left -= 8;
        }
        self.bytes.resize(self.bytes.len() + left as usize, 0x61);
    }

    /// An IP packet around what `body` writes; `fragment` as in an IPv4 header, with an id.
    fn ip(
        &mut self,
        from: &Address,
        to: &Address,
        protocol: u8,
        fragment: Option<(u16, u16)>,
        body: impl FnOnce(&mut Self) -> Option<usize>,
    ) {
        self.ethernet(if six(from) { [0x86, 0xdd] } else { [0x08, 0] });
        self.packet(from, to, protocol, fragment, body);
        if self.random.once_in(12) {
            let padding = self.random.below(32) as usize;
            self.bytes.resize(self.bytes.len() + padding, 0);
        }
    }

    /// An IP packet without its frame. `body` says where its checksum stands.
    fn packet(
        &mut self,
        from: &Address,
        to: &Address,
        protocol: u8,
        fragment: Option<(u16, u16)>,
        body: impl FnOnce(&mut Self) -> Option<usize>,
    ) {
        let at = self.bytes.len();
        if six(from) {
            self.ip6_header(from, to, protocol, fragment);
        } else {
            self.ip4_header(from, to, protocol, fragment);
        }
        let transport = self.bytes.len();
        let checksum = body(self);
        let length = self.bytes.len() - at;
        if six(from) {
            self.bytes[at + 4..at + 6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        } else {
            self.bytes[at + 2..at + 4].copy_from_slice(&(length as u16).to_be_bytes());
            let right = !fold(sum(&self.bytes[at..transport]));
            self.bytes[at + 10..at + 12].copy_from_slice(&right.to_be_bytes());
        }
        let Some(checksum) = checksum.map(|offset| transport + offset) else {
            return;
        };
        let body = &self.bytes[transport..];
        let mut total = sum(body);
        if protocol != 1 {
            let skip = if six(from) { 0 } else { 12 };
            total +=
                sum(&from[skip..]) + sum(&to[skip..]) + u64::from(protocol) + body.len() as u64;
        }
        let mut right = !fold(total);
        if protocol == 17 {
            right = if self.random.once_in(8) {
                0
            } else if right == 0 {
                0xffff
            } else {
                right
            };
        }
        if self.random.once_in(24) {
            right = self.random.number() as u16;
        }
        self.bytes[checksum..checksum + 2].copy_from_slice(&right.to_be_bytes());
    }

    fn ip4_header(
        &mut self,
        from: &Address,
        to: &Address,
        protocol: u8,
        fragment: Option<(u16, u16)>,
    ) {
        let options = if self.random.once_in(16) {
            self.random.below(11) as usize
        } else {
            0
        };
        let (field, id) = fragment.unwrap_or((0x4000, self.random.number() as u16));
        let hops = if self.random.once_in(16) {
            self.random.of(&[0, 1, 2, 255])
        } else {
            61
        };
        self.bytes.extend([0x45 + options as u8, 0, 0, 0]);
        self.bytes.extend(id.to_be_bytes());
        self.bytes.extend(field.to_be_bytes());
        self.bytes.extend([hops, protocol, 0, 0]);
        self.bytes.extend(&from[12..]);
        self.bytes.extend(&to[12..]);
        for _ in 0..options {
            let word = if self.random.once_in(2) {
                0x0101_0101
            } else {
                self.random.number() as u32
            };
            self.bytes.extend(word.to_be_bytes());
        }
    }

    fn ip6_header(
        &mut self,
        from: &Address,
        to: &Address,
        protocol: u8,
        fragment: Option<(u16, u16)>,
    ) {
        let mut chain: Vec<u8> = Vec::new();
        if self.random.once_in(8) {
            for _ in 0..self.random.below(10) {
                chain.push(self.random.of(&[0, 43, 60, 60, 60, 135]));
            }
        }
        if fragment.is_some() {
            chain.push(44);
        }
        self.bytes.extend([
            0x60,
            0,
            0,
            0,
            0,
            0,
            chain.first().copied().unwrap_or(protocol),
            61,
        ]);
        self.bytes.extend(from);
        self.bytes.extend(to);
        for (nth, kind) in chain.iter().enumerate() {
            let next = chain.get(nth + 1).copied().unwrap_or(protocol);
            if *kind == 44 {
                let (field, id) = fragment.unwrap_or_default();
                let more = u16::from(field & 0x2000 != 0);
                self.bytes.extend([next, 0]);
                self.bytes.extend((field << 3 | more).to_be_bytes());
                self.bytes.extend(u32::from(id).to_be_bytes());
            } else {
                let length = self.random.below(3) as usize;
                self.bytes.extend([next, length as u8, 1, 4, 0, 0, 0, 0]);
                self.bytes.resize(self.bytes.len() + 8 * length, 0);
            }
        }
    }

    /// A segment; its options are drawn.
    pub(crate) fn tcp(
        &mut self,
        from: End,
        to: End,
        control: u8,
        sequence: u32,
        acknowledgment: u32,
    ) {
        self.ip(&from.0, &to.0, 6, None, |this| {
            this.tcp_body(from.1, to.1, control, sequence, acknowledgment);
            Some(16)
        });
    }

    fn tcp_body(&mut self, from: u16, to: u16, control: u8, sequence: u32, acknowledgment: u32) {
        let at = self.bytes.len();
        self.bytes.extend(from.to_be_bytes());
        self.bytes.extend(to.to_be_bytes());
        self.bytes.extend(sequence.to_be_bytes());
        self.bytes.extend(acknowledgment.to_be_bytes());
        let window = self.random.number() as u16 | 0x400;
        self.bytes.extend([0x50, control]);
        self.bytes.extend(window.to_be_bytes());
        self.bytes.extend([0, 0, 0, 0]);
        match self.random.below(8) {
            0 => self.bytes.extend([2, 4, 5, 180, 1, 3, 3, 7]),
            1 => {
                self.bytes.extend([1, 1, 8, 10]);
                self.bytes.extend(self.random.number().to_ne_bytes());
            }
            2 => {
                for _ in 0..self.random.below(11) {
                    let mut word = (self.random.number() as u32).to_be_bytes();
                    word[0] = self.random.of(&[0, 1, 2, 3, 8, word[0]]);
                    word[1] = self.random.of(&[0, 1, 2, 3, 10, word[1]]);
                    self.bytes.extend(word);
                }
            }
            _ => {}
        }
        let words = (self.bytes.len() - at) / 4;
        self.bytes[at + 12] = (words as u8) << 4;
        self.payload();
    }

    /// A datagram.
    pub(crate) fn udp(&mut self, from: End, to: End) {
        self.ip(&from.0, &to.0, 17, None, |this| {
            this.udp_body(from.1, to.1);
            Some(6)
        });
    }

    fn udp_body(&mut self, from: u16, to: u16) {
        let at = self.bytes.len();
        self.bytes.extend(from.to_be_bytes());
        self.bytes.extend(to.to_be_bytes());
        self.bytes.extend([0; 4]);
        self.payload();
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
    }

    /// A ping, or another ICMP message that is no error.
    pub(crate) fn query(&mut self, from: Address, to: Address) {
        let (protocol, kind) = if six(&from) {
            (58, self.random.of(&[128, 129, 133, 135, 136]))
        } else {
            (1, self.random.of(&[0, 8, 8, 13, 14, 17, 42]))
        };
        self.ip(&from, &to, protocol, None, |this| {
            this.bytes.extend([kind, 0, 0, 0]);
            this.payload();
            Some(2)
        });
    }

    /// An ICMP error about a packet of `protocol` between two ends, cut somewhere.
    pub(crate) fn error(
        &mut self,
        from: Address,
        to: Address,
        protocol: u8,
        source: End,
        destination: End,
    ) {
        if six(&from) != six(&source.0)
            || six(&from) != six(&to)
            || six(&from) != six(&destination.0)
        {
            return self.junk();
        }
        let (icmp, kind) = if six(&from) {
            (58, self.random.of(&[1, 2, 2, 3, 4]))
        } else {
            (1, self.random.of(&[3, 3, 3, 4, 5, 11, 12]))
        };
        let code = self.random.of(&[0, 1, 3, 4, 13]);
        self.ip(&from, &to, icmp, None, |this| {
            let mtu = this.random.of(&[0u32, 68, 576, 1_280, 1_400, 65_535]);
            this.bytes.extend([kind, code, 0, 0]);
            this.bytes.extend(mtu.to_be_bytes());
            let quote = this.bytes.len();
            this.packet(&source.0, &destination.0, protocol, None, |this| {
                if protocol == 6 {
                    let number = this.random.number() as u32;
                    this.tcp_body(source.1, destination.1, 0x10, number, number);
                    Some(16)
                } else {
                    this.udp_body(source.1, destination.1);
                    Some(6)
                }
            });
            if this.random.once_in(2) {
                let cut = quote + this.random.of(&[28, 28, 28, 20, 24, 36, 48]);
                this.bytes.truncate(cut.max(quote));
            }
            Some(2)
        });
    }

    /// A first, middle, last or lonely fragment of a datagram, a segment or a ping.
    pub(crate) fn fragment(&mut self, protocol: u8, from: End, to: End) {
        // Few, so that they meet: out of order, twice, overlapping.
        let id = self.random.of(&[64, 2]);
        let id = self.random.below(id) as u16;
        let offset = self.random.of(&[0, 0, 0, 1, 2, 4, 185, 8_189]);
        let more = if self.random.once_in(3) { 0 } else { 0x2000 };
        self.ip(
            &from.0,
            &to.0,
            protocol,
            Some((offset | more, id)),
            |this| {
                if offset != 0 {
                    this.payload();
                    return None;
                }
                match protocol {
                    6 => {
                        let number = this.random.number() as u32;
                        let control = this.random.of(&[2, 16, 24]);
                        this.tcp_body(from.1, to.1, control, number, number);
                        Some(16)
                    }
                    17 => {
                        this.udp_body(from.1, to.1);
                        Some(6)
                    }
                    _ => {
                        this.bytes.extend([8, 0, 0, 0, 0, 1, 0, 1]);
                        this.payload();
                        Some(2)
                    }
                }
            },
        );
    }

    /// A packet of a protocol without ports.
    pub(crate) fn other(&mut self, from: Address, to: Address) {
        let any = self.random.number() as u8;
        let protocol = self.random.of(&[2, 4, 41, 47, 50, 132, 136, any]);
        self.ip(&from, &to, protocol, None, |this| {
            this.payload();
            None
        });
    }

    /// Who has an egress IP?
    pub(crate) fn arp(&mut self) {
        let operation = self.random.of(&[1, 1, 1, 2, 3]);
        let target = self
            .random
            .of(&[[198, 51, 100, 1], [198, 51, 100, 2], [198, 51, 100, 3]]);
        let asker = self
            .random
            .of(&[[203, 0, 113, 1], [0; 4], [198, 51, 100, 1]]);
        self.ethernet([0x08, 0x06]);
        self.bytes.extend([0, 1, 8, 0, 6, 4, 0, operation]);
        self.bytes.extend(FROM);
        self.bytes.extend(asker);
        self.bytes.extend([0; 6]);
        self.bytes.extend(target);
        self.bytes.resize(self.bytes.len() + 18, 0);
    }

    /// Who has an egress address of IPv6 (RFC 4861)?
    pub(crate) fn solicitation(&mut self, asker: Address, target: Address) {
        const UNROUTED: u8 = 255;

        let mut group = [0; 16];
        (group[0], group[1], group[11], group[12]) = (0xff, 2, 1, 0xff);
        group[13..].copy_from_slice(&target[13..]);
        let probe = self.random.once_in(4);
        let from = if probe { [0; 16] } else { asker };
        let to = if self.random.once_in(3) {
            target
        } else {
            group
        };
        let at = self.bytes.len();
        self.ip(&from, &to, 58, None, |this| {
            this.bytes.extend([135, 0, 0, 0, 0, 0, 0, 0]);
            this.bytes.extend(target);
            if !probe {
                this.bytes.extend([1, 1]);
                this.bytes.extend(FROM);
            }
            Some(2)
        });
        let (_, network) = read::network(&self.bytes[at..]);
        self.bytes[at + network + 7] = UNROUTED;
    }

    /// Anything at all.
    pub(crate) fn junk(&mut self) {
        let kind = self.random.of(&[
            [0x08, 0],
            [0x08, 0],
            [0x86, 0xdd],
            [0x88, 0xcc],
            [0x08, 0x06],
            [0, 0],
        ]);
        self.ethernet(kind);
        let words = self.random.below(12);
        for _ in 0..words {
            self.bytes.extend(self.random.number().to_ne_bytes());
        }
        if kind != [0, 0] && words > 0 {
            let at = self.bytes.len() - 8 * words as usize;
            self.bytes[at] = if kind == [0x08, 0] { 0x45 } else { 0x60 };
        }
    }
}
