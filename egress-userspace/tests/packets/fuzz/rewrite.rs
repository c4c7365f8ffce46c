//! What a rewriting may change, byte by byte, and what our own packets must look like.

use super::read::{self, Ip, Layers, Part};

/// The end of a packet that is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

type Judgement = Result<(), String>;

/// The header that an ICMP error quotes.
pub(crate) fn quoted(bytes: &[u8], ip: &Ip) -> Option<Ip> {
    let kind = ip.icmp(bytes)?;
    let error = if ip.six {
        kind < 128
    } else {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    };
    if !error {
        return None;
    }
    let (bytes, at) = (&bytes[..ip.end], ip.transport + 8);
    if ip.six {
        read::quoted6(bytes, at)
    } else {
        read::quoted4(bytes, at)
    }
}

/// The clients' ports that a packet and what it quotes name.
pub(crate) fn ports(bytes: &[u8]) -> Vec<u16> {
    let bytes = &read::untagged(bytes);
    let Layers::Ip(ip) = read::frame(bytes) else {
        return Vec::new();
    };
    let both = [Some(ip), quoted(bytes, &ip)];
    let ports = both.iter().flatten().filter_map(|ip| ip.ports(bytes));
    let ports = ports.flat_map(|(from, to)| [from, to]);
    ports.filter(|port| *port > 1_023).collect()
}

/// Whether only what a NAT rewrites was rewritten, and every checksum is as right or wrong as before.
/// `handed`: the packet was sent on, so its link-layer header is new and it has one hop less.
pub(crate) fn check(
    input: &[u8],
    output: &[u8],
    ip: &Ip,
    after: &Ip,
    side: Side,
    handed: bool,
) -> Judgement {
    if input.len() != output.len() {
        return Err(format!("{} bytes became {}", input.len(), output.len()));
    }
    let mut free = vec![false; input.len()];
    let mut allow = |from: usize, length: usize| {
        for at in free.iter_mut().skip(from).take(length) {
            *at = true;
        }
    };
    if ip.part != Part::Whole && side == Side::Source && !ip.six {
        // Fragments of many leave under numbers of the data plane's (RFC 6864).
        allow(ip.at + 4, 2);
    }
    let mut allow_end = |ip: &Ip, bytes: &[u8], side: Side| {
        let (source, destination, length) = ip.addresses();
        let first = side == Side::Source;
        allow(if first { source } else { destination }, length);
        if !ip.six {
            allow(ip.at + 10, 2);
        }
        if ip.ports(bytes).is_some() {
            allow(ip.transport + if first { 0 } else { 2 }, 2);
        }
        if let Some(at) = ip.checksum() {
            allow(at, 2);
        }
    };
    allow_end(ip, input, side);
    let inner = quoted(input, ip);
    if let Some(inner) = &inner {
        let other = match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        allow_end(inner, input, other);
    }
    if handed {
        allow(0, 12);
        allow(ip.at + if ip.six { 7 } else { 8 }, 1);
    }
    if let Some(at) = (0..input.len()).find(|at| input[*at] != output[*at] && !free[*at]) {
        return Err(format!(
            "byte {at} was changed, {} behind the IP header",
            at - ip.at.min(at)
        ));
    }
    if ip.header_sum(input) != after.header_sum(output) {
        return Err("the IP checksum was made right or wrong".into());
    }
    if let Some(at) = ip.checksum().filter(|at| at + 2 <= ip.end) {
        let field = |bytes: &[u8]| [bytes[at], bytes[at + 1]];
        let none = ip.protocol == 17 && field(input) == [0, 0];
        if none && field(output) != [0, 0] {
            return Err("a UDP checksum appeared".into());
        }
        if !none && ip.protocol == 17 && field(output) == [0, 0] {
            return Err("a UDP checksum vanished".into());
        }
        if !none && ip.sum(input) != after.sum(output) {
            return Err("the transport checksum was made right or wrong".into());
        }
    }
    if let (Some(before), Some(inner)) = (inner, quoted(output, after))
        && before.header_sum(input) != inner.header_sum(output)
    {
        return Err("the quoted IP checksum was made right or wrong".into());
    }
    Ok(())
}

