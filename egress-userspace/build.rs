//! Compiles the data plane for the kernel and leaves it at `OUT_DIR/egress`, for the daemon to embed.
//!
//! The compiler and the linker are those that `cargo xtask build` found or set up and wrote down in
//! `target/bpf/toolchain`; this script only uses them, so that after one `cargo xtask build` a plain `cargo
//! build`, `cargo clippy`, `cargo test` and an editor's analyzer work by themselves. It promises to run again
//! when anything that enters the object or the daemon changes, and to print no path of this machine into either.
//!
//! Environment: `EGRESS_EBPF_VARIANT` (a number, default 0) yields the same programs under other tags.
//! To the crate: `EGRESS_BUILD_ID`, version and a digest of every source that was built, for example
//! `0.1.0+5f0c2a9b1d7e3344`, with `-v1` behind it for variant 1.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where `cargo xtask build` writes down its findings, relative to the workspace.
const TOOLCHAIN_FILE: &str = "target/bpf/toolchain";

/// Name of the binary in `egress-ebpf`, and of its copy in `OUT_DIR`.
const OBJECT: &str = "egress";

/// Everything that decides what the object and the daemon are, relative to the workspace.
const SOURCES: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "egress-common/Cargo.toml",
    "egress-common/src",
    "egress-ebpf/Cargo.toml",
    "egress-ebpf/build.rs",
    "egress-ebpf/src",
    "egress-userspace/Cargo.toml",
    "egress-userspace/build.rs",
    "egress-userspace/src",
];

fn main() -> ExitCode {
    // Just the message: what to do is not to drown in a backtrace.
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let workspace = PathBuf::from(var("CARGO_MANIFEST_DIR")?)
        .parent()
        .context("this crate is not inside its workspace")?
        .to_path_buf();
    for source in SOURCES {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(source).display()
        );
    }

    println!("cargo:rerun-if-env-changed=EGRESS_EBPF_VARIANT");
    let variant = env::var("EGRESS_EBPF_VARIANT").unwrap_or_else(|_| "0".to_owned());
    let variant: u32 = variant
        .parse()
        .with_context(|| format!("EGRESS_EBPF_VARIANT is `{variant}`, not a number"))?;

    let digest = digest(&workspace)?;
    let suffix = match variant {
        0 => String::new(),
        n => format!("-v{n}"),
    };
    println!(
        "cargo:rustc-env=EGRESS_BUILD_ID={}+{digest:016x}{suffix}",
        var("CARGO_PKG_VERSION")?
    );

    let toolchain = Toolchain::read(&workspace)?;
    let target_dir = shared_target_dir()?;
    // Another profile's build may be at it with another variant: from compiling to copying it is ours.
    fs::create_dir_all(&target_dir)?;
    let lock = File::create(target_dir.join("egress.lock"))?;
    lock.lock()
        .context("cannot lock the folder of the kernel programs")?;
    let object = build_object(&workspace, &toolchain, &target_dir, variant)?;
    let copy = PathBuf::from(var("OUT_DIR")?).join(OBJECT);
    fs::copy(&object, &copy)
        .with_context(|| format!("cannot copy {} to {}", object.display(), copy.display()))?;
    Ok(())
}

/// A variable that cargo promises to build scripts.
fn var(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set; build scripts are for cargo to run"))
}

/// What compiles and links for the kernel.
struct Toolchain {
    cargo: String,
    rustc: String,
    linker: String,
    /// `core` is not prebuilt for the target and has to be compiled from source.
    build_std: bool,
}

impl Toolchain {
    fn read(workspace: &Path) -> Result<Self> {
        let path = workspace.join(TOOLCHAIN_FILE);
        println!("cargo:rerun-if-changed={}", path.display());
        let Ok(text) = fs::read_to_string(&path) else {
            bail!(
                "no compiler for the kernel programs is set up yet ({TOOLCHAIN_FILE} is missing): run `cargo xtask build` once"
            );
        };
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(str::to_owned)
                .with_context(|| {
                    format!(
                        "{TOOLCHAIN_FILE} has no `{name}`: run `cargo xtask build` to write it anew"
                    )
                })
        };
        let toolchain = Self {
            cargo: field("cargo")?,
            rustc: field("rustc")?,
            linker: field("linker")?,
            build_std: field("build-std")? == "yes",
        };
        for program in [&toolchain.cargo, &toolchain.rustc, &toolchain.linker] {
            println!("cargo:rerun-if-changed={program}");
            ensure!(
                Path::new(program).exists(),
                "{program}, which compiles the kernel programs, is gone: run `cargo xtask build` to set it up again"
            );
        }
        Ok(toolchain)
    }
}

