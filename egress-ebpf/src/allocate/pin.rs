//! The place of a flow that another server translates.

use egress_common::key::OriginKey;
use egress_common::port::EVERY_PORT;
use egress_common::reason::Reason;
use egress_common::settings::Candidate;
use egress_common::slot::forwarded_by;

use super::Scratch;
use crate::count;
use crate::outgoing::Outgoing;

/// More flows than a table holds: what is forwarded has its cap elsewhere.
const NO_CAP: u32 = u32::MAX >> 1;

/// A key on the stack, where the verifier wants whole words.
#[repr(C, align(8))]
struct Aligned<A>(OriginKey<A>);

/// Takes a place in the count of the packet's server, and says that the flow is found again by its inside endpoint.
/// False if there is no place.
#[inline(never)]
pub fn place<A: Scratch>(packet: &Outgoing<A>) -> bool {
    let Some(open) = A::scratch() else {
        return false;
    };
    // SAFETY: this CPU's own record, here and below; the slot is ours while it is being opened.
    unsafe {
        let Some(slot) = A::slot((*open).mine.index) else {
            return false;
        };
        (*slot).interface = forwarded_by(packet.peer, packet.exit);
        (*open).candidate = Candidate {
            address: packet.key.inside,
            // Every port, those below 2048 too: it is the client's own.
            slices: EVERY_PORT,
            capacity: NO_CAP,
            flags: 0,
            length: 0,
        };
        (*open).oldest_port = 0;
        (*open).oldest_age = 0;
        let key = Aligned(OriginKey::<A>::of_peer(packet.peer, packet.key.protocol));
        match count::reserve(&key.0, NO_CAP, (*open).now) {
            Ok(place) => {
                (*open).place = place;
                (*open).reason = Reason::NoPort as u32;
                true
            }
            Err(reason) => {
                (*open).reason = reason as u32;
                false
            }
        }
    }
}
