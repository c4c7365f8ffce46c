//! When to look whether everything is still in place.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::netlink;
use super::rules;
use crate::dataplane::api::DataPlaneError;

/// Bit mask of the group in which changes of nftables are announced (`NFNLGRP_NFTABLES`).
const NFTABLES: u32 = 1 << (libc::NFNLGRP_NFTABLES - 1);
/// How long a change can go unnoticed that the kernel does not announce, such as a tcx link that is taken off.
const TICK: Duration = Duration::from_millis(100);
/// Announcements that follow each other are looked after together: others may change their rules all the time.
const BREATH: Duration = Duration::from_millis(10);

/// Says when to look whether everything is still in place.
///
/// At once when the kernel announces a change of any interface, queueing discipline, filter, routing or nftables rule, and
/// every tenth of a second for what it does not announce. The daemon calls
/// [`DataPlane::repair`](super::api::DataPlane::repair) after each.
pub struct Watcher {
    links: AsyncFd<OwnedFd>,
    rules: AsyncFd<OwnedFd>,
    ticks: Interval,
    last: Option<Instant>,
}

impl Watcher {
    /// Listens in this network namespace; needs a tokio runtime.
    pub fn new() -> Result<Self, DataPlaneError> {
        let links = (libc::RTMGRP_LINK | libc::RTMGRP_TC) as u32 | rules::GROUPS;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            links: listen(libc::NETLINK_ROUTE, links, "interfaces and ip rules")?,
            rules: listen(libc::NETLINK_NETFILTER, NFTABLES, "nftables")?,
            ticks,
            last: None,
        })
    }

    /// Waits for the next moment to look. Cancel-safe.
    pub async fn next(&mut self) {
        let breath = self.last.map_or_else(Instant::now, |last| last + BREATH);
        let announcement = async {
            sleep_until(breath).await;
            tokio::select! {
                () = heard(&self.links) => {}
                () = heard(&self.rules) => {}
            }
        };
        tokio::select! {
            _ = self.ticks.tick() => {}
            () = announcement => {}
        }
        // Whatever was announced by now is looked after now.
        drain(self.links.get_ref());
        drain(self.rules.get_ref());
        self.last = Some(Instant::now());
    }
}

fn listen(
    protocol: libc::c_int,
    groups: u32,
    to: &str,
) -> Result<AsyncFd<OwnedFd>, DataPlaneError> {
    netlink::socket(protocol, groups)
        .and_then(|socket| {
            set_nonblocking(&socket)?;
            // SAFETY: an `OwnedFd` gives out the descriptor it owns, and closes it when dropped.
            Ok(unsafe { AsyncFd::register(socket) }?)
        })
        .map_err(|error| DataPlaneError::failed(format!("listening to changes of {to}"), error))
}

async fn heard(socket: &AsyncFd<OwnedFd>) {
    if let Ok(mut guard) = socket.readable().await {
        guard.clear_ready();
    }
}

/// Reads and forgets all announcements: what counts is how things are now, not how they came to be so.
fn drain(socket: &OwnedFd) {
    let mut buffer = [0_u8; 8192];
    loop {
        // SAFETY: the buffer is ours and as long as we say.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        // An overrun is said once and is no reason to stop.
        if length == 0
            || length < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOBUFS)
        {
            return;
        }
    }
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: integers only, on a descriptor that is open.
    let result = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
