//! CAP-8: which ports of an IPv4 egress IP are used. IPv6 has no slices.

use egress_common::key::{TCP, UDP};
use egress_common::port::most_tried;

use crate::harness::DataPlane;
use crate::packet::{ACK, Packet, RST, SYN};
use crate::world::{EGRESS, INSIDE, ORIGIN, World};

#[test]
fn cap_8_ports_are_unguessable_owned_and_all_different() {
    // One slice has 2,048 ports; a cap of 1,300 is 63 % of them, as 40,000 is of all.
    let world = World::default()
        .with_slices(1 << 20)
        .with_capacity(1_300)
        .with_flows(2_048);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let mut ports = std::collections::HashSet::new();
    let mut ascending = 0;
    let mut last = 0;
    for port in 0..1_300 {
        let egress = plane.leaves(&Packet::udp((INSIDE.0, 1_024 + port), ORIGIN, b""));
        assert_eq!(egress.1 >> 11, 20);
        assert!(ports.insert(egress.1));
        ascending += u32::from(egress.1 > last);
        last = egress.1;
    }
    assert!(
        (500..800).contains(&ascending),
        "{ascending} of 1300 ascending"
    );
    assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 1_300);
    assert_eq!(plane.all_reasons(), []);
    // OBS-3: the nth of them finds a port at once with probability 1 - n/2048: 887 of all, give or take 15.
    let efforts = plane.efforts();
    println!("flows and ports by effort: {efforts:?}");
    assert_eq!(efforts.iter().map(|(flows, _)| flows).sum::<u64>(), 1_300);
    assert!((787..987).contains(&efforts[0].0), "{efforts:?}");
    for (group, (flows, ports)) in (0..).zip(&efforts) {
        let most = most_tried(group).map_or(u64::MAX, u64::from);
        let least = group
            .checked_sub(1)
            .and_then(most_tried)
            .map_or(0, u64::from);
        assert!(*ports <= flows.saturating_mul(most), "{efforts:?}");
        assert!(*flows == 0 || *ports > flows * least, "{efforts:?}");
    }
    plane.consistent();
}

#[test]
fn cap_8_when_all_ports_rest_one_yields() {
    // All 2,048 ports of one slice rest.
    let world = World::default().with_slices(1 << 5).with_flows(4_096);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let mut taken = std::collections::HashSet::new();
    let mut client = 0;
    while taken.len() < 2_048 {
        let inside = ([10, 1, 1, (client >> 14) as u8], 2_048 + (client & 0x3fff));
        client += 1;
        let syn = Packet::tcp(inside, ORIGIN, SYN).numbers(0, 0);
        let egress = plane.leaves(&syn);
        taken.insert(egress.1);
        // Far ahead, so that nothing later counts as ahead of it.
        plane.arrives(
            &Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 1),
            inside,
        );
        if client > 12_000 {
            break;
        }
    }
    println!("{} ports after {client} connections", taken.len());
    assert_eq!(plane.all_reasons(), [], "never a refusal while ports rest");
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 0);
    plane.consistent();
}
