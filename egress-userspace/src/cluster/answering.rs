//! Answering the other servers, from the file that utilization is kept in.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Line, MAX_LINE, MAX_ROWS, MAX_SECONDS, PATIENCE, Question, Trust, WHOLE};
use crate::controller::Service;
use crate::utilization::History;

/// Servers that are answered at once; others are hung up on, and say so to who asked them.
const AT_ONCE: usize = 4;
/// How often it looks whether somebody asks.
const POLL: Duration = Duration::from_millis(50);
/// How often it looks which address is its own.
const LOOK: Duration = Duration::from_secs(1);

/// A thread that answers until it is dropped.
#[derive(Debug)]
pub struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What answers are made of.
#[derive(Debug)]
struct Answerer {
    tls: Arc<ServerConfig>,
    server: String,
    history: PathBuf,
    busy: AtomicUsize,
}

impl Answering {
    /// Begins to answer at this server's tunnel address, whichever the resources say that it is.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(trust: &Trust, service: Arc<Service>, history: &Path) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let answerer = Arc::new(Answerer {
            tls: Arc::clone(&trust.server),
            server: service.controller().config().server.name.clone(),
            history: history.to_owned(),
            busy: AtomicUsize::new(0),
        });
        let port = trust.port;
        let thread = thread::Builder::new()
            .name("cluster".into())
            .spawn(move || run(&answerer, &service, port, &ends))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(answerer: &Arc<Answerer>, service: &Service, port: u16, stop: &AtomicBool) {
    let mut listener: Option<(IpAddr, TcpListener)> = None;
    let mut others: Vec<IpAddr> = Vec::new();
    let mut look = Instant::now();
    let mut said = false;
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= look {
            look = Instant::now() + LOOK;
            let own = {
                let controller = service.controller();
                let tunnel = controller.desired().tunnel.as_ref();
                others.clear();
                others.extend(
                    tunnel
                        .iter()
                        .flat_map(|one| &one.peers)
                        .map(|one| one.address),
                );
                tunnel.map(|tunnel| tunnel.own)
            };
            if listener.as_ref().map(|(at, _)| *at) != own {
                listener = None;
                let bound = own.map(|own| bind(own, port).map(|bound| (own, bound)));
                match bound.transpose() {
                    Ok(bound) => (listener, said) = (bound, false),
                    Err(error) if !said => {
                        said = true;
                        tracing::warn!(%error, ?own, "the other servers cannot ask this one for its utilization");
                    }
                    Err(_) => {}
                }
            }
        }
        let asked = listener.as_ref().and_then(|(_, bound)| bound.accept().ok());
        match asked {
            // Nobody else has any business here.
            Some((socket, from)) if others.contains(&from.ip()) => answerer.begin(socket),
            Some(_) => {}
            None => thread::sleep(POLL),
        }
    }
}

fn bind(own: IpAddr, port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::new(own, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Answerer {
    /// Answers on a thread of its own, if there are not too many.
    fn begin(self: &Arc<Self>, socket: TcpStream) {
        if self.busy.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
            self.busy.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let answerer = Arc::clone(self);
        let begun = thread::Builder::new()
            .name("cluster-answer".into())
            .spawn(move || {
                if let Err(error) = answerer.answer(socket) {
                    tracing::debug!(%error, "another server was not answered");
                }
                answerer.busy.fetch_sub(1, Ordering::Relaxed);
            });
        if begun.is_err() {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn answer(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let connection = ServerConnection::new(Arc::clone(&self.tls)).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, socket));
        let mut line = String::new();
        (&mut stream).take(MAX_LINE).read_line(&mut line)?;
        let question: Question = serde_json::from_str(&line)?;
        let mut out = BufWriter::with_capacity(1 << 15, stream.into_inner());
        write(&mut out, &Line::Server(self.server.clone()))?;
        let last = if question.server == self.server {
            self.rows(&question, &mut out)?
        } else {
            Line::Error(format!("this is {}", self.server))
        };
        write(&mut out, &last)?;
        out.flush()?;
        let stream = out.get_mut();
        stream.conn.send_close_notify();
        stream.flush()
    }

    /// Writes the rows; returns what the last line is.
    fn rows(&self, question: &Question, out: &mut impl io::Write) -> io::Result<Line> {
        let end = Instant::now() + WHOLE;
        let (mut rows, mut outcome) = (0, Ok(()));
        let mut room = if question.version < 2 { 0 } else { MAX_SECONDS };
        let visited = History::open(&self.history).and_then(|history| {
            let (from, to) = (question.from, question.to);
            history.visit(&question.account, from, to, &mut |mut row| {
                rows += 1;
                match room.checked_sub(row.seconds.len()) {
                    Some(left) => room = left,
                    None => row.seconds.clear(),
                }
                let enough = rows > MAX_ROWS || Instant::now() > end;
                if !enough {
                    outcome = write(out, &Line::Row(row));
                }
                !enough && outcome.is_ok()
            })
        });
        outcome?;
        Ok(match visited {
            Err(error) => {
                tracing::error!(%error, "the history of utilization cannot be read");
                Line::Error("its history cannot be read; its log says why".into())
            }
            Ok(()) if rows > MAX_ROWS || Instant::now() > end => {
                Line::Error("it has too much of that: ask for a shorter time".into())
            }
            Ok(()) => Line::End(rows),
        })
    }
}

fn write(out: &mut impl io::Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
