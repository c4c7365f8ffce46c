use std::collections::HashMap;

use super::*;
use crate::dataplane::api::Protocol;
use crate::utilization::{Bucket, Key, Series, Sum};

/// The query of the original's documentation, word for word.
const DOCUMENTED: &str = include_str!("documented.graphql");
/// 2025-01-10T00:05:00Z.
const START: i64 = 1_736_467_500;

struct Bench {
    _directory: tempfile::TempDir,
    history: History,
    others: Kept,
    missing: Vec<Missing>,
}

/// What others have.
#[derive(Debug, Default)]
struct Kept(Vec<Row>);

impl Others for Kept {
    fn rows(&self, account: &str, from: i64, to: i64) -> Vec<Row> {
        let of_time = |row: &&Row| account == "a" && (from..=to).contains(&row.start);
        self.0.iter().filter(of_time).cloned().collect()
    }
}

fn key(last: u8, port: u16, protocol: Protocol) -> Key {
    Key {
        egress_ip: [192, 0, 2, last].into(),
        origin: ([203, 0, 113, 150], port).into(),
        protocol,
    }
}

impl Bench {
    /// Two buckets of account a: half full on the average by one address, all by another; and one of account b.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::open(&directory.path().join("utilization.db")).unwrap();
        let series = |account: &str, average: u64, max| Series {
            account: account.into(),
            sum: Sum {
                all: average * 300_000,
                ..Sum::default()
            },
            max,
            capacity: 40_000,
            ..Series::default()
        };
        for nth in 0..2 {
            let start = START + nth * 300;
            let mut all = HashMap::new();
            all.insert(key(1, 443, Protocol::Tcp), series("a", 20_000, 30_000));
            all.insert(key(1, 443, Protocol::Udp), series("a", 0, 4));
            all.insert(key(2, 443, Protocol::Tcp), series("a", 10_000, 40_000));
            all.insert(key(3, 443, Protocol::Tcp), series("b", 1, 1));
            if nth == 1 {
                all.insert(key(1, 80, Protocol::Tcp), series("a", 4, 4));
            }
            let bucket = Bucket {
                start,
                covered: Sum {
                    all: 300_000,
                    ..Sum::default()
                },
                series: all,
                ..Bucket::default()
            };
            history.save(&bucket, "sjc").unwrap();
        }
        Self {
            _directory: directory,
            history,
            others: Kept::default(),
            missing: Vec::new(),
        }
    }

    fn ask(&self, query: &str, variables: &Value) -> Value {
        let body = json!({ "query": query, "variables": variables });
        let outcome = run(&body, &self.history, &self.others, &|account| {
            account == "a"
        });
        serde_json::from_str(&text(outcome, &self.missing).unwrap()).unwrap()
    }

    /// What the node answers with these arguments and this selection.
    fn node(&self, arguments: &str, selection: &str) -> Value {
        let query = format!(
            "{{ viewer {{ accounts(filter: {{ accountTag: \"a\" }}) {{ n: aegisIpUtilizationAdaptiveGroups{arguments} {selection} }} }} }}"
        );
        let answer = self.ask(&query, &Value::Null);
        match &answer["errors"] {
            Value::Null => answer["data"]["viewer"]["accounts"][0]["n"].clone(),
            errors => errors[0]["message"].clone(),
        }
    }
}

fn window() -> Value {
    json!({ "accountTag": "a", "datetimeStart": "2025-01-10T00:05:00Z", "datetimeEnd": "2025-01-10T00:10:00Z" })
}

