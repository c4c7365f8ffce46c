//! A packet on its way out, between the steps of the uplink's program.
//!
//! It lives in a per-CPU map, not on the stack: the steps are separate functions, and together they
//! would not fit the 512 bytes a program has.

use egress_common::key::{FlowKey, TCP, realm};
use egress_common::packet::{self, Fragment, Ip, Malformed, Options, Segment};
use egress_common::reason::Reason;
use egress_common::settings::zone_flag;
use egress_common::tag::Tag;

use crate::classify::Configuration;
use crate::family::Family;
use crate::frame::Frame;
use crate::icmp::Outer;
use crate::translate::Place;

/// Everything the steps know of the packet.
#[repr(C)]
pub struct Outgoing<A> {
    pub ip: Ip<A>,
    pub key: FlowKey<A>,
    /// Of TCP packets; otherwise left over from an earlier one.
    pub segment: Segment,
    /// Of a SYN that opens a flow.
    pub options: Options,
    /// Its protocol, or that of the packet which it quotes as an ICMP error.
    pub about: u8,
    pub tag: Tag,
    /// Version of the configuration that all steps go by (SAFE-5).
    pub version: u32,
    /// Zone number once it is known, else 0.
    pub zone: u32,
    /// Pool number once it is known.
    pub pool: u32,
    /// What it may use of the pool: the number of an exit; 0: all of it.
    pub exit: u32,
    /// The one candidate that a policy or a probe lets it leave by, from 1; 0: any of the pool's.
    pub only: u32,
    /// The policy that decided, from 1; 0: none.
    pub policy: u32,
    /// Cookie of the socket of a [`crate::probe`], else 0.
    pub probe: u64,
    /// Why it is refused, once it is.
    pub reason: Reason,
    /// The slot it leaves by, once that is known.
    pub slot: u32,
    /// Replies leave by the interface the packet came in by (realms).
    pub redirect: bool,
    /// Of a flow that two servers share: `flag::FORWARDED` or `flag::VISITOR`; else 0.
    pub kind: u16,
    /// The server that is to translate a forwarded flow, and the tunnel id under which it goes there.
    pub peer: u32,
    pub target: u32,
    /// A first fragment without a whole transport header.
    pub cut: bool,
}

/// What a step says should happen next: one of these, or a verdict.
///
/// Positive, because a negative 32-bit value that one function of a program returns to another is
/// compared by its caller as if it had been sign-extended, and it has not been.
pub mod next {
    /// The packet belongs to no flow yet.
    pub const CLASSIFY: i32 = 0x100;
    /// It may belong to a flow.
    pub const KNOWN: i32 = 0x104;
    /// It is an ICMP message.
    pub const MESSAGE: i32 = 0x105;
    /// It opens a flow that its zone allows.
    pub const ADMIT: i32 = 0x101;
    /// It leaves by its slot.
    pub const LEAVE: i32 = 0x102;
    /// It belongs to a flow that is over.
    pub const OVER: i32 = 0x106;
    /// It is refused for its reason.
    pub const REFUSE: i32 = 0x103;
    /// A later fragment of something that must not pass: it is held unless its first one is known.
    pub const HOLD: i32 = 0x10a;
    /// It is a later fragment.
    pub const LATER: i32 = 0x109;
    /// A first fragment that takes the default egress, and the later ones with it.
    pub const PASS: i32 = 0x107;
    /// It arrived at the wrong server: it is sent on to its owner.
    pub const ELSEWHERE: i32 = 0x10b;
    /// Another server translates it.
    pub const FORWARD: i32 = 0x10c;
    /// It belongs to a flow of another server, which gets it now that it is translated back.
    pub const HOME: i32 = 0x10d;
    /// It is a reply for another server, too long to be sent there.
    pub const TOO_LONG: i32 = 0x10e;
    /// A first fragment has been dealt with; later ones that were held follow it.
    pub const RELEASE: i32 = 0x108;
}

impl<A: Family> Outgoing<A> {
    /// This CPU's record.
    #[inline(always)]
    pub fn scratch() -> Option<&'static mut Self> {
        // SAFETY: programs are not preempted by others on the same CPU, and each asks only once.
        A::outgoing().map(|record| unsafe { &mut *record })
    }

    /// A packet with this header. Its ports are still to be read.
    #[inline(always)]
    pub fn begin(&mut self, ip: Ip<A>, configuration: &Configuration, tag: Tag) {
        self.ip = ip;
        self.about = ip.protocol;
        self.tag = tag;
        self.probe = 0;
        self.version = configuration.version;
        self.key = FlowKey {
            inside: ip.source,
            origin: ip.destination,
            inside_port: 0,
            origin_port: 0,
            protocol: ip.protocol,
            pad: 0,
            realm: realm_of(configuration, tag),
        };
    }

    /// Whether the packet can belong to a flow.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        packet::translated(self.ip.protocol) && !matches!(self.ip.fragment, Fragment::Later)
    }

    /// Whether it is a fragment of something that can belong to a flow.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        packet::translated(self.ip.protocol) && !matches!(self.ip.fragment, Fragment::Whole)
    }

    /// Whether it is the first fragment of something that can belong to a flow.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        packet::translated(self.ip.protocol) && matches!(self.ip.fragment, Fragment::First)
    }

    /// The packet as that of an ICMP message.
    #[inline(always)]
    pub fn outer(&self) -> Outer<A> {
        Outer {
            network: self.ip.network_at,
            message: self.ip.transport_at,
            length: self.ip.payload(),
            source: self.ip.source,
            destination: self.ip.destination,
        }
    }

    /// Where its headers are.
    #[inline(always)]
    pub fn place(&self) -> Place {
        Place {
            network: self.ip.network(),
            transport: self.ip.transport(),
            protocol: self.ip.protocol,
        }
    }

    /// Reads the transport header.
    ///
    /// # Errors
    /// Cut short, or lengths that contradict each other.
    #[inline(always)]
    pub fn read_transport(&mut self, frame: &Frame) -> Result<(), Malformed> {
        let transport = self.ip.transport();
        let rest = self.ip.payload();
        (self.key.inside_port, self.key.origin_port) = packet::ports(frame, transport)?;
        if self.ip.protocol == TCP {
            self.segment = packet::tcp(frame, transport, rest)?;
            Ok(())
        } else if matches!(self.ip.fragment, Fragment::First) {
            packet::udp_first(frame, transport, rest)
        } else {
            packet::udp(frame, transport, rest)
        }
    }
}

/// The address space of a packet's source (ZONE-2).
#[inline(always)]
fn realm_of(configuration: &Configuration, tag: Tag) -> u16 {
    if let Tag::Zone(number) = tag
        && let Some(zone) = configuration.zone(number as u32)
        && zone.flags & zone_flag::REALM != 0
    {
        return realm::of_zone(number);
    }
    realm::COMMON
}
