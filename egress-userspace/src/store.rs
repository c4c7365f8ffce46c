//! Where resources are kept between runs, with their owners and numbers (CLU-1).
//!
//! Every implementation keeps two promises: a commit happens wholly or not at all, and a number once given to a
//! zone or pool is given to no other one until all numbers have been used.

#[cfg(test)]
mod conformance;
mod sqlite;
mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use sqlite::SqliteStore;
pub(crate) use sqlite::now;
pub(crate) use token::random;
pub use token::{NewToken, Permission, Token, hash_of};

use crate::dataplane::api::Names;
use crate::resource::{Kind, Location, Object, Owner, Resources};

/// Keeps objects, owners and numbers.
pub trait StateStore: Send {
    /// Everything that is kept.
    fn load(&self) -> Result<Stored, StoreError>;

    /// Makes all changes, or none. A zone or pool that is put gets a number if it has none.
    fn commit(&mut self, changes: &[Change], limits: Limits) -> Result<(), StoreError>;
}

/// Everything that a store keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Objects with their owners, by kind and id.
    pub objects: BTreeMap<(Kind, String), (Owner, Object)>,
    /// Numbers of zones and pools.
    pub numbers: Numbers,
    /// When objects were put last, µs since 1970; absent for those of a store that did not note it.
    pub modified: BTreeMap<(Kind, String), i64>,
}

impl Stored {
    /// The model that these objects form.
    pub fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for (_, object) in self.objects.values() {
            resources.push(object.clone());
        }
        resources
    }

    /// Whether an object is there and the API may change it.
    pub fn is_of_api(&self, kind: Kind, id: &str) -> bool {
        let found = self.objects.get(&(kind, id.to_owned()));
        matches!(found, Some((Owner::Api, _)))
    }

    /// The objects of one owner.
    pub fn owned_by(&self, owner: Owner) -> impl Iterator<Item = &Object> {
        self.objects
            .values()
            .filter(move |(by, _)| *by == owner)
            .map(|(_, object)| object)
    }

    /// Names for the numbers in the data plane's maps.
    pub fn names(&self) -> Names {
        let label = |kind: Kind, id: &String| {
            self.objects.get(&(kind, id.clone())).map_or_else(
                || id.clone(),
                |(_, object)| match object {
                    Object::Zone(zone) => zone.name.clone(),
                    other => other.id(),
                },
            )
        };
        let names = |kind, numbers: &BTreeMap<String, u16>| {
            numbers
                .iter()
                .map(|(id, number)| (*number, label(kind, id)))
                .collect()
        };
        Names {
            zones: names(Kind::Zone, &self.numbers.zones),
            pools: names(Kind::Pool, &self.numbers.pools),
            servers: self
                .objects
                .values()
                .filter_map(|(_, object)| match object {
                    Object::Location(location) => Some(location),
                    _ => None,
                })
                .flat_map(Location::servers)
                .filter_map(|(_, _, server)| Some((server.tunnel?, server.name.clone())))
                .collect(),
        }
    }
}

/// Stable numbers, at least 1, by id; those of removed objects included until they are reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Zones.
    pub zones: BTreeMap<String, u16>,
    /// Pools.
    pub pools: BTreeMap<String, u16>,
}

/// The highest numbers that may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The last zone number.
    pub last_zone: u16,
    /// The last pool number.
    pub last_pool: u16,
}

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds the object or replaces it.
    Put {
        /// Its owner from now on.
        owner: Owner,
        /// The object.
        object: Object,
    },
    /// Removes the object.
    Remove {
        /// Its kind.
        kind: Kind,
        /// Its id.
        id: String,
    },
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is damaged, or no database.
    #[error("the store {} is damaged: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A later version of egress wrote it.
    #[error("the store {} was written by a newer version (schema {found}; this version knows {known})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
    /// An earlier version wrote it, and only the daemon brings it up to date.
    #[error("the store {} was written by an older version (schema {found}; this version writes {known})", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The one this version writes.
        known: i64,
    },
    /// It is somebody else's database.
    #[error("{} is not a store of egress", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There is none, where one should be read.
    #[error("there is no store {}", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The directory or file cannot be opened or written.
    #[error("cannot use the store {}: {reason}", path.display())]
    Inaccessible {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Every number is in use.
    #[error("all {last} {noun} numbers are in use")]
    Exhausted {
        /// Which numbers.
        noun: &'static str,
        /// The last one.
        last: u16,
    },
}

impl StoreError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Corrupt { path, .. } => format!(
                "move {} away (with its -wal and -shm files) and start again: resources come back from the file; \
                 settings made by API or command line must be made again, or restore a backup. What is in force \
                 stays in force",
                path.display()
            ),
            Self::Newer { .. } => {
                "use that version of egress again, or point [store] sqlite elsewhere".into()
            }
            Self::Older { .. } => {
                "restart the daemon with this version, which brings the store up to date; or use the older \
                 version's command"
                    .into()
            }
            Self::Foreign { .. } => "point [store] sqlite at another file".into(),
            Self::Absent { .. } => {
                "start the daemon once with `egress run`, or check [store] sqlite".into()
            }
            Self::Inaccessible { .. } => {
                "check that the directory exists and that this user may write to it; the daemon's store is its own user's \
                 (root), and nobody else's"
                    .into()
            }
            Self::Exhausted { .. } => {
                "remove some, or reserve more bits under [dataplane] mark_mask".into()
            }
        }
    }
}
