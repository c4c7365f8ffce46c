//! What becomes of a configuration.

use super::*;
use crate::dataplane::cgroups::Cgroup;
use crate::desired::{
    ALL_SLICES, Candidate as Address, DesiredMark, DesiredPart, DesiredPool, DesiredPrefix,
    DesiredTunnel, Selectors,
};

fn desired() -> Desired {
    Desired {
        zones: vec![DesiredZone {
            number: 3,
            id: "z".into(),
            name: "shop".into(),
            enabled: true,
            pool: Some(2),
            selectors: Selectors {
                marks: vec![
                    DesiredMark {
                        value: 0x50,
                        mask: 0xf0,
                    },
                    DesiredMark {
                        value: 0xa1,
                        mask: 0xffff,
                    },
                ],
                cgroups: vec!["a/b".into(), "gone".into()],
                interfaces: vec!["in0".into(), "in9".into()],
                sources: vec![
                    "10.1.0.0/16".parse().unwrap(),
                    "2001:db8::/32".parse().unwrap(),
                ],
            },
            realm: true,
            egress_tcp: true,
            egress_udp: false,
        }],
        pools: vec![DesiredPool {
            number: 2,
            id: "p".into(),
            candidates: vec![Address {
                address: "192.0.2.10".parse().unwrap(),
                slices: ALL_SLICES,
                cap: 40_000,
                draining: false,
            }],
            prefixes: Vec::new(),
        }],
        ..Desired::default()
    }
}

fn tables(desired: &Desired) -> Result<Tables, DataPlaneError> {
    let cgroups = Cgroups::from([(
        "a/b".to_owned(),
        Cgroup {
            id: 77,
            level: 2,
            nft: "a/b".into(),
        },
    )]);
    Tables::of(
        desired,
        &Dataplane::default(),
        TagField::new(0xffff_0000).unwrap(),
        &BTreeMap::from([("in0".to_owned(), 5)]),
        &cgroups,
        &ExitNumbers(vec![NO_EXIT + 1, NO_EXIT + 2]),
    )
}

#[test]
fn a_zone_becomes_entries() {
    let tables = tables(&desired()).unwrap();
    let flags = zone_flag::KNOWN | zone_flag::ENABLED | zone_flag::REALM | zone_flag::TCP;
    assert_eq!(
        tables.zones,
        BTreeMap::from([(
            3,
            Zone {
                flags,
                pool: 2,
                exit: 0
            }
        )])
    );
    assert_eq!(
        tables.pools,
        BTreeMap::from([(
            2,
            Pool {
                first: 0,
                count: 1,
                ..Pool::default()
            }
        )])
    );
    assert_eq!(tables.interfaces, BTreeMap::from([(5, 3)]));
    assert_eq!(tables.cgroups, BTreeMap::from([(77, 3)]));
    assert_eq!(
        tables.paths,
        BTreeMap::from([("a/b".to_owned(), 3), ("gone".to_owned(), 3)])
    );
    assert_eq!(
        tables.settings.cgroup_levels,
        1 << 1 | 1 << 2,
        "what does not exist yet is looked for too"
    );
    assert_eq!(tables.sources4, BTreeMap::from([((16, [10, 1, 0, 0]), 3)]));
    assert_eq!(tables.marks[0].mask, 0xffff, "the most bits first (ZONE-3)");
    assert_eq!(tables.settings.marks, 2);
}

#[test]
fn a_resolver_inside_an_exempt_destination_does_not_shadow_it() {
    let mut desired = desired();
    desired.exempt.destinations = vec!["10.0.0.0/8".parse().unwrap()];
    desired.exempt.resolvers = vec!["10.0.0.53".parse().unwrap(), "9.9.9.9".parse().unwrap()];
    let tables = tables(&desired).unwrap();
    assert_eq!(
        tables.exempt4,
        BTreeMap::from([((8, [10, 0, 0, 0]), 0), ((32, [9, 9, 9, 9]), 53)])
    );
}

