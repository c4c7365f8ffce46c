//! The programs around the data plane's: one makes frames, one begins, one redirects, one observes.

use super::bpf::Shared;
use super::driver::{LONGEST, ROUND, Seen};
use super::instruction::{Helper, If, Instruction, Op, Program, Size};

/// Bits of `Control::current` besides the frame's number.
pub(crate) const WIRE: i32 = 1 << 16;
pub(crate) const ANSWER: i32 = 1 << 17;
pub(crate) const NOBODY: i32 = 1 << 18;

/// What our programs share, eight bytes each.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Control {
    /// Next frame to make.
    pub(crate) next: u64,
    /// The frame whose packet is on its way.
    pub(crate) current: u64,
    /// Answers so far.
    pub(crate) answers: u64,
    /// Whether observers note anything.
    pub(crate) observing: u64,
    /// Frames that could not be made, and notes that could not be taken.
    pub(crate) failures: u64,
    pub(crate) pad: [u64; 3],
}

mod at {
    pub(super) const NEXT: i16 = 0;
    pub(super) const CURRENT: i16 = 8;
    pub(super) const ANSWERS: i16 = 16;
    pub(super) const OBSERVING: i16 = 24;
    pub(super) const FAILURES: i16 = 32;
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) length: u32,
    /// [`WIRE`] or 0.
    pub(crate) wire: u32,
    pub(crate) bytes: [u8; LONGEST],
}

/// What an observer notes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Note {
    pub(crate) length: u32,
    pub(crate) mark: u32,
    /// How often.
    pub(crate) times: u32,
    /// [`Seen`] as a number.
    pub(crate) seen: u32,
    /// Of an answer, or one more: [`Control::current`].
    pub(crate) of: u32,
    pub(crate) pad: u32,
    pub(crate) bytes: [u8; LONGEST],
}

/// Fills a frame with the next packet, its number in front of it.
pub(crate) fn generator(control: &Shared<Control>, frames: &Shared<Frame>) -> Vec<Instruction> {
    Program::default()
        .copy(6, 1)
        .value(7, &control.map)
        .load(Size::Double, 8, 7, at::NEXT)
        .copy(2, 8)
        .with(Op::Add, 2, 1)
        .store(Size::Double, 7, at::NEXT, 2)
        .store(Size::Word, 10, -4, 8)
        .map(1, &frames.map)
        .copy(2, 10)
        .with(Op::Add, 2, -4)
        .call(Helper::MapLookup)
        .jump(If::Equal, 0, 0, "failed")
        .copy(9, 0)
        // Length.
        .load(Size::Word, 2, 6, 4)
        .load(Size::Word, 3, 6, 0)
        .by(Op::Subtract, 2, 3)
        .load(Size::Word, 4, 9, 0)
        .by(Op::Subtract, 4, 2)
        .copy(2, 4)
        .copy(1, 6)
        .call(Helper::XdpAdjustTail)
        .jump(If::Different, 0, 0, "failed")
        // Bytes.
        .load(Size::Word, 4, 9, 0)
        .jump(If::Greater, 4, LONGEST as i32, "failed")
        .jump(If::Equal, 4, 0, "failed")
        .copy(3, 9)
        .with(Op::Add, 3, 8)
        .set(2, 0)
        .copy(1, 6)
        .call(Helper::XdpStoreBytes)
        .jump(If::Different, 0, 0, "failed")
        // Number.
        .set(2, -8)
        .copy(1, 6)
        .call(Helper::XdpAdjustMeta)
        .jump(If::Different, 0, 0, "failed")
        .load(Size::Word, 2, 6, 8)
        .load(Size::Word, 3, 6, 0)
        .copy(4, 2)
        .with(Op::Add, 4, 8)
        .jump_by(If::Greater, 4, 3, "failed")
        .load(Size::Word, 5, 9, 4)
        .by(Op::Or, 5, 8)
        .store(Size::Double, 2, 0, 5)
        .end(2)
        .label("failed")
        .load(Size::Double, 2, 7, at::FAILURES)
        .with(Op::Add, 2, 1)
        .store(Size::Double, 7, at::FAILURES, 2)
        .end(0)
        .finish()
}

