//! A data plane without packets: it opens flows in the slices that are in force, all the time, whatever its daemon does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use egress_common::placement;
use egress_common::port::owns;
use egress_userspace::dataplane::api::{
    ApplyReport, DataPlane, DataPlaneError, DataPlaneStatus, DataPlaneView, Deadline, FlowFilter,
    FlowKey, FlowRecord, Meter, OriginFilter, OriginRecord, PoolLive, Traveller, UsageLook, Way,
};
use egress_userspace::desired::Desired;
use egress_userspace::ownership::Slices;
use egress_userspace::resource::Address;
use ipnet::IpNet;

use super::clock::Clock;
use super::history::History;
use super::random::Random;

/// The kernel's part, which outlives daemons.
#[derive(Clone)]
pub(crate) struct Kernel {
    name: String,
    history: Arc<History>,
    clock: Clock,
    state: Arc<Mutex<State>>,
    off: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    open: Slices,
    /// From when on nothing is used, by its clock; 0: never.
    lapse: u64,
    /// Until when a port is in use or rests.
    flows: BTreeMap<(Ipv4Addr, u16), Instant>,
    /// Whether a port rests in every slice, until something else is said.
    rests: bool,
    /// How often somebody has looked what is left.
    looks: u64,
}

impl Kernel {
    /// Begins to give ports out as soon as some are in force.
    pub(crate) fn begin(name: &str, history: Arc<History>, mut random: Random) -> Self {
        let kernel = Self {
            name: name.to_owned(),
            history,
            clock: Clock::any(&mut random),
            state: Arc::default(),
            off: Arc::default(),
        };
        let own = kernel.clone();
        thread::spawn(move || {
            while !own.off.load(Ordering::SeqCst) {
                own.step(&mut random);
                thread::sleep(Duration::from_millis(1));
            }
        });
        kernel
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some flows end, and one begins.
    fn step(&self, random: &mut Random) {
        let mut state = self.state();
        if self.off.load(Ordering::SeqCst) {
            return;
        }
        let now = Instant::now();
        state.flows.retain(|(address, port), end| {
            let lives = *end > now;
            if !lives {
                self.history.frees(&self.name, *address, *port);
            }
            lives
        });
        let open: Vec<(Ipv4Addr, u32)> = state
            .open
            .iter()
            .flat_map(|(address, bitmap)| placement::slices(*bitmap).map(|slice| (*address, slice)))
            .collect();
        if open.is_empty() {
            return;
        }
        let (address, slice) = open[random.at(open.len())];
        // Few ports, so that servers meet.
        let port = u16::try_from((slice << 11) + u32::try_from(random.below(4)).unwrap()).unwrap();
        if state.flows.contains_key(&(address, port)) {
            return;
        }
        // Some outlive their server's time, and are there when it is back.
        let long = random.below(10) == 0;
        let (least, more) = if long { (10_000, 10_000) } else { (20, 700) };
        let end = now + Duration::from_millis(least + random.below(more));
        if self.history.gives(&self.name, address, port) {
            state.flows.insert((address, port), end);
        }
    }

    /// From now on a port rests in every slice, or no more.
    pub(crate) fn rests(&self, rests: bool) {
        self.state().rests = rests;
    }

    /// How often its daemons have looked what is left.
    pub(crate) fn looks(&self) -> u64 {
        self.state().looks
    }

    /// No more of it, at once: the machine is switched off, and what it had is gone with it.
    pub(crate) fn switch_off(&self) {
        let mut state = self.state();
        self.off.store(true, Ordering::SeqCst);
        state.open.clear();
        state.flows.clear();
        self.history.ends(&self.name);
    }
}

/// What a daemon has of it. It stops for a while now and then, as a paused process does.
pub(crate) struct Plane {
    pub(crate) kernel: Kernel,
    pub(crate) random: Mutex<Random>,
}

impl Plane {
    fn pause(&self) {
        pause(&self.random);
    }
}

fn pause(random: &Mutex<Random>) {
    let time = {
        let mut random = random.lock().unwrap();
        if random.below(8) == 0 {
            random.below(1_500)
        } else {
            0
        }
    };
    thread::sleep(Duration::from_millis(time));
}

impl DataPlaneView for Plane {
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        Ok(DataPlaneStatus::default())
    }

