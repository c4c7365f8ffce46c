//! Kernels in the distribution's packages: found, downloaded and unpacked below the target folder, not installed.
//!
//! apt is asked with lists of its own, so that this machine's stay as they are. Besides the configured sources it
//! looks at the same archive's stable release, that one's backports, and the development release, for kernels that
//! are newer than this distribution.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    str::FromStr,
};

use anyhow::{Context as _, Result, ensure};

use crate::packages;

/// Releases of the archive to look at besides the configured ones.
const RELEASES: [&str; 3] = ["stable", "stable-backports", "sid"];

/// The keys of the archive, where Debian puts them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The flavour for virtual machines: small, and boots fast.
const FLAVOUR: &str = "-cloud-amd64";

/// What parts newer kernels are split into, besides `image`.
const PARTS: [&str; 3] = ["linux-binary-", "linux-modules-", "linux-base-"];

/// Which kernel to test on.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    /// The last of a series, such as 6.12.
    Series(u32, u32),
    /// The newest there is.
    Newest,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(major, minor) => write!(f, "Linux {major}.{minor}"),
            Self::Newest => write!(f, "the newest Linux"),
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let numbers = text
            .split_once('.')
            .map(|(major, minor)| (major.parse(), minor.parse()));
        match numbers {
            Some((Ok(major), Ok(minor))) => Ok(Self::Series(major, minor)),
            _ => Err("a kernel is named like 6.12, or newest".to_owned()),
        }
    }
}

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says.
    pub(super) release: String,
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// The folder that stands for `/`, with `lib/modules` in it.
    pub(super) root: PathBuf,
}

/// Finds and unpacks what is wanted; an error for each that cannot be had.
pub(super) fn find(folder: &Path, wanted: &[Wanted]) -> Result<Vec<Result<Kernel>>> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "only made for x86-64 machines so far"
    );
    let apt = Apt::new(folder)?;
    let releases = apt.releases()?;
    Ok(wanted
        .iter()
        .map(|wanted| {
            let release = choose(&releases, *wanted)
                .context("the distribution's packages have none (flavour cloud-amd64)")?;
            apt.unpack(release, folder)
        })
        .collect())
}

/// The newest release that is wanted.
fn choose(releases: &[String], wanted: Wanted) -> Option<&str> {
    releases
        .iter()
        .filter(|release| match wanted {
            Wanted::Series(major, minor) => numbers(release).starts_with(&[major, minor]),
            Wanted::Newest => true,
        })
        .max_by_key(|release| numbers(release))
        .map(String::as_str)
}

