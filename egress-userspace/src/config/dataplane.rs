//! `[dataplane]`: interfaces, table sizes, pins, and how packets are taken and refused.

use std::path::PathBuf;

use egress_common::settings::MAX_ZONES;
use egress_common::tag::TagField;

use crate::diagnostic::Span;
use crate::document::{Table, Value};

/// The longest interface name: IFNAMSIZ (16) with its terminating zero.
const MAX_INTERFACE_NAME: usize = 15;
/// Fewer flows than this make no sense, even in a test.
const MIN_TABLE: u32 = 16;
/// 2^24: the most that a flow's slot number can name.
const MAX_TABLE: u32 = 1 << 24;
/// Tags need at least this many mark bits ([`TagField::new`]).
const MIN_MARK_BITS: u32 = 8;
/// Below this, `max_origins` does not follow `max_flows` down.
const MIN_DEFAULT_ORIGINS: u32 = 1024;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// tcx where the kernel has it (6.6 and later), else clsact.
    #[default]
    Auto,
    /// tcx links only.
    Tcx,
    /// The clsact qdisc only.
    Clsact,
}

/// How a refusal is told to the inside host (CAP-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    /// TCP gets a RST, UDP an ICMP "administratively prohibited".
    #[default]
    Reset,
    /// Nothing is said.
    Drop,
}

/// Whether XDP is used on the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// Where the driver makes it safe.
    #[default]
    Auto,
    /// Never.
    Off,
    /// In the driver, or not at all.
    Native,
    /// In the generic path.
    Generic,
}

/// How this server's data plane is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Interfaces that lead to the origins; at least one.
    pub uplink: Vec<String>,
    /// Interfaces by which traffic to be forwarded enters; none on a pure proxy host.
    pub inside: Vec<String>,
    /// Whether live flows take the fast path on the inside interfaces.
    pub accelerate: bool,
    /// The most concurrent flows, 16 to 16,777,216.
    pub max_flows: u32,
    /// The most concurrent (egress IP, origin, protocol) counts, 16 to 16,777,216; by default a quarter of
    /// `max_flows`, at least 1,024.
    pub max_origins: u32,
    /// The directory on a bpffs that holds this instance's pins; absolute.
    pub pin: PathBuf,
    /// How programs are attached.
    pub attach: Attach,
    /// How refusals are told.
    pub refuse: Refuse,
    /// Whether XDP is used.
    pub xdp: Xdp,
    /// Whether ARP requests and neighbour solicitations for egress IPs are answered on the uplink (ANN-1).
    pub answer_arp: bool,
    /// Whether the guard's table is held, so that `nft flush ruleset` steps over it (Linux 6.9; SAFE-6).
    pub hold_guard: bool,
    /// The bits of the packet mark that are ours: contiguous, at least 8.
    pub mark_mask: u32,
}

impl Default for Dataplane {
    fn default() -> Self {
        let max_flows = 262_144;
        Self {
            uplink: Vec::new(),
            inside: Vec::new(),
            accelerate: true,
            max_flows,
            max_origins: default_origins(max_flows),
            pin: "/sys/fs/bpf/egress".into(),
            attach: Attach::default(),
            refuse: Refuse::default(),
            xdp: Xdp::default(),
            answer_arp: true,
            hold_guard: true,
            mark_mask: 0xffff_0000,
        }
    }
}

const fn default_origins(max_flows: u32) -> u32 {
    let quarter = max_flows / 4;
    if quarter > MIN_DEFAULT_ORIGINS {
        quarter
    } else {
        MIN_DEFAULT_ORIGINS
    }
}

