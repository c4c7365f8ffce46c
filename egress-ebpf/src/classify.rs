//! Which zone a packet belongs to (ZONE-2, ZONE-3): mark, then cgroup, then interface, then the
//! longest source prefix.

use core::ptr::read_volatile;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id};
use aya_ebpf::programs::TcContext;
use egress_common::family::{V4, V6};
use egress_common::settings::{
    CgroupKey, InterfaceKey, MAX_MARKS, MAX_ZONES, Prefixed, Selected, Settings, VERSION_BITS,
    Zone, role, zone_flag,
};
use egress_common::tag::Tag;

use crate::globals;
use crate::maps::{
    CGROUPS, DEVICES, EXEMPT4, EXEMPT6, INTERFACES, MARKS, SETTINGS, SOURCES4, SOURCES6, SWITCH,
    ZONES,
};
use crate::verdict;

/// The configuration that counts for this packet.
#[derive(Clone, Copy)]
pub struct Configuration {
    pub version: u32,
    /// Of one that was read by [`Configuration::now`]: which one it is, as far as tags tell.
    generation: u32,
    settings: &'static Settings,
}

impl Configuration {
    /// Reads the switch: once a packet, which carries the version on (SAFE-5).
    #[inline(always)]
    pub fn now() -> Option<Self> {
        let number = SWITCH.get(0)?.version;
        Some(Self {
            generation: number & (globals::tag_field().generations() - 1),
            ..Self::of(number)?
        })
    }

    /// The configuration of a version that was read before.
    #[inline(always)]
    pub fn of(version: u32) -> Option<Self> {
        let version = version & 1;
        let settings = SETTINGS.get(version)?;
        Some(Self {
            version,
            generation: 0,
            settings,
        })
    }

    /// Which one it is, for a packet that is in no zone.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What a tag says now: that a packet was in no zone under another configuration is nothing.
    #[inline(always)]
    pub fn still(&self, tag: Tag) -> Tag {
        match tag {
            Tag::Unbound(generation) if generation != self.generation => Tag::None,
            tag => tag,
        }
    }

    #[inline(always)]
    pub fn settings(&self) -> &Settings {
        self.settings
    }

    /// The zone with this number.
    #[inline(always)]
    pub fn zone(&self, number: u32) -> Option<Zone> {
        if number >= MAX_ZONES {
            return None;
        }
        ZONES.get(self.version * MAX_ZONES + number).copied()
    }
}

/// Deepest cgroup level that is looked at.
const LEVELS: u32 = 16;

/// Address families by which a zone can be selected.
pub trait Selectable: Prefixed {
    fn by_source(version: u32, source: Self) -> Option<u32>;
    /// What is exempt about a destination: a port, or everything (0).
    fn exempt(version: u32, destination: Self) -> Option<u32>;
    /// The address the packet's socket is bound to, before netfilter changed the packet.
    fn bound(ctx: &TcContext) -> Option<Self>;
}

#[inline(always)]
fn number(selected: Option<&Selected>) -> Option<u32> {
    selected.map(|selected| selected.zone)
}

impl Selectable for V4 {
    #[inline(always)]
    fn by_source(version: u32, source: Self) -> Option<u32> {
        number(SOURCES4.get(&host4(version, source)))
    }
    #[inline(always)]
    fn exempt(version: u32, destination: Self) -> Option<u32> {
        number(EXEMPT4.get(&host4(version, destination)))
    }
    #[inline(always)]
    fn bound(ctx: &TcContext) -> Option<Self> {
        // SAFETY: the helper takes what the kernel put there, null included after the check.
        let address = unsafe {
            let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
            if sk.is_null() {
                return None;
            }
            let sk = bpf_sk_fullsock(sk);
            if sk.is_null() {
                return None;
            }
            (*sk).src_ip4
        };
        (address != 0).then(|| address.to_ne_bytes())
    }
}

impl Selectable for V6 {
    #[inline(always)]
    fn by_source(version: u32, source: Self) -> Option<u32> {
        number(SOURCES6.get(&host6(version, source)))
    }
    #[inline(always)]
    fn exempt(version: u32, destination: Self) -> Option<u32> {
        number(EXEMPT6.get(&host6(version, destination)))
    }
    #[inline(always)]
    fn bound(ctx: &TcContext) -> Option<Self> {
        // SAFETY: as above.
        let [a, b, c, d] = unsafe {
            let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
            if sk.is_null() {
                return None;
            }
            let sk = bpf_sk_fullsock(sk);
            if sk.is_null() {
                return None;
            }
            // Word by word: the kernel lets nobody read two at once.
            let words = (&raw const (*sk).src_ip6).cast::<u32>();
            [
                read_volatile(words),
                read_volatile(words.add(1)),
                read_volatile(words.add(2)),
                read_volatile(words.add(3)),
            ]
        };
        if a | b | c | d == 0 {
            return None;
        }
        let mut address = [0; 16];
        let (words, _) = address.as_chunks_mut::<4>();
        for (word, value) in words.iter_mut().zip([a, b, c, d]) {
            *word = value.to_ne_bytes();
        }
        Some(address)
    }
}

