//! Generated packets through the real programs, chained as a host chains them, and judged one by one.
//!
//! `cargo xtask fuzz` runs this for long; the tests here for a moment. `EGRESS_FUZZ_PACKETS` or
//! `EGRESS_FUZZ_SECONDS` say how long, `EGRESS_SEED` what; `EGRESS_FUZZ_THREADS` on how many CPUs,
//! each with a data plane of its own.
//!
//! | file | noun |
//! |---|---|
//! | [`instruction`], [`bpf`], [`programs`], [`driver`] | packets into the programs and what comes out, without a system call each |
//! | [`generate`], [`addresses`], [`build`], [`mutate`] | the packets |
//! | [`world`], [`six`] | what is configured |
//! | [`read`], [`rewrite`], [`oracle`], [`parts`] | what must hold |
//! | [`finding`] | what did not hold, as a file that is replayed ever after |
//! | [`warning`] | what the kernel thinks of it |

mod addresses;
mod bpf;
mod build;
mod driver;
mod finding;
mod generate;
mod instruction;
mod map;
mod mutate;
mod oracle;
mod parts;
mod programs;
mod read;
mod rewrite;
mod rig;
pub(crate) mod six;
mod warning;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub(crate) use bpf::{Attach, attach};
pub(crate) use driver::stay;
use finding::History;
use generate::Generator;
use oracle::Tally;
use rig::{Rig, SHARES};
use warning::Log;

use crate::harness::{kernel, permitted};
use crate::seed::{self, Random, variable};

/// Packets of a run that nobody has said more about: a moment, also without optimisation.
const MOMENT: u64 = 100_000;
/// The Linux that attaches programs by tcx.
const TCX: (u32, u32) = (6, 6);
/// Packets before a finding that are kept.
const HISTORY: usize = 32_768;
/// How often a run says how it goes.
const REPORT: Duration = Duration::from_secs(10);

/// Whether the driver can drive; says `SKIPPED` if not.
fn possible() -> bool {
    if !permitted() {
        return false;
    }
    let thread = std::thread::current();
    has_tcx(thread.name().unwrap_or("fuzz"))
}

/// Whether programs can be attached; says `SKIPPED` if not.
pub(crate) fn has_tcx(test: &str) -> bool {
    let (major, minor) = kernel();
    if (major, minor) >= TCX {
        return true;
    }
    println!("SKIPPED: {test}: Linux {major}.{minor} has no tcx, which programs are attached by");
    false
}

/// When to end: distinct packets, and time.
struct Limit {
    packets: u64,
    deadline: Option<Instant>,
}

impl Limit {
    fn from_environment() -> Self {
        let seconds = variable("EGRESS_FUZZ_SECONDS");
        let packets = variable("EGRESS_FUZZ_PACKETS");
        Self {
            packets: packets
                .unwrap_or_else(|| seconds.map_or_else(|| seed::cases(MOMENT), |_| u64::MAX)),
            deadline: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        }
    }
}

/// Tells packets that were not there before: at least as many as it says are distinct, because two that
/// fall on one bit count once.
struct Distinct {
    bits: Vec<AtomicU64>,
    count: AtomicU64,
}

impl Distinct {
    /// For about that many packets: 32 bits each.
    fn new(packets: u64) -> Self {
        let words = (packets.min(1 << 28) / 2).next_power_of_two().max(1 << 16);
        Self {
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
        }
    }

    fn add(&self, bytes: &[u8]) {
        let hash = map::hash(bytes);
        let word = (hash >> 6) as usize & (self.bits.len() - 1);
        let bit = 1 << (hash & 63);
        if self.bits[word].fetch_or(bit, Relaxed) & bit == 0 {
            self.count.fetch_add(1, Relaxed);
        }
    }
}

/// What all threads of a run share.
struct Run {
    limit: Limit,
    distinct: Distinct,
    packets: AtomicU64,
    over: AtomicBool,
    began: Instant,
    /// Of this process until then.
    cpu_time: Duration,
}

