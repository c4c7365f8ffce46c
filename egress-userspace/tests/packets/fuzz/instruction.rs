//! BPF instructions by name, for programs short enough to be written down.

use std::os::fd::{AsRawFd as _, OwnedFd};

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Sizes of loads and stores.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// 4 bytes.
    Word = 0x00,
    /// 8 bytes.
    Double = 0x18,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    And = 0x50,
    Move = 0xb0,
}

/// When to jump; comparisons are unsigned.
#[derive(Clone, Copy)]
pub(crate) enum If {
    Equal = 0x10,
    Greater = 0x20,
    Different = 0x50,
}

/// The helpers used, by their numbers in `enum bpf_func_id`.
#[derive(Clone, Copy)]
pub(crate) enum Helper {
    MapLookup = 1,
    Redirect = 23,
    SkbLoadBytes = 26,
    XdpAdjustMeta = 54,
    XdpAdjustTail = 65,
    XdpStoreBytes = 190,
}

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const ALU: u8 = 0x07;
const JUMP: u8 = 0x05;
const BY_REGISTER: u8 = 0x08;
/// `BPF_PSEUDO_MAP_FD`: the map itself.
const MAP: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`: the address of a map's value.
const MAP_VALUE: u8 = 2;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// A program in the making: jumps name labels.
#[derive(Default)]
pub(crate) struct Program {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Program {
    fn push(mut self, instruction: Instruction) -> Self {
        self.instructions.push(instruction);
        self
    }

    /// `to = to OP value`
    pub(crate) fn with(self, op: Op, to: u8, value: i32) -> Self {
        self.push(instruction(ALU | op as u8, to, 0, 0, value))
    }

    /// `to = to OP from`
    pub(crate) fn by(self, op: Op, to: u8, from: u8) -> Self {
        self.push(instruction(ALU | BY_REGISTER | op as u8, to, from, 0, 0))
    }

    /// `to = value`
    pub(crate) fn set(self, to: u8, value: i32) -> Self {
        self.with(Op::Move, to, value)
    }

    /// `to = from`
    pub(crate) fn copy(self, to: u8, from: u8) -> Self {
        self.by(Op::Move, to, from)
    }

    /// `to = *(SIZE *)(from + offset)`
    pub(crate) fn load(self, size: Size, to: u8, from: u8, offset: i16) -> Self {
        self.push(instruction(LOAD | size as u8, to, from, offset, 0))
    }

    /// `*(SIZE *)(to + offset) = from`
    pub(crate) fn store(self, size: Size, to: u8, offset: i16, from: u8) -> Self {
        self.push(instruction(STORE | size as u8, to, from, offset, 0))
    }

    /// `to =` the map
    pub(crate) fn map(self, to: u8, map: &OwnedFd) -> Self {
        self.push(instruction(0x18, to, MAP, 0, map.as_raw_fd()))
            .push(instruction(0, 0, 0, 0, 0))
    }

    /// `to =` the address of the map's first value
    pub(crate) fn value(self, to: u8, map: &OwnedFd) -> Self {
        self.push(instruction(0x18, to, MAP_VALUE, 0, map.as_raw_fd()))
            .push(instruction(0, 0, 0, 0, 0))
    }

    /// Calls a helper with registers 1 to 5.
    pub(crate) fn call(self, helper: Helper) -> Self {
        self.push(instruction(JUMP | 0x80, 0, 0, 0, helper as i32))
    }

    /// Jumps if `left` compares so with `value`.
    pub(crate) fn jump(mut self, when: If, left: u8, value: i32, label: &'static str) -> Self {
        self.jumps.push((self.instructions.len(), label));
        self.push(instruction(JUMP | when as u8, left, 0, 0, value))
    }

    /// Jumps if `left` compares so with `right`.
    pub(crate) fn jump_by(mut self, when: If, left: u8, right: u8, label: &'static str) -> Self {
        self.jumps.push((self.instructions.len(), label));
        self.push(instruction(
            JUMP | BY_REGISTER | when as u8,
            left,
            right,
            0,
            0,
        ))
    }

    /// Where jumps to this label go.
    pub(crate) fn label(mut self, label: &'static str) -> Self {
        self.labels.push((label, self.instructions.len()));
        self
    }

    /// Ends with this value.
    pub(crate) fn end(self, value: i32) -> Self {
        self.set(0, value)
            .push(instruction(JUMP | 0x90, 0, 0, 0, 0))
    }

    /// Ends with register 0.
    pub(crate) fn end_as_is(self) -> Self {
        self.push(instruction(JUMP | 0x90, 0, 0, 0, 0))
    }

    /// The instructions, jumps resolved.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let (_, to) = self.labels.iter().find(|(name, _)| *name == label).unwrap();
            self.instructions[at].offset = (*to as i64 - at as i64 - 1) as i16;
        }
        self.instructions
    }
}
