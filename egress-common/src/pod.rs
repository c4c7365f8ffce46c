//! Which types the daemon may read from and write to maps as plain bytes.

use crate::count::Count;
use crate::family::{V4, V6};
use crate::fragment::Datagram;
use crate::free::FreeList;
use crate::index::{Bucket, HashKey};
use crate::key::{FlowKey, OriginKey, Reference, ReverseKey};
use crate::layout::Layout;
use crate::peer::{Owners, Peer, PeerNumber, Traffic, Tunnel};
use crate::policy::{Rule, RuleSet};
use crate::probe::Probe;
use crate::reason::Counter;
use crate::settings::{
    Candidate, CgroupKey, CgroupPath, Device, EgressAddress, InterfaceKey, MarkSelector, Pool,
    Selected, Settings, Switch, Zone,
};
use crate::share::{Forward, Target};
use crate::siphash::Secret;
use crate::slot::Slot;
use crate::usage::WallClock;

macro_rules! pod {
    ($($name:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)` of integers and byte arrays without implicit padding.
            unsafe impl aya::Pod for $name {}
        )*
    };
}

pod!(
    Bucket,
    Forward,
    Target,
    Candidate<V4>,
    Candidate<V6>,
    CgroupKey,
    CgroupPath,
    Count<V4>,
    Count<V6>,
    Counter,
    Device,
    Datagram<V4>,
    Datagram<V6>,
    EgressAddress,
    FlowKey<V4>,
    FlowKey<V6>,
    FreeList,
    HashKey,
    InterfaceKey,
    Layout,
    MarkSelector,
    OriginKey<V4>,
    OriginKey<V6>,
    Owners,
    Peer,
    PeerNumber,
    Pool,
    Probe,
    Reference,
    ReverseKey<V4>,
    ReverseKey<V6>,
    Rule,
    RuleSet,
    Secret,
    Selected,
    Settings,
    Slot<V4>,
    Slot<V6>,
    Switch,
    Traffic,
    Tunnel,
    WallClock,
    Zone,
);
