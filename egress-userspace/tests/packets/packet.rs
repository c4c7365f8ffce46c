//! Packets: written with correct checksums unless a field is overridden, and read back from bytes.
//!
//! An expected packet is a struct like the packet that was sent; that its bytes equal what came out
//! says that every field and every checksum is right.

use egress_common::family::{Address, V4, V6};

/// An address and a port.
pub(crate) type Endpoint<A = V4> = (A, u16);

/// How packets of a family look.
pub(crate) trait Net: Address + std::fmt::Debug + std::hash::Hash {
    /// Protocol number of its ICMP.
    const ICMP: u8;

    /// The network header in front of `length` bytes of `protocol`.
    fn header(packet: &Packet<Self>, length: usize) -> Vec<u8>;

    /// Reads a network header into the packet: how long it is, and how long the whole is.
    fn read(packet: &mut Packet<Self>, ip: &[u8]) -> (usize, usize);

    /// What a transport checksum covers besides the packet.
    fn pseudo_header(packet: &Packet<Self>, length: usize) -> Vec<u8>;

    /// Whether the packet has no transport header of its own.
    fn is_fragment(packet: &Packet<Self>) -> bool;
}

/// TCP control bits.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// Link-layer addresses of the packets tests send.
pub(crate) const FROM: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
pub(crate) const TO: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet<A = V4> {
    pub(crate) to: [u8; 6],
    pub(crate) from: [u8; 6],
    /// VLAN ids, outermost first.
    pub(crate) vlans: Vec<u16>,
    /// IPv4's type of service, IPv6's traffic class.
    pub(crate) tos: u8,
    /// IPv6's flow label, 20 bits.
    pub(crate) label: u32,
    pub(crate) id: u16,
    /// Flags and offset, as they stand in the header.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) source: A,
    pub(crate) destination: A,
    /// IPv4 options, a multiple of four bytes; IPv6 extension headers, which begin with their own number.
    pub(crate) options: Vec<u8>,
    pub(crate) body: Body,
    /// Bytes behind the IP packet.
    pub(crate) padding: usize,
    /// Version and header length, overridden.
    pub(crate) first: Option<u8>,
    /// Total length, or payload length, overridden.
    pub(crate) length: Option<u16>,
    /// Transport checksum, overridden.
    pub(crate) checksum: Option<u16>,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Tcp(Tcp),
    Udp(Udp),
    /// Type, code, the next four bytes, and the rest.
    Icmp(u8, u8, [u8; 4], Vec<u8>),
    Other(Vec<u8>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) control: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// The four bits behind the data offset.
    pub(crate) reserved: u8,
    /// Data offset in words, overridden.
    pub(crate) words: Option<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Udp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) payload: Vec<u8>,
    /// Length field, overridden.
    pub(crate) length: Option<u16>,
}

/// RFC 1071.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

impl<A: Net> Packet<A> {
    fn ip(source: A, destination: A, protocol: u8, body: Body) -> Self {
        Self {
            to: TO,
            from: FROM,
            vlans: Vec::new(),
            tos: 0,
            label: 0,
            id: 0x1234,
            fragment: 0x4000,
            ttl: 61,
            protocol,
            source,
            destination,
            options: Vec::new(),
            body,
            padding: 0,
            first: None,
            length: None,
            checksum: None,
        }
    }

    pub(crate) fn tcp(from: Endpoint<A>, to: Endpoint<A>, control: u8) -> Self {
        let body = Body::Tcp(Tcp {
            source: from.1,
            destination: to.1,
            control,
            window: 64_240,
            ..Tcp::default()
        });
        Self::ip(from.0, to.0, 6, body)
    }

    pub(crate) fn udp(from: Endpoint<A>, to: Endpoint<A>, payload: &[u8]) -> Self {
        let body = Body::Udp(Udp {
            source: from.1,
            destination: to.1,
            payload: payload.to_vec(),
            length: None,
        });
        Self::ip(from.0, to.0, 17, body)
    }

    pub(crate) fn icmp(from: A, to: A, kind: u8, code: u8, payload: &[u8]) -> Self {
        Self::ip(
            from,
            to,
            A::ICMP,
            Body::Icmp(kind, code, [0; 4], payload.to_vec()),
        )
    }

    pub(crate) fn other(from: A, to: A, protocol: u8, payload: &[u8]) -> Self {
        Self::ip(from, to, protocol, Body::Other(payload.to_vec()))
    }