#[test]
fn differences_are_counted_by_entry() {
    let old = tables(&desired()).unwrap();
    assert_eq!(old.differences(&old), 0);
    let mut desired = desired();
    desired.zones[0].enabled = false;
    // The zone, and the settings' number of enabled ones.
    assert_eq!(tables(&desired).unwrap().differences(&old), 2);
    desired.pools[0].candidates[0].draining = true;
    assert_eq!(tables(&desired).unwrap().differences(&old), 3);
    desired.zones[0].selectors.sources.pop();
    assert_eq!(old.differences(&tables(&desired).unwrap()), 4);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut many = desired();
    many.zones[0].number = u16::MAX;
    let error = tables(&many).unwrap_err();
    assert!(error.to_string().contains("zone shop"), "{error}");
    let mut many = desired();
    many.zones[0].selectors.marks = (1..=257)
        .map(|value| DesiredMark {
            value,
            mask: 0xffff,
        })
        .collect();
    let error = tables(&many).unwrap_err();
    assert!(error.to_string().contains("257 mark selectors"), "{error}");
}

#[test]
fn nat_7_each_timer_reaches_the_programs_in_its_own_place() {
    let timers = crate::config::Timers {
        tcp_established: Duration::from_secs(1),
        tcp_transitory: Duration::from_secs(2),
        tcp_closing: Duration::from_secs(3),
        quarantine: Duration::from_secs(4),
        udp: Duration::from_secs(5),
        reset_idle: true,
    };
    let tables = tables(&Desired {
        timers,
        ..desired()
    })
    .unwrap();
    let second = 1_000_000_000;
    assert_eq!(
        tables.settings.timers,
        Timers {
            tcp_established: second,
            tcp_transitory: 2 * second,
            tcp_closing: 3 * second,
            quarantine: 4 * second,
            udp: 5 * second,
        }
    );
}

/// FWD-8, POLICY-3: exits stand among the pools, with what may leave here by them, and are no pools themselves.
#[test]
fn an_exit_is_a_part_of_its_pool() {
    let mut desired = desired();
    desired.pools[0].prefixes = vec![DesiredPrefix {
        prefix: "2001:db8:aa::/64".parse().unwrap(),
        cap: 7,
        draining: false,
    }];
    let part = |only: Option<&str>| DesiredPart {
        pool: 2,
        only: only.map(|only| only.parse().unwrap()),
        regions: vec!["paris".into()],
        target: 77,
        here: true,
        shares: None,
    };
    desired.tunnel = Some(DesiredTunnel {
        own: [10, 9, 0, 1].into(),
        device: "egress0".into(),
        port: 4789,
        peers: Vec::new(),
        pools: Vec::new(),
        exits: vec![part(None), part(Some("192.0.2.10"))],
    });
    let confined = |part| Confinement {
        regions: vec!["paris".into()],
        part,
    };
    for (part, exit) in [
        (Part::All, 0),
        (Part::Exit(1), NO_EXIT + 2),
        (Part::Nothing, NO_EXIT),
    ] {
        desired.confined = [(3, confined(part))].into();
        let tables = tables(&desired).unwrap();
        assert_eq!((tables.zones[&3].pool, tables.zones[&3].exit), (2, exit));
    }
    let found = tables(&desired).unwrap();
    let pool = |count, count6| Pool {
        count,
        count6,
        ..Pool::default()
    };
    let expected = [
        (2, pool(1, 1)),
        (NO_EXIT + 1, pool(0, 1)),
        (NO_EXIT + 2, pool(1, 0)),
    ];
    assert_eq!(found.pools, expected.into());
    assert_eq!(
        found.pools().map(|(number, ..)| number).collect::<Vec<_>>(),
        [2]
    );
    // Where it may not leave, nothing stands for it.
    if let Some(tunnel) = &mut desired.tunnel {
        tunnel.exits.iter_mut().for_each(|exit| exit.here = false);
    }
    assert_eq!(tables(&desired).unwrap().pools.len(), 1);
}
