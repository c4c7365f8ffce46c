//! API-3, POOL-1 to POOL-7 with real packets: addresses, pools and prefixes that are made through the API, beside those of
//! the resources file.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, OTHER_ACCOUNT, Reply, aegis, of},
    config::ZONE_ID,
    needs,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, BOUND, DEFAULT_EGRESS, POOL},
};
use serde_json::{Value, json};

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// The network of the pool's addresses.
const PREFIX: &str = "203.0.113.0/24";

/// A site whose file has accounts, zones, and a pool that nobody uses.
fn started() -> Result<Site> {
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    api::two_accounts(&site, "other.example", "")?;
    site.gateway.restart()?;
    Ok(site)
}

fn post(api: &Api, path: &str, body: &Value) -> Result<Reply> {
    api.call(path, &["--json", &body.to_string()])
}

fn delete(api: &Api, path: &str) -> Result<Reply> {
    api.call(path, &["--request", "DELETE"])
}

/// What a call that must work answers.
fn made(reply: &Reply) -> Result<Value> {
    ensure!(matches!(reply.status, 200 | 201), "{reply:?}");
    Ok(reply.json()?["result"].clone())
}

/// A call that must be refused, with a message that has these words.
fn refused(what: &str, reply: &Reply, outcome: (u16, u64), words: &[&str]) -> Result<()> {
    let message = reply.json()?["errors"][0]["message"].to_string();
    let says = words.iter().all(|word| message.contains(word));
    ensure!(reply.outcome()? == outcome && says, "{what}: {reply:?}");
    Ok(())
}

