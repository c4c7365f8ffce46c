//! The daemon's end of the control socket.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError as Contended, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::line::{self, LineError};
use super::protocol::{Failure, Request, Response};
use crate::diagnostic::MAX_SOURCE_BYTES;

/// Clients served at once; further ones are told to come back.
pub const MAX_CLIENTS: usize = 16;
/// A client must send its request within this time.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// A client must take each part of the answer within this time: somebody may be reading it in a pager.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// The longest time that a member of a list waits for further ones before it is sent.
const FLUSH: Duration = Duration::from_millis(500);
/// How often a client that waits is given a sign of life.
pub const SIGN: Duration = Duration::from_secs(1);
/// How long a lock may be held by what is left of an earlier daemon.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// A request holds at most a file, whose quotes and line ends double in JSON.
#[expect(clippy::cast_possible_truncation, reason = "32 MiB fit any usize")]
const MAX_REQUEST: usize = 2 * MAX_SOURCE_BYTES as usize + 4096;

/// Fulfils requests.
pub trait Handler: Send + Sync {
    /// Answers one request. Members of a list go through `item`, which fails when the client is gone: the
    /// handler then stops.
    fn handle(
        &self,
        request: Request,
        item: &mut dyn FnMut(Value) -> Result<(), LineError>,
    ) -> Result<Value, Failure>;
}

/// A bound socket. Dropping it stops serving and removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    /// Held while the daemon lives; the kernel lets go of it however the daemon ends.
    _lock: File,
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon serves it.
    #[error("another egress daemon{} serves {}", pid.map_or_else(String::new, |pid| format!(" (process {pid})")), socket.display())]
    Running {
        /// The socket.
        socket: PathBuf,
        /// The other daemon's process, if it can be told.
        pid: Option<u32>,
    },
    /// The socket's path is taken by something that is no socket.
    #[error("{} exists and is no socket", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl BindError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Running { .. } => {
                "stop that one first, or give this one its own [control] socket, [dataplane] pin and [store]"
            }
            Self::Occupied { .. } => "remove it, or choose another [control] socket",
            Self::Failed { .. } => {
                "check the directory of [control] socket and this user's permissions"
            }
        }
    }
}

