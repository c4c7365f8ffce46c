//! The real kernel programs, one packet at a time: packet in, packet out, map contents and counts.
//!
//! `BPF_PROG_TEST_RUN` runs a loaded program on a packet and hands back what became of it. Every
//! test has a data plane of its own ([`harness`]), so tests run side by side. They need root; without
//! it each says `SKIPPED` and passes.
//!
//! | file | noun |
//! |---|---|
//! | [`harness`] | a data plane in a box: programs, maps, configuration |
//! | [`world`] | what it is configured with |
//! | [`packet`] | packets with correct checksums, any field overridable, and the way back from bytes |
//! | [`pieces`] | packets cut into fragments, and put together again |
//! | [`run`] | the system call |
//! | [`loopback`] | what programs send by themselves |
//! | the rest | one step of the data plane each |

mod harness;
mod loopback;
mod packet;
mod pieces;
mod run;
mod world;

mod admission;
mod arp;
mod budget;
mod choice;
mod closing;
mod concurrency;
mod fragments;
mod full;
mod fuzz;
mod guard;
mod icmp;
mod index;
mod inside;
mod link;
mod malformed;
mod model;
mod over;
mod passing;
mod quarantine;
mod random;
mod realm;
mod refusal;
mod rfc;
mod seed;
mod sweep;
mod translation;
mod unanswered;
mod versions;
mod wire;
