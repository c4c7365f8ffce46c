//! One connection of a probe, from its socket to what is said of it.

use std::io::{self, ErrorKind, Read as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use egress_common::reason::Reason;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Outcome, ProbeRecord};
use crate::control::Failure;
use crate::dataplane::{ProbeExit, Probes, Sight};

/// How long an origin may take to close its end. After that it is told by a RST, so that the connection is over for
/// everybody and leaves the count.
const FAREWELL: Duration = Duration::from_millis(500);
/// Bytes of what an origin says that are thrown away at once.
const BANNER: usize = 4_096;

/// Connects by `exit`, and writes into the record what became of it.
///
/// # Errors
/// When there is no socket, or the data plane cannot be told or asked.
pub(super) fn attempt(
    probes: &Probes,
    exit: &ProbeExit,
    patience: Duration,
    record: &mut ProbeRecord,
) -> Result<(), Failure> {
    let origin = record.origin;
    let failed = |error: io::Error| {
        Failure::failed(
            format!("cannot make a socket to probe {origin}: {error}"),
            "",
        )
    };
    let socket = Socket::new(
        Domain::for_address(origin),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(failed)?;
    let cookie = cookie(socket.as_fd()).map_err(failed)?;
    probes.tell(cookie, exit)?;
    let began = Instant::now();
    let connected = socket.connect_timeout(&origin.into(), patience);
    let ms = began.elapsed().as_secs_f64() * 1_000.0;
    // Asked while the socket is open: what is said of the connection is the origin's doing then, not ours.
    let sight = probes.look(cookie, origin.ip());
    // Gone before its cookie is: what it sends while it is there, it sends by this candidate.
    if connected.is_ok() {
        part(socket.into());
    } else {
        drop(socket);
    }
    probes.forget(cookie)?;
    judge(sight?, &connected, ms, record);
    Ok(())
}

/// What the socket says and what the data plane says, together.
fn judge(sight: Sight, connected: &io::Result<()>, ms: f64, record: &mut ProbeRecord) {
    let said = connected.as_ref().err();
    let (egress, closed) = match sight {
        Sight::None => {
            record.outcome = Outcome::NotSent;
            record.detail = Some(said.map_or_else(
                || "something else answered, or it left another way: see `egress why`".to_owned(),
                |error| format!("it met no uplink: {error}"),
            ));
            return;
        }
        Sight::Refused(reason) => {
            record.outcome = Outcome::NoCapacity;
            record.detail = Some(match reason {
                Reason::NoAddress => "the pool has changed meanwhile: try again".to_owned(),
                _ => reason.text().to_owned(),
            });
            return;
        }
        Sight::Admitted { egress, closed } => (egress, closed),
    };
    record.egress_ip = Some(egress.ip());
    let ours = record.address.net().contains(&egress.ip());
    (record.outcome, record.detail) = match said {
        _ if !ours => (
            Outcome::NotSent,
            Some("it left from another address".to_owned()),
        ),
        None => (Outcome::Connected, None),
        Some(error) if error.kind() == ErrorKind::TimedOut => (Outcome::TimedOut, None),
        // A RST ends a connection in the data plane too; an ICMP error ends it for the socket alone.
        Some(error) if error.kind() == ErrorKind::ConnectionRefused && closed => {
            (Outcome::Refused, None)
        }
        Some(error) => (Outcome::Icmp, Some(icmp(error))),
    };
    if matches!(record.outcome, Outcome::Connected | Outcome::Refused) {
        record.ms = Some((ms * 1_000.0).round() / 1_000.0);
    }
}

/// What an error of a socket means that came by ICMP (`icmp_err_convert` in Linux).
fn icmp(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "port unreachable".to_owned(),
        Some(libc::EHOSTUNREACH) => "host unreachable, or prohibited".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable, or prohibited".to_owned(),
        Some(libc::EACCES) => "administratively prohibited".to_owned(),
        Some(libc::ENOPROTOOPT) => "protocol unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Closes a connection at both ends.
fn part(stream: TcpStream) {
    let end = Instant::now() + FAREWELL;
    let mut banner = [0; BANNER];
    let mut over = stream.shutdown(Shutdown::Write).is_err();
    while !over {
        let left = end.saturating_duration_since(Instant::now());
        over = left.is_zero()
            || stream.set_read_timeout(Some(left)).is_err()
            || match (&stream).read(&mut banner) {
                // Both ends have closed it.
                Ok(0) => return,
                Ok(_) => false,
                Err(error) => error.kind() != ErrorKind::Interrupted,
            };
    }
    drop(Socket::from(stream).set_linger(Some(Duration::ZERO)));
}

/// The number that no other socket has or will have.
fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: writes at most `length` bytes to a number of ours; `SO_COOKIE` exists since Linux 4.12.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(sight: Sight, connected: &io::Result<()>) -> (Outcome, Option<f64>) {
        let mut record = ProbeRecord {
            origin: "198.51.100.10:443".parse().unwrap(),
            address: "192.0.2.10".parse().unwrap(),
            egress_ip: None,
            outcome: Outcome::Draining,
            ms: None,
            detail: None,
        };
        judge(sight, connected, 1.5, &mut record);
        (record.outcome, record.ms)
    }

    fn admitted(egress: &str, closed: bool) -> Sight {
        Sight::Admitted {
            egress: egress.parse().unwrap(),
            closed,
        }
    }

    fn error(number: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn pool_10_what_the_socket_says_counts_only_with_what_the_data_plane_says() {
        let ours = "192.0.2.10:2048";
        assert_eq!(
            judged(admitted(ours, false), &Ok(())),
            (Outcome::Connected, Some(1.5))
        );
        // It connected, but not from where it was told to.
        assert_eq!(judged(Sight::None, &Ok(())), (Outcome::NotSent, None));
        assert_eq!(
            judged(admitted("192.0.2.11:2048", false), &Ok(())),
            (Outcome::NotSent, None)
        );
        // Our own RST is not the origin's.
        assert_eq!(
            judged(
                Sight::Refused(Reason::CapReached),
                &error(libc::ECONNREFUSED)
            ),
            (Outcome::NoCapacity, None)
        );
        assert_eq!(
            judged(admitted(ours, true), &error(libc::ECONNREFUSED)),
            (Outcome::Refused, Some(1.5))
        );
        // Nor is an ICMP error a RST.
        for number in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENOPROTOOPT] {
            assert_eq!(
                judged(admitted(ours, false), &error(number)),
                (Outcome::Icmp, None)
            );
        }
        let slow = Err(io::Error::from(ErrorKind::TimedOut));
        assert_eq!(
            judged(admitted(ours, false), &slow),
            (Outcome::TimedOut, None)
        );
    }
}
