//! Bad input: each kind gives one clear error that names place, reason and remedy, the right exit code, and
//! what was running keeps running.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::{Files, Resources, Server},
    gateway, needs,
    origin::HTTP_PORT,
    site::{HOST, Plan, Site},
    standard::{BOUND, POOL, UPLINK},
    wait,
};
use nix::sys::signal::Signal;

/// Done, failed, wrong usage or invalid configuration.
const FAILED: i32 = 1;
const INVALID: i32 = 2;
/// How long a daemon that may not start takes to say so.
const END_LIMIT: Duration = Duration::from_secs(60);
/// The user and group `nobody`.
const NOBODY: u32 = 65_534;

/// A file that is wrong in one way.
struct Case {
    name: &'static str,
    resources: Resources,
    /// What the message must say.
    says: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let default = Resources::default;
    let pool = "[[pool]]\nid = \"other\"\naccount = \"acme\"\nkind = \"leased\"\naddresses = [\"203.0.113.11\"]\n";
    let zone = "[[zone]]\nid = \"0123456789abcdef0123456789abcdef\"\nname = \"two.example\"\naccount = \"acme\"\n";
    let prefix =
        "[[prefix]]\ncidr = \"198.51.100.0/24\"\naccount = \"acme\"\nservice = \"cdn-egress\"\n";
    vec![
        Case {
            name: "a mixed pool",
            resources: Resources {
                addresses: vec![POOL[0].to_string(), "198.51.100.7".to_owned()],
                sections: prefix.to_owned(),
                ..default()
            },
            says: &["203.0.113.10", "198.51.100.7"],
        },
        Case {
            name: "an empty pool",
            resources: Resources {
                addresses: Vec::new(),
                ..default()
            },
            says: &["empty", "allow_empty"],
        },
        Case {
            name: "an address in two pools",
            resources: Resources {
                sections: pool.to_owned(),
                ..default()
            },
            says: &["203.0.113.11", "partners", "other"],
        },
        Case {
            name: "a prefix of the wrong family",
            resources: Resources {
                addresses: vec!["203.0.113.0/24".to_owned()],
                ..default()
            },
            says: &["203.0.113.0/24", "IPv4"],
        },
        Case {
            name: "a zone without selector",
            resources: Resources {
                selectors: String::new(),
                ..default()
            },
            says: &["sources"],
        },
        Case {
            name: "two zones with one selector",
            resources: Resources {
                sections: format!("{zone}sources = [\"10.1.0.0/16\"]\n"),
                ..default()
            },
            says: &["10.1.0.0/16", "two.example"],
        },
        Case {
            name: "an unknown key",
            resources: Resources {
                pool: "conections_per_origin = 7".to_owned(),
                ..default()
            },
            says: &["conections_per_origin", "connections_per_origin"],
        },
        Case {
            name: "a cap that is too large",
            resources: Resources {
                connections_per_origin: 40_001,
                ..default()
            },
            says: &["40001", "40000"],
        },
        Case {
            name: "no TOML",
            resources: Resources {
                sections: "[[zone".to_owned(),
                ..default()
            },
            says: &["not valid TOML"],
        },
    ]
}

#[test]
fn bad_resources_are_refused_with_their_place_and_change_nothing() -> Result<()> {
    const TEST: &str = "bad_resources_are_refused_with_their_place_and_change_nothing";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let pools = site.gateway.text(["pools", "--json"])?;
    let bad = site.lab.directory().join("bad");
    fs::create_dir_all(&bad)?;
    // The server's file beside it, so that the resources are checked against it.
    fs::copy(site.gateway.files().config(), bad.join("egress.toml"))?;
    let files = Files {
        directory: bad,
        pin: site.lab.pin(),
    };
    for case in cases() {
        files.write_resources(&case.resources)?;
        let path = files.resources();
        let name = path.display().to_string();
        for arguments in [
            vec!["validate", name.as_str()],
            vec!["apply", "-f", name.as_str()],
        ] {
            let output = site.gateway.egress(&arguments)?;
            is_one_error(&case, &arguments, &output, INVALID)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                has_place(&said, &path),
                "{}: no line and column of {name} in: {said}",
                case.name
            );
        }

        // A reload of the same file: the daemon says why not, and goes on.
        fs::copy(&path, site.gateway.files().resources())?;
        let before = site.gateway.log().len();
        site.gateway.signal(Signal::SIGHUP)?;
        wait::until_true("a word about the refused reload", END_LIMIT, || {
            Ok(site
                .gateway
                .log()
                .get(before..)
                .is_some_and(|log| log.contains("resources.toml:")))
        })
        .with_context(|| format!("{}: {}", case.name, site.gateway.last_words()))?;
        // But for what is live: the last connection may be ending.
        wait::until_true("the pools as they were", END_LIMIT, || {
            Ok(site.gateway.text(["pools", "--json"])? == pools)
        })
        .with_context(|| format!("{}: the pools changed", case.name))?;
        let seen = site.curl(BOUND, site.at_a(HTTP_PORT))?;
        ensure!(
            POOL.iter().any(|address| address.to_string() == seen),
            "{}: seen as {seen}",
            case.name
        );
    }
    Ok(())
}