impl Run {
    fn is_over(&self) -> bool {
        self.over.load(Relaxed)
            || self.distinct.count.load(Relaxed) >= self.limit.packets
            || self
                .limit
                .deadline
                .is_some_and(|deadline| Instant::now() > deadline)
    }

    fn report(&self) {
        let packets = self.packets.load(Relaxed);
        let each = |time: Duration| packets as f64 / time.as_secs_f64();
        println!(
            "{packets} packets, {} distinct; {:.0} a second, {:.0} a second of CPU time",
            self.distinct.count.load(Relaxed),
            each(self.began.elapsed()),
            each(cpu_time() - self.cpu_time)
        );
    }
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One thread: its own data plane, its own random numbers. A finding ends the run.
fn thread(run: &Run, seed: u64, speaks: bool) -> Result<Tally, String> {
    let Some(mut rig) = Rig::new() else {
        return Ok(Tally::default());
    };
    let mut generator = Generator::new(Random::seeded(seed));
    let mut history = History::new(HISTORY);
    let mut bytes = Vec::new();
    let mut reported = Instant::now();
    while !run.is_over() {
        rig.driver.clear();
        for (entry, packets) in SHARES {
            for _ in 0..packets {
                generator.packet(entry, &mut bytes);
                run.distinct.add(&bytes);
                history.add(entry, &bytes);
                rig.driver.add(entry, &bytes);
            }
        }
        if let Err((number, what)) = rig.judge() {
            run.over.store(true, Relaxed);
            let (entry, input) = rig.driver.input(number);
            println!("FINDING in a run of seed {seed}: {what}\n{entry:?} {input:02x?}");
            let mut story = history.all();
            story.truncate(story.len() + number + 1 - rig.driver.len());
            return Err(finding::save(&story, &what));
        }
        generator.learn(&mut rig.oracle.learnt);
        run.packets.fetch_add(rig.driver.len() as u64, Relaxed);
        if speaks && reported.elapsed() > REPORT {
            reported = Instant::now();
            run.report();
        }
    }
    if speaks {
        run.report();
    }
    rig.settle();
    println!("{:?}", rig.plane.all_reasons());
    Ok(rig.oracle.tally)
}

#[test]
fn generated_packets_neither_leak_nor_mend_nor_miscount() {
    if !possible() {
        return;
    }
    let mut log = Log::now();
    let seed = seed::announced("packet fuzzer");
    let threads = variable("EGRESS_FUZZ_THREADS").unwrap_or(1);
    let limit = Limit::from_environment();
    let run = Run {
        distinct: Distinct::new(limit.packets),
        limit,
        packets: AtomicU64::new(0),
        over: AtomicBool::new(false),
        began: Instant::now(),
        cpu_time: cpu_time(),
    };
    let results: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|nth| {
                let run = &run;
                // The first thread's numbers are the seed's own.
                let seed = seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                scope.spawn(move || thread(run, seed, nth == 0))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut total = Tally::default();
    let mut findings = Vec::new();
    for result in results {
        match result {
            Ok(tally) => total.add(&tally),
            Err(finding) => findings.push(finding),
        }
    }
    println!("{total:?}");
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    let often = [
        total.translated,
        total.returned,
        total.fragments,
        total.answered,
        total.passed,
        total.stopped,
    ];
    // Of ten thousand packets one or two, or none, let go one that was held.
    let reached = total.released != 0 || run.packets.load(Relaxed) < MOMENT;
    assert!(
        reached && often.iter().all(|number| *number != 0),
        "the generator reaches everything: {total:?}"
    );
    match &mut log {
        Some(log) => assert_eq!(log.warnings(), Vec::<String>::new(), "kernel warnings"),
        None => println!("SKIPPED: the kernel's log: it may not be read here"),
    }
}

#[test]
fn findings_stay_mended() {
    if !possible() {
        return;
    }
    let mut paths: Vec<_> = std::fs::read_dir(finding::folder())
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    paths.sort();
    for path in paths {
        let packets = finding::load(&path);
        println!("{}: {} packets", path.display(), packets.len());
        assert_eq!(finding::replay(&packets), None, "{}", path.display());
    }
}
