//! Reading an expression: words first, then comparisons and what joins them.
//!
//! Written by hand, after a look at what there is: `wirefilter-engine`, whose language this is, compiles but is old,
//! and parses in order to match in memory, while we need the tree, with places, to make tables of it. For a grammar
//! of four productions a parser generator is more text than the parser, and its errors would be about productions.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use super::expression::{Expression, Operator, Test, Values, protocol_name};
use super::field::{Field, undecidable};
use crate::dataplane::api::Protocol;
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
    fn new(span: Range<usize>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A name or an unquoted value.
    Word(String),
    /// A quoted value.
    Text(String),
    And,
    Or,
    Not,
    In,
    Operator(Operator),
    Open,
    Close,
    OpenSet,
    CloseSet,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::And => f.write_str("`and`"),
            Self::Or => f.write_str("`or`"),
            Self::Not => f.write_str("`not`"),
            Self::In => f.write_str("`in`"),
            Self::Operator(operator) => write!(f, "`{}`", operator.symbol()),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::OpenSet => f.write_str("`{`"),
            Self::CloseSet => f.write_str("`}`"),
        }
    }
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    span: Range<usize>,
}

/// Longer ones first.
const SYMBOLS: [(&str, Kind); 15] = [
    ("==", Kind::Operator(Operator::Equal)),
    ("!=", Kind::Operator(Operator::NotEqual)),
    ("<=", Kind::Operator(Operator::AtMost)),
    (">=", Kind::Operator(Operator::AtLeast)),
    ("&&", Kind::And),
    ("||", Kind::Or),
    ("<", Kind::Operator(Operator::Less)),
    (">", Kind::Operator(Operator::Greater)),
    ("!", Kind::Not),
    ("(", Kind::Open),
    (")", Kind::Close),
    ("{", Kind::OpenSet),
    ("}", Kind::CloseSet),
    // Not ours, but told apart from words.
    ("=", Kind::Operator(Operator::Equal)),
    ("~", Kind::Operator(Operator::Equal)),
];

const WORDS: [(&str, Kind); 10] = [
    ("and", Kind::And),
    ("or", Kind::Or),
    ("not", Kind::Not),
    ("in", Kind::In),
    ("eq", Kind::Operator(Operator::Equal)),
    ("ne", Kind::Operator(Operator::NotEqual)),
    ("lt", Kind::Operator(Operator::Less)),
    ("le", Kind::Operator(Operator::AtMost)),
    ("gt", Kind::Operator(Operator::Greater)),
    ("ge", Kind::Operator(Operator::AtLeast)),
];

fn tokens(text: &str) -> Result<Vec<Token>, Mistake> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
            continue;
        }
        let (kind, length) = if rest.starts_with('"') {
            quoted(rest, at)?
        } else if let Some((symbol, kind)) =
            SYMBOLS.iter().find(|(symbol, _)| rest.starts_with(symbol))
        {
            if matches!(*symbol, "=" | "~") {
                return Err(Mistake::new(
                    at..at + 1,
                    format!("`{symbol}` is no operator of fields that packets have"),
                    "compare with `==`, `!=` or `in {...}`",
                ));
            }
            (kind.clone(), symbol.len())
        } else {
            let length = rest
                .find(|c: char| c.is_whitespace() || "\"(){}=!<>&|~,".contains(c))
                .unwrap_or(rest.len());
            let word = rest.get(..length).unwrap_or_default();
            let Some(first) = word.chars().next() else {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                return Err(Mistake::new(
                    at..at + length,
                    format!("{:?} belongs to no expression", &rest[..length]),
                    "separate the values of a set by spaces",
                ));
            };
            let keyword = WORDS.iter().find(|(keyword, _)| *keyword == word);
            let kind = match keyword {
                Some((_, kind)) => kind.clone(),
                None if first.is_alphanumeric() || ":_$*".contains(first) => {
                    Kind::Word(word.to_owned())
                }
                None => {
                    return Err(Mistake::new(
                        at..at + length,
                        format!("{word:?} is neither a selector nor a value"),
                        "compare a selector with values, for instance net.dst.port == 443",
                    ));
                }
            };
            (kind, length)
        };
        found.push(Token {
            kind,
            span: at..at + length,
        });
        at += length;
    }
    Ok(found)
}

