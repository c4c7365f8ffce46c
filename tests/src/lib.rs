//! Labs: small networks in namespaces, with real clients, real origins and captures.
//!
//! The tour, from the ground up:
//!
//! | file | noun |
//! |---|---|
//! | [`netns`] | a network namespace: run a closure or a command in it |
//! | [`wait`] | waiting for a condition with a deadline; nothing here sleeps for a fixed time |
//! | [`registry`] | which labs exist, and how the left-overs of killed runs are found |
//! | [`interrupt`] | Ctrl-C takes the labs down too |
//! | [`topology`] | a network described as data: nodes, links, addresses, routes |
//! | [`lab`] | a topology that is up; taken down on drop |
//! | [`standard`] | the one-gateway topologies that most tests use, and their addresses |
//! | [`offload`] | checksum offload of an interface |
//! | [`links`], [`tun`] | devices of other kinds in place of the plain links |
//! | [`worker`] | a helper process driven by JSON lines |
//! | [`origin`], [`client`] | the two helpers: a server that tells callers who they are, a client that counts |
//! | [`peer`] | one connection with both of its ends in hand |
//! | [`pattern`] | a byte stream that any offset of can be verified |
//! | [`packet`], [`capture`], [`pcap`] | what was on the wire |
//! | [`load`] | traffic that goes on while something happens |
//! | [`leak`] | SAFE-1: no packet with a foreign source |
//! | [`odd`], [`flood`] | packets that no honest host sends; many of them |
//! | [`fragment`] | datagrams cut into fragments by hand |
//! | [`config`], [`gateway`] | the real daemon in the gateway's namespace |
//! | [`api`] | the HTTP API by curl |
//! | [`site`] | the standard network with origins and daemon |
//! | [`pair`] | two servers that share an egress IP |
//! | [`systemd`] | a machine with a real systemd, on a node |
//! | [`cgroup`] | running a command in a cgroup of its own |
//! | [`programs`] | where other people's programs are |
//! | [`bird`] | BGP by BIRD |
//! | [`etcd`] | the store that servers share |
//! | [`certificate`] | certificates for tests |
//! | [`libraries`] | where other people's libraries are |
//! | [`service`] | real servers and clients, other people's programs |
//! | [`terminal`] | a program at a terminal: its keys, its screen |
//! | [`seed`] | random numbers that can be repeated |
//! | [`needs`] | what a machine must have, or the test says `SKIPPED` |
//! | [`turn`] | which tests run beside which |
//!
//! Everything needs root: namespaces, packet sockets and BPF are not for others.

pub mod api;
pub mod bird;
pub mod capture;
pub mod certificate;
pub mod cgroup;
pub mod cities;
pub mod client;
pub mod config;
pub mod etcd;
pub mod flood;
pub mod fragment;
pub mod gateway;
pub mod interrupt;
pub mod lab;
pub mod leak;
pub mod libraries;
pub mod links;
pub mod load;
pub mod needs;
pub mod netns;
pub mod odd;
pub mod offload;
pub mod origin;
pub mod packet;
pub mod pair;
pub mod path;
pub mod pattern;
pub mod pcap;
pub mod peer;
pub mod ports;
pub mod programs;
pub mod registry;
pub mod seed;
pub mod service;
pub mod site;
pub mod standard;
pub mod systemd;
pub mod terminal;
pub mod topology;
pub mod tun;
pub mod turn;
pub mod wait;
pub mod worker;
