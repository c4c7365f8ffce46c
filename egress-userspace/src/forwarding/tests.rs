//! Where new connections go, from resources alone.

use super::*;
use crate::config::Config;
use crate::desired::Desired;
use crate::diagnostic::Source;
use crate::liveness::Healths;
use crate::{resolve, resource};

/// One server in Frankfurt and one in Amsterdam, of which each has an address of the pool to itself.
const FILE: &str = r#"
account = [{ id = "acme" }]
[[location]]
name = "frankfurt"
[[location.data_center]]
name = "fra01"
[[location.data_center.server]]
name = "fra01-s1"
number = 1
tunnel = "10.9.0.1"
[[location]]
name = "amsterdam"
[[location.data_center]]
name = "ams01"
[[location.data_center.server]]
name = "ams01-s1"
number = 2
tunnel = "10.9.0.2"
[[placement]]
address = "192.0.2.1"
shares = [{ data_center = "fra01", share = 1 }]
[[placement]]
address = "192.0.2.2"
shares = [{ data_center = "ams01", share = 1 }]
[[pool]]
id = "both"
account = "acme"
addresses = ["192.0.2.1", "192.0.2.2"]
"#;

fn model(text: &str) -> Resources {
    let (found, said) = resource::parse(&Source::new("r.toml", text), None);
    found.unwrap_or_else(|| panic!("{said}"))
}

fn desired(resources: &Resources, server: &str) -> Desired {
    let mut config = Config::default();
    config.server.name = server.to_owned();
    let numbers = Numbers {
        pools: [("both".to_owned(), 3)].into(),
        ..Numbers::default()
    };
    resolve::resolve_among(resources, &config, &numbers, &Healths::new()).unwrap()
}

#[test]
fn pool_9_what_drains_is_nothing_that_a_server_has() {
    let draining = |addresses: &str| {
        let with = format!("id = \"both\"\ndraining = [{addresses}]");
        let resources = model(&FILE.replace("id = \"both\"", &with));
        let desired = desired(&resources, "fra01-s1");
        let to = desired.forwarded(3, [10, 1, 0, 2].into());
        to.map(|(peer, _)| peer.name.clone())
    };
    assert_eq!(draining(""), None, "it leaves here");
    assert_eq!(draining("\"192.0.2.2\""), None);
    assert_eq!(draining("\"192.0.2.1\"").as_deref(), Some("ams01-s1"));
    assert_eq!(
        draining("\"192.0.2.1\", \"192.0.2.2\""),
        None,
        "nobody has any"
    );
}

#[test]
fn fwd_6_a_tunnel_id_is_made_of_the_pools_id_alone() {
    let alone = desired(&model(FILE), "fra01-s1").tunnel.unwrap().pools;
    let more = "[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"2001:db8::/64\"]\n";
    let resources = model(&format!("{FILE}{more}"));
    let found = targets(&resources);
    assert_eq!(found["both"], alone[0].target);
    assert_eq!(found.len(), 2);
}