/// An operator gives addresses, an account makes a pool of them, and connections leave by it.
#[test]
fn pool_1_a_pool_made_by_the_api_carries_connections_and_outlives_everything_else() -> Result<()> {
    const TEST: &str =
        "pool_1_a_pool_made_by_the_api_carries_connections_and_outlives_everything_else";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = started()?;
    let api = Api::new(&site, "acme", &api::WRITE)?;
    let [first, second] = POOL.map(|address| address.to_string());
    let (leases, pools) = (
        of(ACCOUNT, "egress/leased_ips"),
        of(ACCOUNT, "egress/pools"),
    );
    let pool = format!("{pools}/made");
    let wanted = json!({ "id": "made", "name": "Made here", "addresses": [first] });

    let early = post(&api, &pools, &wanted)?;
    refused("not leased", &early, (400, 1007), &[&first, "not leased"])?;
    for address in [&first, &second] {
        let leased = made(&post(&api, &leases, &json!({ "address": address }))?)?;
        ensure!(leased["pool_id"].is_null(), "{leased}");
    }
    let new = post(&api, &pools, &wanted)?;
    ensure!(new.status == 201, "{new:?}");
    let new = made(&new)?;
    ensure!(
        new["kind"] == "leased" && new["editable"] == true && new["addresses"][0]["active"] == 0,
        "{new}"
    );
    let on = api.patch(
        &aegis(ZONE_ID),
        r#"{"value":{"enabled":true,"pool_id":"made"}}"#,
    )?;
    ensure!(on.status == 200, "{on:?}");
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let connect = |site: &Site| Peers::connect(&site.node(BOUND), Caller::default(), &listener);
    let mut older = connect(&site)?;
    ensure!(older.seen.ip() == POOL[0], "{older:?}");

    // Other addresses, at once; what is open stays where it is.
    let edited = api.patch(
        &pool,
        &json!({ "name": null, "addresses": [second] }).to_string(),
    )?;
    let edited = made(&edited)?;
    ensure!(
        edited["name"].is_null() && edited["addresses"][0]["address"] == second,
        "{edited}"
    );
    older.exchange()?;
    let next = connect(&site)?;
    ensure!(next.seen.ip() == POOL[1], "{next:?}");

    // The file prunes only what is its own, and a restart nothing.
    let file = site.gateway.files().resources();
    let apply = |path: &Path| {
        site.gateway
            .egress([Path::new("apply"), Path::new("-f"), path])
    };
    api::two_accounts(
        &site,
        "other.example",
        "[[pool]]\nid = \"added\"\naccount = \"other\"\naddresses = [\"198.18.0.7\"]",
    )?;
    let applied = apply(&file)?;
    ensure!(applied.status.success(), "{applied:?}");
    api::two_accounts(
        &site,
        "other.example",
        "[[pool]]\nid = \"made\"\naccount = \"acme\"\naddresses = [\"198.18.0.7\"]",
    )?;
    let claimed = apply(&file)?;
    let said = String::from_utf8_lossy(&claimed.stderr);
    ensure!(
        claimed.status.code() == Some(2) && said.contains("belongs to the API"),
        "{claimed:?}"
    );
    api::two_accounts(&site, "other.example", "")?;
    site.gateway.kill()?;
    site.gateway.restart()?;
    older.exchange()?;
    let next = connect(&site)?;
    ensure!(next.seen.ip() == POOL[1], "{next:?}");

    // Nothing that is in use goes away.
    refused(
        "in use",
        &delete(&api, &pool)?,
        (400, 1007),
        &["shop.example"],
    )?;
    let lease = format!("{leases}/{second}");
    refused(
        "in a pool",
        &delete(&api, &lease)?,
        (400, 1007),
        &["pool made"],
    )?;
    let off = api.patch(&aegis(ZONE_ID), r#"{"value":{"enabled":false}}"#)?;
    ensure!(off.status == 200, "{off:?}");
    let gone = delete(&api, &pool)?;
    ensure!(
        gone.status == 200
            && gone.json()? == json!({ "success": true, "errors": [], "messages": [] }),
        "{gone:?}"
    );
    ensure!(delete(&api, &pool)?.outcome()? == (404, 1404));
    ensure!(delete(&api, &lease)?.status == 200);
    let left = api.get(&leases)?.json()?;
    let left: Vec<_> = left["result"]
        .as_array()
        .context("a list")?
        .iter()
        .collect();
    ensure!(
        left.len() == 2 && left[0]["address"] == "198.18.0.9" && left[1]["address"] == first,
        "{left:?}"
    );
    older.exchange()?;
    Ok(())
}

/// Everything that may not be has its status, its code and words that help, and changes nothing.
#[test]
fn what_may_not_be_made_is_refused_with_its_code() -> Result<()> {
    const TEST: &str = "what_may_not_be_made_is_refused_with_its_code";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = started()?;
    let api = Api::new(&site, "acme", &api::WRITE)?;
    let tenant = Api::new(&site, "acme", &["account-egress:write"])?;
    let other = Api::new(&site, "other", &api::WRITE)?;
    let pools = of(ACCOUNT, "egress/pools");
    let leases = of(ACCOUNT, "egress/leased_ips");
    let prefixes = of(ACCOUNT, "addressing/prefixes");
    let lease = |address: &str| post(&api, &leases, &json!({ "address": address }));
    let pool = |id: &str, addresses: &[&str]| {
        post(&api, &pools, &json!({ "id": id, "addresses": addresses }))
    };
    made(&lease("192.0.2.10")?)?;
    made(&lease("2001:db8:aa::/64")?)?;
    made(&pool("taken", &["192.0.2.10", "2001:db8:aa::/64"])?)?;
    made(&lease("192.0.2.11")?)?;
    let byoip = made(&post(
        &api,
        &prefixes,
        &json!({ "asn": 64500, "cidr": "198.51.100.0/24" }),
    )?)?;
    let bindings = format!(
        "{prefixes}/{}/bindings",
        byoip["id"].as_str().unwrap_or_default()
    );
    let services = made(&api.get(&of(ACCOUNT, "addressing/services"))?)?;
    let service = |at: usize| services[at]["id"].clone();
    let bind = |at: usize, cidr: &str| {
        post(
            &api,
            &bindings,
            &json!({ "cidr": cidr, "service_id": service(at) }),
        )
    };
    let unbound = pool("early", &["198.51.100.1"])?;
    refused(
        "POOL-3, unbound",
        &unbound,
        (400, 1007),
        &["bound to no service"],
    )?;
    let part = bind(0, "198.51.100.0/25")?;
    refused("a part first", &part, (400, 1007), &["whole prefix"])?;
    ensure!(bind(0, "198.51.100.0/24")?.status == 201);
    let before = site.gateway.json(&["pools"])?;
    let own = lease(&DEFAULT_EGRESS.to_string())?;
    refused("the host's own", &own, (400, 1007), &["is configured on"])?;
    let egress =
        json!({ "ipv4": "192.0.2.10", "ipv4_fallback": "0.0.0.0", "ipv6": "2001:db8:aa::/64" });
    let rule = made(&post(
        &api,
        &of(ACCOUNT, "gateway/rules"),
        &json!({
            "name": "bank", "action": "egress", "filters": ["egress"], "enabled": true,
            "traffic": "net.dst.port == 1", "rule_settings": { "egress": egress },
        }),
    )?)?;
    let (taken, uses) = (format!("{pools}/taken"), "rule bank uses 192.0.2.10");
    refused(
        "a rule's pool",
        &delete(&api, &taken)?,
        (400, 1007),
        &[uses],
    )?;
    let less = api.patch(&taken, r#"{"addresses":["2001:db8:aa::/64"]}"#)?;
    refused("a rule's address", &less, (400, 1007), &[uses])?;
    let rule = format!("gateway/rules/{}", rule["id"].as_str().unwrap_or_default());
    ensure!(delete(&api, &of(ACCOUNT, &rule))?.status == 200);

    let ingress = bind(1, "198.51.100.128/25")?;
    refused(
        "POOL-3",
        &ingress,
        (400, 1007),
        &["CDN Egress", "CDN Ingress", "POOL-3"],
    )?;
    let mixed = pool("mixed", &["192.0.2.11", "198.51.100.1"])?;
    let both = ["192.0.2.11 is leased", "198.51.100.1 is byoip", "POOL-2"];
    refused("POOL-2", &mixed, (400, 1007), &both)?;
    let edited = api.patch(
        &format!("{pools}/taken"),
        r#"{"addresses":["192.0.2.10","198.51.100.1"]}"#,
    )?;
    refused("POOL-2, later", &edited, (400, 1007), &["POOL-2"])?;
    let twice = pool("twice", &["192.0.2.10"])?;
    refused("POOL-4", &twice, (400, 1007), &["in two pools", "POOL-4"])?;
    let theirs = post(
        &other,
        &of(OTHER_ACCOUNT, "egress/pools"),
        &json!({ "addresses": ["192.0.2.11"] }),
    )?;
    refused("another's lease", &theirs, (400, 1007), &["not leased"])?;
    let theirs = post(
        &other,
        &of(OTHER_ACCOUNT, "egress/pools"),
        &json!({ "addresses": ["198.51.100.9"] }),
    )?;
    refused("POOL-7", &theirs, (400, 1007), &["or was delegated"])?;
    let filed = format!("{pools}/filed");
    for (what, reply, outcome) in [
        ("the same id", pool("taken", &["192.0.2.11"])?, (400, 1007)),
        (
            "a pool of the file",
            api.patch(&filed, r#"{"name":"x"}"#)?,
            (400, 1057),
        ),
        ("removing that", delete(&api, &filed)?, (400, 1057)),
        (
            "an IP of the file",
            delete(&api, &format!("{leases}/198.18.0.9"))?,
            (400, 1057),
        ),
        (
            "no such pool",
            api.patch(&format!("{pools}/nope"), r#"{"name":"x"}"#)?,
            (404, 1404),
        ),
        (
            "another's pool",
            delete(&other, &of(OTHER_ACCOUNT, "egress/pools/taken"))?,
            (404, 1404),
        ),
        (
            "no such IP",
            delete(&api, &format!("{leases}/192.0.2.99"))?,
            (404, 1404),
        ),
        ("leased already", lease("192.0.2.11")?, (400, 1007)),
        (
            "of another's pool",
            post(
                &other,
                &of(OTHER_ACCOUNT, "egress/leased_ips"),
                &json!({ "address": "198.18.0.9" }),
            )?,
            (400, 1007),
        ),
        ("in a prefix", lease("198.51.100.7")?, (400, 1007)),
        ("no address", lease("192.0.2.0/24")?, (400, 1007)),
        ("loopback", lease("127.0.0.1")?, (400, 1007)),
        ("an empty pool", pool("empty", &[])?, (400, 1007)),
        (
            "an id with a space",
            pool("a b", &["192.0.2.11"])?,
            (400, 1007),
        ),
        (
            "an unknown key",
            api.patch(&format!("{pools}/taken"), r#"{"adresses":[]}"#)?,
            (400, 1007),
        ),
        (
            "nothing to change",
            api.patch(&format!("{pools}/taken"), "{}")?,
            (400, 1007),
        ),
        (
            "too many connections",
            api.patch(
                &format!("{pools}/taken"),
                r#"{"connections_per_origin":40001}"#,
            )?,
            (400, 1007),
        ),
        (
            "no JSON",
            api.call(&pools, &["--json", "{addresses"])?,
            (400, 6007),
        ),
        (
            "a tenant leases",
            post(&tenant, &leases, &json!({ "address": "192.0.2.12" }))?,
            (403, 10000),
        ),
        (
            "a tenant's prefix",
            post(
                &tenant,
                &prefixes,
                &json!({ "asn": 1, "cidr": "192.0.2.0/24" }),
            )?,
            (403, 10000),
        ),
        (
            "another account",
            post(&other, &pools, &json!({ "addresses": ["192.0.2.11"] }))?,
            (403, 10000),
        ),
        (
            "too small",
            post(&api, &prefixes, &json!({ "asn": 1, "cidr": "10.9.0.0/25" }))?,
            (400, 1007),
        ),
        (
            "host bits",
            post(&api, &prefixes, &json!({ "asn": 1, "cidr": "10.9.0.1/24" }))?,
            (400, 1007),
        ),
        (
            "no AS",
            post(&api, &prefixes, &json!({ "cidr": "10.9.0.0/24" }))?,
            (400, 1007),
        ),
        (
            "the same prefix",
            post(
                &api,
                &prefixes,
                &json!({ "asn": 1, "cidr": "198.51.100.0/24" }),
            )?,
            (400, 1007),
        ),
        (
            "around leased IPs",
            post(
                &api,
                &prefixes,
                &json!({ "asn": 1, "cidr": "192.0.2.0/24" }),
            )?,
            (400, 1007),
        ),
        (
            "no such prefix",
            api.get(&format!("{prefixes}/{}", "0".repeat(32)))?,
            (404, 1404),
        ),
        (
            "no such service",
            post(
                &api,
                &bindings,
                &json!({ "cidr": "198.51.100.0/24", "service_id": "x" }),
            )?,
            (400, 1007),
        ),
        ("outside of it", bind(0, "198.51.101.0/24")?, (400, 1007)),
        (
            "BGP",
            api.patch(
                &bindings.replace("bindings", "bgp/status"),
                r#"{"advertised":true}"#,
            )?,
            (400, 1057),
        ),
        (
            "placed nowhere",
            api.call(
                &of(ACCOUNT, "egress/placements/192.0.2.11"),
                &[
                    "--request",
                    "PUT",
                    "--json",
                    r#"{"shares":[{"data_center":"nope","share":1}]}"#,
                ],
            )?,
            (400, 1007),
        ),
    ] {
        refused(what, &reply, outcome, &[])?;
        let message = reply.json()?["errors"][0]["message"]
            .as_str()
            .map_or(0, str::len);
        ensure!(message > 10, "{what}: {reply:?}");
    }
    let after = site.gateway.json(&["pools"])?;
    ensure!(before == after, "something changed: {before} {after}");
    Ok(())
}

/// POOL-7: a prefix is brought, bound and delegated, and the other account's zone leaves by it from then on.
#[test]
fn pool_7_a_zone_leaves_by_a_prefix_once_that_was_delegated() -> Result<()> {
    const TEST: &str = "pool_7_a_zone_leaves_by_a_prefix_once_that_was_delegated";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = started()?;
    // The other account has the prefix and the pool; the zone is acme's.
    let owner = Api::new(&site, "other", &api::WRITE)?;
    let user = Api::new(&site, "acme", &["zone-settings:write"])?;
    let prefixes = of(OTHER_ACCOUNT, "addressing/prefixes");
    let new = json!({ "asn": 64500, "cidr": PREFIX, "description": "ours" });
    let prefix = made(&post(&owner, &prefixes, &new)?)?;
    ensure!(
        prefix["account_id"] == OTHER_ACCOUNT
            && prefix["approved"] == "V"
            && prefix["asn"] == 64500,
        "{prefix}"
    );
    let prefix = format!("{prefixes}/{}", prefix["id"].as_str().context("an id")?);
    let service = made(&owner.get(&of(OTHER_ACCOUNT, "addressing/services"))?)?[0]["id"].clone();
    let bindings = format!("{prefix}/bindings");
    let whole = post(
        &owner,
        &bindings,
        &json!({ "cidr": PREFIX, "service_id": service }),
    )?;
    ensure!(whole.status == 201, "{whole:?}");
    let pool = json!({ "id": "shared", "addresses": [POOL[0].to_string()] });
    let pool = made(&post(&owner, &of(OTHER_ACCOUNT, "egress/pools"), &pool)?)?;
    ensure!(pool["kind"] == "byoip", "{pool}");

    let on = || {
        user.patch(
            &aegis(ZONE_ID),
            r#"{"value":{"enabled":true,"pool_id":"shared"}}"#,
        )
    };
    ensure!(on()?.outcome()? == (400, 1007), "nobody delegated it");
    let delegations = format!("{prefix}/delegations");
    let delegate = |cidr: &str| {
        let body = json!({ "cidr": cidr, "delegated_account_id": ACCOUNT });
        post(&owner, &delegations, &body)
    };
    made(&delegate("203.0.113.128/25")?)?;
    ensure!(
        on()?.outcome()? == (400, 1007),
        "another part was delegated"
    );
    let right = made(&delegate("203.0.113.0/28")?)?;
    let now = on()?;
    ensure!(now.status == 200, "{now:?}");
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let mut live = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(live.seen.ip() == POOL[0], "{live:?}");

    // What is in use stays: delegation, binding, prefix.
    let right = format!("{delegations}/{}", right["id"].as_str().context("an id")?);
    refused(
        "delegation",
        &delete(&owner, &right)?,
        (400, 1007),
        &["another account"],
    )?;
    let binding = made(&owner.get(&bindings)?)?[0]["id"].clone();
    let binding = format!("{bindings}/{}", binding.as_str().context("an id")?);
    refused(
        "binding",
        &delete(&owner, &binding)?,
        (400, 1007),
        &["no service"],
    )?;
    refused(
        "prefix",
        &delete(&owner, &prefix)?,
        (400, 1007),
        &["pool shared"],
    )?;
    live.exchange()?;
    let off = user.patch(&aegis(ZONE_ID), r#"{"value":{"enabled":false}}"#)?;
    ensure!(off.status == 200, "{off:?}");
    for path in [
        &right,
        &of(OTHER_ACCOUNT, "egress/pools/shared"),
        &binding,
        &prefix,
    ] {
        let gone = delete(&owner, path)?;
        ensure!(gone.status == 200, "{path}: {gone:?}");
    }
    ensure!(made(&owner.get(&prefixes)?)? == json!([]));
    live.exchange()?;
    Ok(())
}
