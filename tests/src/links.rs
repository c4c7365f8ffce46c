//! Kinds of network devices put on top of the plain links of a lab: the same addresses and routes, another link layer.

use anyhow::{Context as _, Result, bail};

use crate::{lab::Lab, needs, netns, tun::Wire};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The veth link itself.
    Veth,
    /// A bridge with the link as its port.
    Bridge,
    /// A macvlan device on the link.
    Macvlan,
    /// A VXLAN tunnel over the link.
    Vxlan,
    /// An 802.1Q VLAN.
    Vlan,
    /// An 802.1Q VLAN within an 802.1ad one.
    QinQ,
    /// A bond with one member.
    Bond,
    /// A tun device, without a link layer; the link itself is not used.
    Tun,
    /// A wireguard tunnel over the link, without a link layer.
    Wireguard,
}

/// One end of a link: where it is, and what is configured there.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The node.
    pub node: &'a str,
    /// The node's end of the veth link.
    pub device: &'a str,
    /// Its addresses.
    pub addresses: &'a [&'a str],
    /// Routes by it, without `dev`.
    pub routes: &'a [&'a str],
}

/// What stands on a link; a tun device lives as long as the value.
#[derive(Debug)]
pub struct Standing {
    /// The device's name, the same at both ends.
    pub device: String,
    _wire: Option<Wire>,
}

impl Link {
    /// Whether the kernel has such devices and the commands to make them are there; else prints `SKIPPED`.
    ///
    /// # Errors
    /// When no namespace can be made to try it in.
    #[must_use]
    pub fn available(self, test: &str, lab: &Lab, node: &str) -> bool {
        if self == Self::Wireguard && !needs::has_command("wg") {
            needs::skip(test, "the command wg is not installed");
            return false;
        }
        let kind = match self {
            Self::Veth | Self::Tun => return true,
            Self::Bridge => "type bridge",
            Self::Macvlan => "link lo type macvlan",
            Self::Vxlan => "type vxlan id 9 dstport 0 remote 192.0.2.1",
            Self::Vlan | Self::QinQ => "link lo type vlan id 9",
            Self::Bond => "type bond",
            Self::Wireguard => "type wireguard",
        };
        // Not on the loopback where that matters: what counts is whether the kind is known.
        match lab.node(node).ip(&format!("link add try0 {kind}")) {
            Ok(_) => {
                let _ = lab.node(node).ip("link del try0");
                true
            }
            Err(error) => {
                let said = format!("{error:#}");
                let unknown =
                    said.contains("Unknown device type") || said.contains("not supported");
                if unknown {
                    needs::skip(test, &format!("this kernel has no {self:?} devices"));
                }
                !unknown
            }
        }
    }

    /// Replaces a plain link by one of this kind. `number` tells links of a lab apart.
    ///
    /// # Errors
    /// When a command fails.
    pub fn put(
        self,
        lab: &Lab,
        sides: [Side<'_>; 2],
        number: u8,
        offload: bool,
    ) -> Result<Standing> {
        let device = match self {
            Self::Veth => sides[1].device.to_owned(),
            _ => format!("top{number}"),
        };
        let mut wire = None;
        for side in &sides {
            if self != Self::Veth {
                lab.node(side.node)
                    .ip(&format!("address flush dev {}", side.device))?;
            }
        }
        match self {
            Self::Veth => {
                return Ok(Standing {
                    device,
                    _wire: None,
                });
            }
            Self::Tun => {
                let [one, other] = sides.map(|side| lab.node(side.node));
                wire = Some(Wire::join([(&one, &device), (&other, &device)], offload)?);
            }
            Self::Wireguard => wireguard(lab, &sides, &device, number)?,
            _ => {
                for (at, side) in sides.iter().enumerate() {
                    self.stack(lab, side, &device, number, at)?;
                }
            }
        }
        for side in &sides {
            let node = lab.node(side.node);
            let mut lines: Vec<_> = side
                .addresses
                .iter()
                .map(|address| {
                    let nodad = if address.contains(':') { " nodad" } else { "" };
                    format!("address add {address} dev {device}{nodad}")
                })
                .collect();
            lines.push(format!("link set {device} up"));
            node.ip_batch(&lines)?;
        }
        for side in &sides {
            for route in side.routes {
                let family = if route.contains(':') { "-6" } else { "-4" };
                lab.node(side.node)
                    .ip(&format!("{family} route replace {route} dev {device}"))?;
            }
        }
        Ok(Standing {
            device,
            _wire: wire,
        })
    }

    /// Puts a device of this kind on one end of a veth link.
    fn stack(self, lab: &Lab, side: &Side<'_>, device: &str, number: u8, at: usize) -> Result<()> {
        let below = side.device;
        let lines = match self {
            Self::Bridge => vec![
                format!("link add {device} type bridge"),
                format!("link set {below} master {device}"),
            ],
            Self::Macvlan => vec![format!(
                "link add link {below} name {device} type macvlan mode bridge"
            )],
            Self::Vlan => vec![format!(
                "link add link {below} name {device} type vlan id 5"
            )],
            Self::QinQ => vec![
                format!("link add link {below} name mid{number} type vlan proto 802.1ad id 6"),
                format!("link set mid{number} up"),
                format!("link add link mid{number} name {device} type vlan id 5"),
            ],
            Self::Bond => vec![
                format!("link add {device} type bond mode active-backup miimon 100"),
                format!("link set {below} down"),
                format!("link set {below} master {device}"),
                format!("link set {below} up"),
            ],
            Self::Vxlan => {
                let [own, peer] = outer(number, at);
                vec![
                    format!("address add {own}/30 dev {below}"),
                    format!(
                        "link add {device} type vxlan id {number} dstport 4789 local {own} remote {peer} dev {below}"
                    ),
                ]
            }
            Self::Veth | Self::Tun | Self::Wireguard => bail!("{self:?} does not stand on one end"),
        };
        lab.node(side.node).ip_batch(&lines)
    }
}

/// This end's and the other end's address of the network that carries a tunnel.
fn outer(number: u8, at: usize) -> [String; 2] {
    let addresses = [1, 2].map(|host| format!("192.168.{number}.{host}"));
    let [one, other] = addresses;
    if at == 0 { [one, other] } else { [other, one] }
}

fn wireguard(lab: &Lab, sides: &[Side<'_>; 2], device: &str, number: u8) -> Result<()> {
    let mut keys = Vec::new();
    for side in sides {
        let private = lab.exec(side.node, &["wg", "genkey"])?;
        let public = netns::feed(lab.node(side.node).command("wg")?.arg("pubkey"), &private)?;
        keys.push((private, public.trim().to_owned()));
    }
    for (at, side) in sides.iter().enumerate() {
        let [own, peer] = outer(number, at);
        let node = lab.node(side.node);
        node.ip_batch(&[
            format!("address add {own}/30 dev {}", side.device),
            format!("link add {device} type wireguard"),
        ])?;
        let (private, _) = &keys[at];
        let (_, public) = keys.get(1 - at).context("two sides")?;
        let mut command = node.command("wg")?;
        command.args([
            "set",
            device,
            "listen-port",
            "51820",
            "private-key",
            "/dev/stdin",
        ]);
        command.args(["peer", public, "allowed-ips", "0.0.0.0/0,::/0"]);
        command.arg("endpoint").arg(format!("{peer}:51820"));
        netns::feed(&mut command, private)?;
    }
    Ok(())
}
