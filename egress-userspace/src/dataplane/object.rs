//! The kernel programs that are part of this binary: loaded, sized, and told their constants.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::programs::{ProgramError, RawTracePoint, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use aya_obj::EbpfSectionKind;
use egress_common::armed;
use egress_common::ended::{self, Ended};
use egress_common::expiry::Progress;
use egress_common::index::buckets;
use egress_common::layout::{LAYOUT, Layout};

use super::births::{self, Tracepoint};
use super::first;
use super::hook::Hook;
use super::maps::Maps;
use super::pins::Pins;
use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;

/// The object that `build.rs` compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress"));

/// Never attached: run once after each load, so that the sweep's timer calls this load's callback.
const ARM: &str = "arm";
/// How often it is tried again, and after what time, when the kernel has no memory for a timer.
const ARM_ATTEMPTS: usize = 100;
const ARM_PAUSE: Duration = Duration::from_millis(10);

/// Never attached: run to end a flow on purpose.
const END: &str = "end_flow";

/// Never attached: run to put a packet on the way in of an uplink.
const INJECT: &str = "inject";

/// The programs that are run and never attached.
const RUN: [&str; 3] = [ARM, END, INJECT];

/// Size of `struct __sk_buff`, and where in it the interface's number is.
const CONTEXT: usize = 192;
const CONTEXT_INTERFACE: usize = 40;

/// The shortest packet that `BPF_PROG_TEST_RUN` takes: an Ethernet header (ETH_HLEN).
const EMPTY_FRAME: [u8; 14] = [0; 14];
const _: () = assert!(EMPTY_FRAME.len() == ended::OFFSET as usize);

/// Maps whose size is `max_flows`.
const BY_FLOWS: [&str; 2] = ["SLOTS4", "SLOTS6"];
/// Maps of as many buckets as `max_flows` flows need.
const BY_BUCKETS: [&str; 4] = ["FLOWS4", "REVERSE4", "FLOWS6", "REVERSE6"];
/// Maps whose size is `max_origins`.
const BY_ORIGINS: [&str; 4] = ["ORIGINS4", "COUNTS4", "ORIGINS6", "COUNTS6"];
/// Maps whose size is the number of free lists.
const BY_LISTS: [&str; 4] = ["FREE_SLOTS4", "FREE_COUNTS4", "FREE_SLOTS6", "FREE_COUNTS6"];

/// Scratch space of programs begins its name with this. It holds nothing from one packet to the next, so each load
/// makes its own and none is pinned.
const SCRATCH: &str = "SCRATCH";

/// A map as this binary's programs expect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    /// Bytes of a key.
    pub(super) key: u32,
    /// Bytes of a value.
    pub(super) value: u32,
    /// Elements.
    pub(super) entries: u32,
    /// `BPF_F_...`.
    pub(super) flags: u32,
}

/// The sizes a first start gives the maps.
pub(super) fn layout(config: &Dataplane) -> Result<Layout, DataPlaneError> {
    // One list a possible CPU: programs find theirs by the number of the CPU.
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| DataPlaneError::failed(format!("reading {path}"), error))?;
    Ok(Layout {
        version: LAYOUT,
        max_flows: config.max_flows,
        max_origins: config.max_origins,
        lists: u32::try_from(cpus).unwrap_or(u32::MAX).max(1),
        mark_mask: config.mark_mask,
        pad: 0,
    })
}

fn size(name: &str, layout: &Layout) -> Option<u32> {
    if BY_FLOWS.contains(&name) {
        Some(layout.max_flows)
    } else if BY_BUCKETS.contains(&name) {
        Some(buckets(layout.max_flows))
    } else if BY_ORIGINS.contains(&name) {
        Some(layout.max_origins)
    } else if BY_LISTS.contains(&name) {
        Some(layout.lists)
    } else {
        None
    }
}

/// Every map that is pinned, by name, as it must be with this layout.
pub(super) fn shapes(layout: &Layout) -> Result<BTreeMap<String, Shape>, DataPlaneError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| {
        DataPlaneError::failed("reading the kernel programs in this binary", error)
    })?;
    Ok(object
        .maps
        .into_iter()
        .filter(|(name, map)| {
            !name.starts_with(SCRATCH)
                && matches!(
                    map.section_kind(),
                    EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps
                )
        })
        .map(|(name, map)| {
            let shape = Shape {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries: size(&name, layout).unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            (name, shape)
        })
        .collect())
}

/// The programs in the kernel, attached or not.
pub(super) struct Object {
    ebpf: Ebpf,
    load: u64,
    /// Whether this kernel takes the programs of the tracepoints, and why not.
    tracepoints: Result<(), String>,
    /// The maps that are pinned.
    pinned: Vec<String>,
}

/// A program in the kernel.
pub(super) struct Loaded<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) id: u32,
}

