//! The egress daemon as a library.
//!
//! From files to packets: [`config`] and [`resource`] read what people write, with a place for every mistake
//! ([`diagnostic`]); [`plan`] says what would change; [`policy`] reads egress policies and makes tables of them; [`store`] keeps it; [`resolve`], with [`placed`] for what is this server's, boils it down to
//! [`desired`], which [`dataplane`] puts into maps. [`control`] and [`cli`] are the two ends of the socket by
//! which people talk to the daemon; [`api`] is what their programs talk to, by HTTP. [`flow_log`] writes down every connection.
//! [`cluster`] is what the daemons of several servers ask each other.

pub mod api;
mod carried;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod controller;
pub mod daemon;
pub mod dataplane;
pub mod desired;
pub mod diagnostic;
pub mod document;
pub mod explain;
pub mod flow_log;
pub mod forwarding;
pub mod inventory;
pub mod liveness;
mod nets;
mod notify;
pub mod ownership;
pub mod placed;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod resolve;
pub mod resource;
pub mod store;
pub mod top;
pub mod utilization;
