//! The node `aegisIpUtilizationAdaptiveGroups`: utilization in groups.

use std::cmp::Ordering;
use std::collections::HashMap;

use async_graphql_parser::types::Field;
use async_graphql_value::{ConstValue, Number};

use super::document::{Document, Object, leaf, unknown};
use super::filter::{Condition, Dimension, Part, text};
use super::{Others, Problem};
use crate::dataplane::api::utilization;
use crate::utilization::{History, Row, merge};

/// Groups that are answered unless asked otherwise.
const LIMIT: u64 = 100;
/// The most groups that are answered.
pub(super) const MAX_LIMIT: u64 = 10_000;
/// The most rows that are looked at for a node.
const MAX_ROWS: usize = 2_000_000;
/// The most groups that are made for a node.
const MAX_GROUPS: usize = 500_000;

/// Where rows come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan<'s> {
    pub(super) history: &'s History,
    pub(super) others: &'s dyn Others,
    pub(super) account: &'s str,
}

/// Rows that are alike in the dimensions that were selected.
#[derive(Clone, Debug, Default)]
struct Group {
    parts: Vec<Part>,
    /// Connections times ms, and as many as there could have been.
    sum: u128,
    possible: u128,
    max: f64,
}

impl Group {
    /// Adds the parts that a data center's servers have of what is alike in all dimensions.
    fn add(&mut self, rows: &[Row]) {
        for whole in merge(rows) {
            self.sum += whole.sum;
            self.possible += whole.possible;
            self.max = self.max.max(utilization(whole.max, whole.capacity));
        }
    }

    /// Percent, over all rows.
    fn average(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a quotient to a few digits")]
        let (sum, possible) = (self.sum as f64, self.possible as f64);
        if possible > 0.0 {
            rounded(sum * 100.0 / possible)
        } else {
            0.0
        }
    }
}

/// To four decimals, as all utilization is told.
fn rounded(percent: f64) -> f64 {
    (percent * 10_000.0).round() / 10_000.0
}

/// What a group is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Part(usize),
    Average,
    Max,
}

/// Answers the node.
pub(super) fn answer(
    document: &Document,
    field: &Field,
    scan: &Scan<'_>,
) -> Result<ConstValue, Problem> {
    let arguments = document.arguments(field, &["filter", "limit", "orderBy"])?;
    let limit = match arguments.get("limit") {
        None => LIMIT,
        Some(ConstValue::Number(number)) => {
            let limit = number
                .as_u64()
                .filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| Problem::new(format!("limit is from 1 to {MAX_LIMIT}")))?
        }
        Some(_) => return Err(Problem::new("limit is a number")),
    };
    let none = ConstValue::Object(async_graphql_value::indexmap::IndexMap::new());
    let condition = Condition::read(arguments.get("filter").unwrap_or(&none))?;
    let fields = document.fields_of(&field.selection_set.node)?;
    let dimensions = dimensions(document, &fields)?;
    let order = match arguments.get("orderBy") {
        None => Vec::new(),
        Some(ConstValue::List(list)) => {
            let all = list.iter().map(|one| order(one, &dimensions));
            all.collect::<Result<_, _>>()?
        }
        Some(one) => vec![order(one, &dimensions)?],
    };
    // What is wrong with the selection is said without any group, too.
    let sample = Group {
        parts: vec![Part::Time(0); dimensions.len()],
        ..Group::default()
    };
    show(document, &fields, &dimensions, &sample)?;
    let mut groups = gather(scan, &condition, &dimensions)?;
    groups.sort_by(|one, other| compare(one, other, &order));
    groups.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let answers = groups
        .iter()
        .map(|group| show(document, &fields, &dimensions, group));
    Ok(ConstValue::List(answers.collect::<Result<_, _>>()?))
}

/// The dimensions that are selected, each once.
fn dimensions(document: &Document, fields: &[&Field]) -> Result<Vec<Dimension>, Problem> {
    let mut found = Vec::new();
    for field in fields {
        if field.name.node == "dimensions" {
            for field in document.fields_of(&field.selection_set.node)? {
                let dimension = Dimension::named(&field.name.node);
                if let Some(dimension) = dimension.filter(|one| !found.contains(one)) {
                    found.push(dimension);
                }
            }
        }
    }
    Ok(found)
}

