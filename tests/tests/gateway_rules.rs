//! Gateway rules of action `egress` by the HTTP API (POLICY-1 to POLICY-5, ZONE-5): what each call does to real
//! connections, and what may not be.

use std::{fs, io::Write as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, OTHER_ACCOUNT, aegis},
    config::ZONE_ID,
    libraries, needs, netns,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, BOUND, BOUND_ADDRESS, GATEWAY, POOL, RANGE},
};
use serde_json::{Value, json};

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
const WRITE: &str = "account-egress:write";

/// A site whose zone is on its pool, with an IPv6 range and a policy of the resources file that nobody meets.
fn started() -> Result<(Site, Api)> {
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    let path = site.gateway.files().resources();
    let mut file = fs::OpenOptions::new().append(true).open(&path)?;
    write!(
        file,
        "[[pool]]\nid = \"range\"\naccount = \"acme\"\naddresses = [\"{RANGE}\"]\n\
         [[policy]]\nname = \"filed\"\naccount = \"acme\"\ntraffic = \"net.dst.port == 1\"\n"
    )
    .with_context(|| format!("writing {}", path.display()))?;
    site.gateway.restart()?;
    let api = Api::new(&site, "acme", &[WRITE, "zone-settings:write"])?;
    let on = api.patch(
        &aegis(ZONE_ID),
        r#"{"value":{"enabled":true,"pool_id":"partners"}}"#,
    )?;
    ensure!(on.status == 200, "{on:?}");
    Ok((site, api))
}

fn rules(account: &str) -> String {
    format!("/client/v4/accounts/{account}/gateway/rules")
}

/// A rule that sends the test's connections out by the second pool's address.
fn second() -> Value {
    json!({
        "name": "to the test", "action": "egress", "filters": ["egress"], "enabled": true,
        "traffic": format!("net.dst.port eq {PORT}&&net.protocol==\"tcp\""), "identity": "", "device_posture": "",
        "rule_settings": { "egress": {
            "ipv4": POOL[1].to_string(), "ipv4_fallback": "0.0.0.0", "ipv6": RANGE.to_string()
        } },
    })
}

