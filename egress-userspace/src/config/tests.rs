use std::path::Path;
use std::time::Duration;

use super::*;
use crate::diagnostic::Severity;

/// The sample of the interface document, in full.
const SAMPLE: &str = r#"
[server]
name = "fra01-s1"
data_center = "fra01"
location = "frankfurt"

[dataplane]
uplink = ["up0"]
inside = ["in0"]
accelerate = true
max_flows = 262144
pin = "/sys/fs/bpf/egress"
attach = "auto"
refuse = "reset"
xdp = "auto"
answer_arp = true
hold_guard = true
mark_mask = "0xffff0000"

[exempt]
destinations = []
resolvers = []
icmp_queries = "default"

[timers]
tcp_established = 7440
tcp_transitory = 240
tcp_closing = 120
quarantine = 120
udp = 300

[store]
sqlite = "/var/lib/egress/egress.db"

[control]
socket = "/run/egress/egress.sock"

[api]
listen = "127.0.0.1:8080"

[resources]
file = "resources.toml"
"#;

fn parse(text: &str) -> (Option<Config>, Diagnostics) {
    Config::parse(&Source::new("egress.toml", text), Path::new("/etc/egress"))
}

fn errors(text: &str) -> Vec<String> {
    let (config, found) = parse(text);
    assert_eq!(
        config.is_none(),
        found.has_errors(),
        "a configuration with errors is never handed out"
    );
    found
        .0
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(|d| format!("{}:{}: {}", d.line, d.column, d.reason))
        .collect()
}

/// A valid file with one section more.
fn with(section: &str) -> String {
    format!("[dataplane]\nuplink = [\"up0\"]\n{section}\n")
}

#[test]
fn the_sample_of_the_interface_is_the_default_plus_names() {
    let (config, found) = parse(SAMPLE);
    let config = config.unwrap();
    let default = Config::default();
    assert!(found.is_empty(), "{found}");
    assert_eq!(config.server.name, "fra01-s1");
    assert_eq!(
        config.dataplane,
        Dataplane {
            uplink: vec!["up0".into()],
            inside: vec!["in0".into()],
            ..default.dataplane
        }
    );
    assert_eq!(config.exempt, default.exempt);
    assert_eq!(config.timers, default.timers);
    assert_eq!(config.store, default.store);
    assert_eq!(config.control, default.control);
    assert_eq!(config.api, Some(Api::default()));
    assert_eq!(default.api, None, "off unless configured");
    assert_eq!(
        config.resources.file.as_deref(),
        Some(Path::new("/etc/egress/resources.toml"))
    );
}

#[test]
fn all_errors_of_a_file_are_reported_with_their_places() {
    let text = "[dataplane]\nuplink = []\nmax_flow = 1\nrefuse = \"rst\"\npin = \"egress\"\n[timers]\nudp = 0\n[store]\netcd = [\"http://a\"]\n[sever]\n";
    let found = errors(text);
    assert_eq!(
        found,
        [
            "2:10: `uplink` names no interface",
            "3:1: unknown key `max_flow` in [dataplane]",
            "4:10: `refuse` must be \"reset\" or \"drop\", not \"rst\"",
            "5:7: `pin` must be an absolute path to a directory, not \"egress\"",
            "7:7: `udp` must be from 1 to 604800 seconds",
            "9:9: \"http://a\" is no address of an etcd member",
            "10:2: unknown key `sever` in this file",
        ]
    );
}

#[test]
fn an_interface_is_not_both_uplink_and_inside() {
    assert_eq!(
        errors("[dataplane]\nuplink = [\"a\", \"b\"]\ninside = [\"c\", \"b\"]\n"),
        ["3:16: interface b is both uplink and inside"]
    );
    assert_eq!(errors("[dataplane]\nuplink = [\"a\", \"a\"]\n").len(), 1);
    assert_eq!(
        errors("[dataplane]\nuplink = [\"far_too_long_name\"]\n").len(),
        1
    );
}

#[test]
fn a_file_without_uplink_is_refused() {
    assert_eq!(errors(""), ["1:1: there is no [dataplane] section"]);
    assert_eq!(
        errors("[dataplane]\n"),
        ["1:1: [dataplane] has no `uplink`"]
    );
}

