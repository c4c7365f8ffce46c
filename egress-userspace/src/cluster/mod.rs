//! What the daemons of several servers ask each other: so far the history of utilization, which each keeps of itself (CLU-1,
//! OBS-2).
//!
//! They talk by TCP at their tunnel addresses, in TLS 1.3, and both ends show the certificate that all servers have
//! ([`trust`]). A question is a line of JSON, an answer some lines: who answers, rows, and an end, without which it is none.
//! Everything is bounded: how many are answered at once ([`answering`]), how long anything takes, how many rows there are.
//! A server that does not answer is named in the answer that lacks its part ([`asking`]).

pub mod answering;
pub mod asking;
mod trust;

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answering::Answering;
pub use asking::{Asking, Missing};
pub use trust::Trust;

use crate::utilization::Row;

/// How long one read or write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const WHOLE: Duration = Duration::from_secs(15);
/// The most rows of an answer.
const MAX_ROWS: u64 = 500_000;
/// The most bytes of a line.
const MAX_LINE: u64 = 4_096;

/// Version of what is asked: 2 is told protocols, and what was in each second. One of version 1 leaves out what it does not
/// know, and is told nothing that it does not know.
const VERSION: u32 = 2;
/// The most bytes of seconds in an answer; rows of more have none, and count with their most throughout.
const MAX_SECONDS: usize = 32 << 20;

/// What one server asks another one: an account's rows, from one bucket to another, both included.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// Who is asked, by name.
    server: String,
    account: String,
    from: i64,
    to: i64,
    #[serde(default)]
    version: u32,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// Who answers: the first line.
    Server(String),
    /// A row.
    Row(Row),
    /// How many there were: the last line.
    End(u64),
    /// Why there is no answer: the last line.
    Error(String),
}

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    name: String,
    data_center: String,
    address: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_server_asks_and_answers_as_it_always_did() {
        let asked = r#"{"server":"s1","account":"a","from":0,"to":300}"#;
        let question: Question = serde_json::from_str(asked).unwrap();
        assert_eq!(question.version, 0);
        let told = r#"{"row":{"start":300,"pop":"p","egress_ip":"192.0.2.1","origin":"203.0.113.5:443","sum":1,
            "possible":300000,"max":1,"capacity":1}}"#;
        let Line::Row(mut row) = serde_json::from_str(told).unwrap() else {
            panic!("no row");
        };
        assert_eq!((row.protocol, row.length, row.whole), (0, 0, 0));
        assert!(row.seconds.is_empty());
        // The longest line there is, for one of this version.
        let mut levels = crate::utilization::Levels::zero();
        for second in (0..300).step_by(2) {
            levels.raise(second, second, 40_000);
        }
        row.seconds = levels.bytes();
        let line = serde_json::to_string(&Line::Row(row.clone())).unwrap();
        assert!((line.len() as u64) < MAX_LINE / 2, "{}", line.len());
        let Line::Row(read) = serde_json::from_str(&line).unwrap() else {
            panic!("{line}");
        };
        assert_eq!(read, row);
    }
}
