//! Random packets through the programs and the model: verdict, bytes, states and counts agree after
//! each.

use egress_common::reason::Reason;
use egress_common::slot::State;

use super::model::{Fate, Life, Model};
use super::{Address, DataPlane, EGRESS, EGRESS_2, Endpoint, Packet, at};
use crate::harness::Hook;
use crate::packet::{ACK, FIN, PSH, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::seed::{Random, cases};
use crate::world::{self, World};

const ADDRESSES: [Address; 2] = [EGRESS, EGRESS_2];
const CAP: u32 = 4;
const HOSTS: [Address; 3] = [at([10, 1, 0, 2]), at([10, 1, 0, 3]), at([10, 1, 7, 9])];
const PORTS: [u16; 5] = [80, 2_048, 40_000, 40_001, 65_535];
const ORIGINS: [Endpoint; 2] = [(at([192, 0, 2, 7]), 443), (at([192, 0, 2, 8]), 53)];
const CONTROLS: [u8; 12] = [
    SYN,
    SYN,
    SYN,
    ACK,
    ACK,
    ACK | PSH,
    FIN | ACK,
    FIN | ACK,
    RST,
    RST | ACK,
    SYN | ACK,
    0,
];

fn state(life: Life) -> State {
    match life {
        Life::HalfOpen => State::TcpHalfOpen,
        Life::Established => State::TcpEstablished,
        Life::Unanswered => State::UdpUnanswered,
        Life::Answered => State::UdpAnswered,
        Life::Closed => State::Closed,
    }
}

/// A packet that may belong to a flow, and whether it comes from the inside.
fn packet(random: &mut Random, model: &Model) -> (Packet, bool) {
    let inside = (random.of(&HOSTS), random.of(&PORTS));
    let origin = random.of(&ORIGINS);
    let protocol = if random.once_in(4) { 17 } else { 6 };
    let mut out = random.once_in(2);
    let flow = model.flows.get(&(protocol, inside, origin));
    let egress = match flow {
        Some(flow) => flow.egress,
        None if random.once_in(10) => (EGRESS, random.of(&PORTS)),
        None => {
            out = true;
            (EGRESS, 1)
        }
    };
    // A stranger's guess may hit a flow all the same; then its numbers are near, as far as the model's
    // distances reach.
    let flow = flow.or_else(|| {
        let mut flows = model.flows.iter();
        let hit = flows.find(|((of, _, to), flow)| {
            !out && *of == protocol && *to == origin && flow.egress == egress
        });
        hit.map(|(_, flow)| flow)
    });
    let (from, to) = if out {
        (inside, origin)
    } else {
        (origin, egress)
    };
    let payload = vec![
        0x61;
        if random.once_in(3) {
            random.below(300) as usize
        } else {
            0
        }
    ];
    if protocol == 17 {
        return (Packet::udp(from, to, &payload), out);
    }
    let control = match flow {
        // Handshakes, or nothing would ever be established.
        Some(flow) if flow.life == Life::HalfOpen && !random.once_in(3) => {
            if out {
                ACK
            } else {
                SYN | ACK
            }
        }
        None if !random.once_in(4) => SYN,
        _ => random.of(&CONTROLS),
    };
    let (mut sequence, mut acknowledgment) =
        flow.map_or((random.number() as u32, 0), |flow| flow.next(out));
    let wild = |random: &mut Random, number: u32| match random.below(12) {
        0 => number
            .wrapping_add(random.below(200) as u32)
            .wrapping_sub(100),
        1 => number
            .wrapping_add(random.below(2_000_000) as u32)
            .wrapping_sub(1_000_000),
        2 => number
            .wrapping_add(random.below(200_000_000) as u32)
            .wrapping_sub(100_000_000),
        _ => number,
    };
    sequence = wild(random, sequence);
    acknowledgment = wild(random, acknowledgment);
    if control == SYN && random.once_in(2) {
        sequence = random.number() as u32;
    }
    let mut packet = Packet::tcp(from, to, control).numbers(sequence, acknowledgment);
    packet.segment().window = random.of(&[0, 1_000, 64_240, 65_535]);
    (packet.payload(&payload), out)
}

/// A day, ns.
const TIMELESS: u64 = 86_400_000_000_000;

#[test]
fn the_programs_do_what_the_model_says() {
    let mut world = World::default()
        .with_addresses(&[world::EGRESS, world::EGRESS_2])
        .with_capacity(CAP)
        .with_flows(32_768);
    // Longer than the test takes on the slowest machine: for the model no time passes.
    let timers = &mut world.settings.timers;
    timers.quarantine = TIMELESS;
    timers.tcp_closing = TIMELESS;
    timers.tcp_transitory = TIMELESS;
    if !crate::harness::permitted() {
        return;
    }
    let mut random = Random::announced("random packets against the model");
    for case in 0..cases(3) {
        let Some(plane) = DataPlane::of(world.clone()) else {
            return;
        };
        let mut model = Model::new(&ADDRESSES, CAP as usize);
        let mut tally = [0; 4];
        for step in 0..5_000 {
            let (packet, out) = packet(&mut random, &model);
            let context = format!("case {case} step {step}: {packet:?}");
            let key = if out {
                Some((packet.protocol, packet.sender(), packet.receiver()))
            } else {
                None
            };
            let before = key.and_then(|key| model.flows.get(&key).cloned());
            let fate = if out {
                model.leaves(&packet)
            } else {
                model.arrives(&packet)
            };
            let outcome = if out {
                plane.out(&packet)
            } else {
                plane.run(
                    Hook::UplinkIngress,
                    &packet,
                    Meta {
                        summed: true,
                        ..Meta::default()
                    },
                )
            };
            let context = format!("{context}\nbefore {before:?}\nfate {fate:?}");
            match fate {
                Fate::Translated(to) => {
                    assert_eq!(outcome.verdict, Verdict::Next, "{context}");
                    let right = if out {
                        packet.sent_from(to)
                    } else {
                        packet.sent_to(to)
                    };
                    assert_eq!(outcome.bytes, right.bytes(), "{context}");
                    tally[0] += 1;
                }
                Fate::Admitted => {
                    assert_eq!(outcome.verdict, Verdict::Next, "{context}");
                    let egress = <Packet>::read(&outcome.bytes).sender();
                    assert_eq!(
                        outcome.bytes,
                        packet.clone().sent_from(egress).bytes(),
                        "{context}"
                    );
                    model.admit(&packet, egress);
                    tally[1] += 1;
                }
                Fate::Refused => {
                    assert_eq!(outcome.verdict, Verdict::Redirect, "{context}");
                    assert_eq!(<Packet>::read(&outcome.bytes).destination, packet.source);
                    tally[2] += 1;
                }
                Fate::Dropped => {
                    assert_eq!(outcome.verdict, Verdict::Drop, "{context}");
                    tally[3] += 1;
                }
            }
            for origin in ORIGINS {
                for egress in ADDRESSES {
                    for protocol in [6, 17] {
                        assert_eq!(
                            plane.active(egress, origin, protocol) as usize,
                            model.active(protocol, egress, origin),
                            "{context}"
                        );
                    }
                }
            }
            for (key, flow) in &model.flows {
                let slot = plane.slot(key.1, key.2, key.0).expect(&context);
                let context = format!("{context}\nafter {flow:?}\n{slot:?}");
                assert_eq!(slot.word().state, state(flow.life), "{context}");
                if let Some(numbers) = flow.numbers()
                    && flow.life != Life::Closed
                {
                    let known = [slot.out.end, slot.out.ack, slot.back.end, slot.back.ack];
                    assert_eq!(known, numbers, "{context}");
                }
            }
            assert_eq!(plane.flows.len(), model.flows.len(), "{context}");
        }
        let [translated, admitted, refused, dropped] = tally;
        println!(
            "case {case}: {translated} translated, {admitted} admitted, {refused} refused, {dropped} dropped"
        );
        for reason in [Reason::NoPort, Reason::Contended, Reason::IndexInconsistent] {
            assert_eq!(plane.reason(reason), 0, "{reason:?}");
        }
        plane.consistent();
    }
}