impl Object {
    /// Loads the programs onto the maps in `directory`; maps that are not there are made and pinned. Live
    /// flows take the fast path if they `accelerate`.
    ///
    /// # Errors
    /// What the kernel said; nothing is attached.
    pub(super) fn load(
        directory: &Path,
        layout: &Layout,
        accelerate: bool,
    ) -> Result<Self, DataPlaneError> {
        let [load] = first::random()?;
        let shapes = shapes(layout)?;
        let buckets = buckets(layout.max_flows);
        let accelerate = u32::from(accelerate);
        let mut loader = EbpfLoader::new();
        for (name, shape) in &shapes {
            loader
                .map_max_entries(name, shape.entries)
                .map_pin_path(name, directory.join(name));
        }
        loader
            .override_global("MARK_MASK", &layout.mark_mask, true)
            .override_global("MAX_FLOWS", &layout.max_flows, true)
            .override_global("BUCKETS", &buckets, true)
            .override_global("MAX_ORIGINS", &layout.max_origins, true)
            .override_global("LISTS", &layout.lists, true)
            .override_global("ACCELERATE", &accelerate, true)
            .override_global("LOAD_ID", &load, true);
        let places = births::places();
        if let Ok(places) = &places {
            for (name, offset) in places {
                loader.override_global(name, offset, true);
            }
        }
        let ebpf = loader.load(OBJECT).map_err(|error| {
            DataPlaneError::failed(format!("making the maps in {}", directory.display()), error)
        })?;
        let mut object = Self {
            ebpf,
            load,
            tracepoints: Ok(()),
            pinned: shapes.into_keys().collect(),
        };
        for name in Hook::ALL.map(Hook::program).into_iter().chain(RUN) {
            load_program(object.classifier(name)?)
                .map_err(|error| refused_by_kernel(name, error))?;
        }
        // A kernel that cannot have these serves zones that select no cgroup.
        object.tracepoints = match places {
            Ok(_) => object.load_tracepoints().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Ok(object)
    }

    /// Pins again what somebody has removed from the pin directory: the programs go on with these maps, and the next
    /// daemon has to find them. Says how many.
    pub(super) fn pin_again(&self, pins: &Pins) -> Result<usize, DataPlaneError> {
        let mut missing = Vec::new();
        for name in &self.pinned {
            if !pins.map(name).exists() {
                missing.push(name);
            }
        }
        if missing.is_empty() && pins.has_links() {
            return Ok(0);
        }
        pins.create()?;
        for name in &missing {
            let path = pins.map(name);
            let map = self.ebpf.map(name).ok_or_else(|| {
                DataPlaneError::failed(format!("pinning {}", path.display()), "it is not loaded")
            })?;
            map.pin(&path).map_err(|error| {
                DataPlaneError::failed(format!("pinning {}", path.display()), error)
            })?;
        }
        Ok(missing.len())
    }

    /// The program of a hook.
    pub(super) fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, DataPlaneError> {
        self.classifier(hook.program())
    }

    fn load_tracepoints(&mut self) -> Result<(), DataPlaneError> {
        for tracepoint in Tracepoint::ALL {
            let name = tracepoint.program();
            let program = self.raw_tracepoint(tracepoint)?;
            load_patiently(|| program.load()).map_err(|error| refused_by_kernel(name, error))?;
        }
        Ok(())
    }

    /// The program of a tracepoint.
    ///
    /// # Errors
    /// This kernel cannot have it; why.
    pub(super) fn tracepoint(
        &mut self,
        tracepoint: Tracepoint,
    ) -> Result<Loaded<'_>, DataPlaneError> {
        let doing = || format!("watching cgroups with {}", tracepoint.program());
        if let Err(reason) = &self.tracepoints {
            return Err(DataPlaneError::failed(doing(), reason.clone()));
        }
        let program = self.raw_tracepoint(tracepoint)?;
        let id = program
            .info()
            .map_err(|error| DataPlaneError::failed(doing(), error))?
            .id();
        let fd = program
            .fd()
            .map_err(|error| DataPlaneError::failed(doing(), error))?
            .as_fd();
        Ok(Loaded { fd, id })
    }

    fn raw_tracepoint(
        &mut self,
        tracepoint: Tracepoint,
    ) -> Result<&mut RawTracePoint, DataPlaneError> {
        let missing = || {
            DataPlaneError::failed(
                format!(
                    "looking for program {} in this binary",
                    tracepoint.program()
                ),
                "it is not there, or is for no tracepoint",
            )
        };
        let program = self
            .ebpf
            .program_mut(tracepoint.program())
            .ok_or_else(missing)?;
        <&mut RawTracePoint>::try_from(program).map_err(|_| missing())
    }

    fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, DataPlaneError> {
        let missing = || {
            DataPlaneError::failed(
                format!("looking for program {name} in this binary"),
                "it is not there, or is no tc classifier",
            )
        };
        let program = self.ebpf.program_mut(name).ok_or_else(missing)?;
        <&mut SchedClassifier>::try_from(program).map_err(|_| missing())
    }

