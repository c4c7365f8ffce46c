//! Egress policies: their expressions (POLICY-2). Nothing enforces a policy yet, so each is refused by name.
//!
//! | file | noun |
//! |---|---|
//! | [`field`] | the selectors that packets can be asked for, and why there are no others |
//! | [`expression`] | what a policy matches, its canonical form, and what it means |
//! | [`parse`] | reading one, with a place for every mistake |

pub mod expression;
pub mod field;
pub mod parse;

pub use expression::{Expression, Facts};
pub use parse::{Mistake, parse};

#[cfg(test)]
mod tests;
