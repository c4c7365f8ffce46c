//! API-1, API-3 with other people's programs: the official SDKs of the original, pointed here by base URL and token alone.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, OTHER_ACCOUNT, OTHER_ZONE},
    config::ZONE_ID,
    libraries, needs, netns,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, BOUND, GATEWAY, POOL},
};
use serde_json::{Value, json};

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;

/// Reads, changes and reads again, as a program does that was written for the original; then what may not be.
const PYTHON: &str = r#"
import json, os
import cloudflare

zone, other = os.environ["ZONE"], os.environ["OTHER_ZONE"]
client = cloudflare.Cloudflare(api_token=os.environ["TOKEN"], base_url=os.environ["BASE"])

def shown(setting):
    return {"id": setting.id, "editable": setting.editable, "value": setting.value.to_dict(),
            "modified": setting.modified_on is not None and setting.modified_on.year}

def refused(call):
    try:
        call()
    except cloudflare.APIStatusError as error:
        return {"is": type(error).__name__, "code": error.body["errors"][0]["code"] if isinstance(error.body, dict) else None}

account = os.environ["ACCOUNT"]
addressing = client.addressing

def byoip():
    services = {service.name: service.id for service in addressing.services.list(account_id=account)}
    prefix = addressing.prefixes.create(account_id=account, asn=64500, cidr="198.51.100.0/24", description="ours")
    bindings, delegations = addressing.prefixes.service_bindings, addressing.prefixes.delegations
    bind = lambda cidr, service: bindings.create(prefix.id, account_id=account, cidr=cidr, service_id=services[service])
    whole = bind(prefix.cidr, "CDN Egress")
    both = refused(lambda: bind("198.51.100.0/28", "CDN Ingress"))
    right = delegations.create(prefix.id, account_id=account, cidr=prefix.cidr, delegated_account_id=os.environ["OTHER_ACCOUNT"])
    changed = addressing.prefixes.edit(prefix.id, account_id=account, description="theirs")
    found = {
        "prefixes": [[one.cidr, one.asn, one.description] for one in addressing.prefixes.list(account_id=account)],
        "bindings": [[one.cidr, one.service_name, one.provisioning.state] for one in bindings.list(prefix.id, account_id=account)],
        "delegations": [one.delegated_account_id for one in delegations.list(prefix.id, account_id=account)],
        "both": both, "changed": changed.description,
    }
    delegations.delete(right.id, account_id=account, prefix_id=prefix.id)
    bindings.delete(whole.id, account_id=account, prefix_id=prefix.id)
    addressing.prefixes.delete(prefix.id, account_id=account)
    found["left"] = len(list(addressing.prefixes.list(account_id=account)))
    return found

