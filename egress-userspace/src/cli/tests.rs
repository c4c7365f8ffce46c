mod pinned;

use std::path::Path;
use std::time::{Duration, Instant};

use pinned::Pinned;
use serde_json::{Value, json};

use super::*;
use crate::diagnostic::Source;
use crate::plan::Plan;
use crate::resource;
use crate::store::{Limits, SqliteStore, StateStore};

const RESOURCES: &str = "account = [{ id = \"acme\" }]\n[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\"]\n[[zone]]\nid = \"z1\"\nname = \"shop.example\"\naccount = \"acme\"\nsources = [\"10.0.0.0/8\"]\naegis = { enabled = true, pool_id = \"a\" }\n";

/// A server whose daemon is down: configuration, and a store that `RESOURCES` was applied to.
fn server() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = "[dataplane]\nuplink = [\"up0\"]\n[store]\nsqlite = \"egress.db\"\n[control]\nsocket = \"egress.sock\"\n";
    std::fs::write(directory.path().join("egress.toml"), config).unwrap();
    std::fs::write(directory.path().join("r.toml"), RESOURCES).unwrap();
    let mut store = SqliteStore::open(&directory.path().join("egress.db")).unwrap();
    let model = resource::parse(&Source::new("r.toml", RESOURCES), None)
        .0
        .unwrap();
    let plan = Plan::new(&store.load().unwrap(), &model).0;
    store
        .commit(
            plan.changes(),
            Limits {
                last_zone: 9,
                last_pool: 9,
            },
        )
        .unwrap();
    directory
}

/// Exit, standard output and standard error of a command in `directory`; words with a slash are files there.
fn egress(directory: &Path, pinned: bool, line: &str) -> (Exit, String, String) {
    let word = |word: &str| match word.strip_prefix("./") {
        Some(file) => directory.join(file).display().to_string(),
        None => word.to_owned(),
    };
    let args: Vec<String> = std::iter::once("egress")
        .chain(line.split_whitespace())
        .map(word)
        .collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run_from(args, &Pinned(pinned), &mut out, &mut err);
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(&directory.display().to_string(), ".")
    };
    (exit, text(out), text(err))
}

fn json_of(directory: &Path, line: &str) -> Value {
    let (exit, out, err) = egress(
        directory,
        true,
        &format!("{line} --json --config ./egress.toml"),
    );
    assert_eq!(exit, Exit::Done, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[test]
fn wrong_usage_exits_2_and_help_0() {
    let directory = server();
    let run = |line: &str| egress(directory.path(), true, line);
    assert_eq!(run("").0, Exit::Usage);
    assert_eq!(run("fly").0, Exit::Usage);
    let mut full: &mut [u8] = &mut [0; 10];
    let words = ["egress", "completions", "bash"];
    let exit = run_from(words, &Pinned(true), &mut full, &mut Vec::new());
    assert_eq!(exit, Exit::Failed, "there is no room for all of it");
    let said: Value = serde_json::from_str(&run("fly --json").2).unwrap();
    let reason = said["error"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("unrecognized") && said["error"]["usage"] == true,
        "{said}"
    );
    assert_eq!(run("why nowhere 1.2.3.4:5").0, Exit::Usage);
    assert_eq!(run("--help").0, Exit::Done);
    assert_eq!(run("status --config ./missing.toml").0, Exit::Usage);
    assert_eq!(
        run("zone enable shop.example --pool a --config ./egress.toml").0,
        Exit::Failed,
        "needs a daemon"
    );
    assert_eq!(
        (Exit::Done.code(), Exit::Failed.code(), Exit::Usage.code()),
        (0, 1, 2)
    );
}

#[test]
fn validate_tells_the_kinds_of_file_apart_and_prints_ok() {
    let directory = server();
    let (exit, out, err) = egress(directory.path(), true, "validate ./egress.toml ./r.toml");
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    assert_eq!(
        out,
        "ok ./egress.toml (server configuration)\nok ./r.toml (resources)\n"
    );
}

#[test]
fn validate_reports_every_mistake_of_every_file() {
    let directory = server();
    std::fs::write(
        directory.path().join("bad.toml"),
        "[dataplane]\nuplink = []\nattach = \"xdp\"\n",
    )
    .unwrap();
    std::fs::write(directory.path().join("odd.toml"), "x = 1\n").unwrap();
    let (exit, out, err) = egress(
        directory.path(),
        true,
        "validate ./bad.toml ./r.toml ./odd.toml ./none.toml",
    );
    assert_eq!(exit, Exit::Usage);
    assert_eq!(out, "ok ./r.toml (resources)\n");
    for expected in [
        "bad.toml:2:10: error: `uplink` names no interface",
        "bad.toml:3:10: error: `attach` must be",
        "odd.toml:1:1: error: this is neither",
        "cannot read ./none.toml",
    ] {
        assert!(err.contains(expected), "{expected} in {err}");
    }
    let (exit, out, _) = egress(directory.path(), true, "validate ./bad.toml --json");
    let verdicts: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, Exit::Usage);
    assert_eq!(
        (&verdicts[0]["ok"], &verdicts[0]["diagnostics"][1]["line"]),
        (&json!(false), &json!(3))
    );
}

#[test]
fn resources_are_checked_against_the_server_beside_them() {
    let directory = server();
    let realm = RESOURCES.replace("sources = [\"10.0.0.0/8\"]", "interfaces = [\"in7\"]");
    std::fs::write(directory.path().join("realm.toml"), realm).unwrap();
    assert_eq!(
        egress(directory.path(), true, "validate ./realm.toml").0,
        Exit::Done
    );
    let (exit, _, err) = egress(
        directory.path(),
        true,
        "validate ./realm.toml ./egress.toml",
    );
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("no inside interface of this server"), "{err}");
}

