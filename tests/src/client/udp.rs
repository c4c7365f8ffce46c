//! UDP flows: a datagram each, answered by the address that the origin saw. Any machine may lose one, so whoever waits
//! for long asks again, as those do whose programs this stands for.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    sys::{
        epoll::EpollFlags,
        socket::{MsgFlags, SockType, recv, send},
    },
};

use super::{
    Outcome, Times, Udp, WINDOW,
    socket::{Maker, Poller, is_refusal, name_of},
};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(20);
/// So long an answer is waited for until the datagram is sent again.
const PATIENCE: Duration = Duration::from_secs(2);
const QUESTION: &[u8] = b"who am i\n";

/// A flow without an answer.
struct Asked {
    socket: OwnedFd,
    began: Instant,
    last: Instant,
}

/// Opens the flows and waits for their answers; sockets that are to be kept go to `kept`.
///
/// # Errors
/// When polling fails.
pub fn udp(maker: &Maker, request: &Udp, kept: &mut Vec<OwnedFd>) -> Result<Outcome> {
    let start = Instant::now();
    let timeout = Duration::from_millis(request.timeout_ms);
    let mut poller = Poller::new()?;
    let mut waiting: HashMap<RawFd, Asked> = HashMap::new();
    let mut outcome = Outcome::default();
    let (mut successes, mut refusals) = (Vec::new(), Vec::new());
    let mut started = 0;
    while started < request.flows || !waiting.is_empty() {
        while started < request.flows && waiting.len() < WINDOW {
            started += 1;
            let began = Instant::now();
            let sent = maker
                .connect(SockType::Datagram, request.target)
                .and_then(|socket| {
                    send(socket.as_raw_fd(), QUESTION, MsgFlags::MSG_NOSIGNAL)?;
                    Ok(socket)
                });
            match sent {
                Ok(socket) => {
                    poller.add(&socket, EpollFlags::EPOLLIN)?;
                    let asked = Asked {
                        socket,
                        began,
                        last: began,
                    };
                    waiting.insert(asked.socket.as_raw_fd(), asked);
                }
                Err(error) => note(&mut outcome, &mut refusals, error, began),
            }
        }
        for (number, _) in poller.wait(TICK)? {
            let mut answer = [0; 128];
            let result = recv(number, &mut answer, MsgFlags::empty());
            if result == Err(Errno::EAGAIN) {
                continue;
            }
            let Some(Asked { socket, began, .. }) = waiting.remove(&number) else {
                continue;
            };
            match result {
                Ok(length) => {
                    outcome.succeeded += 1;
                    successes.push(began.elapsed());
                    let seen = String::from_utf8_lossy(&answer[..length]);
                    let address = seen
                        .trim()
                        .rsplit_once(':')
                        .map_or(seen.as_ref(), |(address, _)| address);
                    *outcome
                        .seen
                        .entry(address.trim_matches(['[', ']']).to_owned())
                        .or_default() += 1;
                    if request.keep {
                        poller.remove(&socket)?;
                        kept.push(socket);
                    }
                }
                Err(error) => note(&mut outcome, &mut refusals, error, began),
            }
        }
        let before = waiting.len();
        waiting.retain(|_, asked| asked.began.elapsed() < timeout);
        outcome.timed_out += before - waiting.len();
        let mut ended = Vec::new();
        for (number, asked) in &mut waiting {
            if asked.last.elapsed() >= PATIENCE {
                asked.last = Instant::now();
                // The error that the first one has met is told by the next call, whichever that is.
                if let Err(error) = send(*number, QUESTION, MsgFlags::MSG_NOSIGNAL) {
                    ended.push((*number, error));
                }
            }
        }
        for (number, error) in ended {
            if let Some(asked) = waiting.remove(&number) {
                note(&mut outcome, &mut refusals, error, asked.began);
            }
        }
    }
    Ok(Outcome {
        success_us: Times::of(&successes),
        refusal_us: Times::of(&refusals),
        elapsed_us: start.elapsed().as_micros() as u64,
        held: kept.len(),
        ..outcome
    })
}

fn note(outcome: &mut Outcome, refusals: &mut Vec<Duration>, error: Errno, began: Instant) {
    let table = if is_refusal(error) {
        refusals.push(began.elapsed());
        &mut outcome.refused
    } else {
        &mut outcome.failed
    };
    *table.entry(name_of(error)).or_default() += 1;
}