#[test]
fn rules_decide_where_the_next_connection_leaves_from() -> Result<()> {
    const TEST: &str = "rules_decide_where_the_next_connection_leaves_from";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (mut site, api) = started()?;
    let all = rules(ACCOUNT);
    let node = site.node(BOUND);
    let origin = site.at_a(PORT);
    let listener = peer::listen(&site.node(A), origin)?;
    let connect = || Peers::connect(&node, Caller::default(), &listener);
    let call = |method: &str, path: &str, body: &Value| {
        api.call(path, &["--request", method, "--json", &body.to_string()])
    };
    let mut live = connect()?;
    ensure!(live.seen.ip() == POOL[0], "{live:?}");

    let made = call("POST", &all, &second())?;
    ensure!(made.status == 200, "{made:?}");
    let made = made.json()?;
    let rule = &made["result"];
    ensure!(
        rule["traffic"] == format!("net.dst.port == {PORT} and net.protocol == \"tcp\"")
            && rule["version"] == 1
            && rule["read_only"] == false
            && rule["rule_settings"] == second()["rule_settings"]
            && rule["created_at"] == rule["updated_at"],
        "{made}"
    );
    // POLICY-5: what no policy matches.
    let warnings = made["messages"].as_array().context("messages")?;
    ensure!(
        warnings.len() == 1 && made.to_string().contains("POLICY-5"),
        "{made}"
    );
    // After the file's, which has the first precedence there is.
    ensure!(rule["precedence"] == 1_100, "{made}");
    let mut moved = connect()?;
    ensure!(moved.seen.ip() == POOL[1], "{moved:?}");
    live.exchange()?;
    let why = site.gateway.json(&[
        "why",
        &format!("{BOUND_ADDRESS}:40000"),
        &origin.to_string(),
    ])?;
    ensure!(
        why["policy"] == "to the test" && why["egress_ip"] == POOL[1].to_string(),
        "{why}"
    );

    let path = format!("{all}/{}", rule["id"].as_str().context("an id")?);
    ensure!(api.get(&path)?.json()?["result"] == *rule);
    let listed = api.get(&all)?.json()?;
    let names: Vec<_> = (0..3)
        .map(|at| listed["result"][at]["name"].clone())
        .collect();
    ensure!(
        names == [json!("filed"), json!("to the test"), Value::Null],
        "{listed}"
    );
    ensure!(listed["result"][0]["read_only"] == true, "{listed}");

    let off = call("PATCH", &path, &json!({ "enabled": false }))?.json()?;
    ensure!(
        off["result"]["version"] == 2
            && off["result"]["enabled"] == false
            && off["result"]["traffic"] == rule["traffic"]
            && off["result"]["created_at"] == rule["created_at"],
        "{off}"
    );
    let back = connect()?;
    ensure!(back.seen.ip() == POOL[0], "{back:?}");

    // The default egress, and in the same place.
    let mut whole = second();
    whole["rule_settings"] = Value::Null;
    let put = call("PUT", &path, &whole)?.json()?;
    ensure!(
        put["result"]["version"] == 3
            && put["result"]["precedence"] == 1_100
            && put["result"]["rule_settings"] == json!({ "egress": null }),
        "{put}"
    );
    let default = connect()?;
    ensure!(default.seen.ip() == BOUND_ADDRESS, "{default:?}");

    site.gateway.kill()?;
    site.gateway.restart()?;
    ensure!(api.get(&path)?.json()?["result"] == put["result"]);
    let default = connect()?;
    ensure!(default.seen.ip() == BOUND_ADDRESS, "{default:?}");

    // What the file says anew leaves it alone.
    let file = site.gateway.files().resources();
    let more = fs::read_to_string(&file)?.replace("net.dst.port == 1", "net.dst.port == 2");
    fs::write(&file, more)?;
    let file = file.to_str().context("a path in UTF-8")?;
    site.gateway.text(["apply", "-f", file])?;
    let listed = api.get(&all)?.json()?;
    ensure!(
        listed["result"][0]["traffic"] == "net.dst.port == 2",
        "{listed}"
    );
    ensure!(api.get(&path)?.json()?["result"] == put["result"]);

    let gone = call("DELETE", &path, &json!({}))?;
    ensure!(
        gone.status == 200 && gone.json()?["result"] == json!({}),
        "{gone:?}"
    );
    ensure!(api.get(&path)?.outcome()? == (404, 1404));
    let back = connect()?;
    ensure!(back.seen.ip() == POOL[0], "{back:?}");
    live.exchange()?;
    moved.exchange()?;
    Ok(())
}

