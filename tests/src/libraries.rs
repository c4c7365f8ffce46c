//! Other people's libraries: packages of Python and of JavaScript, where `cargo xtask test` or somebody else put them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::programs;

/// A Python interpreter that has packages, of a virtual environment for instance; without it, python3.
pub const PYTHON: &str = "EGRESS_PYTHON";
/// A folder `node_modules`.
pub const NODE_MODULES: &str = "EGRESS_NODE_MODULES";

/// A Python that has the package.
#[must_use]
pub fn python(package: &str) -> Option<PathBuf> {
    let python =
        env::var_os(PYTHON).map_or_else(|| programs::find("python3"), |path| Some(path.into()))?;
    let has = Command::new(&python)
        .args(["-c", &format!("import {package}")])
        .output()
        .is_ok_and(|output| output.status.success());
    has.then_some(python)
}

/// The folder of a package of JavaScript, and what runs it.
#[must_use]
pub fn javascript(package: &str) -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(&env::var_os(NODE_MODULES)?).join(package);
    let node = programs::find("node")?;
    folder.exists().then_some((node, folder))
}
