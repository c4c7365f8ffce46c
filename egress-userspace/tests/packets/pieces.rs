//! Datagrams cut into fragments, and put together again.

use crate::packet::{Packet, sum};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// More fragments follow.
pub(crate) const MORE: u16 = 0x2000;

/// Cuts a packet into fragments whose payloads have these lengths; the last one takes the rest.
pub(crate) fn cut(packet: &Packet, lengths: &[usize]) -> Vec<Vec<u8>> {
    let whole = packet.ip_bytes();
    let header = usize::from(whole[0] & 15) * 4;
    let link = packet.bytes()[..ETHERNET + 4 * packet.vlans.len()].to_vec();
    let mut frames = Vec::new();
    let mut at = header;
    let mut lengths = lengths.iter().copied();
    while at < whole.len() {
        let end = lengths
            .next()
            .map_or(whole.len(), |length| (at + length).min(whole.len()));
        // Options of the first fragment need not be copied to the others.
        let kept = if at == header { header } else { IPV4 };
        let mut ip = whole[..kept].to_vec();
        ip[0] = 0x40 | (kept / 4) as u8;
        let more = if end < whole.len() { MORE } else { 0 };
        let field = packet.fragment & 0x4000 | more | ((at - header) / 8) as u16;
        ip[2..4].copy_from_slice(&((kept + end - at) as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        ip[10..12].fill(0);
        let check = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        frames.push([&link, &ip, &whole[at..end]].concat());
        at = end;
    }
    frames
}

/// Cuts a packet as a link of 1,500 bytes does.
pub(crate) fn cut_for_ethernet(packet: &Packet) -> Vec<Vec<u8>> {
    cut(packet, &[1_480; 64])
}

/// Offset of a fragment's payload, bytes.
pub(crate) fn offset(frame: &[u8], link: usize) -> usize {
    usize::from(u16::from_be_bytes([frame[link + 6], frame[link + 7]]) & 0x1fff) * 8
}

/// Puts a datagram together, as its receiver does, and reads it.
///
/// # Panics
/// When a part is missing or comes twice, a header is wrong, or fragments are of different datagrams.
#[track_caller]
pub(crate) fn reassemble(frames: &[Vec<u8>], link: usize) -> Packet {
    let mut frames: Vec<&Vec<u8>> = frames.iter().collect();
    frames.sort_by_key(|frame| offset(frame, link));
    let first = frames.first().expect("fragments");
    let mut payload: Vec<u8> = Vec::new();
    for (nth, frame) in frames.iter().enumerate() {
        let ip = &frame[link..];
        let header = usize::from(ip[0] & 15) * 4;
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        assert_eq!(
            sum(&[&ip[..header]]),
            0xffff,
            "header checksum: {frame:02x?}"
        );
        assert_eq!(offset(frame, link), payload.len(), "fragment {nth}");
        assert_eq!(ip[4..6], first[link + 4..link + 6], "identification");
        assert_eq!(ip[9], first[link + 9], "protocol");
        assert_eq!(ip[12..20], first[link + 12..link + 20], "addresses");
        let more = u16::from_be_bytes([ip[6], ip[7]]) & MORE != 0;
        assert_eq!(
            more,
            nth + 1 < frames.len(),
            "fragment {nth} of {}",
            frames.len()
        );
        payload.extend(&ip[header..length]);
    }
    let header = usize::from(first[link] & 15) * 4;
    let mut whole = first[..link + header].to_vec();
    whole[link + 2..link + 4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    whole[link + 6] &= 0x40;
    whole[link + 7] = 0;
    whole[link + 10..link + 12].fill(0);
    let check = !sum(&[&whole[link..]]);
    whole[link + 10..link + 12].copy_from_slice(&check.to_be_bytes());
    whole.extend(payload);
    Packet::read(&whole)
}
