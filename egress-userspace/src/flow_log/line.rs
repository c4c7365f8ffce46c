//! A line of the log: one JSON object, with the fields that its event has.

use std::net::IpAddr;

use serde::Serialize;

use super::directory::{Directory, Policy};
use super::entry::{Entry, Event, Other};
use crate::api::time::rfc3339;

/// The fields, in their order.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<String>,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    inside_ip: IpAddr,
    inside_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_port: Option<u16>,
    origin_ip: IpAddr,
    origin_port: u16,
    server: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress_server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress_data_center: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_data_center: Option<&'a str>,
    #[serde(flatten)]
    closed: Option<Closed>,
}

#[derive(Serialize)]
struct Closed {
    state: &'static str,
    duration_ms: u64,
    packets_out: u32,
    packets_in: u32,
    bytes_out: u64,
    bytes_in: u64,
}

/// Appends an entry's line. `offset` is what the clock of the day is ahead of the monotonic one, ns.
///
/// `address` tells where another server is reached, from its number.
pub(super) fn write(
    into: &mut Vec<u8>,
    entry: &Entry,
    directory: &Directory,
    offset: i128,
    address: impl FnOnce(u32) -> Option<IpAddr>,
) {
    let micros = (i128::from(entry.time) + offset) / 1_000;
    let named = |number| match address(number) {
        Some(address) => directory.other(address),
        None => (format!("#{number}"), None),
    };
    let (from, to) = match entry.other {
        None => (None, None),
        Some(Other::From(number)) => (Some(named(number)), None),
        Some(Other::To(number)) => (None, Some(named(number))),
    };
    let (from, to) = (from.as_ref(), to.as_ref());
    let line = Line {
        time: rfc3339(i64::try_from(micros).unwrap_or(0)),
        event: entry.event.name(),
        reason: entry.event.reason(),
        flow: entry
            .flow
            .map(|(version, slot, generation)| format!("{version}-{slot}-{generation}")),
        protocol: match entry.protocol {
            1 => "icmp".into(),
            6 => "tcp".into(),
            17 => "udp".into(),
            58 => "icmpv6".into(),
            other => other.to_string(),
        },
        zone: directory.zone(entry.zone),
        account: directory.account(entry.zone),
        pool: directory.pool(entry.pool),
        policy: entry.policy.map(|(version, number)| {
            match directory.policy(version, number, entry.time) {
                Policy::Known(name) => name.to_owned(),
                Policy::Forgotten | Policy::ToCome => format!("#{number}"),
            }
        }),
        inside_ip: entry.inside.ip(),
        inside_port: entry.inside.port(),
        egress_ip: entry.egress.map(|egress| egress.ip()),
        egress_port: entry.egress.map(|egress| egress.port()),
        origin_ip: entry.origin.ip(),
        origin_port: entry.origin.port(),
        server: directory.server(),
        ingress_server: from.map(|(name, _)| name.as_str()),
        ingress_data_center: from.map_or(Some(directory.data_center()), |(_, place)| *place),
        egress_server: to.map(|(name, _)| name.as_str()),
        egress_data_center: match to {
            Some((_, place)) => *place,
            None => entry.egress.map(|_| directory.data_center()),
        },
        closed: match entry.event {
            Event::Close(closed) => Some(Closed {
                state: closed.state(),
                duration_ms: closed.duration / 1_000_000,
                packets_out: closed.packets_out,
                packets_in: closed.packets_in,
                bytes_out: closed.bytes_out,
                bytes_in: closed.bytes_in,
            }),
            Event::Open | Event::Refused(_) => None,
        },
    };
    let before = into.len();
    match serde_json::to_writer(&mut *into, &line) {
        Ok(()) => into.push(b'\n'),
        // Memory takes whatever is written, and strings and numbers are JSON.
        Err(_) => into.truncate(before),
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::directory;
    use super::super::entry::tests::{bytes, flow, head, refusal};
    use super::*;
    use egress_common::key::realm;
    use egress_common::reason::Reason;
    use egress_common::record::{Cause, kind, policy};
    use egress_common::slot::flag;
    use serde_json::{Value, json};

    fn line(record: &[u8]) -> Value {
        let mut text = Vec::new();
        let offset = 1_795_305_600_000_000_000;
        write(
            &mut text,
            &Entry::read(record).unwrap(),
            &directory(&["bank"], 1, 0),
            offset,
            |number| (number == 5).then(|| [192, 0, 2, 201].into()),
        );
        assert_eq!(text.pop(), Some(b'\n'));
        assert!(!text.contains(&b'\n'));
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn obs_4_a_line_says_who_went_where_by_what_and_why_it_ended() {
        let mut open = flow(head(kind::OPEN, 0, 8_000_000_000));
        open.head.policy = policy(1, 1);
        let expected = json!({
            "time": "2026-11-22T00:00:08.000000Z", "event": "open", "flow": "4-12-34", "protocol": "tcp",
            "zone": "shop.example", "account": "acme", "pool": "partners", "policy": "bank",
            "inside_ip": "10.1.0.2", "inside_port": 40_000, "egress_ip": "192.0.2.10", "egress_port": 50_000,
            "origin_ip": "203.0.113.5", "origin_port": 443, "server": "fra01-s1",
            "ingress_data_center": "fra01", "egress_data_center": "fra01",
        });
        assert_eq!(line(&bytes(&open)), expected);

        let mut expected = expected;
        let more = json!({
            "event": "close", "reason": "timeout_tcp_established", "state": "established", "duration_ms": 3_012,
            "packets_out": 5, "packets_in": 4, "bytes_out": 500, "bytes_in": 4_000,
        });
        let fields = expected.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        fields.remove("policy");
        let close = flow(head(
            kind::CLOSE,
            Cause::TimeoutTcpEstablished as u8,
            8_000_000_000,
        ));
        let mut got = line(&bytes(&close));
        let duration = got["duration_ms"].take().as_u64().unwrap();
        assert!((3_000..3_017).contains(&duration), "{duration}");
        got["duration_ms"] = 3_012.into();
        assert_eq!(got, expected);

        let refused = line(&bytes(&refusal(Reason::CapReached, 1_000)));
        assert_eq!(
            refused,
            json!({
                "time": "2026-11-22T00:00:00.000001Z", "event": "refused", "reason": "cap_reached", "protocol": "tcp",
                "zone": "shop.example", "account": "acme", "pool": "partners",
                "inside_ip": "10.1.0.2", "inside_port": 40_000, "origin_ip": "203.0.113.5", "origin_port": 443,
                "server": "fra01-s1", "ingress_data_center": "fra01",
            })
        );
    }

    #[test]
    fn fwd_2_the_other_server_of_a_forwarded_connection_is_named() {
        let mut open = flow(head(kind::OPEN, 0, 8_000_000_000));
        let here = line(&bytes(&open));
        // Where it enters: who translates it.
        open.slot.flags = flag::FORWARDED;
        open.slot.interface = 5;
        let entering = line(&bytes(&open));
        assert_eq!(entering["egress_server"], "ams01-s1");
        assert_eq!(entering["egress_data_center"], "ams01");
        assert_eq!(entering["ingress_data_center"], "fra01");
        assert!(entering.get("egress_ip").is_none() && entering.get("egress_port").is_none());
        // Where it leaves: who sent it.
        open.slot.flags = flag::VISITOR;
        open.slot.flow.realm = realm::of_peer(5);
        let leaving = line(&bytes(&open));
        assert_eq!(leaving["ingress_server"], "ams01-s1");
        assert_eq!(leaving["ingress_data_center"], "ams01");
        assert_eq!(leaving["egress_data_center"], "fra01");
        assert_eq!(leaving["egress_ip"], "192.0.2.10");
        assert!(here.get("ingress_server").is_none() && here.get("egress_server").is_none());
        open.slot.flow.realm = realm::of_peer(6);
        let unknown = line(&bytes(&open));
        assert_eq!(unknown["ingress_server"], "#6");
        assert!(unknown.get("ingress_data_center").is_none());
    }

    #[test]
    fn what_has_no_name_goes_by_its_number() {
        let mut open = flow(head(kind::OPEN, 0, 8_000_000_000));
        (open.slot.zone, open.slot.pool) = (9, 0);
        open.head.policy = policy(1, 40);
        let line = line(&bytes(&open));
        assert_eq!(line["zone"], "#9");
        assert_eq!(line["policy"], "#39");
        assert!(line.get("pool").is_none() && line.get("account").is_none());
    }
}
