//! Where the running kernel keeps a field: read from the type information (BTF) that it publishes of itself.
//!
//! Programs in Rust have no relocations for it, so what they need is looked up here and given to them as constants.

use std::fs;
use std::io;

/// The running kernel's types.
const FILE: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC`, and bytes of a header up to the string section's length.
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Bytes of `struct btf_type` and of `struct btf_member`.
const TYPE: usize = 12;
const MEMBER: usize = 12;
/// `BTF_KIND_STRUCT`.
const STRUCT: u32 = 4;

/// The kernel's types.
pub(super) struct Types {
    bytes: Vec<u8>,
    /// Where types begin and end, and where strings begin.
    types: usize,
    end: usize,
    strings: usize,
}

impl Types {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// It publishes none (`CONFIG_DEBUG_INFO_BTF`), or not in a form we know.
    pub(super) fn of_kernel() -> io::Result<Self> {
        Self::parse(fs::read(FILE)?).ok_or_else(|| io::Error::other(format!("{FILE} is not BTF")))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let field = |at: usize| Some(word(header, at)? as usize);
        let [m0, m1, ..] = *header;
        if u16::from_ne_bytes([m0, m1]) != MAGIC {
            return None;
        }
        let start = field(4)?;
        let types = start.checked_add(field(8)?)?;
        let end = types.checked_add(field(12)?)?;
        let strings = start.checked_add(field(16)?)?;
        (end <= bytes.len() && strings <= bytes.len()).then_some(Self {
            bytes,
            types,
            end,
            strings,
        })
    }

    /// Bytes from the beginning of a structure to one of its fields; `None` if there is no such thing.
    pub(super) fn offset(&self, structure: &str, field: &str) -> Option<u32> {
        let mut at = self.types;
        while at < self.end {
            let info = word(&self.bytes, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let members = at + TYPE;
            if kind == STRUCT && self.is(word(&self.bytes, at)?, structure) {
                let found = (0..count).find_map(|index| {
                    let member = members + index * MEMBER;
                    let bits = word(&self.bytes, member + 8)?;
                    // Where a structure has bit fields, their widths are in the upper byte.
                    let bits = if info >> 31 == 1 {
                        bits & 0xff_ffff
                    } else {
                        bits
                    };
                    self.is(word(&self.bytes, member)?, field)
                        .then_some(bits / 8)
                });
                if found.is_some() {
                    return found;
                }
            }
            at = members + more(kind, count)?;
        }
        None
    }

    /// Whether the text at `offset` is `name`.
    fn is(&self, offset: u32, name: &str) -> bool {
        self.bytes
            .get(self.strings + offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Bytes that follow a type of this kind; `None` for a kind that is not known, behind which nothing can be found.
fn more(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, enumeration of 64 bits.
        4 | 5 | 15 | 19 => 12 * count,
        // Enumeration, prototype.
        6 | 13 => 8 * count,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_running_kernel_are_found() {
        let Ok(types) = Types::of_kernel() else {
            println!(
                "SKIPPED: fields_of_the_running_kernel_are_found: the kernel publishes no types"
            );
            return;
        };
        // Interfaces to user space, which never move.
        assert_eq!(types.offset("bpf_link_info", "prog_id"), Some(8));
        assert_eq!(types.offset("tcphdr", "seq"), Some(4));
        assert!(types.offset("cgroup", "kn").is_some());
        assert_eq!(types.offset("cgroup", "no_such_field"), None);
        assert_eq!(types.offset("no_such_structure", "kn"), None);
    }

    #[test]
    fn what_is_cut_short_is_none() {
        assert!(Types::parse(vec![0; 100]).is_none());
        let mut cut = MAGIC.to_ne_bytes().to_vec();
        cut.extend([1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0]);
        cut.resize(30, 0);
        assert!(Types::parse(cut).is_none());
    }
}
