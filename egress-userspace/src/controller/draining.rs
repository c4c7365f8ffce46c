//! Draining (POOL-9): no new flows by an address or a whole pool; live ones finish, or are reset.

use ipnet::IpNet;

use super::Writer;
use crate::control::protocol::{Drained, Failure};
use crate::inventory::find_pool;
use crate::resource::{Address, Drain, Kind, Object, Owner, Pool, Resources};
use crate::store::Change;

/// What is to drain.
enum Subject<'r> {
    /// One member of a pool.
    Member(&'r Pool, Address),
    /// All members of a pool.
    Whole(&'r Pool),
    /// An address that is in no pool; flows may be left on it.
    Former(Address),
}

impl Subject<'_> {
    fn of<'r>(resources: &'r Resources, text: &str) -> Result<Subject<'r>, Failure> {
        let Ok(address) = text.parse::<Address>() else {
            return Ok(Subject::Whole(find_pool(resources, text)?));
        };
        let members = resources
            .pools
            .iter()
            .flat_map(|pool| pool.addresses.iter().map(move |member| (pool, *member)));
        for (pool, member) in members {
            if member == address {
                return Ok(Subject::Member(pool, address));
            }
            if overlap(member.net(), address.net()) {
                return Err(Failure::usage(
                    format!(
                        "{address} is no member of a pool; {member}, of pool {}, is",
                        pool.id
                    ),
                    format!("a member drains as a whole: egress pool drain {member}"),
                ));
            }
        }
        Ok(Subject::Former(address))
    }

    /// The subject's name in the store.
    fn id(&self) -> String {
        match self {
            Self::Member(_, address) | Self::Former(address) => address.to_string(),
            Self::Whole(pool) => pool.id.clone(),
        }
    }

    fn addresses(&self) -> Vec<Address> {
        match self {
            Self::Member(_, address) | Self::Former(address) => vec![*address],
            Self::Whole(pool) => pool.addresses.clone(),
        }
    }
}

/// Whether addresses are in both.
fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

impl Writer<'_> {
    /// Lets an address (in a pool or not any more) or a pool drain; with `reset` its live flows end now, at both
    /// ends.
    pub fn drain(&mut self, subject: &str, reset: bool) -> Result<Drained, Failure> {
        let resources = self.stored().resources();
        let subject = Subject::of(&resources, subject)?;
        let id = subject.id();
        let nets: Vec<IpNet> = subject.addresses().into_iter().map(Address::net).collect();
        match subject {
            Subject::Former(address) if !reset => {
                return Err(Failure::usage(
                    format!("{address} is in no pool: it takes no new flows anyway"),
                    "with --reset the flows that are left on it end now; `egress pools` lists addresses",
                ));
            }
            Subject::Former(address) => {
                let left = self.controller().dataplane().status()?.draining;
                if !left
                    .iter()
                    .any(|left| overlap(address.net(), left.egress_ip.net()))
                {
                    return Err(Failure::usage(
                        format!("{address} is no egress IP, and no flows are left on it"),
                        "`egress pools` and `egress status` list addresses",
                    ));
                }
            }
            Subject::Member(..) | Subject::Whole(_) => self.commit(&[Change::Put {
                owner: Owner::Api,
                object: Object::Drain(Drain {
                    subject: id.clone(),
                }),
            }])?,
        }
        let ended = if reset {
            self.controller().dataplane_mut().reset(&nets)?
        } else {
            0
        };
        self.drained(id, &nets, ended)
    }

    /// Lets new flows in again.
    pub fn undrain(&mut self, subject: &str) -> Result<Drained, Failure> {
        let resources = self.stored().resources();
        let subject = Subject::of(&resources, subject)?;
        let id = subject.id();
        let in_file: Vec<String> = match &subject {
            Subject::Former(address) => {
                return Err(Failure::usage(
                    format!("{address} is in no pool"),
                    "`egress pools` lists pools and addresses",
                ));
            }
            Subject::Member(pool, address) => {
                if resources.drains.contains(&pool.id) {
                    return Err(Failure::failed(
                        format!("all of pool {} drains, {address} with it", pool.id),
                        format!("egress pool undrain {}", pool.id),
                    ));
                }
                let listed = pool.draining.iter().filter(|member| *member == address);
                listed.map(ToString::to_string).collect()
            }
            Subject::Whole(pool) => pool.draining.iter().map(ToString::to_string).collect(),
        };
        let told = resources.drains.contains(&id);
        if !told && !in_file.is_empty() {
            return Err(Failure::failed(
                format!("{} drains by the resources file", in_file.join(", ")),
                "take it out of `draining` there and run `egress apply -f FILE`",
            ));
        }
        if told {
            self.commit(&[Change::Remove {
                kind: Kind::Drain,
                id: id.clone(),
            }])?;
        }
        let nets: Vec<IpNet> = subject.addresses().into_iter().map(Address::net).collect();
        self.drained(id, &nets, 0)
    }

    fn drained(&self, subject: String, nets: &[IpNet], ended: u64) -> Result<Drained, Failure> {
        let of_subject = |address: Address| nets.iter().any(|net| overlap(*net, address.net()));
        let draining = self.controller().dataplane().status()?.draining;
        let found: Vec<_> = draining
            .into_iter()
            .filter(|address| of_subject(address.egress_ip))
            .collect();
        Ok(Drained {
            subject,
            addresses: found,
            ended,
        })
    }
}