/// Compiles `egress-ebpf` and returns where the object is.
fn build_object(
    workspace: &Path,
    toolchain: &Toolchain,
    target_dir: &Path,
    variant: u32,
) -> Result<PathBuf> {
    let target = match var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let linker_variable = format!(
        "CARGO_TARGET_{}_LINKER",
        target.to_uppercase().replace('-', "_")
    );

    // BTF names the source file of every line; names of this machine's folders are nobody's business.
    let cargo_home =
        env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let mut flags = vec![
        // Version 3 of the instruction set (Linux 5.1): comparisons of 32 bits. Without them LLVM compares 64, and
        // a zero-extended value never equals a negative immediate: `x == u32::MAX` was always false.
        "-Ctarget-cpu=v3".to_owned(),
        format!(
            "--cfg=bpf_target_arch=\"{}\"",
            var("CARGO_CFG_TARGET_ARCH")?
        ),
        format!("--remap-path-prefix={}=/egress", workspace.display()),
    ];
    if let Ok(home) = cargo_home {
        flags.push(format!("--remap-path-prefix={home}=/cargo"));
    }

    let mut cargo = Command::new(&toolchain.cargo);
    cargo.current_dir(workspace);
    // Cargo tells build scripts about the outer build; the inner one is for another compiler and target.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if [
            "CARGO_CFG_",
            "CARGO_PROFILE_",
            "CARGO_BUILD_",
            "RUSTC",
            "RUSTUP_",
            "RUSTFLAGS",
            "CARGO_ENCODED_",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        {
            cargo.env_remove(name.as_ref());
        }
    }
    cargo
        .args(["build", "--quiet", "--package", "egress-ebpf", "--bins"])
        .args(["--profile", "bpf", "--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env(linker_variable, &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("EGRESS_EBPF_VARIANT", variant.to_string());
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]);
    } else {
        // The crates that use unstable features, by name: `1` would let every crate use them.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,egress_ebpf,egress");
    }

    let output = cargo
        .output()
        .with_context(|| format!("cannot run {} for the kernel programs", toolchain.cargo))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{messages}");
        bail!(
            "the kernel programs (egress-ebpf) do not compile; the compiler's messages are above"
        );
    }
    for line in messages.lines() {
        println!("cargo:warning={line}");
    }
    Ok(target_dir.join(target).join("bpf").join(OBJECT))
}

/// One folder for all profiles of the daemon: the kernel programs are the same for each. It lies next to the
/// outer build's profile folders, and never inside one that the outer cargo keeps locked.
fn shared_target_dir() -> Result<PathBuf> {
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    // <target>/<profile>/build/<package>-<hash>/out
    let target = out_dir.ancestors().nth(4).filter(|_| {
        out_dir
            .ancestors()
            .nth(2)
            .is_some_and(|build| build.ends_with("build"))
    });
    Ok(target.unwrap_or(&out_dir).join("bpf-objects"))
}

/// A digest (64-bit FNV-1a) of names and contents of all sources: the same on every machine, and another as soon
/// as one of them changes, committed or not.
fn digest(workspace: &Path) -> Result<u64> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&workspace.join(source), &mut files)?;
    }
    files.sort();

    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        add(name.as_os_str().as_encoded_bytes());
        add(&[0]);
        add(&(content.len() as u64).to_le_bytes());
        add(&content);
    }
    Ok(hash)
}

/// Adds `path`, or every file below it, to `files`.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in
            fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?
        {
            collect(&entry?.path(), files)?;
        }
    } else if path.exists() {
        files.push(path.to_path_buf());
    }
    Ok(())
}
