//! The egress binary.
fn main() {}
