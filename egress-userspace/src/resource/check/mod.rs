//! What must hold for a whole set of resources, whichever file or API its members come from.

mod eligible;
mod lease;
mod placement;
mod policy;
mod pool;
mod regions;
mod server;
mod tunnel;
mod zone;

use std::collections::HashMap;

use super::{Kind, Place, Places, Resources};
use crate::config::Config;
use crate::diagnostic::{Report, Span};
use crate::document::nearest;

pub use eligible::{Ineligible, eligible};

/// Reports everything that is wrong with the set, and what deserves a warning.
///
/// `config` is this server's, where it is known: interfaces and marks are checked against it.
pub fn check(resources: &Resources, places: &Places, config: Option<&Config>, report: &Report<'_>) {
    if report.is_incomplete() {
        // Half a file was unreadable: whatever is missing may well be in that half.
        return;
    }
    let checker = Checker {
        resources,
        places,
        report,
    };
    checker.names();
    checker.references();
    pool::check(&checker);
    lease::check(&checker);
    zone::check(
        &checker,
        config.map_or(0, |config| config.dataplane.mark_mask),
    );
    policy::check(&checker);
    placement::check(&checker, config);
    tunnel::check(&checker);
    regions::check(&checker);
    if let Some(config) = config {
        server::check(&checker, config);
    }
}

/// Reports everything that is wrong with the set's policies, and what deserves a warning.
pub fn check_policies(resources: &Resources, report: &Report<'_>) {
    policy::check(&Checker {
        resources,
        places: &Places::default(),
        report,
    });
}

/// The set under examination.
struct Checker<'a, 's> {
    resources: &'a Resources,
    places: &'a Places,
    report: &'a Report<'s>,
}

impl Checker<'_, '_> {
    fn span(&self, place: Place) -> Span {
        self.places.span(place).cloned().unwrap_or(0..0)
    }

    /// Reports at `place`, or at the file's beginning when the object is not from the file.
    fn error(&self, place: Place, reason: impl Into<String>, remedy: impl Into<String>) {
        self.report.error(&self.span(place), reason, remedy);
    }

    fn warning(&self, place: Place, reason: impl Into<String>, remedy: impl Into<String>) {
        self.report.warning(&self.span(place), reason, remedy);
    }

    /// Ids and names are unique within a kind, and no name is another object's id.
    fn names(&self) {
        let resources = self.resources;
        self.unique(
            Kind::Account,
            resources
                .accounts
                .iter()
                .map(|a| (a.id.as_str(), Some(a.name.as_str()))),
        );
        self.unique(
            Kind::Pool,
            resources
                .pools
                .iter()
                .map(|p| (p.id.as_str(), p.name.as_deref().filter(|_| !p.made))),
        );
        self.unique(
            Kind::Zone,
            resources
                .zones
                .iter()
                .map(|z| (z.id.as_str(), Some(z.name.as_str()))),
        );
    }

    fn unique<'n>(&self, kind: Kind, names: impl Iterator<Item = (&'n str, Option<&'n str>)>) {
        let mut first: HashMap<&str, Place> = HashMap::new();
        for (object, (id, name)) in names.enumerate() {
            let place = Place::object(kind, object);
            let called = [(id, "id"), (name.unwrap_or(""), "name")];
            for (text, field) in called {
                // An empty one was refused already; a name that is the own id is the default.
                if text.is_empty() || (field == "name" && text == id) {
                    continue;
                }
                if let Some(other) = first.get(text) {
                    self.error(
                        place.field(field),
                        format!(
                            "{} \"{text}\" is there twice, first {}",
                            kind.noun(),
                            self.at(*other)
                        ),
                        format!("give each {} its own id and name", kind.noun()),
                    );
                } else {
                    first.insert(text, place.field(field));
                }
            }
        }
    }

    /// `on line 3`, or where else it comes from.
    fn at(&self, place: Place) -> String {
        self.places.span(place).map_or_else(
            || "set through the API or command line".to_owned(),
            |span| format!("on {}", self.report.line(span)),
        )
    }

    /// Every account and pool that is referred to exists.
    fn references(&self) {
        for (object, prefix) in self.resources.prefixes.iter().enumerate() {
            let place = Place::object(Kind::Prefix, object);
            self.account(place.field("account"), &prefix.account);
            for (item, account) in prefix.delegated_to.iter().enumerate() {
                self.account(place.field("delegated_to").item(item), account);
            }
        }
        for (object, pool) in self.resources.pools.iter().enumerate() {
            self.account(
                Place::object(Kind::Pool, object).field("account"),
                &pool.account,
            );
        }
        for (object, zone) in self.resources.zones.iter().enumerate() {
            self.account(
                Place::object(Kind::Zone, object).field("account"),
                &zone.account,
            );
        }
    }

    fn account(&self, place: Place, reference: &str) {
        if reference.is_empty() || self.resources.account(reference).is_some() {
            return;
        }
        let known = self
            .resources
            .accounts
            .iter()
            .flat_map(|a| [a.id.as_str(), a.name.as_str()]);
        self.unknown(place, "account", reference, known);
    }

    fn unknown<'n>(
        &self,
        place: Place,
        noun: &str,
        reference: &str,
        known: impl Iterator<Item = &'n str> + Clone,
    ) {
        let remedy = nearest(reference, known.filter(|name| !name.is_empty())).map_or_else(
            || format!("add a [[{noun}]] with this id or name"),
            |like| format!("did you mean \"{like}\"?"),
        );
        self.error(place, format!("there is no {noun} \"{reference}\""), remedy);
    }
}
