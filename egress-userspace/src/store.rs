//! Where resources are kept between runs, with their owners and numbers (CLU-1).
//!
//! Every implementation keeps two promises: a commit happens wholly or not at all, and a number once given to a
//! zone or pool is given to no other one until all numbers have been used.

#[cfg(test)]
mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod identity;
mod sqlite;
mod token;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "etcd")]
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
#[cfg(feature = "etcd")]
use identity::Identity;
#[cfg(feature = "etcd")]
use sqlite::SCHEMA_VERSION;
pub use sqlite::SqliteStore;
pub(crate) use token::random;
pub use token::{NewToken, Permission, Token, hash_of};

use crate::config::{self, Config};
use crate::dataplane::api::Names;
use crate::ownership::{Host, Impostor, Ownership, Promise, Step};
use crate::resource::{Kind, Location, Object, Owner, Resources};

/// Keeps objects, owners and numbers.
pub trait StateStore: Send {
    /// Everything that is kept.
    fn load(&self) -> Result<Stored, StoreError>;

    /// As [`Self::load`], but never what may be out of date.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where a shared store does not answer.
    fn current(&self) -> Result<Stored, StoreError> {
        self.load()
    }

    /// Makes all changes, or none, if `agrees` says yes to what would then be stored; returns what is. A zone or pool
    /// that is put gets a number if it has none. It comes back within 30 seconds or so.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where somebody else has committed since this store was read last;
    /// [`StoreError::Refused`] where `agrees` said no; [`StoreError::Unknown`] where a shared store was lost in the
    /// middle. But for that one nothing has changed.
    fn commit_if(
        &mut self,
        changes: &[Change],
        limits: Limits,
        agrees: &mut dyn FnMut(&Stored) -> bool,
    ) -> Result<Stored, StoreError>;

    /// Makes all changes, or none.
    ///
    /// # Errors
    /// As [`Self::commit_if`].
    fn commit(&mut self, changes: &[Change], limits: Limits) -> Result<Stored, StoreError> {
        self.commit_if(changes, limits, &mut |_| true)
    }

    /// Makes steps of handing slices over, each wholly or not at all (CLU-3). To be loaded afterwards.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where a row is not the one that a step was made from; [`StoreError::NotShared`] where
    /// nobody else uses the store, and there is nobody to hand anything to. After any error some steps may have been
    /// made; after [`StoreError::Unavailable`] they may yet be.
    fn hand_over(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        let _ = steps;
        Err(StoreError::NotShared)
    }

    /// What signs of life are written to and read from, where servers share a store.
    fn pulse(&self) -> Option<Arc<dyn Pulse>> {
        None
    }

    /// What tells whether the store can be had now: it can be asked while somebody uses the store.
    fn trouble(&self) -> Trouble {
        Arc::new(|| None)
    }
}

/// Signs of life of the servers that share a store (CLU-3), while somebody else uses it.
pub trait Pulse: Send + Sync {
    /// Says that a server is there.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where it has promised something else, or something else than `mark` is said of it in
    /// [`Ownership::forgotten`]; [`StoreError::Uncopied`] where the copy does not know what it has promised. After any other error it
    /// may yet be said.
    fn beat(&self, server: &str, promise: Promise, mark: Option<i64>) -> Result<(), StoreError>;

    /// What each server has said last.
    ///
    /// # Errors
    /// When the store does not answer.
    fn beats(&self) -> Result<BTreeMap<String, String>, StoreError>;

    /// Makes a step that fences a server.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where it was made from something else; after any other error it may yet be made.
    fn take_over(&self, step: &Step) -> Result<(), StoreError>;
}

/// Why what was read last may be out of date, if it may.
pub type Trouble = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The longest that a commit may take.
#[cfg(feature = "etcd")]
const COMMIT_PATIENCE: Duration = if cfg!(test) {
    // Tests are not about how fast a busy machine's disk is.
    Duration::from_secs(300)
} else {
    Duration::from_secs(30)
};

/// Keeps API tokens (API-2).
pub trait TokenStore {
    /// Makes a token for accounts, given by their ids, and keeps its hash.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn create_token(
        &mut self,
        name: String,
        permissions: Vec<Permission>,
        accounts: Vec<String>,
    ) -> Result<NewToken, StoreError>;

    /// All tokens, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn tokens(&self) -> Result<Vec<Token>, StoreError>;

    /// Forgets a token: from now on nobody may use it. Says whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn revoke_token(&mut self, id: &str) -> Result<bool, StoreError>;
}

/// A store that a daemon has opened.
pub struct Opened {
    /// The store.
    pub store: Box<dyn StateStore>,
    /// Changes when others have committed; none where nobody else can.
    pub changes: Option<watch::Receiver<u64>>,
}

/// Opens the store that the configuration names, for the daemon.
///
/// # Errors
/// When it cannot be used.
pub fn open(config: &Config) -> Result<Opened, StoreError> {
    match &config.store.etcd {
        #[cfg(feature = "etcd")]
        Some(etcd) => {
            let store = EtcdStore::open(etcd, &config.store.sqlite)?;
            let store = store.of_server(&config.server.name)?;
            Ok(Opened {
                changes: Some(store.changes()),
                store: Box::new(store),
            })
        }
        #[cfg(not(feature = "etcd"))]
        Some(etcd) => Err(StoreError::Unavailable {
            store: etcd.source(),
            reason: "this build of egress cannot talk to etcd (feature `etcd`)".to_owned(),
        }),
        None => Ok(Opened {
            store: Box::new(SqliteStore::open(&config.store.sqlite)?),
            changes: None,
        }),
    }
}

