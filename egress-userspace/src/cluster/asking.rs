//! Asking the other servers for their part of what one of them is asked.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::{Line, MAX_LINE, MAX_ROWS, Other, PATIENCE, Question, Trust, VERSION, WHOLE};
use crate::controller::Service;
use crate::placed;
use crate::utilization::Row;

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(2);
/// Bytes of one-second values that are kept of all answers together; without them the sum of the peaks counts.
const MAX_SECONDS: usize = 128 << 20;
/// Servers that are asked at once.
const AT_ONCE: usize = 16;

/// A server whose part is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub server: String,
    /// Where it stands.
    pub data_center: String,
    /// Why.
    pub reason: String,
}

/// The other servers, while one request is answered.
#[derive(Debug)]
pub struct Asking {
    others: Vec<Other>,
    /// How they are asked, from which address.
    by: Result<(Arc<ClientConfig>, u16, IpAddr), &'static str>,
    missing: Mutex<BTreeMap<String, Missing>>,
}

impl Asking {
    /// Those that the resources tell of now; without `trust` none of them can be asked.
    pub fn of(service: &Service, trust: Option<&Trust>) -> Self {
        let (own_name, own) = {
            let controller = service.controller();
            let tunnel = controller.desired().tunnel.as_ref();
            let name = controller.config().server.name.clone();
            (name, tunnel.map(|tunnel| tunnel.own))
        };
        let resources = service.stored().resources();
        let others = placed::servers(&resources)
            .filter(|one| one.server.name != own_name)
            .map(|one| Other {
                name: one.server.name.clone(),
                data_center: one.data_center.name.clone(),
                address: one.server.tunnel,
            })
            .collect();
        let by = match (trust, own) {
            (None, _) => Err("this server asks nobody: it has no [cluster], or cannot use it"),
            (_, None) => Err("this server asks nobody: the resources give it no `tunnel` address"),
            (Some(trust), Some(own)) => Ok((Arc::clone(&trust.client), trust.port, own)),
        };
        Self {
            others,
            by,
            missing: Mutex::default(),
        }
    }

    /// What the others have of an account. Who does not answer is not asked again.
    pub fn rows(&self, account: &str, from: i64, to: i64) -> Vec<Row> {
        let mut missing = self.known();
        let asked: Vec<&Other> = self
            .others
            .iter()
            .filter(|other| !missing.contains_key(&other.name))
            .collect();
        let mut found = Vec::new();
        let mut room = MAX_SECONDS;
        for some in asked.chunks(AT_ONCE) {
            let answers: Vec<_> = thread::scope(|scope| {
                let begun = some
                    .iter()
                    .map(|other| scope.spawn(|| self.ask(other, account, from, to)));
                // All of them begin before the first is waited for.
                let begun: Vec<_> = begun.collect();
                begun
                    .into_iter()
                    .map(thread::ScopedJoinHandle::join)
                    .collect()
            });
            for (other, answer) in some.iter().zip(answers) {
                let answer = answer.unwrap_or_else(|_| Err("asking it failed".to_owned()));
                match answer {
                    Ok(mut rows) => {
                        for row in &mut rows {
                            match room.checked_sub(row.seconds.len()) {
                                Some(left) => room = left,
                                None => row.seconds = Vec::new(),
                            }
                        }
                        found.extend(rows);
                    }
                    Err(reason) => {
                        let one = Missing {
                            server: other.name.clone(),
                            data_center: other.data_center.clone(),
                            reason,
                        };
                        missing.insert(other.name.clone(), one);
                    }
                }
            }
        }
        found
    }

    /// Those whose part is missing from what was found.
    pub fn missing(&self) -> Vec<Missing> {
        self.known().values().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Missing>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, other: &Other, account: &str, from: i64, to: i64) -> Result<Vec<Row>, String> {
        let (tls, port, own) = self.by.as_ref().map_err(ToString::to_string)?;
        let Some(address) = other.address else {
            return Err("the resources give it no `tunnel` address".to_owned());
        };
        let question = Question {
            server: other.name.clone(),
            account: account.to_owned(),
            from,
            to,
            version: VERSION,
        };
        let socket = connect(*own, SocketAddr::new(address, *port))
            .map_err(|error| format!("it cannot be reached: {error}"))?;
        answer(tls, socket, &question).map_err(|error| format!("it gives no answer: {error}"))
    }
}

fn connect(own: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    // By this address it knows us.
    socket.bind(&SocketAddr::new(own, 0).into())?;
    socket.connect_timeout(&to.into(), CONNECT)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn answer(tls: &Arc<ClientConfig>, socket: TcpStream, question: &Question) -> io::Result<Vec<Row>> {
    let end = Instant::now() + WHOLE;
    // The certificate itself is compared, not a name in it.
    let name = ServerName::try_from("egress").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let mut text = serde_json::to_string(question)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    stream.flush()?;
    let mut stream = BufReader::new(stream);
    let mut rows = Vec::new();
    let mut known = false;
    loop {
        let mut line = String::new();
        (&mut stream).take(MAX_LINE).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match serde_json::from_str(&line)? {
            Line::Server(name) if name == question.server => known = true,
            Line::Server(name) => return Err(io::Error::other(format!("{name} answers instead"))),
            Line::Error(why) => return Err(io::Error::other(why)),
            Line::Row(row) if known => rows.push(row),
            Line::End(count) if known && count == rows.len() as u64 => return Ok(rows),
            Line::Row(_) | Line::End(_) => {
                return Err(io::Error::other("what it says makes no sense"));
            }
        }
        if rows.len() as u64 > MAX_ROWS || Instant::now() > end {
            return Err(io::Error::other(
                "it has too much of that, or takes too long",
            ));
        }
    }
}
