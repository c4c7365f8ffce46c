//! The few `bpf(2)` commands that aya keeps to itself: what a link is attached to, who is on an interface's tcx
//! hook, and whole ranges of an array in one call.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;

// Commands of `bpf(2)`: `enum bpf_cmd` in linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_DETACH: libc::c_long = 34;

// `enum bpf_attach_type`.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Programs that one query takes in: the kernel allows 64 on a tcx hook (`BPF_MPROG_MAX`).
const MAX_ATTACHED: usize = 64;

/// Which way packets pass a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Direction {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl Direction {
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => BPF_TCX_INGRESS,
            Self::Egress => BPF_TCX_EGRESS,
        }
    }
}

/// What the kernel says about a tcx link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The link's id.
    pub(super) id: u32,
    /// The program it runs.
    pub(super) program: u32,
    /// The interface a tcx link is on; 0 once that interface is gone.
    pub(super) interface: u32,
}

/// A program on an interface's tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// The program's id.
    pub(super) program: u32,
    /// The id of the link that holds it there; 0 if none does.
    pub(super) link: u32,
}

/// `bpf(2)`.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the command's own attribute layout, at least as long as the command reads, and every
    // pointer in it points to memory that the caller keeps for the length of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned object of any kind.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: text.as_ptr() as u64,
        ..ObjectAttr::default()
    };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object; the directory must be there.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: text.as_ptr() as u64,
        fd: raw_fd(object),
        ..ObjectAttr::default()
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TracepointAttr {
    name: u64,
    program: u32,
    pad: u32,
}

/// Attaches a program to a tracepoint for as long as the link is held or pinned.
///
/// # Errors
/// `ENOENT` where the kernel has no such tracepoint.
pub(super) fn open_raw_tracepoint(program: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let mut attr = TracepointAttr {
        name: name.as_ptr() as u64,
        program: raw_fd(program),
        ..TracepointAttr::default()
    };
    let fd = bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` as far as a tcx link fills it, with room for what newer kernels add.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    interface: u32,
    attach_type: u32,
    rest: [u64; 12],
}

/// What a link is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    let mut attr = InfoAttr {
        fd: raw_fd(link),
        length: size_of::<RawLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut raw) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(LinkInfo {
        id: raw.id,
        program: raw.program,
        interface: raw.interface,
    })
}

/// Takes a link off its interface now, not when its last descriptor is closed.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw_fd(link);
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The programs on an interface's tcx hook, in the order in which they run.
///
/// # Errors
/// `EINVAL` where the kernel has no tcx (before Linux 6.6).
pub(super) fn tcx(interface: u32, direction: Direction) -> io::Result<Vec<Attached>> {
    let mut programs = [0_u32; MAX_ATTACHED];
    let mut links = [0_u32; MAX_ATTACHED];
    let mut attr = QueryAttr {
        interface,
        attach_type: direction.attach_type(),
        programs: programs.as_mut_ptr() as u64,
        links: links.as_mut_ptr() as u64,
        count: MAX_ATTACHED as u32,
        ..QueryAttr::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // No program has ever been attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    Ok(programs
        .into_iter()
        .zip(links)
        .take(attr.count as usize)
        .map(|(program, link)| Attached { program, link })
        .collect())
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads `count` elements of an array from `first` on.
pub(super) fn read_range<T: Pod + Default>(
    map: BorrowedFd<'_>,
    first: u32,
    count: u32,
) -> io::Result<Vec<T>> {
    let mut values = vec![T::default(); count as usize];
    if count == 0 {
        return Ok(values);
    }
    let mut keys = vec![0_u32; count as usize];
    // The kernel goes on after the key in `in_batch`; without one, it starts at the first element.
    let before = first.wrapping_sub(1);
    let mut last = 0_u32;
    let mut attr = BatchAttr {
        in_batch: if first == 0 {
            0
        } else {
            std::ptr::from_ref(&before) as u64
        },
        out_batch: std::ptr::from_mut(&mut last) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map: raw_fd(map),
        ..BatchAttr::default()
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {}
        // The end of the array was reached: no error as long as everything asked for is there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && attr.count == count => {}
        Err(error) => return Err(error),
    }
    Ok(values)
}

/// How many entries [`read_all`] asks for at a time.
const CHUNK: u32 = 4096;

/// Reads all entries of a trie or a hash that nobody else changes meanwhile.
pub(super) fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    // SAFETY: keys and values are plain data, for which all zeros are valid.
    let (mut keys, mut values): (Vec<K>, Vec<V>) = unsafe {
        (
            vec![std::mem::zeroed(); CHUNK as usize],
            vec![std::mem::zeroed(); CHUNK as usize],
        )
    };
    // Where the kernel goes on: a key, or a number for hashes.
    let mut token = vec![0_u8; size_of::<K>().max(size_of::<u32>())];
    let mut first = true;
    loop {
        let position = token.as_mut_ptr() as u64;
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { position },
            out_batch: position,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: CHUNK,
            map: raw_fd(map),
            ..BatchAttr::default()
        };
        let outcome = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let count = (attr.count as usize).min(CHUNK as usize);
        match outcome {
            Ok(_) => found.extend(keys.iter().copied().zip(values.iter().copied()).take(count)),
            // The last ones.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
        first = false;
    }
}

/// Writes elements of an array from `first` on.
pub(super) fn write_range<T: Pod>(map: BorrowedFd<'_>, first: u32, values: &[T]) -> io::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let keys: Vec<u32> = (first..first.saturating_add(count)).collect();
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: raw_fd(map),
        ..BatchAttr::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

/// Waits until every program that runs now has ended.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()` by another name, and programs run inside an RCU
/// read-side section. Where it is not available (`nohz_full`), a wait much longer than any program runs.
pub(super) fn wait_for_running_programs() {
    const FALLBACK: std::time::Duration = std::time::Duration::from_millis(100);
    // SAFETY: takes two integers and no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(FALLBACK);
    }
}