#[test]
fn a_dry_run_works_without_a_daemon_and_an_apply_does_not() {
    let directory = server();
    let changed = RESOURCES.replace("192.0.2.1", "192.0.2.2");
    std::fs::write(directory.path().join("new.toml"), changed).unwrap();
    let (exit, out, err) = egress(
        directory.path(),
        true,
        "apply -f ./new.toml --dry-run --config ./egress.toml",
    );
    assert_eq!(
        (exit, out.as_str(), err.as_str()),
        (
            Exit::Done,
            "~ pool a: addresses: -192.0.2.1 +192.0.2.2\n",
            ""
        )
    );
    let (exit, _, err) = egress(
        directory.path(),
        true,
        "apply -f ./new.toml --config ./egress.toml",
    );
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("no daemon answers"), "{err}");
    let plan = json_of(directory.path(), "apply -f ./new.toml --dry-run");
    assert_eq!(plan["applied"], false);
    assert_eq!(plan["plan"]["steps"][0]["action"], "change");

    let taken = RESOURCES.replace("192.0.2.1", pinned::OWN);
    std::fs::write(directory.path().join("new.toml"), taken).unwrap();
    let (exit, _, err) = egress(
        directory.path(),
        true,
        "apply -f ./new.toml --dry-run --config ./egress.toml",
    );
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("configured on interface up0"), "{err}");
}

#[test]
fn status_flows_origins_and_pools_work_from_the_pinned_maps() {
    let directory = server();
    let status = json_of(directory.path(), "status");
    assert_eq!(
        (&status["daemon"], &status["ready"]),
        (&json!("down"), &json!(true))
    );
    assert_eq!(status["hooks"][0]["interface"], "up0");
    let flow = json_of(directory.path(), "flows --zone shop.example");
    assert_eq!(
        (&flow["zone"], &flow["pool"]),
        (&json!("shop.example"), &json!("a"))
    );
    let origins = json_of(directory.path(), "origins");
    assert_eq!(origins[0]["egress_ip"], "192.0.2.1", "sorted");
    assert_eq!(
        json_of(directory.path(), "origins --pool a")
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        json_of(directory.path(), "origins --origin 203.0.113.5:80"),
        json!([])
    );
    assert_eq!(
        json_of(directory.path(), "pools")[0]["zones"],
        json!(["shop.example"])
    );
    assert_eq!(
        json_of(directory.path(), "zones")[0]["setting_owner"],
        "file"
    );
    assert_eq!(
        json_of(directory.path(), "detach"),
        json!({"removed": ["the guard"]})
    );
    let why = json_of(directory.path(), "why 10.1.1.1 203.0.113.5:443 --mark 0xa1");
    assert_eq!(
        (&why["outcome"], &why["egress_ip"]),
        (&json!("admitted"), &json!("192.0.2.1"))
    );
}

