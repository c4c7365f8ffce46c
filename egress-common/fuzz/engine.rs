//! The properties under libFuzzer, which looks for inputs by what code they reach: `cargo xtask fuzz`.
#![no_main]

mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::check(input));
