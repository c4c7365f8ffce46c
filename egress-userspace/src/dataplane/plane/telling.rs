//! What the data plane lets the network know: routes as long as it is in place, and whose segment an address is on (ANN-1).

use std::collections::BTreeSet;

use egress_common::settings::egress_flag;

use super::Plane;
use crate::config::Announce;
use crate::dataplane::addresses::{self, Addresses};
use crate::dataplane::announce::Announcement;
use crate::dataplane::api::{DataPlaneError, Deadline as _};
use crate::dataplane::deadline;
use crate::dataplane::interfaces::Interface;
use crate::desired::Desired;
use crate::resource::Address;

impl Plane {
    /// Announces egress IPs by routes from now on, or by none.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] where the routes are to go with the daemon and there are no tun devices.
    pub fn announce(&mut self, config: Option<Announce>) -> Result<(), DataPlaneError> {
        self.announcement = Announcement::of(&self.pins, config)?;
        Ok(())
    }

    /// Tells what is new about egress IPs. Those that other servers have a part of are not said on the segment: who of
    /// them is asked there is decided elsewhere.
    pub(super) fn tell(&mut self, egress_ips: &Addresses) {
        let answered: BTreeSet<Address> = egress_ips
            .iter()
            .filter(|(_, known)| known.flags & egress_flag::ANSWER != 0)
            .filter(|(_, known)| known.flags & egress_flag::SHARED == 0)
            .map(|(address, _)| *address)
            .collect();
        self.gratuitous.wish(answered);
        let uplinks = self.ready_uplinks();
        self.say(&uplinks);
        self.wish_announced();
    }

    fn say(&mut self, uplinks: &[Interface]) {
        if let Err(error) = self.gratuitous.say(uplinks) {
            tracing::warn!(%error, "the segment was not told of all egress IPs; it is tried again each second");
        }
    }

    /// What is to be announced: this server's own, and what left its pools while flows still leave by it; but nothing of a
    /// prefix that was withdrawn.
    pub(super) fn wish_announced(&mut self) {
        let own = self.desired.iter().flat_map(Desired::addresses);
        let mut all: BTreeSet<Address> = own.collect();
        match addresses::retired(&self.maps) {
            Ok(retired) => all.extend(retired),
            Err(error) => {
                tracing::warn!(%error, "addresses that left their pools may be withdrawn too early");
            }
        }
        if let Some(desired) = &self.desired {
            all.retain(|address| desired.withdrawn.around(address.net()).is_none());
        }
        self.announcement.wish(all);
    }

    /// Announces what is to be if an uplink is in place, and withdraws all otherwise, and what may be others' by now; returns what
    /// changed.
    pub(super) fn announce_health(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let uplinks = self.ready_uplinks();
        self.say(&uplinks);
        let sound = uplinks.iter().any(|uplink| uplink.up);
        let lapsed = deadline::Pinned::of(&self.maps).has_come();
        self.announcement.settle(sound, lapsed)
    }
}