/// Notes which packet is on its way. What arrives on the uplink without having been sent there is an
/// answer.
pub(crate) fn begin(control: &Shared<Control>, uplink: bool) -> Program {
    let program = Program::default()
        .value(7, &control.map)
        .load(Size::Word, 2, 1, 140)
        .load(Size::Word, 3, 1, 76)
        .copy(4, 2)
        .with(Op::Add, 4, 8)
        .set(5, NOBODY)
        .jump_by(If::Greater, 4, 3, "read")
        .load(Size::Double, 5, 2, 0)
        .label("read");
    let program = if uplink {
        program
            .copy(4, 5)
            .with(Op::And, 4, WIRE)
            .jump(If::Different, 4, 0, "ours")
            .with(Op::Or, 5, ANSWER)
            .label("ours")
    } else {
        program
    };
    program.store(Size::Double, 7, at::CURRENT, 5).end(-1)
}

/// What routing would do.
pub(crate) fn redirect(to: u32) -> Program {
    Program::default()
        .set(1, to as i32)
        .set(2, 0)
        .call(Helper::Redirect)
        .end_as_is()
}

/// Notes the packet and drops it: with what it is of, or, if that came out before, with the answers.
pub(crate) fn observe(control: &Shared<Control>, notes: &Shared<Note>, seen: Seen) -> Program {
    Program::default()
        .copy(6, 1)
        .value(7, &control.map)
        .load(Size::Double, 2, 7, at::OBSERVING)
        .jump(If::Equal, 2, 0, "drop")
        .load(Size::Double, 8, 7, at::CURRENT)
        .copy(2, 8)
        .with(Op::And, 2, 0xffff)
        .copy(3, 8)
        .with(Op::And, 3, ANSWER)
        .jump(If::Different, 3, 0, "one more")
        .store(Size::Word, 10, -4, 2)
        .map(1, &notes.map)
        .copy(2, 10)
        .with(Op::Add, 2, -4)
        .call(Helper::MapLookup)
        .jump(If::Equal, 0, 0, "failed")
        .load(Size::Word, 2, 0, 8)
        .jump(If::Equal, 2, 0, "note")
        .label("one more")
        .load(Size::Double, 2, 7, at::ANSWERS)
        .copy(3, 2)
        .with(Op::Add, 3, 1)
        .store(Size::Double, 7, at::ANSWERS, 3)
        .with(Op::Add, 2, ROUND as i32)
        .store(Size::Word, 10, -4, 2)
        .map(1, &notes.map)
        .copy(2, 10)
        .with(Op::Add, 2, -4)
        .call(Helper::MapLookup)
        .jump(If::Equal, 0, 0, "failed")
        .label("note")
        .copy(9, 0)
        .store(Size::Word, 9, 16, 8)
        .load(Size::Word, 4, 6, 0)
        .store(Size::Word, 9, 0, 4)
        .load(Size::Word, 2, 6, 8)
        .store(Size::Word, 9, 4, 2)
        .load(Size::Word, 2, 9, 8)
        .with(Op::Add, 2, 1)
        .store(Size::Word, 9, 8, 2)
        .set(2, seen as i32)
        .store(Size::Word, 9, 12, 2)
        .jump(If::Greater, 4, LONGEST as i32, "failed")
        .jump(If::Equal, 4, 0, "failed")
        .copy(3, 9)
        .with(Op::Add, 3, 24)
        .set(2, 0)
        .copy(1, 6)
        .call(Helper::SkbLoadBytes)
        .jump(If::Equal, 0, 0, "drop")
        .label("failed")
        .load(Size::Double, 2, 7, at::FAILURES)
        .with(Op::Add, 2, 1)
        .store(Size::Double, 7, at::FAILURES, 2)
        .label("drop")
        .end(2)
}
