//! New connections all the time: each of some addresses behind each server begins one after the other, at a steady pace,
//! whatever became of those before.
//!
//! So it is not the retransmission of a SYN (after a second, after three) that tells when new connections succeed again:
//! each attempt has a socket and a port of its own, hence a slice, a way back and a server of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    sys::{
        epoll::EpollFlags,
        socket::{MsgFlags, SockType, recv, send},
    },
};

use super::{Cities, ORIGINS, POOLS, SERVERS, crowd};
use crate::{
    client::socket::{Maker, Poller, error_of, name_of},
    origin::ECHO_PORT,
    wait,
};

/// How long the thread sleeps at most.
const POLL: Duration = Duration::from_millis(5);
/// Addresses of each zone behind each server: they are not all sent to the same server.
const ADDRESSES: usize = 2;

/// How attempts are made.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two of one address.
    pub period: Duration,
    /// How long one may take; then it has failed.
    pub patience: Duration,
}

/// One attempt to connect and to get a byte back, that is over.
#[derive(Clone, Debug)]
struct Attempt {
    /// Whose.
    address: IpAddr,
    /// When it began.
    began: Instant,
    /// When it had succeeded or failed.
    ended: Instant,
    /// Why it failed.
    error: Option<String>,
}

/// One that is not over.
struct Open {
    socket: OwnedFd,
    address: IpAddr,
    began: Instant,
    asked: bool,
}

/// What is known so far.
#[derive(Debug, Default)]
struct Known {
    over: Vec<Attempt>,
    /// Everything that began before this is over.
    complete: Option<Instant>,
}

/// New connections from behind one server.
#[derive(Debug)]
struct Prober {
    server: usize,
    addresses: Vec<IpAddr>,
    known: Arc<Mutex<Known>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// All of them; they end with the value.
#[derive(Debug)]
pub struct Attempts {
    probers: Vec<Prober>,
    pace: Pace,
    stop: Arc<AtomicBool>,
}

/// What became of new connections that began in some time.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Attempts.
    pub attempts: usize,
    /// Those that failed.
    pub failed: usize,
    /// The longest time in which no attempt of an address succeeded, of any address behind any server: from the beginning
    /// or one success to the next.
    pub longest: Duration,
    /// Whose that was.
    pub whose: Option<(&'static str, IpAddr)>,
    /// How many failed in which way.
    pub errors: BTreeMap<String, usize>,
    /// When the first and the last one began that failed, since the beginning.
    pub when: Option<(Duration, Duration)>,
}

/// Whose attempts they are, behind each server.
fn probing() -> Vec<IpAddr> {
    let all = (1..=POOLS).flat_map(|zone| {
        let some = crowd(zone).into_iter().skip(1).step_by(3);
        some.take(ADDRESSES).map(IpAddr::from)
    });
    all.collect()
}

impl Attempts {
    /// Begins with them.
    #[must_use]
    pub fn start(lab: &Cities, pace: Pace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let probers = (0..SERVERS.len())
            .map(|server| {
                let known = Arc::new(Mutex::new(Known::default()));
                let (node, told, stop) =
                    (lab.client(server), Arc::clone(&known), Arc::clone(&stop));
                let addresses = probing();
                let all = addresses.clone();
                let thread = thread::spawn(move || node.run(|| run(&all, pace, &told, &stop))?);
                Prober {
                    server,
                    addresses,
                    known,
                    thread: Some(thread),
                }
            })
            .collect();
        Self {
            probers,
            pace,
            stop,
        }
    }

    /// What became of those that began in some time, without those from behind some servers; waits until they are over.
    ///
    /// # Errors
    /// When a prober has ended.
    pub fn news(&self, from: Instant, to: Instant, without: &[usize]) -> Result<News> {
        let mut news = News::default();
        for prober in &self.probers {
            if without.contains(&prober.server) {
                continue;
            }
            let name = SERVERS[prober.server].0;
            wait::until_true("attempts to be over", self.pace.patience * 12, || {
                let known = prober.known.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(known.complete.is_some_and(|until| until >= to))
            })
            .with_context(|| format!("those from behind {name}"))?;
            let known = prober.known.lock().unwrap_or_else(PoisonError::into_inner);
            let mut last: BTreeMap<IpAddr, Vec<Instant>> = BTreeMap::new();
            for one in &known.over {
                if one.began < from || one.began >= to {
                    continue;
                }
                let ends = last.entry(one.address).or_default();
                news.attempts += 1;
                match &one.error {
                    None => ends.push(one.ended),
                    Some(error) => {
                        news.failed += 1;
                        let at = one.began - from;
                        let (first, last) = news.when.unwrap_or((at, at));
                        news.when = Some((first.min(at), last.max(at)));
                        *news.errors.entry(error.clone()).or_default() += 1;
                    }
                }
            }
            for (address, mut ends) in last {
                ends.sort_unstable();
                let mut before = from;
                // The last ones may have begun at the very end: nothing can be said of what follows.
                for end in ends.into_iter().chain([to]) {
                    let gap = end.saturating_duration_since(before);
                    if gap > news.longest {
                        news.longest = gap;
                        news.whose = Some((name, address));
                    }
                    before = before.max(end);
                }
            }
        }
        Ok(news)
    }

