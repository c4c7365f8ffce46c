//! ZONE-5, API-2: what another account has is answered as what nobody has, in the same words, whatever is asked of it.

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, OTHER_ACCOUNT, OTHER_ZONE, Reply, aegis, of},
    config::ZONE_ID,
    needs,
};
use serde_json::{Value, json};

/// Where neither accounts nor zones are.
const NOBODY: &str = "abababababababababababababababab";
/// What a tenant may do.
const TENANT: [&str; 3] = [
    "zone-settings:write",
    "account-egress:write",
    "account-analytics:read",
];

fn ask(api: &Api, method: &str, path: &str, body: &str) -> Result<Reply> {
    if body.is_empty() {
        api.call(path, &["--request", method])
    } else {
        api.call(path, &["--request", method, "--json", body])
    }
}

fn made(api: &Api, path: &str, body: &Value) -> Result<Value> {
    let reply = ask(api, "POST", path, &body.to_string())?;
    ensure!(
        matches!(reply.status, 200 | 201),
        "{path} {body}: {reply:?}"
    );
    Ok(reply.json()?["result"].clone())
}

/// What was answered, without what was asked for and without times.
fn words(reply: &Reply, asked: &str) -> Result<(u16, String)> {
    let mut answer = reply.json()?;
    let errors = answer["errors"].as_array_mut();
    for error in errors.into_iter().flatten() {
        error["extensions"] = Value::Null;
    }
    let said = json!([answer["errors"], answer["success"]]).to_string();
    Ok((reply.status, said.replace(asked, "X")))
}

