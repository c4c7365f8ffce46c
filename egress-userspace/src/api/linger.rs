//! Closing a connection so that its last answer arrives (RFC 9112, section 9.6).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Who is answered before all of a request was read may go on sending it for this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever sends nothing for this time has done.
const QUIET: Duration = Duration::from_secs(1);

/// A connection whose end, once its writing half is closed, is put off until the peer sends no more, within bounds. What
/// comes is not looked at. A connection that is closed over unread bytes is reset, and what was written may be lost with it.
pub(super) struct Lingering<S> {
    stream: S,
    /// Whether there may be unread bytes.
    wanted: Arc<AtomicBool>,
    /// From when the writing half is closed.
    patience: Option<Patience>,
}

/// Whether the last request of a connection has a body, which nobody may have read.
#[derive(Clone, Debug, Default)]
pub(super) struct Linger(Arc<AtomicBool>);

struct Patience {
    quiet: Pin<Box<Sleep>>,
    end: Instant,
}

impl Linger {
    /// Notes the body of a request that came.
    pub(super) fn note(&self, body: &impl Body) {
        self.0.store(!body.is_end_stream(), Ordering::Relaxed);
    }

    /// The connection that these requests come by.
    pub(super) fn over<S>(&self, stream: S) -> Lingering<S> {
        Lingering {
            stream,
            wanted: Arc::clone(&self.0),
            patience: None,
        }
    }
}

impl Patience {
    fn new() -> Self {
        Self {
            quiet: Box::pin(sleep(QUIET)),
            end: Instant::now() + PATIENCE,
        }
    }

    /// Something came.
    fn renew(&mut self) {
        self.quiet
            .as_mut()
            .reset(self.end.min(Instant::now() + QUIET));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.patience.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        if !this.wanted.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let patience = this.patience.get_or_insert_with(Patience::new);
        let mut unread = [0; 16 << 10];
        while patience.quiet.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => patience.renew(),
                // The peer has closed its half, or is gone.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
