//! The most connections at once in each second of five minutes (OBS-1): what servers of one data center that share an
//! address need of each other.
//!
//! The data plane keeps the maximum of the last second in which something changed, and of the one before it
//! (`egress_common::usage::Seconds`): who looks once a second knows all, also what lasted for a moment only. A second that
//! nobody knows has the most of the five minutes: it is never told as less than it was.

use egress_common::usage::{Area, Second, Seconds, Usage};

/// Seconds of five minutes.
pub const LENGTH: usize = 300;

/// The most connections at once, second by second. Empty where they were not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(Vec<u16>);

impl Levels {
    /// Five minutes without a connection.
    pub fn zero() -> Self {
        Self(vec![0; LENGTH])
    }

    /// Whether they were not kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Raises each of the seconds `from` to `to`, both included, to at least this.
    pub fn raise(&mut self, from: usize, to: usize, level: u64) {
        let level = u16::try_from(level).unwrap_or(u16::MAX);
        let end = self.0.len().min(to.saturating_add(1));
        for second in self.0.get_mut(from..end).into_iter().flatten() {
            *second = level.max(*second);
        }
    }

    /// Enters what a count has of the seconds `from` to `to` of five minutes, which began at the second `first`. `bound` is
    /// the most of what it has of these five minutes.
    pub fn enter(&mut self, usage: &Usage, first: Second, from: usize, to: usize, bound: u64) {
        let known = Seconds::from_bits(usage.seconds);
        let level = Area::from_bits(usage.area).level;
        // Nothing changed since.
        let told = |second: Second| {
            if !known.second.is_of_era(second) {
                let earlier = known.second.is_of_earlier_era(second);
                return if earlier { level.into() } else { bound };
            }
            match second.after(known.second) {
                1.. => level.into(),
                0 => known.most.into(),
                -1 => known.before.into(),
                _ => bound,
            }
        };
        for at in from..=to.min(LENGTH - 1) {
            let by = u32::try_from(at).unwrap_or(u32::MAX);
            // What is unknown to the data plane is above all.
            self.raise(at, at, told(first.plus(by)).min(bound));
        }
    }

    /// Second by second.
    pub fn all(&self) -> &[u16] {
        &self.0
    }

    /// As it is kept and told: of each run of equal seconds how many they are, and by how much it differs from the one
    /// before. Two to five bytes a run.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut before = 0;
        for run in self.0.chunk_by(|one, other| one == other) {
            let level = i32::from(run.first().copied().unwrap_or_default());
            number(&mut bytes, u32::try_from(run.len()).unwrap_or(u32::MAX));
            let by = level - before;
            // The sign last, so that small differences are small numbers.
            number(&mut bytes, (by << 1 ^ by >> 31).cast_unsigned());
            before = level;
        }
        bytes
    }

    /// What was kept or told; `None` if that is no five minutes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let (mut levels, mut level) = (Vec::with_capacity(LENGTH), 0_i32);
        while levels.len() < LENGTH {
            let length = usize::try_from(take(&mut rest)?).ok()?;
            let by = take(&mut rest)?;
            let by = (by >> 1).cast_signed() ^ -(by & 1).cast_signed();
            level = level.checked_add(by)?;
            let told = u16::try_from(level).ok()?;
            if length == 0 || length > LENGTH - levels.len() {
                return None;
            }
            levels.resize(levels.len() + length, told);
        }
        rest.is_empty().then_some(Self(levels))
    }
}

/// Seven bits a byte, the lowest first; all but the last have the highest bit.
fn number(bytes: &mut Vec<u8>, mut number: u32) {
    while number > 0x7f {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn take(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(runs in prop::collection::vec((1usize..200, 0u16..=40_000), 1..400)) {
            let mut levels = Levels::zero();
            let mut from = 0;
            for (length, level) in runs {
                levels.raise(from, from + length - 1, level.into());
                from += length;
            }
            let bytes = levels.bytes();
            prop_assert!(bytes.len() <= LENGTH * 5);
            prop_assert_eq!(Levels::read(&bytes), Some(levels));
            prop_assert_eq!(Levels::read(&bytes[..bytes.len() - 1]), None, "cut off");
            prop_assert_eq!(Levels::read(&[bytes.as_slice(), &[1, 0]].concat()), None, "too long");
        }

        #[test]
        fn what_another_server_says_is_five_minutes_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(levels) = Levels::read(&bytes) {
                prop_assert_eq!(levels.all().len(), LENGTH);
            }
        }
    }

    #[test]
    fn five_quiet_minutes_take_a_few_bytes() {
        let mut levels = Levels::zero();
        assert_eq!(levels.bytes(), [0xac, 2, 0]);
        levels.raise(0, LENGTH, 40_000);
        assert_eq!(levels.bytes().len(), 5);
        assert_eq!(Levels::read(&[]), None);
    }
}
