//! tc egress of the uplink: a packet of a known flow is translated; a new flow is classified, then
//! admitted or refused; what belongs to no enabled zone takes the default egress.

use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::family::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, V4, V6};
use egress_common::key::{TCP, UDP, realm};
use egress_common::packet::{self, Fragment, IcmpKind, Options, control};
use egress_common::reason::Reason;
use egress_common::settings::{Zone, zone_flag};
use egress_common::slot::{State, flag};
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use crate::allocate::Scratch;
use crate::classify::{self, Configuration, Owner};
use crate::family::{End, Family};
use crate::flow::{self, Arrival, Found};
use crate::fragment::{self, Fragmented};
use crate::frame::Frame;
use crate::icmp::Leaving;
use crate::link;
use crate::options;
use crate::outgoing::{Outgoing, next};
use crate::policy::{self, Policed};
use crate::translate::{self, Endpoint};
use crate::verdict;
use crate::{allocate, forward, globals, icmp, probe, refuse, report, slots};

pub fn run(ctx: &TcContext) -> i32 {
    let tag = globals::tag_field().read(verdict::mark(ctx));
    if matches!(tag, Tag::Done) {
        // Translated already: it was redirected here.
        return verdict::NEXT;
    }
    let Some(network) = link::network(ctx) else {
        return report::drop(ctx, Reason::Malformed);
    };
    match network.ethertype {
        ETHERTYPE_IPV4 => packet::<V4>(ctx, network.offset, tag),
        ETHERTYPE_IPV6 => packet::<V6>(ctx, network.offset, tag),
        _ => other(ctx, tag),
    }
}

/// Neither IPv4 nor IPv6. What entered as a packet of an enabled zone was one of them.
#[inline(always)]
fn other(ctx: &TcContext, tag: Tag) -> i32 {
    if let Tag::Zone(number) = tag
        && Configuration::now()
            .and_then(|configuration| configuration.zone(number as u32))
            .is_some_and(|zone| zone.flags & zone_flag::ENABLED != 0)
    {
        return report::drop(ctx, Reason::Malformed);
    }
    verdict::done(ctx)
}

/// An IP packet.
#[inline(always)]
fn packet<A: Scratch + Fragmented + Policed>(ctx: &TcContext, offset: usize, tag: Tag) -> i32 {
    let Some(packet) = Outgoing::<A>::scratch() else {
        return report::drop(ctx, Reason::Contended);
    };
    let mut step = read(ctx, packet, offset, tag);
    if step == next::KNOWN {
        step = known(ctx, packet);
    }
    if step == next::MESSAGE {
        step = message(ctx, packet);
    }
    if step == next::LATER {
        step = fragment::out::known(ctx, packet);
    }
    // Each step is a function of its own, called from here alone: together they would not fit the
    // stack, and the verifier looks at each once.
    if step == next::CLASSIFY {
        step = first(ctx, packet);
    }
    if step == next::ADMIT && packet.is_first() {
        step = fragment::out::foreseen(ctx, packet);
    }
    if step == next::ADMIT {
        step = allocate::open(ctx, packet);
    }
    if step == next::FORWARD {
        step = forward::hand_over(ctx, packet);
    }
    if step == next::LEAVE && packet.is_first() {
        step = fragment::out::first(ctx, packet);
    }
    if step == next::LEAVE {
        step = leave(ctx, packet);
        if step == verdict::NEXT && packet.is_first() {
            step = fragment::out::translated(ctx, packet);
        }
    } else if step == next::PASS {
        step = fragment::out::pass(ctx, packet);
    }
    match step {
        next::REFUSE => {
            if packet.is_first() {
                fragment::out::refuse(ctx, packet);
            }
            refuse::run(ctx, packet)
        }
        next::HOLD => fragment::out::later(ctx, packet),
        next::RELEASE => fragment::out::release::<A>(ctx),
        verdict => verdict,
    }
}

