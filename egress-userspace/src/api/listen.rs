//! Accepting connections: bounded in number and patience, and ended in order.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::linger::Linger;
use super::{Api, routes, tls};
use crate::cluster::Trust;
use crate::config::Api as Config;
use crate::control::Failure;
use crate::controller::Service;
use crate::store::SqliteStore;

/// What connections may take.
const LIMITS: Limits = Limits {
    connections: 256,
    untaken: Duration::from_secs(30),
};
/// The head of a request must be here within this time, counted from the end of the one before.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// A TLS handshake must be done within this time.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// At the end, requests under way get this time.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Time between two looks at what flows carried: shorter than an ended flow stays in its slot.
const LOOK: Duration = Duration::from_secs(5);

/// Bounds of what all connections, and one, may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; further ones wait in the kernel's queue.
    connections: usize,
    /// A peer that takes nothing of its answer for this long, because it is gone or its window is closed, loses its
    /// connection.
    untaken: Duration,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// A listening socket that nobody serves yet.
pub struct Listener {
    socket: StdListener,
    tls: Option<TlsAcceptor>,
    requests: u32,
}

/// A thread that serves. Dropping it ends that, in order.
pub struct Serving {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Takes the port, and reads what TLS needs.
    ///
    /// # Errors
    /// When the port is taken, or certificate or key are not usable.
    pub fn bind(config: &Config) -> Result<Self, Failure> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let at = config.listen;
        let socket = StdListener::bind(at)
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|error| {
                Failure::failed(
                    format!("the API cannot listen on {at}: {error}"),
                    "choose another [api] listen, or end who has that port (`ss -ltnp`)",
                )
            })?;
        Ok(Self {
            socket,
            tls,
            requests: config.requests_per_five_minutes,
        })
    }

    /// Begins to serve, on a thread of its own: however busy it is, the data plane is looked after.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn serve(
        self,
        service: Arc<Service>,
        tokens: SqliteStore,
        history: &Path,
        trust: Option<Arc<Trust>>,
    ) -> Result<Serving, Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("the API cannot be served: {error}"), "");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let at = self.socket.local_addr().map_err(failed)?;
        let secure = self.tls.is_some();
        let api = Arc::new(Api::new(service, tokens, history, trust, self.requests));
        runtime.spawn(look_on(Arc::clone(&api)));
        let router = routes::router(&api);
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("api".into())
            .spawn(move || run(&runtime, self, router, ended))
            .map_err(failed)?;
        tracing::info!(%at, tls = secure, "the API listens");
        Ok(Serving {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

/// Looks at what flows carried, until the runtime ends.
async fn look_on(api: Arc<Api>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let api = Arc::clone(&api);
        drop(tokio::task::spawn_blocking(move || api.look()).await);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(runtime: &Runtime, listener: Listener, router: Router, ended: oneshot::Receiver<()>) {
    let Listener { socket, tls, .. } = listener;
    runtime.block_on(async {
        match TcpListener::from_std(socket) {
            Ok(socket) => accept(&socket, LIMITS, tls, router, ended).await,
            Err(error) => tracing::error!(%error, "the API cannot be served"),
        }
    });
}

async fn accept(
    socket: &TcpListener,
    limits: Limits,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut ended: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = next => accepted,
            _ = &mut ended => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, for instance: give others time to close theirs.
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let untaken = Some(limits.untaken);
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(untaken) {
            tracing::warn!(%error, %peer, "a connection to the API without time-out is not served");
            continue;
        }
        let (router, tls, watcher) = (router.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            connection(stream, peer, router, tls, watcher).await;
        });
    }
    drop(timeout(END_PATIENCE, graceful.shutdown()).await);
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    tls: Option<TlsAcceptor>,
    watcher: Watcher,
) {
    match tls {
        None => serve(stream, peer, router, watcher).await,
        Some(tls) => match timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve(stream, peer, router, watcher).await,
            Ok(Err(error)) => tls::handshake_failed(&error),
            Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
        },
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
) {
    let linger = Linger::default();
    let noted = linger.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        noted.note(request.body());
        let mut router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer.ip()));
        async move {
            let response: Result<Response, Infallible> = router.call(request).await;
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(linger.over(stream)), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, %peer, "a connection to the API ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpStream as Connection};

    use axum::routing::get;
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// More than the buffers of both ends hold.
    const MUCH: usize = 32 << 20;
    /// For a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server of small and large answers, on a thread.
    struct Server {
        at: SocketAddr,
        end: oneshot::Sender<()>,
        thread: JoinHandle<()>,
    }

    impl Server {
        fn start(limits: Limits) -> Self {
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let at = socket.local_addr().unwrap();
            let (end, ended) = oneshot::channel();
            let thread = thread::spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let router = Router::new()
                    .route("/large", get(|| async { vec![0; MUCH] }))
                    .route(
                        "/small",
                        get(|| async { "small" }).post(|| async { "small" }),
                    );
                runtime.block_on(async {
                    let socket = TcpListener::from_std(socket).unwrap();
                    accept(&socket, limits, None, router, ended).await;
                });
            });
            Self { at, end, thread }
        }

        fn end(self) {
            drop(self.end);
            self.thread.join().unwrap();
        }
    }

    /// What is answered, to the end of the connection.
    fn answer(connection: &mut Connection) -> String {
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    fn is_small(answer: &str) -> bool {
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("small")
    }

    #[test]
    fn who_is_answered_while_it_still_sends_gets_the_answer() {
        let server = Server::start(LIMITS);
        let mut client = Connection::connect(server.at).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let head = format!("POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: {MUCH}\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        // The answer is there, and nobody has asked for the body.
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.peek(&mut [0]).unwrap();
        client.write_all(&vec![0; MUCH]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answer = answer(&mut client);
        assert!(is_small(&answer), "{answer}");
        server.end();
    }

    #[test]
    fn who_takes_nothing_of_an_answer_loses_its_place() {
        let server = Server::start(Limits {
            connections: 1,
            untaken: Duration::from_secs(1),
        });
        let greedy = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        greedy.set_recv_buffer_size(4096).unwrap();
        greedy.connect(&server.at.into()).unwrap();
        let mut greedy = Connection::from(greedy);
        greedy
            .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        greedy.peek(&mut [0]).unwrap();

        let mut next = Connection::connect(server.at).unwrap();
        next.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let answer = answer(&mut next);
        assert!(is_small(&answer), "{answer}");
        drop(greedy);
        server.end();
    }
}
