//! What is said over the control socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataplane::api::{DrainingStatus, OriginMatch};
use crate::diagnostic::Diagnostics;
use crate::explain::Query;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Hooks, tables, reasons. Answer: one status.
    Status,
    /// Live flows. Answer: one item a flow.
    Flows {
        /// Which.
        filter: Filter,
    },
    /// Connection counts. Answer: one item a count.
    Origins {
        /// Which.
        filter: Filter,
    },
    /// Pools. Answer: one item a pool.
    Pools {
        /// Which.
        filter: Filter,
    },
    /// Zones. Answer: one item a zone.
    Zones {
        /// Which.
        filter: Filter,
    },
    /// Plans a resources file, and applies it unless it is a dry run. Answer: an [`Applied`].
    Apply {
        /// What to call the file in messages.
        file: String,
        /// Its text.
        text: String,
        /// Only plan.
        dry_run: bool,
    },
    /// Changes a zone's setting (ZONE-1). Answer: the zone.
    ZoneSet {
        /// The zone, by id or name.
        zone: String,
        /// On or off.
        enabled: bool,
        /// The pool, by id or name; the one it has when absent.
        pool: Option<String>,
        /// Also where an origin does not let the pool in that the zone requires to (POOL-10).
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Connects to an origin from every address of a pool (POOL-10). Answer: one item an address.
    Probe {
        /// The origin.
        origin: SocketAddr,
        /// The pool, by id or name.
        pool: String,
        /// How long it may take to answer, seconds.
        seconds: u64,
    },
    /// Keeps new flows from an address or a pool (POOL-9). Answer: a [`Drained`].
    Drain {
        /// The address, or the pool by id or name.
        subject: String,
        /// End its live flows at both ends.
        reset: bool,
    },
    /// Lets new flows in again. Answer: a [`Drained`].
    Undrain {
        /// The address, or the pool by id or name.
        subject: String,
    },
    /// Servers. Answer: one item a server.
    Servers,
    /// Keeps new flows from a server (FWD-7). Answer: the server.
    ServerDrain {
        /// Its name.
        server: String,
    },
    /// Lets a server have new flows again. Answer: the server.
    ServerUndrain {
        /// Its name.
        server: String,
    },
    /// Gives away what a fenced server holds (CLU-3). Answer: the server.
    ServerForget {
        /// Its name.
        server: String,
        /// Also where it answers.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Explains a decision. Answer: an explanation.
    Why {
        /// The packet.
        query: Query,
    },
    /// Reads configuration and resources file again, as SIGHUP does. Answer: an [`Applied`].
    Reload,
    /// Takes everything off and ends the daemon (SAFE-4). Answer: lines that say what was removed.
    Detach,
}

impl Request {
    /// What a daemon does that has got it, for whoever waits.
    pub(super) fn doing(&self) -> &'static str {
        match self {
            Self::Status => "looking at the data plane",
            Self::Flows { .. }
            | Self::Origins { .. }
            | Self::Pools { .. }
            | Self::Zones { .. }
            | Self::Servers => "reading the list",
            Self::Apply { dry_run: true, .. } => "planning",
            Self::Apply { .. } => "applying the file",
            Self::ZoneSet { .. } => "changing the zone",
            Self::Probe { .. } => "waiting for the origin's answers",
            Self::Drain { .. } | Self::Undrain { .. } => "changing what drains",
            Self::ServerDrain { .. } | Self::ServerUndrain { .. } | Self::ServerForget { .. } => {
                "changing the server"
            }
            Self::Why { .. } => "looking at rules and counts",
            Self::Reload => "reading its files again",
            Self::Detach => "taking everything off",
        }
    }

    /// Whether it leaves everything as it is.
    pub(crate) fn only_reads(&self) -> bool {
        match self {
            Self::Status
            | Self::Flows { .. }
            | Self::Origins { .. }
            | Self::Pools { .. }
            | Self::Zones { .. }
            | Self::Servers
            | Self::Apply { dry_run: true, .. }
            | Self::Why { .. } => true,
            Self::Apply { .. }
            | Self::ZoneSet { .. }
            | Self::Probe { .. }
            | Self::Drain { .. }
            | Self::Undrain { .. }
            | Self::ServerDrain { .. }
            | Self::ServerUndrain { .. }
            | Self::ServerForget { .. }
            | Self::Reload
            | Self::Detach => false,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Which members of a list; an absent field lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// A zone, by id or name.
    pub zone: Option<String>,
    /// A pool, by id or name.
    pub pool: Option<String>,
    /// An origin.
    pub origin: Option<OriginMatch>,
    /// An egress IP.
    pub egress_ip: Option<IpAddr>,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// A member of a list.
    Item(Value),
    /// A sign of life: the answer is not there yet.
    Working,
    /// The end, with the answer if it is no list.
    Done(Value),
    /// The end: it did not work.
    Failed(Failure),
}

/// What came of an apply or a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The plan.
    pub plan: crate::plan::Plan,
    /// Whether it is in force now.
    pub applied: bool,
    /// Warnings about the file.
    pub warnings: Diagnostics,
    /// What else to know, a line each: settings that need a restart, for instance.
    pub notes: Vec<String>,
}

/// What came of draining or its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The address, or the pool's id.
    pub subject: String,
    /// Its addresses that take no new flows, and what is left on them.
    pub addresses: Vec<DrainingStatus>,
    /// Flows that were ended at both ends.
    pub ended: u64,
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    /// What failed, on what.
    pub reason: String,
    /// What to do next; empty when the diagnostics say it.
    pub remedy: String,
    /// Whether the input was at fault (exit code 2) and not the execution (exit code 1).
    pub usage: bool,
    /// What is wrong with a file.
    pub diagnostics: Diagnostics,
    /// Whether trying again may help.
    #[serde(default)]
    pub cause: Cause,
}

