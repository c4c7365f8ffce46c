//! A record of the data plane, as one thing whatever its family.

use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};

use egress_common::family::{Address, V4, V6};
use egress_common::key::realm;
use egress_common::reason::Reason;
use egress_common::record::{self, Cause, Flow, Head, Refusal, kind};
use egress_common::slot::{State, flag, server_and_exit};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Open,
    Close(Closed),
    /// Why, by number.
    Refused(u8),
}

/// How a flow ended, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// [`Cause`] as a number.
    pub(super) cause: u8,
    /// [`State`] that it left, as a number.
    pub(super) state: u8,
    /// ns, 17 ms exact.
    pub(super) duration: u64,
    pub(super) packets_out: u32,
    pub(super) packets_in: u32,
    pub(super) bytes_out: u64,
    pub(super) bytes_in: u64,
}

/// Another server that has part in a flow, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// It sent the flow here to be translated (FWD-2).
    From(u32),
    /// It translates the flow; by what egress IP it alone knows.
    To(u32),
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// ns of the monotonic clock.
    pub(super) time: u64,
    pub(super) event: Event,
    /// IP version, slot and generation; of refusals none.
    pub(super) flow: Option<(u8, u32, u32)>,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Zone and pool numbers, 0 where there is none.
    pub(super) zone: u16,
    pub(super) pool: u16,
    /// Version of the configuration, and number of the policy.
    pub(super) policy: Option<(u32, u32)>,
    pub(super) inside: SocketAddr,
    pub(super) origin: SocketAddr,
    pub(super) egress: Option<SocketAddr>,
    pub(super) other: Option<Other>,
}

impl Entry {
    /// Reads a record; `None` if it is none that this version knows.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let head: Head = plain(bytes)?;
        if head.length()? != bytes.len() {
            return None;
        }
        match (head.kind, head.version) {
            (kind::REFUSED, 4) => plain(bytes).map(|refusal| Self::of_refusal::<V4>(&refusal)),
            (kind::REFUSED, _) => plain(bytes).map(|refusal| Self::of_refusal::<V6>(&refusal)),
            (_, 4) => plain(bytes).map(|flow| Self::of_flow::<V4>(&flow)),
            _ => plain(bytes).map(|flow| Self::of_flow::<V6>(&flow)),
        }
    }

    fn of_flow<A: Address + Into<IpAddr>>(flow: &Flow<A>) -> Self {
        let (head, slot) = (&flow.head, &flow.slot);
        let other = if slot.flags & flag::FORWARDED == 0 {
            realm::peer(slot.flow.realm).map(Other::From)
        } else {
            Some(Other::To(server_and_exit(slot.interface).0))
        };
        let egress = SocketAddr::new(slot.egress.into(), slot.egress_port);
        Self {
            time: head.time,
            event: if head.kind == kind::OPEN {
                Event::Open
            } else {
                Event::Close(Closed {
                    cause: head.cause,
                    state: head.state,
                    duration: slot.opened.age(head.time),
                    packets_out: slot.packets_out,
                    packets_in: slot.packets_in,
                    bytes_out: slot.bytes_out,
                    bytes_in: slot.bytes_in,
                })
            },
            flow: Some((head.version, head.index, slot.generation)),
            protocol: slot.flow.protocol,
            zone: slot.zone,
            pool: slot.pool,
            policy: record::which(head.policy),
            inside: SocketAddr::new(slot.flow.inside.into(), slot.flow.inside_port),
            origin: SocketAddr::new(slot.flow.origin.into(), slot.flow.origin_port),
            // Else its inside endpoint stands there.
            egress: (!matches!(other, Some(Other::To(_)))).then_some(egress),
            other,
        }
    }

    fn of_refusal<A: Address + Into<IpAddr>>(refusal: &Refusal<A>) -> Self {
        let flow = &refusal.flow;
        Self {
            time: refusal.head.time,
            event: Event::Refused(refusal.head.cause),
            flow: None,
            protocol: flow.protocol,
            zone: u16::try_from(refusal.zone).unwrap_or(0),
            pool: u16::try_from(refusal.pool).unwrap_or(0),
            policy: record::which(refusal.head.policy),
            inside: SocketAddr::new(flow.inside.into(), flow.inside_port),
            origin: SocketAddr::new(flow.origin.into(), flow.origin_port),
            egress: None,
            other: realm::peer(flow.realm).map(Other::From),
        }
    }
}

