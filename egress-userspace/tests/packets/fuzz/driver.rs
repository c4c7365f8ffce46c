//! Packets through the real programs at the speed of the kernel.
//!
//! `BPF_PROG_TEST_RUN` makes *live frames*: an XDP program of ours fills each one with the next
//! packet of a shared array, and the kernel lets it arrive on an interface as a driver would. The
//! data plane's programs are attached as a host has them; where a host would route, a program of
//! ours redirects; and at the end of each way an observer notes what came through and drops it.
//!
//!     in0, in1: begin, inside_ingress, redirect to up0
//!     up0 out:  uplink_egress, uplink_guard, observe LEFT
//!     up0 in:   begin, uplink_ingress, observe ARRIVED, or ANSWERED if the data plane made it
//!     in1 out:  observe DELIVERED (a realm's replies)

use std::fs;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use super::bpf::{self, Attach, Kind, Shared};
use super::instruction::Program;
use super::programs::{
    ANSWER, Control, Frame, NOBODY, Note, WIRE, begin, generator, observe, redirect,
};
use crate::harness::{DataPlane, Hook};

/// Longest frame.
pub(crate) const LONGEST: usize = 2_000;
/// Shortest frame a device hands on.
pub(crate) const SHORTEST: usize = 14;
/// Frames of one round.
pub(crate) const ROUND: usize = 1_024;
/// Answers of one round that are kept, and fragments that had been held.
const ANSWERS: usize = 4 * ROUND;

/// Where a packet enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By the inside interface whose zones are told by the source.
    Inside,
    /// By the inside interface that is a realm.
    Realm,
    /// By the uplink.
    Wire,
}

impl Entry {
    pub(crate) const ALL: [Self; 3] = [Self::Inside, Self::Realm, Self::Wire];
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Left = 1,
    Arrived = 2,
    Delivered = 3,
}

/// What else came out of the data plane than the packets that went in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Made {
    /// An answer to the packet with this number.
    Answer(usize),
    /// One more packet in the wake of this one.
    More(usize),
    /// A packet that arrived once more.
    Again,
}

/// A packet that came out.
pub(crate) struct Output<'a> {
    pub(crate) seen: Seen,
    pub(crate) mark: u32,
    pub(crate) bytes: &'a [u8],
}

/// A data plane with a driver.
pub(crate) struct Driver {
    control: Shared<Control>,
    frames: Shared<Frame>,
    notes: Shared<Note>,
    generator: OwnedFd,
    /// By [`Entry`].
    interfaces: [u32; 3],
    entries: Vec<Entry>,
    answered: usize,
    /// By way of the loopback interface: what it gets back was queued behind all that the data plane queued.
    echo: UdpSocket,
    _links: Vec<OwnedFd>,
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

fn interface(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a string with an end.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Keeps this thread on the CPU it is on.
pub(crate) fn stay() {
    // SAFETY: a set of CPUs may be all zeros, and is as long as said.
    let status = unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &raw const one)
    };
    assert_eq!(status, 0, "staying on a CPU");
}

