//! What a map holds, whatever it is for, and how to make it hold that again.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Map, MapData, RingBuf};
use aya::util::nr_cpus;

/// Of `enum bpf_cmd`.
const UPDATE_ELEM: libc::c_int = 2;
const DELETE_ELEM: libc::c_int = 3;
const GET_NEXT_KEY: libc::c_int = 4;
const LOOKUP_BATCH: libc::c_int = 24;
const UPDATE_BATCH: libc::c_int = 26;

/// A map's contents at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    name: String,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// The elements that are not all zeros, by their number.
    Array(Vec<(u32, Vec<u8>)>),
    /// Nothing: it has keys, and none of them was there.
    NoKeys,
    /// Nothing: it is a buffer of messages, and none was in it.
    NoMessages,
}

impl Contents {
    /// What a map holds.
    pub(crate) fn of(name: &str, map: &Map) -> Self {
        let kind = match map {
            Map::Array(_) | Map::PerCpuArray(_) => {
                let elements = Elements::of(data(map));
                let zeros = vec![0; elements.size];
                let found = elements.different(|_| &zeros);
                Kind::Array(found.map(|(n, value)| (n, value.to_vec())).collect())
            }
            Map::HashMap(_) | Map::LpmTrie(_) => {
                assert_eq!(first_key(data(map)), None, "{name} is not empty");
                Kind::NoKeys
            }
            Map::RingBuf(_) => Kind::NoMessages,
            _ => panic!("{name}: it is not known how to put back what such a map holds"),
        };
        Self {
            name: name.to_owned(),
            kind,
        }
    }

    /// The map's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes these elements of an array what they were.
    pub(crate) fn put_back_elements(&self, map: &Map, elements: impl IntoIterator<Item = u32>) {
        let Kind::Array(beginning) = &self.kind else {
            panic!("{} is no array", self.name);
        };
        let map = data(map);
        let zeros = vec![0; stride(map)];
        let mut keys: Vec<u32> = elements.into_iter().collect();
        let values = keys
            .iter()
            .flat_map(|n| element(beginning, *n).unwrap_or(&zeros));
        let mut values: Vec<u8> = values.copied().collect();
        update(map, &mut keys, &mut values);
    }

    /// Makes the map hold it again.
    pub(crate) fn put_back(&self, map: &mut Map) {
        match &self.kind {
            Kind::Array(beginning) => {
                let elements = Elements::of(data(map));
                let zeros = vec![0; elements.size];
                let wrong = elements.different(|n| element(beginning, n).unwrap_or(&zeros));
                let wrong: Vec<u32> = wrong.map(|(n, _)| n).collect();
                self.put_back_elements(map, wrong);
            }
            Kind::NoKeys => {
                while let Some(mut key) = first_key(data(map)) {
                    let deleted = delete(data(map), &mut key);
                    assert!(deleted.is_ok(), "{}: {deleted:?}", self.name);
                }
            }
            Kind::NoMessages => {
                let mut ring = RingBuf::try_from(map).unwrap();
                while ring.next().is_some() {}
            }
        }
    }
}

/// What an element held, if not all zeros.
fn element(of: &[(u32, Vec<u8>)], n: u32) -> Option<&Vec<u8>> {
    let place = of.binary_search_by_key(&n, |(of, _)| *of).ok()?;
    Some(&of[place].1)
}

/// Makes a map hold something else; whether that can be done from outside.
pub(crate) fn scribble(name: &str, map: &Map) -> bool {
    match map {
        Map::Array(_) if is_constant(name) => false,
        Map::Array(data) | Map::PerCpuArray(data) => {
            let entries = data.info().unwrap().max_entries();
            let mut keys: Vec<u32> = (0..entries).collect();
            update(
                data,
                &mut keys,
                &mut vec![0x5a; stride(data) * entries as usize],
            );
            true
        }
        Map::HashMap(data) | Map::LpmTrie(data) => {
            let mut key = vec![0; data.info().unwrap().key_size() as usize];
            let mut value = vec![0x5a; stride(data)];
            // Of a trie, prefixes of no bits and of one.
            for first in [0, 1] {
                key[0] = first;
                let mut attributes = Single {
                    map: data.fd().as_fd().as_raw_fd() as u32,
                    key: key.as_mut_ptr() as u64,
                    next: value.as_mut_ptr() as u64,
                    ..Single::default()
                };
                call(UPDATE_ELEM, &mut attributes).expect(name);
            }
            true
        }
        _ => false,
    }
}

