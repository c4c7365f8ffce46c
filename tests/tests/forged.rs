//! NAT-4, RFC 5927: ICMP errors that somebody on the way has made up, against connections of real kernels.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    config::Resources,
    needs,
    netns::Namespace,
    odd,
    origin::ECHO_PORT,
    packet::{ACK, Transport},
    path::{Family, learned},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{A, BOUND, GATEWAY, NET, UPLINK},
    wait,
};

/// What an error may take.
const LIMIT: Duration = Duration::from_secs(60);
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;

/// Type and code of "too big", and the path MTU that a forger would like to be believed.
const fn too_big(family: Family) -> (u8, u8, u32) {
    match family {
        Family::V4 => (3, 4, 600),
        Family::V6 => (2, 0, 1_280),
    }
}

/// Types and codes of errors that say a connection cannot be.
fn fatal(family: Family) -> Vec<(u8, u8)> {
    match family {
        Family::V4 => (0..16)
            .filter(|code| *code != 4)
            .map(|code| (3, code))
            .chain([(11, 0), (11, 1), (12, 0)])
            .collect(),
        Family::V6 => (0..7)
            .map(|code| (1, code))
            .chain([(3, 0), (3, 1), (4, 0), (4, 1)])
            .collect(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A network header in front of `length` bytes of `protocol`.
fn header(from: IpAddr, to: IpAddr, protocol: u8, length: u16) -> Vec<u8> {
    let mut header = if from.is_ipv4() {
        let [high, low] = (20 + length).to_be_bytes();
        vec![0x45, 0, high, low, 0, 1, 0x40, 0, 60, protocol, 0, 0]
    } else {
        let [high, low] = length.to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, protocol, 60]
    };
    header.extend(octets(from));
    header.extend(octets(to));
    if from.is_ipv4() {
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
    }
    header
}

/// Where the last segment that left the gateway came from, where it went, and the number after it.
#[derive(Clone, Copy, Debug)]
struct Segment {
    source: SocketAddr,
    destination: SocketAddr,
    next: u32,
}

fn last_segment(frames: &[Frame], to: SocketAddr) -> Option<Segment> {
    let mut of_flow = frames.iter().filter(|frame| frame.received).rev();
    of_flow.find_map(|frame| {
        let packet = frame.packet()?;
        match packet.transport {
            Transport::Tcp {
                source,
                destination,
                flags,
                sequence,
                ..
            } if SocketAddr::new(packet.destination, destination) == to && flags == ACK => {
                Some(Segment {
                    source: SocketAddr::new(packet.source, source),
                    destination: to,
                    next: sequence,
                })
            }
            _ => None,
        }
    })
}

/// Somebody on the way, who has seen a segment.
struct Forger {
    node: Namespace,
    ethernet: Vec<u8>,
    segment: Segment,
}

impl Forger {
    fn new(site: &Site, segment: Segment) -> Result<Self> {
        let node = site.node(NET);
        let mut ethernet = odd::mac(&site.node(GATEWAY), UPLINK)?.to_vec();
        ethernet.extend(odd::mac(&node, UPLINK)?);
        ethernet.extend(if segment.source.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        Ok(Self {
            node,
            ethernet,
            segment,
        })
    }

    /// A frame with an error that quotes the segment as it left, with another number.
    fn forgery(&self, (kind, code, mtu): (u8, u8, u32), sequence: u32) -> Vec<u8> {
        let (source, destination) = (self.segment.source, self.segment.destination);
        let mut message = vec![kind, code, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(header(source.ip(), destination.ip(), TCP, 500));
        message.extend(source.port().to_be_bytes());
        message.extend(destination.port().to_be_bytes());
        message.extend(sequence.to_be_bytes());
        let length = message.len() as u16;
        let (protocol, pseudo) = if source.is_ipv4() {
            (ICMP, Vec::new())
        } else {
            let mut pseudo = octets(destination.ip());
            pseudo.extend(octets(source.ip()));
            pseudo.extend(u32::from(length).to_be_bytes());
            pseudo.extend(u32::from(ICMPV6).to_be_bytes());
            (ICMPV6, pseudo)
        };
        let sum = checksum(&[pseudo, message.clone()].concat());
        message[2..4].copy_from_slice(&sum);
        // From the origin, as far as anybody can tell.
        let outer = header(destination.ip(), source.ip(), protocol, length);
        [self.ethernet.clone(), outer, message].concat()
    }

    fn send(&self, frame: Vec<u8>) -> Result<()> {
        ensure!(odd::send(&self.node, UPLINK, &[frame])? == 1);
        Ok(())
    }

    /// Sends an error whose quote is `distance` away from the truth.
    fn forge(&self, error: (u8, u8, u32), distance: u32) -> Result<()> {
        self.send(self.forgery(error, self.segment.next.wrapping_add(distance)))
    }
}

#[test]
fn nat_4_a_forged_error_changes_nothing_unless_its_numbers_fit_and_never_ends_a_flow() -> Result<()>
{
    const TEST: &str =
        "nat_4_a_forged_error_changes_nothing_unless_its_numbers_fit_and_never_ends_a_flow";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan {
        resources: Resources::both_families(),
        ..Plan::default()
    })?;
    for family in Family::ALL {
        forged(&site, family).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

fn forged(site: &Site, family: Family) -> Result<()> {
    let capture = Capture::start(&site.node(NET), UPLINK)?;
    let origin = family.at(site, A, ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(origin, 1, CONNECT_LIMIT)?, 1)?;
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 1)?;
    let error = too_big(family);
    let believed = || learned(&site.node(BOUND), origin.ip(), error.2);
    capture.wait_for("a segment", LIMIT, |frames| {
        last_segment(frames, origin).is_some()
    })?;
    let segment = last_segment(&capture.finish()?, origin).context("no segment was captured")?;
    let forger = Forger::new(site, segment)?;

    // Of a stranger who knows addresses and ports, but not the numbers.
    let before = site.counted("icmp_implausible")?;
    let distances = [1_000_000u32, 0x8000_0000, 0xf000_0000];
    for distance in distances {
        forger.forge(error, distance)?;
    }
    wait::until_true("the forgeries to be counted", LIMIT, || {
        Ok(site.counted("icmp_implausible")? == before + distances.len() as u64)
    })?;
    ensure!(!believed()?, "a forged path MTU was believed");
    // With a wrong checksum.
    let before = site.counted("icmp_checksum")?;
    let mut wrong = forger.forgery(error, segment.next);
    let message = 14 + header(origin.ip(), origin.ip(), ICMP, 0).len();
    wrong[message + 2] ^= 1;
    forger.send(wrong)?;
    wait::until_true("the wrong checksum to be counted", LIMIT, || {
        Ok(site.counted("icmp_checksum")? == before + 1)
    })?;
    ensure!(!believed()?);

    // Errors that say the connection cannot be, with the right numbers: it goes on, here and at its ends.
    for (kind, code) in fatal(family) {
        forger.forge((kind, code, 0), 0)?;
    }
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 1)?;
    ensure!(site.active(origin, "tcp")? == 1);
    // And this is what the others would have done, had they been believed.
    forger.forge(error, 1)?;
    wait::until_true("the path MTU to be learned", LIMIT, believed)?;
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 1)?;
    Ok(())
}