#[test]
fn rules_that_may_not_be_change_nothing() -> Result<()> {
    const TEST: &str = "rules_that_may_not_be_change_nothing";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (site, api) = started()?;
    let all = rules(ACCOUNT);
    let call = |method: &str, path: &str, body: &Value| {
        api.call(path, &["--request", method, "--json", &body.to_string()])
    };
    let made = call("POST", &all, &second())?.json()?;
    let id = made["result"]["id"].as_str().context("an id")?;
    let before = api.get(&all)?.json()?;
    let filed = before["result"][0]["id"].as_str().context("an id")?;
    let (one, filed) = (format!("{all}/{id}"), format!("{all}/{filed}"));

    let with = |key: &str, value: Value| {
        let mut body = second();
        body["name"] = json!("another");
        body[key] = value;
        body
    };
    let leaving_by = |ipv4: &str, fallback: &str, ipv6: &str| {
        let egress = json!({ "ipv4": ipv4, "ipv4_fallback": fallback, "ipv6": ipv6 });
        with("rule_settings", json!({ "egress": egress }))
    };
    let (first, range) = (POOL[0].to_string(), RANGE.to_string());
    let bad = [
        (
            with(
                "traffic",
                json!("net.dst.port == 1 and identity.email == \"a\""),
            ),
            "column 23: ",
        ),
        (
            with("traffic", json!("zone == \"other.example\"")),
            "there is no zone",
        ),
        (with("name", json!("to the test")), "already"),
        (with("name", json!("filed")), "already"),
        (with("precedence", json!(1_000)), "that of policy filed"),
        (
            with("precedence", json!(1_100)),
            "that of policy to the test",
        ),
        (leaving_by("203.0.113.77", "0.0.0.0", &range), "in no pool"),
        (leaving_by(&first, "203.0.113.77", &range), "in no pool"),
        (
            leaving_by(&first, "0.0.0.0", "2001:db8:ffff::/64"),
            "in no pool",
        ),
        (
            leaving_by(&first, &first, &range),
            "both primary and secondary",
        ),
    ];
    for (body, said) in &bad {
        for (method, path) in [("POST", &all), ("PUT", &one)] {
            // Its own name and precedence a rule may keep.
            let own = body["name"] == "to the test" || body["precedence"] == 1_100;
            if method == "PUT" && own {
                continue;
            }
            let reply = call(method, path, body)?;
            ensure!(
                reply.outcome()? == (400, 1007) && reply.text.contains(said),
                "{method} {body}: {reply:?}"
            );
            // ZONE-5: nothing is told of another account.
            ensure!(!reply.text.contains("theirs"), "{reply:?}");
        }
    }
    let taken = call("PATCH", &one, &json!({ "precedence": 1_000 }))?;
    ensure!(taken.outcome()? == (400, 1007), "{taken:?}");
    for (method, body) in [
        ("PUT", second()),
        ("PATCH", json!({ "enabled": false })),
        ("DELETE", json!({})),
    ] {
        let reply = call(method, &filed, &body)?;
        ensure!(reply.outcome()? == (400, 1057), "{method}: {reply:?}");
        let none = call(method, &format!("{all}/none"), &body)?;
        ensure!(none.outcome()? == (404, 1404), "{method}: {none:?}");
        let others = call(method, &one.replace(ACCOUNT, OTHER_ACCOUNT), &body)?;
        ensure!(others.outcome()? == (403, 10_000), "{method}: {others:?}");
    }
    let others = call("POST", &rules(OTHER_ACCOUNT), &second())?;
    ensure!(others.outcome()? == (403, 10_000), "{others:?}");
    ensure!(api.get(&rules(OTHER_ACCOUNT))?.outcome()? == (403, 10_000));
    let reader = Api::new(&site, "acme", &["account-egress:read"])?;
    ensure!(reader.get(&one)?.status == 200);
    let gone = reader.call(&one, &["--request", "DELETE"])?;
    ensure!(gone.outcome()? == (403, 10_000), "{gone:?}");
    // The other account's own token sees nothing of it.
    let stranger = Api::new(&site, "other", &[WRITE])?;
    let theirs = stranger.get(&one.replace(ACCOUNT, OTHER_ACCOUNT))?;
    ensure!(theirs.outcome()? == (404, 1404), "{theirs:?}");

    ensure!(api.get(&all)?.json()? == before);
    Ok(())
}

/// Makes, lists, reads, changes and removes a rule, as a program does that was written for the original.
const PYTHON: &str = r#"
import json, os
import cloudflare

account = os.environ["ACCOUNT"]
client = cloudflare.Cloudflare(api_token=os.environ["TOKEN"], base_url=os.environ["BASE"])
rules = client.zero_trust.gateway.rules

def refused(call):
    try:
        call()
    except cloudflare.APIStatusError as error:
        return {"is": type(error).__name__, "code": error.body["errors"][0]["code"]}

made = rules.create(account_id=account, name="bank", action="egress", filters=["egress"], enabled=True,
                    traffic="net.dst.port eq 443", rule_settings={"egress": json.loads(os.environ["EGRESS"])})
listed = [rule.name for rule in rules.list(account_id=account)]
changed = rules.update(made.id, account_id=account, name="bank", action="egress", traffic="net.dst.port == 80",
                       precedence=made.precedence)
read = rules.get(made.id, account_id=account)
rules.delete(made.id, account_id=account)
print(json.dumps({
    "made": {"traffic": made.traffic, "enabled": made.enabled, "version": made.version,
             "egress": made.rule_settings.egress.to_dict(), "year": made.created_at.year},
    "listed": listed,
    "changed": {"traffic": changed.traffic, "enabled": changed.enabled, "version": changed.version},
    "as read": read == changed,
    "identity": refused(lambda: rules.create(account_id=account, name="x", action="egress",
                                             identity='identity.email == "a@b"')),
    "gone": refused(lambda: rules.get(made.id, account_id=account)),
}))
"#;

