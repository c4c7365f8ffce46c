//! Constants the daemon sets when it loads the programs.

use core::ptr::read_volatile;

use egress_common::tag::TagField;

#[unsafe(no_mangle)]
static MARK_MASK: u32 = 0xffff_0000;
#[unsafe(no_mangle)]
static MAX_FLOWS: u32 = 262_144;
#[unsafe(no_mangle)]
static MAX_ORIGINS: u32 = 65_536;
#[unsafe(no_mangle)]
static LISTS: u32 = 1;
#[unsafe(no_mangle)]
static LOAD_ID: u64 = 0;
/// Where the running kernel keeps what [`crate::cgroup`] reads: bytes into a structure.
#[unsafe(no_mangle)]
static CGROUP_ROOT: u32 = 0;
#[unsafe(no_mangle)]
static CGROUP_NODE: u32 = 0;
#[unsafe(no_mangle)]
static ROOT_HIERARCHY: u32 = 0;
#[unsafe(no_mangle)]
static NODE_ID: u32 = 0;

/// Buckets of an index.
#[unsafe(no_mangle)]
static BUCKETS: u32 = egress_common::index::buckets(262_144);

/// Whether live flows take the shortcut.
#[unsafe(no_mangle)]
static ACCELERATE: u32 = 0;

/// Which build variant this is (`EGRESS_EBPF_VARIANT`).
const VARIANT: u32 = match option_env!("EGRESS_EBPF_VARIANT") {
    Some(text) => text.as_bytes()[0] as u32,
    None => 0,
};

/// Makes a program of one variant differ from that of another by one instruction, and by nothing it
/// does: the upgrade test replaces every program by one with another tag.
#[inline(always)]
pub fn mark_variant() {
    core::hint::black_box(VARIANT);
}

macro_rules! global {
    ($(#[$doc:meta])* $name:ident: $type:ty = $static:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> $type {
            // SAFETY: a valid static; volatile because the daemon rewrites it before loading.
            unsafe { read_volatile(&raw const $static) }
        }
    };
}

global!(
    /// Slots in the flow table.
    max_flows: u32 = MAX_FLOWS
);
global!(
    /// Buckets of an index.
    buckets: u32 = BUCKETS
);
global!(
    /// Not 0: live flows take the shortcut.
    accelerate: u32 = ACCELERATE
);
global!(
    /// Records of counters.
    max_origins: u32 = MAX_ORIGINS
);
global!(
    /// Free lists: one per possible CPU.
    lists: u32 = LISTS
);
global!(
    /// Random number of this load.
    load_id: u64 = LOAD_ID
);
global!(mark_mask: u32 = MARK_MASK);

global!(cgroup_root: u32 = CGROUP_ROOT);
global!(cgroup_node: u32 = CGROUP_NODE);
global!(root_hierarchy: u32 = ROOT_HIERARCHY);
global!(node_id: u32 = NODE_ID);

/// Fields of the kernel's structures, as bytes from their beginnings.
pub struct CgroupPlaces {
    /// `cgroup.root`.
    pub root: usize,
    /// `cgroup.kn`.
    pub node: usize,
    /// `cgroup_root.hierarchy_id`.
    pub hierarchy: usize,
    /// `kernfs_node.id`.
    pub id: usize,
}

/// Where the running kernel keeps a cgroup's hierarchy and id.
#[inline(always)]
pub fn cgroup_places() -> CgroupPlaces {
    CgroupPlaces {
        root: cgroup_root() as usize,
        node: cgroup_node() as usize,
        hierarchy: root_hierarchy() as usize,
        id: node_id() as usize,
    }
}

/// The reserved bits of the packet mark.
#[inline(always)]
pub fn tag_field() -> TagField {
    let mask = mark_mask();
    // Position of the lowest set bit; the daemon has checked that the mask is one run of bits.
    let mut shift = 0;
    let lowest = mask & mask.wrapping_neg();
    if lowest & 0xffff_0000 != 0 {
        shift += 16;
    }
    if lowest & 0xff00_ff00 != 0 {
        shift += 8;
    }
    if lowest & 0xf0f0_f0f0 != 0 {
        shift += 4;
    }
    if lowest & 0xcccc_cccc != 0 {
        shift += 2;
    }
    if lowest & 0xaaaa_aaaa != 0 {
        shift += 1;
    }
    TagField { mask, shift }
}