#[test]
fn where_nothing_is_there_are_empty_lists_and_a_failing_status() {
    let directory = server();
    std::fs::remove_file(directory.path().join("egress.db")).unwrap();
    for list in ["origins", "pools", "zones"] {
        let (exit, out, err) = egress(
            directory.path(),
            false,
            &format!("{list} --json --config ./egress.toml"),
        );
        assert_eq!((exit, out.as_str()), (Exit::Done, "[]\n"));
        assert!(err.contains("there is no store"), "{err}");
    }
    let (exit, out, _) = egress(
        directory.path(),
        false,
        "flows --json --config ./egress.toml",
    );
    assert_eq!((exit, out.as_str()), (Exit::Done, ""));
    let (exit, out, _) = egress(directory.path(), false, "status --config ./egress.toml");
    assert_eq!(exit, Exit::Failed);
    assert!(out.contains("down, and nothing is attached"), "{out}");
}

#[test]
fn text_for_people_names_what_scripts_get_as_json() {
    let directory = server();
    let text = |line: &str| {
        egress(
            directory.path(),
            true,
            &format!("{line} --config ./egress.toml"),
        )
        .1
    };
    assert!(
        text("flows").starts_with(
            "tcp 10.1.0.2:4000 -> 192.0.2.1:4000 -> 203.0.113.5:443  zone shop.example"
        )
    );
    assert!(text("origins").contains("0.00 %"));
    assert!(text("zones").contains("source 10.0.0.0/8"));
    assert!(text("pools").contains("192.0.2.1"));
    assert!(text("status").contains("uplink_egress  up0        tcx"));
    assert!(
        text("why 10.1.1.1 203.0.113.5:443")
            .contains("admitted: a new connection leaves as 192.0.2.1")
    );
}

#[test]
fn failures_are_json_too() {
    let directory = server();
    let (exit, out, err) = egress(
        directory.path(),
        true,
        "zones --zone shop.exmple --json --config ./egress.toml",
    );
    assert_eq!((exit, out.as_str()), (Exit::Usage, ""));
    let error: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(error["error"]["remedy"], "did you mean shop.example?");
}

/// A reader that has seen enough.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let directory = server();
    let config = directory.path().join("egress.toml").display().to_string();
    for command in ["flows", "origins"] {
        let exit = run_from(
            ["egress", command, "--config", &config],
            &Pinned(true),
            &mut Closed,
            &mut Vec::new(),
        );
        assert_eq!(exit, Exit::Done);
    }
}

#[test]
fn status_and_detach_work_although_the_configuration_does_not() {
    let directory = server();
    let run = |line: &str| egress(directory.path(), true, line);
    let write = |text: &str| std::fs::write(directory.path().join("bad.toml"), text).unwrap();
    // A mistake elsewhere: the file still says which instance is meant.
    write(
        "[dataplane]\nuplink = []\npin = \"/sys/fs/bpf/mine\"\n[control]\nsocket = \"mine.sock\"\n",
    );
    for command in ["status", "detach"] {
        let (exit, _, err) = run(&format!("{command} --config ./bad.toml"));
        assert_eq!(exit, Exit::Done, "{err}");
        assert!(
            err.contains("assuming pins in /sys/fs/bpf/mine and the control socket ./mine.sock"),
            "{err}"
        );
    }
    // It does not, or what it says cannot be read: nobody's pins are guessed.
    for text in [
        "[dataplane\nuplink = [\"up0\"]\npin = \"/sys/fs/bpf/mine\"\n",
        "[dataplane]\nuplink = [\"up0\"]\npin = \"mine\"\n",
        "[dataplane]\nuplink = [\"up0\"]\npins = \"/sys/fs/bpf/mine\"\n",
    ] {
        write(text);
        for command in ["status", "detach"] {
            let (exit, _, err) = run(&format!("{command} --config ./bad.toml"));
            assert_eq!(exit, Exit::Usage, "{err}");
            assert!(
                err.contains("bad.toml") && err.contains("--pin DIR"),
                "{err}"
            );
            let (exit, _, err) = run(&format!(
                "{command} --config ./bad.toml --pin /sys/fs/bpf/x --socket ./x.sock"
            ));
            assert_eq!(exit, Exit::Done, "{err}");
            assert!(
                err.contains("/sys/fs/bpf/x and the control socket ./x.sock"),
                "{err}"
            );
        }
    }
    assert_eq!(run("detach --config ./missing.toml").0, Exit::Usage);
    // With one that can be read there is nothing to say, and the command line goes before it.
    let (exit, _, err) = run("status --config ./egress.toml --pin /sys/fs/bpf/x");
    assert_eq!(
        (exit, err.contains("assuming")),
        (Exit::Done, false),
        "{err}"
    );
}

