//! Telling a segment where egress IPs are now, unasked: hosts and routers on it may remember another server's
//! link-layer address (ANN-1; RFC 5227 section 2.3, RFC 4861 section 7.2.6).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use egress_common::checksum;

use super::interfaces::{self, Interface, Link};
use crate::resource::Address;

/// Each is said so often, and this long after each other (RFC 5227, `ANNOUNCE_NUM` and `ANNOUNCE_INTERVAL`).
const TIMES: u32 = 2;
/// See [`TIMES`].
const AGAIN: Duration = Duration::from_secs(2);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
/// Bytes of an advertisement with its one option.
const ADVERTISEMENT: usize = 32;
/// Where all nodes of a segment listen, as Ethernet and as IPv6 address.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What is to be said, and what was.
#[derive(Debug, Default)]
pub(super) struct Gratuitous {
    wanted: BTreeSet<Address>,
    said: BTreeMap<Told, Said>,
    /// What went wrong, since it was told.
    trouble: Option<String>,
}

/// An address on an uplink, by the link-layer address that goes with it.
type Told = (u32, [u8; 6], Address);

#[derive(Clone, Copy, Debug)]
struct Said {
    times: u32,
    last: Instant,
}

impl Gratuitous {
    /// These addresses are answered for from now on. Of IPv6 only single ones are said: a longer range is more than
    /// anybody could be told.
    pub(super) fn wish(&mut self, answered: BTreeSet<Address>) {
        self.wanted = answered;
        self.wanted.retain(|address| is_single(*address));
    }

    /// Says what was not said yet on an uplink that is up, and what is due a second time. What could not be sent is tried
    /// again with the next call; an uplink that comes back, or has another link-layer address, is told anew.
    ///
    /// # Errors
    /// When an interface takes no frame; said once.
    pub(super) fn say(&mut self, uplinks: &[Interface]) -> io::Result<()> {
        let due = self.due(uplinks, Instant::now());
        let mut trouble = None;
        if !due.is_empty() {
            let mut sender = Sender::new()?;
            for told in due {
                match sender.send(uplinks, told) {
                    Ok(true) => self.was_said(told, Instant::now()),
                    Ok(false) => {}
                    Err(error) => trouble = Some(error),
                }
            }
        }
        let before =
            std::mem::replace(&mut self.trouble, trouble.as_ref().map(ToString::to_string));
        match trouble {
            Some(error) if self.trouble != before => Err(error),
            _ => Ok(()),
        }
    }

    /// What is to be said now; what an uplink that is not there, or not up, was told is forgotten.
    fn due(&mut self, uplinks: &[Interface], now: Instant) -> Vec<Told> {
        let ethernet = uplinks
            .iter()
            .filter(|uplink| uplink.up && uplink.link == Link::Ethernet);
        let here: BTreeSet<Told> = ethernet
            .flat_map(|uplink| {
                let all = self.wanted.iter();
                all.map(|address| (uplink.index, uplink.mac, *address))
            })
            .collect();
        self.said.retain(|told, _| here.contains(told));
        let is_due = |told: &Told| {
            self.said.get(told).is_none_or(|said| {
                said.times < TIMES && now.saturating_duration_since(said.last) >= AGAIN
            })
        };
        here.into_iter().filter(is_due).collect()
    }

    fn was_said(&mut self, told: Told, now: Instant) {
        let times = self.said.get(&told).map_or(0, |said| said.times);
        let said = Said {
            times: times + 1,
            last: now,
        };
        self.said.insert(told, said);
    }
}

fn is_single(address: Address) -> bool {
    match address {
        Address::V4(_) => true,
        Address::V6(range) => range.prefix_len() == 128,
    }
}

struct Sender {
    socket: OwnedFd,
    /// By interface: who says it, of IPv6.
    link_local: BTreeMap<String, Ipv6Addr>,
}

impl Sender {
    fn new() -> io::Result<Self> {
        // SAFETY: takes integers only. Protocol 0: it receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just opened this descriptor for us.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
            link_local: link_local_addresses(),
        })
    }

    /// Says one; whether there was somebody to say it.
    fn send(&mut self, uplinks: &[Interface], (index, mac, address): Told) -> io::Result<bool> {
        let uplink = uplinks.iter().find(|uplink| uplink.index == index);
        let frame = match address {
            Address::V4(address) => Some(arp(mac, address)),
            // Without an address of its own there is nobody to say it, until it has one.
            Address::V6(range) => uplink
                .and_then(|uplink| self.link_local.get(&uplink.name))
                .map(|sender| advertisement(mac, *sender, range.network())),
        };
        let Some(frame) = frame else { return Ok(false) };
        put_out(&self.socket, index, &frame)?;
        Ok(true)
    }
}