    /// Waits until an attempt of each address has succeeded that began after this, but for those from behind some servers.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_success(&self, from: Instant, without: &[usize], limit: Duration) -> Result<()> {
        let mut missing = BTreeSet::new();
        let all = self.probers.iter();
        let all: Vec<&Prober> = all.filter(|one| !without.contains(&one.server)).collect();
        let done = wait::until_true("new connections of each address", limit, || {
            missing.clear();
            for prober in &all {
                let known = prober.known.lock().unwrap_or_else(PoisonError::into_inner);
                missing.extend(prober.addresses.iter().map(|one| (prober.server, *one)));
                for one in &known.over {
                    if one.began >= from && one.error.is_none() {
                        missing.remove(&(prober.server, one.address));
                    }
                }
            }
            Ok(missing.is_empty())
        });
        done.with_context(|| format!("none from behind server, by address: {missing:?}"))
    }

    /// Ends them.
    ///
    /// # Errors
    /// When one could not go on.
    pub fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for prober in &mut self.probers {
            if let Some(thread) = prober.thread.take() {
                thread.join().map_err(|_| anyhow!("a prober panicked"))??;
            }
        }
        Ok(())
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Begins attempts of these addresses, to one origin after the other, and follows them.
fn run(addresses: &[IpAddr], pace: Pace, told: &Mutex<Known>, stop: &AtomicBool) -> Result<()> {
    let mut poller = Poller::new()?;
    let mut open: HashMap<i32, Open> = HashMap::new();
    // Numbers of sockets in the order in which they began; those that are over are skipped.
    let mut order: VecDeque<(i32, Instant)> = VecDeque::new();
    let pause = pace.period / u32::try_from(addresses.len())?;
    let mut next = Instant::now();
    let mut turns = addresses.iter().cycle().zip(1..).map(|(address, turn)| {
        let (_, origin) = ORIGINS[turn / addresses.len() % ORIGINS.len()];
        (*address, SocketAddr::from((origin, ECHO_PORT)))
    });
    while !stop.load(Ordering::SeqCst) {
        let mut over = Vec::new();
        let now = Instant::now();
        if now >= next {
            // What could not be begun in time is not caught up.
            next = (next + pause).max(now.checked_sub(pace.period).unwrap_or(now));
            let (address, to) = turns.next().context("no addresses")?;
            let maker = Maker {
                mark: None,
                bind: Some(address),
            };
            let began = Instant::now();
            match maker.connect(SockType::Stream, to) {
                Ok(socket) => {
                    poller.add(&socket, EpollFlags::EPOLLOUT)?;
                    order.push_back((socket.as_raw_fd(), began));
                    let one = Open {
                        socket,
                        address,
                        began,
                        asked: false,
                    };
                    open.insert(one.socket.as_raw_fd(), one);
                }
                Err(error) => over.push(ended(address, began, Some(name_of(error)))),
            }
        }
        let left = next.saturating_duration_since(Instant::now()).min(POLL);
        for (number, _) in poller.wait(left)? {
            let Some(one) = open.get_mut(&number) else {
                continue;
            };
            if let Some(done) = one.step(&poller)? {
                over.push(ended(one.address, one.began, done.err().map(name_of)));
                open.remove(&number);
            }
        }
        while let Some((number, began)) = order.front().copied() {
            let is_open = open.get(&number).is_some_and(|one| one.began == began);
            if is_open {
                if began.elapsed() < pace.patience {
                    break;
                }
                if let Some(one) = open.remove(&number) {
                    over.push(ended(one.address, began, Some(name_of(Errno::ETIMEDOUT))));
                }
            }
            order.pop_front();
        }
        let complete = order.front().map_or_else(Instant::now, |(_, began)| *began);
        let mut known = told.lock().unwrap_or_else(PoisonError::into_inner);
        known.over.append(&mut over);
        known.complete = Some(complete);
    }
    Ok(())
}

fn ended(address: IpAddr, began: Instant, error: Option<String>) -> Attempt {
    Attempt {
        address,
        began,
        ended: Instant::now(),
        error,
    }
}

impl Open {
    /// Goes on; says what came of it if it is over.
    fn step(&mut self, poller: &Poller) -> Result<Option<nix::Result<()>>> {
        if let Some(error) = error_of(&self.socket) {
            return Ok(Some(Err(error)));
        }
        let number = self.socket.as_raw_fd();
        if !self.asked {
            return match send(number, b"?", MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {
                    self.asked = true;
                    poller.modify(&self.socket, EpollFlags::EPOLLIN)?;
                    Ok(None)
                }
                Err(Errno::EAGAIN) => Ok(None),
                Err(error) => Ok(Some(Err(error))),
            };
        }
        Ok(match recv(number, &mut [0], MsgFlags::empty()) {
            Ok(1) => Some(Ok(())),
            Ok(_) => Some(Err(Errno::ECONNRESET)),
            Err(Errno::EAGAIN) => None,
            Err(error) => Some(Err(error)),
        })
    }
}
