//! Every map of the data plane. The daemon pins each under its name and sizes it at load time; the
//! sizes here are the defaults. Meanings and layouts are in `egress_common`.

use crate::allocate::Open;
use crate::extensions::Extensions;
use crate::fragment::{Single, Work};
use crate::held::Buffer;
use crate::hop::{HOPS, Hop};
use crate::index::Walk;
use crate::outgoing::Outgoing;
use crate::refuse::Quote;
use crate::reply::Incoming;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_timer};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use egress_common::count::Count;
use egress_common::ended::Ended;
use egress_common::expiry::Progress;
use egress_common::family::{V4, V6};
use egress_common::fragment::{COUNTERS, DATAGRAMS, Datagram, FRAMES, GROUPS};
use egress_common::free::FreeList;
use egress_common::index::{Bucket, HashKey, buckets};
use egress_common::key::{FlowKey, OriginKey, Reference, ReverseKey};
use egress_common::layout::Layout;
use egress_common::peer::{MAX_PEERS, Owners, Peer, PeerNumber, Traffic, Tunnel, Underlay};
use egress_common::policy::{MAX_RULES, MAX_SETS, PORTS, Rule, RuleSet};
use egress_common::probe::{MAX_PROBES, Probe};
use egress_common::reason::{self, Counter, Event};
use egress_common::record::Head;
use egress_common::reply;
use egress_common::settings::{
    Candidate, CgroupKey, CgroupPath, Device, EgressAddress, InterfaceKey, MAX_CANDIDATES,
    MAX_EXITS, MAX_MARKS, MAX_ZONES, MarkSelector, Pool, PrefixV4, PrefixV6, Selected, Settings,
    Switch, Zone,
};
use egress_common::share::{Forward, Target};
use egress_common::siphash::Secret;
use egress_common::slot::Slot;
use egress_common::usage::WallClock;

const FLOWS: usize = 262_144;
const BUCKETS: usize = buckets(FLOWS as u32) as usize;
const ORIGINS: usize = 65_536;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

// What is pinned, and by whom.
#[btf_map]
pub static LAYOUT: Array<Layout, 1> = Array::new();
/// Drawn by the daemon when the maps are first made.
#[btf_map]
pub static SECRET: Array<Secret, 1> = Array::new();
/// The wall clock, which the daemon tells.
#[btf_map]
pub static WALL_CLOCK: Array<WallClock, 1> = Array::new();
/// As long as the indexes.
#[btf_map]
pub static HASH_KEY: Array<HashKey, 1> = Array::new();

// Configuration: two versions and a switch (SAFE-5).
#[btf_map]
pub static SWITCH: Array<Switch, 1> = Array::new();
#[btf_map]
pub static SETTINGS: Array<Settings, 2> = Array::new();
#[btf_map]
pub static ZONES: Array<Zone, { 2 * MAX_ZONES as usize }> = Array::new();
#[btf_map]
pub static POOLS: Array<Pool, { 2 * MAX_EXITS as usize }> = Array::new();
#[btf_map]
pub static CANDIDATES4: Array<Candidate<V4>, { 2 * MAX_CANDIDATES as usize }> = Array::new();
#[btf_map]
pub static CANDIDATES6: Array<Candidate<V6>, { 2 * MAX_CANDIDATES as usize }> = Array::new();
#[btf_map]
pub static MARKS: Array<MarkSelector, { 2 * MAX_MARKS as usize }> = Array::new();
/// By id. Preallocated: what a tracepoint inserts must not fail for want of memory.
#[btf_map]
pub static CGROUPS: HashMap<CgroupKey, Selected, 8_192> = HashMap::new();
#[btf_map]
pub static CGROUP_PATHS: HashMap<CgroupPath, Selected, 8_192, NO_PREALLOC> = HashMap::new();
/// How often a selected cgroup was created: the daemon looks when it has changed.
#[btf_map]
pub static CGROUP_BIRTHS: Array<u64, 1> = Array::new();
#[btf_map]
pub static INTERFACES: HashMap<InterfaceKey, Selected, 8_192, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SOURCES4: LpmTrie<PrefixV4, Selected, 131_072> = LpmTrie::new();
#[btf_map]
pub static SOURCES6: LpmTrie<PrefixV6, Selected, 131_072> = LpmTrie::new();
#[btf_map]
pub static EXEMPT4: LpmTrie<PrefixV4, Selected, 16_384> = LpmTrie::new();
#[btf_map]
pub static EXEMPT6: LpmTrie<PrefixV6, Selected, 16_384> = LpmTrie::new();

