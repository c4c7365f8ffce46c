//! The guard (SAFE-6): what of a zone may not leave, and that the guard and the hooks come back.

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use egress_userspace::config::Dataplane;
use egress_userspace::dataplane::Plane;
use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneView as _};
use egress_userspace::desired::DesiredMark;

use super::open;
use crate::bench::{Bench, desired, ip, output, run, until};

#[test]
fn safe_6_a_recreated_interface_is_hooked_again() {
    run("safe_6_a_recreated_interface_is_hooked_again", |bench| {
        let mut plane = open(bench);
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        for name in ["up0", "in0"] {
            let allowed = allowed(bench);
            ip(&format!("link del {name}"));
            let said = plane.repair().unwrap();
            assert!(said.iter().any(|line| line.contains(name)), "{said:?}");
            assert!(bench.status().hooks.iter().any(|hook| !hook.in_place));
            bench.link(name);
            plane.repair().unwrap();
            bench.assert_in_place();
            assert_ne!(
                allowed,
                self::allowed(bench),
                "the guard knows the new index"
            );
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
        }
        // While nobody looks: the next start finds a pin of an interface that is gone.
        drop(plane);
        ip("link del up0");
        bench.link("up0");
        assert_eq!(bench.program("uplink_egress"), None);
        drop(open(bench));
        bench.assert_in_place();
    });
}

/// The guard's rule that says where zone packets may go.
fn allowed(bench: &Bench) -> String {
    let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
    let rules = output("nft", &format!("-nn list chain inet {table} bound"));
    rules
        .lines()
        .find(|line| line.contains("oif"))
        .unwrap()
        .to_owned()
}

#[test]
fn safe_6_a_removed_program_and_a_flushed_guard_come_back() {
    run(
        "safe_6_a_removed_program_and_a_flushed_guard_come_back",
        |bench| {
            // Not held, as on a kernel before 6.9.
            let config = Dataplane {
                hold_guard: false,
                ..bench.config()
            };
            let mut plane = Plane::open_or_create(&config).unwrap();
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            fs::remove_file(bench.pin.join("links/up0:uplink_egress")).unwrap();
            until("the link's end", || {
                bench.program("uplink_egress").is_none()
            });
            assert_eq!(
                plane.repair().unwrap(),
                ["uplink_egress on up0 was attached"]
            );
            bench.assert_in_place();
            output("nft", "flush ruleset");
            assert!(!bench.status().guard);
            assert_eq!(plane.repair().unwrap().len(), 1);
            bench.assert_in_place();
            // Somebody else's rules are their own business.
            output("nft", "add table inet other");
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
        },
    );
}

/// Whether this kernel has tables that can be held and outlive their holder.
fn can_hold() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (6, 9)
}

#[test]
fn safe_6_nobody_else_takes_the_guard_away() {
    const TEST: &str = "safe_6_nobody_else_takes_the_guard_away";

    if !can_hold() {
        return println!("SKIPPED: {TEST}: this kernel is older than 6.9");
    }
    run(TEST, |bench| {
        let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
        let fails = |arguments: &str| {
            let mut nft = Command::new("nft");
            let nft = nft.args(arguments.split(' ')).stderr(Stdio::null());
            assert!(!nft.status().unwrap().success(), "nft {arguments}");
        };
        // One that an earlier version left.
        output("nft", &format!("add table inet {table}"));
        let mut plane = open(bench);
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        for round in 0..3 {
            let rules = allowed(bench);
            output("nft", "flush ruleset");
            fails(&format!("delete table inet {table}"));
            fails(&format!("flush chain inet {table} bound"));
            assert_eq!(allowed(bench), rules);
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
            assert_eq!(bench.tables(), format!("table inet {table}\n"));
            // It stays ours to change.
            let source = format!("10.{round}.0.0/16");
            plane
                .apply(&desired(true, &[&source], &["192.0.2.10"]))
                .unwrap();
            let listing = output("nft", &format!("list table inet {table}"));
            assert!(listing.contains(&format!("10.{round}.0.0")), "{listing}");
        }
        // It outlives its holder, and is held again by the next one.
        drop(plane);
        bench.assert_in_place();
        let mut plane = open(bench);
        output("nft", "flush ruleset");
        bench.assert_in_place();
        assert!(!plane.detach().unwrap().is_empty());
        assert_eq!(bench.tables(), "");
    });
}

