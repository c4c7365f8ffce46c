//! The few calls of bpf(2) that the generator needs, with programs made of raw instructions: measuring needs no
//! compiler.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};

/// Commands of bpf(2).
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`: the frames are really sent.
const LIVE_FRAMES: u32 = 1 << 1;
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

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low half, source in the high one.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The attributes of `BPF_MAP_CREATE`, as far as used.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The attributes of `BPF_PROG_LOAD`, as far as used.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The attributes of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    retval: u32,
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
    batch_size: u32,
    padding: u32,
}

/// The attributes of `BPF_LINK_CREATE`, as far as used; the rest must be zero.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    expected_revision: u64,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_interface: u32,
    rx_queue: u32,
    egress_interface: u32,
}

/// An array map with one 8-byte value.
pub(crate) fn counter() -> Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
    };
    open(MAP_CREATE, &attributes).context("cannot create a map")
}

/// Loads a program.
pub(crate) fn load(kind: Kind, instructions: &[Instruction]) -> Result<OwnedFd> {
    let mut log = vec![0u8; LOG_SIZE];
    let attributes = ProgLoad {
        prog_type: kind as u32,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: LOG_SIZE as u32,
        log: log.as_mut_ptr() as u64,
    };
    open(PROG_LOAD, &attributes).with_context(|| {
        let said = String::from_utf8_lossy(&log);
        format!(
            "cannot load a program; the verifier says: {}",
            said.trim_end_matches('\0').trim()
        )
    })
}

/// Drops whatever an interface of the current namespace receives, as long as the result lives.
pub(crate) fn drop_received(interface: u32) -> Result<OwnedFd> {
    // TCX_DROP
    let program = load(
        Kind::Classifier,
        &[super::instruction::set(0, 2), super::instruction::exit()],
    )?;
    let attributes = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: TCX_INGRESS,
        ..LinkCreate::default()
    };
    open(LINK_CREATE, &attributes).context("cannot attach a program by tcx (Linux 6.6)")
}

/// Sends `repeat` frames out of an interface of the current namespace, by an XDP program that returns `XDP_TX`.
pub(crate) fn send_live(
    program: &OwnedFd,
    frame: &[u8],
    interface: u32,
    repeat: u32,
) -> Result<()> {
    let length = u32::try_from(frame.len())?;
    let context = XdpContext {
        data_end: length,
        ingress_interface: interface,
        ..XdpContext::default()
    };
    let attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: length,
        data_in: frame.as_ptr() as u64,
        repeat,
        context_size_in: size_of::<XdpContext>() as u32,
        context_in: (&raw const context) as u64,
        flags: LIVE_FRAMES,
        ..TestRun::default()
    };
    match call(PROG_TEST_RUN, &attributes) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).context("cannot send live frames (Linux 5.18)"),
    }
}

fn open<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    let fd = call(command, attributes)?;
    if fd < 0 {
        bail!("bpf(2) returned {fd}");
    }
    // SAFETY: the kernel has just opened the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are as long as said, and what they point to lives until the caller returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(value @ 0..) => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
