//! One byte to the origin and back, again and again.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use egress_tests::worker;

use super::rig::Rig;

/// Round trips of one sample.
pub(crate) const ROUND_TRIPS: usize = 20_000;
/// The origin's port.
const PORT: u16 = 7000;
/// No byte takes longer.
const LIMIT: Duration = Duration::from_secs(5);

/// The median round trip, ns. Both ends are on `cpu`: so the wake-up of another CPU is no part of it.
pub(crate) fn median(rig: &Rig, cpu: usize) -> Result<f64> {
    let at = Rig::at(PORT);
    let listener = rig.origin().run(|| TcpListener::bind(at))??;
    let mut times = thread::scope(|scope| -> Result<_> {
        let origin = scope.spawn(move || echo(&listener, cpu));
        let client = scope.spawn(move || rig.client().run(|| measure(at, cpu))?);
        let times = client
            .join()
            .map_err(|_| anyhow!("the client panicked"))??;
        origin
            .join()
            .map_err(|_| anyhow!("the origin panicked"))??;
        Ok(times)
    })?;
    times.sort_unstable();
    let middle = times.get(times.len() / 2).context("no round trip")?;
    Ok(middle.as_nanos() as f64)
}

/// Sends back what one client sends, until it is gone.
fn echo(listener: &TcpListener, cpu: usize) -> Result<()> {
    worker::pin(cpu)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn measure(at: SocketAddr, cpu: usize) -> Result<Vec<Duration>> {
    worker::pin(cpu)?;
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut byte = [0];
    (0..ROUND_TRIPS)
        .map(|_| {
            let before = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            Ok(before.elapsed())
        })
        .collect()
}
