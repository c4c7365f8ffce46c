//! Packets of a flood: well-formed, and sent by somebody who has not been asked.

use std::{
    net::SocketAddrV4,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Result, anyhow};

use crate::{
    netns::Namespace,
    odd::{self, Path, Sender, checksum, checksum_transport, ip},
};

/// Frames sent at a stretch.
const BATCH: usize = 256;

/// The link-layer addresses a flood goes from and to.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The sender's.
    pub from: [u8; 6],
    /// The gateway's.
    pub to: [u8; 6],
}

impl Hop {
    /// From an interface of a node to one of the gateway's.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn between(from: (&Namespace, &str), to: (&Namespace, &str)) -> Result<Self> {
        Ok(Self {
            from: odd::mac(from.0, from.1)?,
            to: odd::mac(to.0, to.1)?,
        })
    }

    fn path(&self, from: SocketAddrV4, to: SocketAddrV4) -> Path {
        Path {
            from: self.from,
            to: self.to,
            source: *from.ip(),
            destination: *to.ip(),
        }
    }

    /// A TCP segment without data: flags as in its header.
    #[must_use]
    pub fn segment(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
        numbers: (u32, u32),
    ) -> Vec<u8> {
        let path = self.path(from, to);
        let mut body = segment(from, to, flags, numbers);
        checksum_transport(&path, 6, &mut body, 16);
        ip(&path, 6, 0, &body)
    }

    /// An empty datagram, which goes without a checksum.
    #[must_use]
    pub fn datagram(&self, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
        let mut body = Vec::from(from.port().to_be_bytes());
        body.extend(to.port().to_be_bytes());
        body.extend([0, 8, 0, 0]);
        ip(&self.path(from, to), 17, 0, &body)
    }

    /// An ICMP error of some router about a segment that went from one end to another.
    #[must_use]
    pub fn error(
        &self,
        router: SocketAddrV4,
        (kind, code): (u8, u8),
        (from, to): (SocketAddrV4, SocketAddrV4),
        numbers: (u32, u32),
    ) -> Vec<u8> {
        const ACK: u8 = 0x10;
        const ETHERNET: usize = 14;

        let quoted = self.segment(from, to, ACK, numbers);
        let mut body = vec![kind, code, 0, 0, 0, 0, 5, 0];
        body.extend(quoted.iter().skip(ETHERNET));
        let sum = checksum(&body, 0);
        body.splice(2..4, sum.to_be_bytes());
        ip(&self.path(router, from), 1, 0, &body)
    }
}

fn segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8, numbers: (u32, u32)) -> Vec<u8> {
    let mut body = Vec::from(from.port().to_be_bytes());
    body.extend(to.port().to_be_bytes());
    body.extend(numbers.0.to_be_bytes());
    body.extend(numbers.1.to_be_bytes());
    body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    body
}

/// Sends what `next` makes until `work` is done; returns what that says, and how many frames went out.
///
/// # Errors
/// When `work` fails, or the interface does not exist.
pub fn during<T>(
    (node, interface): (&Namespace, &str),
    mut next: impl FnMut() -> Vec<u8> + Send,
    work: impl FnOnce(&AtomicU64) -> Result<T>,
) -> Result<(T, u64)> {
    let sender = Sender::open(node, interface)?;
    let over = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let frames: Vec<_> = (0..BATCH).map(|_| next()).collect();
                sent.fetch_add(sender.send(&frames) as u64, Ordering::Relaxed);
            }
        });
        let said = work(&sent);
        over.store(true, Ordering::Relaxed);
        flooding.join().map_err(|_| anyhow!("the flood panicked"))?;
        Ok((said?, sent.load(Ordering::Relaxed)))
    })
}