/// Whether an answer of ours may be made, and is right (NAT-11).
pub(crate) fn answer(input: &[u8], answer: &[u8]) -> Judgement {
    let Layers::Ip(ip) = read::frame(input) else {
        return Err("an answer to what is no IP packet".into());
    };
    let Layers::Ip(after) = read::frame(answer) else {
        return Err(format!("an answer that is no IP packet: {answer:02x?}"));
    };
    if (after.source, after.destination) != (ip.destination, ip.source) {
        return Err(format!(
            "an answer from {:?} to {:?}",
            after.source, after.destination
        ));
    }
    if after.header_sum(answer) != 0xffff || after.sum(answer) != 0xffff {
        return Err("an answer with a wrong checksum".into());
    }
    // What follows a header that may not stand there is nothing to go by.
    let careful = ip.six.then(|| read::careful(input, ip.at));
    let later = careful.map_or(ip.part == Part::Later, |careful| careful.later);
    if later {
        return Err("an answer to a later fragment".into());
    }
    if careful.is_none_or(|careful| careful.at_end) && quoted(input, &ip).is_some() {
        return Err("an answer to an ICMP error".into());
    }
    match (after.protocol, after.icmp(answer)) {
        (6, _) => {
            let control = |bytes: &[u8], ip: &Ip| bytes[ip.transport + 13];
            let ours = control(answer, &after);
            if ip.protocol != 6 || control(input, &ip) & 4 != 0 || ours & 4 == 0 {
                return Err(format!("a segment {ours:#x} is no answer"));
            }
            let (old, new) = (ip.ports(input), after.ports(answer));
            if old.map(|(from, to)| (to, from)) != new {
                return Err(format!("ports {old:?} answered as {new:?}"));
            }
            Ok(())
        }
        (_, Some(kind)) => {
            let message = &answer[after.transport..after.end];
            let about = &input[ip.at..ip.end];
            let (Some(code), Some(quote)) = (message.get(1), message.get(8..)) else {
                return Err("an ICMP error cut short".into());
            };
            // Its headers; of IPv6 the fixed one, since there is no end to the others.
            let headers = if ip.six { 40 } else { ip.transport - ip.at };
            if quote.len() < (headers + 8).min(about.len()) || !about.starts_with(quote) {
                return Err("an ICMP error that quotes something else".into());
            }
            let foreign = !matches!(ip.protocol, 6 | 17);
            let right = match (after.six, kind, code) {
                // Prohibited, or a protocol that cannot be translated.
                (false, 3, 13) | (true, 1, 1) => true,
                (false, 3, 2) => foreign,
                (true, 4, 1) => names_protocol(input, &ip, &message[4..8]),
                _ => false,
            };
            if right {
                Ok(())
            } else {
                Err(format!("answered with type {kind}, code {code}"))
            }
        }
        other => Err(format!("answered with {other:?}")),
    }
}

/// Whether a parameter problem points to the field that names a header nobody translates: the last one,
/// or an extension that may not stand there (RFC 4443, section 3.4).
fn names_protocol(input: &[u8], ip: &Ip, pointer: &[u8]) -> bool {
    let pointer = pointer
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let named_at = read::careful(input, ip.at).named_at;
    pointer + ip.at == named_at && !matches!(input[named_at], 6 | 17 | 58)
}

/// Whether an ARP request was answered rightly (RFC 826).
pub(crate) fn arp(input: &[u8], output: &[u8]) -> Judgement {
    let (_, at) = read::network(input);
    let (Some(asked), Some(told)) = (input.get(at..at + 28), output.get(at..at + 28)) else {
        return Err("ARP cut short".into());
    };
    let right = told[..6] == asked[..6]
        && told[6..8] == [0, 2]
        && told[14..18] == asked[24..28]
        && told[18..28] == asked[8..18]
        && output[..6] == told[18..24];
    if right {
        Ok(())
    } else {
        Err(format!("ARP {asked:02x?} answered {told:02x?}"))
    }
}

/// Whether a neighbour solicitation was answered rightly (RFC 4861, section 7.2.4; RFC 4862).
pub(crate) fn neighbour(asked: &[u8], ip: &Ip, told: &[u8], after: &Ip) -> Judgement {
    let question = &asked[ip.transport..ip.end];
    let answer = &told[after.transport..after.end];
    let probe = ip.source == [0; 16];
    let target = question.get(8..24);
    let right = ip.icmp(asked) == Some(135)
        && asked[ip.at + 7] == 255
        && ip.sum(asked) == 0xffff
        && answer.len() == 32
        && answer[..2] == [136, 0]
        && answer[4..8] == [if probe { 0x20 } else { 0x60 }, 0, 0, 0]
        && target == Some(&answer[8..24])
        && target == Some(&after.source)
        && answer[24..26] == [2, 1]
        && told[after.at + 7] == 255
        && after.sum(told) == 0xffff
        && (probe || after.destination == ip.source)
        && (!probe || after.destination[..2] == [0xff, 2]);
    if right {
        Ok(())
    } else {
        Err(format!(
            "solicitation {question:02x?} answered {answer:02x?}"
        ))
    }
}
