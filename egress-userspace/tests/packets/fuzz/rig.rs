//! Data plane, driver and oracle together.

use std::time::Instant;

use egress_common::settings::{Device, role};

use super::driver::{self, Driver, Entry, Made, ROUND};
use super::finding::Packet;
use super::oracle::Oracle;
use super::{six, world};
use crate::harness::{DataPlane, eventually};
use crate::world::{SECOND, UPLINK_MAC, World};

pub(crate) struct Rig {
    pub(crate) plane: DataPlane,
    pub(crate) driver: Driver,
    pub(crate) oracle: Oracle,
}

impl Rig {
    /// A data plane in a network namespace of this thread's own; `None` where it may not be loaded.
    pub(crate) fn new() -> Option<Self> {
        let mut plane = DataPlane::of(world::world(0))?;
        let interfaces = driver::interfaces();
        let [in0, in1, up0] = interfaces;
        plane.change(|world| world.interfaces = vec![(in1, world::REALM)]);
        for (interface, role) in [
            (in0, role::INSIDE),
            (in1, role::INSIDE),
            (up0, role::UPLINK),
        ] {
            let device = Device {
                role,
                mac: UPLINK_MAC,
                ..Device::default()
            };
            plane.hash("DEVICES", interface, device);
        }
        six::configure(&mut plane);
        let driver = Driver::new(&plane, interfaces);
        plane.arm();
        Some(Self {
            plane,
            driver,
            oracle: Oracle::default(),
        })
    }

    /// Plays packets as one round and judges each.
    pub(crate) fn play(&mut self, packets: &[Packet]) -> Result<(), String> {
        assert!(packets.len() <= ROUND);
        self.driver.clear();
        for (entry, bytes) in packets {
            self.driver.add(*entry, bytes);
        }
        self.judge().map_err(|(number, what)| {
            let (entry, input) = self.driver.input(number);
            format!("{what}; {entry:?} {input:02x?}")
        })
    }

    /// Lets the driver's round arrive and judges each packet; on a finding its number and what it is.
    pub(crate) fn judge(&mut self) -> Result<(), (usize, String)> {
        let began = Instant::now();
        self.driver.run();
        self.oracle.arrived_since(began);
        for number in 0..self.driver.len() {
            let (entry, input, output) = self.driver.both(number);
            self.oracle
                .judge(entry, input, output.as_ref())
                .map_err(|what| {
                    let out = output.map(|output| (output.seen, output.bytes.to_vec()));
                    (number, format!("{what}; came out as {out:02x?}"))
                })?;
        }
        let mut nth = 0;
        while let Some((made, output)) = self.driver.made(nth) {
            let last = self.driver.len() - 1;
            let (number, judgement) = match made {
                Made::Answer(number) => {
                    let (entry, input) = self.driver.input(number);
                    (number, self.oracle.answered(entry, input, output.bytes))
                }
                Made::More(number) => {
                    let (entry, input) = self.driver.input(number);
                    (number, self.oracle.released(entry, input, &output))
                }
                Made::Again => {
                    let judgement = self.oracle.released(Entry::Wire, output.bytes, &output);
                    (last, judgement)
                }
            };
            judgement
                .map_err(|what| (number, format!("{what}; {made:?} {:02x?}", output.bytes)))?;
            nth += 1;
        }
        self.oracle
            .doubts()
            .map_err(|what| (self.driver.len() - 1, what))?;
        self.oracle.forget();
        Ok(())
    }

    /// Open flows and counts agree; when the flows have ended, nothing is left (CAP-2).
    pub(crate) fn settle(&mut self) {
        let plane = &mut self.plane;
        let day = 86_400 * SECOND;
        let every = |world: &mut World, time| {
            let timers = &mut world.settings.timers;
            timers.tcp_established = time;
            timers.tcp_transitory = time;
            timers.tcp_closing = time;
            timers.quarantine = time;
            timers.udp = time;
        };
        plane.change(|world| every(world, day));
        // What has ended until now is freed; then nothing moves any more.
        let before = plane.progress().ticks;
        eventually("two rounds of the sweep and a grace period", || {
            plane.progress().ticks > before + 350
        });
        plane.consistent();
        println!(
            "{} connections over IPv4 and {} over IPv6 are open and counted",
            plane.all_active(),
            six::counted(plane)
        );
        plane.change(|world| every(world, SECOND / 100));
        eventually("all flows end", || plane.all_active() == 0);
        let all = plane.world.max_flows as usize;
        eventually("all slots are free", || plane.free() == all);
        plane.consistent();
        eventually("all slots of IPv6 are free", || six::is_idle(plane));
    }
}

/// The share of packets by where they enter: an inside interface, a realm, the wire.
pub(crate) const SHARES: [(Entry, usize); 3] = [
    (Entry::Inside, ROUND * 7 / 16),
    (Entry::Realm, ROUND / 16),
    (Entry::Wire, ROUND / 2),
];