/// Says that this host is the server whose name it goes by, and that the one which was is gone: that one, and whether anything was
/// to be done.
///
/// # Errors
/// [`StoreError::NotShared`] where there is nobody else; else when the shared store does not answer.
pub fn claim(config: &Config) -> Result<(Option<Host>, bool), StoreError> {
    match &config.store.etcd {
        #[cfg(feature = "etcd")]
        Some(etcd) => EtcdStore::open(etcd, &config.store.sqlite)?
            .of_server(&config.server.name)?
            .take_name(),
        _ => Err(StoreError::NotShared),
    }
}

/// Why this host is not the server that it goes by, if its last daemon found out that it is not.
pub fn impostor(config: &Config) -> Option<Impostor> {
    #[cfg(feature = "etcd")]
    if config.store.etcd.is_some() {
        let kept = Identity::kept(&identity::beside(&config.store.sqlite)).ok()??;
        return kept.impostor(&config.server.name, &kept.host());
    }
    let _ = config;
    None
}

/// Opens the store beside a daemon, for whoever changes its tokens.
///
/// # Errors
/// When it cannot be used, or is not there.
pub fn open_tokens(config: &config::Store) -> Result<Box<dyn TokenStore>, StoreError> {
    match &config.etcd {
        #[cfg(feature = "etcd")]
        Some(etcd) => Ok(Box::new(EtcdStore::open(etcd, &config.sqlite)?)),
        _ => Ok(Box::new(SqliteStore::open_beside(&config.sqlite)?)),
    }
}

/// Now, µs since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0))
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
    /// Who holds which slices (CLU-3); none in a store that one server has for itself.
    pub ownership: Option<Ownership>,
}

impl Stored {
    /// The model that these objects form.
    pub fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for (_, object) in self.objects.values() {
            resources.push(object.clone());
        }
        resources.ownership.clone_from(&self.ownership);
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
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all changes put something, and none is kept for long"
)]
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
    /// A store that is to be the copy of another one is one of its own.
    #[error("{} is {is}, and would be overwritten with what etcd holds", path.display())]
    NotACopy {
        /// The file.
        path: PathBuf,
        /// What it is.
        is: String,
    },
    /// A shared store does not answer, or not as it should.
    #[error("the store at {store} cannot be reached: {reason}")]
    Unavailable {
        /// Where it is.
        store: String,
        /// What happened.
        reason: String,
    },
    /// A shared store was lost while it was told to commit.
    #[error(
        "the store at {store} was lost while it was told of the change, which may have been made: {reason}"
    )]
    Unknown {
        /// Where it is.
        store: String,
        /// What happened.
        reason: String,
    },
    /// Whoever asked for the commit did not agree with what would have come of it.
    #[error("the change is not to be made")]
    Refused,
    /// It is one server's own.
    #[error("no other server shares this store")]
    NotShared,
    /// Another host is the server that this one goes by.
    #[error("{}", .0.reason())]
    Impostor(Box<Impostor>),
    /// What this host knows itself by is there, and says nothing.
    #[error("the identity of this host, {}, cannot be read: {reason}", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Another server has committed meanwhile.
    #[error("another server has changed the configuration meanwhile")]
    Conflict,
    /// What this server passes on its copy would still say that it has.
    #[error("the copy {} could not be written: {reason}", path.display())]
    Uncopied {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A shared store does not take something of this size.
    #[error("{what} is too large for etcd: {bytes} bytes, and it takes {most} in one piece")]
    TooLarge {
        /// What it is.
        what: String,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        most: usize,
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

/// Whether that is where etcd answers, and no file.
fn is_shared(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains("://"))
}

impl StoreError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Corrupt { path, .. } if is_shared(path) => {
                "what is in force stays in force: mend that key with etcdctl, or restore a snapshot of etcd".into()
            }
            Self::Foreign { path } if is_shared(path) => {
                "choose another [store] prefix: below this one somebody else keeps something".into()
            }
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
            Self::NotACopy { .. } => {
                "name another file as [store] sqlite, for the copy; what is in this one comes into etcd by `egress apply` \
                 and the API"
                    .into()
            }
            Self::Unavailable { .. } => {
                "what is in force stays in force, and connections go on; configuration and ownership are frozen until it \
                 answers"
                    .into()
            }
            Self::Unknown { .. } => {
                "when it answers again all servers do what it holds: look then whether the change is there, before you \
                 make it again"
                    .into()
            }
            Self::Refused => "nothing was changed".into(),
            Self::NotShared => "name the servers' etcd under [store]".into(),
            Self::Impostor(impostor) => impostor.remedy(),
            Self::NoIdentity { .. } => {
                "remove it; then, unless another host is this server by now, `egress server claim NAME` here".into()
            }
            Self::Conflict => "nothing was changed: look at what is there now, and try again".into(),
            Self::Uncopied { .. } => {
                "make room for it: until then nothing is passed on, for this server would take it up again if it started \
                 without etcd"
                    .into()
            }
            Self::TooLarge { .. } => {
                "nothing was changed: make several of it, or write prefixes instead of single addresses".into()
            }
            Self::Exhausted { .. } => {
                "remove some, or reserve more bits under [dataplane] mark_mask".into()
            }
        }
    }
}
