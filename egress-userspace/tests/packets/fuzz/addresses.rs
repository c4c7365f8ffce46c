//! Addresses and ports that packets have.

use super::read::{Address, v4};
use crate::seed::Random;
use crate::world::EGRESS;

/// An inside host: mostly of the bound zone.
pub(crate) fn inside(random: &mut Random) -> Address {
    let last = random.below(24) as u8;
    v4(match random.below(16) {
        0 => [10, 2, 0, last],
        1 => [10, 9, 0, last],
        2 => [10, 4, 0, last],
        3 if last == 0 => EGRESS,
        3 if last < 3 => odd(random),
        _ => [10, 1, random.below(2) as u8, last],
    })
}

/// An origin.
pub(crate) fn origin(random: &mut Random) -> Address {
    v4([192, 0, 2, random.below(24) as u8])
}

/// An address that is no host's.
pub(crate) fn odd(random: &mut Random) -> [u8; 4] {
    random.of(&[
        [0; 4],
        [255; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [239, 255, 255, 250],
        [240, 0, 0, 1],
        [169, 254, 1, 1],
        [10, 1, 255, 255],
    ])
}

fn six(prefix: [u8; 6], random: &mut Random) -> Address {
    let [a, b, c, d, e, f] = prefix;
    let last = random.below(24) as u8;
    [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

pub(crate) fn inside6(random: &mut Random) -> Address {
    let prefix = match random.below(8) {
        0 => [0x20, 0x01, 0x0d, 0xb8, 0, 9],
        1 => [0xfe, 0x80, 0, 0, 0, 0],
        _ => [0x20, 0x01, 0x0d, 0xb8, 0, 1],
    };
    six(prefix, random)
}

pub(crate) fn origin6(random: &mut Random) -> Address {
    let prefix = match random.below(32) {
        0 => [0xff, 2, 0, 0, 0, 0],
        1 => [0xfe, 0x80, 0, 0, 0, 0],
        2 => [0, 0, 0, 0, 0, 0],
        _ => [0x20, 0x01, 0x0d, 0xb8, 0, 2],
    };
    six(prefix, random)
}

/// Somewhere in the ranges, or just beyond the smaller one.
pub(crate) fn egress6(random: &mut Random) -> Address {
    let mut address = six([0x20, 0x01, 0x0d, 0xb8, 0, 0xaa], random);
    if random.once_in(2) {
        address[7] = 1;
        address[15] &= 7;
    }
    address
}

/// A client's port.
pub(crate) fn port(random: &mut Random) -> u16 {
    match random.below(16) {
        0 => random.of(&[0, 1, 2_047, 2_048, 65_535]),
        1 => random.number() as u16,
        _ => 40_000 + random.below(48) as u16,
    }
}

/// A service's port.
pub(crate) fn service(random: &mut Random) -> u16 {
    match random.below(16) {
        0 => random.of(&[0, 53, 65_535]),
        1 => random.number() as u16,
        _ => random.of(&[80, 443]),
    }
}