/// Exactly one error, with the words expected, and the exit code.
fn is_one_error(case: &Case, arguments: &[&str], output: &Output, code: i32) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("{}, egress {}", case.name, arguments.join(" "));
    ensure!(
        output.status.code() == Some(code),
        "{what}: {}, said: {said}",
        output.status
    );
    // `FILE:LINE:COLUMN: error:`; a closing line may sum up.
    ensure!(
        said.matches(": error: ").count() == 1,
        "{what}: not one error: {said}"
    );
    for word in case.says {
        ensure!(
            said.contains(word),
            "{what}: no word of {word:?} in: {said}"
        );
    }
    Ok(())
}

/// Whether `FILE:LINE:COLUMN:` is in the message.
fn has_place(said: &str, path: &Path) -> bool {
    let Some((_, rest)) = said.split_once(&format!("{}:", path.display())) else {
        return false;
    };
    let mut numbers = rest.splitn(3, ':');
    let is_number = |text: Option<&str>| text.is_some_and(|text| text.parse::<u32>().is_ok());
    is_number(numbers.next()) && is_number(numbers.next())
}

/// A wrong line in `[dataplane]` of `egress.toml`, and what the message must say beside its place.
const SERVER_CASES: [(&str, &str, &[&str]); 3] = [
    (
        "an unknown key for the server",
        "atach = \"tcx\"",
        &["atach", "attach"],
    ),
    (
        "an unknown way to attach",
        "attach = \"xdp\"",
        &["xdp", "tcx", "clsact"],
    ),
    (
        "a mark mask with too few bits",
        "mark_mask = \"0x70\"",
        &["mark_mask"],
    ),
];

