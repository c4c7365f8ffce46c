//! What the flow log was told.

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use egress_common::count::Count;
use egress_common::key::{OriginKey, Reference};
use egress_common::record::{Cause, Flow, Head, Refusal, kind};
use egress_common::slot::Slot;

use super::{Plane, map};
use crate::family::Family;

/// A record.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<A> {
    Opened(Flow<A>),
    Closed(Flow<A>, Cause),
    Refused(Refusal<A>),
}

/// The name of a record's flow.
pub(crate) fn name<A>(flow: &Flow<A>) -> Reference {
    Reference {
        index: flow.head.index,
        generation: flow.slot.generation,
    }
}

/// The ring, to be read by whoever has it.
pub(crate) struct FlowLog(RingBuf<MapData>);

impl FlowLog {
    /// Every record since the last time.
    pub(crate) fn told<A: Family>(&mut self) -> Vec<Told<A>> {
        let mut told = Vec::new();
        while let Some(item) = self.0.next() {
            let head: Head = read(&item);
            assert_eq!(head.length(), Some(item.len()), "{head:?}");
            assert_eq!(u32::from(head.version), A::VERSION);
            told.push(match head.kind {
                kind::OPEN => {
                    assert_eq!((head.cause, head.state), (0, 0));
                    Told::Opened(read(&item))
                }
                kind::CLOSE => Told::Closed(read(&item), Cause::from_number(head.cause).unwrap()),
                _ => Told::Refused(read(&item)),
            });
        }
        told
    }
}

fn read<T: Copy>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>());
    // SAFETY: long enough, and every `T` above is `repr(C)` of integers.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

impl<A: Family> Plane<A>
where
    Slot<A>: Pod,
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    /// The flow log's ring.
    pub(crate) fn flow_log(&self) -> FlowLog {
        FlowLog(map(&self.load, "FLOW_LOG", RingBuf::try_from))
    }
}
