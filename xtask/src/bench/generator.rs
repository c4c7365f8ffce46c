//! A packet generator whose packets cost next to nothing: XDP live frames.
//!
//! The kernel itself repeats a frame, the client's interface sends it, and everything up to the drop at the
//! origin runs on the CPU of the caller. So the CPU time of the caller, and of that CPU's softirq thread, is the
//! cost of the whole path, and neighbours on other CPUs hardly disturb it.
//!
//! Frames are recycled as the last hop left them (TTL, addresses, MACs), so the program writes every header of
//! every packet. Checksums are right: conntrack does not translate what it finds invalid.

use std::{fs, net::Ipv4Addr, os::fd::OwnedFd, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    bpf::{self, Instruction, Kind},
    instruction::{
        Op, Size, by, exit, load, set, set_wide, skip_if_greater, store, to_network, value_of, with,
    },
};

/// Bytes of a frame: 22 of payload after Ethernet, IPv4 and UDP.
const FRAME: usize = 64;
/// Where the UDP header starts.
const UDP: usize = 34;
/// The first source port of the flows.
pub(crate) const FIRST_PORT: u16 = 2048;
/// Flows to one destination port: fewer than fit behind one address, also with a cap of 40,000.
pub(crate) const FLOWS_PER_ORIGIN: u32 = 30_000;
/// The first destination port.
pub(crate) const FIRST_ORIGIN: u16 = 9000;
/// `XDP_TX`: out of the interface that it "came" from.
const XDP_TX: i32 = 3;

/// From one packet's flow to the next one's: a prime far from any table's line, so that each flow has its turn and
/// no packet finds its flow where the last one was.
const STRIDE: i32 = 131_071;

/// A generator of UDP packets in a number of flows, each in turn, in scattered order.
pub(crate) struct Generator {
    program: OwnedFd,
    frame: [u8; FRAME],
}

/// Where packets go.
pub(crate) struct Route {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) source_mac: [u8; 6],
    pub(crate) next_hop_mac: [u8; 6],
    /// The first flow's; others have the next ones.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Generator {
    /// Loads the program for a number of flows.
    pub(crate) fn new(route: &Route, flows: u32) -> Result<Self> {
        ensure!(flows > 0, "a generator needs a flow");
        let frame = frame(route);
        let count = bpf::counter()?;
        let program = bpf::load(Kind::Xdp, &program(&frame, route, flows, &count))?;
        Ok(Self { program, frame })
    }

    /// Sends packets out of an interface of the current namespace, on the current CPU.
    pub(crate) fn send(&self, interface: u32, packets: u32) -> Result<()> {
        bpf::send_live(&self.program, &self.frame, interface, packets)
    }
}

/// The frame with ports and UDP checksum zero.
fn frame(route: &Route) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&route.next_hop_mac);
    frame[6..12].copy_from_slice(&route.source_mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, (FRAME - 14) as u8, 0, 0, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&route.source.octets());
    frame[30..34].copy_from_slice(&route.destination.octets());
    let checksum = !fold(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[38..40].copy_from_slice(&((FRAME - UDP) as u16).to_be_bytes());
    for (number, byte) in frame[UDP + 8..].iter_mut().enumerate() {
        *byte = number as u8;
    }
    frame
}