/// Reads the packet's headers.
#[inline(never)]
fn read<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>, offset: usize, tag: Tag) -> i32 {
    let Ok(ip) = A::ip(ctx, &Frame::now(ctx), offset) else {
        return report::drop(ctx, Reason::Malformed);
    };
    let Some(configuration) = Configuration::now() else {
        return report::drop(ctx, Reason::Blocked);
    };
    let tag = configuration.still(tag);
    packet.begin(ip, &configuration, tag);
    packet.cut = false;
    if packet.has_ports() {
        if packet.read_transport(&Frame::now(ctx)).is_ok() {
            return next::KNOWN;
        }
        // Nobody's business unless it is bound.
        packet.cut = true;
    } else if packet.is_fragment() && !matches!(tag, Tag::Unbound(_)) {
        // Behind a masquerade rule nobody's may look like one of a zone's datagram.
        return next::LATER;
    }
    if ip.protocol == A::ICMP && matches!(ip.fragment, Fragment::Whole) {
        return next::MESSAGE;
    }
    next::CLASSIFY
}

/// A packet that may belong to a flow.
#[inline(never)]
pub fn known<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(found) = flow::outgoing(&packet.key) else {
        return unused(ctx, packet);
    };
    packet.slot = found.index;
    match live(packet, &found) {
        Live::Translate => next::LEAVE,
        Live::Forward => {
            // SAFETY: a live map value that was checked to be this packet's.
            packet.zone = unsafe { (*found.slot).zone } as u32;
            next::FORWARD
        }
        Live::Anew => {
            if slots::supersede(&found, slots::now()) {
                next::CLASSIFY
            } else {
                report::drop(ctx, Reason::Contended)
            }
        }
        Live::Over => {
            packet.zone = 0;
            packet.redirect = found.word.has(flag::REDIRECT);
            packet.reason = Reason::NoFlow;
            next::REFUSE
        }
    }
}

/// A packet of no flow that is used. If there is one of this server between these endpoints whose port may be another server's by now
/// (CLU-3), a segment of it is refused, whatever is configured by now (SAFE-1); but for the inside it is over once it opens a new one,
/// or sends another datagram: that may leave by another server.
#[inline(always)]
fn unused<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    if !flow::lapsed::<A>() {
        return next::CLASSIFY;
    }
    let Some(found) = flow::between(&packet.key) else {
        return next::CLASSIFY;
    };
    if packet.ip.protocol == TCP && !packet.segment.opens() {
        packet.zone = 0;
        packet.redirect = found.word.has(flag::REDIRECT);
        packet.reason = Reason::Lapsed;
        return next::REFUSE;
    }
    if !slots::supersede(&found, slots::now()) {
        return report::drop(ctx, Reason::Contended);
    }
    next::CLASSIFY
}

/// An ICMP message: an error about a flow leaves from the flow's egress IP (NAT-4). The kernel makes such
/// errors too, on sockets of nobody.
#[inline(never)]
fn message<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    match icmp::leaving(ctx, &packet.outer(), &mut packet.key) {
        Ok(Leaving::Translated) => verdict::done(ctx),
        // Whoever translates the flow has seen what it is about, and judges it.
        Ok(Leaving::Forwarded { zone }) => {
            packet.zone = zone;
            next::FORWARD
        }
        Ok(Leaving::About) => {
            packet.about = packet.key.protocol;
            next::CLASSIFY
        }
        Ok(Leaving::Other) => next::CLASSIFY,
        Err(reason) => report::drop(ctx, reason),
    }
}

/// What a packet of a known flow deserves.
pub enum Live {
    Translate,
    /// Another server translates it.
    Forward,
    /// The flow is over and this packet opens a new one.
    Anew,
    /// The flow is over.
    Over,
}