/// A text in quotes, and how many bytes it takes.
fn quoted(rest: &str, at: usize) -> Result<(Kind, usize), Mistake> {
    let mut text = String::new();
    let mut escaped = false;
    for (offset, character) in rest.char_indices().skip(1) {
        match character {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Ok((Kind::Text(text), offset + 1)),
            other => {
                text.push(other);
                escaped = false;
            }
        }
    }
    Err(Mistake::new(
        at..at + rest.len(),
        "a quoted value does not end",
        "close it with \"",
    ))
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
            return Err(unknown(name, span));
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

fn values(
    field: Field,
    operator: Operator,
    tokens: &[Token],
    example: &str,
) -> Result<Values, Mistake> {
    Ok(match field {
        Field::SourceAddress | Field::DestinationAddress => Values::Addresses(
            tokens
                .iter()
                .map(|token| address(token, field, operator, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::SourcePort | Field::DestinationPort => Values::Ports(
            tokens
                .iter()
                .map(|token| ports(token, field, operator, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::Protocol => Values::Protocols(
            tokens
                .iter()
                .map(|token| protocol(token, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::Zone => Values::Zones(
            tokens
                .iter()
                .map(|token| zone(token, example))
                .collect::<Result<_, _>>()?,
        ),
    })
}

fn zone(token: &Token, example: &str) -> Result<String, Mistake> {
    match &token.kind {
        Kind::Text(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(Mistake::new(
            token.span.clone(),
            format!("{other} is no zone: a zone's id or name stands in quotes"),
            format!("write, {example}"),
        )),
    }
}

fn address(
    token: &Token,
    field: Field,
    operator: Operator,
    example: &str,
) -> Result<IpNet, Mistake> {
    let Kind::Word(word) = &token.kind else {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{} is no address: addresses are not quoted", token.kind),
            format!("write, {example}"),
        ));
    };
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(address.into());
    }
    if word.starts_with('$') {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is a list, and there are no lists here"),
            "write the addresses of the list between braces",
        ));
    }
    let Ok(net) = word.parse::<IpNet>() else {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is neither an IP address nor a prefix"),
            format!("write, {example}"),
        ));
    };
    if net != net.trunc() {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{net} has bits set outside its prefix"),
            format!("write {}", net.trunc()),
        ));
    }
    if operator != Operator::In && net.prefix_len() != net.max_prefix_len() {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{net} is a prefix: an address is in it or not, and never equals it"),
            format!("write {field} in {{{net}}}"),
        ));
    }
    Ok(net)
}

fn ports(
    token: &Token,
    field: Field,
    operator: Operator,
    example: &str,
) -> Result<std::ops::RangeInclusive<u16>, Mistake> {
    let refused =
        |reason: String| Mistake::new(token.span.clone(), reason, format!("write, {example}"));
    let Kind::Word(word) = &token.kind else {
        return Err(refused(format!("{} is no port", token.kind)));
    };
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| refused(format!("{text:?} is no port: ports go from 0 to 65535")))
    };
    let Some((first, last)) = word.split_once("..") else {
        let port = port(word)?;
        return Ok(port..=port);
    };
    let range = port(first)?..=port(last)?;
    if range.is_empty() {
        return Err(refused(format!("{word} ends before it begins")));
    }
    if operator != Operator::In {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is a range: a port is in it or not"),
            format!("write {field} in {{{word}}}"),
        ));
    }
    Ok(range)
}

fn protocol(token: &Token, example: &str) -> Result<Protocol, Mistake> {
    let (reason, remedy) = match &token.kind {
        Kind::Text(text) => {
            let lower = text.to_ascii_lowercase();
            let found = [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .find(|protocol| protocol_name(*protocol) == lower);
            if let Some(protocol) = found {
                return Ok(protocol);
            }
            let exempt = matches!(lower.as_str(), "icmp" | "icmpv6");
            if exempt {
                (
                    format!(
                        "protocol {text:?} is no policy's: ICMP queries are exempt or dropped, as [exempt] icmp_queries says (POLICY-7)"
                    ),
                    "policies are about \"tcp\" and \"udp\"".to_owned(),
                )
            } else {
                (
                    format!("protocol {text:?} is never translated"),
                    "policies are about \"tcp\" and \"udp\"".to_owned(),
                )
            }
        }
        other => (
            format!("{other} is no protocol: protocols stand in quotes"),
            format!("write, {example}"),
        ),
    };
    Err(Mistake::new(token.span.clone(), reason, remedy))
}
