//! The few calls of `bpf(2)` that the driver needs.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::instruction::Instruction;

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames the kernel makes at a stretch.
const BATCH: u32 = 64;
/// Room for what the verifier says.
const LOG_SIZE: usize = 1 << 16;

/// What a program is for.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Classifier = 3,
    /// `BPF_PROG_TYPE_XDP`.
    Xdp = 6,
}

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(crate) enum Attach {
    /// `BPF_XDP`.
    Xdp = 37,
    /// `BPF_TCX_INGRESS`, behind what is there.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`, behind what is there.
    Egress = 47,
}

/// `union bpf_attr`, as a number of words.
type Attributes = [u32; 32];

fn call(command: libc::c_int, attributes: &Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are as long as said, and what they point to lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

fn open(command: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just opened the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address, as two words of the attributes.
fn pointer<T: ?Sized>(to: *const T) -> [u32; 2] {
    let address = to.cast::<u8>() as u64;
    let bytes = address.to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// Loads a program.
pub(crate) fn load(kind: Kind, instructions: &[Instruction]) -> OwnedFd {
    let mut log = vec![0u8; LOG_SIZE];
    let mut attributes = Attributes::default();
    attributes[0] = kind as u32;
    attributes[1] = instructions.len() as u32;
    attributes[2..4].copy_from_slice(&pointer(instructions.as_ptr()));
    attributes[4..6].copy_from_slice(&pointer(c"GPL".as_ptr()));
    attributes[6] = 1;
    attributes[7] = LOG_SIZE as u32;
    attributes[8..10].copy_from_slice(&pointer(log.as_mut_ptr()));
    open(PROG_LOAD, &attributes).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&log);
        panic!("{error}: {}", said.trim_end_matches('\0'))
    })
}

/// Attaches a program for as long as the result lives.
pub(crate) fn attach(program: i32, interface: u32, to: Attach) -> OwnedFd {
    let mut attributes = Attributes::default();
    attributes[0] = program as u32;
    attributes[1] = interface;
    attributes[2] = to as u32;
    open(LINK_CREATE, &attributes).expect("attaching to an interface (tcx: Linux 6.6)")
}

/// Runs an XDP program on `frames` frames that then arrive on an interface of this namespace.
///
/// # Errors
/// What the kernel says.
pub(crate) fn arrive(program: &OwnedFd, interface: u32, frames: u32) -> io::Result<()> {
    /// The program sets each frame's length anew.
    const TEMPLATE: [u8; 128] = [0; 128];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, TEMPLATE.len() as u32, 0, interface, 0, 0];
    let mut attributes = Attributes::default();
    attributes[0] = program.as_raw_fd() as u32;
    attributes[2] = TEMPLATE.len() as u32;
    attributes[4..6].copy_from_slice(&pointer(TEMPLATE.as_ptr()));
    attributes[8] = frames;
    attributes[10] = size_of_val(&context) as u32;
    attributes[12..14].copy_from_slice(&pointer(context.as_ptr()));
    attributes[16] = LIVE_FRAMES;
    attributes[18] = BATCH;
    call(PROG_TEST_RUN, &attributes).map(|_| ())
}

/// An array of elements that programs and this process share.
pub(crate) struct Shared<T> {
    pub(crate) map: OwnedFd,
    at: *mut T,
    length: usize,
}

// SAFETY: plain memory; who shares it says when.
unsafe impl<T> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    pub(crate) fn new(length: usize) -> Self {
        assert_eq!(size_of::<T>() % 8, 0, "as arrays lay their elements out");
        let mut attributes = Attributes::default();
        attributes[0] = ARRAY;
        attributes[1] = 4;
        attributes[2] = size_of::<T>() as u32;
        attributes[3] = length as u32;
        attributes[4] = MMAPABLE;
        let map = open(MAP_CREATE, &attributes).expect("an array");
        // SAFETY: a mapping of its own; the kernel checks the length.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<T>() * length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self {
            map,
            at: at.cast(),
            length,
        }
    }

    /// The elements. Programs write them only while this thread is in [`arrive`].
    pub(crate) fn elements(&self) -> &[T] {
        // SAFETY: mapped, zeroed by the kernel, and nobody writes them meanwhile.
        unsafe { std::slice::from_raw_parts(self.at, self.length) }
    }

    /// The elements, to change.
    pub(crate) fn elements_mut(&mut self) -> &mut [T] {
        // SAFETY: mapped, zeroed by the kernel, and nobody else writes them meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.length) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.at.cast(), size_of::<T>() * self.length) };
    }
}