#[inline(always)]
pub fn live<A: Family>(packet: &Outgoing<A>, found: &Found<A>) -> Live {
    let word = found.word;
    let alive = if word.has(flag::FORWARDED) {
        Live::Forward
    } else {
        Live::Translate
    };
    if packet.ip.protocol != TCP {
        return alive;
    }
    let over = word.state as u8 == State::Closed as u8;
    if packet.segment.opens() && (over || word.has(flag::FIN_IN | flag::FIN_OUT)) {
        return Live::Anew;
    }
    // A RST is the answer that the other end wants too.
    if over && word.has(flag::EXPIRED) && !packet.segment.has(control::RST) {
        return Live::Over;
    }
    alive
}

/// Advances the flow and sends the packet from its egress IP.
#[inline(never)]
pub fn leave<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    let Some(found) = flow::at::<A>(packet.slot) else {
        return report::drop(ctx, Reason::Contended);
    };
    if found.word.has(flag::FORWARDED) {
        // Admitted by another CPU meanwhile, for another server: it has no egress IP.
        return report::drop(ctx, Reason::Contended);
    }
    let frame = Frame::now(ctx);
    flow::advance_by(
        ctx,
        &found,
        &Arrival {
            way: Way::Out,
            protocol: packet.ip.protocol,
            segment: &packet.segment,
            transport: packet.ip.transport(),
            length: packet.ip.length,
            frame: &frame,
        },
    );
    // SAFETY: a live map value that was checked to be this packet's.
    let egress = unsafe {
        Endpoint {
            address: (*found.slot).egress,
            port: (*found.slot).egress_port,
        }
    };
    let from = Endpoint {
        address: packet.key.inside,
        port: packet.key.inside_port,
    };
    match translate::rewrite(ctx, packet.place(), End::Source, from, egress) {
        Ok(()) => verdict::done(ctx),
        Err(()) => report::drop(ctx, Reason::Malformed),
    }
}

/// A packet without a flow.
#[inline(never)]
fn first<A: Family + Policed>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    if is_link_signalling(ctx, packet) {
        return verdict::done(ctx);
    }
    if A::egress(&packet.ip.source).is_some() {
        return report::drop(ctx, Reason::ClaimsEgressIp);
    }
    let step = probe::first(ctx, packet);
    if step != probe::NONE {
        return step;
    }
    let Some(configuration) = Configuration::of(packet.version) else {
        return report::drop(ctx, Reason::Blocked);
    };
    let number = match classify::leaving(ctx, &configuration, packet.tag, packet.ip.source) {
        Owner::Zone(number) => number,
        owner if owner.is_bound(&configuration) => return report::drop(ctx, Reason::TagLost),
        _ => return verdict::done(ctx),
    };
    let Some(zone) = configuration.zone(number) else {
        return report::drop(ctx, Reason::Blocked);
    };
    if zone.flags & zone_flag::ENABLED == 0 {
        return verdict::done(ctx);
    }
    if exempt(packet, &configuration, &zone, packet.key.origin_port) {
        // Later fragments have no port to be exempt by: they go by the first one.
        return if packet.is_first() && !exempt(packet, &configuration, &zone, 0) {
            next::PASS
        } else {
            verdict::done(ctx)
        };
    }
    packet.zone = number;
    packet.pool = zone.pool;
    packet.exit = zone.exit;
    packet.only = 0;
    packet.policy = 0;
    packet.redirect = false;
    packet.kind = 0;
    if !is_of_a_host(packet.ip.source) || !is_of_a_host(packet.ip.destination) {
        return report::drop(ctx, Reason::Multicast);
    }
    if !matches!(packet.ip.fragment, Fragment::Whole) && !packet.is_fragment() {
        return report::drop(ctx, Reason::Fragment);
    }
    if packet.cut {
        let whole = matches!(packet.ip.fragment, Fragment::Whole);
        return report::drop(
            ctx,
            if whole {
                Reason::Malformed
            } else {
                Reason::FragmentMalformed
            },
        );
    }
    if packet.is_fragment() && !packet.has_ports() {
        return next::HOLD;
    }
    // Before SYNs are told from others: what a policy leaves on the default egress has no flow to be known by.
    let decided = policy::decide(&configuration, packet);
    if decided == next::PASS {
        // Later fragments go by the first one.
        return if packet.is_first() {
            next::PASS
        } else {
            verdict::done(ctx)
        };
    }
    if packet.ip.protocol == A::ICMP {
        return query(ctx, packet, &configuration);
    }
    packet.redirect = packet.key.realm != realm::COMMON && redirected(ctx, packet);
    if packet.ip.destination.is_link_local() {
        packet.reason = Reason::Ipv6;
        return next::REFUSE;
    }
    if !packet::translated(packet.ip.protocol) {
        packet.reason = Reason::Protocol;
        return next::REFUSE;
    }
    if decided != next::ADMIT {
        return decided;
    }
    if packet.ip.protocol == TCP {
        if !packet.segment.opens() {
            packet.reason = Reason::NoFlow;
            return next::REFUSE;
        }
        packet.options = options::read(
            ctx,
            packet.ip.transport_at as u32,
            packet.segment.header as u32,
        );
    } else {
        packet.options = Options::default();
    }
    next::ADMIT
}

