//! Where each part of the model stands in the file it was read from.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::diagnostic::Span;

/// The kinds of object that have an owner and a row in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An account.
    Account,
    /// A BYOIP prefix.
    Prefix,
    /// A location.
    Location,
    /// A pool.
    Pool,
    /// A placement.
    Placement,
    /// A zone.
    Zone,
    /// An egress policy.
    Policy,
    /// A leased address.
    Lease,
    /// A zone's setting, where it is an object of its own (made through API or command line).
    Setting,
    /// An address or pool that was told to drain through API or command line.
    Drain,
}

impl Kind {
    /// Every kind, in the order in which objects refer to earlier ones.
    pub const ALL: [Self; 10] = [
        Self::Account,
        Self::Prefix,
        Self::Location,
        Self::Pool,
        Self::Placement,
        Self::Zone,
        Self::Policy,
        Self::Lease,
        Self::Setting,
        Self::Drain,
    ];

    /// The noun for people and for the store.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Prefix => "prefix",
            Self::Location => "location",
            Self::Pool => "pool",
            Self::Placement => "placement",
            Self::Zone => "zone",
            Self::Policy => "policy",
            Self::Lease => "lease",
            Self::Setting => "setting",
            Self::Drain => "drain",
        }
    }
}

/// A part of the model: the object by its index among its kind, a field, an element of that field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Kind of the object.
    pub kind: Kind,
    /// Index of the object in the model's list.
    pub object: usize,
    /// Key of the field; empty for the object as a whole.
    pub field: &'static str,
    /// Index in the field's array; 0 for a field that is none.
    pub item: usize,
}

impl Place {
    /// An object as a whole.
    pub const fn object(kind: Kind, object: usize) -> Self {
        Self {
            kind,
            object,
            field: "",
            item: 0,
        }
    }

    /// A field of this object.
    pub const fn field(self, field: &'static str) -> Self {
        Self {
            field,
            item: 0,
            ..self
        }
    }

    /// An element of this field.
    pub const fn item(self, item: usize) -> Self {
        Self { item, ..self }
    }
}

/// Spans of a model's parts; empty for a model that came from the store.
#[derive(Clone, Debug, Default)]
pub struct Places(HashMap<Place, Span>);

impl Places {
    /// The span of a part, or of the object it belongs to; `None` when that is not from the file.
    pub fn span(&self, place: Place) -> Option<&Span> {
        self.0
            .get(&place)
            .or_else(|| self.0.get(&Place::object(place.kind, place.object)))
    }

    /// To note the spans of one object.
    pub(super) fn of(&mut self, kind: Kind, object: usize) -> ObjectPlaces<'_> {
        ObjectPlaces {
            places: self,
            object: Place::object(kind, object),
        }
    }
}

/// Notes the spans of one object's parts.
#[derive(Debug)]
pub(super) struct ObjectPlaces<'p> {
    places: &'p mut Places,
    object: Place,
}

impl ObjectPlaces<'_> {
    /// The object as a whole.
    pub(super) fn whole(&mut self, span: &Span) {
        self.places.0.insert(self.object, span.clone());
    }

    /// A field.
    pub(super) fn field(&mut self, field: &'static str, span: Span) {
        self.places.0.insert(self.object.field(field), span);
    }

    /// An element of a field; `item` counts the elements that entered the model.
    pub(super) fn item(&mut self, field: &'static str, item: usize, span: Span) {
        self.places
            .0
            .insert(self.object.field(field).item(item), span);
    }
}
