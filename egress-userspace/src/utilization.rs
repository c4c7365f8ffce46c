//! How full egress IPs were for their origins, in buckets of five minutes (OBS-1).
//!
//! The maximum of a bucket is the data plane's own: it raises a peak at every admission, and [`recorder`] takes the
//! peaks when a bucket ends. The average is of the counts, sampled every second. [`bucket`] adds them up, [`history`]
//! keeps them in a file of their own: it may grow large, and nobody's addresses depend on it.

pub mod bucket;
pub mod history;
pub mod recorder;

pub use bucket::{Bucket, Key, LENGTH, Series};
pub use history::{History, Row};
pub use recorder::Recording;
