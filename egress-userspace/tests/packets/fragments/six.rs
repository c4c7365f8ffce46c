//! The same over IPv6, whose fragments have a header of their own, behind others perhaps.

use egress_common::family::V6;
use egress_common::reason::Reason;

use super::{back, bytes, held, orders, out, passes, refused};
use crate::fuzz::six;
use crate::harness::{DataPlane, Hook};
use crate::loopback::{Loopback, Sent};
use crate::packet::{FROM, TO, sum};
use crate::run::{Meta, Verdict};

const ETHERNET: usize = 14;
const IPV6: usize = 40;
const ORIGIN: (V6, u16) = (
    [0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8],
    443,
);
/// Destination options: a header of eight bytes before that of the fragment.
const OPTIONS: [u8; 8] = [44, 0, 1, 4, 0, 0, 0, 0];

/// A UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Datagram {
    from: (V6, u16),
    to: (V6, u16),
    payload: Vec<u8>,
}

/// Headers and part of a fragment.
struct Fragment {
    addresses: (V6, V6),
    options: bool,
    id: u32,
    /// Offset in bytes, and whether more follow.
    place: (usize, bool),
    body: Vec<u8>,
}

impl Fragment {
    fn bytes(&self) -> Vec<u8> {
        let options: &[u8] = if self.options { &OPTIONS } else { &[] };
        let length = options.len() + 8 + self.body.len();
        let mut frame = [TO, FROM].concat();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((length as u16).to_be_bytes());
        frame.extend([if self.options { 60 } else { 44 }, 61]);
        frame.extend(self.addresses.0);
        frame.extend(self.addresses.1);
        frame.extend(options);
        frame.extend([17, 0]);
        frame.extend((self.place.0 as u16 | u16::from(self.place.1)).to_be_bytes());
        frame.extend(self.id.to_be_bytes());
        frame.extend(&self.body);
        frame
    }

    fn read(frame: &[u8]) -> Self {
        let ip = &frame[ETHERNET..];
        let options = ip[6] == 60;
        let header = &ip[IPV6 + if options { 8 } else { 0 }..];
        let field = u16::from_be_bytes([header[2], header[3]]);
        Self {
            addresses: (
                ip[8..24].try_into().unwrap(),
                ip[24..40].try_into().unwrap(),
            ),
            options,
            id: u32::from_be_bytes(header[4..8].try_into().unwrap()),
            place: (usize::from(field & !7), field & 1 != 0),
            body: header[8..].to_vec(),
        }
    }
}

impl Datagram {
    fn new(from: (V6, u16), to: (V6, u16), length: usize) -> Self {
        Self {
            from,
            to,
            payload: bytes(length),
        }
    }

    fn body(&self) -> Vec<u8> {
        let length = (8 + self.payload.len()) as u16;
        let mut body = [self.from.1.to_be_bytes(), self.to.1.to_be_bytes()].concat();
        body.extend(length.to_be_bytes());
        body.extend([0, 0]);
        body.extend(&self.payload);
        let pseudo = [&[0, 17][..], &length.to_be_bytes()].concat();
        let check = !sum(&[&self.from.0, &self.to.0, &pseudo, &body]);
        body[6..8].copy_from_slice(&check.to_be_bytes());
        body
    }

    fn cut(&self, id: u32, options: bool, piece: usize) -> Vec<Vec<u8>> {
        let body = self.body();
        let last = body.len().div_ceil(piece) - 1;
        let parts = body.chunks(piece).enumerate();
        let fragment = |(nth, part): (usize, &[u8])| Fragment {
            addresses: (self.from.0, self.to.0),
            options,
            id,
            place: (nth * piece, nth < last),
            body: part.to_vec(),
        };
        parts.map(|part| fragment(part).bytes()).collect()
    }

    /// Puts a datagram together, as its receiver does.
    #[track_caller]
    fn reassemble(frames: &[Vec<u8>], id: u32, options: bool) -> Self {
        let mut parts: Vec<Fragment> = frames.iter().map(|frame| Fragment::read(frame)).collect();
        parts.sort_by_key(|part| part.place.0);
        let mut body = Vec::new();
        for (nth, part) in parts.iter().enumerate() {
            assert_eq!(part.addresses, parts[0].addresses);
            assert_eq!((part.id, part.options), (id, options));
            assert_eq!(part.place, (body.len(), nth + 1 < parts.len()));
            body.extend(&part.body);
        }
        let (from, to) = parts[0].addresses;
        let length = (body.len() as u16).to_be_bytes();
        let pseudo = [&[0, 17][..], &length].concat();
        assert_eq!(sum(&[&from, &to, &pseudo, &body]), 0xffff, "UDP checksum");
        assert_eq!(body[4..6], length);
        Self {
            from: (from, u16::from_be_bytes([body[0], body[1]])),
            to: (to, u16::from_be_bytes([body[2], body[3]])),
            payload: body[8..].to_vec(),
        }
    }
}

fn plane() -> Option<DataPlane> {
    let mut plane = DataPlane::new()?;
    six::configure(&mut plane);
    Some(plane)
}

