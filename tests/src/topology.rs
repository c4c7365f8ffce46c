//! A network described as data. [`crate::lab::Lab`] makes it real.

/// Nodes, links between them, routes and settings.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<(End, End)>,
}

/// A namespace and what is set in it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) bridges: Vec<String>,
    pub(crate) routes: Vec<String>,
    pub(crate) nft: Vec<String>,
}

/// One end of a veth link.
#[derive(Clone, Debug)]
pub struct End {
    pub(crate) node: String,
    pub(crate) interface: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) bridge: Option<String>,
    pub(crate) mac: Option<String>,
}

impl End {
    /// An interface of a node, without address.
    #[must_use]
    pub fn new(node: &str, interface: &str) -> Self {
        Self {
            node: node.to_owned(),
            interface: interface.to_owned(),
            addresses: Vec::new(),
            bridge: None,
            mac: None,
        }
    }

    /// Gives the interface an address with prefix length.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Makes the interface a port of a bridge of its node.
    #[must_use]
    pub fn port_of(mut self, bridge: &str) -> Self {
        self.bridge = Some(bridge.to_owned());
        self
    }

    /// Fixes the link-layer address.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }
}

impl Topology {
    /// An empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node; the settings of the calls that follow need it.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(Node {
            name: name.to_owned(),
            sysctls: Vec::new(),
            bridges: Vec::new(),
            routes: Vec::new(),
            nft: Vec::new(),
        });
        self
    }

    /// Links two nodes.
    #[must_use]
    pub fn link(mut self, one: End, other: End) -> Self {
        self.links.push((one, other));
        self
    }

    /// Sets a sysctl on a node.
    #[must_use]
    pub fn sysctl(self, node: &str, name: &str, value: &str) -> Self {
        self.at(node, |node| {
            node.sysctls.push((name.to_owned(), value.to_owned()));
        })
    }

    /// Adds a bridge to a node.
    #[must_use]
    pub fn bridge(self, node: &str, name: &str) -> Self {
        self.at(node, |node| node.bridges.push(name.to_owned()))
    }

    /// Adds a route to a node, in the words of `ip route add`; IPv6 routes are recognised by a colon.
    #[must_use]
    pub fn route(self, node: &str, route: &str) -> Self {
        self.at(node, |node| node.routes.push(route.to_owned()))
    }

    /// Makes a node route packets of both families.
    #[must_use]
    pub fn forwarding(self, node: &str) -> Self {
        self.sysctl(node, "net.ipv4.ip_forward", "1").sysctl(
            node,
            "net.ipv6.conf.all.forwarding",
            "1",
        )
    }

    /// Loads an nftables script on a node.
    #[must_use]
    pub fn nft(self, node: &str, script: &str) -> Self {
        self.at(node, |node| node.nft.push(script.to_owned()))
    }

    /// The names of all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    fn at(mut self, name: &str, change: impl FnOnce(&mut Node)) -> Self {
        match self.nodes.iter_mut().find(|node| node.name == name) {
            Some(node) => change(node),
            None => panic!("the topology has no node {name}"),
        }
        self
    }
}
