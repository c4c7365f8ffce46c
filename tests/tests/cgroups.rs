//! SAFE-1 for services on the gateway itself: a selected cgroup that is created anew, as a restart of its service
//! does, leaks nothing, whether the daemon is there or not. Watched where the packets arrive.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    cgroup::Cgroup,
    config::{Resources, Server},
    needs,
    origin::HTTP_PORT,
    site::{HOST, Plan, Site},
    standard::POOL,
};

/// Restarts of the service with the daemon, and without it.
const ROUNDS: usize = 12;
const SLICE: &str = "egress-lab.slice";
const SERVICE: &str = "egress-lab.slice/anew.service";

#[test]
fn a_service_that_restarts_leaks_nothing() -> Result<()> {
    const TEST: &str = "a_service_that_restarts_leaks_nothing";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    // The slice outlives its services.
    let (_slice, mount) = match (Cgroup::create(SLICE), Cgroup::mount()) {
        (Ok(slice), Some(mount)) => (slice, mount),
        (slice, _) => {
            needs::skip(TEST, &format!("no cgroup2: {:?}", slice.err()));
            return Ok(());
        }
    };
    // A run that was killed may have left it.
    let _ = fs::remove_dir(mount.join(SERVICE));
    for attach in ["auto", "clsact"] {
        let mut site = Site::start(&Plan {
            server: Server {
                dataplane: format!("attach = \"{attach}\""),
                ..Server::default()
            },
            resources: Resources {
                selectors: format!("cgroups = [\"{SERVICE}\"]"),
                ..Resources::default()
            },
            ..Plan::default()
        })?;
        not_there(&site, &mount).context(attach)?;
        let check = site.watch()?;
        for _ in 0..ROUNDS {
            restart(&site, &mount).context(attach)?;
        }
        site.gateway.kill()?;
        for _ in 0..ROUNDS {
            restart(&site, &mount).with_context(|| format!("{attach}, without a daemon"))?;
        }
        site.gateway.restart()?;
        restart(&site, &mount).context(attach)?;
        check.finish().context(attach)?;
    }
    Ok(())
}

/// What is selected and does not exist is shown as that, and nobody asks about it in vain.
fn not_there(site: &Site, mount: &Path) -> Result<()> {
    let place = mount.join(SERVICE).display().to_string();
    let status = site.gateway.json(&["status"])?;
    let trouble = &status["troubles"][0];
    ensure!(
        trouble["kind"] == "cgroup"
            && trouble["subject"] == SERVICE
            && trouble["text"].to_string().contains(&place),
        "{status}"
    );
    let zones = site.gateway.json(&["zones"])?;
    ensure!(zones[0]["absent_cgroups"][0] == SERVICE, "{zones}");
    let text = site.gateway.text(["zones"])?;
    ensure!(
        text.contains(&format!("{SERVICE} (does not exist)")),
        "{text}"
    );
    let question = [
        "why",
        "203.0.113.2",
        "198.51.100.10:80",
        "--cgroup",
        SERVICE,
    ];
    let output = site.gateway.egress(question)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains(&place),
        "{}: {said}",
        output.status
    );
    Ok(())
}

/// Starts the service: its cgroup is made, entered, and at once somebody in it connects. Then it ends.
fn restart(site: &Site, mount: &Path) -> Result<()> {
    let cgroup = mount.join(SERVICE);
    let script = format!(
        "mkdir {0} && echo $$ > {0}/cgroup.procs && exec curl --silent --show-error --max-time 30 http://{1}/ip",
        cgroup.display(),
        site.at_a(HTTP_PORT)
    );
    let seen = site.lab.exec(HOST, &["sh", "-c", &script]);
    egress_tests::wait::until_true(
        "the service's end",
        std::time::Duration::from_secs(60),
        || Ok(!cgroup.exists() || fs::remove_dir(&cgroup).is_ok()),
    )?;
    let seen = seen?;
    ensure!(
        POOL.iter()
            .any(|address| address.to_string() == seen.trim()),
        "seen as {seen}"
    );
    Ok(())
}
