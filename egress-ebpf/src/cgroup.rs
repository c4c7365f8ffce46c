//! Cgroups come and go without the daemon (ZONE-2, SAFE-1): a selected cgroup that is created anew, as a restart of
//! its service does, belongs to its zone before anybody can enter it.
//!
//! Both programs run inside the system call: `mkdir` returns when the new cgroup's id is known.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes};
use aya_ebpf::programs::RawTracePointContext;
use egress_common::settings::{CGROUP_PATH, CgroupKey, CgroupPath};

use crate::globals;
use crate::maps::{CGROUP_BIRTHS, CGROUP_PATHS, CGROUPS, SCRATCH_PATH};

/// A cgroup was created: tracepoint `cgroup_mkdir(struct cgroup *, const char *path)`.
pub fn born(ctx: &RawTracePointContext) {
    let Some(cgroup) = id(ctx.arg(0)) else { return };
    let Some(scratch) = SCRATCH_PATH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own; the kernel calls with interrupts off.
    let wanted = unsafe { &mut *scratch };
    wanted.path = [0; CGROUP_PATH];
    let path: *const u8 = ctx.arg(1);
    // SAFETY: the kernel's own text, read by the helper, which stands any address.
    let Ok(read) = (unsafe { bpf_probe_read_kernel_str_bytes(path, &mut wanted.path) }) else {
        return;
    };
    // One that was cut is longer than any that can be selected.
    if read.len() >= CGROUP_PATH - 1 {
        return;
    }
    for version in 0..2 {
        wanted.version = version;
        let path: &CgroupPath = wanted;
        // SAFETY: four bytes that the daemon writes once.
        let Some(selected) = (unsafe { CGROUP_PATHS.get(path) }) else {
            continue;
        };
        let key = CgroupKey {
            version: version as u64,
            cgroup,
        };
        let selected = *selected;
        // Full only with thousands of them; the daemon says so when it comes to that.
        let _ = CGROUPS.insert(key, selected, 0);
        if let Some(births) = CGROUP_BIRTHS.get_ptr_mut(0) {
            // SAFETY: the kernel calls for one cgroup at a time, under a lock of its own.
            unsafe { *births += 1 };
        }
    }
}

/// A cgroup is gone, and so is every socket that was of it: tracepoint `cgroup_release(struct cgroup *, const char *)`.
/// Until then its sockets are its zone's, also those that somebody outlived it with.
pub fn gone(ctx: &RawTracePointContext) {
    let Some(cgroup) = id(ctx.arg(0)) else { return };
    for version in 0..2 {
        let _ = CGROUPS.remove(CgroupKey { version, cgroup });
    }
}

/// The id of a cgroup, if it is one of cgroup2's.
#[inline(always)]
fn id(cgroup: *const u8) -> Option<u64> {
    let places = globals::cgroup_places();
    // SAFETY: the helper stands any address. Where the fields are was read from the running kernel's own types.
    unsafe {
        let root: *const u8 = bpf_probe_read_kernel(cgroup.add(places.root).cast()).ok()?;
        let hierarchy: u32 = bpf_probe_read_kernel(root.add(places.hierarchy).cast()).ok()?;
        // Hierarchies of version 1 number their cgroups from one as well.
        if hierarchy != 0 {
            return None;
        }
        let node: *const u8 = bpf_probe_read_kernel(cgroup.add(places.node).cast()).ok()?;
        bpf_probe_read_kernel(node.add(places.id).cast()).ok()
    }
}