/// One member of `orderBy`, and whether it is descending.
fn order(value: &ConstValue, dimensions: &[Dimension]) -> Result<(Order, bool), Problem> {
    let text = text(value)?;
    let shown: String = text.chars().take(64).collect();
    let (name, descending) = match (text.strip_suffix("_ASC"), text.strip_suffix("_DESC")) {
        (Some(name), _) => (name, false),
        (_, Some(name)) => (name, true),
        _ => {
            return Err(Problem::new(format!(
                "orderBy {shown} ends neither in _ASC nor in _DESC"
            )));
        }
    };
    let order = match name {
        "avg_utilization" => Order::Average,
        "max_utilization" => Order::Max,
        _ => {
            let dimension = Dimension::named(name).ok_or_else(|| {
                Problem::new(format!(
                    "unknown orderBy {shown}; there are: {}, avg_utilization, max_utilization",
                    Dimension::names()
                ))
            })?;
            let at = dimensions.iter().position(|one| *one == dimension);
            Order::Part(at.ok_or_else(|| {
                Problem::new(format!(
                    "orderBy {shown}: {name} is not among the dimensions selected"
                ))
            })?)
        }
    };
    Ok((order, descending))
}

fn compare(one: &Group, other: &Group, orders: &[(Order, bool)]) -> Ordering {
    for (order, descending) in orders {
        let found = match order {
            Order::Part(at) => one.parts.get(*at).cmp(&other.parts.get(*at)),
            Order::Average => one.average().total_cmp(&other.average()),
            Order::Max => one.max.total_cmp(&other.max),
        };
        if found.is_ne() {
            return if *descending { found.reverse() } else { found };
        }
    }
    // Then by the group's own key, so that the order is always the same.
    one.parts.cmp(&other.parts)
}

/// What a row is of, in all dimensions.
fn what(row: &Row) -> (i64, String, String, String) {
    let (pop, egress_ip, origin) = (row.pop.clone(), row.egress_ip.clone(), row.origin.clone());
    (row.start, pop, egress_ip, origin)
}

/// Makes groups of all rows that are asked for.
fn gather(
    scan: &Scan<'_>,
    condition: &Condition,
    dimensions: &[Dimension],
) -> Result<Vec<Group>, Problem> {
    let mut groups: HashMap<Vec<Part>, Group> = HashMap::new();
    let (from, to) = condition.buckets();
    let mut enter = |rows: &[Row]| {
        if let Some(row) = rows.first() {
            let parts: Vec<Part> = dimensions.iter().map(|one| one.of(row)).collect();
            groups.entry(parts).or_default().add(rows);
        }
        groups.len()
    };
    // What others have is put together with what is here of the same.
    let mut elsewhere: HashMap<_, Vec<Row>> = HashMap::new();
    let mut rows = 0;
    for row in scan.others.rows(scan.account, from, to) {
        rows += 1;
        if condition.holds(&row) {
            elsewhere.entry(what(&row)).or_default().push(row);
        }
    }
    let mut made = 0;
    let read = scan.history.visit(scan.account, from, to, &mut |row| {
        rows += 1;
        if condition.holds(&row) {
            let alike = if elsewhere.is_empty() {
                None
            } else {
                elsewhere.get_mut(&what(&row))
            };
            match alike {
                Some(alike) => alike.push(row),
                None => made = enter(&[row]),
            }
        }
        rows <= MAX_ROWS && made <= MAX_GROUPS
    });
    if rows <= MAX_ROWS {
        for alike in elsewhere.values() {
            if made <= MAX_GROUPS {
                made = enter(alike);
            }
        }
    }
    read.map_err(|error| {
        tracing::error!(%error, "the history of utilization cannot be read");
        Problem::new("the history cannot be read; the daemon's log says why")
    })?;
    if rows > MAX_ROWS || groups.len() > MAX_GROUPS {
        return Err(Problem::new(
            "too much is asked for at once: ask for a shorter time",
        ));
    }
    let groups = groups
        .into_iter()
        .map(|(parts, group)| Group { parts, ..group });
    Ok(groups.collect())
}

/// A group as it was asked for.
fn show(
    document: &Document,
    fields: &[&Field],
    dimensions: &[Dimension],
    group: &Group,
) -> Result<ConstValue, Problem> {
    Object::of(
        fields.to_vec(),
        "AegisIpUtilizationAdaptiveGroups",
        |field| {
            document.arguments(field, &[])?;
            let name = field.name.node.as_str();
            let percent = match name {
                "avg" => group.average(),
                "max" => group.max,
                "dimensions" => 0.0,
                _ => return Err(unknown(field, "a group", "avg, max, dimensions")),
            };
            let fields = document.fields_of(&field.selection_set.node)?;
            Object::of(fields, name, |field| {
                leaf(field)?;
                document.arguments(field, &[])?;
                if name == "dimensions" {
                    let part = Dimension::named(&field.name.node)
                        .and_then(|wanted| dimensions.iter().position(|one| *one == wanted))
                        .and_then(|at| group.parts.get(at));
                    let unknown = || unknown(field, "dimensions", &Dimension::names());
                    return part.map(Part::shown).ok_or_else(unknown);
                }
                if field.name.node != "utilization" {
                    return Err(unknown(field, name, "utilization"));
                }
                Ok(Number::from_f64(percent).map_or(ConstValue::Null, ConstValue::Number))
            })
        },
    )
}