#[test]
fn obs_2_the_documented_query_answers_word_for_word() {
    let bench = Bench::new();
    let query = DOCUMENTED
        .replace("<CLOUDFLARE_POP>", "sjc")
        .replace("<YOUR_EGRESS_IP>", "192.0.2.2")
        .replace("<ORIGIN_IP_AND_PORT>", "203.0.113.150:80");
    let body = json!({ "query": query, "variables": window() });
    let outcome = run(&body, &bench.history, &bench.others, &|account| {
        account == "a"
    });
    let group = |value: &str, time: &str, key: &str| {
        format!(
            "{{{value},\"dimensions\":{{\"datetimeFiveMinutes\":\"{time}\",\"popUtilizationKey\":\"{key}\"}}}}"
        )
    };
    let times = ["2025-01-10T00:05:00Z", "2025-01-10T00:10:00Z"];
    let keys = [
        "sjc 192.0.2.1 203.0.113.150:443",
        "sjc 192.0.2.2 203.0.113.150:443",
        "sjc 192.0.2.1 203.0.113.150:80",
    ];
    let value = |kind: &str, percent: &str| format!("\"{kind}\":{{\"utilization\":{percent}}}");
    let all = |kind, values: [&str; 3]| {
        [
            group(&value(kind, values[0]), times[0], keys[0]),
            group(&value(kind, values[1]), times[0], keys[1]),
            group(&value(kind, values[0]), times[1], keys[0]),
            group(&value(kind, values[2]), times[1], keys[2]),
            group(&value(kind, values[1]), times[1], keys[1]),
        ]
        .join(",")
    };
    // Address 1 has TCP half full and UDP empty for the same origin: together a quarter.
    let averages = all("avg", ["25.0", "25.0", "0.01"]);
    let maxima = all("max", ["75.0", "100.0", "0.01"]);
    let by_ip = [
        group(&value("max", "100.0"), times[0], keys[1]),
        group(&value("max", "100.0"), times[1], keys[1]),
    ]
    .join(",");
    let by_origin = group(&value("max", "0.01"), times[1], keys[2]);
    assert_eq!(
        text(outcome, &[]).unwrap(),
        format!(
            "{{\"data\":{{\"viewer\":{{\"utilization\":[{{\"avgByPopUtilization\":[{averages}],\
             \"maxByPopUtilization\":[{maxima}],\"filterPopUtilization\":[{maxima}],\
             \"filterIPUtilization\":[{by_ip}],\"filterOriginUtilization\":[{by_origin}]}}]}}}},\"errors\":null}}"
        )
    );
}

