//! Findings: the packets that led to one, as few as will do, in a file that a test replays.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::driver::Entry;
use super::map::hash;
use super::rewrite;
use super::rig::Rig;

/// How long to look for a shorter story.
const PATIENCE: Duration = Duration::from_secs(120);

/// A packet and where it enters.
pub(crate) type Packet = (Entry, Vec<u8>);

/// Where findings are kept.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets/fuzz/findings")
}

/// The last packets, oldest first.
pub(crate) struct History {
    packets: Vec<Packet>,
    next: usize,
}

impl History {
    /// Room for this many.
    pub(crate) fn new(room: usize) -> Self {
        let packets = (0..room).map(|_| (Entry::Wire, Vec::new())).collect();
        Self { packets, next: 0 }
    }

    pub(crate) fn add(&mut self, entry: Entry, bytes: &[u8]) {
        let (of, kept) = &mut self.packets[self.next];
        *of = entry;
        kept.clear();
        kept.extend(bytes);
        self.next = (self.next + 1) % self.packets.len();
    }

    pub(crate) fn all(&self) -> Vec<Packet> {
        let (later, earlier) = self.packets.split_at(self.next);
        let known = |packet: &&Packet| !packet.1.is_empty();
        earlier.iter().chain(later).filter(known).cloned().collect()
    }
}

/// What is wrong with these packets, one by one through a data plane of their own.
pub(crate) fn replay(packets: &[Packet]) -> Option<String> {
    let mut rig = Rig::new().expect("loading programs needs root");
    packets
        .chunks(if packets.len() > 500 { 256 } else { 1 })
        .find_map(|packets| rig.play(packets).err())
}

/// Shortens the story of a finding and writes it down; says where and what.
pub(crate) fn save(history: &[Packet], what: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut story = history.to_vec();
    let mut said = what.to_owned();
    let mut keep = |story: &mut Vec<Packet>, fewer: Vec<Packet>| {
        let Some(again) = replay(&fewer) else {
            return false;
        };
        said = again;
        *story = fewer;
        true
    };
    let mut last = 1;
    while last < story.len() && Instant::now() < deadline {
        let fewer = story[story.len() - last..].to_vec();
        if keep(&mut story, fewer) {
            break;
        }
        last *= 8;
    }
    let ports = story.last().map(|(_, bytes)| rewrite::ports(bytes));
    let ports = ports.unwrap_or_default();
    let related = |(_, bytes): &&Packet| {
        rewrite::ports(bytes)
            .iter()
            .any(|port| ports.contains(port))
    };
    let fewer = story.iter().filter(related).cloned().collect();
    keep(&mut story, fewer);
    let mut step = story.len() / 2;
    while step > 0 && story.len() < 4_096 {
        let mut at = 0;
        while at < story.len() && story.len() > 1 && Instant::now() < deadline {
            let mut fewer = story.clone();
            fewer.drain(at..(at + step).min(story.len()));
            if fewer.is_empty() || !keep(&mut story, fewer) {
                at += step;
            }
        }
        step /= 2;
    }
    let mut text = format!("# {}\n", said.replace('\n', " "));
    for (entry, bytes) in &story {
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        writeln!(text, "{entry:?} {hex}").unwrap();
    }
    let path = folder().join(format!("{:016x}.packets", hash(text.as_bytes())));
    fs::create_dir_all(folder()).unwrap();
    fs::write(&path, text).unwrap();
    format!("{said}\n{} packets in {}", story.len(), path.display())
}

/// Reads a finding.
pub(crate) fn load(path: &Path) -> Vec<Packet> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let entry = Entry::ALL
                .into_iter()
                .find(|entry| format!("{entry:?}") == name);
            let (pairs, _) = hex.as_bytes().as_chunks::<2>();
            let byte =
                |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
            (entry.unwrap(), pairs.iter().map(byte).collect())
        })
        .collect()
}
