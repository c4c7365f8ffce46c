use super::*;
use crate::key::{TCP, UDP};
use proptest::prelude::*;

const SOURCE: V6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DESTINATION: V6 = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// A packet with this first next header and this behind its fixed header.
fn packet(protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((behind.len() as u16).to_be_bytes());
    bytes.extend([protocol, 64]);
    bytes.extend(SOURCE);
    bytes.extend(DESTINATION);
    bytes.extend(behind);
    bytes
}

/// The walk as the kernel does it.
fn walked(bytes: &[u8]) -> Result<Ip<V6>, Malformed> {
    let mut ip = ipv6(bytes, 0, bytes.len() as u32)?;
    let mut walk = Walk::new(&ip);
    let list = &bytes[IPV6..IPV6 + walk.end as usize];
    for _ in 0..HEADERS_MAX {
        if !walk.step(list) {
            break;
        }
    }
    walk.apply(&mut ip)?;
    Ok(ip)
}

/// The same, slow and recursive: where the transport header begins, its protocol, the fragment field.
fn oracle(
    protocol: u8,
    rest: &[u8],
    at: usize,
    left: u32,
    fragment: Option<u16>,
) -> Option<(usize, u8, Option<u16>)> {
    let stop = Some((at, protocol, fragment));
    if left == 0 || ![0, 43, 44, 60].contains(&protocol) || (protocol == 0 && at != 0) {
        return stop;
    }
    let short = rest.len() <= EXTENSIONS_MAX;
    let visible = &rest[..rest.len().min(EXTENSIONS_MAX)];
    let cut = if short { None } else { stop };
    let Some(header) = visible.get(at..).filter(|header| header.len() >= 2) else {
        return cut;
    };
    let length = if protocol == 44 {
        8
    } else {
        (usize::from(header[1]) + 1) * 8
    };
    if header.len() < length {
        return cut;
    }
    match protocol {
        43 if header[3] != 0 => stop,
        44 if fragment.is_some() => stop,
        44 => {
            let field = u16::from_be_bytes([header[2], header[3]]);
            if field >> 3 != 0 {
                return Some((at + 8, header[0], Some(field)));
            }
            oracle(header[0], rest, at + 8, left - 1, Some(field))
        }
        _ => oracle(header[0], rest, at + length, left - 1, fragment),
    }
}

/// A chain of extension headers with plausible and implausible lengths.
fn chain() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let kind = prop_oneof![
        Just(0u8),
        Just(43),
        Just(44),
        Just(60),
        Just(60),
        Just(51),
        Just(TCP),
        Just(UDP),
        any::<u8>()
    ];
    let header = (
        kind.clone(),
        0usize..6,
        any::<bool>(),
        any::<bool>(),
        any::<u8>(),
    );
    (kind, prop::collection::vec(header, 0..10), 0usize..40).prop_map(|(first, headers, tail)| {
        let mut bytes = Vec::new();
        let mut current = first;
        for (following, units, lies, segments, noise) in headers {
            let length = if current == 44 { 0 } else { units };
            let mut header = vec![0u8; (length + 1) * 8];
            header[0] = following;
            header[1] = if lies && noise % 8 == 0 {
                noise
            } else {
                length as u8
            };
            header[3] = match current {
                43 => u8::from(segments && noise % 4 == 0),
                44 => [0, 1, 8, 9][usize::from(noise) % 4],
                _ => noise,
            };
            bytes.extend(header);
            current = following;
        }
        bytes.extend(vec![0xabu8; tail]);
        (first, bytes)
    })
}

proptest! {
    #[test]
    fn the_walk_agrees_with_a_slow_one((first, behind) in chain()) {
        let bytes = packet(first, &behind);
        let found = walked(&bytes).ok();
        let expected = oracle(first, &behind, 0, HEADERS_MAX, None);
        prop_assert_eq!(
            found.map(|ip| (ip.transport() - IPV6, ip.protocol, ip.fragment)),
            expected.map(|(at, protocol, fragment)| (at, protocol, match fragment {
                None | Some(0 | 2 | 4 | 6) => Fragment::Whole,
                Some(field) if field >> 3 == 0 => Fragment::First,
                Some(_) => Fragment::Later,
            }))
        );
        if let Some(ip) = found {
            prop_assert_eq!(bytes[ip.protocol_at as usize], ip.protocol);
            prop_assert_eq!(ip.header() % 4, 0);
            prop_assert!(ip.header() <= IPV6 + EXTENSIONS_MAX);
            prop_assert_eq!(ip.payload() as usize, behind.len() - (ip.header() - IPV6));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>) {
        let _ = ipv6(bytes.as_slice(), 0, bytes.len() as u32);
        if bytes.len() >= 2 {
            let _ = walked(&packet(bytes[0], &bytes[1..]));
        }
    }
}

#[test]
fn a_plain_packet_is_read() {
    let bytes = packet(TCP, &[0; 20]);
    let ip = walked(&bytes).unwrap();
    assert_eq!((ip.source, ip.destination), (SOURCE, DESTINATION));
    assert_eq!((ip.transport(), ip.payload(), ip.length), (40, 20, 60));
    assert_eq!(ip.protocol, TCP);
    for cut in 0..bytes.len() {
        assert!(ipv6(&bytes[..cut], 0, cut as u32).is_err(), "{cut}");
    }
    let mut other = bytes;
    other[0] = 0x45;
    assert!(ipv6(other.as_slice(), 0, 60).is_err());
}

#[test]
fn what_lies_deeper_than_the_bounds_is_no_transport_header() {
    let option = |following: u8, units: u8| {
        let mut header = vec![0; (usize::from(units) + 1) * 8];
        (header[0], header[1]) = (following, units);
        header
    };
    let eight: Vec<u8> = (0..8)
        .flat_map(|nth| option(if nth == 7 { TCP } else { 60 }, 0))
        .collect();
    let ip = walked(&packet(60, &[eight.as_slice(), &[0; 20]].concat())).unwrap();
    assert_eq!((ip.protocol, ip.header()), (TCP, 104));
    let nine: Vec<u8> = (0..9)
        .flat_map(|nth| option(if nth == 8 { TCP } else { 60 }, 0))
        .collect();
    let ip = walked(&packet(60, &[nine.as_slice(), &[0; 20]].concat())).unwrap();
    assert_eq!(ip.protocol, 60, "nobody's to translate");
    let long = [option(TCP, 31), vec![0; 20]].concat();
    assert_eq!(walked(&packet(60, &long)).unwrap().protocol, TCP);
    let longer = [option(TCP, 32), vec![0; 20]].concat();
    assert_eq!(walked(&packet(60, &longer)).unwrap().protocol, 60);
    assert!(
        walked(&packet(60, &option(TCP, 9)[..16])).is_err(),
        "it lies"
    );
}

#[test]
fn nat_11_nobody_answers_multicast_or_the_unspecified_address() {
    let bytes = packet(UDP, &[0; 8]);
    let ip = walked(&bytes).unwrap();
    assert!(V6::answerable(&ip));
    let mut group = [0; 16];
    group[0] = 0xff;
    for bad in [
        Ip {
            source: [0; 16],
            ..ip
        },
        Ip {
            source: group,
            ..ip
        },
        Ip {
            destination: group,
            ..ip
        },
        Ip {
            destination: [0; 16],
            ..ip
        },
        Ip {
            protocol: ICMPV6,
            ..ip
        },
        Ip {
            fragment: Fragment::Later,
            ..ip
        },
    ] {
        assert!(!V6::answerable(&bad), "{bad:?}");
    }
}
