//! BPF instructions by name, for programs short enough to be written down.

use std::os::fd::{AsRawFd as _, OwnedFd};

use super::bpf::Instruction;

/// A register.
pub(crate) type Register = u8;

/// Sizes of loads and stores.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// 2 bytes.
    Half = 0x08,
    /// 4 bytes.
    Word = 0x00,
    /// 8 bytes.
    Double = 0x18,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x00,
    Multiply = 0x20,
    Div = 0x30,
    And = 0x50,
    ShiftRight = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Move = 0xb0,
}

const LOAD: u8 = 0x61 & 0x07 | 0x60;
const STORE: u8 = 0x63 & 0x07 | 0x60;
const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const BY_REGISTER: u8 = 0x08;
/// `BPF_PSEUDO_MAP_VALUE`: the address of a map's value.
const MAP_VALUE: u8 = 2;

fn instruction(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// `to = value`
pub(crate) fn set(to: Register, value: i32) -> Instruction {
    with(Op::Move, to, value)
}

/// `to = to OP value`
pub(crate) fn with(op: Op, to: Register, value: i32) -> Instruction {
    instruction(ALU64 | op as u8, to, 0, 0, value)
}

/// `to = to OP from`
pub(crate) fn by(op: Op, to: Register, from: Register) -> Instruction {
    instruction(ALU64 | BY_REGISTER | op as u8, to, from, 0, 0)
}

/// `to = *(SIZE *)(from + offset)`
pub(crate) fn load(size: Size, to: Register, from: Register, offset: i16) -> Instruction {
    instruction(LOAD | size as u8, to, from, offset, 0)
}

/// `*(SIZE *)(to + offset) = from`
pub(crate) fn store(size: Size, to: Register, offset: i16, from: Register) -> Instruction {
    instruction(STORE | size as u8, to, from, offset, 0)
}

/// `to = value`, 64 bits
pub(crate) fn set_wide(to: Register, value: u64) -> [Instruction; 2] {
    [
        instruction(0x18, to, 0, 0, value as i32),
        instruction(0, 0, 0, 0, (value >> 32) as i32),
    ]
}

/// `to =` the address of the map's first value
pub(crate) fn value_of(to: Register, map: &OwnedFd) -> [Instruction; 2] {
    [
        instruction(0x18, to, MAP_VALUE, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
    ]
}

/// The low half of a register into network byte order
pub(crate) fn to_network(to: Register) -> Instruction {
    instruction(0xdc, to, 0, 0, 16)
}

/// `if left > right, skip` that many instructions
pub(crate) fn skip_if_greater(left: Register, right: Register, skip: i16) -> Instruction {
    instruction(JUMP | BY_REGISTER | 0x20, left, right, skip, 0)
}

/// Ends the program with register 0.
pub(crate) fn exit() -> Instruction {
    instruction(JUMP | 0x90, 0, 0, 0, 0)
}