/// The same in JavaScript, which is what the TypeScript SDK is when it runs.
const JAVASCRIPT: &str = r#"
const { Cloudflare, APIError } = require(process.env.PACKAGE);
const { ACCOUNT: account_id, TOKEN: apiToken, BASE: baseURL, EGRESS } = process.env;
const rules = new Cloudflare({ apiToken, baseURL }).zeroTrust.gateway.rules;

const refused = (call) => call.then(() => null, (error) => {
  if (!(error instanceof APIError)) throw error;
  return { is: error.constructor.name, code: error.errors?.[0]?.code };
});

(async () => {
  const made = await rules.create({ account_id, name: "bank", action: "egress", filters: ["egress"], enabled: true,
    traffic: "net.dst.port eq 443", rule_settings: { egress: JSON.parse(EGRESS) } });
  const listed = [];
  for await (const rule of rules.list({ account_id })) listed.push(rule.name);
  const changed = await rules.update(made.id, { account_id, name: "bank", action: "egress",
    traffic: "net.dst.port == 80", precedence: made.precedence });
  const read = await rules.get(made.id, { account_id });
  await rules.delete(made.id, { account_id });
  console.log(JSON.stringify({
    made: { traffic: made.traffic, enabled: made.enabled, version: made.version,
      egress: made.rule_settings.egress, year: new Date(made.created_at).getUTCFullYear() },
    listed,
    changed: { traffic: changed.traffic, enabled: changed.enabled, version: changed.version },
    "as read": JSON.stringify(read) === JSON.stringify(changed),
    identity: await refused(rules.create({ account_id, name: "x", action: "egress",
      identity: 'identity.email == "a@b"' })),
    gone: await refused(rules.get(made.id, { account_id })),
  }));
})().catch((error) => { console.error(error); process.exitCode = 1; });
"#;

/// Runs a program of an SDK on the gateway: what it says is what the original would have said.
fn check(api: &Api, mut command: Command) -> Result<()> {
    let egress = second()["rule_settings"]["egress"].clone();
    command
        .env("TOKEN", api.token())
        .env("BASE", format!("http://{LISTEN}/client/v4"))
        .env("ACCOUNT", ACCOUNT)
        .env("EGRESS", egress.to_string());
    let said = netns::run(&mut command)?;
    println!("{}", said.trim());
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let year = said["made"]["year"].as_u64();
    ensure!(year >= Some(2024), "{said}");
    let expected = json!({
        "made": {
            "traffic": "net.dst.port == 443", "enabled": true, "version": 1, "egress": egress, "year": year
        },
        "listed": ["filed", "bank"],
        "changed": { "traffic": "net.dst.port == 80", "enabled": false, "version": 2 },
        "as read": true,
        "identity": { "is": "BadRequestError", "code": 1007 },
        "gone": { "is": "NotFoundError", "code": 1404 },
    });
    ensure!(said == expected, "{said:#}");
    Ok(())
}

#[test]
fn the_official_sdks_make_and_change_rules() -> Result<()> {
    const TEST: &str = "the_official_sdks_make_and_change_rules";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (python, javascript) = (
        libraries::python("cloudflare"),
        libraries::javascript("cloudflare"),
    );
    for (sdk, is_here) in [
        ("Python", python.is_some()),
        ("TypeScript", javascript.is_some()),
    ] {
        if !is_here {
            needs::skip(TEST, &format!("the official {sdk} SDK is not here"));
        }
    }
    if python.is_none() && javascript.is_none() {
        return Ok(());
    }
    let (site, api) = started()?;
    if let Some(python) = python {
        let mut command = site.node(GATEWAY).command(&python)?;
        command.args(["-c", PYTHON]);
        check(&api, command).context("Python")?;
    }
    if let Some((node, package)) = javascript {
        let mut command = site.node(GATEWAY).command(&node)?;
        command.args(["-e", JAVASCRIPT]).env("PACKAGE", package);
        check(&api, command).context("JavaScript")?;
    }
    Ok(())
}
