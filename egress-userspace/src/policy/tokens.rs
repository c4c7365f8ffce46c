//! The words of an expression, with their places.

use std::ops::Range;

use super::expression::Operator;
use super::parse::Mistake;

/// What a word is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

/// A word, and the bytes that it takes.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
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

/// The words of a text.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Mistake> {
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