impl Event {
    /// Its place among opens, closes and refusals.
    pub(super) const fn place(self) -> usize {
        match self {
            Self::Open => 0,
            Self::Close(_) => 1,
            Self::Refused(_) => 2,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close(_) => "close",
            Self::Refused(_) => "refused",
        }
    }

    /// Why it happened; of an open nothing.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Open => None,
            Self::Close(closed) => {
                Some(Cause::from_number(closed.cause).map_or("unknown", Cause::label))
            }
            Self::Refused(reason) => {
                Some(Reason::from_number(u32::from(reason)).map_or("unknown", Reason::label))
            }
        }
    }
}

impl Closed {
    pub(super) const fn state(&self) -> &'static str {
        State::from_bits(self.state).name()
    }
}

/// A record's bytes as a record.
fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as a `T` has, at whatever alignment; any bytes make one.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Types that any bytes make.
trait Plain: Copy {}
impl Plain for Head {}
impl<A: Address> Plain for Flow<A> {}
impl<A: Address> Plain for Refusal<A> {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use egress_common::clock::Epoch;
    use egress_common::key::FlowKey;
    use egress_common::record::FORMAT;
    use egress_common::slot::Slot;

    /// A record's bytes.
    pub(in crate::flow_log) fn bytes<T: Copy>(record: &T) -> Vec<u8> {
        // SAFETY: `repr(C)` of integers; what the compiler pads is zero in the records below.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }
            .to_vec()
    }

    pub(in crate::flow_log) fn head(kind: u8, cause: u8, time: u64) -> Head {
        Head {
            time,
            format: FORMAT,
            kind,
            version: 4,
            cause,
            state: State::TcpEstablished as u8,
            index: 12,
            policy: 0,
        }
    }

    pub(in crate::flow_log) fn flow(head: Head) -> Flow<V4> {
        Flow {
            head,
            slot: Slot {
                generation: 34,
                opened: Epoch::of(5_000_000_000),
                flow: FlowKey {
                    inside: [10, 1, 0, 2],
                    origin: [203, 0, 113, 5],
                    inside_port: 40_000,
                    origin_port: 443,
                    protocol: 6,
                    ..FlowKey::default()
                },
                egress: [192, 0, 2, 10],
                egress_port: 50_000,
                zone: 7,
                pool: 3,
                packets_out: 5,
                packets_in: 4,
                bytes_out: 500,
                bytes_in: 4_000,
                ..Slot::default()
            },
        }
    }

    pub(in crate::flow_log) fn refusal(reason: Reason, time: u64) -> Refusal<V4> {
        Refusal {
            head: head(kind::REFUSED, reason as u32 as u8, time),
            flow: flow(Head::default()).slot.flow,
            zone: 7,
            pool: 3,
        }
    }

    #[test]
    fn every_reason_fits_a_record() {
        for reason in Reason::ALL {
            assert_eq!(
                Event::Refused(*reason as u32 as u8).reason(),
                Some(reason.label())
            );
        }
    }

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let close = flow(head(kind::CLOSE, Cause::ResetByOrigin as u8, 8_000_000_000));
        let read = Entry::read(&bytes(&close)).unwrap();
        assert_eq!(read.flow, Some((4, 12, 34)));
        assert_eq!(read.egress, Some("192.0.2.10:50000".parse().unwrap()));
        assert_eq!((read.zone, read.pool, read.protocol), (7, 3, 6));
        let Event::Close(closed) = read.event else {
            panic!("{read:?}");
        };
        assert_eq!(read.event.reason(), Some("reset_by_origin"));
        assert_eq!(closed.state(), "established");
        assert!((3_000_000_000..3_017_000_000).contains(&closed.duration));
        let refused = Entry::read(&bytes(&refusal(Reason::CapReached, 1))).unwrap();
        assert_eq!(refused.event.reason(), Some("cap_reached"));
        assert_eq!((refused.egress, refused.flow), (None, None));

        let whole = bytes(&close);
        assert_eq!(Entry::read(&whole[..whole.len() - 1]), None);
        assert_eq!(Entry::read(&[&whole[..], &[0; 8]].concat()), None);
        let other = flow(Head {
            format: FORMAT + 1,
            ..close.head
        });
        assert_eq!(Entry::read(&bytes(&other)), None);
    }
}
