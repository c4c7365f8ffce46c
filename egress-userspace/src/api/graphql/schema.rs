//! The fields there are: viewer, accounts, settings, and the node with utilization.

use async_graphql_parser::types::Field;
use async_graphql_value::ConstValue;

use super::document::{Document, Object, leaf, unknown};
use super::filter::text;
use super::groups::{self, MAX_LIMIT, Scan};
use super::{Others, Problem};
use crate::utilization::History;

/// The node with utilization.
const NODE: &str = "aegisIpUtilizationAdaptiveGroups";
/// Nodes of one query.
const MAX_NODES: u32 = 20;
/// What can be selected of the node.
const FIELDS: [&str; 7] = [
    "avg.utilization",
    "max.utilization",
    "dimensions.datetimeFiveMinutes",
    "dimensions.popName",
    "dimensions.egressIp",
    "dimensions.origin",
    "dimensions.popUtilizationKey",
];

/// Answers a whole query. `may` says for which accounts the token is.
pub(super) fn root(
    document: &Document,
    history: &History,
    others: &dyn Others,
    may: &dyn Fn(&str) -> bool,
) -> Result<ConstValue, Problem> {
    let mut nodes = 0;
    Object::of(document.fields()?, "Query", |field| {
        if field.name.node != "viewer" {
            return Err(unknown(field, "the query", "viewer"));
        }
        document.arguments(field, &[])?;
        let fields = document.fields_of(&field.selection_set.node)?;
        Object::of(fields, "Viewer", |field| {
            if field.name.node != "accounts" {
                return Err(unknown(field, "viewer", "accounts"));
            }
            let account = account(document, field, may)?;
            let fields = document.fields_of(&field.selection_set.node)?;
            let answer = Object::of(fields, "Account", |field| match field.name.node.as_str() {
                "accountTag" => leaf(field).map(|()| ConstValue::String(account.clone())),
                "settings" => settings(document, field, history),
                NODE => {
                    nodes += 1;
                    if nodes > MAX_NODES {
                        return Err(Problem::new(format!("more than {MAX_NODES} nodes")));
                    }
                    groups::answer(
                        document,
                        field,
                        &Scan {
                            history,
                            others,
                            account: &account,
                        },
                    )
                }
                _ => Err(unknown(
                    field,
                    "an account",
                    &format!("accountTag, settings, {NODE}"),
                )),
            })?;
            Ok(ConstValue::List(vec![answer]))
        })
    })
}

/// The account that is asked for.
fn account(
    document: &Document,
    field: &Field,
    may: &dyn Fn(&str) -> bool,
) -> Result<String, Problem> {
    let mut arguments = document.arguments(field, &["filter", "limit"])?;
    let Some(ConstValue::Object(filter)) = arguments.remove("filter") else {
        return Err(Problem::new("needs `filter: { accountTag: ID }`"));
    };
    let mut wanted = None;
    for (key, value) in &filter {
        match (key.as_str(), value) {
            ("accountTag", ConstValue::Null) => {}
            ("accountTag", value) => wanted = Some(text(value)?),
            _ => {
                return Err(Problem::new(format!(
                    "unknown filter {key}; there is: accountTag"
                )));
            }
        }
    }
    let wanted = wanted.ok_or_else(|| Problem::new("needs `filter: { accountTag: ID }`"))?;
    if may(&wanted) {
        Ok(wanted)
    } else {
        let shown: String = wanted.chars().take(64).collect();
        Err(Problem::new(format!(
            "not authorized for the account {shown:?}"
        )))
    }
}

/// What a token may ask.
fn settings(document: &Document, field: &Field, history: &History) -> Result<ConstValue, Problem> {
    document.arguments(field, &[])?;
    let fields = document.fields_of(&field.selection_set.node)?;
    Object::of(fields, "AccountSettings", |field| {
        if field.name.node != NODE {
            return Err(unknown(field, "settings", NODE));
        }
        document.arguments(field, &[])?;
        let fields = document.fields_of(&field.selection_set.node)?;
        Object::of(fields, "Settings", |field| {
            leaf(field)?;
            Ok(match field.name.node.as_str() {
                "enabled" => ConstValue::Boolean(true),
                "availableFields" => ConstValue::List(
                    FIELDS
                        .map(|field| ConstValue::String(field.into()))
                        .to_vec(),
                ),
                "maxPageSize" => ConstValue::Number(MAX_LIMIT.into()),
                "maxNumberOfFields" => ConstValue::Number(FIELDS.len().into()),
                "notOlderThan" | "maxDuration" => {
                    let longest = history.longest().map_err(|error| {
                        tracing::error!(%error, "the history of utilization cannot be read");
                        Problem::new("the history cannot be read; the daemon's log says why")
                    })?;
                    ConstValue::Number(longest.into())
                }
                _ => {
                    let known = "enabled, availableFields, maxPageSize, maxNumberOfFields, notOlderThan, maxDuration";
                    return Err(unknown(field, NODE, known));
                }
            })
        })
    })
}
