//! A host that goes by the name of a server that another host is (CLU-3): it uses nothing of what is that server's.

use super::Controller;
use crate::control::protocol::Failure;
use crate::dataplane::api::{DataPlane, DataPlaneError, DataPlaneStatus, Trouble, TroubleKind};
use crate::ownership::Impostor;
use crate::store::Stored;

impl From<&Impostor> for Failure {
    fn from(impostor: &Impostor) -> Self {
        // Started again it is the same, unless only etcd can tell.
        Self {
            usage: impostor.other.is_some(),
            ..Self::failed(impostor.reason(), impostor.remedy())
        }
    }
}

impl From<&Impostor> for Trouble {
    fn from(impostor: &Impostor) -> Self {
        Self {
            kind: TroubleKind::ServerName,
            subject: impostor.server.clone(),
            text: impostor.reason(),
            remedy: impostor.remedy(),
        }
    }
}

fn found(stored: &Stored) -> Option<&Impostor> {
    stored.ownership.as_ref()?.impostor.as_ref()
}

/// Whether a daemon may begin. Where a data plane is at work it has to: only a daemon takes from that what is another host's.
///
/// # Errors
/// Which host the server is, and what to do.
pub(super) fn may_start(stored: &Stored, dataplane: &dyn DataPlane) -> Result<(), Failure> {
    match found(stored) {
        Some(impostor) if !dataplane.status()?.configured => Err(impostor.into()),
        _ => Ok(()),
    }
}

impl Controller {
    /// What the data plane says, and whether this is the server that it goes by.
    ///
    /// # Errors
    /// When the data plane does not say.
    pub fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        let mut status = self.dataplane.status()?;
        status
            .troubles
            .extend(found(&self.stored).map(Trouble::from));
        Ok(status)
    }
}
