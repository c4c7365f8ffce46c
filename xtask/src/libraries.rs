//! Other people's libraries and testers that tests of the HTTP API use: packages of Python and of JavaScript.
//!
//! Promises: they go below the target folder, in the versions named here, and touch nothing else of the machine but
//! interpreters that Debian packages and that are missing; whoever watches reads what is installed and what for; and
//! where they cannot be had, a line says so and the tests that need them say `SKIPPED`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packages::{self, Tool},
    workspace::{Workspace, which},
};

/// What Python gets, with all that this needs. The versions are pinned, so that a day's upload changes no test.
const PYTHON: &str = include_str!("../../tests/requirements.txt");
/// What JavaScript gets; it needs nothing else.
const JAVASCRIPT: &str = "cloudflare@7.3.0";

/// Where tests find a Python that has these packages.
const PYTHON_VARIABLE: &str = "EGRESS_PYTHON";
/// Where tests find the folder `node_modules`.
const JAVASCRIPT_VARIABLE: &str = "EGRESS_NODE_MODULES";

/// Seconds for one installation: a registry that hangs does not hang the tests.
const PATIENCE: &str = "300";

/// What tests are told to find them by.
#[derive(Default)]
pub(crate) struct Libraries(Vec<(&'static str, PathBuf)>);

impl Libraries {
    /// Installs what is not there yet.
    pub(crate) fn ensure(workspace: &Workspace) -> Self {
        let root = workspace.target.join("libraries");
        let mut found = Vec::new();
        for (variable, language, packages, install) in [
            (PYTHON_VARIABLE, "Python", PYTHON, python as Install),
            (JAVASCRIPT_VARIABLE, "JavaScript", JAVASCRIPT, javascript),
        ] {
            // Somebody's own.
            if env::var_os(variable).is_some() {
                continue;
            }
            let folder = root.join(language.to_lowercase());
            match once(&folder, language, packages, install) {
                Ok(path) => found.push((variable, path)),
                Err(error) => eprintln!(
                    "xtask: no packages of {language}, so the tests that need them will say SKIPPED: {error:#}"
                ),
            }
        }
        Self(found)
    }

    /// Tells a test.
    pub(crate) fn tell(&self, command: &mut Command) {
        for (variable, path) in &self.0 {
            command.env(variable, path);
        }
    }
}

/// Installs into an empty folder; the answer is what tests are told.
type Install = fn(&Path) -> Result<PathBuf>;

/// Installs `packages` into `folder`, unless exactly these were installed there before.
fn once(folder: &Path, language: &str, packages: &str, install: Install) -> Result<PathBuf> {
    // Written last: where they are, then what is there.
    let note = folder.join("installed");
    if let Ok(text) = fs::read_to_string(&note)
        && let Some((path, installed)) = text.split_once('\n')
        && installed == packages
        && Path::new(path).exists()
    {
        return Ok(path.into());
    }
    eprintln!(
        "xtask: installing packages of {language} into {} (for the tests of the HTTP API)",
        folder.display()
    );
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = install(folder)?;
    fs::write(&note, format!("{}\n{packages}", path.display()))
        .with_context(|| format!("cannot write {}", note.display()))?;
    Ok(path)
}

/// A virtual environment.
fn python(folder: &Path) -> Result<PathBuf> {
    let make = || {
        let mut venv = bounded("python3");
        venv.args(["-m", "venv", "--clear"]).arg(folder);
        succeed(&mut venv)
    };
    // Debian's python3 comes without what makes one.
    if which("python3").is_none() || make().is_err() {
        packages::ensure(&["python3", "python3-venv"], "Python's packages")?;
        make()?;
    }
    let python = folder.join("bin/python");
    let list = folder.join("requirements.txt");
    fs::write(&list, PYTHON).with_context(|| format!("cannot write {}", list.display()))?;
    let mut pip = bounded(&python.display().to_string());
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--retries", "2"])
        .arg("--requirement")
        .arg(list);
    succeed(&mut pip)?;
    Ok(python)
}

/// A folder `node_modules`.
fn javascript(folder: &Path) -> Result<PathBuf> {
    let tool = |command, package| Tool {
        command,
        package,
        purpose: "JavaScript's packages",
    };
    packages::ensure_commands(&[tool("node", "nodejs"), tool("npm", "npm")])?;
    let mut npm = bounded("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(["--loglevel=error", "--fetch-retries=2", "--prefix"])
        .arg(folder)
        .arg(JAVASCRIPT);
    succeed(&mut npm)?;
    Ok(folder.join("node_modules"))
}

/// A program that is ended when it takes too long.
fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([PATIENCE, program]);
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let end = said.trim().lines().last().unwrap_or("it said nothing");
    ensure!(
        output.status.success(),
        "{command:?}: {}: {end}",
        output.status
    );
    Ok(())
}