    /// The segment, to change or look at.
    #[track_caller]
    pub(crate) fn segment(&mut self) -> &mut Tcp {
        match &mut self.body {
            Body::Tcp(tcp) => tcp,
            body => panic!("not TCP: {body:?}"),
        }
    }

    /// Sequence and acknowledgment number of a segment.
    pub(crate) fn numbers(mut self, sequence: u32, acknowledgment: u32) -> Self {
        let segment = self.segment();
        segment.sequence = sequence;
        segment.acknowledgment = acknowledgment;
        self
    }

    /// Payload of a segment or datagram.
    pub(crate) fn payload(mut self, bytes: &[u8]) -> Self {
        match &mut self.body {
            Body::Tcp(tcp) => tcp.payload = bytes.to_vec(),
            Body::Udp(udp) => udp.payload = bytes.to_vec(),
            Body::Icmp(.., payload) | Body::Other(payload) => *payload = bytes.to_vec(),
        }
        self
    }

    /// Bytes of payload.
    pub(crate) fn payload_length(&self) -> usize {
        match &self.body {
            Body::Tcp(tcp) => tcp.payload.len(),
            Body::Udp(udp) => udp.payload.len(),
            Body::Icmp(.., payload) | Body::Other(payload) => payload.len(),
        }
    }

    /// Options of a segment.
    pub(crate) fn with_options(mut self, options: &[u8]) -> Self {
        self.segment().options = options.to_vec();
        self
    }

    /// The same packet from another source.
    pub(crate) fn sent_from(mut self, from: Endpoint<A>) -> Self {
        self.source = from.0;
        match &mut self.body {
            Body::Tcp(tcp) => tcp.source = from.1,
            Body::Udp(udp) => udp.source = from.1,
            _ => {}
        }
        self
    }

    /// The same packet to another destination.
    pub(crate) fn sent_to(mut self, to: Endpoint<A>) -> Self {
        self.destination = to.0;
        match &mut self.body {
            Body::Tcp(tcp) => tcp.destination = to.1,
            Body::Udp(udp) => udp.destination = to.1,
            _ => {}
        }
        self
    }

    /// Source address and port; port 0 where there is none.
    pub(crate) fn sender(&self) -> Endpoint<A> {
        let port = match &self.body {
            Body::Tcp(tcp) => tcp.source,
            Body::Udp(udp) => udp.source,
            _ => 0,
        };
        (self.source, port)
    }

    /// Destination address and port; port 0 where there is none.
    pub(crate) fn receiver(&self) -> Endpoint<A> {
        let port = match &self.body {
            Body::Tcp(tcp) => tcp.destination,
            Body::Udp(udp) => udp.destination,
            _ => 0,
        };
        (self.destination, port)
    }

