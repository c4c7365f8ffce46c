//! The files of tests that both families must pass, over the family that this file is part of.

use super::*;

#[path = "admission.rs"]
mod admission;
#[path = "checksum.rs"]
mod checksum;
#[path = "choice.rs"]
mod choice;
#[path = "closing.rs"]
mod closing;
#[path = "concurrency.rs"]
mod concurrency;
#[path = "field.rs"]
mod field;
#[path = "full.rs"]
mod full;
#[path = "guard.rs"]
mod guard;
#[path = "hops.rs"]
mod hops;
#[path = "icmp.rs"]
mod icmp;
#[path = "length.rs"]
mod length;
#[path = "link.rs"]
mod link;
#[path = "log.rs"]
mod log;
#[path = "malformed.rs"]
mod malformed;
#[path = "martian.rs"]
mod martian;
#[path = "model.rs"]
mod model;
#[path = "opening.rs"]
mod opening;
#[path = "options.rs"]
mod options;
#[path = "over.rs"]
mod over;
#[path = "passing.rs"]
mod passing;
#[path = "policies.rs"]
mod policies;
#[path = "probes.rs"]
mod probes;
#[path = "quarantine.rs"]
mod quarantine;
#[path = "random.rs"]
mod random;
#[path = "realm.rs"]
mod realm;
#[path = "refusal.rs"]
mod refusal;
#[path = "rfc.rs"]
mod rfc;
#[path = "sweep.rs"]
mod sweep;
#[path = "translation.rs"]
mod translation;
#[path = "unanswered.rs"]
mod unanswered;
#[path = "usage.rs"]
mod usage;
#[path = "versions.rs"]
mod versions;
#[path = "wire.rs"]
mod wire;
