use super::*;
use proptest::prelude::*;

/// All options of a TCP header, as the kernel walks them.
fn tcp_options(packet: &[u8], offset: usize, header: u8) -> Options {
    let mut walk = OptionWalk::new(header);
    let list = packet.get(offset + TCP_MIN..).unwrap_or(&[]);
    while walk.step(list) {}
    walk.found
}

fn syn() -> Vec<u8> {
    let mut frame = vec![0u8; ETHERNET];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame.extend([
        0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 192, 0, 2, 7,
    ]);
    frame.extend([
        0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 9, 0, 0, 0, 0, 0xa0, 2, 0xfa, 0xf0, 0, 0, 0, 0,
    ]);
    frame.extend([
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 77, 0, 0, 0, 0, 1, 3, 3, 7,
    ]);
    frame
}

#[test]
fn reads_a_linux_syn() {
    let frame = syn();
    let net = ethernet(frame.as_slice()).unwrap();
    assert_eq!(
        net,
        Network {
            ethertype: 0x0800,
            offset: 14
        }
    );
    let ip = ipv4(frame.as_slice(), net.offset, frame.len() as u32).unwrap();
    assert_eq!(
        (ip.transport(), ip.protocol, ip.fragment),
        (34, TCP, Fragment::Whole)
    );
    let segment = tcp(frame.as_slice(), ip.transport(), ip.payload()).unwrap();
    assert!(segment.opens());
    assert_eq!(segment.length(), 1);
    let options = tcp_options(frame.as_slice(), ip.transport(), segment.header);
    assert_eq!(
        options,
        Options {
            scale: Some(7),
            timestamp: Some(77)
        }
    );
    assert_eq!(ports(frame.as_slice(), ip.transport()), Ok((40_000, 443)));
}

proptest! {
    #[test]
    fn cut_short_anywhere_is_an_error_and_never_a_panic(cut in 0usize..74) {
        let frame = syn();
        let frame = &frame[..cut];
        let Some(net) = ethernet(frame) else { return Ok(()) };
        prop_assert!(ipv4(frame, net.offset, cut as u32).is_err());
    }

    #[test]
    fn random_bytes_never_panic_and_never_read_beyond(bytes: Vec<u8>) {
        let bytes = bytes.as_slice();
        if let Some(net) = ethernet(bytes)
            && let Ok(ip) = ipv4(bytes, net.offset, bytes.len() as u32)
        {
            prop_assert!(ip.length as usize <= bytes.len());
            let rest = ip.payload();
            if let Ok(segment) = tcp(bytes, ip.transport(), rest) {
                let _ = tcp_options(bytes, ip.transport(), segment.header);
            }
            let _ = udp(bytes, ip.transport(), rest);
        }
        let _ = crate::ipv6::ipv6(bytes, 14, bytes.len() as u32);
    }
}

#[test]
fn options_that_lie_about_their_length_end_the_list() {
    let mut frame = syn();
    frame[54 + 1] = 0; // MSS claims length 0
    assert_eq!(tcp_options(frame.as_slice(), 34, 40), Options::default());
    frame[54 + 1] = 200;
    assert_eq!(tcp_options(frame.as_slice(), 34, 40), Options::default());
}

#[test]
fn nat_11_nobody_answers_multicast_fragments_or_the_zero_address() {
    let frame = syn();
    let ip = ipv4(frame.as_slice(), 14, 74).unwrap();
    assert!(V4::answerable(&ip));
    for bad in [
        Ipv4 {
            source: [0; 4],
            ..ip
        },
        Ipv4 {
            source: [224, 0, 0, 1],
            ..ip
        },
        Ipv4 {
            destination: [239, 1, 1, 1],
            ..ip
        },
        Ipv4 {
            destination: [255; 4],
            ..ip
        },
        Ipv4 {
            fragment: Fragment::Later,
            ..ip
        },
        Ipv4 {
            protocol: ICMP,
            ..ip
        },
    ] {
        assert!(!V4::answerable(&bad), "{bad:?}");
    }
}