/// An inside host's end.
fn inside(host: u8) -> (V6, u16) {
    let mut address = six::BOUND;
    address[15] = host;
    (address, 40_000)
}

#[test]
fn nat_6_ipv6_fragments_leave_and_arrive_in_every_order() {
    let Some(plane) = plane() else {
        return;
    };
    let wire = Loopback::watch();
    let mut egress = None;
    for (nth, order) in orders(4).into_iter().enumerate() {
        let options = nth % 2 == 1;
        let id = 0xfeed_0000 + nth as u32;
        let before = order.iter().position(|nth| *nth == 0).unwrap();
        let datagram = Datagram::new(inside(2), ORIGIN, 5_000);
        let frames = datagram.cut(id, options, 1_440);
        for nth in &order[..before] {
            held(&plane, Hook::UplinkEgress, &frames[*nth]);
        }
        let outcome = out(&plane, &frames[0]);
        let mut left = if before == 0 {
            vec![passes(outcome)]
        } else {
            assert_eq!(outcome.verdict, Verdict::Redirect, "{order:?}");
            wire.frames(Sent::Out, before + 1)
        };
        for nth in &order[before + 1..] {
            left.push(passes(out(&plane, &frames[*nth])));
        }
        let seen = Datagram::reassemble(&left, id, options);
        let in_range = |range| six::within(seen.from.0, range);
        assert!(six::RANGES.into_iter().any(in_range), "{seen:02x?}");
        assert_eq!(*egress.get_or_insert(seen.from), seen.from, "sticky");
        assert_eq!((seen.to, &seen.payload), (ORIGIN, &datagram.payload));

        // And back.
        let answer = Datagram::new(ORIGIN, seen.from, 5_000);
        let frames = answer.cut(id, options, 1_440);
        for nth in &order[..before] {
            held(&plane, Hook::UplinkIngress, &frames[*nth]);
        }
        let mut arrived = Vec::new();
        if before == 0 {
            arrived.push(passes(back(&plane, &frames[0])));
        } else {
            let outcome = plane.try_bytes(Hook::UplinkIngress, &frames[0], Meta::default());
            assert_eq!(outcome.unwrap().verdict, Verdict::Redirect, "{order:?}");
            let again = wire
                .rest()
                .into_iter()
                .filter(|(sent, _)| *sent == Sent::In);
            // What left came in as well, on this interface.
            let again: Vec<Vec<u8>> = again.map(|(_, bytes)| bytes).collect();
            let again: Vec<_> = again
                .into_iter()
                .filter(|frame| frames.contains(frame))
                .collect();
            assert_eq!(again.len(), before + 1, "{order:?}");
            assert_eq!(again[0], frames[0]);
            arrived.extend(again.iter().map(|frame| passes(back(&plane, frame))));
        }
        for nth in &order[before + 1..] {
            arrived.push(passes(back(&plane, &frames[*nth])));
        }
        let expected = Datagram {
            to: inside(2),
            ..answer
        };
        assert_eq!(Datagram::reassemble(&arrived, id, options), expected);
    }
    assert_eq!(plane.all_reasons(), vec![]);
}

#[test]
fn nat_6_ipv6_duplicates_overlaps_and_what_no_datagram_has() {
    let Some(plane) = plane() else {
        return;
    };
    let hook = Hook::UplinkEgress;
    let datagram = Datagram::new(inside(3), ORIGIN, 4_000);
    let frames = datagram.cut(1, false, 1_440);
    let mut left = vec![passes(out(&plane, &frames[0]))];
    for frame in &frames[1..] {
        refused(&plane, hook, &frames[0], Reason::FragmentDuplicate);
        left.push(passes(out(&plane, frame)));
    }
    assert_eq!(
        Datagram::reassemble(&left, 1, false).payload,
        datagram.payload
    );
    // RFC 5722: an overlap ends the datagram.
    let frames = datagram.cut(2, false, 1_440);
    passes(out(&plane, &frames[0]));
    let overlapping = &datagram.cut(2, false, 1_432)[1];
    refused(&plane, hook, overlapping, Reason::FragmentOverlap);
    refused(&plane, hook, &frames[1], Reason::FragmentRefused);
    let part = |place, body: &[u8]| {
        let fragment = Fragment {
            addresses: (inside(3).0, ORIGIN.0),
            options: false,
            id: 3,
            place,
            body: body.to_vec(),
        };
        fragment.bytes()
    };
    for frame in [
        // RFC 7112: the first one has all headers.
        part((0, true), &[0; 4]),
        part((0, true), b""),
        part((1_440, true), b""),
        part((1_440, true), b"seven b"),
        part((65_528, false), &[0; 8]),
    ] {
        refused(&plane, hook, &frame, Reason::FragmentMalformed);
    }
    // A fragment that is the whole datagram is one like any other (RFC 6946).
    let datagram = Datagram::new(inside(3), ORIGIN, 1_000);
    let left = passes(out(&plane, &datagram.cut(4, false, 1_440)[0]));
    let seen = Datagram::reassemble(&[left], 4, false);
    assert_eq!(seen.payload, datagram.payload);
}
