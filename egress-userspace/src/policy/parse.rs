//! Reading an expression: words first, then comparisons and what joins them.
//!
//! Written by hand, after a look at what there is: `wirefilter-engine`, whose language this is, compiles but is old,
//! and parses in order to match in memory, while we need the tree, with places, to make tables of it. For a grammar
//! of four productions a parser generator is more text than the parser, and its errors would be about productions.

use std::ops::Range;

use super::expression::{Expression, Operator, Test};
use super::field::{Field, undecidable};
use super::tokens::{Kind, Token, tokens};
use super::values::values;
use crate::document::nearest;

/// The longest expression, in bytes.
pub const MAX_LENGTH: usize = 65_536;
/// How deep parentheses and `not` may nest.
const MAX_DEPTH: usize = 32;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Mistake {
    /// The bytes that are meant; empty at the end.
    pub span: Range<usize>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Mistake {
    pub(super) fn new(
        span: Range<usize>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            span,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Line and column in `text`, from 1, in characters.
    pub fn position(&self, text: &str) -> (usize, usize) {
        let before = text.get(..self.span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line, column)
    }
}

/// Reads an expression.
///
/// # Errors
/// The first mistake.
pub fn parse(text: &str) -> Result<Expression, Mistake> {
    if text.len() > MAX_LENGTH {
        return Err(Mistake::new(
            0..text.len(),
            format!(
                "the expression has {} bytes, and may have {MAX_LENGTH}",
                text.len()
            ),
            "make several policies of it",
        ));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        end: text.len(),
        depth: 0,
    };
    let expression = parser.either()?;
    match parser.next() {
        None => Ok(expression),
        Some(token) => Err(Mistake::new(
            token.span.clone(),
            format!(
                "{} stands where `and`, `or` or the end was expected",
                token.kind
            ),
            "join comparisons with `and` or `or`",
        )),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// `a or b or c`
    fn either(&mut self) -> Result<Expression, Mistake> {
        let mut parts = Vec::new();
        loop {
            match self.both()? {
                Expression::Or(more) => parts.extend(more),
                one => parts.push(one),
            }
            if self.peek() != Some(&Kind::Or) {
                return Ok(joined(parts, Expression::Or));
            }
            self.at += 1;
        }
    }

    /// `a and b and c`
    fn both(&mut self) -> Result<Expression, Mistake> {
        let mut parts = Vec::new();
        loop {
            match self.one()? {
                Expression::And(more) => parts.extend(more),
                one => parts.push(one),
            }
            if self.peek() != Some(&Kind::And) {
                return Ok(joined(parts, Expression::And));
            }
            self.at += 1;
        }
    }

    /// A comparison, its opposite, or something in parentheses.
    fn one(&mut self) -> Result<Expression, Mistake> {
        let Some(token) = self.next() else {
            return Err(Mistake::new(
                self.end..self.end,
                "the expression ends where a comparison was expected",
                "compare a selector with values, for instance net.dst.port == 443",
            ));
        };
        if matches!(token.kind, Kind::Not | Kind::Open) {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(Mistake::new(
                    token.span,
                    format!("this is nested more than {MAX_DEPTH} deep"),
                    "make several policies of it",
                ));
            }
        }
        let expression = match token.kind {
            Kind::Not => Expression::Not(Box::new(self.one()?)),
            Kind::Open => {
                let inner = self.either()?;
                match self.next() {
                    Some(Token {
                        kind: Kind::Close, ..
                    }) => inner,
                    other => {
                        return Err(self.expected(
                            other.as_ref(),
                            "`)`, `and` or `or`",
                            "close the parenthesis",
                        ));
                    }
                }
            }
            Kind::Word(name) => return self.test(&name, token.span),
            _ => {
                return Err(self.expected(
                    Some(&token),
                    "a comparison",
                    "compare a selector with values, for instance net.dst.port == 443",
                ));
            }
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn expected(&self, found: Option<&Token>, what: &str, remedy: &str) -> Mistake {
        match found {
            Some(token) => Mistake::new(
                token.span.clone(),
                format!("{} stands where {what} was expected", token.kind),
                remedy,
            ),
            None => Mistake::new(
                self.end..self.end,
                format!("the expression ends where {what} was expected"),
                remedy,
            ),
        }
    }

    fn test(&mut self, name: &str, span: Range<usize>) -> Result<Expression, Mistake> {
        let Some(field) = Field::named(name) else {
            return Err(self.unknown(name, span));
        };
        let example = format!("for instance {}", field.example());
        let token = self.next();
        let (operator, tokens) = match token.as_ref().map(|token| &token.kind) {
            Some(Kind::Operator(operator)) => {
                if matches!(
                    operator,
                    Operator::Less | Operator::AtMost | Operator::Greater | Operator::AtLeast
                ) && !matches!(field, Field::SourcePort | Field::DestinationPort)
                {
                    let what = format!("`==`, `!=` or `in` after {field}");
                    return Err(self.expected(token.as_ref(), &what, &example));
                }
                let Some(value) = self.next() else {
                    return Err(self.expected(None, "a value", &example));
                };
                (*operator, vec![value])
            }
            Some(Kind::In) => (Operator::In, self.members(&example)?),
            _ => {
                let what = format!("an operator after {field}");
                return Err(self.expected(token.as_ref(), &what, &example));
            }
        };
        let values = values(field, operator, &tokens, &example)?;
        Ok(Expression::Test(Test {
            field,
            operator,
            values,
        }))
    }

    /// A selector that is not decided here, or none at all. What stands in `any(...)` says more than `any` does.
    fn unknown(&self, name: &str, span: Range<usize>) -> Mistake {
        let of_list = matches!(name, "any" | "all") && self.peek() == Some(&Kind::Open);
        let inner = self.tokens.get(self.at + 1).filter(|_| of_list);
        match inner {
            Some(Token {
                kind: Kind::Word(inner),
                span,
            }) if undecidable(inner).is_some() => unknown(inner, span.clone()),
            _ => unknown(name, span),
        }
    }

    /// The values between braces.
    fn members(&mut self, example: &str) -> Result<Vec<Token>, Mistake> {
        match self.next() {
            Some(Token {
                kind: Kind::OpenSet,
                ..
            }) => {}
            other => return Err(self.expected(other.as_ref(), "`{` after `in`", example)),
        }
        let mut members = Vec::new();
        loop {
            match self.next() {
                Some(Token {
                    kind: Kind::CloseSet,
                    span,
                }) => {
                    if members.is_empty() {
                        return Err(Mistake::new(span, "the set is empty", example));
                    }
                    return Ok(members);
                }
                Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Text(_)) => {
                    members.push(token);
                }
                other => return Err(self.expected(other.as_ref(), "a value or `}`", example)),
            }
        }
    }
}

fn joined(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            join(parts)
        }
        None => join(parts),
    }
}

/// A selector that is not decided here, or none at all.
fn unknown(name: &str, span: Range<usize>) -> Mistake {
    let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
    let list = names.join(", ");
    if let Some(why) = undecidable(name) {
        return Mistake::new(
            span,
            format!("{name} cannot be decided where packets are: {why} (POLICY-2)"),
            format!("use {list}"),
        );
    }
    if name == "any" || name == "all" {
        return Mistake::new(
            span,
            format!("{name}() is for selectors that hold a list, and these hold one value: {list}"),
            "compare with `in {...}`",
        );
    }
    let remedy = nearest(name, names.iter().copied()).map_or_else(
        || format!("use {list}"),
        |like| format!("did you mean {like}?"),
    );
    Mistake::new(span, format!("there is no selector {name}"), remedy)
}
