//! `cargo xtask fuzz`: two fuzzers, for a bounded time or number of inputs.
//!
//! *common*: libFuzzer, guided by coverage, on what kernel and daemon share (`egress-common/fuzz`). Its sanitizer
//! coverage is a pass of LLVM that any rustc has, so the user's own toolchain will do.
//! *packets*: generated packets through the real programs, chained as on a host and judged one by one
//! (`egress-userspace/tests/packets/fuzz`).
//!
//! Either prints its seed and leaves each finding as a file in its `findings` folder, which its tests replay.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packages, setup,
    toolchain::Toolchain,
    workspace::{Workspace, which},
};

/// What makes code tell the fuzzer where it has been.
const COVERAGE: &str = "-Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Ccodegen-units=1 --cfg fuzzing";

/// The test that fuzzes packets.
const PACKET_FUZZER: &str = "fuzz::generated_packets_neither_leak_nor_mend_nor_miscount";

/// Seconds of each fuzzer unless something else is said.
const SECONDS: u64 = 60;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which: common, packets; both if none is named
    names: Vec<String>,
    /// How long each fuzzer runs, 60 unless said otherwise
    #[arg(long, conflicts_with = "packets")]
    seconds: Option<u64>,
    /// How many inputs each fuzzer tries; for the packet fuzzer distinct packets
    #[arg(long)]
    packets: Option<u64>,
    /// What the inputs are drawn from; from the clock if not given
    #[arg(long)]
    seed: Option<u64>,
    /// CPUs for the packet fuzzer; all of them if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Afterwards add inputs that reached new code to the corpus in the repository
    #[arg(long)]
    keep: bool,
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn seconds(&self) -> Option<u64> {
        match self.packets {
            Some(_) => None,
            None => Some(self.seconds.unwrap_or(SECONDS)),
        }
    }
}

/// Runs the fuzzers; an error if one has found something.
pub(crate) fn main(args: &Args) -> Result<()> {
    for name in &args.names {
        ensure!(
            ["common", "packets"].contains(&name.as_str()),
            "no fuzzer {name}; there are: common, packets"
        );
    }
    let workspace = setup::ready("fuzz")?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = args
        .seed
        .unwrap_or_else(|| clock.map_or(1, |now| now.as_secs() ^ u64::from(now.subsec_nanos())));
    let mut found = Vec::new();
    if args.wants("common") && !common(&workspace, args, seed)? {
        found.push("common: see egress-common/fuzz/findings");
    }
    if args.wants("packets") && !packets(&workspace, args, seed)? {
        found.push("packets: see what it printed");
    }
    ensure!(found.is_empty(), "{}", found.join("; "));
    Ok(())
}

/// The shared code under libFuzzer; false if it has found something.
fn common(workspace: &Workspace, args: &Args, seed: u64) -> Result<bool> {
    if which("c++").is_none() {
        packages::install(&["g++"], "compiling libFuzzer")?;
    }
    println!("common: compiling (libFuzzer is C++, the first time takes a minute)");
    let host = host(workspace)?;
    let target = workspace.target.join("fuzz");
    let mut cargo = workspace.cargo();
    cargo.args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "egress-common",
    ]);
    cargo.args(["--bin", "fuzz-common", "--features", "engine"]);
    // With a target of its own, build scripts are not compiled with these flags.
    cargo
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&target);
    cargo
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzzer does not compile");

    let program = target.join(&host).join("release/fuzz-common");
    let folder = workspace.root.join("egress-common/fuzz");
    let findings = folder.join("findings");
    let corpus = folder.join("corpus.txt");
    // What is found on the way, and thrown away with the target folder.
    let grown = target.join("corpus");
    fs::create_dir_all(&findings)
        .with_context(|| format!("cannot create {}", findings.display()))?;
    unpack(&corpus, &grown)?;
    let mut fuzzer = Command::new(&program);
    fuzzer
        .arg(format!("-artifact_prefix={}/", findings.display()))
        // libFuzzer takes 32 bits, and zero for the clock.
        .arg(format!("-seed={}", seed as u32 | 1))
        .args(["-max_len=2048", "-timeout=10", "-print_final_stats=1"]);
    match args.seconds() {
        Some(seconds) => fuzzer.arg(format!("-max_total_time={seconds}")),
        None => fuzzer.arg(format!("-runs={}", args.packets.unwrap_or_default())),
    };
    fuzzer.arg(&grown);
    println!("common: seed {seed}");
    let status = fuzzer.status().context("cannot run the fuzzer")?;
    if args.keep {
        let best = target.join("best");
        if best.exists() {
            fs::remove_dir_all(&best).context("cannot clear the folder for the best inputs")?;
        }
        fs::create_dir_all(&best)?;
        let mut merge = Command::new(&program);
        let merged = merge.arg("-merge=1").args([&best, &grown]).status()?;
        ensure!(merged.success(), "the best inputs could not be chosen");
        pack(&best, &corpus)?;
    }
    Ok(status.success())
}

/// Writes a corpus, one input a line in hexadecimal, as the folder of files that libFuzzer wants.
fn unpack(corpus: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let text =
        fs::read_to_string(corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    for (number, line) in text.lines().enumerate() {
        let (pairs, _) = line.as_bytes().as_chunks::<2>();
        let bytes: Result<Vec<u8>> = pairs
            .iter()
            .map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?))
            .collect();
        fs::write(folder.join(format!("seed-{number}")), bytes?)?;
    }
    Ok(())
}

/// The other way.
fn pack(folder: &Path, corpus: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for file in fs::read_dir(folder)? {
        let bytes = fs::read(file?.path())?;
        let line: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(line + "\n");
    }
    lines.sort();
    fs::write(corpus, lines.concat()).with_context(|| format!("cannot write {}", corpus.display()))
}

/// This machine, as rustc calls it.
fn host(workspace: &Workspace) -> Result<String> {
    let output = workspace
        .cargo()
        .arg("-vV")
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("cargo does not say what machine this is")
}

/// Packets through the real programs; false if something was found.
fn packets(workspace: &Workspace, args: &Args, seed: u64) -> Result<bool> {
    Toolchain::ensure(workspace)?;
    let threads = args.threads.unwrap_or_else(egress_tests::worker::cpus);
    let mut test = workspace.cargo();
    test.args([
        "test",
        "--release",
        "--quiet",
        "--package",
        "egress-userspace",
    ])
    .args([
        "--test",
        "packets",
        "--",
        PACKET_FUZZER,
        "--exact",
        "--nocapture",
    ])
    .env("EGRESS_SEED", seed.to_string())
    .env("EGRESS_FUZZ_THREADS", threads.to_string());
    match (args.seconds(), args.packets) {
        (Some(seconds), _) => test.env("EGRESS_FUZZ_SECONDS", seconds.to_string()),
        (None, Some(packets)) => test.env("EGRESS_FUZZ_PACKETS", packets.to_string()),
        (None, None) => &mut test,
    };
    let status = test.status().context("cannot run the packet fuzzer")?;
    Ok(status.success())
}
