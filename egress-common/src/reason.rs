//! Why a packet was dropped or refused: one list from the kernel to the command line.
//!
//! The data plane counts by these numbers, metrics and logs use these names, `egress why` prints
//! these sentences. A number is never given to another reason.

use crate::port::EFFORTS;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $text:literal;)*) => {
        /// Why a packet was dropped, refused or let pass unusually.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $text] $(#[$doc])* $name = $number,)*
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in metrics, logs and JSON.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The reason with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    CapReached = 0, "cap_reached", "every applicable egress IP carries its maximum of connections to this origin (CAP-4)";
    NoPort = 1, "no_port", "no source port was free below the cap (CAP-8)";
    TableFull = 2, "table_full", "the flow table is full (CAP-6)";
    OriginTableFull = 3, "origin_table_full", "the table of origins is full (CAP-6)";
    NoAddress = 4, "no_address", "the pool has no applicable egress IP (SAFE-1)";
    NoFlow = 5, "no_flow", "a TCP packet that opens nothing belongs to no flow (NAT-10)";
    Contended = 6, "contended", "other CPUs changed the same record too often; the sender will retry (CAP-2)";
    Fragment = 7, "fragment", "fragments of protocols other than TCP and UDP are not translated (SAFE-1)";
    Ipv6 = 8, "ipv6", "IPv6 that never crosses a router: neighbour discovery from inside, or a link-local destination, of a bound zone (SAFE-1)";
    IcmpError = 9, "icmp_error", "an ICMP error about a packet of no flow, or of a kind that is not translated (NAT-4)";
    Protocol = 10, "protocol", "this protocol cannot be translated (SAFE-1)";
    Malformed = 11, "malformed", "headers are cut short or contradict each other (SAFE-1)";
    Unsolicited = 12, "unsolicited", "nobody asked for this packet to an egress IP (SAFE-3)";
    ClaimsEgressIp = 13, "claims_egress_ip", "a packet from inside claims an egress IP as its source (SAFE-6)";
    HookMissing = 14, "hook_missing", "the uplink's program did not see this packet of a bound zone (SAFE-6)";
    PingDropped = 15, "ping_dropped", "ICMP queries are configured to be dropped (POLICY-7)";
    ReplyLimited = 16, "reply_limited", "too many refusals in a short time: dropped without an answer (NAT-11)";
    Unanswerable = 17, "unanswerable", "refused without an answer, because no answer is allowed or could be made (NAT-11)";
    IndexInconsistent = 18, "index_inconsistent", "an index pointed to a record of another flow; treated as a miss (SAFE-1)";
    Blocked = 19, "blocked", "the zone is enabled but its pool is unknown to the data plane (SAFE-1)";
    Multicast = 20, "multicast", "multicast, broadcast, loopback and unspecified addresses of a bound zone are not translated (SAFE-1)";
    EventLost = 21, "event_lost", "an event did not fit the ring buffer (OBS-4)";
    TagLost = 22, "tag_lost", "somebody rewrote the whole packet mark, reserved bits included, so its zone is not known: set marks with a mask; or the configuration changed while a packet of no zone was on its way (SAFE-1)";
    IcmpChecksum = 23, "icmp_checksum", "an ICMP error whose checksum is wrong, or that of the header it quotes (NAT-4, RFC 5508 REQ-3)";
    IcmpImplausible = 24, "icmp_implausible", "an ICMP error quotes a TCP segment that its flow cannot have under way: likely forged (NAT-4, RFC 5927)";
    Over = 25, "over", "the origin still sends to a connection that was ended for its idleness, or on purpose; it gets a RST (NAT-7)";
    FragmentMalformed = 26, "fragment_malformed", "a fragment that no datagram has: empty, beyond 65,535 bytes, uneven, or a first one without its ports (NAT-6)";
    FragmentOverlap = 27, "fragment_overlap", "fragments of a datagram overlap: it is dropped from there on (NAT-6)";
    FragmentDuplicate = 28, "fragment_duplicate", "a fragment that has passed before; dropped alone, which harms nobody (NAT-6)";
    FragmentNoFirst = 29, "fragment_no_first", "a fragment waited five seconds for the first one of its datagram (NAT-6)";
    FragmentsFull = 30, "fragments_full", "no room to wait for a first fragment: too many of this source, too many gaps, or a frame beyond 2,048 bytes (NAT-6)";
    FragmentRefused = 31, "fragment_refused", "other fragments of the same datagram were refused, or its flow is over (NAT-6)";
    TunnelStranger = 32, "tunnel_stranger", "a packet through the tunnel from an address that is no known server's (FWD-6)";
    TunnelStray = 33, "tunnel_stray", "a packet through the tunnel that is not for an egress IP, or says what this version does not know (FWD-6)";
    SteeredTwice = 34, "steered_twice", "a reply that came through the tunnel and belongs to yet another server: servers disagree about who owns what, and nothing is sent on twice (FWD-5)";
    PeerUnreachable = 35, "peer_unreachable", "a packet for another server that cannot be sent there: the tunnel is down, or the server is unknown by now (FWD-5)";
    FlowLogLost = 36, "flow_log_lost", "a record did not fit the ring buffer of the flow log (OBS-4)";
    ForwardedFragment = 37, "forwarded_fragment", "a later fragment of another server's connection that came before the first one and cannot wait, because the packet mark has no room for that server's number (FWD-2, NAT-6)";
    ForwardedIcmp = 38, "forwarded_icmp", "an ICMP message that another server has sent here and that is no error about a connection of its own (FWD-2, NAT-4)";
    ForwardedRealm = 39, "forwarded_realm", "a new connection of a zone that is selected by interface, and this server owns nothing of the pool: those are not forwarded (FWD-2, ZONE-2)";
    ForwardedTooLong = 40, "forwarded_too_long", "a packet of a forwarded connection, or a reply for another server, that nobody can be told of and that does not fit the tunnel over IPv6, or the uplink where it is translated (NAT-5)";
    PathTooLong = 41, "path_too_long", "a packet of a forwarded connection, or a reply for another server, that cannot be cut and does not fit the way there: its sender was told what does (NAT-5)";
    Lapsed = 42, "lapsed", "this server has not reached etcd for so long that others may have its IPv4 egress IPs by now, as `takeover_after` says (CLU-3)";
}

impl Reason {
    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();
}

/// Length of the counters' map: the reasons, and behind them how many ports new flows tried, by
/// [`port::effort`](crate::port::effort); of those a counter's `packets` are flows and its `bytes` are ports.
pub const COUNTERS: usize = Reason::COUNT + EFFORTS as usize;

/// The counter of a group of efforts.
#[inline(always)]
pub const fn of_effort(group: u32) -> u32 {
    Reason::COUNT as u32 + group
}

/// Packets and bytes counted under one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, link-layer length.
    pub bytes: u64,
}

/// A refusal or drop as it is sent to the daemon for the log.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, ns of the monotonic clock.
    pub time: u64,
    /// [`Reason`] as a number.
    pub reason: u32,
    /// Zone number, 0 if unknown.
    pub zone: u32,
    /// Source address, IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    /// Always zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Event>() == 56);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_labels_differ() {
        let mut labels = std::collections::HashSet::new();
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(Reason::from_number(number as u32), Some(*reason));
            assert!(labels.insert(reason.label()));
        }
        assert_eq!(Reason::from_number(Reason::COUNT as u32), None);
    }
}