/// The program: writes all headers of the packet for the next flow, and sends it.
fn program(frame: &[u8; FRAME], route: &Route, flows: u32, count: &OwnedFd) -> Vec<Instruction> {
    // r6 packet, r7 its end, r9 number of the flow; r1, r2, r3: ports and checksum.
    let mut body: Vec<Instruction> = Vec::new();
    body.extend(value_of(4, count));
    body.push(load(Size::Double, 9, 4, 0));
    body.push(by(Op::Move, 5, 9));
    body.push(with(Op::Add, 5, 1));
    body.push(store(Size::Double, 4, 0, 5));
    body.push(with(Op::Multiply, 9, STRIDE));
    body.push(with(Op::Mod, 9, flows.cast_signed()));

    for at in (0..32).step_by(8) {
        let mut eight = [0; 8];
        eight.copy_from_slice(&frame[at..at + 8]);
        body.extend(set_wide(5, u64::from_ne_bytes(eight)));
        body.push(store(Size::Double, 6, at as i16, 5));
    }
    for at in [32, 38] {
        body.push(set(
            5,
            i32::from(u16::from_ne_bytes([frame[at], frame[at + 1]])),
        ));
        body.push(store(Size::Half, 6, at as i16, 5));
    }

    body.push(by(Op::Move, 1, 9));
    body.push(with(Op::Mod, 1, FLOWS_PER_ORIGIN.cast_signed()));
    body.push(with(Op::Add, 1, route.source_port.into()));
    body.push(by(Op::Move, 2, 9));
    body.push(with(Op::Div, 2, FLOWS_PER_ORIGIN.cast_signed()));
    body.push(with(Op::Add, 2, route.destination_port.into()));
    // The checksum of everything but the ports is known; the ports are added.
    body.push(set(3, unported_sum(frame).cast_signed()));
    body.push(by(Op::Add, 3, 1));
    body.push(by(Op::Add, 3, 2));
    for _ in 0..2 {
        body.push(by(Op::Move, 5, 3));
        body.push(with(Op::ShiftRight, 5, 16));
        body.push(with(Op::And, 3, 0xffff));
        body.push(by(Op::Add, 3, 5));
    }
    body.push(with(Op::Xor, 3, 0xffff));
    for (register, at) in [(1, UDP), (2, UDP + 2), (3, UDP + 6)] {
        body.push(to_network(register));
        body.push(store(Size::Half, 6, at as i16, register));
    }
    body.push(set(0, XDP_TX));

    let mut program = vec![
        load(Size::Word, 6, 1, 0),
        load(Size::Word, 7, 1, 4),
        by(Op::Move, 2, 6),
        with(Op::Add, 2, FRAME as i32),
        set(0, 0), // XDP_ABORTED
        skip_if_greater(2, 7, body.len() as i16),
    ];
    program.extend(body);
    program.push(exit());
    program
}

/// The sum over pseudo header, UDP header and payload while the ports are zero.
fn unported_sum(frame: &[u8; FRAME]) -> u32 {
    let pseudo = sum(&frame[26..34]) + 17 + (FRAME - UDP) as u32;
    u32::from(fold(pseudo + sum(&frame[UDP..])))
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The CPU time that packets on one CPU take: of this thread and of the CPU's softirq thread.
pub(crate) struct Meter {
    softirq: String,
}

impl Meter {
    /// A meter for a CPU.
    pub(crate) fn new(cpu: usize) -> Result<Self> {
        let wanted = format!("ksoftirqd/{cpu}");
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == wanted) {
                let softirq = path.join("schedstat");
                return Ok(Self {
                    softirq: softirq.to_string_lossy().into_owned(),
                });
            }
        }
        anyhow::bail!("there is no {wanted}")
    }

    /// The CPU time so far.
    pub(crate) fn read(&self) -> Result<Duration> {
        let text = fs::read_to_string(&self.softirq)
            .with_context(|| format!("cannot read {}", self.softirq))?;
        let nanoseconds: u64 = text
            .split(' ')
            .next()
            .context("an empty schedstat")?
            .parse()?;
        Ok(thread_time()? + Duration::from_nanos(nanoseconds))
    }
}

fn thread_time() -> Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure lives until the call returns.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot read the thread's CPU time");
    }
    Ok(Duration::new(
        time.tv_sec.cast_unsigned(),
        u32::try_from(time.tv_nsec)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_known_part_is_that_of_the_whole_without_ports() {
        let route = Route {
            source: Ipv4Addr::new(10, 1, 0, 2),
            destination: Ipv4Addr::new(203, 0, 113, 1),
            source_mac: [2; 6],
            next_hop_mac: [4; 6],
            source_port: FIRST_PORT,
            destination_port: FIRST_ORIGIN,
        };
        let frame = frame(&route);
        assert_eq!(
            fold(sum(&frame[14..34])),
            0xffff,
            "the IP header sums to zero"
        );
        let checksum = !fold(unported_sum(&frame) + 2048 + 9000);
        let mut whole = frame;
        whole[UDP..UDP + 2].copy_from_slice(&2048u16.to_be_bytes());
        whole[UDP + 2..UDP + 4].copy_from_slice(&9000u16.to_be_bytes());
        whole[UDP + 6..UDP + 8].copy_from_slice(&checksum.to_be_bytes());
        let pseudo = sum(&whole[26..34]) + 17 + (FRAME - UDP) as u32;
        assert_eq!(fold(pseudo + sum(&whole[UDP..])), 0xffff);
    }
}
