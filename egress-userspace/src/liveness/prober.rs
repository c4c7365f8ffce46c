//! Asking the other servers, twice a second.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use egress_common::checksum;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use super::record::Record;
use super::{Health, Healths};
use crate::store::random;

/// Time between two probes of a server.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long the thread waits for an answer before it looks at anything else.
const POLL: Duration = Duration::from_millis(50);
/// Bytes of a message: the header, and when it was sent.
const MESSAGE: usize = 8 + 16;
/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443): a question and its answer.
const ECHO: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

/// Socket options (linux/icmp.h, linux/icmpv6.h).
const ICMP_FILTER: libc::c_int = 1;
const ICMP6_FILTER: libc::c_int = 1;

/// Whom to ask, and from which address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The own tunnel address; nobody is asked without.
    pub own: Option<IpAddr>,
    /// The others'.
    pub others: Vec<IpAddr>,
}

/// Asks until it is dropped.
pub struct Prober {
    watched: Arc<Mutex<Watched>>,
    healths: watch::Receiver<Healths>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts; nobody is asked yet.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, healths) = watch::channel(Healths::new());
        let (shared, ends) = (Arc::clone(&watched), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("liveness".into())
            .spawn(move || run(&shared, &ends, &sender))?;
        Ok(Self {
            watched,
            healths,
            stop,
            thread: Some(thread),
        })
    }

    /// These are asked from now on.
    pub fn watch(&self, watched: Watched) {
        let mut kept = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if *kept != watched {
            *kept = watched;
        }
    }

    /// What is known, whenever it changes.
    pub fn healths(&self) -> watch::Receiver<Healths> {
        self.healths.clone()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Mutex<Watched>, stop: &AtomicBool, sender: &watch::Sender<Healths>) {
    let mut round: Option<Round> = None;
    // While nobody can be asked: what was known, since when.
    let mut kept: Option<(Instant, BTreeMap<IpAddr, Record>)> = None;
    let mut said = false;
    while !stop.load(Ordering::Relaxed) {
        let watched = shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if round.as_ref().is_none_or(|round| round.watched != watched) {
            if let Some(round) = round.take() {
                kept = Some((Instant::now(), round.records));
            }
            round = match Round::new(watched, kept.as_ref()) {
                Ok(round) => {
                    (kept, said) = (None, false);
                    Some(round)
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(%error, "the other servers cannot be asked whether they are there");
                    }
                    said = true;
                    thread::sleep(INTERVAL);
                    continue;
                }
            };
        }
        let Some(round) = &mut round else { continue };
        round.step();
        let healths = round.healths();
        sender.send_if_modified(|known| {
            let changed = differs(known, &healths);
            if changed {
                *known = healths;
            }
            changed
        });
    }
}

/// Whether anybody should be told: any state, or a settled distance.
fn differs(known: &Healths, now: &Healths) -> bool {
    known != now
}

/// Asking the same servers over and over.
struct Round {
    watched: Watched,
    socket: Option<Socket>,
    begun: Instant,
    next: Instant,
    records: BTreeMap<IpAddr, Record>,
    /// Tells our own answers from those to others' questions.
    nonce: u64,
}

impl Round {
    fn new(
        watched: Watched,
        kept: Option<&(Instant, BTreeMap<IpAddr, Record>)>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let mut records = BTreeMap::new();
        if let Some((since, kept)) = kept {
            let still = kept.iter().filter(|(one, _)| watched.others.contains(one));
            let unasked = now.saturating_duration_since(*since);
            records.extend(still.map(|(one, record)| (*one, record.later(unasked))));
        }
        for address in &watched.others {
            records.entry(*address).or_insert_with(|| Record::new(now));
        }
        let socket = match watched.own {
            Some(own) if !watched.others.is_empty() => Some(open(own)?),
            _ => None,
        };
        let nonce = random()?;
        Ok(Self {
            watched,
            socket,
            begun: now,
            next: now,
            records,
            nonce: u64::from_ne_bytes(nonce),
        })
    }