/// What a failure is due to, where that tells whoever asked what to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Something else.
    #[default]
    Other,
    /// The store cannot be had now; nothing was changed.
    Unavailable,
    /// The store was lost while it was told: whether something was changed shows when it answers.
    Unknown,
    /// Somebody else has changed the configuration meanwhile.
    Conflict,
}

impl Failure {
    /// Something did not work.
    pub fn failed(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
            usage: false,
            diagnostics: Diagnostics::default(),
            cause: Cause::Other,
        }
    }

    /// The same, with its cause.
    pub fn because_of(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// Something that was asked for makes no sense.
    pub fn usage(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::failed(reason, remedy)
        }
    }

    /// A file is not valid.
    pub fn invalid(file: &str, diagnostics: Diagnostics) -> Self {
        let errors = diagnostics
            .0
            .iter()
            .filter(|d| d.severity == crate::diagnostic::Severity::Error)
            .count();
        let plural = if errors == 1 { "error" } else { "errors" };
        Self {
            reason: format!("{file} has {errors} {plural}; nothing was changed"),
            remedy: String::new(),
            usage: true,
            diagnostics,
            cause: Cause::Other,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.diagnostics.is_empty() {
            writeln!(f, "{}", self.diagnostics)?;
        }
        write!(f, "error: {}", self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  = {}", self.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_objects_with_an_op() {
        let request = Request::ZoneSet {
            zone: "z".into(),
            enabled: true,
            pool: None,
            force: false,
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(
            line,
            r#"{"op":"zone_set","zone":"z","enabled":true,"pool":null}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"op":"status"}"#).unwrap(),
            Request::Status
        );
        assert!(serde_json::from_str::<Request>(r#"{"op":"format_disk"}"#).is_err());
    }

    #[test]
    fn a_failure_prints_reason_and_remedy() {
        assert_eq!(Failure::failed("no", "do").to_string(), "error: no\n  = do");
    }
}
