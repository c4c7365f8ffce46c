//! What must hold for any bytes at all: the shared code reads them as a slow reader does, changes only
//! what it means to change, and neither panics nor overflows.
//!
//! The first byte of an input chooses the property, the rest is its data.

use egress_common::bytes::{Bytes as _, BytesMut as _};
use egress_common::checksum::{fold, replaced};
use egress_common::family::{V4, V6};
use egress_common::icmp::{self, Endpoint, Quote};
use egress_common::packet::{self, OPTIONS_MAX, OptionWalk, Options, Segment, control};
use egress_common::slot::{SlotWord, State, flag};
use egress_common::tcp::{self, Direction, Way};

/// A property of some bytes.
type Property = fn(&[u8]);

const PROPERTIES: [Property; 6] = [
    frame,
    options,
    errors::<V4>,
    errors::<V6>,
    connection,
    header,
];

/// Checks one input.
pub(crate) fn check(input: &[u8]) {
    let Some((choice, data)) = input.split_first() else {
        return;
    };
    PROPERTIES[usize::from(*choice) % PROPERTIES.len()](data);
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from(*bytes.get(at)?) << 8 | u16::from(*bytes.get(at + 1)?))
}

/// RFC 1071 over any bytes.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

/// A sum as a number below 65,535: the same for equal sums, however they were folded.
fn residue(sum: u64) -> u64 {
    sum % 0xffff
}

/// Link layer, network layer and transport are read as they stand, and only if they fit.
fn frame(data: &[u8]) {
    let network = packet::ethernet(data);
    let mut at = 12;
    let mut tags = 0;
    while matches!(be16(data, at), Some(0x8100 | 0x88a8)) {
        at += 4;
        tags += 1;
    }
    let right = be16(data, at).filter(|_| tags <= packet::VLANS);
    assert_eq!(network.map(|network| network.ethertype), right);
    let Some(network) = network else { return };
    assert_eq!(network.offset, at + 2);
    let total = data.len() as u32;
    let Ok(ip) = packet::ipv4(data, network.offset, total) else {
        return;
    };
    let (from, to) = (network.offset, network.offset + ip.length as usize);
    assert!(data[from] >> 4 == 4 && to <= data.len());
    assert_eq!(ip.transport(), from + usize::from(data[from] & 15) * 4);
    assert_eq!(ip.header(), ip.transport() - from);
    assert!(ip.header() >= 20 && ip.header() as u32 <= ip.length);
    assert_eq!(ip.payload(), ip.length - ip.header() as u32);
    assert_eq!(ip.source, data[from + 12..from + 16]);
    assert_eq!(ip.destination, data[from + 16..from + 20]);
    let body = &data[ip.transport()..];
    assert_eq!(packet::ports(data, ip.transport()).is_ok(), body.len() >= 4);
    if let Ok(segment) = packet::tcp(data, ip.transport(), ip.payload()) {
        assert_eq!(u32::from(segment.header), u32::from(body[12] >> 4) * 4);
        assert!(segment.header >= 20 && u32::from(segment.header) <= ip.payload());
        assert_eq!(segment.payload + u32::from(segment.header), ip.payload());
        assert_eq!(segment.control, body[13]);
        assert_eq!(data.u32(ip.transport() + 4), Some(segment.sequence));
    }
    if packet::udp(data, ip.transport(), ip.payload()).is_ok() {
        let claimed = u32::from(be16(body, 4).unwrap_or_default());
        assert!(ip.payload() >= 8 && claimed <= ip.payload());
        assert!(claimed == 0 || claimed >= 8);
    }
}

