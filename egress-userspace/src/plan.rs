//! What applying a file would change: a pure function of what is stored and what the file says.
//!
//! `apply` adds, changes and prunes only what files own. Steps come in the order in which objects refer to each
//! other, by id within a kind, so that the same change always prints the same plan.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::placed;
use crate::resource::{Aegis, Drain, Kind, Object, Owner, Place, Resources, Setting, Zone};
use crate::store::{Change, Stored};

/// What would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One step an object; none when all is as the file says.
    pub steps: Vec<Step>,
    /// The changes to commit, in the same order.
    #[serde(skip)]
    changes: Vec<Change>,
    /// The model afterwards: the file's objects in the file's order, then those of API and command line.
    #[serde(skip)]
    after: Resources,
}

/// What happens to one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Added, changed or removed.
    pub action: Action,
    /// Kind of the object.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The fields that change; empty unless it is changed.
    pub fields: Vec<FieldChange>,
}

/// Added, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// Some of its fields change.
    Change,
    /// It goes.
    Remove,
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Its key; `aegis.pool_id` for a key of a section.
    pub field: String,
    /// The value before; null when there was none.
    pub from: Value,
    /// The value after; null when there is none.
    pub to: Value,
}

/// The file wants to change what it does not own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Conflict {
    /// What in the file.
    pub place: Place,
    /// Whose it is.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Plan {
    /// What `file` would change about `stored`, and what it must not change.
    pub fn new(stored: &Stored, file: &Resources) -> (Self, Vec<Conflict>) {
        let mut after = file.clone();
        let conflicts = conflicts(stored, file);
        // What the file does not own stays.
        let written: BTreeSet<(Kind, String)> = file
            .objects()
            .iter()
            .map(|object| (object.kind(), object.id()))
            .collect();
        for object in stored.owned_by(Owner::Api) {
            match object {
                conflicting if written.contains(&(conflicting.kind(), conflicting.id())) => {}
                Object::Setting(setting) if !keeps_setting(file, stored, &setting.zone) => {}
                // What drained has gone.
                Object::Drain(drain) if !is_member(file, stored, &drain.subject) => {}
                other => after.push(other.clone()),
            }
        }
        // A setting that the file lets go of stays as it is and passes to API and command line.
        for zone in file.zones.iter().filter(|zone| zone.aegis.is_none()) {
            if let Some(aegis) = stored_zone(stored, &zone.id).and_then(|old| old.aegis.clone()) {
                after.settings.entry(zone.id.clone()).or_insert(aegis);
            }
        }
        let mut plan = Self {
            after,
            ..Self::default()
        };
        plan.diff(stored);
        (plan, conflicts)
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The changes to commit.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The model after the plan: to be checked before it is committed.
    pub fn after(&self) -> &Resources {
        &self.after
    }

    fn diff(&mut self, stored: &Stored) {
        let mut wanted: Vec<Object> = self.after.objects();
        wanted.sort_by_key(|object| (object.kind(), object.id()));
        let kept: BTreeSet<(Kind, String)> = wanted
            .iter()
            .map(|object| (object.kind(), object.id()))
            .collect();
        for object in wanted {
            let before = stored.objects.get(&(object.kind(), object.id()));
            let fields = match before {
                Some((_, before)) if *before == object => continue,
                Some((_, before)) => field_changes(before, &object),
                None => Vec::new(),
            };
            let action = if before.is_some() {
                Action::Change
            } else {
                Action::Add
            };
            self.step(action, &object, fields);
            let owner = if matches!(object.kind(), Kind::Setting | Kind::Drain) {
                Owner::Api
            } else {
                Owner::File
            };
            self.changes.push(Change::Put { owner, object });
        }
        // Removed last to first: what refers to others goes before them.
        for (key, (_, object)) in stored.objects.iter().rev() {
            if !kept.contains(key) {
                self.step(Action::Remove, object, Vec::new());
                self.changes.push(Change::Remove {
                    kind: key.0,
                    id: key.1.clone(),
                });
            }
        }
    }

    fn step(&mut self, action: Action, object: &Object, fields: Vec<FieldChange>) {
        let name = match object {
            Object::Setting(setting) => self
                .after
                .zone(&setting.zone)
                .map_or_else(|| setting.zone.clone(), |zone| zone.name.clone()),
            other => other.label(),
        };
        self.steps.push(Step {
            action,
            kind: object.kind(),
            id: object.id(),
            name,
            fields,
        });
    }
}

/// Whether this is a pool, or an address of one: of the file's pools, or of those of the API.
fn is_member(file: &Resources, stored: &Stored, subject: &str) -> bool {
    if let Some(server) = Drain::server(subject) {
        return placed::servers(file).any(|one| one.server.name == server);
    }
    let made = stored
        .owned_by(Owner::Api)
        .filter_map(|object| match object {
            Object::Pool(pool) => Some(pool),
            _ => None,
        });
    file.pools.iter().chain(made).any(|pool| {
        pool.id == subject
            || pool
                .addresses
                .iter()
                .any(|address| address.to_string() == subject)
    })
}

fn stored_zone<'a>(stored: &'a Stored, id: &str) -> Option<&'a Zone> {
    match stored.objects.get(&(Kind::Zone, id.to_owned())) {
        Some((_, Object::Zone(zone))) => Some(zone),
        _ => None,
    }
}

