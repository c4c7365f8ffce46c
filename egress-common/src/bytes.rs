//! Reading a packet within its bounds: the one interface behind which a packet is a slice on the
//! host and a pair of pointers in the kernel.

/// A packet's bytes.
pub trait Bytes {
    /// `N` bytes from `offset`, or `None` if the packet is shorter.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// One byte.
    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        let [byte] = self.read::<1>(offset)?;
        Some(byte)
    }

    /// A 16-bit field in network byte order.
    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.read::<2>(offset)?))
    }

    /// A 32-bit field in network byte order.
    #[inline(always)]
    fn u32(&self, offset: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.read::<4>(offset)?))
    }
}

/// A packet's bytes, to be changed in place.
pub trait BytesMut: Bytes {
    /// Writes `N` bytes at `offset`, or nothing if the packet is shorter.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
}

impl BytesMut for [u8] {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut::<N>()? = bytes;
        Some(())
    }
}

impl Bytes for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }
}