    /// Asks if it is time, and takes the answers of the next moment.
    fn step(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + INTERVAL;
            for other in &self.watched.others {
                let message = self.question(now.duration_since(self.begun), *other);
                if let Some(socket) = &self.socket {
                    // One that cannot be sent is one that is not answered.
                    let _ = socket.send_to(&message, &SocketAddr::new(*other, 0).into());
                }
            }
        }
        match &self.socket {
            Some(socket) => {
                let mut buffer = [MaybeUninit::<u8>::uninit(); 256];
                // Whatever else comes: the next question is asked, and time is looked at.
                while now.elapsed() < POLL
                    && let Ok((length, from)) = socket.recv_from(&mut buffer)
                {
                    let bytes: Vec<u8> = buffer[..length]
                        .iter()
                        // SAFETY: the kernel has just written so many bytes.
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    let from = from.as_socket().map(|from| from.ip());
                    let sent = self.answer(&bytes);
                    let Some((from, sent)) = from.zip(sent) else {
                        continue;
                    };
                    let here = Instant::now();
                    let round_trip = here.duration_since(self.begun).saturating_sub(sent);
                    if let Some(record) = self.records.get_mut(&from) {
                        record.answered(here, round_trip);
                    }
                }
            }
            None => thread::sleep(POLL),
        }
        let now = Instant::now();
        let known = self.records.values().filter(|record| record.is_known());
        let known = known.count();
        for record in self.records.values_mut() {
            record.look(now, known > usize::from(record.is_known()));
        }
    }

    fn healths(&self) -> BTreeMap<IpAddr, Health> {
        let all = self.records.iter();
        all.map(|(address, record)| (*address, record.health()))
            .collect()
    }

    /// An echo request that says when it was sent.
    fn question(&self, sent: Duration, to: IpAddr) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[0] = ECHO[usize::from(to.is_ipv6())];
        message[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        let sent = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX);
        message[16..].copy_from_slice(&sent.to_be_bytes());
        // Of IPv6 the kernel makes the checksum.
        let checksum = !checksum::fold(checksum::sum(&message));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        message
    }

    /// When the question was sent that this answers, if it is one of ours.
    fn answer(&self, bytes: &[u8]) -> Option<Duration> {
        let ipv4 = self.watched.own?.is_ipv4();
        // Raw sockets of IPv4 show the IP header.
        let start = if ipv4 {
            usize::from(bytes.first()? & 15) * 4
        } else {
            0
        };
        let message = bytes.get(start..)?;
        if *message.first()? != REPLY[usize::from(!ipv4)] {
            return None;
        }
        let (nonce, sent) = message.get(8..24)?.split_first_chunk::<8>()?;
        let sent = sent.first_chunk::<8>()?;
        (u64::from_be_bytes(*nonce) == self.nonce)
            .then(|| Duration::from_nanos(u64::from_be_bytes(*sent)))
    }
}

fn open(own: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match own {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    filter(&socket, own)?;
    socket.bind(&SocketAddr::new(own, 0).into())?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket)
}

/// Lets in nothing but answers: what others ask this host is the kernel's.
fn filter(socket: &Socket, own: IpAddr) -> io::Result<()> {
    // A bit for each type that is kept out: 32 of ICMP (linux/icmp.h), 256 of ICMPv6 (RFC 3542, section 3.2).
    let mut types = [u32::MAX; 8];
    let reply = usize::from(REPLY[usize::from(own.is_ipv6())]);
    types[reply / 32] &= !(1 << (reply % 32));
    let (level, name, length) = match own {
        IpAddr::V4(_) => (libc::SOL_RAW, ICMP_FILTER, 4),
        IpAddr::V6(_) => (libc::IPPROTO_ICMPV6, ICMP6_FILTER, 32),
    };
    // SAFETY: the filter is ours and at least as long as we say.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            types.as_ptr().cast(),
            length,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
