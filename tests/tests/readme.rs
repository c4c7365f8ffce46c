//! What the README tells people to write and to type works as it is printed there.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway,
    lab::Lab,
    needs,
    netns::{Namespace, run},
    topology::{End, Topology},
    wait,
};

/// How long the daemon may take to be ready, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The indented block of the README that holds a line that begins with `marker`.
fn block<'a>(readme: &'a str, marker: &str) -> Result<Vec<&'a str>> {
    let mut block = Vec::new();
    // A blank line belongs to a block that goes on behind it.
    for line in readme.lines().chain(["end"]) {
        if let Some(line) = line.strip_prefix("    ") {
            block.push(line);
        } else if line.is_empty() && !block.is_empty() {
            block.push("");
        } else if block.iter().any(|line| line.starts_with(marker)) {
            return Ok(block);
        } else {
            block.clear();
        }
    }
    anyhow::bail!("no block of the README has a line that begins with {marker:?}")
}

/// A command line of the README without its comment.
fn words(line: &str) -> Vec<&str> {
    let line = line.split_once("  ").map_or(line, |(line, _)| line);
    line.split_whitespace().collect()
}

/// A gateway with the interfaces of the README's example, and the folder where its files are.
struct Place<'a> {
    node: &'a Namespace,
    binary: PathBuf,
    directory: &'a Path,
    /// Where its programs and maps are pinned: no other daemon's place.
    pin: PathBuf,
}

impl Place<'_> {
    /// Runs a command line that begins with `egress`, as if the folder were /etc/egress.
    fn egress(&self, line: &[&str]) -> Result<String> {
        ensure!(line.first() == Some(&"egress"), "{line:?}");
        let mut command = self.node.command(&self.binary)?;
        command
            .args(line.iter().skip(1))
            .current_dir(self.directory);
        if line.get(1) != Some(&"validate") {
            command.args(["--config", "./egress.toml"]);
        }
        run(&mut command).with_context(|| line.join(" "))
    }

    /// `egress run`, until it says that all is in force.
    fn daemon(&self) -> Result<Daemon<'_>> {
        let log = self.directory.join("log");
        let child = self
            .node
            .command(&self.binary)?
            .args(["run", "--config", "./egress.toml"])
            .current_dir(self.directory)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let daemon = Daemon { place: self, child };
        wait::until_true("`ready`", LIMIT, || {
            Ok(fs::read_to_string(&log)?
                .lines()
                .any(|line| line == "ready"))
        })?;
        Ok(daemon)
    }
}

/// A daemon that leaves nothing behind, whatever the test comes to.
struct Daemon<'a> {
    place: &'a Place<'a>,
    child: Child,
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.place.pin.exists()
            && let Err(error) = self.place.egress(&["egress", "detach"])
        {
            eprintln!("detaching: {error:#}");
        }
    }
}

