//! A root file system in memory: programs with their libraries, kernel modules, and a few files, as the archive that
//! the kernel unpacks when it boots (cpio, format "newc").

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{packages::Tool, workspace::which};

/// Tells which module needs which.
pub(super) const DEPMOD: Tool = Tool {
    command: "depmod",
    package: "kmod",
    purpose: "modules of other kernels",
};

/// Reads the modules of newer kernels.
pub(super) const XZ: Tool = Tool {
    command: "xz",
    package: "xz-utils",
    purpose: "modules of other kernels",
};

/// Leaves debugging information behind: it is most of a test binary.
pub(super) const STRIP: Tool = Tool {
    command: "strip",
    package: "binutils",
    purpose: "small images for other kernels",
};

/// Folders with what networking may need, below `kernel`.
const MODULES: [&str; 4] = ["net", "lib", "crypto", "arch"];
/// The same, without what is in folders below them: the drivers of devices there are not.
const DRIVERS: [&str; 3] = ["drivers/net", "drivers/net/bonding", "drivers/net/vxlan"];

/// Executable, by everybody.
const EXECUTABLE: u32 = 0o100_755;
/// Readable.
const PLAIN: u32 = 0o100_644;
/// A folder.
const FOLDER: u32 = 0o040_755;

/// What is in the image, by its path there.
pub(super) struct Image {
    files: BTreeMap<PathBuf, (u32, Content)>,
}

enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Image {
    pub(super) fn new() -> Self {
        Self {
            files: BTreeMap::new(),
        }
    }

    /// Adds a program under a name, and every library it is linked with where the linker expects it.
    pub(super) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        for library in libraries(path)? {
            let content = Content::File(library.clone());
            self.files.insert(library, (EXECUTABLE, content));
        }
        let content = Content::File(path.to_path_buf());
        self.files.insert(name.into(), (EXECUTABLE, content));
        Ok(())
    }

    /// The same without debugging information. What is left of the program is written to `folder`.
    pub(super) fn stripped(&mut self, name: &str, path: &Path, folder: &Path) -> Result<()> {
        let file = path.file_name().context("a program without a name")?;
        let stripped = folder.join(file).with_added_extension("stripped");
        let status = Command::new(STRIP.command)
            .arg("-o")
            .args([&stripped, path])
            .status()
            .context("cannot run strip")?;
        ensure!(status.success(), "strip {}: {status}", path.display());
        self.program(name, &stripped)
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, bytes: Vec<u8>) {
        self.files
            .insert(name.into(), (PLAIN, Content::Bytes(bytes)));
    }

    /// Adds what networking may need of a kernel's modules, and the lists of who needs whom. `root` is the folder the
    /// kernel is unpacked in.
    pub(super) fn modules(&mut self, root: &Path, release: &str) -> Result<()> {
        let output = Command::new(which(DEPMOD.command).context("there is no depmod")?)
            .arg("--basedir")
            .arg(root)
            .arg(release)
            .output()
            .context("cannot run depmod")?;
        ensure!(
            output.status.success(),
            "depmod failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let folder = Path::new("lib/modules").join(release);
        let all = root.join(&folder);
        let mut found = Vec::new();
        for entry in fs::read_dir(&all).with_context(|| format!("no {}", all.display()))? {
            let path = entry?.path();
            if path.is_file() {
                found.push(path);
            }
        }
        for part in MODULES {
            list(&all.join("kernel").join(part), true, &mut found)?;
        }
        for part in DRIVERS {
            list(&all.join("kernel").join(part), false, &mut found)?;
        }
        for path in found {
            let inside = Path::new("/").join(&folder).join(path.strip_prefix(&all)?);
            self.files.insert(inside, (PLAIN, Content::File(path)));
        }
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive {
            out: BufWriter::new(file),
            entries: 0,
        };
        let folders: BTreeSet<&Path> = self
            .files
            .keys()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|folder| folder.parent().is_some())
            .collect();
        // In their order, a folder comes before what is in it.
        for folder in folders {
            archive.entry(folder, FOLDER, &[])?;
        }
        for (name, (mode, content)) in &self.files {
            match content {
                Content::Bytes(bytes) => archive.entry(name, *mode, bytes)?,
                Content::File(path) => {
                    let bytes = fs::read(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    archive.entry(name, *mode, &bytes)?;
                }
            }
        }
        archive.entry(Path::new("/TRAILER!!!"), 0, &[])?;
        archive.out.flush()?;
        Ok(())
    }
}

/// The archive being written.
struct Archive {
    out: BufWriter<File>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.strip_prefix("/")?.as_os_str().as_encoded_bytes();
        self.entries += 1;
        let length = u32::try_from(content.len()).context("a file too large for the archive")?;
        let head = header(self.entries, mode, length, name.len());
        self.out.write_all(&head)?;
        self.out.write_all(name)?;
        // The name ends with a zero; header and name, and the content, are padded to whole words.
        self.pad(head.len() + name.len(), 1)?;
        self.out.write_all(content)?;
        self.pad(content.len(), 0)
    }

    /// Zeros: at least as many as said, then up to a whole word.
    fn pad(&mut self, written: usize, least: usize) -> Result<()> {
        let zeros = least + (4 - (written + least) % 4) % 4;
        self.out.write_all(&[0; 4][..zeros])?;
        Ok(())
    }
}

/// The header of an entry: thirteen hexadecimal numbers behind a magic one (the kernel's
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn header(number: u32, mode: u32, length: u32, name: usize) -> Vec<u8> {
    let links = if mode == FOLDER { 2 } else { 1 };
    let mut header = b"070701".to_vec();
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        length,
        0,
        0,
        0,
        0,
        // A name is a path: far shorter than that.
        name as u32 + 1,
        0,
    ];
    for field in fields {
        header.extend(format!("{field:08x}").bytes());
    }
    header
}

/// Files in a folder, and below if wanted. A folder that is not there is empty: kernels differ.
fn list(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            found.push(path);
        } else if deep {
            list(&path, deep, found)?;
        }
    }
    Ok(())
}

/// The libraries a program is linked with, and its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if text.contains("statically linked") || said.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(
        output.status.success(),
        "ldd {}: {}",
        program.display(),
        said.trim()
    );
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    Ok(text
        .lines()
        .filter_map(library)
        .map(PathBuf::from)
        .collect())
}

/// The path in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x...)`, or `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn library(line: &str) -> Option<&str> {
    let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
    let (path, _) = path.split_once(" (")?;
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::{PLAIN, header, library};

    #[test]
    fn libraries_are_read() {
        let line = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)";
        assert_eq!(library(line), Some("/lib/x86_64-linux-gnu/libc.so.6"));
        let line = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)";
        assert_eq!(library(line), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f)"), None);
    }

    #[test]
    fn a_header_is_110_bytes() {
        let header = header(1, PLAIN, 5, 4);
        assert_eq!(header.len(), 110);
        assert!(header.starts_with(b"07070100000001000081a4"));
    }
}