impl Dataplane {
    /// The highest zone number: what fits into the reserved mark bits (ZONE-4) and the data plane's tables.
    pub fn max_zone(&self) -> u16 {
        let tagged = TagField::new(self.mark_mask).map_or(0, TagField::last_zone);
        u16::try_from(tagged.min(MAX_ZONES - 1)).unwrap_or(u16::MAX)
    }

    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let uplink = table.require("uplink", "uplink = [\"eth0\"]");
        let inside = table.get("inside", "inside = [\"eth1\"]");
        let uplinks = uplink.map(interfaces).unwrap_or_default();
        let insides = inside.map(interfaces).unwrap_or_default();
        if let Some(value) = uplink
            && value.array_len() == Some(0)
        {
            value.refuse(
                "`uplink` names no interface",
                "write uplink = [\"eth0\"], the interfaces that lead to the origins",
            );
        }
        for (name, span) in &insides {
            if uplinks.iter().any(|(uplink, _)| uplink == name) {
                table.report().error(
                    span,
                    format!("interface {name} is both uplink and inside"),
                    "an interface either leads to the origins or takes traffic in; remove it from one list",
                );
            }
        }
        let max_flows = table
            .get("max_flows", "max_flows = 262144")
            .and_then(|value| value.integer(MIN_TABLE..=MAX_TABLE, "flows"))
            .unwrap_or(default.max_flows);
        let dataplane = Self {
            uplink: names(uplinks),
            inside: names(insides),
            accelerate: flag(
                &mut table,
                "accelerate",
                "accelerate = true",
                default.accelerate,
            ),
            max_flows,
            max_origins: table
                .get("max_origins", "max_origins = 65536")
                .and_then(|value| value.integer(MIN_TABLE..=MAX_TABLE, "counts"))
                .unwrap_or_else(|| default_origins(max_flows)),
            pin: table
                .get("pin", "pin = \"/sys/fs/bpf/egress\"")
                .and_then(pin)
                .unwrap_or(default.pin),
            attach: table
                .get("attach", "attach = \"auto\"")
                .and_then(|value| {
                    value.choice(&[
                        ("auto", Attach::Auto),
                        ("tcx", Attach::Tcx),
                        ("clsact", Attach::Clsact),
                    ])
                })
                .unwrap_or(default.attach),
            refuse: table
                .get("refuse", "refuse = \"reset\"")
                .and_then(|value| value.choice(&[("reset", Refuse::Reset), ("drop", Refuse::Drop)]))
                .unwrap_or(default.refuse),
            xdp: table
                .get("xdp", "xdp = \"auto\"")
                .and_then(|value| {
                    value.choice(&[
                        ("auto", Xdp::Auto),
                        ("off", Xdp::Off),
                        ("native", Xdp::Native),
                        ("generic", Xdp::Generic),
                    ])
                })
                .unwrap_or(default.xdp),
            hold_guard: flag(
                &mut table,
                "hold_guard",
                "hold_guard = true",
                default.hold_guard,
            ),
            answer_arp: flag(
                &mut table,
                "answer_arp",
                "answer_arp = true",
                default.answer_arp,
            ),
            mark_mask: table
                .get("mark_mask", "mark_mask = \"0xffff0000\"")
                .and_then(mark_mask)
                .unwrap_or(default.mark_mask),
        };
        table.finish();
        dataplane
    }
}

fn flag(
    table: &mut Table<'_, '_>,
    key: &'static str,
    example: &'static str,
    default: bool,
) -> bool {
    table
        .get(key, example)
        .and_then(|value| value.boolean())
        .unwrap_or(default)
}

fn names(interfaces: Vec<(String, Span)>) -> Vec<String> {
    interfaces.into_iter().map(|(name, _)| name).collect()
}

fn interfaces(value: Value<'_, '_>) -> Vec<(String, Span)> {
    let mut found: Vec<(String, Span)> = Vec::new();
    for entry in value.array().into_iter().flatten() {
        let Some(name) = entry.string() else { continue };
        if let Some(problem) = interface_problem(name) {
            entry.refuse(
                format!("\"{name}\" is not an interface name: {problem}"),
                "`ip link` lists the interfaces of this host",
            );
        } else if let Some((_, first)) = found.iter().find(|(known, _)| known == name) {
            entry.refuse(
                format!(
                    "interface {name} is listed twice, first on {}",
                    entry.report().line(first)
                ),
                "list each interface once",
            );
        } else {
            found.push((name.to_owned(), entry.span()));
        }
    }
    found
}

/// Why `name` cannot be the name of an interface; the kernel's own rules (dev_valid_name).
pub(crate) fn interface_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_INTERFACE_NAME {
        Some("it is longer than 15 bytes")
    } else if name == "."
        || name == ".."
        || name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace())
    {
        Some("it holds a character that no interface name can hold")
    } else {
        None
    }
}

fn pin(value: Value<'_, '_>) -> Option<PathBuf> {
    let path = PathBuf::from(value.string()?);
    let plain = path
        .components()
        .skip(1)
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() {
        value.refuse(
            format!(
                "`pin` must be an absolute path to a directory, not \"{}\"",
                path.display()
            ),
            "write, for instance, pin = \"/sys/fs/bpf/egress\"; one directory an instance",
        );
        return None;
    }
    Some(path)
}

fn mark_mask(value: Value<'_, '_>) -> Option<u32> {
    let mask = if value.is_string() {
        let text = value.string()?;
        parse_mark(text)
    } else if let Some(number) = value.as_integer() {
        u32::try_from(number).ok()
    } else {
        value.string();
        return None;
    };
    let remedy = "write, for instance, mark_mask = \"0xffff0000\": at least 8 bits side by side";
    let Some(mask) = mask else {
        value.refuse("`mark_mask` is not a 32-bit number", remedy);
        return None;
    };
    if TagField::new(mask).is_none() {
        value.refuse(
            format!("`mark_mask` {mask:#010x} is not at least {MIN_MARK_BITS} bits side by side"),
            remedy,
        );
        return None;
    }
    Some(mask)
}

/// A mark as people write it: decimal, or hexadecimal after 0x.
pub(crate) fn parse_mark(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.starts_with('+') => None,
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}
