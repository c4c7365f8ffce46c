//! One run of one program: `bpf(BPF_PROG_TEST_RUN)`.
//!
//! The raw call, because the library does not pass the flag that checks `CHECKSUM_COMPLETE`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `BPF_PROG_TEST_RUN` (enum bpf_cmd).
const TEST_RUN: libc::c_int = 10;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`: the packet comes with the sum a device made, and the kernel
/// compares it with the packet afterwards.
const CHECKSUM_COMPLETE: u32 = 1 << 2;
/// Size of `__sk_buff`.
const CONTEXT: usize = 192;

/// Offsets in `__sk_buff` of the fields a test may set.
mod field {
    pub(super) const MARK: usize = 8;
    pub(super) const INGRESS: usize = 36;
    pub(super) const INTERFACE: usize = 40;
    pub(super) const GSO_SEGMENTS: usize = 164;
    pub(super) const GSO_SIZE: usize = 176;
}

/// The part of `union bpf_attr` for this command.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// What a packet carries besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// `skb->mark`.
    pub(crate) mark: u32,
    /// The interface it came in by; 0 if the host made it.
    pub(crate) ingress: u32,
    /// The interface the program runs on: the namespace's loopback has number 1.
    pub(crate) interface: u32,
    /// A device has summed the packet, and the sum must still be right afterwards.
    pub(crate) summed: bool,
    /// Packets on the wire this packet stands for, and their size; 0 for an ordinary packet.
    pub(crate) segments: (u32, u32),
    /// How often the program runs on the same packet.
    pub(crate) repeat: u32,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            mark: 0,
            ingress: 0,
            interface: 1,
            summed: false,
            segments: (0, 0),
            repeat: 1,
        }
    }
}

/// What the program told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `TC_ACT_UNSPEC`: the packet goes on.
    Next,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(i32),
}

impl Verdict {
    fn of(value: u32) -> Self {
        match value as i32 {
            -1 => Self::Next,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What the program returned.
    pub(crate) verdict: Verdict,
    /// The packet afterwards.
    pub(crate) bytes: Vec<u8>,
    /// Its mark afterwards.
    pub(crate) mark: u32,
}

/// Runs a program on a packet.
///
/// # Errors
/// What the kernel says: `EINVAL` for packets it does not take, `EBADMSG` when a device's sum no
/// longer fits.
pub(crate) fn run(program: BorrowedFd<'_>, bytes: &[u8], meta: Meta) -> io::Result<Outcome> {
    let mut context = [0u8; CONTEXT];
    let mut set = |offset: usize, value: u32| {
        context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    };
    set(field::MARK, meta.mark);
    set(field::INGRESS, meta.ingress);
    set(field::INTERFACE, meta.interface);
    set(field::GSO_SEGMENTS, meta.segments.0);
    set(field::GSO_SIZE, meta.segments.1);
    let mut after = [0u8; CONTEXT];
    let mut out = vec![0u8; bytes.len() + 4_096];
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        data_size_in: bytes.len() as u32,
        data_size_out: out.len() as u32,
        data_in: bytes.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: meta.repeat,
        context_size_in: CONTEXT as u32,
        context_size_out: CONTEXT as u32,
        context_in: context.as_ptr() as u64,
        context_out: after.as_mut_ptr() as u64,
        flags: if meta.summed { CHECKSUM_COMPLETE } else { 0 },
        ..Attributes::default()
    };
    loop {
        // SAFETY: the attributes describe buffers that outlive the call.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                TEST_RUN,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        if status == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        // Signals and timers interrupt long runs.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
    out.truncate(attributes.data_size_out as usize);
    let mut mark = [0; 4];
    mark.copy_from_slice(&after[field::MARK..field::MARK + 4]);
    Ok(Outcome {
        verdict: Verdict::of(attributes.verdict),
        bytes: out,
        mark: u32::from_ne_bytes(mark),
    })
}