#[test]
fn zone_5_what_another_account_has_is_answered_as_what_nobody_has() -> Result<()> {
    const TEST: &str = "zone_5_what_another_account_has_is_answered_as_what_nobody_has";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    api::two_accounts(&site, "hidden.example", "")?;
    site.gateway.restart()?;

    // What others have.
    let other = Api::new(&site, "other", &api::WRITE)?;
    let theirs = |rest: &str| of(OTHER_ACCOUNT, rest);
    for address in ["192.0.2.20", "192.0.2.22"] {
        made(
            &other,
            &theirs("egress/leased_ips"),
            &json!({ "address": address }),
        )?;
    }
    let pool = json!({ "id": "hidden", "name": "Hidden", "addresses": ["192.0.2.20"] });
    made(&other, &theirs("egress/pools"), &pool)?;
    let bring = |api: &Api, account: &str, cidr: &str| -> Result<String> {
        let prefixes = of(account, "addressing/prefixes");
        let prefix = made(api, &prefixes, &json!({ "asn": 64500, "cidr": cidr }))?;
        let id = prefix["id"].as_str().context("an id")?.to_owned();
        let service =
            api.get(&of(account, "addressing/services"))?.json()?["result"][0]["id"].clone();
        let body = json!({ "cidr": cidr, "service_id": service });
        made(api, &format!("{prefixes}/{id}/bindings"), &body)?;
        Ok(id)
    };
    let prefix = bring(&other, OTHER_ACCOUNT, "198.51.100.0/24")?;
    let rule = json!({ "name": "hidden", "action": "egress", "traffic": "net.dst.port == 1" });
    let rule = made(&other, &theirs("gateway/rules"), &rule)?["id"].clone();
    let rule = rule.as_str().context("an id")?;

    // What the tenant has.
    let operator = Api::new(&site, "acme", &api::WRITE)?;
    let own = |rest: &str| of(ACCOUNT, rest);
    for address in ["192.0.2.10", "192.0.2.11"] {
        made(
            &operator,
            &own("egress/leased_ips"),
            &json!({ "address": address }),
        )?;
    }
    let pool = json!({ "id": "own", "addresses": ["192.0.2.10"] });
    made(&operator, &own("egress/pools"), &pool)?;
    let brought = bring(&operator, ACCOUNT, "203.0.113.0/24")?;

    let tenant = Api::new(&site, "acme", &TENANT)?;
    // Method, path, body, and what stands for X in them: another's, then nobody's.
    let pools = own("egress/pools");
    let rules = own("gateway/rules");
    let prefixes = own("addressing/prefixes");
    let exit = |ipv4: &str, ipv6: &str| {
        let egress = json!({ "ipv4": ipv4, "ipv4_fallback": "0.0.0.0", "ipv6": ipv6 });
        json!({ "name": "y", "action": "egress", "rule_settings": { "egress": egress } })
            .to_string()
    };
    let free = "00000000-0000-4000-8000-000000000000";
    let none = "0".repeat(32);
    let ids = ["hidden", "nobodys"];
    let addresses = ["192.0.2.20", "192.0.2.21"];
    let waiting = ["192.0.2.22", "192.0.2.21"];
    let brought_along = ["198.51.100.9", "192.0.2.21"];
    let rule_ids = [rule, free];
    let prefix_ids = [prefix.as_str(), none.as_str()];
    let accounts = [OTHER_ACCOUNT, NOBODY];
    let zones = [OTHER_ZONE, NOBODY];
    let of_pool = format!("{pools}/X");
    let of_rule = format!("{rules}/X");
    let of_prefix = format!("{prefixes}/X");
    let one = |key: &str| json!({ key: "X" }).to_string();
    let member = json!({ "addresses": ["X"] }).to_string();
    let both = json!({ "id": "X", "addresses": ["192.0.2.11"] }).to_string();
    let shares = r#"{"shares":[{"data_center":"fra01","share":1}]}"#.to_owned();
    let service = json!({ "cidr": "198.51.100.0/24", "service_id": "x" }).to_string();
    let delegate = json!({ "cidr": "198.51.100.0/24", "delegated_account_id": NOBODY }).to_string();
    let delegated = json!({ "cidr": "203.0.113.0/24", "delegated_account_id": "X" }).to_string();
    let zone_rule = |name: &str| {
        let traffic = format!("zone == \"{name}\"");
        json!({ "name": "y", "action": "egress", "traffic": traffic }).to_string()
    };
    let setting = r#"{"value":{"enabled":true,"pool_id":"X"}}"#.to_owned();
    let query =
        "query ($a: string) { viewer { accounts(filter: {accountTag: $a}) { accountTag } } }";
    let query = json!({ "query": query, "variables": { "a": "X" } }).to_string();
    let drop = "DELETE";
    let none = String::new;
    let asked: Vec<(&str, String, String, [&str; 2])> = vec![
        ("GET", of_pool.clone(), none(), ids),
        ("PATCH", of_pool.clone(), r#"{"name":"x"}"#.into(), ids),
        (drop, of_pool, none(), ids),
        ("POST", pools.clone(), both, ids),
        ("POST", pools.clone(), member.clone(), addresses),
        ("POST", pools.clone(), member.clone(), waiting),
        ("POST", pools.clone(), member.clone(), brought_along),
        ("PATCH", format!("{pools}/own"), member.clone(), addresses),
        ("PATCH", format!("{pools}/own"), member, brought_along),
        (
            "PATCH",
            format!("{pools}/own"),
            one("name"),
            ["Hidden", "Nobodys"],
        ),
        ("PATCH", format!("{pools}/own"), one("name"), ids),
        (drop, own("egress/leased_ips/X"), none(), addresses),
        ("PUT", own("egress/placements/X"), shares, addresses),
        (drop, own("egress/placements/X"), none(), addresses),
        ("POST", own("egress/drains"), one("subject"), addresses),
        ("POST", own("egress/drains"), one("subject"), ids),
        (drop, own("egress/drains/X"), none(), addresses),
        (drop, own("egress/drains/X"), none(), ids),
        ("GET", of_prefix.clone(), none(), prefix_ids),
        (
            "PATCH",
            of_prefix.clone(),
            r#"{"description":"x"}"#.into(),
            prefix_ids,
        ),
        (drop, of_prefix.clone(), none(), prefix_ids),
        ("GET", format!("{of_prefix}/bindings"), none(), prefix_ids),
        ("POST", format!("{of_prefix}/bindings"), service, prefix_ids),
        (
            "GET",
            format!("{of_prefix}/delegations"),
            none(),
            prefix_ids,
        ),
        (
            "POST",
            format!("{of_prefix}/delegations"),
            delegate,
            prefix_ids,
        ),
        (
            "POST",
            format!("{prefixes}/{brought}/delegations"),
            delegated,
            accounts,
        ),
        ("GET", format!("{of_prefix}/bgp/status"), none(), prefix_ids),
        (
            "PATCH",
            format!("{of_prefix}/bgp/status"),
            r#"{"advertised":true}"#.into(),
            prefix_ids,
        ),
        ("GET", of_rule.clone(), none(), rule_ids),
        ("PUT", of_rule.clone(), zone_rule("shop.example"), rule_ids),
        ("PATCH", of_rule.clone(), r#"{"name":"x"}"#.into(), rule_ids),
        (drop, of_rule, none(), rule_ids),
        ("POST", rules.clone(), exit("X", "2001:db8::/64"), addresses),
        (
            "POST",
            rules.clone(),
            exit("X", "2001:db8::/64"),
            brought_along,
        ),
        (
            "POST",
            rules,
            zone_rule("X"),
            ["hidden.example", "nobody.example"],
        ),
        ("GET", aegis("X"), none(), zones),
        ("PATCH", aegis("X"), setting.replace('X', "own"), zones),
        ("PATCH", aegis(ZONE_ID), setting.clone(), ids),
        ("PATCH", aegis(ZONE_ID), setting, ["Hidden", "Nobodys"]),
        ("GET", of("X", "egress/pools"), none(), accounts),
        ("GET", of("X", "addressing/prefixes"), none(), accounts),
        ("GET", of("X", "gateway/rules"), none(), accounts),
        ("POST", "/client/v4/graphql".into(), query, accounts),
    ];
    // What stands in a path is nobody's for an operator either.
    let by_operator = asked.iter().filter(|(_, path, ..)| path.contains('X'));
    let by_operator = by_operator.map(|one| (&operator, one));
    let by_tenant = asked.iter().map(|one| (&tenant, one));
    for (who, (method, path, body, subjects)) in by_tenant.chain(by_operator) {
        let answer = |subject: &str| -> Result<(u16, String)> {
            let reply = ask(
                who,
                method,
                &path.replace('X', subject),
                &body.replace('X', subject),
            )?;
            words(&reply, subject)
        };
        let [anothers, nobodys] = [answer(subjects[0])?, answer(subjects[1])?];
        let tells = ["hidden", "Hidden", OTHER_ACCOUNT, "other\\\""];
        ensure!(
            anothers == nobodys && !tells.iter().any(|word| anothers.1.contains(word)),
            "{method} {path} {body} of {subjects:?}: {anothers:?}, but {nobodys:?}"
        );
    }

    // Who gives addresses learns that they are somebody's, and no more.
    let mut told = Vec::new();
    for (path, body, asked) in [
        (
            "egress/leased_ips",
            json!({ "address": "192.0.2.20" }),
            "192.0.2.20",
        ),
        (
            "egress/leased_ips",
            json!({ "address": "192.0.2.22" }),
            "192.0.2.22",
        ),
        (
            "egress/leased_ips",
            json!({ "address": "198.51.100.7" }),
            "198.51.100.7",
        ),
        (
            "addressing/prefixes",
            json!({ "asn": 1, "cidr": "198.51.100.0/24" }),
            "198.51.100.0/24",
        ),
        (
            "addressing/prefixes",
            json!({ "asn": 1, "cidr": "192.0.2.0/24" }),
            "192.0.2.0/24",
        ),
    ] {
        told.push(words(
            &ask(&operator, "POST", &own(path), &body.to_string())?,
            asked,
        )?);
    }
    told.dedup();
    ensure!(told.len() == 1 && told[0].0 == 400, "{told:?}");

    // An address of a prefix that both may use is in one pool: whose it is is not told.
    let whole = json!({ "cidr": "198.51.100.0/24", "delegated_account_id": ACCOUNT });
    made(
        &other,
        &theirs(&format!("addressing/prefixes/{prefix}/delegations")),
        &whole,
    )?;
    let pool = json!({ "id": "hidden-too", "addresses": ["198.51.100.1"] });
    made(&other, &theirs("egress/pools"), &pool)?;
    let body = r#"{"addresses":["198.51.100.1"]}"#;
    let taken = ask(&tenant, "POST", &pools, body)?;
    let (status, said) = words(&taken, "198.51.100.1")?;
    ensure!(
        status == 400 && said.contains("another account") && !said.contains("hidden"),
        "{taken:?}"
    );
    Ok(())
}
