//! Whether this process may do what the data plane needs.

use std::fs;

use crate::dataplane::api::DataPlaneError;

// Numbers of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Whether this process may load and attach kernel programs.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names the missing capability.
pub fn check() -> Result<(), DataPlaneError> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS)
        .map_err(|error| DataPlaneError::failed(format!("reading {STATUS}"), error))?;
    match effective(&status).and_then(missing) {
        None => Ok(()),
        Some(capability) => Err(DataPlaneError::Refused {
            reason: format!("this process lacks {capability}, which kernel programs need"),
            remedy: "run it as root, or with AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON"
                .to_owned(),
        }),
    }
}

/// The effective capabilities of a `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Option<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    if !has(CAP_NET_ADMIN) {
        Some("CAP_NET_ADMIN")
    } else if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        Some("CAP_BPF")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(
            effective("Name:\tegress\nCapEff:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(missing(0x1ff_ffff_ffff), None);
        assert_eq!(missing(0), Some("CAP_NET_ADMIN"));
        assert_eq!(missing(1 << CAP_NET_ADMIN), Some("CAP_BPF"));
        assert_eq!(missing(1 << CAP_NET_ADMIN | 1 << CAP_BPF), None);
    }
}
