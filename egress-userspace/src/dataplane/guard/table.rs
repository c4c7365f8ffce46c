//! Our tables in nftables, by name: made, held, removed (SAFE-6).
//!
//! A table that somebody holds is changed and removed by nobody else: `nft flush ruleset` steps over it. A holder
//! is a netlink socket, and a table usually goes with its holder; one that is made to *persist* (Linux 6.9) stays
//! and may be held again. So the daemon holds the guard while it lives, lets it go to change it by `nft`, and
//! leaves it to the next daemon. An older kernel does not know such tables, and makes ordinary ones.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::dataplane::api::DataPlaneError;
use crate::dataplane::netlink::{self, Message, Request};

/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`.
const NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`, in network byte order.
const FLAGS: u16 = 2;
/// `NFTA_GEN_ID` of another message.
const GENERATION: u16 = 1;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`.
const PERSIST: u32 = 4;
/// A child of ours that was being started has a copy of the holder's socket until it runs its program.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// What the kernel says of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    flags: u32,
}

impl Table {
    /// The table of this name, if there is one.
    pub(super) fn find(name: &str) -> Result<Option<Self>, DataPlaneError> {
        let request =
            Request::new(message(libc::NFT_MSG_GETTABLE), 0, &header(INET)).text(NAME, name);
        match request.send(libc::NETLINK_NETFILTER) {
            Ok(answer) => Ok(answer.first().map(Self::parse)),
            // EINVAL: nf_tables has never been used, so its module is not loaded.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                Ok(None)
            }
            Err(error) => Err(failed("asking the kernel for", name, error)),
        }
    }

    fn parse(message: &Message) -> Self {
        let attributes = message.body.get(header(0).len()..).unwrap_or_default();
        let flags = netlink::attributes(attributes)
            .find(|(kind, _)| *kind == FLAGS)
            .and_then(|(_, content)| netlink::number(content))
            .map_or(0, u32::from_be);
        Self { flags }
    }

    /// Makes an empty table if there is none; if wanted, one that can be held where the kernel knows such tables.
    pub(super) fn make(name: &str, to_be_held: bool) -> Result<(), DataPlaneError> {
        if Self::find(name)?.is_some() {
            return Ok(());
        }
        let make = |flags| {
            change(
                &socket()?,
                libc::NFT_MSG_NEWTABLE,
                libc::NLM_F_CREATE,
                name,
                Some(flags),
            )
        };
        match make(if to_be_held { PERSIST } else { 0 }) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                make(0)
            }
            other => other,
        }
        .map_err(|error| failed("making", name, error))
    }

    /// Removes a table; false if there was none.
    pub(super) fn remove(name: &str) -> Result<bool, DataPlaneError> {
        Self::wait_released(name)?;
        match socket().and_then(|socket| change(&socket, libc::NFT_MSG_DELTABLE, 0, name, None)) {
            Ok(()) => Ok(true),
            // EINVAL: as above.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                Ok(false)
            }
            Err(error) => Err(failed("removing", name, error)),
        }
    }

    /// Waits until nobody holds the table; if somebody goes on doing so, the next change of it says so.
    pub(super) fn wait_released(name: &str) -> Result<(), DataPlaneError> {
        let end = Instant::now() + RELEASE_LIMIT;
        while Self::find(name)?.is_some_and(|table| table.flags & OWNER != 0) {
            if Instant::now() > end {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether it was made to be held.
    pub(super) fn can_be_held(self) -> bool {
        self.flags & PERSIST != 0
    }
}

/// While this lives, nobody else changes or removes the table.
#[derive(Debug)]
pub(super) struct Hold(#[expect(dead_code, reason = "held, not used")] OwnedFd);

impl Hold {
    /// Takes hold of a table.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when it was not made to be held, `EPERM` when another one holds it.
    pub(super) fn take(name: &str) -> io::Result<Self> {
        let socket = socket()?;
        change(
            &socket,
            libc::NFT_MSG_NEWTABLE,
            0,
            name,
            Some(OWNER | PERSIST),
        )?;
        Ok(Self(socket))
    }
}

/// How many changes the ruleset of this namespace has seen; `None` where the kernel does not say.
pub(super) fn generation() -> Option<u32> {
    let answer = Request::new(message(libc::NFT_MSG_GETGEN), 0, &header(0))
        .send(libc::NETLINK_NETFILTER)
        .ok()?;
    let body = &answer.first()?.body;
    netlink::attributes(body.get(header(0).len()..)?)
        .find(|(kind, _)| *kind == GENERATION)
        .and_then(|(_, content)| netlink::number(content))
}

fn socket() -> io::Result<OwnedFd> {
    netlink::socket(libc::NETLINK_NETFILTER, 0)
}

/// One change of a table as a transaction.
fn change(
    socket: &OwnedFd,
    kind: libc::c_int,
    more: libc::c_int,
    name: &str,
    flags: Option<u32>,
) -> io::Result<()> {
    let acknowledged = (more | libc::NLM_F_ACK) as u16;
    let mut request = Request::new(message(kind), acknowledged, &header(INET)).text(NAME, name);
    if let Some(flags) = flags {
        request = request.attribute(FLAGS, &flags.to_be_bytes());
    }
    // The begin and the end of a transaction name the subsystem where other messages have a number of their own.
    let mut bracket = header(0);
    bracket[2..].copy_from_slice(&(libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes());
    let begin = Request::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &bracket);
    let end = Request::new(libc::NFNL_MSG_BATCH_END as u16, 0, &bracket);
    netlink::exchange(socket, [begin, request, end]).map(drop)
}

/// `struct nfgenmsg`: family, version, and no subsystem's own number.
const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn message(kind: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

fn failed(doing: &str, name: &str, error: io::Error) -> DataPlaneError {
    DataPlaneError::failed(format!("{doing} nftables table inet {name}"), error)
}
