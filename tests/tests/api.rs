//! API-1, API-2, ZONE-1 with real packets: what a change by the HTTP API does to connections, and who may make it.

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, FILED_ZONE, OTHER_ZONE, aegis},
    config::ZONE_ID,
    needs,
    peer::{self, Caller, Peers, was_reset},
    site::CONNECT_LIMIT,
    standard::{A, BOUND, BOUND_ADDRESS, POOL},
};
use serde_json::json;

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// A change holds for new connections within a second (ZONE-1): here for the very next one, and what call, answer and
/// that connection take together is up to a machine that has others to serve.
const AT_ONCE: Duration = Duration::from_secs(20);
/// What changes settings.
const WRITE: &str = "zone-settings:write";

/// The calls of the original's documentation, word for word but for host and zone.
#[test]
fn the_documented_calls_change_the_source_of_the_next_connection() -> Result<()> {
    const TEST: &str = "the_documented_calls_change_the_source_of_the_next_connection";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, "acme", &[WRITE])?;
    let path = aegis(ZONE_ID);
    let node = site.node(BOUND);
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let connect = || Peers::connect(&node, Caller::default(), &listener);

    let before = api.get(&path)?.json()?;
    ensure!(
        before["result"]
            == json!({ "id": "aegis", "editable": true, "modified_on": null, "value": { "enabled": false } }),
        "{before}"
    );
    let mut older = connect()?;
    ensure!(older.seen.ip() == BOUND_ADDRESS, "{older:?}");

    let asked = Instant::now();
    let on = api.patch(
        &path,
        r#"{ "id": "aegis", "value": { "enabled": true, "pool_id": "partners" } }"#,
    )?;
    let check = site.watch()?;
    let mut first = connect()?;
    let took = asked.elapsed();
    ensure!(on.outcome()? == (200, 0), "{on:?}");
    ensure!(first.seen.ip() == POOL[0], "{first:?}");
    ensure!(took < AT_ONCE, "it took {took:?}");
    println!("PATCH, answer and next connection: {took:?}");
    older.inside.write_all(b"late")?;
    was_reset(&mut older.inside, CONNECT_LIMIT, "the older connection")?;
    let now = api.get(&path)?.json()?;
    ensure!(
        now["result"]["value"] == json!({ "enabled": true, "pool_id": "partners" }),
        "{now}"
    );
    ensure!(now["result"] == on.json()?["result"], "{now} {on:?}");

    // Another pool, by the bulk call and with nothing but what changes.
    let bulk = api.patch(
        &format!("/client/v4/zones/{ZONE_ID}/settings"),
        r#"{ "items": [{ "id": "aegis", "value": { "pool_id": "second" } }] }"#,
    )?;
    ensure!(bulk.outcome()? == (200, 0), "{bulk:?}");
    first.exchange()?;
    let mut second = connect()?;
    ensure!(second.seen.ip() == POOL[1], "{second:?}");
    first.exchange()?;
    check.finish()?;

    let off = api.patch(&path, r#"{ "id": "aegis", "value": { "enabled": false } }"#)?;
    ensure!(
        off.json()?["result"]["value"] == json!({ "enabled": false, "pool_id": "second" }),
        "{off:?}"
    );
    first.exchange()?;
    second.exchange()?;
    let after = connect()?;
    ensure!(after.seen.ip() == BOUND_ADDRESS, "{after:?}");
    let zones = site.gateway.json(&["zones", "--zone", ZONE_ID])?;
    ensure!(zones[0]["enabled"] == false, "{zones}");
    Ok(())
}

