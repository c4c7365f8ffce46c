//! How full egress IPs were for their origins, in buckets of five minutes (OBS-1).
//!
//! Maximum and sum of a bucket are the data plane's own (`egress_common::usage`): each count has those of this period and
//! of the last one in which it changed. [`stretch`] says what they mean for five minutes of wall-clock time,
//! [`recorder`] looks every second, [`bucket`] puts it together, and [`history`] keeps it in a file of its own: it may grow
//! large, and nobody's addresses depend on it. A daemon that was killed finds in the data plane what it has not kept.
//!
//! Of the addresses that several servers of a data center share ([`shared`]) each keeps what was in every second
//! ([`levels`]), so that whoever is asked can add them up ([`merge`]).

pub mod bucket;
pub mod history;
mod kept;
pub mod levels;
pub mod merge;
pub mod recorder;
pub mod rollup;
pub mod shared;
pub mod stretch;

pub use bucket::{Bucket, Key, Series, Sum};
pub use history::{History, Row};
pub use levels::Levels;
pub use merge::{Whole, merge};
pub use recorder::Recording;
pub use rollup::Retention;
