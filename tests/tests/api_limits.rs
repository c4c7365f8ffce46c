//! What happens to changes by API at the limits: ten thousand objects, two writers at once, a disk that is full, a database
//! of a newer version. Nothing is ever half-applied.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, Reply},
    needs, netns,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, BOUND, POOL},
};
use serde_json::{Value, json};

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// All that a token may change.
const WRITE: [&str; 2] = ["account-egress:write", "account-addresses:write"];
/// Where the database's version stands in its file (the format's "user version").
const USER_VERSION: u64 = 60;

/// A path of the account.
fn of(rest: &str) -> String {
    format!("/client/v4/accounts/{ACCOUNT}/egress/{rest}")
}

fn post(api: &Api, path: &str, body: &Value) -> Result<Reply> {
    api.call(path, &["--json", &body.to_string()])
}

fn lease(api: &Api, address: &str) -> Result<Reply> {
    post(api, &of("leased_ips"), &json!({ "address": address }))
}

/// More sections for the resources file of a site that does not run yet.
fn append(site: &Site, text: &str) -> Result<()> {
    let path = site.gateway.files().resources();
    let mut file = OpenOptions::new().append(true).open(&path)?;
    write!(file, "{text}").with_context(|| format!("writing {}", path.display()))
}

/// Ten thousand pools stand in the file: lists are cut into pages, and a change of one object is made among them.
#[test]
fn ten_thousand_objects_are_listed_in_pages_and_one_more_is_made() -> Result<()> {
    const TEST: &str = "ten_thousand_objects_are_listed_in_pages_and_one_more_is_made";
    const POOLS: u32 = 10_000;

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    let pools: String = (0..POOLS)
        .map(|n| {
            let address = Ipv4Addr::from(first + n);
            format!("[[pool]]\nid = \"p{n:05}\"\naccount = \"acme\"\naddresses = [\"{address}\"]\n")
        })
        .collect();
    append(&site, &pools)?;
    // The operator lets this account add to so many.
    let path = site.gateway.files().resources();
    let text = fs::read_to_string(&path)?;
    fs::write(
        &path,
        text.replacen("name = \"acme\"", "name = \"acme\", pool_percent = 70", 1),
    )?;
    let begun = Instant::now();
    site.gateway.restart()?;
    println!("in force after {:?}", begun.elapsed());
    let api = Api::new(&site, "acme", &WRITE)?;
    let page = |number: u32| {
        api.get(&of(&format!("pools?per_page=1000&page={number}")))?
            .json()
    };
    let info = page(1)?["result_info"].clone();
    // With those two of the account that every site of these tests has.
    ensure!(
        info["total_count"] == POOLS + 2 && info["total_pages"] == 11,
        "{info}"
    );
    ensure!(
        page(11)?["result"]
            .as_array()
            .is_some_and(|page| page.len() == 2)
    );
    ensure!(page(12)?["result"] == json!([]), "past the end");
    println!("listed after {:?}", begun.elapsed());
    let made = lease(&api, "192.0.2.10")?;
    ensure!(made.status == 201, "{made:?}");
    let made = post(
        &api,
        &of("pools"),
        &json!({ "id": "made", "addresses": ["192.0.2.10"] }),
    )?;
    ensure!(made.status == 201, "{made:?}");
    let gone = api.call(&of("pools/made"), &["--request", "DELETE"])?;
    ensure!(gone.status == 200, "{gone:?}");
    println!("changed three times after {:?}", begun.elapsed());
    Ok(())
}

/// Of two who want the same address one gets it; whatever two make of different ones is all there.
#[test]
fn two_writers_at_once_share_what_there_is() -> Result<()> {
    const TEST: &str = "two_writers_at_once_share_what_there_is";
    const ROUNDS: u8 = 10;

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, "acme", &WRITE)?;
    let write = |name: char| {
        let api = api.clone();
        thread::spawn(move || -> Result<usize> {
            let mut won = 0;
            for round in 0..ROUNDS {
                let (own, shared) = match name {
                    'a' => (
                        format!("192.0.2.{}", round + 1),
                        format!("198.18.0.{}", round + 1),
                    ),
                    _ => (
                        format!("192.0.2.{}", round + 101),
                        format!("198.18.0.{}", round + 1),
                    ),
                };
                let leased = lease(&api, &own)?;
                ensure!(leased.status == 201, "{leased:?}");
                let body = json!({ "id": format!("{name}{round}"), "addresses": [own] });
                let made = post(&api, &of("pools"), &body)?;
                ensure!(made.status == 201, "{made:?}");
                let reply = lease(&api, &shared)?;
                match reply.outcome()? {
                    (201, 0) => won += 1,
                    (400, 1007) => {}
                    other => anyhow::bail!("{other:?}: {reply:?}"),
                }
            }
            Ok(won)
        })
    };
    let writers = ['a', 'b'].map(write);
    let mut won = 0;
    for writer in writers {
        won += writer.join().expect("a writer panicked")?;
    }
    ensure!(
        won == usize::from(ROUNDS),
        "{won} leases of {ROUNDS} addresses"
    );
    let all = api.get(&of("leased_ips?per_page=1000"))?.json()?;
    // The two of the file's pools are among them.
    ensure!(
        all["result_info"]["total_count"] == 3 * u32::from(ROUNDS) + 2,
        "{all}"
    );
    Ok(())
}