    /// The transport header and what follows, its checksum filled in.
    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let at = match &self.body {
            Body::Tcp(tcp) => {
                assert_eq!(tcp.options.len() % 4, 0, "options come in whole words");
                let words = tcp.words.unwrap_or((5 + tcp.options.len() / 4) as u8);
                bytes.extend(tcp.source.to_be_bytes());
                bytes.extend(tcp.destination.to_be_bytes());
                bytes.extend(tcp.sequence.to_be_bytes());
                bytes.extend(tcp.acknowledgment.to_be_bytes());
                bytes.extend([words << 4 | tcp.reserved, tcp.control]);
                bytes.extend(tcp.window.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(tcp.urgent.to_be_bytes());
                bytes.extend(&tcp.options);
                bytes.extend(&tcp.payload);
                Some(16)
            }
            Body::Udp(udp) => {
                let length = udp.length.unwrap_or((8 + udp.payload.len()) as u16);
                bytes.extend(udp.source.to_be_bytes());
                bytes.extend(udp.destination.to_be_bytes());
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(&udp.payload);
                Some(6)
            }
            Body::Icmp(kind, code, rest, payload) => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(payload);
                Some(2)
            }
            Body::Other(payload) => {
                bytes.extend(payload);
                None
            }
        };
        if let Some(at) = at {
            let right = match &self.body {
                Body::Icmp(..) if A::LEN == 4 => !sum(&[&bytes]),
                _ => !sum(&[&A::pseudo_header(self, bytes.len()), &bytes]),
            };
            let right = match (&self.body, right) {
                (Body::Udp(_), 0) => 0xffff,
                (_, right) => right,
            };
            bytes[at..at + 2].copy_from_slice(&self.checksum.unwrap_or(right).to_be_bytes());
        }
        bytes
    }

    /// The IP packet.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut bytes = A::header(self, transport.len());
        bytes.extend(transport);
        bytes
    }

    /// The frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.to);
        bytes.extend(self.from);
        for (nth, vlan) in self.vlans.iter().enumerate() {
            let outer = nth + 1 < self.vlans.len();
            bytes.extend(if outer { [0x88, 0xa8] } else { [0x81, 0] });
            bytes.extend(vlan.to_be_bytes());
        }
        bytes.extend(A::ETHERTYPE.to_be_bytes());
        bytes.extend(self.ip_bytes());
        bytes.extend(vec![0; self.padding]);
        bytes
    }

    /// Reads a frame in which every length and every checksum is right.
    ///
    /// # Panics
    /// When one is not.
    #[track_caller]
    pub(crate) fn read(frame: &[u8]) -> Self {
        let mut packet = Self::ip(A::default(), A::default(), 0, Body::Other(Vec::new()));
        packet.to.copy_from_slice(&frame[..6]);
        packet.from.copy_from_slice(&frame[6..12]);
        let mut at = 12;
        while [[0x81, 0x00], [0x88, 0xa8]].contains(&[frame[at], frame[at + 1]]) {
            packet.vlans.push(u16_at(frame, at + 2));
            at += 4;
        }
        assert_eq!(
            u16_at(frame, at),
            A::ETHERTYPE,
            "another family: {frame:02x?}"
        );
        let ip = &frame[ETHERNET - 12 + at..];
        let (header, length) = A::read(&mut packet, ip);
        assert!(header <= length && length <= ip.len(), "{frame:02x?}");
        packet.padding = ip.len() - length;
        let body = &ip[header..length];
        if A::is_fragment(&packet) {
            packet.body = Body::Other(body.to_vec());
            return packet;
        }
        let pseudo = A::pseudo_header(&packet, body.len());
        match packet.protocol {
            6 => {
                let words = body[12] >> 4;
                let data = usize::from(words) * 4;
                assert!((20..=body.len()).contains(&data), "{frame:02x?}");
                assert_eq!(
                    sum(&[&pseudo, body]),
                    0xffff,
                    "TCP checksum of {frame:02x?}"
                );
                packet.body = Body::Tcp(Tcp {
                    source: u16_at(body, 0),
                    destination: u16_at(body, 2),
                    sequence: u32_at(body, 4),
                    acknowledgment: u32_at(body, 8),
                    control: body[13],
                    window: u16_at(body, 14),
                    urgent: u16_at(body, 18),
                    options: body[20..data].to_vec(),
                    payload: body[data..].to_vec(),
                    reserved: body[12] & 15,
                    words: None,
                });
            }
            17 => {
                assert_eq!(usize::from(u16_at(body, 4)), body.len(), "{frame:02x?}");
                if u16_at(body, 6) == 0 {
                    packet.checksum = Some(0);
                } else {
                    assert_eq!(
                        sum(&[&pseudo, body]),
                        0xffff,
                        "UDP checksum of {frame:02x?}"
                    );
                }
                packet.body = Body::Udp(Udp {
                    source: u16_at(body, 0),
                    destination: u16_at(body, 2),
                    payload: body[8..].to_vec(),
                    length: None,
                });
            }
            protocol if protocol == A::ICMP => {
                let covered: &[u8] = if A::LEN == 4 { &[] } else { &pseudo };
                assert_eq!(
                    sum(&[covered, body]),
                    0xffff,
                    "ICMP checksum of {frame:02x?}"
                );
                packet.body = Body::Icmp(
                    body[0],
                    body[1],
                    [body[4], body[5], body[6], body[7]],
                    body[8..].to_vec(),
                );
            }
            _ => packet.body = Body::Other(body.to_vec()),
        }
        packet
    }
}

impl Net for V4 {
    const ICMP: u8 = 1;

