//! Against a slow model: build the same error once more with other endpoints, and sum everything anew.

use super::*;
use proptest::prelude::*;

/// RFC 1071 over bytes of any length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// An address family as the model writes it.
trait Model: Quote + std::fmt::Debug {
    /// A network header with `extras` behind the fixed part, before `payload`.
    fn packet(
        from: Self,
        to: Self,
        protocol: u8,
        extras: Extras,
        fragment: u16,
        payload: &[u8],
    ) -> Vec<u8>;
    /// The pseudo-header of a payload.
    fn pseudo_header(from: Self, to: Self, protocol: u8, length: usize) -> Vec<u8>;
    /// The pseudo-header of an ICMP message.
    fn icmp_pseudo_header(from: Self, to: Self, length: usize) -> Vec<u8>;
}

/// IPv4 options in words, or IPv6 extension headers.
#[derive(Clone, Copy, Debug)]
struct Extras(usize);

impl Model for V4 {
    fn packet(
        from: V4,
        to: V4,
        protocol: u8,
        Extras(extras): Extras,
        fragment: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let header = 20 + extras * 4;
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(((header + payload.len()) as u16).to_be_bytes());
        bytes.extend([0xbe, 0xef]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([61, protocol, 0, 0]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(vec![1; extras * 4]);
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn pseudo_header(from: V4, to: V4, protocol: u8, length: usize) -> Vec<u8> {
        let mut bytes = [from, to].concat();
        bytes.extend([0, protocol]);
        bytes.extend((length as u16).to_be_bytes());
        bytes
    }

    fn icmp_pseudo_header(_: V4, _: V4, _: usize) -> Vec<u8> {
        Vec::new()
    }
}

impl Model for V6 {
    fn packet(
        from: V6,
        to: V6,
        protocol: u8,
        Extras(extras): Extras,
        fragment: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        // Hop-by-hop, destination options, routing, and a fragment header if it is one.
        let mut kinds: Vec<u8> = [0, 60, 43].into_iter().take(extras).collect();
        if fragment != 0 {
            kinds.push(44);
        }
        let mut rest = Vec::new();
        for (nth, kind) in kinds.iter().enumerate() {
            let next = *kinds.get(nth + 1).unwrap_or(&protocol);
            if *kind == 44 {
                rest.extend([next, 0]);
                rest.extend(((fragment & 0x1fff) << 3 | 1).to_be_bytes());
                rest.extend([1, 2, 3, 4]);
            } else {
                rest.extend([next, nth as u8]);
                rest.extend(vec![0; 6 + nth * 8]);
            }
        }
        rest.extend(payload);
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend([*kinds.first().unwrap_or(&protocol), 61]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(rest);
        bytes
    }

    fn pseudo_header(from: V6, to: V6, protocol: u8, length: usize) -> Vec<u8> {
        let mut bytes = [from, to].concat();
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, 0, 0, protocol]);
        bytes
    }

    fn icmp_pseudo_header(from: V6, to: V6, length: usize) -> Vec<u8> {
        Self::pseudo_header(from, to, ICMPV6, length)
    }
}

/// Everything about an error but the endpoints.
#[derive(Clone, Debug)]
struct Shape {
    kind: u8,
    code: u8,
    rest: [u8; 4],
    /// Extras of the outer and of the quoted header.
    outer: Extras,
    quoted: Extras,
    /// Fragment field of the quoted packet.
    fragment: u16,
    protocol: u8,
    /// A UDP datagram without a checksum.
    unsummed: bool,
    sequence: u32,
    payload: Vec<u8>,
    /// Bytes of the quoted transport header and payload that the error holds.
    kept: usize,
    /// What follows the quote (RFC 4884).
    extensions: Vec<u8>,
    /// Bytes in front of the outer header, and behind the message.
    before: usize,
    behind: usize,
}

/// The transport header and payload, summed.
fn transport<A: Model>(shape: &Shape, from: (A, u16), to: (A, u16)) -> Vec<u8> {
    let mut bytes = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let at = if shape.protocol == TCP {
        bytes.extend(shape.sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 9, 0x50, 0x10, 0xfa, 0xf0, 0, 0, 0, 0]);
        16
    } else {
        bytes.extend(((8 + shape.payload.len()) as u16).to_be_bytes());
        bytes.extend([0, 0]);
        6
    };
    bytes.extend(&shape.payload);
    let pseudo = A::pseudo_header(from.0, to.0, shape.protocol, bytes.len());
    let sum = match checksum(&[&pseudo, &bytes]) {
        _ if shape.unsummed && shape.protocol == UDP => 0,
        0 if shape.protocol == UDP => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The frame of an error from `outer.0` to `outer.1` that quotes a packet.
fn frame<A: Model>(shape: &Shape, outer: (A, A), from: (A, u16), to: (A, u16)) -> Vec<u8> {
    let mut rest = transport(shape, from, to);
    // The whole packet is built, and then cut: the model sums what the quote lacks, too.
    let whole = rest.len();
    let mut quote = A::packet(
        from.0,
        to.0,
        shape.protocol,
        shape.quoted,
        shape.fragment,
        &rest,
    );
    rest.truncate(shape.kept);
    quote.truncate(quote.len() - whole + rest.len());
    let mut message = vec![shape.kind, shape.code, 0, 0];
    message.extend(shape.rest);
    message.extend(&quote);
    if !shape.extensions.is_empty() {
        // They follow 128 bytes of the packet, or all of it and zeros.
        message.extend(vec![0; 128usize.saturating_sub(quote.len())]);
        message.extend(&shape.extensions);
    }
    let pseudo = A::icmp_pseudo_header(outer.0, outer.1, message.len());
    let sum = checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = vec![0xee; shape.before];
    bytes.extend(A::packet(
        outer.0,
        outer.1,
        A::ICMP,
        shape.outer,
        0,
        &message,
    ));
    bytes.extend(vec![0xdd; shape.behind]);
    bytes
}

/// Where the parts of a frame are: network header, message, length of the message.
fn places<A: Model>(shape: &Shape, frame: &[u8]) -> (u16, u16, u32) {
    let empty = A::packet(A::default(), A::default(), A::ICMP, shape.outer, 0, &[]);
    let message = shape.before + empty.len();
    (
        shape.before as u16,
        message as u16,
        (frame.len() - shape.behind - message) as u32,
    )
}

fn shapes(kinds: &'static [u8]) -> impl Strategy<Value = Shape> {
    let headers = (0..4usize, 0..4usize, 0..3usize, 0..7usize);
    (
        (prop::sample::select(kinds), any::<u8>(), any::<[u8; 4]>()),
        headers,
        prop::sample::select(&[TCP, UDP][..]),
        (any::<bool>(), any::<u32>()),
        prop::collection::vec(any::<u8>(), 0..200),
        // Not 17: half of a checksum stays as it is, which is not what the model would sum.
        prop_oneof![8..17usize, 18..250usize],
        prop::collection::vec(any::<u8>(), 0..60),
    )
        .prop_map(
            |(
                (kind, code, rest),
                (outer, quoted, before, behind),
                protocol,
                (unsummed, sequence),
                payload,
                kept,
                extensions,
            )| Shape {
                kind,
                code,
                rest,
                outer: Extras(outer),
                quoted: Extras(quoted),
                fragment: 0,
                protocol,
                unsummed,
                sequence,
                payload,
                kept: if extensions.is_empty() { kept } else { 128 },
                extensions,
                before: 14 + before * 4,
                behind,
            },
        )
}

fn agrees<A: Model>(
    shape: &Shape,
    router: A,
    inside: (A, u16),
    egress: (A, u16),
    origin: (A, u16),
) -> Result<(), TestCaseError> {
    let point = |(address, port)| Endpoint { address, port };
    let cases = [
        // From somewhere outside, about what the flow has sent.
        (
            Way::Back,
            frame(shape, (router, egress.0), egress, origin),
            frame(shape, (router, inside.0), inside, origin),
            (egress, inside),
        ),
        // From somewhere inside, about what the origin has sent.
        (
            Way::Out,
            frame(shape, (router, origin.0), origin, inside),
            frame(shape, (egress.0, origin.0), origin, egress),
            (inside, egress),
        ),
    ];
    for (way, mut bytes, right, (from, to)) in cases {
        let (network, message, length) = places::<A>(shape, &bytes);
        let error = read::<A>(bytes.as_slice(), network, message, length);
        let error = error.ok_or_else(|| TestCaseError::fail("not read"))?;
        prop_assert!(A::intact(bytes.as_slice(), error.quote()));
        match way {
            Way::Back => {
                let key = error.sent();
                prop_assert_eq!((key.egress, key.egress_port), egress);
                prop_assert_eq!((key.origin, key.origin_port), origin);
                prop_assert_eq!(key.protocol, shape.protocol);
            }
            Way::Out => {
                let key = error.received(3);
                prop_assert_eq!((key.inside, key.inside_port), inside);
                prop_assert_eq!((key.origin, key.origin_port), origin);
                prop_assert_eq!((key.protocol, key.realm), (shape.protocol, 3));
            }
        }
        if shape.protocol == TCP {
            prop_assert_eq!(error.sequence, shape.sequence);
        }
        translate(
            bytes.as_mut_slice(),
            &error,
            way,
            router,
            point(from),
            point(to),
        )
        .ok_or_else(|| TestCaseError::fail("not translated"))?;
        prop_assert_eq!(bytes, right);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nat_4_ipv4_agrees_with_the_model(
        shape in shapes(&[3, 11, 12]), router: V4, inside: (V4, u16), egress: (V4, u16), origin: (V4, u16)
    ) {
        agrees(&shape, router, inside, egress, origin)?;
    }

    #[test]
    fn nat_4_ipv6_agrees_with_the_model(
        shape in shapes(&[1, 2, 3, 4]), router: V6, inside: (V6, u16), egress: (V6, u16), origin: (V6, u16)
    ) {
        agrees(&shape, router, inside, egress, origin)?;
    }

    #[test]
    fn whatever_the_bytes_nothing_behind_the_message_is_touched(
        mut bytes in prop::collection::vec(any::<u8>(), 160..200), length in 0..120u32, kind in 1..13u8
    ) {
        let (at, end) = (40, 40 + length as usize);
        bytes[at] = kind;
        bytes[at + 8] = if kind < 3 { 0x60 } else { 0x40 | bytes[at + 8] & 7 };
        bytes[at + 14] %= 60;
        bytes[at + 17] &= 0x17;
        let before = bytes.clone();
        if let Some(error) = read::<V4>(bytes.as_slice(), 20, at as u16, length) {
            change(&mut bytes, &error, [1; 4], [2; 4], [3; 4]);
        }
        if let Some(error) = read::<V6>(bytes.as_slice(), 0, at as u16, length) {
            change(&mut bytes, &error, [1; 16], [2; 16], [3; 16]);
        }
        prop_assert_eq!(&bytes[end..], &before[end..]);
    }
}

/// Translates, if it can be done.
fn change<A: Quote>(bytes: &mut [u8], error: &Error<A>, sender: A, from: A, to: A) {
    let point = |address| Endpoint { address, port: 7 };
    for way in [Way::Out, Way::Back] {
        let _ = translate(bytes, error, way, sender, point(from), point(to));
    }
}

fn plain(kind: u8) -> Shape {
    Shape {
        kind,
        code: 4,
        rest: [0, 0, 5, 0],
        outer: Extras(0),
        quoted: Extras(0),
        fragment: 0,
        protocol: TCP,
        unsummed: false,
        sequence: 77,
        payload: vec![7; 40],
        kept: 60,
        extensions: Vec::new(),
        before: 14,
        behind: 0,
    }
}

const INSIDE: (V4, u16) = ([10, 1, 0, 2], 40_000);
const ORIGIN: (V4, u16) = ([192, 0, 2, 7], 443);
const ROUTER: V4 = [203, 0, 113, 1];

fn seen(shape: &Shape) -> Option<Error<V4>> {
    let bytes = frame(shape, (ROUTER, INSIDE.0), INSIDE, ORIGIN);
    let (network, message, length) = places::<V4>(shape, &bytes);
    read::<V4>(bytes.as_slice(), network, message, length)
}

#[test]
fn only_errors_about_packets_with_ports_are_read() {
    for kind in 0..=255 {
        let is_error = [3, 11, 12].contains(&kind);
        assert_eq!(seen(&plain(kind)).is_some(), is_error, "type {kind}");
        assert_eq!(V6::is_error(kind), (1..5).contains(&kind), "type {kind}");
    }
    for protocol in [ICMP, 47, 132] {
        let shape = Shape {
            protocol,
            ..plain(3)
        };
        assert_eq!(seen(&shape), None);
    }
}

#[test]
fn a_first_fragment_is_read_and_a_later_one_is_not() {
    let fragment = |fragment| Shape {
        fragment,
        ..plain(11)
    };
    // More fragments; offset 8; do not fragment.
    assert!(seen(&fragment(0x2000)).is_some());
    assert!(seen(&fragment(0x0001)).is_none());
    assert!(seen(&fragment(0x4000)).is_some());
    let (a, b) = (([1; 16], 1), ([2; 16], 2));
    for (fragment, first) in [(0x2000, true), (0x0001, false)] {
        let shape = Shape {
            fragment,
            ..plain(3)
        };
        let bytes = frame::<V6>(&shape, ([9; 16], [1; 16]), a, b);
        let (network, message, length) = places::<V6>(&shape, &bytes);
        let read = read::<V6>(bytes.as_slice(), network, message, length);
        assert_eq!(read.is_some(), first);
    }
}

#[test]
fn eight_bytes_of_transport_are_enough_and_seven_are_not() {
    for kept in 0..24 {
        let shape = Shape { kept, ..plain(3) };
        let error = seen(&shape);
        assert_eq!(error.is_some(), kept >= 8, "{kept} bytes");
        if let Some(error) = error {
            assert_eq!(error.checksum_at != 0, kept >= 18, "{kept} bytes");
        }
        // The frame goes on behind the message: that is not the quote.
        let longer = Shape {
            behind: 40,
            ..shape
        };
        assert_eq!(seen(&longer), error);
    }
}

#[test]
fn rfc_5508_req_3a_the_quoted_header_has_a_checksum_of_its_own() {
    for extras in 0..10 {
        let shape = Shape {
            quoted: Extras(extras),
            ..plain(3)
        };
        let mut bytes = frame(&shape, (ROUTER, INSIDE.0), INSIDE, ORIGIN);
        let quote = 14 + 20 + HEADER;
        assert!(V4::intact(bytes.as_slice(), quote));
        for at in quote..quote + 20 + extras * 4 {
            bytes[at] ^= 0x10;
            assert!(!V4::intact(bytes.as_slice(), quote), "byte {at}");
            bytes[at] ^= 0x10;
        }
        assert!(!V4::intact(&bytes[..quote + 19], quote));
    }
}

#[test]
fn the_pseudo_header_is_what_the_rfc_says() {
    let (from, to): (V6, V6) = ([0x20; 16], [0xfd; 16]);
    let whole = V6::icmp_pseudo_header(from, to, 1_240);
    assert_eq!(!fold(V6::pseudo(from, to, 1_240)), checksum(&[&whole]));
    assert_eq!(V4::pseudo([1; 4], [2; 4], 1_240), 0);
}