/// Trie key of one IPv4 address.
#[inline(always)]
pub fn host4(version: u32, address: V4) -> Key<<V4 as Prefixed>::Data> {
    Key::new(VERSION_BITS + 32, V4::data(version, address))
}

/// Trie key of one IPv6 address.
#[inline(always)]
pub fn host6(version: u32, address: V6) -> Key<<V6 as Prefixed>::Data> {
    Key::new(VERSION_BITS + 128, V6::data(version, address))
}

/// Whether a packet to `port` of this destination is exempt (POLICY-7): a destination wholly, a
/// resolver by its port. `port` is 0 where the packet has none.
#[inline(always)]
pub fn exempt<A: Selectable>(configuration: &Configuration, destination: A, port: u16) -> bool {
    if configuration.settings().exempt == 0 {
        return false;
    }
    match A::exempt(configuration.version, destination) {
        None => false,
        Some(0) => true,
        Some(only) => only == port as u32,
    }
}

/// The zone of a packet that enters by an inside interface.
#[inline(always)]
pub fn entering<A: Selectable>(
    configuration: &Configuration,
    interface: u32,
    source: A,
) -> Option<u32> {
    let version = configuration.version;
    if configuration.settings().interfaces != 0
        && let Some(zone) = number(
            // SAFETY: four bytes that the daemon writes once.
            unsafe { INTERFACES.get(InterfaceKey { version, interface }) },
        )
    {
        return Some(zone);
    }
    A::by_source(version, source)
}

/// Whose a packet that leaves by an uplink is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// No zone's: it takes the default egress.
    Nobody,
    /// This zone's.
    Zone(u32),
    /// It entered by an inside interface, and what was written into its mark there is gone.
    Unknown,
}

impl Owner {
    fn of(zone: Option<u32>) -> Self {
        zone.map_or(Self::Nobody, Self::Zone)
    }

    /// Whether the packet must not leave untranslated. One whose owner is unknown must not as soon as
    /// any zone is enabled.
    #[inline(always)]
    pub fn is_bound(self, configuration: &Configuration) -> bool {
        match self {
            Self::Nobody => false,
            Self::Zone(number) => configuration
                .zone(number)
                .is_some_and(|zone| zone.flags & zone_flag::ENABLED != 0),
            Self::Unknown => configuration.settings().enabled != 0,
        }
    }
}

/// Whose a packet is that leaves by an uplink.
#[inline(always)]
pub fn leaving<A: Selectable>(
    ctx: &TcContext,
    configuration: &Configuration,
    tag: Tag,
    source: A,
) -> Owner {
    let version = configuration.version;
    let settings = configuration.settings();
    if settings.marks != 0
        && let Some(zone) = by_mark(version, settings.marks, verdict::mark(ctx))
    {
        return Owner::Zone(zone);
    }
    if settings.cgroup_levels != 0
        && let Some(zone) = by_cgroup(ctx, version, settings.cgroup_levels)
    {
        return Owner::Zone(zone);
    }
    let entered = verdict::ingress_interface(ctx);
    let inside = entered != 0
        && DEVICES
            .get_ptr(entered)
            // SAFETY: a map value that the daemon replaces as a whole.
            .is_some_and(|device| unsafe { (*device).role } == role::INSIDE);
    match tag {
        Tag::Zone(zone) => return Owner::Zone(zone as u32),
        // Decided where it entered. Its source may be rewritten by now. Of a packet that came by another
        // interface last, the tag was about what carried it.
        Tag::Unbound(_) if inside => return Owner::Nobody,
        Tag::Unbound(_) | Tag::None | Tag::Done => {}
    }
    if let Some(zone) = A::by_source(version, source) {
        return Owner::Zone(zone);
    }
    if inside {
        return Owner::Unknown;
    }
    if entered == 0
        && let Some(bound) = A::bound(ctx)
        && bound != source
    {
        return Owner::of(A::by_source(version, bound));
    }
    Owner::Nobody
}

#[inline(always)]
fn by_mark(version: u32, marks: u32, mark: u32) -> Option<u32> {
    for index in 0..MAX_MARKS {
        if index >= marks {
            break;
        }
        let selector = MARKS.get(version * MAX_MARKS + index)?;
        if mark & selector.mask == selector.value {
            return Some(selector.zone);
        }
    }
    None
}

/// The deepest selected cgroup wins.
#[inline(always)]
fn by_cgroup(ctx: &TcContext, version: u32, levels: u32) -> Option<u32> {
    for above in 0..LEVELS {
        let level = LEVELS - above;
        if levels >> level & 1 == 0 {
            continue;
        }
        // SAFETY: the helper answers 0 where there is no socket or no such ancestor.
        let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level as i32) };
        if cgroup == 0 {
            continue;
        }
        let key = CgroupKey {
            version: version as u64,
            cgroup,
        };
        // SAFETY: four bytes that the daemon writes once.
        if let Some(zone) = number(unsafe { CGROUPS.get(key) }) {
            return Some(zone);
        }
    }
    None
}
