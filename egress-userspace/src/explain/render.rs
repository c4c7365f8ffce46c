//! An explanation for people.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Exit, Explanation, Outcome, Query, Rule, Traffic, UNKNOWN_PORT, Verdict};

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Other(number) => match Self::OTHERS.iter().find(|(_, other)| other == number) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "protocol {number}"),
            },
        }
    }
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(
        || address.to_string(),
        |port| SocketAddr::new(address, port).to_string(),
    )
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_port = matches!(self.protocol, Traffic::Tcp | Traffic::Udp);
        let port = has_port.then_some(self.destination_port);
        write!(
            f,
            "{} {} -> {}",
            self.protocol,
            endpoint(self.source, self.source_port),
            endpoint(self.destination, port)
        )?;
        if self.mark != 0 {
            write!(f, ", mark {:#x}", self.mark)?;
        }
        if let Some(interface) = &self.interface {
            write!(f, ", entering by {interface}")?;
        }
        if let Some(cgroup) = &self.cgroup {
            write!(f, ", of cgroup {cgroup}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} selects zone {}",
            self.by, self.selector, self.zone
        )
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "packet      {}", self.query)?;
        match &self.rule {
            Some(rule) => writeln!(f, "rule        {rule}")?,
            None => writeln!(f, "rule        none")?,
        }
        for rule in &self.also_matching {
            writeln!(f, "            ({rule} too, but comes later)")?;
        }
        writeln!(f, "zone        {}", self.zone.as_deref().unwrap_or("none"))?;
        if !self.regions.is_empty() {
            writeln!(f, "regions     {} (FWD-8)", self.regions.join(", "))?;
        }
        if let Some(policy) = &self.policy {
            writeln!(f, "policy      {policy}")?;
        }
        if !self.by_source_port.is_empty() {
            writeln!(
                f,
                "            (asked as from source port {UNKNOWN_PORT}: ask with one, ADDRESS:PORT, since policies differ by it)"
            )?;
        }
        for stretch in &self.by_source_port {
            let policy = stretch.policy.as_ref().map_or_else(
                || "no policy: the zone's pool".to_owned(),
                |policy| format!("policy {policy}"),
            );
            writeln!(
                f,
                "            (from source port {} on: {policy})",
                stretch.from
            )?;
        }
        writeln!(f, "pool        {}", self.pool.as_deref().unwrap_or("none"))?;
        for (at, candidate) in self.candidates.iter().enumerate() {
            let label = if at == 0 { "candidates" } else { "" };
            let active = candidate
                .active
                .map_or_else(|| "?".to_owned(), |active| active.to_string());
            let verdict = match candidate.verdict {
                Verdict::Free => "free",
                Verdict::Full => "full",
                Verdict::Draining => "draining",
            };
            writeln!(
                f,
                "{label:<12}{:<15} {active}/{} connections to this origin, {verdict}",
                candidate.egress_ip.to_string(),
                candidate.capacity
            )?;
            if let Some(prefix) = candidate.withdrawn {
                writeln!(
                    f,
                    "            (not advertised: {prefix} is withdrawn; answers come only if somebody else announces it)"
                )?;
            }
        }
        if let Some(path) = &self.path {
            writeln!(f, "path        {path}")?;
        }
        if let Some(
            Exit::Uplink { interface, .. }
            | Exit::Inside { interface }
            | Exit::Elsewhere { interface },
        ) = &self.exit
        {
            writeln!(f, "leaves by   {interface}")?;
        }
        write!(f, "outcome     ")?;
        match &self.outcome {
            Outcome::LiveFlow { flow } => {
                write!(
                    f,
                    "live flow ({}): leaves as {} of pool {}",
                    flow.state, flow.egress, flow.pool
                )
            }
            Outcome::Admitted { egress_ip } => {
                write!(f, "admitted: a new connection leaves as {egress_ip}")
            }
            Outcome::Forwarded { server, nearness } => {
                let near = match nearness.as_str() {
                    "data-center" => "another server of this data center",
                    "location" => "another data center of this location",
                    _ => "the closest other location",
                };
                write!(
                    f,
                    "forwarded: server {server} ({near}) translates a new connection"
                )
            }
            Outcome::Refused { reason, text } => write!(f, "refused: {reason}: {text}"),
            Outcome::DefaultEgress { text } => write!(f, "default egress: {text}"),
            Outcome::NoRoute { text } => write!(f, "no route: {text}"),
            Outcome::StaysInside { text } => write!(f, "not translated: {text}"),
        }
    }
}
