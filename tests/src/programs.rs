//! Where other people's programs are: installed, or unpacked by `cargo xtask test` below a folder of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// See [`use_folder`].
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// The folder where programs are unpacked that are not installed; it stands for `/`.
pub const VARIABLE: &str = "EGRESS_PROGRAMS";
/// Where programs are below `/`, besides what the path says.
const PLACES: [&str; 4] = ["usr/sbin", "sbin", "usr/bin", "bin"];

/// Takes programs from a folder that stands for `/`, where the environment names none; the first call holds.
pub fn use_folder(folder: PathBuf) {
    // A second call changes nothing, as promised.
    let _ = FOLDER.set(folder);
}

/// The path of a program, if it is there.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let unpacked = unpacked();
    let below = [Some(Path::new("/")), unpacked.as_deref()];
    env::split_paths(&path)
        .chain(
            below
                .into_iter()
                .flatten()
                .flat_map(|root| PLACES.map(|place| root.join(place))),
        )
        .map(|directory| directory.join(name))
        .find(|program| program.exists())
}

/// Lets a command find the libraries that were unpacked with its program.
pub fn with_libraries<'c>(command: &'c mut Command, program: &Path) -> &'c mut Command {
    let Some(root) = unpacked().filter(|root| program.starts_with(root)) else {
        return command;
    };
    // usr/lib, and usr/lib/x86_64-linux-gnu or whatever this architecture's is called.
    let mut libraries = Vec::new();
    for place in ["usr/lib", "lib"].map(|place| root.join(place)) {
        let below = fs::read_dir(&place).into_iter().flatten().flatten();
        libraries.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
        libraries.push(place);
    }
    match env::join_paths(libraries) {
        Ok(joined) => command.env("LD_LIBRARY_PATH", joined),
        // A colon in the folder's name: it will be said which library is missing.
        Err(_) => command,
    }
}

fn unpacked() -> Option<PathBuf> {
    let named = env::var_os(VARIABLE).map(PathBuf::from);
    named.or_else(|| FOLDER.get().cloned())
}
