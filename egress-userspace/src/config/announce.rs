//! `[announce]`: the routes by which the network learns where egress IPs are (ANN-1).

use ipnet::IpNet;

use crate::document::{Table, Value};

/// The table of routes that a routing daemon exports. Nothing is announced without the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The kernel's routing table, one of our own; 1900 by default. Nobody forwards by it.
    pub table: u32,
    /// What becomes of the routes when the daemon is down.
    pub when_down: WhenDown,
    /// Routes that are announced while an egress IP inside them is.
    pub aggregates: Vec<IpNet>,
}

/// What becomes of the routes when the daemon is down, while the data plane goes on translating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDown {
    /// They stay: connections go on (SAFE-2).
    #[default]
    Keep,
    /// The kernel takes them away, however the daemon ended.
    Withdraw,
}

/// Tables that the kernel's own rules look into, or that mean none (rtnetlink.h).
const RESERVED: [(u32, &str); 4] = [
    (0, "unspec"),
    (253, "default"),
    (254, "main"),
    (255, "local"),
];

impl Default for Announce {
    fn default() -> Self {
        Self {
            table: 1900,
            when_down: WhenDown::default(),
            aggregates: Vec::new(),
        }
    }
}

impl Announce {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let announce = Self {
            table: table
                .get("table", "table = 1900")
                .and_then(own_table)
                .unwrap_or(default.table),
            when_down: table
                .get("when_down", "when_down = \"keep\"")
                .and_then(|value| {
                    value.choice(&[("keep", WhenDown::Keep), ("withdraw", WhenDown::Withdraw)])
                })
                .unwrap_or_default(),
            aggregates: table
                .list("aggregates", "aggregates = [\"198.51.100.0/24\"]")
                .into_iter()
                .filter_map(aggregate)
                .collect(),
        };
        table.finish();
        announce
    }
}

fn own_table(value: Value<'_, '_>) -> Option<u32> {
    let number = value.integer(0..=u32::MAX, "")?;
    if let Some((_, name)) = RESERVED.iter().find(|(reserved, _)| *reserved == number) {
        value.refuse(
            format!("table {number} is the kernel's table `{name}`, by which packets are routed"),
            "write the number of a table that nobody else uses, for instance table = 1900",
        );
        return None;
    }
    Some(number)
}

fn aggregate(value: Value<'_, '_>) -> Option<IpNet> {
    let net: IpNet = value.parsed("an IP prefix")?;
    if net != net.trunc() {
        value.refuse(
            format!("{net} has bits set outside its prefix"),
            format!("write \"{}\"", net.trunc()),
        );
        return None;
    }
    if net.prefix_len() == 0 {
        value.refuse(
            "the default route is no aggregate of egress IPs: everything would be sent here",
            "write the prefix that your egress IPs were assigned from",
        );
        return None;
    }
    Some(net)
}