fn link_local_addresses() -> BTreeMap<String, Ipv6Addr> {
    let all = interfaces::addresses().unwrap_or_default();
    all.into_iter()
        .filter_map(|(address, name)| match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => Some((name, address)),
            _ => None,
        })
        .collect()
}

fn put_out(socket: &OwnedFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: frame and address are ours and as long as we say.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// An ARP announcement: a request for the address by who has it (RFC 5227 section 2.3).
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// An unsolicited neighbour advertisement to all nodes, which overrides what they know (RFC 4861 section 7.2.6).
fn advertisement(mac: [u8; 6], sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = [0; ADVERTISEMENT];
    message[0] = 136;
    message[4] = 0x20;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..].copy_from_slice(&mac);
    let length = ADVERTISEMENT as u16;
    let pseudo = checksum::pseudo(sender.octets(), ALL_NODES.octets(), ICMPV6, length);
    let checksum = !checksum::fold(pseudo + checksum::sum(&message));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(sender.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ann_1_an_advertisement_has_a_checksum_that_is_right() {
        let sender = "fe80::1".parse().unwrap();
        let frame = advertisement([2, 0, 0, 0, 0, 9], sender, "2001:db8::7".parse().unwrap());
        assert_eq!(frame.len(), 14 + 40 + 32);
        let pseudo = checksum::pseudo::<16>(
            frame[22..38].try_into().unwrap(),
            frame[38..54].try_into().unwrap(),
            ICMPV6,
            32,
        );
        let message: [u8; 32] = frame[54..].try_into().unwrap();
        assert_eq!(checksum::fold(pseudo + checksum::sum(&message)), 0xffff);
        // Pinned: made by another program.
        assert_eq!(message[2..4], [0x28, 0x55]);
    }

    /// An uplink as it was found.
    fn uplink(last: u8, up: bool) -> Interface {
        Interface {
            name: "up0".into(),
            index: 7,
            mac: [2, 0, 0, 0, 0, last],
            up,
            link: Link::Ethernet,
            mtu: 1_500,
            port_of: None,
        }
    }

    #[test]
    fn ann_1_each_is_said_twice_and_again_to_a_link_that_was_down_or_changed() {
        let mut gratuitous = Gratuitous::default();
        let address: Address = "192.0.2.1".parse().unwrap();
        gratuitous.wish([address, "2001:db8::/64".parse().unwrap()].into());
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let first = [(7, [2, 0, 0, 0, 0, 1], address)];
        assert_eq!(gratuitous.due(&[uplink(1, false)], at(0)), []);
        for tenth in [0, 10] {
            assert_eq!(
                gratuitous.due(&[uplink(1, true)], at(tenth)),
                first,
                "not sent yet"
            );
        }
        gratuitous.was_said(first[0], at(10));
        assert_eq!(gratuitous.due(&[uplink(1, true)], at(29)), []);
        assert_eq!(gratuitous.due(&[uplink(1, true)], at(30)), first);
        gratuitous.was_said(first[0], at(30));
        assert_eq!(gratuitous.due(&[uplink(1, true)], at(99)), []);
        // Down and up, gone and back, another link-layer address.
        for between in [vec![uplink(1, false)], vec![]] {
            gratuitous.due(&between, at(100));
            assert_eq!(gratuitous.due(&[uplink(1, true)], at(110)), first);
            gratuitous.was_said(first[0], at(110));
        }
        let other = [(7, [2, 0, 0, 0, 0, 2], address)];
        assert_eq!(gratuitous.due(&[uplink(2, true)], at(110)), other);
        gratuitous.wish(BTreeSet::new());
        assert_eq!(gratuitous.due(&[uplink(2, true)], at(110)), []);
    }

    #[test]
    fn ann_1_longer_ranges_are_not_said_address_by_address() {
        assert!(is_single("192.0.2.1".parse().unwrap()));
        assert!(is_single("2001:db8::1/128".parse().unwrap()));
        assert!(!is_single("2001:db8::/64".parse().unwrap()));
    }
}
