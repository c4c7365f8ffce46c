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

/// What one server asks another one: an account's rows, from one bucket to another, both included.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// Who is asked, by name.
    server: String,
    account: String,
    from: i64,
    to: i64,
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