/// The numbers of a release in their order: 6, 12, 117 and 12 of `6.12.117+deb12-cloud-amd64`.
fn numbers(release: &str) -> Vec<u32> {
    release
        .trim_end_matches(FLAVOUR)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// apt, with lists of its own.
struct Apt {
    options: Vec<String>,
    /// Where it downloads to.
    archives: PathBuf,
}

impl Apt {
    /// Prepares and refreshes the lists. That they cannot be refreshed is no error if there are any from before.
    fn new(folder: &Path) -> Result<Self> {
        ensure!(packages::has_apt(), "there is no apt-get here");
        let own = folder.join("apt");
        let sources = own.join("sources.list.d");
        for part in [
            "lists/partial",
            "cache/archives/partial",
            "sources.list.d",
            "debs",
        ] {
            let part = own.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        // The configured sources, and further releases of the same archive.
        for entry in fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
        {
            let path = entry?.path();
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                fs::copy(&path, sources.join(name))?;
            }
        }
        fs::write(sources.join("kernels.list"), further_releases()?)?;
        let set = |name: &str, value: &str| format!("{name}={value}");
        let apt = Self {
            options: vec![
                set("Dir::Etc::sourceparts", &sources.display().to_string()),
                set(
                    "Dir::State::lists",
                    &own.join("lists").display().to_string(),
                ),
                set("Dir::Cache", &own.join("cache").display().to_string()),
                set("Acquire::Languages", "none"),
                // What it writes belongs to whoever runs this.
                set("APT::Sandbox::User", "root"),
            ],
            archives: own.join("debs"),
        };
        println!("reading the lists of the distribution's kernels");
        let update = apt.run("apt-get", &["-q", "update"])?;
        if !update.status.success() {
            println!(
                "`apt-get update` failed, going on with the lists at hand: {}",
                String::from_utf8_lossy(&update.stderr).trim()
            );
        }
        Ok(apt)
    }

    /// The releases of all kernels there are packages of.
    fn releases(&self) -> Result<Vec<String>> {
        let pattern = format!("^linux-image-[0-9].*{FLAVOUR}$");
        let output = self.run("apt-cache", &["search", "--names-only", &pattern])?;
        let releases: Vec<String> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-"))
            .filter(|release| release.ends_with(FLAVOUR) && numbers(release).len() > 2)
            .map(str::to_owned)
            .collect();
        ensure!(
            !releases.is_empty(),
            "the package lists name no kernel of the flavour {FLAVOUR}"
        );
        Ok(releases)
    }

    /// Downloads and unpacks a kernel, unless that is done.
    fn unpack(&self, release: &str, folder: &Path) -> Result<Kernel> {
        let root = folder.join(release);
        if let Some(kernel) = Kernel::at(&root, release) {
            println!("Linux {release}: unpacked before");
            return Ok(kernel);
        }
        let parts = self.parts(release)?;
        println!("Linux {release}: unpacking {}", parts.join(", "));
        fs::create_dir_all(&root)?;
        for part in &parts {
            let output = Command::new("apt-get")
                .args(["-q", "download", part])
                .args(self.options())
                .current_dir(&self.archives)
                .output()
                .context("cannot run apt-get")?;
            ensure!(
                output.status.success(),
                "cannot download {part}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            for entry in fs::read_dir(&self.archives)? {
                let archive = entry?.path();
                let output = Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&archive, &root])
                    .output()
                    .context("cannot run dpkg-deb")?;
                ensure!(
                    output.status.success(),
                    "cannot unpack {part}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                fs::remove_file(archive)?;
            }
        }
        // Newer packages have everything below /usr.
        if !root.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        }
        Kernel::at(&root, release)
            .with_context(|| format!("{} have no image or no modules", parts.join(", ")))
    }

    /// The packages that a kernel consists of.
    fn parts(&self, release: &str) -> Result<Vec<String>> {
        let image = format!("linux-image-{release}");
        let output = self.run("apt-cache", &["depends", &image])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let further = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| PARTS.iter().any(|part| *name == format!("{part}{release}")))
            .map(str::to_owned);
        Ok(std::iter::once(image.clone()).chain(further).collect())
    }

    fn options(&self) -> impl Iterator<Item = &str> {
        self.options
            .iter()
            .flat_map(|option| ["-o", option.as_str()])
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        Command::new(program)
            .args(arguments)
            .args(self.options())
            .env("LC_ALL", "C")
            .output()
            .with_context(|| format!("cannot run {program}"))
    }
}

impl Kernel {
    /// The kernel that is unpacked in `root`, if all of it is there.
    fn at(root: &Path, release: &str) -> Option<Self> {
        let modules = root.join("lib/modules").join(release);
        let image = [
            root.join(format!("boot/vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ]
        .into_iter()
        .find(|image| image.is_file())?;
        modules.join("kernel").is_dir().then(|| Self {
            release: release.to_owned(),
            image,
            root: root.to_path_buf(),
        })
    }
}

/// Sources for further releases of the archive this distribution comes from; none where it is not Debian's.
fn further_releases() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(LABEL)"])
        .arg("Created-By: Packages")
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let archive = text
        .lines()
        .filter_map(|line| line.strip_prefix("Debian ")?.strip_suffix(" Debian"))
        .next();
    let Some(archive) = archive else {
        println!("this is no Debian: only the kernels of the configured sources");
        return Ok(String::new());
    };
    let signed = if Path::new(KEYS).exists() {
        format!("[signed-by={KEYS}] ")
    } else {
        String::new()
    };
    Ok(RELEASES
        .iter()
        .map(|release| format!("deb {signed}{archive} {release} main\n"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{Wanted, choose, numbers};

    #[test]
    fn the_newest_of_what_is_wanted() {
        let releases = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.107+deb13-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "7.3.4+deb13-cloud-amd64",
        ]
        .map(str::to_owned);
        let choose = |wanted| choose(&releases, wanted).unwrap_or("none").to_owned();
        assert_eq!(choose(Wanted::Series(6, 1)), "6.1.0-56-cloud-amd64");
        assert_eq!(choose(Wanted::Series(6, 12)), "6.12.117+deb12-cloud-amd64");
        assert_eq!(choose(Wanted::Series(6, 2)), "none");
        assert_eq!(choose(Wanted::Newest), "7.3.4+deb13-cloud-amd64");
        assert_eq!(numbers("6.12.117+deb12-cloud-amd64"), [6, 12, 117, 12]);
    }
}