    fn flows(
        &self,
        _: &FlowFilter,
        _: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn flow(&self, _: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError> {
        Ok(None)
    }

    fn origins(&self, _: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn usage(&self) -> Result<UsageLook, DataPlaneError> {
        Ok(UsageLook::default())
    }

    fn meters(&self, _: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn candidate_order(
        &self,
        _: u16,
        _: IpAddr,
        _: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn way(&self, _: &Traveller) -> Result<Way, DataPlaneError> {
        Ok(Way::default())
    }
}

impl DataPlane for Plane {
    fn check(&self, _: &[Address]) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn apply(&mut self, desired: &Desired) -> Result<ApplyReport, DataPlaneError> {
        self.pause();
        let mut open = Slices::new();
        for candidate in desired.pools.iter().flat_map(|pool| &pool.candidates) {
            if !candidate.draining {
                open.insert(candidate.address, candidate.slices);
            }
        }
        {
            let mut state = self.kernel.state();
            if !self.kernel.off.load(Ordering::SeqCst) {
                self.kernel.history.opens(&self.kernel.name, &open);
                state.open = open;
            }
        }
        self.pause();
        Ok(ApplyReport::default())
    }

    fn bound(&self) -> Result<usize, DataPlaneError> {
        Ok(0)
    }

    fn repair(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn tidy(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn reset(&mut self, _: &[IpNet]) -> Result<u64, DataPlaneError> {
        Ok(0)
    }

    fn occupied(&self, slices: &Slices) -> Result<Slices, DataPlaneError> {
        self.pause();
        let mut found = Slices::new();
        {
            let mut state = self.kernel.state();
            state.looks += 1;
            for (address, port) in state.flows.keys() {
                if slices.get(address).is_some_and(|all| owns(*all, *port)) {
                    *found.entry(*address).or_default() |= 1 << (port >> 11);
                }
            }
            if state.rests {
                found.clone_from(slices);
            }
        }
        self.pause();
        Ok(found)
    }

    fn reset_slices(&mut self, slices: &Slices) -> Result<u64, DataPlaneError> {
        self.pause();
        let mut ended = 0;
        let now = Instant::now();
        let rest = 1_000 + self.random.lock().unwrap().below(2_000);
        for ((address, port), end) in &mut self.kernel.state().flows {
            if slices.get(address).is_some_and(|all| owns(*all, *port)) {
                // It rests, and is found so long.
                *end = (*end).min(now + Duration::from_millis(rest));
                ended += 1;
            }
        }
        Ok(ended)
    }

    fn deadline(&self) -> Arc<dyn Deadline> {
        Arc::new(Stop {
            kernel: self.kernel.clone(),
            random: Mutex::new(self.random.lock().unwrap().split()),
        })
    }

    fn detach(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }
}

/// The time at which it stops, for whoever puts it off.
struct Stop {
    kernel: Kernel,
    random: Mutex<Random>,
}

impl Deadline for Stop {
    fn now(&self) -> u64 {
        self.kernel.clock.now()
    }

    fn get(&self) -> Result<u64, DataPlaneError> {
        Ok(self.kernel.state().lapse)
    }

    fn set(&self, at: u64) -> Result<(), DataPlaneError> {
        pause(&self.random);
        let mut state = self.kernel.state();
        if !self.kernel.off.load(Ordering::SeqCst) {
            state.lapse = at;
            let at = (at != 0).then(|| self.kernel.clock.instant(at));
            self.kernel.history.stops_at(&self.kernel.name, at);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), DataPlaneError> {
        Ok(())
    }
}