/// Starts a second daemon beside the site's and expects it to end with a message.
fn must_not_start(
    site: &Site,
    name: &str,
    change: impl Fn(&mut Server, &mut Files) -> Result<()>,
    adjust: impl Fn(&mut Command),
    codes: &[i32],
    says: &[&str],
) -> Result<()> {
    let directory = site.lab.directory().join("second");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let mut server = Server::default();
    let mut files = Files {
        directory,
        // Within the lab's own, so that it goes with it.
        pin: site.lab.second_pin(),
    };
    change(&mut server, &mut files)?;
    files.write_server(&server)?;
    files.write_resources(&Resources::default())?;
    let mut command = site.node(HOST).command(gateway::binary()?)?;
    command.args(["run", "--config"]).arg(files.config());
    adjust(&mut command);
    let log = files.directory.join("log");
    let mut child = command
        .stdout(fs::File::create(&log)?)
        .stderr(fs::File::options().append(true).open(&log)?)
        .spawn()?;
    let ended = wait::until("it to end", END_LIMIT, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let said = fs::read_to_string(&log)?;
    let status = ended.with_context(|| format!("{name}: {said}"))?;
    println!("{name}: {said}");
    ensure!(
        status.code().is_some_and(|code| codes.contains(&code)),
        "{name}: {status}, said: {said}"
    );
    for word in says {
        ensure!(
            said.contains(word),
            "{name}: no word of {word:?} in: {said}"
        );
    }
    // What was running keeps running.
    site.gateway
        .wait_in_place(END_LIMIT)
        .with_context(|| name.to_owned())?;
    let seen = site.curl(BOUND, site.at_a(HTTP_PORT))?;
    ensure!(
        POOL.iter().any(|address| address.to_string() == seen),
        "{name}: seen as {seen}"
    );
    Ok(())
}

#[test]
fn a_daemon_that_cannot_work_says_why_and_harms_nobody() -> Result<()> {
    const TEST: &str = "a_daemon_that_cannot_work_says_why_and_harms_nobody";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let as_is = |_: &mut Command| {};
    must_not_start(
        &site,
        "an interface that does not exist",
        |server, _| {
            server.uplink = vec!["nowhere0".to_owned()];
            Ok(())
        },
        as_is,
        &[FAILED],
        &["nowhere0", "uplink", "does not exist"],
    )?;
    must_not_start(
        &site,
        "an inside interface that does not exist",
        |server, _| {
            server.inside.push("nowhere1".to_owned());
            Ok(())
        },
        as_is,
        &[FAILED],
        &["nowhere1", "inside", "does not exist"],
    )?;
    for (name, line, says) in SERVER_CASES {
        must_not_start(
            &site,
            name,
            |server, _| {
                server.dataplane = line.to_owned();
                Ok(())
            },
            as_is,
            &[INVALID],
            &[&["egress.toml:", ": error: "], says].concat(),
        )?;
    }
    must_not_start(
        &site,
        "no bpffs",
        |_, files| {
            files.pin = files.directory.join("pins");
            Ok(())
        },
        as_is,
        &[FAILED],
        &["not on a BPF file system", "mount -t bpf"],
    )?;
    must_not_start(
        &site,
        "a second daemon on the same pins",
        |_, files| {
            files.pin = site.lab.pin();
            Ok(())
        },
        as_is,
        &[FAILED],
        &["another egress process", "egress-lab-"],
    )?;
    // Opening it would bring it up to date, which the daemon that uses it may not understand.
    ensure!(
        !site.lab.directory().join("second/egress.db").exists(),
        "the store was opened before the second daemon knew whether it may start"
    );
    const DAMAGED: &str = "no database at all, and long enough to be one";
    let database = site.lab.directory().join("second/egress.db");
    must_not_start(
        &site,
        "a corrupt database",
        |_, _| Ok(fs::write(&database, DAMAGED)?),
        as_is,
        &[FAILED],
        &["egress.db", "damaged", "move"],
    )?;
    ensure!(
        fs::read_to_string(&database)? == DAMAGED,
        "the damaged database was touched"
    );
    must_not_start(
        &site,
        "no root",
        |_, _| Ok(()),
        become_nobody,
        &[FAILED],
        &["root"],
    )?;
    Ok(())
}

/// Gives up root after the namespace has been entered, which takes root.
fn become_nobody(command: &mut Command) {
    // SAFETY: three system calls on integers between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setgroups(0, std::ptr::null()) != 0
                || libc::setgid(NOBODY) != 0
                || libc::setuid(NOBODY) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// A store that this user may not look at is there all the same.
#[test]
fn a_store_that_only_root_may_see_is_not_called_missing() -> Result<()> {
    const TEST: &str = "a_store_that_only_root_may_see_is_not_called_missing";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::prepare(&Plan::default())?;
    let files = Files {
        directory: site.lab.directory().join("other"),
        pin: site.lab.second_pin(),
    };
    let hidden = files.directory.join("hidden");
    fs::create_dir_all(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700))?;
    files.write_server(&Server::default())?;
    let text = fs::read_to_string(files.config())?;
    let text = text.replace("/egress.db", "/hidden/egress.db");
    ensure!(text.contains("/hidden/egress.db"), "{text}");
    fs::write(files.config(), text)?;
    let mut command = site.node(HOST).command(gateway::binary()?)?;
    command
        .args(["token", "list", "--config"])
        .arg(files.config());
    become_nobody(&mut command);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(FAILED)
            && said.contains("ermission denied")
            && said.contains("root")
            && !said.contains("there is no store"),
        "{}: {said}",
        output.status
    );
    Ok(())
}

#[test]
fn wrong_usage_is_told_apart_from_failure() -> Result<()> {
    const TEST: &str = "wrong_usage_is_told_apart_from_failure";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    for arguments in [
        &["frobnicate"][..],
        &["why", "nonsense", "1.2.3.4:5"],
        &["zone", "enable"],
    ] {
        let output = site.gateway.egress(arguments)?;
        ensure!(
            output.status.code() == Some(INVALID),
            "{arguments:?}: {}",
            output.status
        );
    }
    for (arguments, says) in [
        (
            &["probe", "198.51.100.10", "--pool", "partners"][..],
            "198.51.100.10:443",
        ),
        (&["why", "10.1.0.2", "198.51.100.10"], "198.51.100.10:443"),
        (
            &["why", "fe80::1%up0", "[2001:db8::1]:80"],
            "leave %up0 away",
        ),
        (
            &["why", "10.1.0.2", "198.51.100.10:80", "--protocol", "tpc"],
            "sctp",
        ),
        (&["flows", "--zone", "shop.exampel"], "did you mean"),
        (&["pools", "--pool", "partnres"], "did you mean"),
    ] {
        let output = site.gateway.egress(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(INVALID) && said.contains(says),
            "{arguments:?}: {}: {said}",
            output.status
        );
    }
    let output = site.gateway.egress(["zone", "disable", "nobody.example"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("nobody.example"),
        "{}: {said}",
        output.status
    );
    // An interface that is there, for contrast.
    ensure!(site.gateway.text(["status", "--json"])?.contains(UPLINK));
    Ok(())
}
