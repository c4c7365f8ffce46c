//! The data plane from the daemon's side: loading, pinning, attaching, filling maps, reading them back.
//!
//! The tour. [`api`] is the contract with the control plane. [`Plane`] keeps it for the daemon, [`View`] for
//! whoever only reads, and [`detach()`] takes everything off; all three need nothing but the pins.
//!
//! | file | noun |
//! |---|---|
//! | `plane` | the data plane as the daemon holds it: opened or made, configured, repaired |
//! | `privileges`, `lock`, `neighbours` | who may, and that it is only one, for these pins and for an uplink |
//! | `pins` | the pin directory, and why a SIGKILL at any instant leaves it whole |
//! | `object` | the programs in this binary: sized, loaded, the timer handed over |
//! | `start`, `first`, `check` | on new maps or pinned ones; contents of new ones; whether old ones are what we expect |
//! | `hook`, `attach`, `clsact` | where programs belong; put there by tcx link or clsact filter |
//! | `interfaces`, `devices` | names, indices and addresses; what each is to the programs |
//! | `tables`, `versions`, `addresses` | a configuration as map entries; two versions and a switch; egress IPs |
//! | `tunnel`, `peers` | the interface by which servers reach each other; who they are and what is theirs |
//! | `announce`, `routes`, `stake` | what the network is told about egress IPs: routes of ours, and what they hang on |
//! | `gratuitous` | what a plain segment is told, unasked |
//! | `taken` | addresses that cannot be egress IPs: this host's own, and its routers' |
//! | `troubles` | what is not as the configuration supposes: ports, own addresses, cgroups that are not there |
//! | `cgroups`, `births` | from a cgroup's path to its id; the tracepoints that tell of new ones |
//! | `guard`, `ruleset` | the nftables table that drops what would leak, and its rules |
//! | `watcher` | when to look whether everything is still in place |
//! | `leftover` | what is left in slices that are to pass to another server |
//! | `farewell` | flows that end without their doing: both ends are told |
//! | `view`, `flows`, `route` | a packet's route, hooks, tables, flows and counts, read from pins and mapped memory |
//! | `meters` | what flows have carried, for rates |
//! | `events` | the log of refusals |
//! | `records` | the ring buffer of the flow log |
//! | `probes` | connections of the daemon's own by a given egress IP |
//! | `detach` | everything off again |
//! | `maps`, `sys`, `netlink`, `types` | typed maps; the system calls and messages that libraries lack; the kernel's structures |

mod addresses;
mod announce;
pub mod api;
mod attach;
mod births;
mod carried;
mod cgroups;
mod check;
mod clock;
mod clsact;
mod deadline;
mod detach;
mod devices;
mod events;
mod exits;
mod farewell;
mod first;
mod flows;
mod forwards;
mod gratuitous;
mod guard;
mod hook;
mod interfaces;
mod leftover;
mod lock;
mod maps;
mod meters;
mod neighbours;
mod netlink;
mod object;
mod peers;
mod pins;
mod plane;
mod policies;
mod privileges;
mod probes;
mod records;
mod route;
mod routes;
mod rules;
mod ruleset;
mod stake;
mod start;
mod sys;
mod tables;
mod taken;
mod troubles;
mod tunnel;
mod types;
mod usage;
mod versions;
mod view;
mod watcher;

pub use cgroups::directory as cgroup_directory;
pub use detach::detach;
pub use events::{EventLog, Events};
pub use pins::check_pins;
pub use plane::{Claim, Plane};
pub use privileges::check as check_privileges;
pub use probes::{ProbeExit, Probes, Sight};
pub use records::{FlowRecords, RecordRing};
pub use taken::check_free;
pub use view::View;
pub use watcher::Watcher;
