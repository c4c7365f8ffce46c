//! From expressions to rules: an "or" of "and"s, as the data plane decides them (`egress_common::policy`).

use std::ops::RangeInclusive;

use super::expression::{Expression, Operator, Test, Values};
use super::field::Field;

/// Rules that one policy may take.
pub const MAX_ALTERNATIVES: usize = 64;

/// All of these hold.
pub(super) type Alternative = Vec<Condition>;

/// A field has one of these values, or has none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) field: Field,
    pub(super) values: Values,
    pub(super) negated: bool,
}

/// The expression has more alternatives than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the expression has more than {MAX_ALTERNATIVES} alternatives, once `or` and `not` are multiplied out"
)]
pub struct TooManyAlternatives;

/// How many rules an expression takes; none matches everything, by one rule.
///
/// # Errors
/// More than there may be.
pub fn count(expression: Option<&Expression>) -> Result<usize, TooManyAlternatives> {
    alternatives(expression).map(|found| found.len())
}

/// The alternatives of an expression.
pub(super) fn alternatives(
    expression: Option<&Expression>,
) -> Result<Vec<Alternative>, TooManyAlternatives> {
    expression.map_or_else(|| Ok(vec![Alternative::new()]), |one| expand(one, false))
}

fn expand(expression: &Expression, negated: bool) -> Result<Vec<Alternative>, TooManyAlternatives> {
    match (expression, negated) {
        (Expression::Test(test), negated) => Ok(vec![vec![condition(test, negated)]]),
        (Expression::Not(inner), negated) => expand(inner, !negated),
        (Expression::Or(parts), false) | (Expression::And(parts), true) => {
            let mut found = Vec::new();
            for part in parts {
                found.extend(expand(part, negated)?);
                within(&found)?;
            }
            Ok(found)
        }
        (Expression::And(parts), false) | (Expression::Or(parts), true) => {
            let mut found = vec![Alternative::new()];
            for part in parts {
                let more = expand(part, negated)?;
                let conditions = |all: &[Alternative]| all.iter().map(Vec::len).sum::<usize>();
                let product = found.len() * conditions(&more) + more.len() * conditions(&found);
                if found.len() * more.len() > MAX_ALTERNATIVES || product > MAX_CONDITIONS {
                    return Err(TooManyAlternatives);
                }
                found = found
                    .iter()
                    .flat_map(|one| {
                        more.iter()
                            .map(move |other| [one.as_slice(), other].concat())
                    })
                    .collect();
            }
            Ok(found)
        }
    }
}

/// The most conditions of all alternatives of a policy: each is looked at for every address of every other.
const MAX_CONDITIONS: usize = 2_048;

fn within(found: &[Alternative]) -> Result<(), TooManyAlternatives> {
    if found.len() > MAX_ALTERNATIVES {
        return Err(TooManyAlternatives);
    }
    Ok(())
}

fn condition(test: &Test, negated: bool) -> Condition {
    let values = match &test.values {
        Values::Ports(ranges) => Values::Ports(compared(test.operator, ranges)),
        other => other.clone(),
    };
    Condition {
        field: test.field,
        values,
        negated: negated != (test.operator == Operator::NotEqual),
    }
}

/// The ports that a comparison accepts; of `!=` those that it does not.
fn compared(operator: Operator, ranges: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let Some(port) = ranges.first().map(|range| *range.start()) else {
        return Vec::new();
    };
    let range = match operator {
        Operator::Equal | Operator::NotEqual | Operator::In => return ranges.to_vec(),
        Operator::AtMost => Some(0..=port),
        Operator::AtLeast => Some(port..=u16::MAX),
        Operator::Less => port.checked_sub(1).map(|last| 0..=last),
        Operator::Greater => port.checked_add(1).map(|first| first..=u16::MAX),
    };
    range.into_iter().collect()
}
