//! The control socket: how the command line talks to the daemon.
//!
//! One JSON object a line in both directions. A client sends one [`Request`] and reads [`Response`]s until
//! [`Response::Done`] or [`Response::Failed`]; lists that may be long come as many [`Response::Item`]s. Every
//! line is bounded, every read and write has a time-out, and at most [`server::MAX_CLIENTS`] clients are served at
//! once: no client can make the daemon wait or grow.

pub mod client;
pub(crate) mod line;
pub mod protocol;
pub mod server;

pub use client::{Client, ClientError};
pub use protocol::{Failure, Filter, Request, Response};
pub use server::{BindError, Handler, Server};