#[test]
fn clu_3_takeover_after_warns_of_what_it_does_not_do() {
    let etcd = "[store]\nsqlite = \"c.db\"\netcd = [\"http://127.0.0.1:2379\"]\n";
    for (rest, warning) in [
        ("", Some("nobody takes over")),
        (etcd, None),
        (
            "[store]\nsqlite = \"c.db\"\netcd = [\"http://127.0.0.1:2379\"]\n[announce]\n",
            Some("goes on announcing"),
        ),
        (
            "[store]\nsqlite = \"c.db\"\netcd = [\"http://127.0.0.1:2379\"]\n[announce]\nwhen_down = \"withdraw\"\n",
            None,
        ),
    ] {
        let text =
            format!("[dataplane]\nuplink = [\"up0\"]\n[handover]\ntakeover_after = 30\n{rest}");
        let (config, found) = Config::parse(&Source::new("egress.toml", text), Path::new("/"));
        assert!(config.is_some(), "{found}");
        let said = found.to_string();
        assert_eq!(found.0.len(), usize::from(warning.is_some()), "{said}");
        assert!(said.contains(warning.unwrap_or_default()), "{said}");
    }
}

#[test]
fn a_short_timer_is_taken_with_a_warning() {
    for (key, least, source) in [
        ("udp", 120, "RFC 4787 REQ-5"),
        ("tcp_established", 7_440, "RFC 5382 REQ-5"),
        ("tcp_transitory", 240, "RFC 5382 REQ-5"),
    ] {
        for (seconds, warnings) in [(5, 1), (least - 1, 1), (least, 0)] {
            let (timers, found) = timers(&format!("{key} = {seconds}"));
            let [value] = named(&timers, [key]);
            assert_eq!(value, Duration::from_secs(seconds), "{key}");
            assert_eq!(found.0.len(), warnings, "{key} = {seconds}: {found}");
            assert!(
                found
                    .0
                    .iter()
                    .all(|one| one.severity == Severity::Warning && one.reason.contains(source)),
                "{found}"
            );
        }
    }
}

/// A `[timers]` section as it is read.
fn timers(lines: &str) -> (Timers, Diagnostics) {
    let (config, found) = parse(&with(&format!("[timers]\n{lines}")));
    (config.unwrap().timers, found)
}

/// Timers by the names they are configured by.
fn named<const N: usize>(timers: &Timers, names: [&str; N]) -> [Duration; N] {
    names.map(|name| match name {
        "tcp_established" => timers.tcp_established,
        "tcp_transitory" => timers.tcp_transitory,
        "tcp_closing" => timers.tcp_closing,
        "quarantine" => timers.quarantine,
        "udp" => timers.udp,
        _ => panic!("there is no timer {name}"),
    })
}

#[test]
fn nat_7_each_timer_is_configured_by_itself_and_is_what_the_rfcs_want_by_default() {
    const DEFAULTS: [(&str, u64); 5] = [
        ("tcp_established", 7_440),
        ("tcp_transitory", 240),
        ("tcp_closing", 120),
        ("quarantine", 120),
        ("udp", 300),
    ];
    let names = DEFAULTS.map(|(name, _)| name);
    let defaults = DEFAULTS.map(|(_, seconds)| Duration::from_secs(seconds));
    assert_eq!(named(&timers("").0, names), defaults);
    assert_eq!(named(&Timers::default(), names), defaults);
    for (nth, name) in names.into_iter().enumerate() {
        let mut expected = defaults;
        expected[nth] = Duration::from_secs(8_000);
        assert_eq!(named(&timers(&format!("{name} = 8000")).0, names), expected);
    }
}

#[test]
fn mark_masks_are_contiguous_and_at_least_eight_bits() {
    for good in [
        "\"0xffff0000\"",
        "0xff",
        "\"0x0ff00000\"",
        "4294967295",
        "\"255\"",
    ] {
        assert!(
            errors(&with(&format!("mark_mask = {good}"))).is_empty(),
            "{good}"
        );
    }
    for bad in [
        "0",
        "127",
        "\"0xf0f0f0f0\"",
        "-1",
        "4294967296",
        "\"x\"",
        "\"0x+ff\"",
        "1.5",
        "true",
    ] {
        assert_eq!(
            errors(&with(&format!("mark_mask = {bad}"))).len(),
            1,
            "{bad}"
        );
    }
}

