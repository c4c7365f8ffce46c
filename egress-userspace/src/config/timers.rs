//! `[timers]`: how long flows live without packets (NAT-7) and ports rest (CAP-7).

use std::time::Duration;

use crate::document::Table;

/// A week: longer than any idle connection is worth its port.
const MAX_SECONDS: u32 = 7 * 24 * 3600;

/// Idle times and holds, in whole seconds from 1 to 604,800, and whether their end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// An established TCP connection without a packet ends after this; 7,440 s (RFC 5382 REQ-5: at least
    /// 2 hours 4 minutes).
    pub tcp_established: Duration,
    /// A TCP connection that is opening ends after this; 240 s (RFC 5382 REQ-5: at least 4 minutes).
    pub tcp_transitory: Duration,
    /// Late packets of a closed TCP connection pass for this long, unless its port is taken before; 120 s.
    pub tcp_closing: Duration,
    /// A closed flow's port rests this long, then anybody may take it; 120 s. Before that only a connection that
    /// an origin in TIME_WAIT would accept, or anybody if no other port is left.
    pub quarantine: Duration,
    /// A UDP flow without a packet ends after this; 300 s (RFC 4787 REQ-5: at least 2 minutes).
    pub udp: Duration,
    /// Whether both ends of an established connection that is ended for its idleness get a RST; true. Otherwise
    /// the origin hears nothing, and the inside hears of it with its next packet.
    pub reset_idle: bool,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(7440),
            tcp_transitory: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(120),
            quarantine: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            reset_idle: true,
        }
    }
}

impl Timers {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let timers = Self {
            tcp_established: seconds(
                &mut table,
                "tcp_established",
                "tcp_established = 7440",
                Some((7440, "RFC 5382 REQ-5")),
                default.tcp_established,
            ),
            tcp_transitory: seconds(
                &mut table,
                "tcp_transitory",
                "tcp_transitory = 240",
                Some((240, "RFC 5382 REQ-5")),
                default.tcp_transitory,
            ),
            tcp_closing: seconds(
                &mut table,
                "tcp_closing",
                "tcp_closing = 120",
                None,
                default.tcp_closing,
            ),
            quarantine: seconds(
                &mut table,
                "quarantine",
                "quarantine = 120",
                None,
                default.quarantine,
            ),
            udp: seconds(
                &mut table,
                "udp",
                "udp = 300",
                Some((120, "RFC 4787 REQ-5")),
                default.udp,
            ),
            reset_idle: table
                .get("reset_idle", "reset_idle = true")
                .and_then(|value| value.boolean())
                .unwrap_or(default.reset_idle),
        };
        table.finish();
        timers
    }
}

/// A duration; one below the RFC's minimum is taken, with a warning, because laboratories need short ones.
fn seconds(
    table: &mut Table<'_, '_>,
    key: &'static str,
    example: &'static str,
    minimum: Option<(u32, &str)>,
    default: Duration,
) -> Duration {
    let Some(value) = table.get(key, example) else {
        return default;
    };
    let Some(seconds) = value.integer(1..=MAX_SECONDS, "seconds") else {
        return default;
    };
    if let Some((least, source)) = minimum
        && seconds < least
    {
        value.report().warning(
            &value.span(),
            format!(
                "`{key}` is below the {least} seconds of {source}: idle connections will break"
            ),
            format!("outside a laboratory, use at least {least}"),
        );
    }
    Duration::from_secs(u64::from(seconds))
}
