//! The hand-over of a slice (CLU-3): a moving slice drains before its new owner gives out ports of it.
//!
//! The record of a slice names its owner and, while it moves, who is to have it. The owner of a moving slice opens no
//! flows there; replies still go to it. When it reports that nothing is left, or the operator says it is fenced, the
//! slice changes hands. There is no step by which two servers may open flows in one slice.

/// Nobody: servers are numbered from 1.
pub const NOBODY: u16 = 0;

/// Whose a slice is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The owner, to which replies go; or [`NOBODY`].
    pub owner: u16,
    /// Who gets it when the owner has drained it; [`NOBODY`] while it stays where it is.
    pub next: u16,
}

impl Holding {
    /// A slice that stays with its owner.
    pub const fn of(owner: u16) -> Self {
        Self {
            owner,
            next: NOBODY,
        }
    }

    /// Whether the owner drains it.
    pub const fn is_draining(self) -> bool {
        self.next != NOBODY
    }

    /// Whether a server may open flows in it.
    pub const fn may_open(self, server: u16) -> bool {
        server != NOBODY && self.owner == server && !self.is_draining()
    }

    /// After a new division gave the slice to `server`. It may take back what it still drains.
    pub const fn given_to(self, server: u16) -> Self {
        if self.owner == NOBODY {
            Self::of(server)
        } else if self.owner == server {
            Self::of(self.owner)
        } else {
            Self {
                owner: self.owner,
                next: server,
            }
        }
    }

    /// After `server` reported that it has no entries left, quarantine included. Only the owner of a draining slice
    /// is believed: a report that was under way while the slice was taken back changes nothing.
    pub const fn released_by(self, server: u16) -> Self {
        if self.owner == server && self.is_draining() {
            Self::of(self.next)
        } else {
            self
        }
    }

    /// After the operator said that `server` is fenced and will not be back (`egress server forget`).
    pub const fn without(self, server: u16) -> Self {
        let next = if self.next == server {
            NOBODY
        } else {
            self.next
        };
        if self.owner == server {
            Self::of(next)
        } else {
            Self {
                owner: self.owner,
                next,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Given(u16),
        Drained(u16),
        Forgotten(u16),
        Opens(u16),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let server = 1u16..5;
        let event = prop_oneof![
            server.clone().prop_map(Event::Given),
            server.clone().prop_map(Event::Drained),
            server.clone().prop_map(Event::Forgotten),
            server.prop_map(Event::Opens),
        ];
        proptest::collection::vec(event, 0..60)
    }

    proptest! {
        /// The model: which servers have flows in the slice. Two at once is what must not be.
        #[test]
        fn clu_3_no_two_servers_have_flows_in_a_slice(events in events()) {
            let mut slice = Holding::default();
            let mut live = std::collections::BTreeSet::new();
            for event in events {
                match event {
                    Event::Given(server) => slice = slice.given_to(server),
                    // A server reports when its flows have ended; that may be at any time, also about a slice that
                    // is not its own.
                    Event::Drained(server) if !slice.may_open(server) => {
                        live.remove(&server);
                        slice = slice.released_by(server);
                    }
                    Event::Drained(_) => {}
                    Event::Forgotten(server) => {
                        live.remove(&server);
                        slice = slice.without(server);
                    }
                    Event::Opens(server) => {
                        if slice.may_open(server) {
                            live.insert(server);
                        }
                    }
                }
                prop_assert!(live.len() <= 1, "{event:?}: {live:?}, {slice:?}");
                prop_assert!((1..5).filter(|server| slice.may_open(*server)).count() <= 1);
                for server in &live {
                    prop_assert_eq!(slice.owner, *server, "replies go astray");
                }
                prop_assert!(slice.next == NOBODY || slice.owner != NOBODY && slice.next != slice.owner);
            }
        }
    }

    #[test]
    fn clu_3_a_moving_slice_drains_first_and_may_be_taken_back() {
        let moving = Holding::of(1).given_to(2);
        assert!(moving.is_draining() && !moving.may_open(1) && !moving.may_open(2));
        assert_eq!(moving.owner, 1, "replies still go to the old owner");
        assert_eq!(moving.released_by(2), moving, "only the owner can let go");
        assert!(moving.released_by(1).may_open(2));
        assert!(moving.given_to(1).may_open(1));
        assert_eq!(moving.given_to(1).released_by(1), Holding::of(1));
        assert_eq!(moving.given_to(3).released_by(1), Holding::of(3));
        assert_eq!(moving.without(1), Holding::of(2));
        assert_eq!(moving.without(2), Holding::of(1));
    }
}