#[test]
fn zone_numbers_fit_the_reserved_bits_and_the_tables() {
    let max = |mask| {
        Dataplane {
            mark_mask: mask,
            ..Dataplane::default()
        }
        .max_zone()
    };
    assert_eq!(
        max(0xff),
        250,
        "0 is no tag, 251 to 254 are no zone, 255 is a packet that was dealt with"
    );
    assert_eq!(max(0xffff_0000), 16_383);
}

#[test]
fn origins_follow_flows_unless_they_are_set() {
    let origins = |line: &str| parse(&with(line)).0.unwrap().dataplane.max_origins;
    assert_eq!(origins(""), 65_536);
    assert_eq!(origins("max_flows = 1000"), 1024);
    assert_eq!(origins("max_flows = 1000\nmax_origins = 16"), 16);
}

#[test]
fn exempt_prefixes_have_no_host_bits() {
    let (config, _) = parse(&with(
        "[exempt]\ndestinations = [\"10.0.0.0/8\", \"192.0.2.1\"]\nresolvers = [\"::1\"]",
    ));
    let exempt = config.unwrap().exempt;
    assert_eq!(
        exempt.destinations,
        [
            "10.0.0.0/8".parse().unwrap(),
            "192.0.2.1/32".parse().unwrap()
        ]
    );
    assert_eq!(
        errors(&with("[exempt]\ndestinations = [\"10.0.0.1/8\"]")).len(),
        1
    );
    assert_eq!(
        errors(&with("[exempt]\nresolvers = [\"10.0.0.0/8\"]")).len(),
        1
    );
}

#[test]
fn the_documented_sample_is_valid_and_shows_the_defaults() {
    let (config, found) = parse(include_str!("../../../docs/egress.toml"));
    assert!(found.is_empty(), "{found}");
    let (config, default) = (config.unwrap(), Config::default());
    assert_eq!(
        config.dataplane,
        Dataplane {
            uplink: vec!["up0".into()],
            inside: vec!["in0".into()],
            ..default.dataplane
        }
    );
    assert_eq!(config.exempt, default.exempt);
    assert_eq!(config.timers, default.timers);
    assert_eq!(config.store, default.store);
    assert_eq!(config.control, default.control);
    assert_eq!(config.api, Some(Api::default()));
    assert_eq!(config.flow_log, Some(FlowLog::default()));
    assert_eq!(config.handover, default.handover);
}

#[test]
fn the_documented_sample_names_every_section_and_timer() {
    let sample = include_str!("../../../docs/egress.toml");
    for section in SECTIONS {
        assert!(sample.contains(&format!("[{section}]")), "[{section}]");
    }
    for key in ["reset_idle", "etcd"] {
        assert!(sample.contains(&format!("{key} = ")), "{key}");
    }
}

#[test]
fn the_api_listens_beyond_loopback_with_tls_only() {
    let refused = errors(&with("[api]\nlisten = \"192.0.2.1:443\""));
    assert!(refused[0].contains("in clear (API-4)"), "{refused:?}");
    let refused = errors(&with("[api]\nlisten = \"[::]:443\""));
    assert!(refused[0].starts_with("4:"), "{refused:?}");
    let half = errors(&with("[api]\ncertificate = \"a.crt\""));
    assert!(half[0].contains("no `key`"), "{half:?}");
    let (config, _) = parse(&with(
        "[api]\nlisten = \"192.0.2.1:443\"\ncertificate = \"a.crt\"\nkey = \"/k/a.key\"",
    ));
    let tls = config.and_then(|config| config.api?.tls).unwrap();
    assert_eq!(tls.certificate, Path::new("/etc/egress/a.crt"));
    assert_eq!(tls.key, Path::new("/k/a.key"));
    assert!(errors(&with("[api]\nlisten = \"[::1]:8080\"")).is_empty());
}