#[test]
fn safe_6_zone_packets_leave_by_no_other_interface() {
    run("safe_6_zone_packets_leave_by_no_other_interface", |bench| {
        ip("addr add 10.1.0.1/24 dev in0");
        ip("addr add 198.51.100.1/24 dev mgmt0");
        let _host = bench.neighbour("mgmt0", "198.51.100.2/24", "198.51.100.1");
        let client = bench.neighbour("in0", "10.1.0.2/24", "10.1.0.1");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut plane = open(bench);
        let dropped = |bench: &Bench| {
            bench
                .status()
                .reasons
                .iter()
                .find(|reason| reason.reason == "hook_missing")
                .unwrap()
                .packets
        };
        let ask = "echo x > /dev/udp/198.51.100.2/9";
        let ask = format!("bash -c '{ask}'");

        // Not enabled: forwarded and own packets pass.
        plane
            .apply(&desired(false, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        let own = UdpSocket::bind("10.1.0.1:0").unwrap();
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        assert!(client(&ask));
        assert_eq!(dropped(bench), 0);

        // Enabled: neither does.
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        assert_eq!(dropped(bench), 1);
        assert!(client(&ask));
        until("the forwarded packet", || dropped(bench) == 2);
        // To the inside and to itself it may.
        own.send_to(b"x", "10.1.0.2:9").unwrap();
        own.send_to(b"x", "127.0.0.1:9").unwrap();

        // An exempt destination is (POLICY-7).
        let mut exempt = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
        exempt.exempt.destinations = vec!["198.51.100.0/24".parse().unwrap()];
        plane.apply(&exempt).unwrap();
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        assert!(client(&ask));

        // A mark selects before the source does (ZONE-3), and a forged tag is none (ZONE-4).
        let mut marked = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
        let mut other = marked.zones[0].clone();
        other.number = 2;
        other.enabled = false;
        other.selectors.sources.clear();
        other.selectors.marks = vec![DesiredMark {
            value: 7,
            mask: 0xffff,
        }];
        marked.zones.push(other);
        plane.apply(&marked).unwrap();
        let before = dropped(bench);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        set_mark(&own, 7);
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        set_mark(&own, 0xffff_0000);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        assert_eq!(dropped(bench), before + 2);

        // The daemon's end changes nothing.
        drop(plane);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
    });
}

#[test]
fn safe_6_what_entered_unseen_does_not_leave() {
    run("safe_6_what_entered_unseen_does_not_leave", |bench| {
        ip("addr add 10.1.0.1/24 dev in0");
        ip("addr add 203.0.113.1/24 dev up0");
        ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev up0");
        let client = bench.neighbour("in0", "10.1.0.2/24", "10.1.0.1");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        output("nft", "add table ip nat");
        output(
            "nft",
            "add chain ip nat post { type nat hook postrouting priority 100 ; }",
        );
        output("nft", "add rule ip nat post oifname up0 masquerade");
        let mut plane = open(bench);
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        let ask = "bash -c 'echo x > /dev/udp/203.0.113.9/9'";
        let sent = || -> u64 {
            let text = output("ip", "-s -j link show up0");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
        };
        // With everything in place the client's packet is admitted and leaves.
        let before = sent();
        assert!(client(ask));
        until("the packet on the uplink", || sent() > before);
        // Without the program where it enters, masquerade would make it look like one of the host's own.
        fs::remove_file(bench.pin.join("links/in0:inside_ingress")).unwrap();
        until("the link's end", || {
            bench.program("inside_ingress").is_none()
        });
        let before = sent();
        let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
        assert!(client(ask));
        until("the drop", || {
            output("nft", &format!("list counter inet {table} unseen")).contains("packets 1 ")
        });
        assert_eq!(sent(), before);
        plane.repair().unwrap();
        assert!(client(ask));
        until("the packet on the uplink", || sent() > before);
    });
}

#[test]
fn safe_1_an_own_packets_source_counts_although_it_is_rewritten_and_its_socket_has_none() {
    run(
        "safe_1_an_own_packets_source_counts_although_it_is_rewritten_and_its_socket_has_none",
        |bench| {
            ip("addr add 10.1.0.1/24 dev in0");
            ip("addr add 203.0.113.1/24 dev up0");
            ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev up0");
            output("nft", "add table ip nat");
            output(
                "nft",
                "add chain ip nat post { type nat hook postrouting priority 100 ; }",
            );
            output("nft", "add rule ip nat post oifname up0 masquerade");
            let config = Dataplane {
                inside: Vec::new(),
                ..bench.config()
            };
            let mut plane = Plane::open_or_create(&config).unwrap();
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            let active = |plane: &Plane| plane.pools().unwrap()[0].addresses[0].active;
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            send_from(&socket, [203, 0, 113, 1], [203, 0, 113, 9]);
            assert_eq!(active(&plane), 0, "this one is of no zone");
            // Stamped in one step, and in two.
            for (count, number) in [(1, 1), (2, 300), (3, 256)] {
                let mut desired = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
                desired.zones[0].number = number;
                plane.apply(&desired).unwrap();
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                send_from(&socket, [10, 1, 0, 1], [203, 0, 113, 9]);
                assert_eq!(active(&plane), count, "zone {number}");
            }
            // The tag goes no further than the uplink.
            ip("rule add fwmark 0x1000000/0xffff0000 blackhole");
            let here = UdpSocket::bind("127.0.0.1:9").unwrap();
            here.set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            send_from(&socket, [10, 1, 0, 1], [127, 0, 0, 1]);
            here.recv(&mut [0; 8]).unwrap();
        },
    );
}

/// Sends a byte to port 9 from a source that only the packet has, not the socket (`IP_PKTINFO`).
fn send_from(socket: &UdpSocket, source: [u8; 4], destination: [u8; 4]) {
    use std::os::fd::AsRawFd as _;

    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        info: libc::in_pktinfo,
    }
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>(),
            cmsg_level: libc::IPPROTO_IP,
            cmsg_type: libc::IP_PKTINFO,
        },
        info: libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(source),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        },
    };
    let mut name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 9_u16.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(destination),
        },
        sin_zero: [0; 8],
    };
    let mut data = libc::iovec {
        iov_base: b"x".as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: an open socket, and all that the message points to is ours and as long as it says.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, 1, "{}", std::io::Error::last_os_error());
}

fn set_mark(socket: &UdpSocket, mark: u32) {
    use std::os::fd::AsRawFd as _;

    // SAFETY: an open socket and four bytes of ours.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            std::ptr::from_ref(&mark).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
}