    /// Hands the sweep's timer over to this load (an armed timer keeps the callback it was armed with).
    pub(super) fn arm(&mut self, maps: &Maps) -> Result<(), DataPlaneError> {
        const DOING: &str = "handing the sweep's timer to the programs of this binary";
        let load = self.load;
        let mut answer = self.run(ARM, &EMPTY_FRAME, 0)?;
        for _ in 0..ARM_ATTEMPTS {
            if answer != armed::NO_MEMORY as u32 {
                break;
            }
            thread::sleep(ARM_PAUSE);
            answer = self.run(ARM, &EMPTY_FRAME, 0)?;
        }
        if answer == armed::NO_MEMORY as u32 {
            return Err(DataPlaneError::failed(
                DOING,
                "the kernel has no memory for a timer",
            ));
        }
        let armed_by = progress(maps)?.armed_by;
        if armed_by != load {
            return Err(DataPlaneError::failed(
                DOING,
                format!(
                    "program `{ARM}` answered {answer} and the timer belongs to load {armed_by:#x}, not {load:#x}"
                ),
            ));
        }
        Ok(())
    }

    /// Runs a program that is never attached; its answer.
    fn run(
        &mut self,
        name: &'static str,
        packet: &[u8],
        interface: u32,
    ) -> Result<u32, DataPlaneError> {
        let mut context = [0; CONTEXT];
        context[CONTEXT_INTERFACE..][..4].copy_from_slice(&interface.to_ne_bytes());
        self.classifier(name)?
            .test_run(TestRunOptions {
                data_in: Some(packet),
                ctx_in: (interface != 0).then_some(&context[..]),
                ..TestRunOptions::default()
            })
            .map(|result| result.return_value)
            .map_err(|error| DataPlaneError::failed(format!("running program {name}"), error))
    }

    /// Puts a frame on the way in of an interface; false if the interface does not take it.
    pub(super) fn inject(&mut self, frame: &[u8], interface: u32) -> Result<bool, DataPlaneError> {
        Ok(self.run(INJECT, frame, interface)? != 0)
    }

    /// Ends a flow; false if it has ended already.
    pub(super) fn end(&mut self, flow: Ended) -> Result<bool, DataPlaneError> {
        let mut packet = [0; EMPTY_FRAME.len() + size_of::<Ended>()];
        packet[EMPTY_FRAME.len()..].copy_from_slice(&flow.bytes());
        Ok(self.run(END, &packet, 0)? != 0)
    }
}

/// The sweep's map value: a timer, which reads as zeros, and how far the sweep got.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sweeper {
    timer: [u64; 2],
    progress: Progress,
}

// SAFETY: `repr(C)` of integers; `Progress` is five words without padding.
unsafe impl aya::Pod for Sweeper {}

/// How far the sweep got, and whose it is.
pub(super) fn progress(maps: &Maps) -> Result<Progress, DataPlaneError> {
    maps.only::<Sweeper>("SWEEPER")
        .map(|sweeper| sweeper.progress)
}

/// How often loading is tried again when a signal interrupted the verifier (libbpf: 5).
const LOAD_ATTEMPTS: usize = 10;

fn load_program(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    load_patiently(|| program.load())
}

/// Loads a program; the verifier gives up with `EAGAIN` when a signal is waiting for this thread.
fn load_patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut result = load();
    for _ in 1..LOAD_ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            _ => break,
        }
        result = load();
    }
    result
}

/// Lines of the verifier's log worth showing: the reason is at its end.
const LOG_LINES: usize = 12;

fn refused_by_kernel(name: &str, error: ProgramError) -> DataPlaneError {
    let doing = format!("loading program {name} into the kernel");
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines
            .get(lines.len().saturating_sub(LOG_LINES)..)
            .unwrap_or_default()
            .join("\n");
        return DataPlaneError::failed(doing, format!("{io_error}\n{end}"));
    }
    DataPlaneError::failed(doing, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_holds_every_map_and_sizes_follow_the_configuration() {
        let layout = Layout {
            max_flows: 77,
            max_origins: 33,
            lists: 3,
            ..Layout::default()
        };
        let shapes = shapes(&layout).unwrap();
        assert_eq!(shapes["FLOWS4"].entries, buckets(77));
        assert_eq!(shapes["SLOTS4"].entries, 77);
        assert_eq!(shapes["COUNTS4"].entries, 33);
        assert_eq!(shapes["FREE_SLOTS4"].entries, 3);
        for name in [
            "LAYOUT", "SECRET", "SWITCH", "SETTINGS", "ZONES", "POOLS", "EGRESS4", "DEVICES",
            "SWEEPER", "REASONS", "EVENTS",
        ] {
            assert!(shapes.contains_key(name), "{name}");
        }
        assert!(shapes.keys().all(|name| !name.contains('.')), "{shapes:?}");
    }
}