#[test]
fn obs_2_groups_filters_and_orders() {
    let bench = Bench::new();
    let node = |arguments, selection| bench.node(arguments, selection);
    let whole = "{ avg { utilization } max { utilization } }";
    assert_eq!(
        node("", whole),
        json!([{ "avg": { "utilization": 21.43 }, "max": { "utilization": 100.0 } }]),
        "all in one: (2 * 30,000 + 4) of 7 * 40,000"
    );
    assert_eq!(node("(filter: { popName: \"fra\" })", whole), json!([]));
    let ips = |arguments| {
        let found = node(arguments, "{ dimensions { egressIp } }");
        let list = found
            .as_array()
            .unwrap_or_else(|| panic!("{found}"))
            .clone();
        list.iter()
            .map(|one| one["dimensions"]["egressIp"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (one, two) = ("192.0.2.1", "192.0.2.2");
    let both = format!("{one} {two}");
    let reverse = format!("{two} {one}");
    for (arguments, expected) in [
        ("(orderBy: [egressIp_DESC])", &*reverse),
        ("(orderBy: egressIp_ASC)", &both),
        ("(orderBy: [max_utilization_DESC])", &reverse),
        ("(orderBy: [avg_utilization_DESC])", &reverse),
        ("(orderBy: [\"avg_utilization_ASC\"])", &both),
        ("(limit: 1)", one),
        ("(filter: { egressIp_neq: \"192.0.2.1\" })", two),
        (
            "(filter: { egressIp_in: [\"192.0.2.1\", \"192.0.2.7\"] })",
            one,
        ),
        ("(filter: { egressIp_notin: [\"192.0.2.1\"] })", two),
        ("(filter: { egressIp_like: \"%.2.2\" })", two),
        ("(filter: { origin_like: \"%:80\" })", one),
        ("(filter: { egressIp_gt: \"192.0.2.1\" })", two),
        (
            "(filter: { popUtilizationKey: \"sjc 192.0.2.2 203.0.113.150:443\" })",
            two,
        ),
        (
            "(filter: { OR: [{ origin: \"203.0.113.150:80\" }, { egressIp: \"192.0.2.2\" }] })",
            &both,
        ),
        (
            "(filter: { AND: [{ origin: \"203.0.113.150:443\" }, { egressIp: \"192.0.2.2\" }] })",
            two,
        ),
        (
            "(filter: { datetimeFiveMinutes_lt: \"2025-01-10T00:10:00Z\", origin: \"203.0.113.150:80\" })",
            "",
        ),
        (
            "(filter: { datetimeFiveMinutes_gt: \"2025-01-10T00:05:00Z\", origin: \"203.0.113.150:80\" })",
            one,
        ),
        (
            "(filter: { datetimeFiveMinutes: \"2025-01-10T01:10:00+01:00\", origin: \"203.0.113.150:80\" })",
            one,
        ),
        (
            "(filter: { datetimeFiveMinutes_geq: \"2025-01-10T00:10:00.001Z\" })",
            "",
        ),
        ("(filter: { egressIp: null })", &both),
    ] {
        assert_eq!(ips(arguments), expected, "{arguments}");
    }
}

#[test]
fn obs_2_variables_of_any_type_fragments_and_settings() {
    let bench = Bench::new();
    for kind in ["string", "string!", "String", "String!", "Time", "Time!"] {
        let query = format!(
            "query q($tag: {kind}, $from: {kind}, $unused: int) {{ viewer {{ accounts(filter: {{ accountTag: $tag }}) {{
               accountTag __typename ...some
               settings {{ aegisIpUtilizationAdaptiveGroups {{ enabled notOlderThan }} }} }} }} }}
             fragment some on account {{ ... {{ aegisIpUtilizationAdaptiveGroups(
               filter: {{ datetimeFiveMinutes_geq: $from, origin_like: \"%:80\" }}) {{ max {{ utilization }} }} }} }}"
        );
        let answer = bench.ask(
            &query,
            &json!({ "tag": "a", "from": "2025-01-10T00:00:00Z" }),
        );
        assert_eq!(
            answer["data"]["viewer"]["accounts"],
            json!([{
                "accountTag": "a",
                "__typename": "Account",
                "aegisIpUtilizationAdaptiveGroups": [{ "max": { "utilization": 0.01 } }],
                "settings": { "aegisIpUtilizationAdaptiveGroups": { "enabled": true, "notOlderThan": 95_040_000 } },
            }]),
            "{kind}: {answer}"
        );
        assert_eq!(answer["errors"], Value::Null);
    }
}

#[test]
fn obs_2_what_is_wrong_is_said() {
    let bench = Bench::new();
    let message = |query: &str| {
        let answer = bench.ask(query, &json!({ "b": "b" }));
        assert_eq!(answer["data"], Value::Null, "{query}");
        assert!(answer["errors"][0]["extensions"]["timestamp"].is_string());
        answer["errors"][0]["message"].as_str().unwrap().to_owned()
    };
    let deep = format!("{{{}}}", "viewer{".repeat(200) + "x" + &"}".repeat(200));
    let turning = "query { viewer { ...f } } fragment f on viewer { ...f }";
    let long = format!("{{ viewer {{ {} }} }}", "accounts ".repeat(10_000));
    for (query, expected) in [
        ("", "expected"),
        ("mutation { viewer { accounts { x } } }", "only queries"),
        (
            "{ zones { x } }",
            "unknown field zones of the query; there are: viewer",
        ),
        ("{ viewer }", "nothing is selected"),
        (
            "{ viewer { accounts { accountTag } } }",
            "needs `filter: { accountTag: ID }`",
        ),
        (
            "{ viewer { accounts(filter: {}) { accountTag } } }",
            "needs `filter",
        ),
        (
            "query ($n: string) { viewer { accounts(filter: { accountTag: $n }) { accountTag } } }",
            "needs `filter",
        ),
        (
            "query ($n: string!) { viewer { accounts(filter: { accountTag: $n }) { accountTag } } }",
            "variable $n has no value",
        ),
        (
            "{ viewer { accounts(filter: { accountTag: $n }) { accountTag } } }",
            "variable $n is not declared",
        ),
        (
            "query ($b: string) { viewer { accounts(filter: { accountTag: $b }) { accountTag } } }",
            "not authorized for the account \"b\"",
        ),
        (
            "{ viewer @skip(if: true) { accounts { accountTag } } }",
            "directive @skip",
        ),
        (
            "query a { viewer { x } } query b { viewer { x } }",
            "several operations",
        ),
        ("{ viewer { ...nobody } }", "no fragment nobody"),
        (turning, "too many fragments"),
        (&deep, "recursion limit"),
        (&long, "at most 65536 bytes"),
    ] {
        let found = message(query);
        assert!(found.contains(expected), "{query}: {found}");
    }
    for (arguments, selection, expected) in [
        (
            "(limit: 0)",
            "{ max { utilization } }",
            "limit is from 1 to 10000",
        ),
        (
            "(limit: \"1\")",
            "{ max { utilization } }",
            "limit is a number",
        ),
        (
            "(first: 1)",
            "{ max { utilization } }",
            "unknown argument first; there are: filter, limit, orderBy",
        ),
        (
            "(filter: [])",
            "{ max { utilization } }",
            "a filter is an object",
        ),
        (
            "(filter: { ip: \"1\" })",
            "{ max { utilization } }",
            "unknown filter ip; there are: datetimeFiveMinutes,",
        ),
        (
            "(filter: { egressIp_is: \"1\" })",
            "{ max { utilization } }",
            "unknown comparison of egressIp",
        ),
        (
            "(filter: { egressIp: 1 })",
            "{ max { utilization } }",
            "a value is not a text",
        ),
        (
            "(filter: { datetimeFiveMinutes: \"now\" })",
            "{ max { utilization } }",
            "\"now\" is no time",
        ),
        (
            "(orderBy: [popName_ASC])",
            "{ max { utilization } }",
            "popName is not among the dimensions selected",
        ),
        (
            "(orderBy: [popName])",
            "{ dimensions { popName } }",
            "neither in _ASC nor in _DESC",
        ),
        (
            "(orderBy: [count_DESC])",
            "{ dimensions { popName } }",
            "unknown orderBy count_DESC",
        ),
        (
            "(filter: { popName: \"nowhere\" })",
            "{ sum { utilization } }",
            "unknown field sum of a group",
        ),
        ("", "{ max { bytes } }", "unknown field bytes of max"),
        (
            "",
            "{ dimensions { city } }",
            "unknown field city of dimensions",
        ),
        (
            "",
            "{ max { utilization { x } } }",
            "has no fields of its own",
        ),
        (
            "",
            "{ x: max { utilization } x: avg { utilization } }",
            "is selected twice",
        ),
    ] {
        let found = bench.node(arguments, selection);
        let found = found
            .as_str()
            .unwrap_or_else(|| panic!("{arguments} {selection}: {found}"));
        assert!(found.contains(expected), "{arguments} {selection}: {found}");
    }
    let query = "{ viewer { a: accounts(filter: { accountTag: \"a\" }) { n: aegisIpUtilizationAdaptiveGroups(limit: 0) { max { utilization } } } } }";
    let answer = bench.ask(query, &Value::Null);
    assert_eq!(answer["errors"][0]["path"], json!(["viewer", "a", "n"]));
    assert!(run(&json!({}), &bench.history, &bench.others, &|_| true).is_err());
}

#[test]
fn obs_2_an_answer_covers_what_other_servers_have_and_names_those_it_lacks() {
    let mut bench = Bench::new();
    let row = |pop: &str, sum: u64, max, whole| Row {
        start: START,
        length: 300,
        pop: pop.into(),
        egress_ip: "192.0.2.1".into(),
        origin: "203.0.113.150:443".into(),
        protocol: 6,
        sum,
        possible: 300_000 * 40_000,
        max,
        capacity: 40_000,
        whole,
        seconds: Vec::new(),
    };
    // The same data center, and another one.
    bench.others.0 = vec![
        row("sjc", 300_000 * 10_000, 36_000, 80_000),
        row("fra", 300_000 * 10_000, 10_000, 0),
    ];
    let selection = "{ avg { utilization } max { utilization } dimensions { popName } }";
    let arguments = "(filter: {datetimeFiveMinutes: \"2025-01-10T00:05:00Z\", egressIp: \"192.0.2.1\"}, orderBy: popName_ASC)";
    let groups = bench.node(arguments, selection);
    assert_eq!(groups[0]["dimensions"]["popName"], "fra", "{groups}");
    assert_eq!(groups[0]["avg"]["utilization"], 25.0, "{groups}");
    // Of TCP 20,000 on the average here and 10,000 there, 30,000 and 36,000 at once, of 80,000 in all; nothing of UDP.
    assert_eq!(groups[1]["max"]["utilization"], 82.5, "{groups}");
    assert_eq!(groups[1]["avg"]["utilization"], 25.0, "{groups}");
    let query = "{ viewer { accounts(filter: { accountTag: \"a\" }) { accountTag } } }";
    let whole = bench.ask(query, &Value::Null);
    assert!(whole.get("extensions").is_none(), "{whole}");
    bench.missing.push(Missing {
        server: "s2".into(),
        data_center: "fra".into(),
        reason: "it is away".into(),
    });
    let part = bench.ask(query, &Value::Null);
    let expected =
        json!({ "missing": [{ "server": "s2", "data_center": "fra", "reason": "it is away" }] });
    assert_eq!(part["extensions"], expected);
    assert!(part["errors"].is_null() && part["data"].is_object());
}
