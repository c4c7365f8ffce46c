//! `[control]`: the socket by which the command line reaches the daemon.

use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::Table;

/// The longest path of a Unix socket: `sun_path` (108 bytes) with its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Path of the socket; `/run/egress/egress.sock` by default. Its mode is 0600.
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: "/run/egress/egress.sock".into(),
        }
    }
}

impl Control {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let mut control = Self::default();
        if let Some(value) = table.get("socket", "socket = \"/run/egress/egress.sock\"")
            && let Some(path) = value.name()
        {
            let path = resolve(directory, &path);
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                value.refuse(
                    format!(
                        "the socket's path is longer than {MAX_SOCKET_PATH} bytes: {}",
                        path.display()
                    ),
                    "choose a shorter one, for instance socket = \"/run/egress/egress.sock\"",
                );
            }
            control.socket = path;
        }
        table.finish();
        control
    }
}
