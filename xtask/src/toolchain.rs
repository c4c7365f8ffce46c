//! The compiler and the linker of the kernel programs: found, or set up, and written down in
//! `target/bpf/toolchain`, where the daemon's build script reads them.
//!
//! Two routes. First, a compiler that has `core` prebuilt for the kernel's target; Debian and its derivatives
//! package one beside their ordinary rustc. Else rustup's nightly with the source of `core`; that route is
//! untested. Either way `bpf-linker` is compiled for the LLVM of that very compiler: the two exchange LLVM's
//! bitcode, which only reads back in the same major version.
//!
//! The user's own toolchain, which builds everything for the host, is left as it is.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    packages,
    workspace::{Workspace, which, write_if_changed},
};

/// Version of bpf-linker, pinned so that the object does not change under us.
const LINKER_VERSION: &str = "0.13.0";

/// The LLVM versions this bpf-linker can be compiled for.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Debian's compiler with `core` for the kernel's target.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The linter that goes with [`DEBIAN_PACKAGES`].
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The crates that need unstable features: the last is the program's crate, named after the binary. With `1` in
/// place of names every crate could use them.
const UNSTABLE_CRATES: &str = "aya_ebpf,egress_ebpf,egress";

/// The kernel's target, in this machine's byte order.
pub(crate) const TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// A Rust compiler that can compile for the kernel.
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Major version of its LLVM.
    llvm: u32,
    /// `core` has to be compiled from source first.
    build_std: bool,
}

/// All that is needed to compile for the kernel.
pub(crate) struct Toolchain {
    compiler: Compiler,
}

impl Toolchain {
    /// Finds the toolchain or sets it up. When all is there, this takes a fraction of a second.
    pub(crate) fn ensure(workspace: &Workspace) -> Result<Self> {
        let compiler = match find() {
            Some(compiler) => compiler,
            None => set_up()?,
        };
        let linker = ensure_linker(&workspace.bpf_dir(), &compiler)?;
        write_if_changed(
            &workspace.bpf_dir().join("toolchain"),
            &format!(
                "cargo={}\nrustc={}\nlinker={}\nbuild-std={}\n",
                compiler.cargo.display(),
                compiler.rustc.display(),
                linker.display(),
                if compiler.build_std { "yes" } else { "no" }
            ),
        )?;
        Ok(Self { compiler })
    }

    /// `cargo clippy` of this compiler for the kernel programs, or why there is none.
    pub(crate) fn clippy(&self, workspace: &Workspace) -> Result<Command> {
        let program = self.compiler.cargo.with_file_name("cargo-clippy");
        if !program.exists() && self.compiler.rustc == Path::new("/usr/bin/rustc") {
            packages::install(&[DEBIAN_CLIPPY], "lints of the kernel programs")?;
        }
        ensure!(
            program.exists(),
            "the compiler of the kernel programs comes without clippy"
        );
        let mut command = self.compiler.command(&program);
        command
            .current_dir(&workspace.root)
            // Without the word, as cargo passes it, the first argument would be taken for it.
            .args(["clippy", "--package", "egress-ebpf", "--profile", "bpf"])
            .args(["--target", TARGET, "--target-dir"])
            // The one of egress-userspace/build.rs: macros and build scripts are the same.
            .arg(workspace.target.join("bpf-objects"))
            .env("CARGO", &self.compiler.cargo);
        if self.compiler.build_std {
            command.args(["-Z", "build-std=core"]);
        } else {
            command.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
        }
        Ok(command)
    }
}

impl Compiler {
    /// Looks at a rustc: does it have `core` for the kernel, prebuilt or as source, and is it new enough?
    fn inspect(rustc: &Path, build_std: bool) -> Option<Self> {
        let cargo = rustc.with_file_name("cargo");
        if !rustc.is_file() || !cargo.is_file() {
            return None;
        }
        let library = PathBuf::from(print(rustc, &["--print", "sysroot"])?).join("lib/rustlib");
        let has_core = if build_std {
            library.join("src/rust/library/core").is_dir()
        } else {
            fs::read_dir(library.join(TARGET).join("lib")).is_ok_and(|files| {
                files
                    .flatten()
                    .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
            })
        };
        if !has_core {
            return None;
        }
        let about = print(rustc, &["-vV"])?;
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
        if version(field("release: ")?) < version(env!("CARGO_PKG_RUST_VERSION")) {
            return None;
        }
        Some(Self {
            cargo,
            rustc: rustc.to_path_buf(),
            llvm: version(field("LLVM version: ")?).0,
            build_std,
        })
    }

    /// A program of this toolchain, without what the user's cargo, through which xtask runs, has told us about
    /// itself.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["RUST", "CARGO_BUILD_", "CARGO_ENCODED_", "CARGO_TARGET_"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
                && text != "RUST_BACKTRACE"
            {
                command.env_remove(&name);
            }
        }
        command.env("RUSTC", &self.rustc);
        command
    }
}

/// Finds a compiler that is there already.
fn find() -> Option<Compiler> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian's is here; a rustup that precedes it on the PATH is only asked if it is not.
    std::iter::once(PathBuf::from("/usr/bin"))
        .chain(env::split_paths(&path))
        .find_map(|dir| Compiler::inspect(&dir.join("rustc"), false))
        .or_else(find_nightly)
}

/// Finds rustup's nightly, if it has the source of `core`.
fn find_nightly() -> Option<Compiler> {
    let rustup = which("rustup")?;
    let rustc = print(&rustup, &["which", "--toolchain", "nightly", "rustc"])?;
    Compiler::inspect(Path::new(&rustc), true)
}

