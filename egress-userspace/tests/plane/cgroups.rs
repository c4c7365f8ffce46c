//! Zones of cgroups (ZONE-2): those that come later, are created anew, or are gone while sockets of theirs live on.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneView as _};
use egress_userspace::desired::Desired;

use super::{open, shell};
use crate::bench::{Bench, desired, ip, output, run, until};

/// A cgroup that a zone selects. It is there only when a test makes it.
struct Selected {
    mount: PathBuf,
    name: String,
}

impl Selected {
    /// `None`, said as a skip, where no cgroup2 is mounted.
    fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
            .and_then(|line| line.split(' ').nth(1));
        let Some(mount) = mount else {
            println!("SKIPPED: {test}: no cgroup2 is mounted");
            return None;
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            mount: mount.into(),
            name: format!("egress_plane_{}_{number}", process::id()),
        })
    }

    fn directory(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    fn desired(&self) -> Desired {
        let mut wanted = desired(true, &[], &["192.0.2.10"]);
        wanted.zones[0].selectors.cgroups = vec![self.name.clone()];
        wanted
    }

    /// Runs a script that finds the cgroup's directory in `$own` and the root's in `$root`.
    fn shell(&self, script: &str) -> bool {
        let (own, root) = (self.directory(), self.mount.clone());
        let (own, root) = (own.display(), root.display());
        shell(&format!("own={own}; root={root}; {script}"))
    }
}

impl Drop for Selected {
    fn drop(&mut self) {
        for directory in [self.directory().join("below"), self.directory()] {
            // Not there, as a rule.
            drop(fs::remove_dir(directory));
        }
    }
}

/// Routes that lead to origins by `up0` and `mgmt0`.
fn routes() {
    ip("addr add 203.0.113.1/24 dev up0");
    ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev up0");
    ip("addr add 198.51.100.1/24 dev mgmt0");
    ip("neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev mgmt0");
}

/// Live flows, as the pool counts them.
fn active(bench: &Bench) -> u64 {
    bench.view().pools().unwrap()[0].addresses[0].active
}

/// Sockets that each keep a removed cgroup alive.
const SOCKETS: usize = 600;

const TO_ORIGIN: &str = "echo x > /dev/udp/203.0.113.9/9";

#[test]
fn safe_1_a_cgroup_created_anew_is_its_zones_at_once() {
    const TEST: &str = "safe_1_a_cgroup_created_anew_is_its_zones_at_once";
    run(TEST, |bench| {
        let Some(selected) = Selected::new(TEST) else {
            return;
        };
        routes();
        let mut plane = open(bench);
        plane.apply(&selected.desired()).unwrap();
        let mut expected = 0;
        let mut leave = |who: &str, script: &str| {
            assert!(selected.shell(script), "{who}");
            expected += 1;
            assert_eq!(
                active(bench),
                expected,
                "{who}: it left by no flow of the pool"
            );
        };
        // The daemon does not get to look in between, and later it is not there at all.
        for round in 0..3 {
            leave(
                &format!("the cgroup itself, round {round}"),
                &format!("mkdir $own && echo $$ > $own/cgroup.procs && exec bash -c '{TO_ORIGIN}'"),
            );
            leave(
                &format!("a cgroup below it, round {round}"),
                &format!(
                    "mkdir $own/below && echo $$ > $own/below/cgroup.procs && exec bash -c '{TO_ORIGIN}'"
                ),
            );
            until("the cgroups' end", || {
                fs::remove_dir(selected.directory().join("below")).is_ok()
                    || !selected.directory().join("below").exists()
            });
            fs::remove_dir(selected.directory()).unwrap();
            if round == 1 {
                // The other version of the configuration knows it as well.
                let mut other = selected.desired();
                other.pools[0].candidates[0].cap = 39_999;
                plane.apply(&other).unwrap();
            }
        }
        drop(plane);
        leave(
            "without a daemon",
            &format!("mkdir $own && echo $$ > $own/cgroup.procs && exec bash -c '{TO_ORIGIN}'"),
        );
        assert!(shell(&format!("exec bash -c '{TO_ORIGIN}'")));
        assert_eq!(active(bench), expected, "somebody else is not of the zone");
    });
}

