//! The real kernel programs, one packet at a time: packet in, packet out, map contents and counts.
//!
//! `BPF_PROG_TEST_RUN` runs a loaded program on a packet and hands back what became of it. Every
//! test has a data plane of its own ([`harness`]), so tests run side by side. They need root; without
//! it each says `SKIPPED` and passes.
//!
//! | file | noun |
//! |---|---|
//! | [`harness`] | a data plane in a box: programs, maps, configuration |
//! | [`load`] | its programs and maps, lent to one test after another |
//! | [`contents`] | what a map holds, put back between tests |
//! | [`world`] | what it is configured with |
//! | [`family`] | what differs between IPv4 and IPv6; [`v4`] and [`v6`] hold the tests that both must pass |
//! | [`packet`] | packets with correct checksums, any field overridable, and the way back from bytes |
//! | [`pieces`] | packets cut into fragments, and put together again |
//! | [`run`] | the system call |
//! | [`loopback`] | what programs send by themselves |
//! | the rest | one step of the data plane each |

#![allow(
    clippy::duplicate_mod,
    reason = "the tests that both families must pass are compiled once for each"
)]

mod contents;
mod family;
mod harness;
mod load;
mod loopback;
mod packet;
mod pieces;
mod run;
mod world;

mod arp;
mod budget;
mod following;
mod forwarding;
mod fragments;
mod fuzz;
mod index;
mod inside;
mod ipv4;
mod ipv6;
mod lapse;
mod returning;
mod seed;
mod shares;
mod slices;
mod steering;
mod v4;
mod v6;
