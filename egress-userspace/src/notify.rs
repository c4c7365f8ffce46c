//! Telling systemd how far we are (sd_notify(3)): a datagram to the socket it names; nothing where there is none.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Hooks, guard and configuration are in force.
pub(crate) fn ready() {
    send("READY=1\nSTATUS=translating");
}

/// A reload began; [`ready`] says that it is over.
pub(crate) fn reloading() {
    // SAFETY: an all-zero timespec is valid, and the call only writes to it.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
        now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
    };
    send(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
}

/// It goes on: for a unit with `WatchdogSec`, to be said more often than that.
pub(crate) fn alive() {
    // Elsewhere nobody waits for it.
    if std::env::var_os("WATCHDOG_USEC").is_some() {
        send("WATCHDOG=1");
    }
}

/// The daemon ends; the data plane goes on.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::debug!(%error, "systemd could not be told");
    }
}