#[test]
fn ann_1_announce_takes_a_table_of_its_own_and_real_aggregates() {
    let (config, _) = parse(&with(
        "[announce]\ntable = 77\nwhen_down = \"withdraw\"\naggregates = [\"198.51.100.0/24\", \"2001:db8::/48\"]",
    ));
    let announce = config.unwrap().announce.unwrap();
    assert_eq!(announce.table, 77);
    assert_eq!(announce.when_down, WhenDown::Withdraw);
    assert_eq!(announce.aggregates.len(), 2);
    assert_eq!(parse(&with("")).0.unwrap().announce, None);
    for (section, said) in [
        ("table = 254", "table 254 is the kernel's table `main`"),
        ("table = 255", "the kernel's table `local`"),
        ("table = -1", "`table`"),
        (
            "aggregates = [\"198.51.100.1/24\"]",
            "bits set outside its prefix",
        ),
        (
            "aggregates = [\"0.0.0.0/0\"]",
            "the default route is no aggregate",
        ),
        ("when_down = \"leave\"", "`when_down`"),
        ("tabel = 77", "tabel"),
    ] {
        let found = errors(&with(&format!("[announce]\n{section}")));
        assert!(
            found.len() == 1 && found[0].contains(said),
            "{section}: {found:?}"
        );
        assert!(
            found[0].starts_with("egress.toml") || found[0].starts_with("4:"),
            "{found:?}"
        );
    }
}

#[test]
fn obs_4_the_flow_log_says_what_it_takes_and_where_it_goes() {
    let log = |lines: &str| {
        let (config, _) = parse(&with(&format!("[flow_log]\n{lines}")));
        config.unwrap().flow_log.unwrap()
    };
    assert_eq!(log(""), FlowLog::default());
    assert_eq!(parse(&with("")).0.unwrap().flow_log, None);
    let bit = |name| EVENTS.iter().find(|(event, _)| *event == name).unwrap().1;
    let some = log(
        "file = \"flows.log\"\nevents = [\"refused\", \"close\"]\nrotate_mb = 7\nkeep = 0\nrefusals_per_second = 0",
    );
    assert_eq!(
        some,
        FlowLog {
            target: Target::File("/etc/egress/flows.log".into()),
            events: bit("close") | bit("refused"),
            rotate: 7_000_000,
            keep: 0,
            refusals_per_second: 0,
        }
    );
    assert_eq!(log("file = \"stdout\"").target, Target::Stdout);

    let wrong = errors(&with(
        "[flow_log]\nfile = \"\"\nevents = [\"open\", \"closed\"]\nrotate_mb = 0\nkeep = 1001\nrotate = 5",
    ));
    let expected = [
        "4:8: `file` is empty",
        "5:19: `events` must be \"open\" or \"close\" or \"refused\", not \"closed\"",
        "6:13: `rotate_mb` must be from 1 to 1000000 MB",
        "7:8: `keep` must be from 0 to 1000 files",
        "8:1: unknown key",
    ];
    assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
    for (wrong, expected) in wrong.iter().zip(expected) {
        assert!(wrong.starts_with(expected), "{wrong} is not {expected}");
    }
    assert!(errors(&with("[flow_log]\nevents = []"))[0].starts_with("4:10: `events` is empty"));
    assert!(errors(&with("[flow_log]\nevents = \"open\""))[0].starts_with("4:10: "));
}

#[test]
fn clu_1_a_shared_store_has_a_copy_and_no_file_of_one_server() {
    let (config, _) = parse(&with("[store]\netcd = [\"http://192.0.2.1:2379\"]"));
    let store = config.unwrap().store;
    assert_eq!(store.sqlite, Path::new("/var/lib/egress/etcd-copy.db"));
    assert_eq!(store.etcd.unwrap().source(), "http://192.0.2.1:2379/egress");
    for (text, said) in [
        ("etcd = []", "`etcd` names no member"),
        (
            "etcd = [\"192.0.2.1:2379\"]",
            "no address of an etcd member",
        ),
        (
            "etcd = [\"http://a:99999\"]",
            "no address of an etcd member",
        ),
        ("prefix = \"egress\"", "no prefix of keys"),
        ("prefix = \"/a/\"", "no prefix of keys"),
        ("etcd_certificate = \"a\"", "go together"),
        (
            "etcd = [\"http://a:1\"]\n[resources]\nfile = \"r.toml\"",
            "feeds this server's file into a store that servers share",
        ),
    ] {
        let found = errors(&with(&format!("[store]\n{text}")));
        assert!(
            found.len() == 1 && found[0].contains(said),
            "{text}: {found:?}"
        );
    }
}
