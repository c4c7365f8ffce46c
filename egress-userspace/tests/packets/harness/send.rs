//! Packets into the programs, and what must become of them.

use aya::Pod;
use egress_common::count::Count;
use egress_common::key::OriginKey;
use egress_common::reason::Reason;
use egress_common::slot::Slot;

use super::{Hook, Plane, done};
use crate::family::Family;
use crate::packet::{ACK, Endpoint, Net, Packet, SYN};
use crate::run::{Meta, Outcome, Verdict, run};

impl<A: Family> Plane<A>
where
    Slot<A>: Pod,
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    /// Runs a program on raw bytes; `None` if the kernel does not take such a packet.
    #[track_caller]
    pub(crate) fn try_bytes(&self, hook: Hook, bytes: &[u8], meta: Meta) -> Option<Outcome> {
        match run(self.load.fd(hook), bytes, meta) {
            Ok(outcome) => Some(outcome),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => panic!("{hook:?}: {error}"),
        }
    }

    /// Runs a program.
    #[track_caller]
    pub(crate) fn run<B: Net>(&self, hook: Hook, packet: &Packet<B>, meta: Meta) -> Outcome {
        self.try_bytes(hook, &packet.bytes(), meta)
            .expect("a packet the kernel takes")
    }

    /// A packet of the host's own, or one whose zone its source tells, leaves by the uplink.
    #[track_caller]
    pub(crate) fn out<B: Net>(&self, packet: &Packet<B>) -> Outcome {
        self.run(Hook::UplinkEgress, packet, Meta::default())
    }

    /// A packet arrives on the uplink; a device has summed it.
    #[track_caller]
    pub(crate) fn back<B: Net>(&self, packet: &Packet<B>) -> Outcome {
        self.run(
            Hook::UplinkIngress,
            packet,
            Meta {
                summed: true,
                ..Meta::default()
            },
        )
    }

    /// A packet leaves; it must be translated, and only that: returns what it leaves with.
    #[track_caller]
    pub(crate) fn leaves<B: Net>(&self, packet: &Packet<B>) -> Endpoint<B> {
        let outcome = self.out(packet);
        assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
        assert_eq!(outcome.mark, done(self.world.mark_mask), "{packet:?}");
        let sender = Packet::<B>::read(&outcome.bytes).sender();
        assert_ne!(sender.0, packet.source, "{packet:?}");
        assert_eq!(outcome.bytes, packet.clone().sent_from(sender).bytes());
        sender
    }

    /// A packet arrives; it must be translated back to `inside`, and only that.
    #[track_caller]
    pub(crate) fn arrives<B: Net>(&self, packet: &Packet<B>, inside: Endpoint<B>) {
        let outcome = self.back(packet);
        assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
        assert_eq!(outcome.mark, 0);
        assert_eq!(outcome.bytes, packet.clone().sent_to(inside).bytes());
    }

    /// A packet leaves just as it is, marked as dealt with.
    #[track_caller]
    pub(crate) fn passes<B: Net>(&self, packet: &Packet<B>) {
        let outcome = self.out(packet);
        assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
        assert_eq!(outcome.mark, done(self.world.mark_mask), "{packet:?}");
        assert_eq!(outcome.bytes, packet.bytes());
    }

    /// A packet is answered: it comes back to where it came from as another one.
    #[track_caller]
    pub(crate) fn answered<B: Net>(&self, packet: &Packet<B>) -> Packet<B> {
        let outcome = self.out(packet);
        assert_eq!(outcome.verdict, Verdict::Redirect, "{packet:?}");
        assert_eq!(outcome.mark, 0);
        let answer = Packet::<B>::read(&outcome.bytes);
        assert_eq!((answer.to, answer.from), (packet.from, packet.to));
        assert_eq!(answer.source, packet.destination);
        assert_eq!(answer.destination, packet.source);
        answer
    }

    /// A packet is dropped for this reason, and for no other.
    #[track_caller]
    pub(crate) fn dropped<B: Net>(&self, hook: Hook, packet: &Packet<B>, reason: Reason) {
        self.dropped_with(hook, packet, Meta::default(), reason);
    }

    /// A packet is dropped for this reason, and for no other.
    #[track_caller]
    pub(crate) fn dropped_with<B: Net>(
        &self,
        hook: Hook,
        packet: &Packet<B>,
        meta: Meta,
        reason: Reason,
    ) {
        let before = self.reason(reason);
        let outcome = self.run(hook, packet, meta);
        assert_eq!(outcome.verdict, Verdict::Drop, "{packet:?}");
        assert_eq!(self.reason(reason), before + 1, "{reason:?}: {packet:?}");
    }

    /// An inside host opens a connection and the origin accepts: what it leaves with.
    #[track_caller]
    pub(crate) fn establish<B: Net>(
        &self,
        inside: Endpoint<B>,
        origin: Endpoint<B>,
        numbers: (u32, u32),
    ) -> Endpoint<B> {
        let (ours, theirs) = numbers;
        let egress = self.leaves(&Packet::tcp(inside, origin, SYN).numbers(ours, 0));
        let ours = ours.wrapping_add(1);
        let answer = Packet::tcp(origin, egress, SYN | ACK).numbers(theirs, ours);
        self.arrives(&answer, inside);
        let ack = Packet::tcp(inside, origin, ACK).numbers(ours, theirs.wrapping_add(1));
        assert_eq!(self.leaves(&ack), egress);
        egress
    }

    /// A packet of an origin is answered: it goes back to where it came from as another one, marked as dealt
    /// with.
    #[track_caller]
    pub(crate) fn turned_round<B: Net>(&self, packet: &Packet<B>) -> Packet<B> {
        // Whose sum a device has made is not compared: it is dropped when the packet is made longer.
        let outcome = self.run(Hook::UplinkIngress, packet, Meta::default());
        assert_eq!(
            outcome.verdict,
            Verdict::Redirect,
            "{packet:?} {:?}",
            self.all_reasons()
        );
        assert_eq!(outcome.mark, done(self.world.mark_mask));
        let answer = Packet::read(&outcome.bytes);
        assert_eq!(
            (answer.source, answer.destination),
            (packet.destination, packet.source)
        );
        answer
    }
}