/// Whether a setting made by API or command line lives on: its zone does, and leaves the setting to them.
fn keeps_setting(file: &Resources, stored: &Stored, zone: &str) -> bool {
    file.zones
        .iter()
        .find(|candidate| candidate.id == zone)
        .map_or_else(
            || {
                matches!(
                    stored.objects.get(&(Kind::Zone, zone.to_owned())),
                    Some((Owner::Api, _))
                )
            },
            |zone| zone.aegis.is_none(),
        )
}

fn conflicts(stored: &Stored, file: &Resources) -> Vec<Conflict> {
    let mut found = Vec::new();
    let lists: [(Kind, Vec<Object>); 7] = [
        (
            Kind::Account,
            file.accounts.iter().cloned().map(Object::Account).collect(),
        ),
        (
            Kind::Prefix,
            file.prefixes.iter().cloned().map(Object::Prefix).collect(),
        ),
        (
            Kind::Location,
            file.locations
                .iter()
                .cloned()
                .map(Object::Location)
                .collect(),
        ),
        (
            Kind::Pool,
            file.pools.iter().cloned().map(Object::Pool).collect(),
        ),
        (
            Kind::Placement,
            file.placements
                .iter()
                .cloned()
                .map(Object::Placement)
                .collect(),
        ),
        (
            Kind::Zone,
            file.zones.iter().cloned().map(Object::Zone).collect(),
        ),
        (
            Kind::Policy,
            file.policies.iter().cloned().map(Object::Policy).collect(),
        ),
    ];
    for (kind, objects) in lists {
        for (index, object) in objects.iter().enumerate() {
            if let Some((Owner::Api, _)) = stored.objects.get(&(kind, object.id())) {
                found.push(Conflict {
                    place: Place::object(kind, index),
                    reason: format!(
                        "{} {} belongs to the API: a file cannot change it",
                        kind.noun(),
                        object.label()
                    ),
                    remedy: "remove it from the file, or delete it through the API first".into(),
                });
            }
        }
    }
    for (index, zone) in file.zones.iter().enumerate() {
        let (Some(wanted), Some((Owner::Api, Object::Setting(Setting { aegis, .. })))) = (
            &zone.aegis,
            stored.objects.get(&(Kind::Setting, zone.id.clone())),
        ) else {
            continue;
        };
        // An equal setting, or one that is off, may pass to the file: nothing of the other side's is overruled.
        if aegis.enabled && !same_setting(file, aegis, wanted) {
            found.push(Conflict {
                place: Place::object(Kind::Zone, index).field("aegis"),
                reason: format!(
                    "zone {} was enabled on pool {} by API or command line: a file cannot change that",
                    zone.name,
                    aegis.pool_id.as_deref().unwrap_or("none")
                ),
                remedy: format!(
                    "remove [zone.aegis] to leave the setting to them, or first run `egress zone disable {}`",
                    zone.name
                ),
            });
        }
    }
    found
}

fn same_setting(file: &Resources, one: &Aegis, other: &Aegis) -> bool {
    let pool = |setting: &Aegis| {
        setting.pool_id.as_deref().map(|reference| {
            file.pool(reference)
                .map_or_else(|| reference.to_owned(), |pool| pool.id.clone())
        })
    };
    one.enabled == other.enabled && pool(one) == pool(other)
}

fn field_changes(before: &Object, after: &Object) -> Vec<FieldChange> {
    let value = |object: &Object| {
        serde_json::to_value(object)
            .ok()
            .and_then(|mut value| value.get_mut("value").map(Value::take))
    };
    let mut found = Vec::new();
    compare(
        "",
        &value(before).unwrap_or_default(),
        &value(after).unwrap_or_default(),
        &mut found,
    );
    found
}

fn compare(path: &str, from: &Value, to: &Value, found: &mut Vec<FieldChange>) {
    if from == to {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (from, to) {
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let side =
                |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            compare(&path, &side(old), &side(new), found);
        }
        return;
    }
    found.push(FieldChange {
        field: path.to_owned(),
        from: from.clone(),
        to: to.clone(),
    });
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return f.write_str("nothing to change");
        }
        for (at, step) in self.steps.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Change => '~',
            Action::Remove => '-',
        };
        match self.kind {
            Kind::Setting => write!(
                f,
                "{sign} setting of zone {} (of API and command line)",
                self.name
            )?,
            Kind::Drain => write!(
                f,
                "{sign} draining of {} (of API and command line)",
                self.name
            )?,
            kind => write!(f, "{sign} {} {}", kind.noun(), self.name)?,
        }
        for (at, field) in self.fields.iter().enumerate() {
            write!(f, "{} {field}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Value::Array(from), Value::Array(to)) = (&self.from, &self.to) {
            let gone = from
                .iter()
                .filter(|value| !to.contains(value))
                .map(|value| format!("-{}", text(value)));
            let new = to
                .iter()
                .filter(|value| !from.contains(value))
                .map(|value| format!("+{}", text(value)));
            let members: Vec<String> = gone.chain(new).collect();
            let members = if members.is_empty() {
                "another order".to_owned()
            } else {
                members.join(" ")
            };
            return write!(f, "{}: {members}", self.field);
        }
        write!(
            f,
            "{}: {} -> {}",
            self.field,
            text(&self.from),
            text(&self.to)
        )
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