#[test]
fn detach_waits_for_a_daemon_that_is_starting() {
    const START: Duration = Duration::from_millis(200);
    let directory = server();
    let lock = std::fs::File::create(directory.path().join("egress.sock.lock")).unwrap();
    lock.lock().unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(START);
            drop(lock);
        });
        let (exit, out, err) = egress(directory.path(), true, "detach --config ./egress.toml");
        assert_eq!(
            (exit, out.as_str()),
            (Exit::Done, "removed the guard\n"),
            "{err}"
        );
    });
    assert!(
        began.elapsed() >= START,
        "it did not wait until the start had failed"
    );
}

/// SAFE-4: what is named is taken off, and nobody else is asked to go.
#[test]
fn detach_of_other_pins_leaves_the_configured_daemon_alone() {
    let directory = server();
    // The configured instance's daemon is there.
    let lock = std::fs::File::create(directory.path().join("egress.sock.lock")).unwrap();
    lock.lock().unwrap();
    let command = "detach --config ./egress.toml --pin /sys/fs/bpf/another";
    let (exit, out, err) = egress(directory.path(), true, command);
    assert_eq!(
        (exit, out.as_str()),
        (Exit::Done, "removed the guard\n"),
        "{err}"
    );
}

#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("egress-gone.1"),
        "of an older version",
    )
    .unwrap();
    let (exit, ..) = egress(directory.path(), false, "manual ./");
    assert_eq!(exit, Exit::Done);
    let pages: std::collections::BTreeSet<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let (_, help, _) = egress(directory.path(), false, "--help");
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 10, "{help}");
    for command in commands.iter().filter(|command| **command != "help") {
        let page = format!("egress-{command}.1");
        assert!(pages.contains(&page), "{page} of {pages:?}");
    }
    assert!(pages.contains("egress-zone-enable.1") && pages.contains("egress.1"));
    assert!(!pages.contains("egress-gone.1"));
    let page = std::fs::read_to_string(directory.path().join("egress-zone-enable.1")).unwrap();
    assert!(page.contains("\\-\\-pool"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let (exit, script, _) = egress(directory.path(), false, &format!("completions {shell}"));
        assert_eq!(exit, Exit::Done);
        for command in &commands {
            assert!(script.contains(command), "{command} in {shell}");
        }
    }
}

#[test]
fn a_daemon_that_hangs_is_told_from_one_that_is_down() {
    let directory = server();
    let socket = directory.path().join("egress.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let run = |line: &str| {
        egress(
            directory.path(),
            true,
            &format!("{line} --config ./egress.toml"),
        )
    };
    let (zones, enable) = std::thread::scope(|scope| {
        let zones = scope.spawn(|| run("zones"));
        let enable = scope.spawn(|| run("zone enable shop.example --pool a"));
        (zones.join().unwrap(), enable.join().unwrap())
    });
    for (exit, out, err) in [&zones, &enable] {
        assert_eq!((*exit, out.as_str()), (Exit::Failed, ""), "{err}");
        let silent = "error: the daemon at ./egress.sock does not answer within 10 s\n";
        assert!(err.starts_with(silent), "{err}");
        assert!(
            err.contains(&format!("process {} is starting", std::process::id())),
            "{err}"
        );
    }
    assert!(!zones.2.contains("may be done"), "{}", zones.2);
    assert!(enable.2.contains("may be done"), "{}", enable.2);
    drop(listener);
    assert_eq!(
        run("zones").0,
        Exit::Done,
        "from the store, without a daemon"
    );
}