/// Installs a compiler by the first route that is open.
fn set_up() -> Result<Compiler> {
    let debian = match set_up_debian() {
        Ok(compiler) => return Ok(compiler),
        Err(error) => error,
    };
    eprintln!("xtask: no compiler from the distribution's packages: {debian:#}");
    let nightly = match set_up_nightly() {
        Ok(compiler) => return Ok(compiler),
        Err(error) => error,
    };
    bail!(
        "no compiler from rustup either: {nightly:#}\nOne of the two is needed for the kernel programs: make it \
         work and repeat"
    )
}

fn set_up_debian() -> Result<Compiler> {
    let minimum = env!("CARGO_PKG_RUST_VERSION");
    ensure!(packages::has_apt(), "there is no apt-get on this system");
    let [rustc, ..] = DEBIAN_PACKAGES;
    let candidate = packages::candidate(rustc)
        .with_context(|| format!("this distribution has no package {rustc}"))?;
    ensure!(
        version(&candidate) >= version(minimum),
        "this distribution's {rustc} is {candidate}, and {minimum} is needed (on Debian the newest is among the \
         security updates: are those enabled?)"
    );
    packages::install(
        &DEBIAN_PACKAGES,
        "compiling the kernel programs, beside your own Rust toolchain",
    )?;
    find()
        .context("the packages are installed, yet no compiler with `core` for the kernel is found")
}

fn set_up_nightly() -> Result<Compiler> {
    let rustup = which("rustup").context("rustup is not installed")?;
    eprintln!(
        "xtask: installing rustup's nightly with rust-src (for compiling the kernel programs; this route is \
         untested)"
    );
    // A nightly that is there stays the one it is: it may be of use for something else.
    let arguments: &[&str] =
        if print(&rustup, &["which", "--toolchain", "nightly", "rustc"]).is_some() {
            &["component", "add", "--toolchain", "nightly", "rust-src"]
        } else {
            &[
                "toolchain",
                "install",
                "nightly",
                "--no-self-update",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]
        };
    let status = Command::new(rustup)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .context("cannot run rustup")?;
    ensure!(status.success(), "`rustup {}` failed", arguments.join(" "));
    find_nightly().context("nightly is installed, yet it has no source of `core`")
}

/// The linker for the compiler's LLVM, compiled on first use.
fn ensure_linker(dir: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let llvm = compiler.llvm;
    ensure!(
        LINKER_LLVM.contains(&llvm),
        "{} has LLVM {llvm}; bpf-linker {LINKER_VERSION} knows LLVM {} to {}",
        compiler.rustc.display(),
        LINKER_LLVM.start(),
        LINKER_LLVM.end()
    );
    let root = dir.join(format!("linker-{LINKER_VERSION}-llvm{llvm}"));
    let linker = root.join("bin/bpf-linker");
    // Not only there, but able to start: its LLVM library may have gone with a package.
    if print(&linker, &["--version"]).is_some() {
        return Ok(linker);
    }

    let dev = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    let dev: Vec<&str> = dev.iter().map(String::as_str).collect();
    let packages = if packages::has_apt() {
        packages::ensure(&dev, "bpf-linker, which links the kernel programs")
    } else {
        Ok(())
    };
    let Some(llvm_bin) = llvm_bin(llvm) else {
        packages?;
        bail!(
            "bpf-linker has to be compiled for LLVM {llvm}, the one of {}, and there is no llvm-config of that \
             version: install LLVM {llvm}'s development files and repeat",
            compiler.rustc.display()
        );
    };

    eprintln!(
        "xtask: compiling bpf-linker {LINKER_VERSION} for LLVM {llvm} (once; about a minute)"
    );
    let mut path = vec![llvm_bin];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let build = dir.join("linker-build");
    let output = compiler
        .command(&compiler.cargo)
        .args(["install", "bpf-linker", "--locked", "--force", "--quiet"])
        .args(["--version", LINKER_VERSION, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(&build)
        .env("PATH", env::join_paths(path)?)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .output()
        .with_context(|| format!("cannot run {}", compiler.cargo.display()))?;
    ensure!(
        output.status.success() && linker.is_file(),
        "bpf-linker does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Half a gigabyte that nobody needs again; an error here harms nothing.
    drop(fs::remove_dir_all(&build));
    ensure!(
        print(&linker, &["--version"]).is_some(),
        "{} does not start",
        linker.display()
    );
    Ok(linker)
}

/// The folder with the `llvm-config` of an LLVM version.
fn llvm_bin(llvm: u32) -> Option<PathBuf> {
    [format!("llvm-config-{llvm}"), "llvm-config".to_owned()]
        .iter()
        .filter_map(|name| which(name))
        .find(|config| print(config, &["--version"]).is_some_and(|text| version(&text).0 == llvm))
        .and_then(|config| print(&config, &["--bindir"]))
        .map(PathBuf::from)
}

/// What a program prints on stdout, if it runs and succeeds.
fn print(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Major and minor version in front of whatever follows; zeros where there are no numbers.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.96.0+dfsg1-1~deb12u2"), (1, 96));
        assert_eq!(version("22.1.8"), (22, 1));
        assert_eq!(version("1.97.0-nightly"), (1, 97));
        assert!(version("1.100.0") > version("1.95"));
        assert!(version("1.85.0+dfsg3-1~deb12u3") < version("1.95"));
        assert_eq!(version(""), (0, 0));
    }
}
