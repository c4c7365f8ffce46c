//! The network between one daemon and etcd.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They pass.
    Open,
    /// Connections end, and there are no new ones.
    Cut,
    /// They wait, and pass when it is open again.
    Held,
    /// What is asked passes, and answers wait.
    Deaf,
}

/// A link that can be cut.
pub(crate) struct Link {
    port: u16,
    mode: Arc<AtomicU8>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

/// How often somebody who waits looks again.
const AGAIN: Duration = Duration::from_millis(10);

impl Link {
    /// To a port of the loopback interface.
    pub(crate) fn to(etcd: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(Mode::Open as u8));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (seen, kept) = (Arc::clone(&mode), Arc::clone(&streams));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if seen.load(Ordering::SeqCst) == Mode::Cut as u8 {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", etcd)) else {
                    continue;
                };
                {
                    let mut kept: std::sync::MutexGuard<'_, Vec<TcpStream>> = kept.lock().unwrap();
                    kept.retain(|stream| stream.peer_addr().is_ok());
                    kept.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                }
                let both = [
                    (
                        near.try_clone().unwrap(),
                        far.try_clone().unwrap(),
                        [Mode::Held, Mode::Held],
                    ),
                    (far, near, [Mode::Held, Mode::Deaf]),
                ];
                for (from, to, waits) in both {
                    let seen = Arc::clone(&seen);
                    thread::spawn(move || carry(from, to, &seen, waits));
                }
            }
        });
        Self {
            port,
            mode,
            streams,
        }
    }

    /// Its near end.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
        if mode == Mode::Cut {
            for stream in self.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, waits: [Mode; 2]) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length) = from.read(&mut buffer)
        && length > 0
    {
        while waits
            .map(|mode| mode as u8)
            .contains(&mode.load(Ordering::SeqCst))
        {
            thread::sleep(AGAIN);
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
