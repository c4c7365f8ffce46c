//! Short connections: connect, request, read the answer, close.

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
    Churn, Closer, Outcome, Paced, Times,
    socket::{Maker, Poller, error_of, is_refusal, name_of},
};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(20);
/// The same where connections begin at a rate.
const SHORT: Duration = Duration::from_millis(1);
/// A connection that takes longer is stuck.
const STUCK: Duration = Duration::from_secs(20);
/// The origin closes after its answer.
const SERVER_CLOSES: &[u8] = b"GET /ip HTTP/1.0\r\n\r\n";
/// The origin waits for the client to close.
const CLIENT_CLOSES: &[u8] = b"GET /ip HTTP/1.1\r\nHost: lab\r\n\r\n";

/// A connection on its way.
struct Run {
    socket: OwnedFd,
    began: Instant,
    asked: bool,
    answer: Vec<u8>,
}

/// Churns for the time asked.
///
/// # Errors
/// When polling fails.
pub fn churn(maker: &Maker, churn: &Churn) -> Result<Outcome> {
    run(maker, churn, None)
}

/// Churns at a rate, from many addresses.
///
/// # Errors
/// When polling fails.
pub fn paced(maker: &Maker, paced: &Paced) -> Result<Outcome> {
    run(maker, &paced.churn, Some(paced))
}

fn run(maker: &Maker, churn: &Churn, paced: Option<&Paced>) -> Result<Outcome> {
    let start = Instant::now();
    let end = start + Duration::from_millis(churn.duration_ms);
    let mut poller = Poller::new()?;
    let mut runs: HashMap<RawFd, Run> = HashMap::new();
    let mut outcome = Outcome::default();
    let mut times = Vec::new();
    let mut connects = Vec::new();
    let mut look = start + TICK;
    let mut begun = 0;
    // On a busy machine the time may be up before the first one has come to an end.
    while Instant::now() < end || is_nothing(&outcome) {
        while runs.len() < churn.parallel.max(1)
            && paced.is_none_or(|paced| is_due(paced, start, begun))
        {
            let maker = match paced {
                Some(paced) => Maker {
                    bind: Some(paced.from.address(begun)),
                    ..*maker
                },
                None => *maker,
            };
            begun += 1;
            // A connection within one machine may stand before the call returns.
            let began = Instant::now();
            match maker.connect(SockType::Stream, churn.target) {
                Ok(socket) => {
                    poller.add(&socket, EpollFlags::EPOLLOUT)?;
                    let run = Run {
                        socket,
                        began,
                        asked: false,
                        answer: Vec::new(),
                    };
                    runs.insert(run.socket.as_raw_fd(), run);
                }
                Err(error) => {
                    note(&mut outcome, error);
                    break;
                }
            }
        }
        let pause = if paced.is_some() { SHORT } else { TICK };
        for (number, _) in poller.wait(pause)? {
            let Some(run) = runs.get_mut(&number) else {
                continue;
            };
            if !run.asked {
                connects.push(run.began.elapsed());
            }
            match step(run, churn.closer, &poller) {
                Ok(None) => continue,
                Ok(Some(seen)) => {
                    outcome.succeeded += 1;
                    times.push(run.began.elapsed());
                    *outcome.seen.entry(seen).or_default() += 1;
                }
                Err(error) => note(&mut outcome, error),
            }
            runs.remove(&number);
        }
        if Instant::now() >= look {
            let before = runs.len();
            runs.retain(|_, run| run.began.elapsed() < STUCK);
            outcome.timed_out += before - runs.len();
            look = Instant::now() + TICK;
        }
    }
    Ok(Outcome {
        success_us: Times::of(&times),
        connect_us: Times::of(&connects),
        elapsed_us: start.elapsed().as_micros() as u64,
        ..outcome
    })
}

/// Whether nothing has come of any connection yet; what is stuck has timed out in the end.
fn is_nothing(outcome: &Outcome) -> bool {
    outcome.succeeded + outcome.timed_out + outcome.refusals() + outcome.failures() == 0
}

/// Whether the next connection may begin.
fn is_due(paced: &Paced, start: Instant, begun: u64) -> bool {
    start.elapsed().as_secs_f64() * paced.rate as f64 >= begun as f64
}

/// Takes a connection as far as it goes; the address the origin saw when it is complete.
fn step(run: &mut Run, closer: Closer, poller: &Poller) -> nix::Result<Option<String>> {
    let fd = run.socket.as_raw_fd();
    if !run.asked {
        if let Some(error) = error_of(&run.socket) {
            return Err(error);
        }
        let request = if closer == Closer::Server {
            SERVER_CLOSES
        } else {
            CLIENT_CLOSES
        };
        send(fd, request, MsgFlags::MSG_NOSIGNAL)?;
        run.asked = true;
        poller
            .modify(&run.socket, EpollFlags::EPOLLIN)
            .map_err(|_| Errno::EIO)?;
        return Ok(None);
    }
    let mut buffer = [0; 512];
    let got = match recv(fd, &mut buffer, MsgFlags::empty()) {
        Err(Errno::EAGAIN) => return Ok(None),
        other => other?,
    };
    run.answer.extend_from_slice(&buffer[..got]);
    let complete = match closer {
        Closer::Server => got == 0,
        Closer::Client => {
            run.answer.ends_with(b"\n") && body(&run.answer).is_some_and(|body| !body.is_empty())
        }
    };
    if got == 0 && !complete {
        return Err(Errno::ECONNRESET);
    }
    Ok(complete.then(|| body(&run.answer).unwrap_or_default()))
}

fn body(answer: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(answer).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.trim().to_owned())
}

fn note(outcome: &mut Outcome, error: Errno) {
    let table = if is_refusal(error) {
        &mut outcome.refused
    } else {
        &mut outcome.failed
    };
    *table.entry(name_of(error)).or_default() += 1;
}
