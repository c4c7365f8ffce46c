//! `POST /client/v4/graphql` (OBS-2): utilization, asked for as the original's documentation asks.
//!
//! [`document`] reads queries, [`schema`] answers the few fields there are, [`groups`] the one that matters, and
//! [`filter`] what it is asked for. There is no introspection.

mod document;
mod filter;
mod groups;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_graphql_value::ConstValue;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::envelope::{Answer, ApiError, Code};
use super::limit::{Asker, Limiter};
use super::time::rfc3339;
use super::{Api, Call};
use crate::cluster::{Asking, Missing};
use crate::utilization::{History, Row};
use document::Document;

/// Queries of one token in five minutes, as the original has it.
const QUERIES: u32 = 300;
/// Queries that run or wait: the others' places are for changes.
const AT_ONCE: usize = 2;
/// The most bytes of a query.
const MAX_QUERY: usize = 1 << 16;

/// What queries share.
#[derive(Debug)]
pub(super) struct Analytics {
    path: PathBuf,
    history: Mutex<Option<History>>,
    limiter: Limiter,
    places: Semaphore,
}

impl Analytics {
    pub(super) fn new(history: &Path) -> Self {
        Self {
            path: history.to_owned(),
            history: Mutex::new(None),
            limiter: Limiter::new(QUERIES),
            places: Semaphore::new(AT_ONCE),
        }
    }
}

/// Who else has rows of an account.
trait Others: std::fmt::Debug {
    /// From one bucket to another, both included, in no order.
    fn rows(&self, account: &str, from: i64, to: i64) -> Vec<Row>;
}

impl Others for Asking {
    fn rows(&self, account: &str, from: i64, to: i64) -> Vec<Row> {
        self.rows(account, from, to)
    }
}

/// What is wrong with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    message: String,
    /// Where in the answer, from the outside.
    path: Vec<String>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            path: Vec::new(),
        }
    }

    /// The same, further out.
    fn within(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

/// `POST /graphql`
pub(super) fn graphql(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let analytics = &api.analytics;
    let asker = call.token.as_ref().map(|token| token.id.clone());
    let asker = Asker::Token(asker.unwrap_or_default());
    if !analytics.limiter.take(asker, Instant::now()).allowed {
        return Err(ApiError::new(
            Code::TooMany,
            format!("too many queries: a token has {QUERIES} in five minutes"),
        ));
    }
    let Ok(_place) = analytics.places.try_acquire() else {
        return Err(ApiError::new(
            Code::Busy,
            "busy with other queries: try again later",
        ));
    };
    let body = call.json()?;
    is_request(&body)?;
    let mut history = analytics
        .history
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if history.is_none() {
        let opened = History::open(&analytics.path);
        *history = Some(opened.map_err(|error| ApiError::internal(&error))?);
    }
    let Some(history) = history.as_ref() else {
        return Err(ApiError::internal(&"no history of utilization"));
    };
    let may = |account: &str| {
        call.token
            .as_ref()
            .is_some_and(|token| token.is_for(account))
    };
    let others = Asking::of(&api.service, api.trust.as_deref());
    let outcome = run(&body, history, &others, &may);
    let text = text(outcome, &others.missing()).map_err(|error| ApiError::internal(&error))?;
    Ok(Answer::Text("application/json", text))
}

/// Whether a body is a request of GraphQL at all, whatever its query says.
fn is_request(body: &Value) -> Result<(), ApiError> {
    let null = Value::Null;
    let of = |key: &str| body.get(key).unwrap_or(&null);
    let wrong = if !of("query").is_string() {
        "`query` is a text"
    } else if !(of("variables").is_null() || of("variables").is_object()) {
        "`variables` is an object"
    } else if !(of("operationName").is_null() || of("operationName").is_string()) {
        "`operationName` is a text"
    } else {
        return Ok(());
    };
    Err(ApiError::new(Code::InvalidValue, wrong))
}

/// Answers the query of a body.
fn run(
    body: &Value,
    history: &History,
    others: &dyn Others,
    may: &dyn Fn(&str) -> bool,
) -> Result<ConstValue, Problem> {
    let Some(query) = body.get("query").and_then(Value::as_str) else {
        return Err(Problem::new("the body has no `query`"));
    };
    if query.len() > MAX_QUERY {
        return Err(Problem::new(format!(
            "a query has at most {MAX_QUERY} bytes"
        )));
    }
    let name = body.get("operationName").and_then(Value::as_str);
    let variables = body.get("variables").unwrap_or(&Value::Null);
    let document = Document::parse(query, name, variables)?;
    schema::root(&document, history, others, may)
}

/// The answer, in the order of the query. What servers it lacks stands beside it, where GraphQL has room for more.
fn text(outcome: Result<ConstValue, Problem>, missing: &[Missing]) -> serde_json::Result<String> {
    match outcome {
        Ok(data) => {
            let data = serde_json::to_string(&data)?;
            if missing.is_empty() {
                return Ok(format!("{{\"data\":{data},\"errors\":null}}"));
            }
            let all = missing.iter().map(|one| {
                json!({ "server": one.server, "data_center": one.data_center, "reason": one.reason })
            });
            let all = json!({ "missing": all.collect::<Vec<_>>() });
            Ok(format!(
                "{{\"data\":{data},\"errors\":null,\"extensions\":{all}}}"
            ))
        }
        Err(problem) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0));
            let error = json!({
                "message": problem.message,
                "path": if problem.path.is_empty() { Value::Null } else { json!(problem.path) },
                "extensions": { "timestamp": rfc3339(now) },
            });
            serde_json::to_string(&json!({ "data": null, "errors": [error] }))
        }
    }
}

#[cfg(test)]
mod tests;
