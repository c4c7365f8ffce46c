//! Damage: cut, stretched, overwritten, and every header field at its extremes.

use super::read::{self, Layers};
use crate::seed::Random;

/// Fields behind the IPv4 header's start, and their lengths.
const IP4: [(usize, usize); 8] = [
    (0, 1),
    (1, 1),
    (2, 2),
    (4, 2),
    (6, 2),
    (8, 1),
    (9, 1),
    (10, 2),
];
/// Fields behind the IPv6 header's start.
const IP6: [(usize, usize); 5] = [(0, 4), (4, 2), (6, 1), (7, 1), (24, 8)];
/// Fields behind a transport header's start.
const TRANSPORT: [(usize, usize); 12] = [
    (0, 2),
    (2, 2),
    (4, 2),
    (6, 2),
    (4, 4),
    (8, 4),
    (12, 1),
    (13, 1),
    (14, 2),
    (16, 2),
    (20, 1),
    (21, 1),
];

/// Damages a frame once or a few times.
pub(crate) fn some(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        once(random, bytes);
    }
}

fn once(random: &mut Random, bytes: &mut Vec<u8>) {
    if bytes.len() <= 14 {
        return;
    }
    let length = bytes.len() as u64;
    match random.below(10) {
        0 => {
            let cut = 14 + random.below(length - 14);
            bytes.truncate(cut as usize);
        }
        1 => {
            let more = random.below(64) as usize;
            bytes.resize(bytes.len() + more, random.number() as u8);
        }
        2..4 => {
            let at = 12 + random.below((length - 12).min(64)) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        4 => {
            let at = 14 + random.below((length - 14).min(64)) as usize;
            bytes[at] = random.number() as u8;
        }
        _ => field(random, bytes),
    }
}

/// A header field becomes an extreme value, or nearly what it was.
fn field(random: &mut Random, bytes: &mut [u8]) {
    let (at, length) = match read::frame(bytes) {
        Layers::Ip(ip) => {
            let (base, (at, length)) = match (random.once_in(2), ip.six) {
                (true, false) => (ip.at, random.of(&IP4)),
                (true, true) => (ip.at, random.of(&IP6)),
                _ => (ip.transport, random.of(&TRANSPORT)),
            };
            (base + at, length)
        }
        _ => (12 + random.below(4) as usize, 1),
    };
    let Some(field) = bytes.get_mut(at..at + length) else {
        return;
    };
    match random.below(6) {
        0 => field.fill(0),
        1 => field.fill(0xff),
        2 => {
            field.fill(0);
            field[length - 1] = 1;
        }
        3 => {
            field.fill(0xff);
            field[length - 1] = 0xfe;
        }
        4 => {
            field.fill(0);
            field[0] = 0x80;
        }
        _ => {
            let last = &mut field[length - 1];
            *last = last.wrapping_add(random.of(&[1, 0xff, 4, 0xfc]));
        }
    }
}
