//! What the uplink's two programs must do, said slowly: flows in a hash map, every rule spelled out.
//!
//! Written from SPEC's rules, not from the programs: positions in a byte stream are signed distances
//! from where it began, and nothing is packed. Ports are the programs' choice; the model checks that
//! a choice was allowed.

use std::collections::{HashMap, HashSet};

use super::{Address, Endpoint, KEPT, Packet, RANDOM};
use crate::packet::{ACK, Body, FIN, RST, SYN, Tcp};

/// Who talks to whom: protocol, inside, origin.
pub(crate) type Key = (u8, Endpoint, Endpoint);

/// Life of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    HalfOpen,
    Established,
    Unanswered,
    Answered,
    Closed,
}

/// One side of a connection, in positions of its own and of the other side's stream.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// The number its stream begins with, once known.
    first: Option<u32>,
    /// How far it has sent.
    sent: i64,
    /// How far it has acknowledged the other's stream.
    acknowledged: i64,
    /// Its receive window.
    window: i64,
    finished: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) egress: Endpoint,
    pub(crate) life: Life,
    inside: Side,
    origin: Side,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It leaves from, or arrives at, this endpoint.
    Translated(Endpoint),
    /// It opens a flow; the programs choose the endpoint.
    Admitted,
    /// It is answered: RST or ICMP.
    Refused,
    Dropped,
}

/// The model.
pub(crate) struct Model {
    pub(crate) addresses: Vec<Address>,
    pub(crate) cap: usize,
    pub(crate) flows: HashMap<Key, Flow>,
    /// Ports that rest although their endpoints have a newer flow: protocol, egress, origin, and what
    /// the connection had sent at last.
    resting: HashMap<(u8, Endpoint, Endpoint), u32>,
    /// Where each host's flows go first.
    preferred: HashMap<Address, Address>,
}

impl Model {
    pub(crate) fn new(addresses: &[Address], cap: usize) -> Self {
        Self {
            addresses: addresses.to_vec(),
            cap,
            flows: HashMap::new(),
            resting: HashMap::new(),
            preferred: HashMap::new(),
        }
    }

    /// Flows that count (CAP-1).
    pub(crate) fn active(&self, protocol: u8, egress: Address, origin: Endpoint) -> usize {
        self.flows
            .iter()
            .filter(|((of, _, to), flow)| {
                *of == protocol
                    && *to == origin
                    && flow.egress.0 == egress
                    && flow.life != Life::Closed
            })
            .count()
    }

    /// A packet from the inside.
    pub(crate) fn leaves(&mut self, packet: &Packet) -> Fate {
        let key = (packet.protocol, packet.sender(), packet.receiver());
        let opens = match &packet.body {
            Body::Tcp(tcp) => tcp.control & (SYN | ACK | RST) == SYN,
            _ => true,
        };
        if let Some(flow) = self.flows.get_mut(&key) {
            let over = flow.life == Life::Closed || flow.inside.finished && flow.origin.finished;
            if let Body::Tcp(tcp) = &packet.body
                && !(opens && over)
            {
                flow.follow(tcp, true);
            }
            if packet.protocol != 6 || !(opens && over) {
                return Fate::Translated(flow.egress);
            }
            // NAT-7: a new connection; CAP-7: the old one's port rests.
            let flow = self.flows.remove(&key).unwrap();
            self.resting.insert((6, flow.egress, key.2), flow.last());
        }
        if !opens {
            let Body::Tcp(tcp) = &packet.body else {
                unreachable!("only TCP can fail to open")
            };
            return if tcp.control & RST != 0 {
                Fate::Dropped
            } else {
                Fate::Refused
            };
        }
        let room = |egress| self.active(key.0, egress, key.2) < self.cap;
        if self.addresses.iter().copied().any(room) {
            Fate::Admitted
        } else {
            Fate::Refused
        }
    }