#[test]
fn the_configuration_and_the_commands_work_as_printed() -> Result<()> {
    const TEST: &str = "the_configuration_and_the_commands_work_as_printed";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let topology = Topology::new()
        .node("gateway")
        .node("net")
        .node("inside")
        .link(
            End::new("gateway", "eth0").address("203.0.113.2/24"),
            End::new("net", "eth0").address("203.0.113.5/24"),
        )
        .link(
            End::new("gateway", "br0").address("10.1.0.1/16"),
            End::new("inside", "eth0").address("10.1.0.2/16"),
        )
        .forwarding("gateway");
    let lab = Lab::up(&topology)?;
    let node = lab.node("gateway");
    let directory = lab.directory();
    let place = Place {
        node: &node,
        binary: gateway::binary()?,
        directory: &directory,
        pin: format!("/sys/fs/bpf/egress_readme_{}", std::process::id()).into(),
    };

    // As printed, but for the places of what this test must not share with the machine it runs on.
    let pin = place.pin.display();
    let own = format!("[dataplane]\npin = \"{pin}\"");
    let elsewhere = "\n[store]\nsqlite = \"./egress.db\"\n[control]\nsocket = \"./egress.sock\"\n";
    let server = block(&readme, "[server]")?.join("\n");
    let resources = block(&readme, "[[account]]")?.join("\n");
    let (resources, commands) = resources
        .split_once("\negress ")
        .map_or((resources.as_str(), None), |(file, rest)| {
            (file, Some(format!("egress {rest}")))
        });
    let commands = match commands {
        Some(commands) => commands,
        None => block(&readme, "egress validate")?.join("\n"),
    };
    fs::write(
        directory.join("egress.toml"),
        server.replace("[dataplane]", &own) + elsewhere,
    )?;
    fs::write(directory.join("resources.toml"), resources)?;

    let mut daemon = None;
    let mut tried = 0;
    for line in commands.lines().filter(|line| line.starts_with("egress ")) {
        let words = words(line);
        tried += 1;
        match words[..] {
            ["egress", "run"] => daemon = Some(place.daemon()?),
            ["egress", "status", ref others @ ..] => {
                for noun in ["status"].iter().chain(others).filter(|word| **word != "|") {
                    place.egress(&["egress", noun])?;
                    // One document, or one a line.
                    let json = place.egress(&["egress", noun, "--json"])?;
                    for value in serde_json::Deserializer::from_str(&json).into_iter() {
                        let _: serde_json::Value =
                            value.with_context(|| format!("egress {noun} --json"))?;
                    }
                }
            }
            ["egress", "why", ..] => {
                let said = place.egress(&words)?;
                ensure!(
                    said.contains("shop.example") && said.contains("partners"),
                    "{said}"
                );
            }
            // Nobody watches.
            ["egress", "top"] => drop(place.egress(&["egress", "top", "--once"])?),
            // Nobody is there.
            ["egress", "probe", ..] => {
                let error = place.egress(&words).err();
                let said = format!("{:#}", error.context("it let everything in")?);
                ensure!(said.contains("2 of 2 were not let in"), "{said}");
            }
            ["egress", "zone", ..] => {
                // For zones without [zone.aegis] in the file, it says.
                let file = directory.join("resources.toml");
                let whole = fs::read_to_string(&file)?;
                let (without, _) = whole.split_once("[zone.aegis]").context("no zone.aegis")?;
                fs::write(&file, without)?;
                place.egress(&["egress", "apply", "-f", "./resources.toml"])?;
                place.egress(&words)?;
                let zones = place.egress(&["egress", "zones"])?;
                ensure!(zones.contains("partners"), "{zones}");
            }
            _ => drop(place.egress(&words)?),
        }
    }
    ensure!(tried >= 7, "only {tried} commands in\n{commands}");
    let mut daemon = daemon.context("the README does not say how to run the daemon")?;
    wait::until_true("the daemon's end after detach", LIMIT, || {
        Ok(daemon.child.try_wait()?.is_some())
    })?;
    ensure!(!place.pin.exists(), "{pin} is left");
    Ok(())
}

/// The files below a folder whose names end so.
fn files(folder: &Path, end: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, end, found)?;
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    Ok(())
}

/// Every id of a rule that a message may hold is explained.
#[test]
fn ids_in_messages_are_explained() -> Result<()> {
    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    const NOUNS: [&str; 10] = [
        "POOL", "CAP", "ZONE", "POLICY", "NAT", "SAFE", "FWD", "OBS", "API", "CLU",
    ];

    let rules = fs::read_to_string(Path::new(ROOT).join("docs/rules.md"))?;
    let mut sources = vec![Path::new(ROOT).join("egress-common/src/reason.rs")];
    files(
        &Path::new(ROOT).join("egress-userspace/src"),
        ".rs",
        &mut sources,
    )?;
    let mut met = 0;
    for path in sources {
        let text = fs::read_to_string(&path)?;
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for word in
            code.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-'))
        {
            let is_id = word.split_once('-').is_some_and(|(noun, number)| {
                NOUNS.contains(&noun) && number.parse::<u8>().is_ok()
            });
            if is_id {
                met += 1;
                ensure!(
                    rules.contains(&format!("\n| {word} | ")),
                    "{word} of {} is not in docs/rules.md",
                    path.display()
                );
            }
        }
    }
    ensure!(met > 50, "only {met} ids were found");
    Ok(())
}
