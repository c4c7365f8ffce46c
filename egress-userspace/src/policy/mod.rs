//! Egress policies (POLICY-1, POLICY-2): their expressions, and the tables that the data plane decides them by.
//!
//! | file | noun |
//! |---|---|
//! | [`field`] | the selectors that packets can be asked for, and why there are no others |
//! | [`expression`] | what a policy matches, its canonical form, and what it means |
//! | `tokens` | its words |
//! | [`parse`] | reading one, with a place for every mistake |
//! | `values` | what selectors are compared with |
//! | [`rules`] | its alternatives: an "or" of "and"s |
//! | [`compile`] | the tables |
//! | [`budget`] | what an account may take of them |

pub mod budget;
pub mod compile;
pub mod expression;
pub mod field;
pub mod parse;
pub mod rules;
mod tokens;
mod values;

pub use expression::{Expression, Facts};
pub use parse::{Mistake, parse};

#[cfg(test)]
mod tests;