#[test]
fn safe_1_a_socket_that_outlives_its_cgroup_stays_its_zones() {
    const TEST: &str = "safe_1_a_socket_that_outlives_its_cgroup_stays_its_zones";
    run(TEST, |bench| {
        let Some(selected) = Selected::new(TEST) else {
            return;
        };
        routes();
        let mut plane = open(bench);
        plane.apply(&selected.desired()).unwrap();
        let go = bench.pin.with_extension("").display().to_string();
        let go = format!("/tmp/{}", go.replace('/', "_"));
        // It leaves its cgroup, which is removed, and says something only when the daemon has seen that.
        let script = "mkdir $own && exec bash -c '\
             echo $$ > $0/cgroup.procs; exec 3<>/dev/udp/203.0.113.9/9; echo $$ > $1/cgroup.procs; rmdir $0; \
             touch $2.ready; until [ -e $2.go ]; do read -t 0.01 <> <(:); done; echo x >&3' $own $root";
        thread::scope(|scope| {
            let speaker = scope.spawn(|| selected.shell(&format!("{script} {go}")));
            until("the cgroup's end", || {
                fs::exists(format!("{go}.ready")).unwrap()
            });
            // A tidying, and a new version of everything.
            plane.tidy().unwrap();
            let mut other = selected.desired();
            other.pools[0].candidates[0].cap = 39_999;
            plane.apply(&other).unwrap();
            plane.tidy().unwrap();
            assert_eq!(active(bench), 0);
            fs::write(format!("{go}.go"), "").unwrap();
            assert!(speaker.join().unwrap());
        });
        for end in ["ready", "go"] {
            fs::remove_file(format!("{go}.{end}")).unwrap();
        }
        assert_eq!(active(bench), 1);
        // Once the socket is closed, nothing is left of it.
        until("the entries' end", || bench.entries("CGROUPS") == 0);
    });
}

#[test]
fn zone_2_a_cgroup_that_goes_while_a_version_is_written_leaves_nothing() {
    const TEST: &str = "zone_2_a_cgroup_that_goes_while_a_version_is_written_leaves_nothing";
    run(TEST, |bench| {
        let Some(selected) = Selected::new(TEST) else {
            return;
        };
        routes();
        let mut plane = open(bench);
        let mut wanted = selected.desired();
        plane.apply(&wanted).unwrap();
        let place = format!("/tmp/{}", selected.name);
        let [ready, go] = ["ready", "go"].map(|end| format!("{place}.{end}"));
        // Cgroups that are removed, each with a socket that keeps it alive; then one socket after the other is closed.
        let script = format!(
            "exec bash -c 'for ((i = 0; i < {SOCKETS}; i++)); do mkdir $0; echo $$ > $0/cgroup.procs; \
             exec {{fd}}<>/dev/udp/203.0.113.9/9; fds+=($fd); echo $$ > $1/cgroup.procs; rmdir $0; done; touch $2.ready; \
             until [ -e $2.go ]; do read -t 0.01 <> <(:); done; for fd in ${{fds[@]}}; do read -t 0.003 <> <(:); exec {{fd}}>&-; done' $own $root {place}"
        );
        thread::scope(|scope| {
            let speaker = scope.spawn(|| selected.shell(&script));
            // However long that takes: the script ends in any case.
            while !speaker.is_finished() && !fs::exists(&ready).unwrap() {
                thread::sleep(Duration::from_millis(5));
            }
            let alive = bench.entries("CGROUPS");
            fs::write(&go, "").unwrap();
            let mut versions = 0;
            while !speaker.is_finished() {
                versions += 1;
                wanted.pools[0].candidates[0].cap = 39_000 + versions % 2;
                plane.apply(&wanted).unwrap();
            }
            println!("{alive} entries; {versions} versions were written while they went");
            assert!(speaker.join().unwrap());
            assert!(alive > SOCKETS / 2 && versions > 0);
        });
        for file in [ready, go] {
            fs::remove_file(file).unwrap();
        }
        until("the entries' end", || bench.entries("CGROUPS") == 0);
    });
}

#[test]
fn zone_2_a_cgroup_that_appears_later_is_guarded() {
    const TEST: &str = "zone_2_a_cgroup_that_appears_later_is_guarded";
    run(TEST, |bench| {
        let Some(selected) = Selected::new(TEST) else {
            return;
        };
        routes();
        let mut plane = open(bench);
        plane.apply(&selected.desired()).unwrap();
        let hooks = bench.status().hooks;
        let watching = |name: &str| {
            hooks
                .iter()
                .any(|hook| hook.hook == name && hook.kind == "tracepoint" && hook.in_place)
        };
        assert!(
            watching("cgroup_born") && watching("cgroup_gone"),
            "{hooks:?}"
        );
        fs::create_dir(selected.directory()).unwrap();
        let said = plane.repair();
        // A process in it may not leave by another interface; one outside may.
        let ask = "exec bash -c 'echo x > /dev/udp/198.51.100.2/9' 2> /dev/null";
        let inside = selected.shell(&format!("echo $$ > $own/cgroup.procs && {ask}"));
        let outside = shell(ask);
        let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
        let rules = output("nft", &format!("list chain inet {table} own"));
        fs::remove_dir(selected.directory()).unwrap();
        assert_eq!(said.unwrap(), Vec::<String>::new());
        assert!(!inside && outside, "inside {inside}, outside {outside}");
        assert!(rules.contains("socket cgroupv2 level 1"), "{rules}");
        assert_eq!(plane.tidy().unwrap().len(), 1, "it is gone again");
        assert_eq!(plane.tidy().unwrap(), Vec::<String>::new());
        // A program that somebody took off is put back.
        fs::remove_file(bench.pin.join("links/cgroup_born")).unwrap();
        assert!(bench.status().hooks.iter().any(|hook| !hook.in_place));
        assert_eq!(plane.repair().unwrap(), ["cgroup_born was attached"]);
    });
}
