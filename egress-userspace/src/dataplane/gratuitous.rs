//! Telling a segment where egress IPs are now, unasked: hosts and routers on it may remember another server's
//! link-layer address (ANN-1; RFC 5227 section 2.3, RFC 4861 section 7.2.6).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::interfaces::{self, Interface, Link};
use crate::resource::Address;

/// Each is said twice, this long after each other (RFC 5227, `ANNOUNCE_NUM` and `ANNOUNCE_INTERVAL`).
const AGAIN: Duration = Duration::from_secs(2);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
/// Where all nodes of a segment listen, as Ethernet and as IPv6 address.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What was said, and what is to be said again.
#[derive(Debug, Default)]
pub(super) struct Gratuitous {
    said: BTreeSet<(u32, Address)>,
    again: Option<(Instant, BTreeSet<(u32, Address)>)>,
}

impl Gratuitous {
    /// Says of each address that was not answered for on an uplink before that it is there now. Of IPv6 only single
    /// addresses: a longer range is more than anybody could be told.
    ///
    /// # Errors
    /// When the interface takes no frame.
    pub(super) fn say(
        &mut self,
        uplinks: &[Interface],
        answered: &BTreeSet<Address>,
    ) -> io::Result<()> {
        let ethernet = uplinks
            .iter()
            .filter(|uplink| uplink.up && uplink.link == Link::Ethernet);
        let now: BTreeSet<(u32, Address)> = ethernet
            .flat_map(|uplink| answered.iter().map(|address| (uplink.index, *address)))
            .filter(|(_, address)| is_single(*address))
            .collect();
        let new: BTreeSet<(u32, Address)> = now.difference(&self.said).copied().collect();
        self.said = now;
        if new.is_empty() {
            return Ok(());
        }
        let sent = send(uplinks, &new);
        let (_, mut all) = self
            .again
            .take()
            .unwrap_or((Instant::now(), BTreeSet::new()));
        all.extend(new);
        self.again = Some((Instant::now() + AGAIN, all));
        sent
    }

    /// Says what is due a second time.
    ///
    /// # Errors
    /// When the interface takes no frame.
    pub(super) fn say_again(&mut self, uplinks: &[Interface]) -> io::Result<()> {
        let due = self.again.take_if(|(when, _)| Instant::now() >= *when);
        let Some((_, mut due)) = due else {
            return Ok(());
        };
        due.retain(|one| self.said.contains(one));
        send(uplinks, &due)
    }
}

fn is_single(address: Address) -> bool {
    match address {
        Address::V4(_) => true,
        Address::V6(range) => range.prefix_len() == 128,
    }
}

fn send(uplinks: &[Interface], all: &BTreeSet<(u32, Address)>) -> io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    // SAFETY: takes integers only. Protocol 0: it receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let senders = link_local_addresses();
    let mut outcome = Ok(());
    for uplink in uplinks {
        let here = all.iter().filter(|(index, _)| *index == uplink.index);
        for (_, address) in here {
            let frame = match *address {
                Address::V4(address) => Some(arp(uplink.mac, address)),
                // Without an address of its own there is nobody to say it.
                Address::V6(range) => senders
                    .get(&uplink.name)
                    .map(|sender| advertisement(uplink.mac, *sender, range.network())),
            };
            let Some(frame) = frame else { continue };
            if let Err(error) = put_out(&socket, uplink.index, &frame) {
                outcome = Err(error);
            }
        }
    }
    outcome
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
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    let mut summed = [sender.octets(), ALL_NODES.octets()].concat();
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, ICMPV6]);
    summed.extend(&message);
    let checksum = internet_checksum(&summed).to_be_bytes();
    message[2..4].copy_from_slice(&checksum);

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(sender.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 1071, of an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ann_1_an_advertisement_has_a_checksum_that_is_right() {
        let sender = "fe80::1".parse().unwrap();
        let frame = advertisement([2, 0, 0, 0, 0, 9], sender, "2001:db8::7".parse().unwrap());
        assert_eq!(frame.len(), 14 + 40 + 32);
        let mut summed = frame[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, ICMPV6]);
        summed.extend(&frame[54..]);
        assert_eq!(internet_checksum(&summed), 0);
    }

    #[test]
    fn ann_1_longer_ranges_are_not_said_address_by_address() {
        assert!(is_single("192.0.2.1".parse().unwrap()));
        assert!(is_single("2001:db8::1/128".parse().unwrap()));
        assert!(!is_single("2001:db8::/64".parse().unwrap()));
    }
}
