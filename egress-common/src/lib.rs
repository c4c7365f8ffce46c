//! What the kernel programs and the daemon must agree on, and all pure logic.
//!
//! The tour, in the order a new connection meets the files:
//!
//! | file | noun |
//! |---|---|
//! | [`bytes`], [`packet`] | a packet's headers, read within bounds |
//! | [`tag`] | the zone a forwarded packet carries in its mark |
//! | [`settings`] | what the daemon configures: zones, pools, candidates, selectors |
//! | [`policy`] | egress policies: the first that matches a packet |
//! | [`key`], [`index`] | the keys by which a flow is found from either side, and where |
//! | [`count`] | connections of one egress IP to one origin, and their exact cap |
//! | [`usage`] | how a count was used: connections times time, and the most at once |
//! | [`port`], [`siphash`] | slices, quotas, and the choice of a source port |
//! | [`placement`], [`handover`] | which server owns which slices, and how one changes hands |
//! | [`forward`], [`distance`] | to which server a new connection goes, and how far another location is |
//! | [`peer`] | the other servers, and what is theirs |
//! | [`slot`], [`tcp`] | the record of a flow and its TCP state |
//! | [`icmp`] | ICMP errors: what they quote, and what a NAT rewrites in them |
//! | [`clock`], [`expiry`], [`ended`] | points in time, when a flow ends, and who is told |
//! | [`free`] | the list of free records |
//! | [`fragment`] | datagrams that come in fragments: which flow, and which parts were seen |
//! | [`checksum`], [`reply`] | packets we make ourselves |
//! | [`probe`] | connections of the daemon's own by a given egress IP |
//! | [`reason`] | why a packet was dropped: one enum from the kernel to the command line |
//! | [`record`] | what the flow log is told: opened, closed, refused |
//! | [`word`] | the compare-and-swap word everything exact is built on |
//!
//! Nothing here panics, allocates or does I/O: the same code is compiled into the kernel programs
//! and tested on the host against slow, obvious models.
#![cfg_attr(not(test), no_std)]

pub mod armed;
pub mod bytes;
pub mod checksum;
pub mod clock;
pub mod count;
pub mod distance;
pub mod ended;
pub mod expiry;
pub mod family;
pub mod forward;
pub mod fragment;
pub mod free;
pub mod handover;
pub mod icmp;
pub mod index;
pub mod ipv6;
pub mod key;
pub mod layout;
pub mod packet;
pub mod peer;
pub mod placement;
#[cfg(feature = "user")]
mod pod;
pub mod policy;
pub mod port;
pub mod probe;
pub mod range;
pub mod reason;
pub mod record;
pub mod reply;
pub mod settings;
pub mod share;
pub mod siphash;
pub mod slot;
pub mod tag;
pub mod tcp;
pub mod usage;
pub mod word;
