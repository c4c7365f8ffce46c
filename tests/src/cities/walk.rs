//! One connection, and every server that its packets passed, as captures at the routers of the data centers tell.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Cities, SERVERS, egress_ip, inside, server_address};
use crate::{
    capture::{Capture, Frame},
    packet::{Packet, UDP},
    pair::TUNNEL_PORT,
    peer::{Caller, Peers},
    ports::ends,
    wait,
};

/// What a tunnel packet over IPv4 has before the frame that it carries: Ethernet, IP, UDP, VXLAN.
const OUTER: usize = 14 + 20 + 8 + 8;
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a server finds an owner of an applicable address (FWD-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// It is one itself.
    Here,
    /// Another server of its data center.
    DataCenter,
    /// Another data center of its location.
    Location,
    /// The closest other location that has one.
    Elsewhere,
}

impl Case {
    /// In the order in which they are tried.
    pub const ALL: [Self; 4] = [
        Self::Here,
        Self::DataCenter,
        Self::Location,
        Self::Elsewhere,
    ];

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Here => "the server itself",
            Self::DataCenter => "another server of its data center",
            Self::Location => "another data center of its location",
            Self::Elsewhere => "the closest other location",
        }
    }

    /// Which one it is when a server finds another one, or itself.
    fn between(from: usize, to: usize) -> Self {
        let ((_, center, location), (_, other_center, other_location)) =
            (SERVERS[from], SERVERS[to]);
        if from == to {
            Self::Here
        } else if center == other_center {
            Self::DataCenter
        } else if location == other_location {
            Self::Location
        } else {
            Self::Elsewhere
        }
    }

    /// As `egress why` names it.
    fn nearness(self) -> &'static str {
        match self {
            Self::Here => "local",
            Self::DataCenter => "data-center",
            Self::Location => "location",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// A connection that is up, and the way it took. Servers are numbered from 0.
#[derive(Debug)]
pub struct Walk {
    /// The connection.
    pub live: Peers,
    /// Its pool, from 1.
    pub pool: usize,
    /// Where an owner was found.
    pub case: Case,
    /// The servers that its SYN passed: where it came in first, and the one that the origin saw last.
    pub out: Vec<usize>,
    /// The servers that the answer passed: where the network brought it first, and where it left for the client last.
    pub back: Vec<usize>,
    /// What `egress why` said, before there was a flow.
    pub why: String,
    /// What `egress flows` says at the first and at the last server of `out`.
    pub listed: [String; 2],
}

impl Walk {
    /// The owner of the flow.
    #[must_use]
    pub fn owner(&self) -> usize {
        *self.out.last().unwrap_or(&0)
    }

    /// Whether the network brought the answer to a server that is not the flow's owner.
    #[must_use]
    pub fn was_steered(&self) -> bool {
        self.back.first() != Some(&self.owner())
    }
}

impl Cities {
    /// The server of the first data center that has a slice of the first pool, and the one that has none: it is the only
    /// slice there.
    ///
    /// # Errors
    /// When `egress why` fails, or neither or both have.
    pub fn owner_and_neighbour(&self, to: SocketAddr) -> Result<(usize, usize)> {
        let admits = |server: usize| {
            let source = inside(1).to_string();
            let why = self.gateways[server].json(&["why", &source, &to.to_string()])?;
            anyhow::Ok(why["outcome"] == "admitted")
        };
        match (admits(0)?, admits(1)?) {
            (true, false) => Ok((0, 1)),
            (false, true) => Ok((1, 0)),
            both => bail!("one of the two servers of fra01 has the slice: {both:?}"),
        }
    }

    /// Connects from a zone's address behind a server to whoever listens.
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn connect(&self, zone: usize, server: usize, listener: &TcpListener) -> Result<Peers> {
        let caller = Caller {
            address: Some(inside(zone).into()),
            ..Caller::default()
        };
        Peers::connect(&self.client(server), caller, listener)
    }

    /// Connects as [`Cities::connect`] and finds out which way the packets go, and that `egress why`, `egress flows` and
    /// the captures agree.
    ///
    /// # Errors
    /// When they do not, or a packet with a foreign source left for the origin.
    pub fn walk(&self, pool: usize, from: usize, listener: &TcpListener) -> Result<Walk> {
        let at = listener.local_addr()?;
        let ask = || {
            let source = inside(pool).to_string();
            self.gateways[from].json(&["why", &source, &at.to_string()])
        };
        let why = ask()?;
        let captures = (0..SERVERS.len())
            .map(|server| {
                let (router, port) = self.port(server);
                Capture::start(&router, &port)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut live = self.connect(pool, from, listener)?;
        for _ in 0..3 {
            live.exchange()?;
        }
        let mut seen = Seen::new(&live, at)?;
        for (server, capture) in captures.into_iter().enumerate() {
            seen.take_in(server, &capture.finish()?);
        }
        let (out, back) = (seen.out(from)?, seen.back(from)?);
        let owner = *out.last().context("no server")?;
        ensure!(
            live.seen.ip() == IpAddr::from(egress_ip(pool)),
            "the origin saw {}",
            live.seen
        );

        let case = Case::between(from, owner);
        let (name, of) = (SERVERS[owner].0, SERVERS[from].0);
        let first = self.path_of(from, at, "inside", seen.inside)?;
        let last = self.path_of(owner, at, "egress", seen.egress)?;
        let expected = if case == Case::Here {
            ["local".to_owned(), "local".to_owned()]
        } else {
            [format!("peer {name}"), format!("from {of}")]
        };
        let listed = [first, last];
        ensure!(
            listed == expected,
            "egress flows says {listed:?}, captures {expected:?}"
        );
        let agrees = |why: &Value| {
            why["path"] == expected[0].as_str()
                && (case == Case::Here || why["nearness"] == case.nearness())
        };
        // Between the question and the connection, what was measured may have made another location the closest.
        ensure!(
            agrees(&why) || agrees(&ask()?),
            "egress why said {why}, captures {expected:?}"
        );
        Ok(Walk {
            live,
            pool,
            case,
            out,
            back,
            why: why["path"].as_str().unwrap_or_default().to_owned(),
            listed,
        })
    }

    /// The path of the flow to an origin of which one end is this, by `egress flows`.
    ///
    /// # Errors
    /// When there is no such flow.
    pub fn path_of(
        &self,
        server: usize,
        origin: SocketAddr,
        end: &str,
        is: SocketAddr,
    ) -> Result<String> {
        let (origin, is) = (origin.to_string(), is.to_string());
        wait::until(&format!("a flow with {end} {is}"), LIMIT, || {
            let text = self.gateways[server].text(["flows", "--json"])?;
            let flows = text.lines().map(serde_json::from_str::<Value>);
            let flows = flows.collect::<Result<Vec<_>, _>>()?;
            let found = flows
                .iter()
                .find(|flow| flow["origin"] == origin.as_str() && flow[end] == is.as_str());
            Ok(found
                .and_then(|flow| flow["path"].as_str())
                .map(ToOwned::to_owned))
        })
    }
}

/// What captures saw of one connection.
struct Seen {
    inside: SocketAddr,
    egress: SocketAddr,
    origin: SocketAddr,
    /// Servers whose packets went to the origin.
    left: Vec<usize>,
    /// Servers that the network brought answers to.
    came: Vec<usize>,
    /// Through the tunnel, from whom to whom: towards the origin; answers as the origin sent them; answers as the
    /// client gets them.
    towards: Vec<(usize, usize)>,
    steered: Vec<(usize, usize)>,
    returned: Vec<(usize, usize)>,
    foreign: Vec<String>,
}

impl Seen {
    fn new(live: &Peers, origin: SocketAddr) -> Result<Self> {
        Ok(Self {
            inside: live.inside.local_addr()?,
            egress: live.seen,
            origin,
            left: Vec::new(),
            came: Vec::new(),
            towards: Vec::new(),
            steered: Vec::new(),
            returned: Vec::new(),
            foreign: Vec::new(),
        })
    }

    /// Takes in what was seen at the router's port of a server.
    fn take_in(&mut self, server: usize, frames: &[Frame]) {
        for frame in frames {
            let Some(packet) = frame.packet() else {
                continue;
            };
            if packet.protocol == UDP && packet.destination_port() == Some(TUNNEL_PORT) {
                // Each is seen twice: at its sender's port, and at its receiver's.
                if frame.received
                    && let Some(inner) = frame.bytes.get(OUTER..).and_then(Packet::parse)
                    && let Some(to) = server_at(packet.destination)
                {
                    self.tunnelled((server, to), &inner);
                }
            } else if let Some((from, to)) = ends(&packet) {
                if frame.received && to == self.origin {
                    if from == self.egress {
                        note(&mut self.left, server);
                    } else {
                        self.foreign.push(packet.to_string());
                    }
                } else if !frame.received && from == self.origin && to == self.egress {
                    note(&mut self.came, server);
                }
            }
        }
    }

    fn tunnelled(&mut self, hop: (usize, usize), inner: &Packet) {
        let Some((from, to)) = ends(inner) else {
            return;
        };
        if to == self.origin && from == self.inside {
            note(&mut self.towards, hop);
        } else if from == self.origin && to == self.egress {
            note(&mut self.steered, hop);
        } else if from == self.origin && to == self.inside {
            note(&mut self.returned, hop);
        }
    }

    /// The servers that packets towards the origin passed.
    fn out(&self, from: usize) -> Result<Vec<usize>> {
        ensure!(
            self.foreign.is_empty(),
            "foreign sources: {:?}",
            self.foreign
        );
        let mut way = vec![from];
        follow(&mut way, &self.towards)?;
        ensure!(
            way.last() == self.left.first() && self.left.len() == 1,
            "by the tunnel {:?}, to the origin from {:?}",
            self.towards,
            self.left
        );
        Ok(way)
    }

    /// The servers that answers passed.
    fn back(&self, to: usize) -> Result<Vec<usize>> {
        let [first] = self.came[..] else {
            bail!("the network brought answers to {:?}", self.came)
        };
        let mut way = vec![first];
        follow(&mut way, &self.steered)?;
        follow(&mut way, &self.returned)?;
        ensure!(
            way.last() == Some(&to),
            "answers came to {first}, went {:?} and {:?}",
            self.steered,
            self.returned
        );
        Ok(way)
    }
}

/// Goes on from the last server by the one hop that there is, if there is one: nothing goes through the tunnel twice.
fn follow(way: &mut Vec<usize>, hops: &[(usize, usize)]) -> Result<()> {
    match hops {
        [] => Ok(()),
        [(from, to)] if way.last() == Some(from) => {
            way.push(*to);
            Ok(())
        }
        _ => bail!("after {way:?} came {hops:?}"),
    }
}

fn server_at(address: IpAddr) -> Option<usize> {
    (0..SERVERS.len()).find(|server| IpAddr::from(server_address(*server)) == address)
}

fn note<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