    /// The programs admitted a packet and chose an endpoint.
    pub(crate) fn admit(&mut self, packet: &Packet, egress: Endpoint) {
        let (protocol, inside, origin) = (packet.protocol, packet.sender(), packet.receiver());
        assert!(
            self.addresses.contains(&egress.0),
            "{egress:?} is not of the pool"
        );
        let kept = egress.1 == inside.1 && egress.1 >= KEPT;
        assert!(kept || egress.1 >= RANDOM, "CAP-8: {egress:?}");
        assert!(
            self.active(protocol, egress.0, origin) < self.cap,
            "CAP-1: {egress:?}"
        );
        // CAP-9, CAP-4.
        let full = |address| self.active(protocol, address, origin) >= self.cap;
        match self.preferred.get(&inside.0) {
            Some(first) => assert!(
                *first == egress.0 || full(*first),
                "{inside:?} goes to {first:?} first"
            ),
            None if !self.addresses.iter().copied().any(full) => {
                self.preferred.insert(inside.0, egress.0);
            }
            None => {}
        }
        // A port is one flow's at a time, and a resting one is taken only by a SYN ahead.
        let sequence = match &packet.body {
            Body::Tcp(tcp) => tcp.sequence,
            _ => 0,
        };
        let holder = self
            .flows
            .iter()
            .find(|((of, _, to), flow)| *of == protocol && *to == origin && flow.egress == egress)
            .map(|(key, flow)| (*key, flow.clone()));
        let place = (protocol, egress, origin);
        if let Some((key, flow)) = holder {
            assert_eq!(flow.life, Life::Closed, "{egress:?} is in use");
            assert!(ahead(sequence, flow.last()), "CAP-7: {egress:?}");
            self.flows.remove(&key);
        } else if let Some(last) = self.resting.remove(&place) {
            assert!(ahead(sequence, last), "CAP-7: {egress:?}");
        }
        // CAP-8: the client's port is kept when it is free.
        if egress.1 != inside.1 && inside.1 >= KEPT {
            let wanted = (egress.0, inside.1);
            let taken: HashSet<Endpoint> = self
                .flows
                .iter()
                .filter(|((of, _, to), _)| *of == protocol && *to == origin)
                .map(|(_, flow)| flow.egress)
                .collect();
            let rests = self.resting.contains_key(&(protocol, wanted, origin));
            assert!(
                taken.contains(&wanted) || rests,
                "CAP-8: {inside:?} left as {egress:?}"
            );
        }
        let mut flow = Flow {
            egress,
            life: Life::Unanswered,
            inside: Side::default(),
            origin: Side {
                window: 65_535,
                ..Side::default()
            },
        };
        if let Body::Tcp(tcp) = &packet.body {
            flow.life = Life::HalfOpen;
            flow.inside.window = i64::from(tcp.window);
            flow.follow(tcp, true);
        }
        self.flows.insert((protocol, inside, origin), flow);
    }

    /// A packet from an origin.
    pub(crate) fn arrives(&mut self, packet: &Packet) -> Fate {
        let found = self.flows.iter_mut().find(|((protocol, _, origin), flow)| {
            *protocol == packet.protocol
                && *origin == packet.sender()
                && flow.egress == packet.receiver()
        });
        let Some(((_, inside, _), flow)) = found else {
            return Fate::Dropped;
        };
        match &packet.body {
            Body::Tcp(tcp) => flow.follow(tcp, false),
            _ => flow.life = Life::Answered,
        }
        Fate::Translated(*inside)
    }
}

/// Whether a sequence number comes after another one.
fn ahead(sequence: u32, last: u32) -> bool {
    let distance = sequence.wrapping_sub(last);
    distance != 0 && distance < 1 << 31
}

impl Flow {
    /// The number after the last one the inside has sent.
    fn last(&self) -> u32 {
        self.inside
            .first
            .unwrap_or(0)
            .wrapping_add(self.inside.sent as u32)
    }

    /// Numbers as a live connection would use next: sequence and acknowledgment of either side.
    pub(crate) fn next(&self, out: bool) -> (u32, u32) {
        let (from, to) = if out {
            (self.inside, self.origin)
        } else {
            (self.origin, self.inside)
        };
        (
            from.first
                .unwrap_or(0x7000_0000)
                .wrapping_add(from.sent as u32),
            to.first.unwrap_or(0).wrapping_add(to.sent as u32),
        )
    }

    /// What either side has sent and acknowledged, as numbers on the wire; once both are known.
    pub(crate) fn numbers(&self) -> Option<[u32; 4]> {
        let (inside, origin) = (self.inside.first?, self.origin.first?);
        Some([
            inside.wrapping_add(self.inside.sent as u32),
            origin.wrapping_add(self.inside.acknowledged as u32),
            origin.wrapping_add(self.origin.sent as u32),
            inside.wrapping_add(self.origin.acknowledged as u32),
        ])
    }