/// Whether it is one of the maps of constants, which nobody can write.
pub(crate) fn is_constant(name: &str) -> bool {
    name.starts_with(".rodata")
}

/// The map itself, of the kinds that the programs have.
pub(crate) fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(map)
        | Map::PerCpuArray(map)
        | Map::HashMap(map)
        | Map::LpmTrie(map)
        | Map::RingBuf(map) => map,
        _ => panic!("another kind of map"),
    }
}

/// All elements of an array.
struct Elements {
    /// Bytes of one, of all CPUs.
    size: usize,
    bytes: Vec<u8>,
}

impl Elements {
    fn of(map: &MapData) -> Self {
        let info = map.info().unwrap();
        let entries = info.max_entries();
        let size = stride(map);
        let mut bytes = vec![0; size * entries as usize];
        let mut keys = vec![0u32; entries as usize];
        let (read, result) = batch(LOOKUP_BATCH, map, &mut keys, &mut bytes);
        // At the end of the map it may say that there are no more.
        let end = result.is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT));
        assert!(!end && read == entries as usize, "reads all {entries}");
        Self { size, bytes }
    }

    /// The elements that are not as they should be, and their numbers.
    fn different<'a>(
        &'a self,
        right: impl Fn(u32) -> &'a Vec<u8>,
    ) -> impl Iterator<Item = (u32, &'a [u8])> {
        let numbered = (0u32..).zip(self.bytes.chunks_exact(self.size));
        numbered.filter(move |(n, value)| *value != right(*n))
    }
}

/// Bytes of an element, of all CPUs, as system calls see them.
fn stride(map: &MapData) -> usize {
    let info = map.info().unwrap();
    let size = info.value_size() as usize;
    match info.map_type().unwrap() {
        aya::maps::MapType::PerCpuArray => size.next_multiple_of(8) * nr_cpus().unwrap(),
        _ => size,
    }
}

/// Writes elements of an array.
fn update(map: &MapData, keys: &mut [u32], values: &mut [u8]) {
    if keys.is_empty() {
        return;
    }
    let (written, result) = batch(UPDATE_BATCH, map, keys, values);
    result.expect("elements are written");
    assert_eq!(written, keys.len(), "all of them");
}

/// Any key, if there is one.
fn first_key(map: &MapData) -> Option<Vec<u8>> {
    let mut key = vec![0; map.info().unwrap().key_size() as usize];
    let mut attributes = Single {
        map: map.fd().as_fd().as_raw_fd() as u32,
        next: key.as_mut_ptr() as u64,
        ..Single::default()
    };
    match call(GET_NEXT_KEY, &mut attributes) {
        Ok(()) => Some(key),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Err(error) => panic!("{error}"),
    }
}

fn delete(map: &MapData, key: &mut [u8]) -> io::Result<()> {
    let mut attributes = Single {
        map: map.fd().as_fd().as_raw_fd() as u32,
        key: key.as_mut_ptr() as u64,
        ..Single::default()
    };
    call(DELETE_ELEM, &mut attributes)
}

/// The part of `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Single {
    map: u32,
    pad: u32,
    key: u64,
    /// The value, or where the next key goes.
    next: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for many elements.
#[repr(C)]
#[derive(Default)]
struct Batch {
    start: u64,
    reached: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads or writes the elements with these numbers, or as many as there are numbers; how many were, and what the
/// kernel said.
fn batch(
    command: libc::c_int,
    map: &MapData,
    keys: &mut [u32],
    values: &mut [u8],
) -> (usize, io::Result<()>) {
    assert_eq!(keys.len() * stride(map), values.len());
    let mut reached = 0u64;
    let mut attributes = Batch {
        reached: &raw mut reached as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len() as u32,
        map: map.fd().as_fd().as_raw_fd() as u32,
        ..Batch::default()
    };
    let result = call(command, &mut attributes);
    (attributes.count as usize, result)
}

/// `bpf(2)`. What the attributes point to must outlive the call.
fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the attributes are as long as said; callers in this file hand in buffers as long as the map has it.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if status == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