settings = client.zones.settings
edit = lambda zone, value: settings.edit("aegis", zone_id=zone, value=value)
print(json.dumps({
    "version": cloudflare.__version__,
    "byoip": byoip(),
    "before": shown(settings.get("aegis", zone_id=zone)),
    "on": shown(edit(zone, {"enabled": True, "pool_id": "partners"})),
    "after": shown(settings.get("aegis", zone_id=zone)),
    "unknown pool": refused(lambda: edit(zone, {"enabled": True, "pool_id": "nope"})),
    "other zone": refused(lambda: edit(other, {"enabled": False})),
    "no token": refused(lambda: client.with_options(api_token="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
                        .zones.settings.get("aegis", zone_id=zone)),
}))
"#;

/// The same in JavaScript, which is what the TypeScript SDK is when it runs.
const JAVASCRIPT: &str = r#"
const { Cloudflare, APIError } = require(process.env.PACKAGE);
const { ZONE: zone, OTHER_ZONE: other, TOKEN: apiToken, BASE: baseURL } = process.env;
const client = new Cloudflare({ apiToken, baseURL });

const shown = ({ id, editable, value, modified_on: modified }) =>
  ({ id, editable, value, modified: modified !== null && new Date(modified).getUTCFullYear() });
const refused = (call) => call.then(() => null, (error) => {
  if (!(error instanceof APIError)) throw error;
  return { is: error.constructor.name, code: error.errors?.[0]?.code };
});
const get = (client, zone) => client.zones.settings.get("aegis", { zone_id: zone });
const edit = (zone, value) => client.zones.settings.edit("aegis", { zone_id: zone, value });
const { ACCOUNT: account_id, OTHER_ACCOUNT: delegated_account_id } = process.env;
const all = async (pages) => { const found = []; for await (const one of pages) found.push(one); return found; };

const byoip = async () => {
  const { prefixes, services } = client.addressing;
  const { serviceBindings: bindings, delegations } = prefixes;
  const ids = Object.fromEntries((await all(services.list({ account_id }))).map(({ id, name }) => [name, id]));
  const prefix = await prefixes.create({ account_id, asn: 64500, cidr: "198.51.100.0/24", description: "ours" });
  const bind = (cidr, service) => bindings.create(prefix.id, { account_id, cidr, service_id: ids[service] });
  const whole = await bind(prefix.cidr, "CDN Egress");
  const both = await refused(bind("198.51.100.0/28", "CDN Ingress"));
  const right = await delegations.create(prefix.id, { account_id, cidr: prefix.cidr, delegated_account_id });
  const changed = await prefixes.edit(prefix.id, { account_id, description: "theirs" });
  const found = {
    prefixes: (await all(prefixes.list({ account_id }))).map((one) => [one.cidr, one.asn, one.description]),
    bindings: (await all(bindings.list(prefix.id, { account_id }))).map((one) => [one.cidr, one.service_name, one.provisioning.state]),
    delegations: (await all(delegations.list(prefix.id, { account_id }))).map((one) => one.delegated_account_id),
    both, changed: changed.description,
  };
  await delegations.delete(right.id, { account_id, prefix_id: prefix.id });
  await bindings.delete(whole.id, { account_id, prefix_id: prefix.id });
  await prefixes.delete(prefix.id, { account_id });
  found.left = (await all(prefixes.list({ account_id }))).length;
  return found;
};
const stranger = client.withOptions({ apiToken: "A".repeat(40) });

(async () => {
  console.log(JSON.stringify({
    version: require(process.env.PACKAGE + "/package.json").version,
    byoip: await byoip(),
    before: shown(await get(client, zone)),
    on: shown(await edit(zone, { enabled: true, pool_id: "partners" })),
    after: shown(await get(client, zone)),
    "unknown pool": await refused(edit(zone, { enabled: true, pool_id: "nope" })),
    "other zone": await refused(edit(other, { enabled: false })),
    "no token": await refused(get(stranger, zone)),
  }));
})().catch((error) => { console.error(error); process.exitCode = 1; });
"#;

/// Runs a program of an SDK on the gateway: what it says is what the original would have said, and the next connection
/// leaves by the pool.
fn check(site: &Site, mut command: Command) -> Result<()> {
    let permissions = [
        "zone-settings:write",
        "account-egress:write",
        "account-addresses:write",
    ];
    let api = Api::new(site, "acme", &permissions)?;
    command
        .env("ACCOUNT", ACCOUNT)
        .env("OTHER_ACCOUNT", OTHER_ACCOUNT)
        .env("TOKEN", api.token())
        .env("BASE", format!("http://{LISTEN}/client/v4"))
        .env("ZONE", ZONE_ID)
        .env("OTHER_ZONE", OTHER_ZONE);
    let said = netns::run(&mut command)?;
    println!("{}", said.trim());
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(
        said["before"]
            == json!({ "id": "aegis", "editable": true, "value": { "enabled": false }, "modified": false }),
        "{said}"
    );
    let value = json!({ "enabled": true, "pool_id": "partners" });
    ensure!(
        said["on"]["value"] == value && said["after"] == said["on"],
        "{said}"
    );
    ensure!(said["on"]["modified"].as_u64() >= Some(2024), "{said}");
    for (what, kind, code) in [
        ("unknown pool", "BadRequestError", 1007),
        ("other zone", "PermissionDeniedError", 10000),
        ("no token", "AuthenticationError", 10000),
    ] {
        ensure!(
            said[what]["is"] == kind && said[what]["code"] == code,
            "{what}: {said}"
        );
    }
    let cidr = "198.51.100.0/24";
    ensure!(
        said["byoip"]
            == json!({
                "prefixes": [[cidr, 64500, "theirs"]],
                "bindings": [[cidr, "CDN Egress", "active"]],
                "delegations": [OTHER_ACCOUNT],
                "both": { "is": "BadRequestError", "code": 1007 },
                "changed": "theirs",
                "left": 0,
            }),
        "{said}"
    );
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let next = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(next.seen.ip() == POOL[0], "{next:?}");
    Ok(())
}

#[test]
fn the_official_python_sdk_works_by_its_base_url() -> Result<()> {
    const TEST: &str = "the_official_python_sdk_works_by_its_base_url";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let Some(python) = libraries::python("cloudflare") else {
        needs::skip(
            TEST,
            &format!(
                "no python3 with the package cloudflare; name one in {}",
                libraries::PYTHON
            ),
        );
        return Ok(());
    };
    let site = api::started()?;
    let mut command = site.node(GATEWAY).command(&python)?;
    command.args(["-c", PYTHON]);
    check(&site, command)
}

#[test]
fn the_official_typescript_sdk_works_by_its_base_url() -> Result<()> {
    const TEST: &str = "the_official_typescript_sdk_works_by_its_base_url";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let Some((node, package)) = libraries::javascript("cloudflare") else {
        needs::skip(
            TEST,
            &format!(
                "no node with the package cloudflare; name its folder in {}",
                libraries::NODE_MODULES
            ),
        );
        return Ok(());
    };
    let site = api::started()?;
    let mut command = site.node(GATEWAY).command(&node)?;
    command.args(["-e", JAVASCRIPT]).env("PACKAGE", &package);
    check(&site, command)
}
