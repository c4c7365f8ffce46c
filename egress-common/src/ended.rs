//! Flows that ended without their doing: what the sweep tells the daemon, and what the daemon ends.

use crate::family::Address;
use crate::key::Reference;
use crate::record::Cause;

/// Where the record begins in the packet that names a flow to be ended: behind an Ethernet header.
pub const OFFSET: u32 = 14;

/// A flow by its slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The slot's number.
    pub index: u32,
    /// The slot's generation when the flow ended; another one means another flow.
    pub generation: u32,
    /// IP version, 4 or 6: whose slots are meant.
    pub version: u32,
    /// Why the daemon ends it: a [`Cause`] as a number. Of what the sweep has ended always zero.
    pub cause: u32,
}

impl Ended {
    /// Names a slot of a family.
    #[inline(always)]
    pub const fn new<A: Address>(slot: Reference) -> Self {
        Self {
            index: slot.index,
            generation: slot.generation,
            version: if size_of::<A>() == 4 { 4 } else { 6 },
            cause: 0,
        }
    }

    /// The same flow, to be ended for this cause.
    #[must_use]
    pub const fn because(self, cause: Cause) -> Self {
        Self {
            cause: cause as u32,
            ..self
        }
    }

    /// The slot as indexes refer to it.
    #[inline(always)]
    pub const fn reference(self) -> Reference {
        Reference {
            index: self.index,
            generation: self.generation,
        }
    }

    /// The record as it stands in memory.
    pub const fn bytes(self) -> [u8; 16] {
        let ([a, b, c, d], [e, f, g, h]) =
            (self.index.to_ne_bytes(), self.generation.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (self.version.to_ne_bytes(), self.cause.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

const _: () = assert!(size_of::<Ended>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};

    #[test]
    fn bytes_are_the_record() {
        let slot = Reference {
            index: 7,
            generation: 0xdead_beef,
        };
        let record = Ended::new::<V6>(slot).because(Cause::Operator);
        // SAFETY: as many bytes as the record has, all of them initialised.
        let memory = unsafe { std::ptr::from_ref(&record).cast::<[u8; 16]>().read() };
        assert_eq!(record.bytes(), memory);
        assert_eq!((record.reference(), record.version), (slot, 6));
        assert_eq!(Ended::new::<V4>(slot).version, 4);
    }
}