/// API-2: status and code of everything that may not be, and nothing of it changes anything.
#[test]
fn what_may_not_be_is_refused_with_its_code() -> Result<()> {
    const TEST: &str = "what_may_not_be_is_refused_with_its_code";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, "acme", &[WRITE])?;
    let reader = Api::new(&site, "acme", &["zone-settings:read"])?;
    let path = aegis(ZONE_ID);
    let all = format!("/client/v4/zones/{ZONE_ID}/settings");
    let set = api.patch(&path, r#"{"value":{"enabled":true,"pool_id":"partners"}}"#)?;
    ensure!(set.status == 200, "{set:?}");

    let on = r#"{"value":{"enabled":true,"pool_id":"second"}}"#;
    let nobody = Api::without_token(&site);
    let wrong = nobody.with_token("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let basic = ["--user", "somebody:secret"];
    let huge = site.lab.directory().join("huge.json");
    std::fs::File::create(&huge)?.set_len(100 << 20)?;
    let data = format!("@{}", huge.display());
    let upload = ["--request", "PATCH", "--data-binary", &data];
    let chunked = [&upload[..], &["--header", "Transfer-Encoding: chunked"]].concat();
    let refusals = [
        ("no token", nobody.patch(&path, on)?, (401, 10000)),
        ("an unknown token", wrong.patch(&path, on)?, (401, 10000)),
        ("a password", nobody.call(&path, &basic)?, (400, 6003)),
        ("only reading", reader.patch(&path, on)?, (403, 10000)),
        ("another account's zone", api.patch(&aegis(OTHER_ZONE), on)?, (403, 10000)),
        ("reading that", api.get(&aegis(OTHER_ZONE))?, (403, 10000)),
        ("a zone that is not there", api.get(&aegis("0"))?, (403, 10000)),
        ("a zone of the file", api.patch(&aegis(FILED_ZONE), on)?, (400, 1057)),
        ("an unknown pool", api.patch(&path, r#"{"value":{"pool_id":"nope"}}"#)?, (400, 1007)),
        ("another account's pool", api.patch(&path, r#"{"value":{"pool_id":"theirs"}}"#)?, (400, 1007)),
        ("a pool without name", api.patch(&path, r#"{"value":{"pool_id":"a b"}}"#)?, (400, 1007)),
        ("on, without a pool", api.patch(&path, r#"{"value":{"enabled":true,"pool_id":null}}"#)?, (400, 1007)),
        ("nothing to change", api.patch(&path, r#"{"value":{}}"#)?, (400, 1007)),
        ("an empty body", api.patch(&path, "{}")?, (400, 1007)),
        ("no object", api.patch(&path, r#"{"value":"on"}"#)?, (400, 1007)),
        ("a text for a boolean", api.patch(&path, r#"{"value":{"enabled":"true"}}"#)?, (400, 1007)),
        ("an unknown key", api.patch(&path, r#"{"value":{"enabled":true,"pool":"second"}}"#)?, (400, 1007)),
        ("another id", api.patch(&path, r#"{"id":"ssl","value":{"enabled":false}}"#)?, (400, 1007)),
        ("no JSON", api.patch(&path, "{enabled")?, (400, 6007)),
        ("100 MB", api.call(&path, &upload)?, (413, 1413)),
        ("100 MB, unannounced", api.call(&path, &chunked)?, (413, 1413)),
        ("no items", api.patch(&all, r#"{"value":{}}"#)?, (400, 1004)),
        ("one good item, one bad", api.patch(&all, r#"{"items":[{"id":"aegis","value":{"enabled":false}},{"id":"ssl","value":"on"}]}"#)?, (400, 1006)),
        ("twice the same", api.patch(&all, r#"{"items":[{"id":"aegis","value":{"enabled":false}},{"id":"aegis","value":{"enabled":true}}]}"#)?, (400, 1007)),
        ("another setting", api.get(&format!("{all}/ssl"))?, (400, 1006)),
        ("another method", api.call(&path, &["--request", "DELETE"])?, (405, 7001)),
        ("another path", api.get("/client/v4/zones")?, (404, 7003)),
        ("another account", api.get(&format!("/client/v4/accounts/{}/egress/pools", api::OTHER_ACCOUNT))?, (403, 10000)),
    ];
    for (what, reply, expected) in refusals {
        let outcome = reply.outcome()?;
        ensure!(outcome == expected, "{what}: {outcome:?}, {reply:?}");
        let body = reply.json()?;
        ensure!(
            body["success"] == false && body["result"].is_null(),
            "{what}: {body}"
        );
        let message = body["errors"][0]["message"].as_str().unwrap_or_default();
        ensure!(message.len() > 10, "{what}: {body}");
    }
    let value = json!({ "enabled": true, "pool_id": "partners" });
    let now = reader.get(&path)?.json()?;
    ensure!(now["result"]["value"] == value, "something changed: {now}");
    let filed = reader.get(&aegis(FILED_ZONE))?.json()?;
    ensure!(filed["result"]["editable"] == false, "{filed}");

    // A token that is revoked is turned away at once, one that is not survives the daemon.
    let tokens = site.gateway.json(&["token", "list"])?;
    let id = tokens
        .as_array()
        .and_then(|tokens| {
            tokens
                .iter()
                .find(|token| token["permissions"] == json!(["zone-settings:read"]))
        })
        .and_then(|token| token["id"].as_str())
        .with_context(|| format!("no token that only reads: {tokens}"))?;
    let text = tokens.to_string();
    ensure!(
        !text.contains(api.token()) && !text.contains(reader.token()),
        "{text}"
    );
    site.gateway.text(["token", "revoke", id])?;
    ensure!(reader.get(&path)?.outcome()? == (401, 10000));
    let again = site.gateway.egress(["token", "revoke", id])?;
    ensure!(again.status.code() == Some(2), "{again:?}");
    let mut site = site;
    site.gateway.kill()?;
    site.gateway.restart()?;
    ensure!(api.get(&path)?.json()?["result"]["value"] == value);
    let verified = api.get("/client/v4/user/tokens/verify")?.json()?;
    ensure!(verified["result"]["status"] == "active", "{verified}");
    Ok(())
}

/// Two writers at once, each with one key: no change of either is lost.
#[test]
fn two_writers_at_once_lose_nothing() -> Result<()> {
    const TEST: &str = "two_writers_at_once_lose_nothing";
    const ROUNDS: usize = 20;

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, ACCOUNT, &[WRITE])?;
    let path = aegis(ZONE_ID);
    let first = api.patch(&path, r#"{"value":{"pool_id":"partners"}}"#)?;
    ensure!(first.status == 200, "{first:?}");
    let write = |bodies: [&'static str; 2]| {
        let (api, path) = (api.clone(), path.clone());
        thread::spawn(move || -> Result<Vec<serde_json::Value>> {
            let mut seen = Vec::new();
            for round in 0..ROUNDS {
                let reply = api.patch(&path, bodies[round % 2])?;
                ensure!(reply.status == 200, "{reply:?}");
                seen.push(reply.json()?["result"]["value"].clone());
            }
            Ok(seen)
        })
    };
    let pools = write([
        r#"{"value":{"pool_id":"partners"}}"#,
        r#"{"value":{"pool_id":"second"}}"#,
    ]);
    let switches = write([
        r#"{"value":{"enabled":false}}"#,
        r#"{"value":{"enabled":true}}"#,
    ]);
    for (thread, key, values) in [
        (pools, "pool_id", [json!("partners"), json!("second")]),
        (switches, "enabled", [json!(false), json!(true)]),
    ] {
        let seen = thread.join().expect("a writer panicked")?;
        for (round, value) in seen.iter().enumerate() {
            // Each finds in the answer what it wrote, whatever the other one did.
            ensure!(value[key] == values[round % 2], "round {round}: {value}");
        }
    }
    let last = api.get(&path)?.json()?;
    ensure!(
        last["result"]["value"] == json!({ "enabled": true, "pool_id": "second" }),
        "{last}"
    );
    let zones = site.gateway.json(&["zones", "--zone", ZONE_ID])?;
    ensure!(zones[0]["pool_id"] == "second", "{zones}");
    Ok(())
}

/// Pools, leased IPs and drains of an account, page by page; a drained pool takes no connection.
#[test]
fn an_account_sees_its_addresses_and_drains_them() -> Result<()> {
    const TEST: &str = "an_account_sees_its_addresses_and_drains_them";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (site, api) = api::enabled(&[WRITE, "account-egress:write"])?;
    let base = format!("/client/v4/accounts/{ACCOUNT}/egress");
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let node = site.node(BOUND);
    let mut live = Peers::connect(&node, Caller::default(), &listener)?;

    let pools = api.get(&format!("{base}/pools"))?.json()?;
    ensure!(pools["result_info"]["total_count"] == 2, "{pools}");
    let pool = &pools["result"][0];
    ensure!(
        pool["id"] == "partners"
            && pool["addresses"][0]["active"] == 1
            && pool["zones"][0]["id"] == ZONE_ID,
        "{pools}"
    );
    ensure!(api.get(&format!("{base}/pools/theirs"))?.outcome()? == (404, 1404));
    let one = api.get(&format!("{base}/pools/partners"))?.json()?;
    ensure!(one["result"] == *pool, "{one}");
    let page = |number: u32| api.get(&format!("{base}/leased_ips?per_page=1&page={number}"));
    let addresses =
        [page(1)?.json()?, page(2)?.json()?].map(|page| page["result"][0]["address"].clone());
    ensure!(
        addresses == POOL.map(|address| json!(address.to_string())),
        "{addresses:?}"
    );
    ensure!(page(3)?.json()?["result"] == json!([]), "past the end");
    ensure!(page(0)?.outcome()? == (400, 1007));

    let drains = format!("{base}/drains");
    let post = |body: &str| api.call(&drains, &["--json", body]);
    ensure!(
        post(r#"{"subject":"203.0.113.77"}"#)?.outcome()? == (400, 1007),
        "another account's"
    );
    ensure!(
        post(r#"{"subject":"theirs"}"#)?.outcome()? == (400, 1007),
        "another account's"
    );
    ensure!(post(r#"{"subject":"partners","reste":true}"#)?.outcome()? == (400, 1007));
    let drained = post(r#"{"subject":"partners"}"#)?;
    ensure!(drained.status == 201, "{drained:?}");
    ensure!(
        Caller::default().connect(&node, site.at_a(PORT)).is_err(),
        "a drained pool took a connection"
    );
    live.exchange()?;
    let listed = api.get(&drains)?.json()?;
    ensure!(
        listed["result"][0]["pool_id"] == "partners" && listed["result"][0]["active"] == 1,
        "{listed}"
    );
    let delete = |subject: &str| api.call(&format!("{drains}/{subject}"), &["--request", "DELETE"]);
    ensure!(
        delete(&POOL[0].to_string())?.outcome()? == (400, 1057),
        "all of the pool drains"
    );
    ensure!(delete("nope")?.outcome()? == (404, 1404));
    ensure!(delete("partners")?.status == 200);
    let _again = Peers::connect(&node, Caller::default(), &listener)?;
    let reset = post(&format!(r#"{{"subject":"{}","reset":true}}"#, POOL[0]))?.json()?;
    ensure!(reset["result"]["ended"] == 2, "{reset}");
    was_reset(&mut live.inside, CONNECT_LIMIT, "the inside")?;
    Ok(())
}
