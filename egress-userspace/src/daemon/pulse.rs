//! Says again and again that this server is there (CLU-3), on a thread that waits for nobody but the store.

use std::sync::Arc;
use std::thread;

use crate::controller::Service;

/// The thread; it ends soon after this is dropped.
pub(super) struct Pulse {
    service: Arc<Service>,
}

impl Pulse {
    pub(super) fn start(service: Arc<Service>) -> std::io::Result<Self> {
        let beats = Arc::clone(&service);
        let beat = move || {
            let mut trouble = None;
            loop {
                let outcome = beats.pulse().map_err(|failure| failure.reason);
                if let Err(reason) = &outcome
                    && trouble.as_ref() != Some(reason)
                {
                    tracing::warn!(
                        reason,
                        "the others are not told that this server is there, or do not tell (`takeover_after`)"
                    );
                }
                trouble = outcome.err();
                if !beats.wait_for_pulse() {
                    break;
                }
            }
        };
        thread::Builder::new()
            .name("pulse".to_owned())
            .spawn(beat)?;
        Ok(Self { service })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.service.end_pulse();
    }
}