/// Interface numbers of [`Entry::ALL`] in this thread's namespace, made on the way.
pub(crate) fn interfaces() -> [u32; 3] {
    // Without an address of its own the kernel says nothing: its packets are not ours to judge.
    fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
    ["in0", "in1", "up0"].map(|name| {
        ip(&format!("link add {name} type veth peer name {name}p"));
        ip(&format!("link set {name} arp off"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {name}p up"));
        interface(name)
    })
}

impl Driver {
    /// Attaches a plane's programs to `interfaces` and puts ours around them.
    pub(crate) fn new(plane: &DataPlane, interfaces: [u32; 3]) -> Self {
        // A realm's replies are handed to its interface by route.
        ip("route add 10.0.0.0/8 dev in1");
        ip("-6 route add default dev in1");
        // What is queued is queued by CPU.
        stay();
        ip("link set lo up");
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        echo.connect(echo.local_addr().unwrap()).unwrap();
        let control = Shared::new(1);
        let frames = Shared::new(ROUND);
        let notes = Shared::new(ROUND + ANSWERS);
        let generator = bpf::load(Kind::Xdp, &generator(&control, &frames));
        let [in0, in1, up0] = interfaces;
        let mut links = Vec::new();
        let mut ours = |program: Program, interface, to| {
            let program = bpf::load(Kind::Classifier, &program.finish());
            links.push(bpf::attach(program.as_raw_fd(), interface, to));
        };
        let begin_inside = || begin(&control, false);
        ours(begin_inside(), in0, Attach::Ingress);
        ours(begin_inside(), in1, Attach::Ingress);
        ours(begin(&control, true), up0, Attach::Ingress);
        let theirs = [
            (Hook::InsideIngress, in0, Attach::Ingress),
            (Hook::InsideIngress, in1, Attach::Ingress),
            (Hook::UplinkEgress, up0, Attach::Egress),
            (Hook::UplinkGuard, up0, Attach::Egress),
            (Hook::UplinkIngress, up0, Attach::Ingress),
        ];
        let theirs: Vec<OwnedFd> = theirs
            .into_iter()
            .map(|(hook, interface, to)| bpf::attach(plane.descriptor(hook), interface, to))
            .collect();
        ours(redirect(up0), in0, Attach::Ingress);
        ours(redirect(up0), in1, Attach::Ingress);
        ours(observe(&control, &notes, Seen::Left), up0, Attach::Egress);
        ours(
            observe(&control, &notes, Seen::Arrived),
            up0,
            Attach::Ingress,
        );
        ours(
            observe(&control, &notes, Seen::Delivered),
            in1,
            Attach::Egress,
        );
        links.extend(theirs);
        // A veth takes live frames once it has a program of this kind.
        for interface in interfaces {
            links.push(bpf::attach(generator.as_raw_fd(), interface, Attach::Xdp));
        }
        Self {
            control,
            frames,
            notes,
            generator,
            interfaces,
            entries: Vec::new(),
            answered: 0,
            echo,
            _links: links,
        }
    }

    /// Begins a round: forgets the last one's packets.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds a packet to the round; packets of one entry in a row arrive together.
    pub(crate) fn add(&mut self, entry: Entry, bytes: &[u8]) {
        assert!((SHORTEST..=LONGEST).contains(&bytes.len()));
        let number = self.entries.len();
        let frame = &mut self.frames.elements_mut()[number];
        frame.length = bytes.len() as u32;
        frame.wire = if entry == Entry::Wire { WIRE as u32 } else { 0 };
        frame.bytes[..bytes.len()].copy_from_slice(bytes);
        self.notes.elements_mut()[number].times = 0;
        self.entries.push(entry);
    }

    /// Lets the round's packets arrive, in their order.
    pub(crate) fn run(&mut self) {
        let control = self.control.elements_mut();
        control[0].next = 0;
        control[0].answers = 0;
        control[0].observing = 1;
        for packets in self.entries.chunk_by(|a, b| a == b) {
            let interface = self.interfaces[packets[0] as usize];
            bpf::arrive(&self.generator, interface, packets.len() as u32).expect("live frames");
            self.echo.send(&[0]).unwrap();
            self.echo.recv(&mut [0]).unwrap();
        }
        let control = &mut self.control.elements_mut()[0];
        control.observing = 0;
        assert_eq!(
            control.failures, 0,
            "frames that could not be made or noted"
        );
        assert_eq!(control.next, self.entries.len() as u64);
        self.answered = control.answers as usize;
    }

    /// The packet with this number, as it went in.
    pub(crate) fn input(&self, number: usize) -> (Entry, &[u8]) {
        let entry = self.entries[number];
        let frame = &self.frames.elements()[number];
        (entry, &frame.bytes[..frame.length as usize])
    }

    /// The packet with this number, as it went in and as it came out, if it did.
    pub(crate) fn both(&self, number: usize) -> (Entry, &[u8], Option<Output<'_>>) {
        let entry = self.entries[number];
        let frame = &self.frames.elements()[number];
        let note = &self.notes.elements()[number];
        let came = (note.times != 0).then(|| output(note));
        (entry, &frame.bytes[..frame.length as usize], came)
    }

    /// The data plane's own packets, and those it held for a while.
    pub(crate) fn made(&self, nth: usize) -> Option<(Made, Output<'_>)> {
        if nth >= self.answered {
            return None;
        }
        let note = &self.notes.elements()[ROUND + nth];
        let number = note.of as usize & 0xffff;
        let made = match (note.of as i32 & NOBODY, note.of as i32 & ANSWER) {
            (0, 0) => Made::More(number),
            (0, _) => Made::Answer(number),
            _ => Made::Again,
        };
        Some((made, output(note)))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

fn output(note: &Note) -> Output<'_> {
    Output {
        seen: match note.seen {
            1 => Seen::Left,
            2 => Seen::Arrived,
            _ => Seen::Delivered,
        },
        mark: note.mark,
        bytes: &note.bytes[..note.length as usize],
    }
}