// Egress policies, in two versions as well: the set of rules that each value of a field satisfies.
#[btf_map]
pub static POLICY_ZONES: Array<u32, { 2 * MAX_ZONES as usize }> = Array::new();
#[btf_map]
pub static POLICY_FROM4: LpmTrie<PrefixV4, Selected, 65_536> = LpmTrie::new();
#[btf_map]
pub static POLICY_FROM6: LpmTrie<PrefixV6, Selected, 65_536> = LpmTrie::new();
#[btf_map]
pub static POLICY_TO4: LpmTrie<PrefixV4, Selected, 65_536> = LpmTrie::new();
#[btf_map]
pub static POLICY_TO6: LpmTrie<PrefixV6, Selected, 65_536> = LpmTrie::new();
#[btf_map]
pub static POLICY_PORTS: Array<u32, { 2 * PORTS as usize }> = Array::new();
#[btf_map]
pub static POLICY_SETS: Array<RuleSet, { 2 * MAX_SETS as usize }> = Array::new();
#[btf_map]
pub static POLICY_RULES: Array<Rule, { 2 * MAX_RULES as usize }> = Array::new();

// What holds whatever the version.
#[btf_map]
pub static EGRESS4: HashMap<V4, EgressAddress, 65_536, NO_PREALLOC> = HashMap::new();
/// Version 0: it is not versioned, but the address stands aligned that way.
#[btf_map]
pub static EGRESS6: LpmTrie<PrefixV6, EgressAddress, 65_536> = LpmTrie::new();
#[btf_map]
pub static DEVICES: HashMap<u32, Device, 1_024, NO_PREALLOC> = HashMap::new();

// Other servers, and what is theirs (FWD-5, FWD-6).
#[btf_map]
pub static TUNNEL: Array<Tunnel, 1> = Array::new();
#[btf_map]
pub static PEERS: Array<Peer, { MAX_PEERS as usize }> = Array::new();
#[btf_map]
pub static PEER_NUMBERS: HashMap<Underlay, PeerNumber, { MAX_PEERS as usize }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
pub static PEER_TRAFFIC: PerCpuArray<Traffic, { MAX_PEERS as usize }> = PerCpuArray::new();
/// Of IPv6 ranges the owner stands in `EGRESS6`.
#[btf_map]
pub static SLICES4: HashMap<V4, Owners, 65_536, NO_PREALLOC> = HashMap::new();
/// Where new connections of pools go that this server owns nothing of, by this server's number of the pool, or of the
/// exit (FWD-2).
#[btf_map]
pub static FORWARDS: HashMap<u32, Forward, { MAX_EXITS as usize }, NO_PREALLOC> = HashMap::new();
/// What tunnel ids of other servers' connections mean here.
#[btf_map]
pub static TARGETS: HashMap<u32, Target, { MAX_EXITS as usize }, NO_PREALLOC> = HashMap::new();

// Flows and counts.
#[btf_map]
pub static FLOWS4: Array<Bucket, BUCKETS, MMAPABLE> = Array::new();
#[btf_map]
pub static REVERSE4: Array<Bucket, BUCKETS, MMAPABLE> = Array::new();
#[btf_map]
pub static SLOTS4: Array<Slot<V4>, FLOWS, MMAPABLE> = Array::new();
#[btf_map]
pub static FREE_SLOTS4: Array<FreeList, 256> = Array::new();
#[btf_map]
pub static ORIGINS4: HashMap<OriginKey<V4>, Reference, ORIGINS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static COUNTS4: Array<Count<V4>, ORIGINS, MMAPABLE> = Array::new();
#[btf_map]
pub static FREE_COUNTS4: Array<FreeList, 256> = Array::new();
#[btf_map]
pub static FLOWS6: Array<Bucket, BUCKETS, MMAPABLE> = Array::new();
#[btf_map]
pub static REVERSE6: Array<Bucket, BUCKETS, MMAPABLE> = Array::new();
#[btf_map]
pub static SLOTS6: Array<Slot<V6>, FLOWS, MMAPABLE> = Array::new();
#[btf_map]
pub static FREE_SLOTS6: Array<FreeList, 256> = Array::new();
#[btf_map]
pub static ORIGINS6: HashMap<OriginKey<V6>, Reference, ORIGINS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static COUNTS6: Array<Count<V6>, ORIGINS, MMAPABLE> = Array::new();
#[btf_map]
pub static FREE_COUNTS6: Array<FreeList, 256> = Array::new();

// Datagrams that come in fragments, and frames that wait for their first.
#[btf_map]
pub static DATAGRAMS4: Array<Datagram<V4>, DATAGRAMS> = Array::new();
#[btf_map]
pub static DATAGRAMS6: Array<Datagram<V6>, DATAGRAMS> = Array::new();
#[btf_map]
pub static DATAGRAM_LOCKS4: Array<Single, { 2 * GROUPS as usize }> = Array::new();
#[btf_map]
pub static DATAGRAM_LOCKS6: Array<Single, { 2 * GROUPS as usize }> = Array::new();
#[btf_map]
pub static HELD: Array<Buffer, FRAMES> = Array::new();
#[btf_map]
pub static IDENTIFICATIONS: Array<Single, { COUNTERS as usize }> = Array::new();

