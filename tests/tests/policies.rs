//! POLICY-1, POLICY-3, ZONE-5, SAFE-5: five hundred egress policies decide where real connections leave from, and are
//! exchanged under load without a connection that fails or leaks.

use anyhow::{Result, ensure};
use egress_tests::{
    config::{Resources, Server},
    load::{total, under_load},
    needs,
    origin::HTTP_PORT,
    site::{Plan, Site},
    standard::{BOUND, BOUND_ADDRESS, POOL, RANGE},
};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

const EXEMPT: &str = "[exempt]\nicmp_queries = \"drop\"";
const POLICIES: usize = 500;

/// 499 policies about prefixes that nobody talks to, and a last one that sends everything out by `address`.
fn policies(address: Ipv4Addr, base: u8) -> String {
    let mut text = String::new();
    let egress = format!(
        "egress = {{ ipv4 = \"{address}\", ipv4_fallback = \"0.0.0.0\", ipv6 = \"{RANGE}\" }}"
    );
    for n in 0..POLICIES - 1 {
        let (high, low) = (n / 200, n % 200);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "[[policy]]\nname = \"p{n}\"\naccount = \"acme\"\nprecedence = {n}\n\
             traffic = \"net.dst.ip in {{{}.{high}.{low}.0/24}} and net.dst.port in {{1..{}}}\"\n",
            base,
            n + 1
        );
    }
    let _ = write!(
        text,
        "[[policy]]\nname = \"all\"\naccount = \"acme\"\nprecedence = 10000\n{egress}\n"
    );
    text
}

fn resources(address: Ipv4Addr, base: u8) -> Resources {
    Resources {
        sections: policies(address, base),
        ..Resources::both_families()
    }
}

#[test]
fn five_hundred_policies_are_exchanged_under_load() -> Result<()> {
    const TEST: &str = "five_hundred_policies_are_exchanged_under_load";

    let Some(_turn) = needs::turn(TEST, &["curl"]) else {
        return Ok(());
    };
    let plan = Plan {
        server: Server {
            sections: EXEMPT.to_owned(),
            ..Server::default()
        },
        resources: resources(POOL[0], 60),
        ..Plan::default()
    };
    let mut site = Site::start(&plan)?;
    let check = site.watch()?;
    let origin = site.at_a(HTTP_PORT);
    let outcomes = under_load(&mut site, |site| {
        for round in 0..6 {
            let (address, base) = (POOL[round % 2], 60 + round as u8);
            // In force once `why` says so.
            site.gateway.reload(&resources(address, base), |gateway| {
                let text = gateway.text([
                    "why",
                    "--json",
                    &BOUND_ADDRESS.to_string(),
                    &origin.to_string(),
                ])?;
                Ok(text.contains("\"policy\":\"all\"")
                    && text.contains(&format!("\"egress_ip\":\"{address}\"")))
            })?;
            for _ in 0..3 {
                let seen = site.curl(BOUND, origin)?;
                ensure!(seen == address.to_string(), "round {round}: seen as {seen}");
            }
        }
        Ok(())
    })?;
    let failed: usize = outcomes
        .iter()
        .map(|outcome| outcome.refusals() + outcome.timed_out)
        .sum();
    ensure!(total(&outcomes) > 0 && failed == 0, "{outcomes:?}");
    check.finish()?;
    Ok(())
}