    fn header(packet: &Packet<Self>, length: usize) -> Vec<u8> {
        assert_eq!(packet.options.len() % 4, 0, "options come in whole words");
        let header = IPV4 + packet.options.len();
        let length = packet.length.unwrap_or((header + length) as u16);
        let mut bytes = vec![
            packet.first.unwrap_or(0x40 | (header / 4) as u8),
            packet.tos,
        ];
        bytes.extend(length.to_be_bytes());
        bytes.extend(packet.id.to_be_bytes());
        bytes.extend(packet.fragment.to_be_bytes());
        bytes.extend([packet.ttl, packet.protocol, 0, 0]);
        bytes.extend(packet.source);
        bytes.extend(packet.destination);
        bytes.extend(&packet.options);
        let check = !sum(&[&bytes]);
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    fn read(packet: &mut Packet<Self>, ip: &[u8]) -> (usize, usize) {
        assert_eq!(ip[0] >> 4, 4, "not version 4: {ip:02x?}");
        let header = usize::from(ip[0] & 15) * 4;
        assert!(header >= IPV4, "{ip:02x?}");
        assert_eq!(sum(&[&ip[..header]]), 0xffff, "IPv4 checksum of {ip:02x?}");
        packet.tos = ip[1];
        packet.id = u16_at(ip, 4);
        packet.fragment = u16_at(ip, 6);
        packet.ttl = ip[8];
        packet.protocol = ip[9];
        packet.source.copy_from_slice(&ip[12..16]);
        packet.destination.copy_from_slice(&ip[16..20]);
        packet.options = ip[IPV4..header].to_vec();
        (header, usize::from(u16_at(ip, 2)))
    }

    fn pseudo_header(packet: &Packet<Self>, length: usize) -> Vec<u8> {
        let [l0, l1] = (length as u16).to_be_bytes();
        let rest = [0, packet.protocol, l0, l1];
        [&packet.source[..], &packet.destination, &rest].concat()
    }

    fn is_fragment(packet: &Packet<Self>) -> bool {
        packet.fragment & 0x3fff != 0
    }
}

/// `id` and `fragment` have no place here: they stay as [`Packet::ip`] makes them.
impl Net for V6 {
    const ICMP: u8 = 58;

    fn header(packet: &Packet<Self>, length: usize) -> Vec<u8> {
        // Extension headers begin with their own number, and that of what follows is filled in.
        let (first, extensions) = match packet.options.split_first() {
            Some((first, rest)) => (*first, rest),
            None => (packet.protocol, &[][..]),
        };
        let length = packet.length.unwrap_or((extensions.len() + length) as u16);
        let [_, high, middle, low] = packet.label.to_be_bytes();
        let mut bytes = vec![
            packet.first.unwrap_or(0x60 | packet.tos >> 4),
            packet.tos << 4 | high,
            middle,
            low,
        ];
        bytes.extend(length.to_be_bytes());
        bytes.extend([first, packet.ttl]);
        bytes.extend(packet.source);
        bytes.extend(packet.destination);
        bytes.extend(extensions);
        bytes
    }

    /// Passes hop-by-hop and destination options and routing headers.
    fn read(packet: &mut Packet<Self>, ip: &[u8]) -> (usize, usize) {
        assert_eq!(ip[0] >> 4, 6, "not version 6: {ip:02x?}");
        packet.tos = ip[0] << 4 | ip[1] >> 4;
        packet.label = u32_at(ip, 0) & 0xf_ffff;
        packet.ttl = ip[7];
        packet.source.copy_from_slice(&ip[8..24]);
        packet.destination.copy_from_slice(&ip[24..40]);
        let mut protocol = ip[6];
        let mut header = IPV6;
        while [0, 43, 60].contains(&protocol) {
            protocol = ip[header];
            header += (usize::from(ip[header + 1]) + 1) * 8;
        }
        if header != IPV6 {
            packet.options = [&ip[6..7], &ip[IPV6..header]].concat();
        }
        packet.protocol = protocol;
        (header, IPV6 + usize::from(u16_at(ip, 4)))
    }

    fn pseudo_header(packet: &Packet<Self>, length: usize) -> Vec<u8> {
        let length = (length as u32).to_be_bytes();
        let rest = [0, 0, 0, packet.protocol];
        [&packet.source[..], &packet.destination, &length, &rest].concat()
    }

    fn is_fragment(_: &Packet<Self>) -> bool {
        false
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[test]
fn what_is_written_is_read_back() {
    let a: Endpoint = ([10, 1, 0, 2], 40_000);
    let b: Endpoint = ([192, 0, 2, 7], 443);
    let mut packets = vec![
        Packet::tcp(a, b, SYN | PSH)
            .with_options(&[2, 4, 5, 180])
            .payload(b"odd"),
        Packet::udp(a, b, b"hello"),
        Packet::icmp(a.0, b.0, 8, 0, b"ping"),
        Packet::other(a.0, b.0, 47, b"gre"),
    ];
    packets.extend(packets.clone().into_iter().map(|packet| Packet {
        vlans: vec![5, 6],
        options: vec![1; 8],
        padding: 3,
        ..packet
    }));
    for packet in packets {
        assert_eq!(Packet::read(&packet.bytes()), packet);
    }
}
