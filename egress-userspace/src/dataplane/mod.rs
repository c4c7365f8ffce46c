//! The data plane from the daemon's side: loading, pinning, attaching, filling maps, reading them back.

pub mod api;