/// Whether the packet is this host's own neighbour discovery: it stays on the link, and is no zone's.
#[inline(always)]
fn is_link_signalling<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> bool {
    packet.ip.protocol == A::ICMP
        && verdict::ingress_interface(ctx) == 0
        && Frame::now(ctx)
            .u8(packet.ip.transport())
            .is_some_and(A::never_crosses)
}

/// Whether an address may be one host's. The kernel forwards no others; who makes packets himself can.
#[inline(always)]
pub fn is_of_a_host<A: Family>(address: A) -> bool {
    !address.is_multicast() && !address.is_nobodys()
}

/// Whether an enabled zone's packet takes the default egress all the same (POLICY-6, POLICY-7). An error does
/// if what it is about did.
#[inline(always)]
pub fn exempt<A: Family>(
    packet: &Outgoing<A>,
    configuration: &Configuration,
    zone: &Zone,
    port: u16,
) -> bool {
    if packet.about == TCP && zone.flags & zone_flag::TCP == 0 {
        return true;
    }
    if packet.about == UDP && zone.flags & zone_flag::UDP == 0 {
        return true;
    }
    classify::exempt(configuration, packet.ip.destination, port)
}

/// Queries take the default egress unless configured otherwise (POLICY-7); errors about no flow stay.
#[inline(always)]
fn query<A: Family>(ctx: &TcContext, packet: &Outgoing<A>, configuration: &Configuration) -> i32 {
    let kind = Frame::now(ctx).u8(packet.ip.transport());
    if kind.is_some_and(A::never_crosses) {
        return report::drop(ctx, Reason::Ipv6);
    }
    match kind.map(A::icmp_kind) {
        Some(IcmpKind::Query) if configuration.settings().icmp_queries != 0 => verdict::done(ctx),
        Some(IcmpKind::Query) => report::drop(ctx, Reason::PingDropped),
        Some(IcmpKind::Error) => report::drop(ctx, Reason::IcmpError),
        None => report::drop(ctx, Reason::Malformed),
    }
}

/// Whether replies to a realm's packet must be handed to its interface: not if netfilter has
/// rewritten the source to an address of this host, which conntrack will undo. Asked as for a packet
/// that comes in by the realm's interface, so that a realm in a VRF is looked up in its own table.
#[inline(never)]
fn redirected<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> bool {
    if verdict::ingress_interface(ctx) == 0 {
        return false;
    }
    use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NOT_FWDED, bpf_fib_lookup};
    // SAFETY: all-zero is a valid parameter block.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.ifindex = verdict::ingress_interface(ctx);
    A::ask_route(&mut query, packet.ip.destination, packet.ip.source);
    // SAFETY: the block is valid and its size is given.
    let answer = unsafe {
        aya_ebpf::helpers::bpf_fib_lookup(
            ctx.skb.skb.cast(),
            &raw mut query,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    answer != BPF_FIB_LKUP_RET_NOT_FWDED as i64
}