impl Server {
    /// Takes the socket: refuses while another daemon holds it, replaces one that a dead daemon left.
    ///
    /// The socket's mode is 0600 from the moment it can be seen: it is made aside and renamed.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Failed {
                doing,
                path,
                source,
            }
        };
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(failed("create", directory))?;
        }
        let lock = lock(path)?;
        if let Ok(metadata) = fs::symlink_metadata(path)
            && !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
        {
            return Err(BindError::Occupied {
                path: path.to_owned(),
            });
        }
        let aside = with_suffix(path, ".new");
        match fs::remove_file(&aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &aside)(error)),
        }
        let listener = UnixListener::bind(&aside).map_err(failed("bind", &aside))?;
        fs::set_permissions(&aside, Permissions::from_mode(0o600))
            .map_err(failed("protect", &aside))?;
        fs::rename(&aside, path).map_err(failed("rename the socket to", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            stopping: Arc::default(),
            acceptor: None,
            _lock: lock,
        })
    }

    /// Whether a daemon holds this socket: it serves it, is about to, or is just ending.
    pub fn is_claimed(path: &Path) -> bool {
        File::open(with_suffix(path, ".lock"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Begins to serve, on threads of its own.
    pub fn serve(&mut self, handler: Arc<dyn Handler>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let stopping = Arc::clone(&self.stopping);
        let acceptor = thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &stopping, &handler))?;
        self.acceptor = Some(acceptor);
        Ok(())
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the acceptor; when it cannot be woken it is left to the end of the process.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Some(acceptor) = self.acceptor.take()
            && woken
        {
            drop(acceptor.join());
        }
        drop(fs::remove_file(&self.path));
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(socket: &Path) -> Result<File, BindError> {
    let path = with_suffix(socket, ".lock");
    let failed = |source| BindError::Failed {
        doing: "lock",
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match patiently(&file) {
        Ok(()) => {
            file.set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()))
                .map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file
                .rewind()
                .and_then(|()| (&mut file).take(16).read_to_string(&mut pid));
            let pid = read.ok().and_then(|_| pid.trim().parse().ok());
            Err(BindError::Running {
                socket: socket.to_owned(),
                pid,
            })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Tries for a moment: a holder that was killed lets go only when the kernel is done with it, and a command it had
/// just started shares its files until it runs.
fn patiently(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn accept(listener: &UnixListener, stopping: &AtomicBool, handler: &Arc<dyn Handler>) {
    let clients = Arc::new(AtomicUsize::new(0));
    while !stopping.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors or the like: give others time to close theirs.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        let Some(place) = Place::take(&clients) else {
            turn_away(&stream);
            continue;
        };
        let handler = Arc::clone(handler);
        let spawned = thread::Builder::new()
            .name("control-client".into())
            .spawn(move || {
                if let Err(error) = converse(&stream, handler.as_ref()) {
                    tracing::debug!(%error, "a control client went away");
                }
                drop(place);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot serve a control client");
        }
    }
}

/// One of the places for clients.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        clients
            .try_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < MAX_CLIENTS).then_some(taken + 1)
            })
            .ok()
            .map(|_| Self(Arc::clone(clients)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells a client that there is no place for it: without a thread of its own, and without waiting for it. A new
/// socket has room for the sentence.
fn turn_away(stream: &UnixStream) {
    let response = Response::Failed(Failure::failed(
        format!("the daemon is serving {MAX_CLIENTS} clients already"),
        "try again when some have ended",
    ));
    let mut sentence = Vec::new();
    let told = stream
        .set_nonblocking(true)
        .map_err(LineError::from)
        .and_then(|()| line::write(&mut sentence, &response))
        .and_then(|()| Ok((&mut &*stream).write_all(&sentence)?));
    if let Err(error) = told {
        tracing::debug!(%error, "a control client went away");
    }
}

fn converse(stream: &UnixStream, handler: &dyn Handler) -> Result<(), LineError> {
    stream.set_read_timeout(Some(READ_PATIENCE))?;
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let writer = Mutex::new(BufWriter::new(stream));
    let response = match line::read::<Request>(&mut reader, MAX_REQUEST) {
        Ok(None) => return Ok(()),
        Ok(Some(request)) => answer(request, handler, &writer),
        Err(error @ (LineError::Json(_) | LineError::TooLong(_))) => {
            Response::Failed(Failure::usage(
                format!("the daemon does not understand the request: {error}"),
                "use the `egress` of the daemon's version; restart the daemon after an upgrade",
            ))
        }
        Err(error) => return Err(error),
    };
    let mut writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
    line::write(&mut writer, &response)?;
    writer.flush()?;
    Ok(())
}

type Writer<'s> = Mutex<BufWriter<&'s UnixStream>>;

/// Has a request answered; its client hears meanwhile that it is worked on.
fn answer(request: Request, handler: &dyn Handler, writer: &Writer<'_>) -> Response {
    thread::scope(|scope| {
        let (over, is_over) = mpsc::channel::<()>();
        let spawned = thread::Builder::new()
            .name("control-sign".into())
            .spawn_scoped(scope, move || give_signs(writer, &is_over));
        if let Err(error) = spawned {
            tracing::debug!(%error, "a control client hears nothing until its answer is there");
        }
        let mut flushed = Instant::now();
        let mut item = |value| {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            line::write(&mut *writer, &Response::Item(value))?;
            // What takes long is seen while it goes on.
            if flushed.elapsed() >= FLUSH {
                writer.flush()?;
                flushed = Instant::now();
            }
            Ok(())
        };
        let response = match handler.handle(request, &mut item) {
            Ok(value) => Response::Done(value),
            Err(failure) => Response::Failed(failure),
        };
        drop(over);
        response
    })
}

/// Says every second that the daemon is there, until nobody is answered any more or the client is gone.
fn give_signs(writer: &Writer<'_>, is_over: &mpsc::Receiver<()>) {
    while is_over.recv_timeout(SIGN) == Err(mpsc::RecvTimeoutError::Timeout) {
        let mut writer = match writer.try_lock() {
            Ok(writer) => writer,
            // A member of a list is on its way, and as good a sign.
            Err(Contended::WouldBlock) => continue,
            Err(Contended::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let told = line::write(&mut *writer, &Response::Working)
            .and_then(|()| writer.flush().map_err(LineError::from));
        if told.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