    /// NAT-7.
    fn follow(&mut self, tcp: &Tcp, out: bool) {
        if self.life == Life::Closed {
            return;
        }
        let has = |bit| tcp.control & bit != 0;
        let length = tcp.payload.len() as i64 + i64::from(has(SYN)) + i64::from(has(FIN));
        let answered = self.origin.first.is_some();
        if has(RST) {
            self.reset(tcp, out, answered);
            return;
        }
        if out && has(SYN) && !has(ACK) && !answered {
            // The beginning, its repetition, or another one.
            self.inside.first = Some(tcp.sequence);
            self.inside.sent = length;
            self.origin.acknowledged = 0;
            return;
        }
        if !has(ACK) && !has(SYN) {
            return;
        }
        let half_open = self.life == Life::HalfOpen;
        let (sender, receiver) = if out {
            (&mut self.inside, &mut self.origin)
        } else {
            (&mut self.origin, &mut self.inside)
        };
        let position = |side: &Side, number: u32| {
            side.first
                .map(|first| i64::from(number.wrapping_sub(first) as i32))
        };
        let acknowledged = position(receiver, tcp.acknowledgment).filter(|_| has(ACK));
        let answers = acknowledged.is_some_and(|acknowledged| {
            acknowledged == receiver.sent
                || acknowledged > sender.acknowledged && acknowledged <= receiver.sent
        });
        let mut latest = acknowledged.is_some();
        // The origin's first SYN, or one that proves more than the first did.
        let other = sender.first != Some(tcp.sequence) && answers;
        if !out && half_open && has(SYN) && (!answered || other) {
            if has(ACK) && !answers {
                return;
            }
            sender.first = Some(tcp.sequence);
            sender.sent = length;
            receiver.acknowledged = 0;
        } else if !out && !answered {
            if !answers {
                return;
            }
        } else {
            let start = position(sender, tcp.sequence).unwrap();
            let reach = 2 * receiver.window.max(65_535);
            let low = receiver.acknowledged - reach;
            if start < low || start + length > receiver.acknowledged + reach {
                return;
            }
            if let Some(acknowledged) = acknowledged {
                // Nobody acknowledges what was not sent; who knows the exact sequence number may know
                // more than we have seen.
                let exact = start >= receiver.acknowledged
                    && start <= sender.sent.max(receiver.acknowledged);
                let reach = 2 * sender.window.max(65_535);
                let offered = sender.acknowledged + reach;
                let high = if exact {
                    receiver.sent.max(offered)
                } else {
                    receiver.sent
                };
                if acknowledged < sender.acknowledged - reach || acknowledged > high {
                    return;
                }
                latest = acknowledged >= sender.acknowledged;
            }
            let end = start + length;
            // A FIN is the end, until its receiver acknowledges more.
            if end > sender.sent && !sender.finished || has(FIN) && end >= receiver.acknowledged {
                sender.sent = end;
            }
        }
        if latest {
            sender.acknowledged = acknowledged.unwrap();
            // No window scaling: the model's packets do not offer it.
            sender.window = sender.window.max(i64::from(tcp.window));
        }
        if self.life == Life::HalfOpen && out && answered && has(ACK) {
            self.life = Life::Established;
        }
        let (sender, receiver) = if out {
            (&mut self.inside, &mut self.origin)
        } else {
            (&mut self.origin, &mut self.inside)
        };
        if position(receiver, tcp.acknowledgment)
            .is_some_and(|acknowledged| has(ACK) && acknowledged > receiver.sent)
        {
            receiver.finished = false;
        }
        if has(FIN)
            && answered
            && position(sender, tcp.sequence).unwrap() + length >= receiver.acknowledged
        {
            sender.finished = true;
        }
        if sender.finished
            && receiver.finished
            && receiver.acknowledged >= sender.sent
            && sender.acknowledged >= receiver.sent
        {
            self.life = Life::Closed;
        }
    }

    fn reset(&mut self, tcp: &Tcp, out: bool, answered: bool) {
        let (sender, receiver) = if out {
            (self.inside, self.origin)
        } else {
            (self.origin, self.inside)
        };
        let believed = if !out && !answered {
            let first = receiver.first.unwrap();
            let acknowledged = i64::from(tcp.acknowledgment.wrapping_sub(first) as i32);
            tcp.control & ACK != 0
                && (acknowledged == receiver.sent
                    || acknowledged > sender.acknowledged && acknowledged <= receiver.sent)
        } else {
            let first = sender.first.unwrap();
            let position = i64::from(tcp.sequence.wrapping_sub(first) as i32);
            position >= receiver.acknowledged && position <= sender.sent.max(receiver.acknowledged)
        };
        if believed {
            self.life = Life::Closed;
        }
    }
}
