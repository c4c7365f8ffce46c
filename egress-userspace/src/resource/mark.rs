//! A firewall mark that selects a zone (ZONE-2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::parse_mark;
use crate::document::Value;

/// A mark with an optional mask. Without one, all bits but the reserved ones are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mark {
    /// The bits wanted; none outside the mask.
    pub value: u32,
    /// The bits looked at, if the file says so.
    pub mask: Option<u32>,
}

impl Mark {
    /// The bits looked at on a server that reserves `reserved`.
    pub const fn effective_mask(self, reserved: u32) -> u32 {
        match self.mask {
            Some(mask) => mask,
            None => !reserved,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value)?;
        match self.mask {
            Some(mask) => write!(f, "/{mask:#x}"),
            None => Ok(()),
        }
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> Self {
        mark.to_string()
    }
}

impl TryFrom<String> for Mark {
    type Error = MarkError;

    fn try_from(text: String) -> Result<Self, MarkError> {
        text.parse()
    }
}

/// Why a text is no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Not a 32-bit number.
    #[error("a mark is a 32-bit number, with an optional mask after a slash")]
    Unreadable,
    /// A mask that looks at nothing.
    #[error("the mask is 0: it would match every packet")]
    EmptyMask,
    /// Bits that can never match.
    #[error("the value has bits outside its mask: it could never match")]
    OutsideMask,
    /// The mark of every packet that nobody marked.
    #[error("mark 0 is the mark of every unmarked packet")]
    Zero,
}

impl Mark {
    /// A mark with the bits that count.
    pub const fn new(value: u32, mask: Option<u32>) -> Result<Self, MarkError> {
        match mask {
            Some(0) => Err(MarkError::EmptyMask),
            Some(mask) if value & !mask != 0 => Err(MarkError::OutsideMask),
            _ if value == 0 => Err(MarkError::Zero),
            _ => Ok(Self { value, mask }),
        }
    }
}

impl FromStr for Mark {
    type Err = MarkError;

    fn from_str(text: &str) -> Result<Self, MarkError> {
        let (value, mask) = match text.split_once('/') {
            Some((value, mask)) => (value, Some(parse_mark(mask).ok_or(MarkError::Unreadable)?)),
            None => (text, None),
        };
        Self::new(parse_mark(value).ok_or(MarkError::Unreadable)?, mask)
    }
}

/// Reads an integer or a string such as `0x50/0xf0`.
pub(super) fn read(value: Value<'_, '_>) -> Option<Mark> {
    let (text, mark) = if let Some(number) = value.as_integer() {
        let mark = u32::try_from(number)
            .map_err(|_| MarkError::Unreadable)
            .and_then(|n| Mark::new(n, None));
        (number.to_string(), mark)
    } else if value.is_string() {
        let text = value.string()?;
        (text.to_owned(), text.parse())
    } else {
        value.wrong_type("an integer or a string");
        return None;
    };
    match mark {
        Ok(mark) => Some(mark),
        Err(error) => {
            value.refuse(
                format!("\"{text}\" cannot select a zone: {error}"),
                "write, for instance, marks = [161, \"0x50/0xf0\"]",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_numbers_with_an_optional_mask() {
        assert_eq!("161".parse(), Mark::new(161, None));
        assert_eq!("0x50/0xf0".parse(), Mark::new(0x50, Some(0xf0)));
        assert_eq!(
            Mark {
                value: 0x50,
                mask: Some(0xf0)
            }
            .to_string(),
            "0x50/0xf0"
        );
        assert_eq!("".parse::<Mark>(), Err(MarkError::Unreadable));
        assert_eq!("1/0".parse::<Mark>(), Err(MarkError::EmptyMask));
        assert_eq!("0x51/0xf0".parse::<Mark>(), Err(MarkError::OutsideMask));
        assert_eq!("0".parse::<Mark>(), Err(MarkError::Zero));
        assert_eq!("0/0xff".parse::<Mark>(), Err(MarkError::Zero));
    }
}