/// A small file system of its own, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(&path);
        netns::run(&mut mount)?;
        Ok(Self(path))
    }

    /// Leaves no byte of it free.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut file = File::create(&path)?;
        while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        Ok(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

/// A disk that is full: every change is refused as the daemon's trouble and none is made; connections go on; once there
/// is room again, so is everything.
#[test]
fn a_full_disk_refuses_changes_and_nothing_else() -> Result<()> {
    const TEST: &str = "a_full_disk_refuses_changes_and_nothing_else";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "mount"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    let small = Small::mount(site.lab.directory().join("small"))?;
    let config = site.gateway.files().config();
    let elsewhere = |line: &str| match line.strip_prefix("sqlite = ") {
        Some(_) => format!("sqlite = \"{}/egress.db\"\n", small.0.display()),
        None => format!("{line}\n"),
    };
    let text: String = fs::read_to_string(&config)?
        .lines()
        .map(elsewhere)
        .collect();
    fs::write(&config, text)?;
    site.gateway.restart()?;
    let api = Api::new(
        &site,
        "acme",
        &[&WRITE[..], &["zone-settings:write"]].concat(),
    )?;
    let on = api.patch(
        &api::aegis(egress_tests::config::ZONE_ID),
        r#"{"value":{"enabled":true,"pool_id":"partners"}}"#,
    )?;
    ensure!(on.status == 200, "{on:?}");
    let filler = small.fill()?;
    let before = api.get(&of("leased_ips"))?.json()?["result"].clone();
    // Pages that the database has already may take a change or two.
    let mut taken = 0;
    let refused = loop {
        let reply = lease(&api, &format!("192.0.2.{}", taken + 1))?;
        match reply.outcome()? {
            (201, 0) if taken < 200 => taken += 1,
            outcome => break (outcome, reply),
        }
    };
    println!("{taken} changes until the disk was full");
    ensure!(refused.0 == (500, 1005), "{:?}", refused.1);
    ensure!(
        refused.1.text.contains("nothing was changed"),
        "{:?}",
        refused.1
    );
    let after = api.get(&of("leased_ips?per_page=1000"))?.json()?["result"].clone();
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    ensure!(count(&after) == count(&before) + taken, "{before} {after}");
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let next = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(next.seen.ip() == POOL[0], "{next:?}");
    fs::remove_file(filler)?;
    let again = lease(&api, "198.18.0.1")?;
    ensure!(again.status == 201, "{again:?}");
    site.gateway.kill()?;
    Ok(())
}

/// A database of a newer version is left alone, and the daemon says so.
#[test]
fn a_newer_database_is_refused_by_name_and_not_touched() -> Result<()> {
    const TEST: &str = "a_newer_database_is_refused_by_name_and_not_touched";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = api::started()?;
    let api = Api::new(&site, "acme", &WRITE)?;
    ensure!(lease(&api, "192.0.2.10")?.status == 201);
    site.gateway.terminate()?;
    let database = site.lab.directory().join("egress.db");
    let version = |version: &[u8; 4]| -> Result<()> {
        let file = OpenOptions::new().write(true).open(&database)?;
        Ok(file.write_all_at(version, USER_VERSION)?)
    };
    let read = || -> Result<[u8; 4]> {
        let mut found = [0; 4];
        File::open(&database)?.read_exact_at(&mut found, USER_VERSION)?;
        Ok(found)
    };
    ensure!(
        !Path::new(&format!("{}-wal", database.display())).exists(),
        "not written back"
    );
    let ours = read()?;
    ensure!(u32::from_be_bytes(ours) >= 5, "{ours:?}");
    version(&99_u32.to_be_bytes())?;
    let before = fs::read(&database)?;
    let refused = site.gateway.restart().err().context("a newer database")?;
    let refused = format!("{refused:#}");
    ensure!(
        refused.contains("newer version") && refused.contains("schema 99"),
        "{refused}"
    );
    site.gateway.wait_end()?;
    ensure!(fs::read(&database)? == before, "it was touched");
    version(&ours)?;
    site.gateway.restart()?;
    let listed = api.get(&of("leased_ips"))?.json()?;
    ensure!(listed["result"][2]["address"] == "192.0.2.10", "{listed}");
    Ok(())
}
