//! Bytes of a packet in a per-CPU record, read at offsets that only the packet knows.

use egress_common::bytes::Bytes;

/// A record of `ROOM` bytes, a power of two.
pub struct Copied<const ROOM: usize>(pub *const [u8; ROOM]);

impl<const ROOM: usize> Bytes for Copied<ROOM> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const {
            assert!(ROOM.is_power_of_two(), "a mask must be its bound");
        }
        if offset >= ROOM {
            return None;
        }
        // A mask, not a comparison: a bound that the verifier keeps.
        let offset = offset & (ROOM - 1);
        if offset > ROOM - N {
            return None;
        }
        // SAFETY: within the record.
        Some(unsafe { *self.0.cast::<u8>().add(offset).cast::<[u8; N]>() })
    }
}
