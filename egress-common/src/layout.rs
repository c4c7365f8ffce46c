//! The version of everything that is pinned (SAFE-2).
//!
//! A daemon that finds pins of another layout migrates them or refuses by name; it never misreads
//! them. Any change of a map's key, value, meaning or name is a new number.

/// Layout of the pinned maps.
pub const LAYOUT: u32 = 13;

/// Says who made the pins: element 0 of the `LAYOUT` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// [`LAYOUT`] of the daemon that made them.
    pub version: u32,
    /// Slots in the flow table.
    pub max_flows: u32,
    /// Records of counters.
    pub max_origins: u32,
    /// Free lists: one per possible CPU.
    pub lists: u32,
    /// Reserved mark bits.
    pub mark_mask: u32,
    /// Always zero.
    pub pad: u32,
}