/// A list of TCP options is walked as RFC 9293 says, and to its end.
fn options(data: &[u8]) {
    let header = 20 + (data.len().min(OPTIONS_MAX) & !3) as u8;
    let list = &data[..usize::from(header) - 20];
    let mut walk = OptionWalk::new(header);
    let mut steps = 0;
    while walk.step(list) {
        steps += 1;
        assert!(steps <= OPTIONS_MAX, "a step goes on");
    }
    let mut right = Options::default();
    let mut rest = list;
    while let [kind, after @ ..] = rest {
        if *kind == 1 {
            rest = after;
            continue;
        }
        let Some(length) = after.first().map(|length| usize::from(*length)) else {
            break;
        };
        if *kind == 0 || length < 2 || length > rest.len() {
            break;
        }
        match (kind, &rest[2..length]) {
            (3, [shift]) => right.scale = Some((*shift).min(14)),
            (8, [a, b, c, d, ..]) if length == 10 => {
                right.timestamp = Some(u32::from_be_bytes([*a, *b, *c, *d]));
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    assert_eq!(walk.found, right, "{list:02x?}");
}

/// Translating an ICMP error keeps every checksum as right or wrong as it was, touches nothing but
/// headers, and undone gives back what was there.
fn errors<A: Family>(data: &[u8]) {
    let Some((ends, data)) = data.split_first_chunk::<20>() else {
        return;
    };
    let network = 14;
    let message = network + A::HEADER;
    let length = data.len().saturating_sub(message) as u32;
    let Some(error) = icmp::read::<A>(data, network as u16, message as u16, length) else {
        return;
    };
    let back = ends[0] & 1 == 0;
    let way = if back { Way::Back } else { Way::Out };
    let (address, port) = if back {
        (error.source, error.source_port)
    } else {
        (error.destination, error.destination_port)
    };
    let from = Endpoint { address, port };
    let to = Endpoint {
        address: A::of(ends),
        port: u16::from_be_bytes([ends[17], ends[18]]),
    };
    let outer_at = network + if back { A::DESTINATION } else { A::SOURCE };
    let sender = A::read(data, outer_at);
    // What goes back goes to the quoted packet's sender: the caller has compared.
    if back && sender != from.address {
        return;
    }
    let mut after = data.to_vec();
    if icmp::translate(&mut after[..], &error, way, sender, from, to).is_none() {
        return;
    }
    assert_eq!(A::read(&after, outer_at), to.address);
    let known = icmp::read::<A>(&after[..], network as u16, message as u16, length);
    let known = known.expect("an error stays one");
    let end = if back {
        (known.source, known.source_port)
    } else {
        (known.destination, known.destination_port)
    };
    assert_eq!(end, (to.address, to.port));
    // What is summed: message with pseudo header, outer header, quoted header.
    let whole = |bytes: &[u8]| {
        let pseudo = if A::CHECKSUM.is_none() {
            sum(&bytes[network + A::SOURCE..network + A::HEADER])
        } else {
            0
        };
        residue(pseudo + sum(&bytes[message..]))
    };
    assert_eq!(whole(data), whole(&after), "the message's checksum");
    if A::CHECKSUM.is_some() {
        for at in [network, message + icmp::HEADER] {
            let header = |bytes: &[u8]| residue(sum(&bytes[at..at + 20]));
            assert_eq!(
                header(data),
                header(&after),
                "the header's checksum at {at}"
            );
        }
    }
    let behind = usize::from(error.transport_at) + 18;
    assert_eq!(
        data.get(behind..),
        after.get(behind..),
        "what follows the headers"
    );
    let undone = icmp::translate(
        &mut after[..],
        &known,
        way,
        to.address,
        to,
        Endpoint {
            address: sender,
            ..from
        },
    );
    if undone.is_some() && sender == from.address {
        let differs = |at: &usize| data[*at] != after[*at];
        let pairs = (0..data.len()).filter(differs).count();
        // A checksum may come back as the other zero.
        assert!(pairs <= 8, "{data:02x?} became {after:02x?}");
    }
}

/// What the harness needs of an address family besides the code under test.
trait Family: Quote + std::fmt::Debug {
    const HEADER: usize;
    fn of(bytes: &[u8; 20]) -> Self;
    fn read(bytes: &[u8], at: usize) -> Self;
}

impl Family for V4 {
    const HEADER: usize = 20;
    fn of(bytes: &[u8; 20]) -> Self {
        [bytes[1], bytes[2], bytes[3], bytes[4]]
    }
    fn read(bytes: &[u8], at: usize) -> Self {
        bytes.read::<4>(at).unwrap_or_default()
    }
}

impl Family for V6 {
    const HEADER: usize = 40;
    fn of(bytes: &[u8; 20]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[1..17]);
        address
    }
    fn read(bytes: &[u8], at: usize) -> Self {
        bytes.read::<16>(at).unwrap_or_default()
    }
}

/// A connection under any segments: what is over stays over, what is disbelieved changes nothing, and
/// nobody but a RST that fits ends it before both sides have.
fn connection(data: &[u8]) {
    let (segments, _) = data.as_chunks::<14>();
    let Some((first, segments)) = segments.split_first() else {
        return;
    };
    let segment = |bytes: &[u8; 14]| Segment {
        sequence: u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]),
        acknowledgment: u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]),
        control: bytes[9] & 0x3f,
        header: 20,
        window: u16::from_be_bytes([bytes[10], bytes[11]]),
        payload: u32::from(u16::from_be_bytes([bytes[12], bytes[13]])),
    };
    let scale = |byte: u8| {
        (byte & 0x40 != 0)
            .then_some((byte >> 1) & 15)
            .map(|shift| shift.min(14))
    };
    let options = |bytes: &[u8; 14]| Options {
        scale: scale(bytes[0]),
        timestamp: None,
    };
    let syn = Segment {
        control: control::SYN,
        ..segment(first)
    };
    let (mut out, mut back, flags, shift) = tcp::opened(&syn, &options(first));
    let mut word = SlotWord {
        state: State::TcpHalfOpen,
        scale: shift,
        flags,
        generation: 7,
    };
    for bytes in segments {
        let segment = &segment(bytes);
        let way = if bytes[0] & 1 == 0 {
            Way::Out
        } else {
            Way::Back
        };
        let before = (word, out, back);
        let (sender, receiver) = match way {
            Way::Out => (&mut out, &mut back),
            Way::Back => (&mut back, &mut out),
        };
        let reset = segment.has(control::RST);
        if !reset && !tcp::observe(word, way, segment, sender, receiver) {
            assert_eq!(
                (word, out, back),
                before,
                "a disbelieved segment changed something"
            );
            continue;
        }
        let (ours, theirs): (&Direction, &Direction) = (sender, receiver);
        let next = tcp::step(word, way, segment, &options(bytes), ours, theirs);
        assert_eq!(next.generation, 7);
        // The origin's SYN says anew whether it scales; who acknowledges more than a FIN disproves it.
        let mut taken_back = flag::SCALE_IN;
        if segment.has(control::ACK) && tcp::after(segment.acknowledgment, theirs.end) {
            taken_back |= way.other().fin();
        }
        assert_eq!(
            word.flags & !next.flags & !taken_back,
            0,
            "flags stay: {segment:?} made {next:?} of {word:?}"
        );
        match (word.state, next.state) {
            (State::Closed, after) => assert_eq!(after, State::Closed),
            (State::TcpEstablished, State::TcpHalfOpen) => panic!("no way back"),
            (before, State::Closed) if before != State::Closed => assert!(
                reset && tcp::reset_fits(word, way, segment, ours, theirs)
                    || next.has(flag::FIN_IN | flag::FIN_OUT),
                "{segment:?} ended {word:?}"
            ),
            (_, after) => assert!(matches!(
                after,
                State::TcpHalfOpen | State::TcpEstablished | State::Closed
            )),
        }
        word = next;
    }
}

/// Replacing an address in an IPv4 header keeps its checksum as right or wrong as it was.
fn header(data: &[u8]) {
    let Some((header, to)) = data.split_first_chunk::<20>() else {
        return;
    };
    let Some(to) = to.first_chunk::<4>() else {
        return;
    };
    let mut after = *header;
    let [.., c0, c1, f0, f1, f2, f3, _, _, _, _] = *header;
    let check = replaced(u16::from_be_bytes([c0, c1]), [f0, f1, f2, f3], *to);
    let bytes: &mut [u8] = &mut after;
    bytes.write(10, check.to_be_bytes()).unwrap();
    bytes.write(12, *to).unwrap();
    assert_eq!(residue(sum(header)), residue(sum(&after)));
    assert_eq!(
        u64::from(fold(sum(header) as u32)) % 0xffff,
        residue(sum(header))
    );
}