/// Connections of the daemon's own, by their sockets' cookies (POOL-10).
#[btf_map]
pub static PROBES: HashMap<u64, Probe, { MAX_PROBES as usize }, NO_PREALLOC> = HashMap::new();

/// The sweep's timer and how far it got.
#[repr(C)]
pub struct Sweeper {
    pub timer: bpf_timer,
    pub progress: Progress,
}

#[btf_map]
pub static SWEEPER: Array<Sweeper, 1> = Array::new();

// Counters, the log, and replies.
#[btf_map]
pub static REASONS: PerCpuArray<Counter, { reason::COUNTERS }> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, 262_144> = RingBuf::new();
/// What the flow log is told: records that say by themselves what they are ([`egress_common::record`]).
#[btf_map]
pub static FLOW_LOG: RingBuf<Head, 4_194_304> = RingBuf::new();
/// Flows that the sweep has ended and whose ends the daemon is to tell.
#[btf_map]
pub static ENDED: RingBuf<Ended, 65_536> = RingBuf::new();
#[btf_map]
pub static REPLIES: PerCpuArray<reply::Bucket, 1> = PerCpuArray::new();

/// A scratch record for each family, in one map: a program may use 64 maps.
#[repr(C)]
pub struct Both<T, U> {
    pub four: T,
    pub six: U,
}

impl<T, U> Both<T, U> {
    /// The record for IPv4, of this CPU's two.
    #[inline(always)]
    pub fn four(both: *mut Self) -> *mut T {
        // SAFETY: a map value.
        unsafe { &raw mut (*both).four }
    }

    /// The record for IPv6.
    #[inline(always)]
    pub fn six(both: *mut Self) -> *mut U {
        // SAFETY: as above.
        unsafe { &raw mut (*both).six }
    }
}

/// What one new flow needs between the callbacks of its allocation; not pinned.
#[btf_map]
pub static SCRATCH_OPEN: PerCpuArray<Both<Open<V4>, Open<V6>>, 1> = PerCpuArray::new();
/// A walk by keys of either family.
type Walks<T, U> = Both<Walk<T>, Walk<U>>;

/// Walks through the indexes; not pinned.
#[btf_map]
pub static SCRATCH_WALK_FLOWS: PerCpuArray<Walks<FlowKey<V4>, FlowKey<V6>>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH_WALK_REVERSE: PerCpuArray<Walks<ReverseKey<V4>, ReverseKey<V6>>, 1> =
    PerCpuArray::new();
/// Next hops of live flows; not pinned.
#[btf_map]
pub static SCRATCH_HOPS: PerCpuArray<Hop, HOPS> = PerCpuArray::new();
/// A quoted packet for an ICMP error; not pinned.
#[btf_map]
pub static SCRATCH_QUOTE: PerCpuArray<Quote, 1> = PerCpuArray::new();
/// A piece of an ICMP message whose checksum is verified; not pinned.
#[btf_map]
pub static SCRATCH_PIECE: PerCpuArray<crate::icmp::Piece, 1> = PerCpuArray::new();
/// One tick of the sweep; not pinned.
#[btf_map]
pub static SCRATCH_SWEEP: PerCpuArray<crate::sweep::Scratch, 1> = PerCpuArray::new();
/// One packet between the steps of the uplink's program; not pinned.
#[btf_map]
pub static SCRATCH_OUTGOING: PerCpuArray<Both<Outgoing<V4>, Outgoing<V6>>, 1> = PerCpuArray::new();
/// One packet between the steps of the program that takes replies; not pinned.
#[btf_map]
pub static SCRATCH_INCOMING4: PerCpuArray<Incoming<V4>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH_INCOMING6: PerCpuArray<Incoming<V6>, 1> = PerCpuArray::new();
/// IPv6 extension headers; not pinned.
#[btf_map]
pub static SCRATCH_EXTENSIONS: PerCpuArray<Extensions, 1> = PerCpuArray::new();
/// The path of a cgroup; not pinned.
#[btf_map]
pub static SCRATCH_PATH: PerCpuArray<CgroupPath, 1> = PerCpuArray::new();
/// One fragment while its datagram is looked up; not pinned.
#[btf_map]
pub static SCRATCH_FRAGMENT: PerCpuArray<Both<Work<V4>, Work<V6>>, 1> = PerCpuArray::new();
/// A list of TCP options; not pinned.
#[btf_map]
pub static SCRATCH_OPTIONS: PerCpuArray<crate::options::List, 1> = PerCpuArray::new();
