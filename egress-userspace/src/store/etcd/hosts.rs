//! Which host has which server's name, as etcd has it (CLU-3).
//!
//! A daemon takes its server's name before it uses anything of that server's, by a transaction that holds only while nobody
//! else has it; and whatever it changes of who owns what holds only while the name is its own.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::content::{Content, Op, SCHEMA_KEY};
use super::journal::{Condition, Transaction, mark};
use crate::ownership::{Host, Impostor, Question, Step, Verdict};
use crate::store::identity::{Identity, beside};
use crate::store::{StoreError, Stored};

/// Below what is watched already.
const HOSTS: &str = "ownership/hosts/";

/// A server's name, and this host that goes by it.
pub(super) struct Claim {
    server: String,
    file: PathBuf,
    state: Mutex<State>,
}

struct State {
    identity: Identity,
    /// This daemon, as its row is to be.
    own: Host,
    /// Why this host is not that server, if it is known not to be.
    impostor: Option<Impostor>,
    /// Whom it has asked, or seen to be asked, whether he is at work.
    asked: Option<Question>,
}

/// What becomes of a row.
pub(super) enum Judged {
    /// Nothing: what is known of it is right now.
    Done,
    /// It is to be looked at again soon.
    Wait,
    /// It is to be made this, by this transaction.
    Make(Box<Transaction>, Made),
}

/// What becomes of a row by a transaction.
pub(super) enum Made {
    /// This daemon's; and whether an earlier one under the same kernel has it.
    Taken(Host, bool),
    /// A question to the daemon of this mark.
    Asked(String),
}

impl State {
    fn ask(&mut self, whom: String) {
        let since = Instant::now();
        self.asked = Some(Question { whom, since });
    }
}

impl Claim {
    /// What is known before etcd was asked.
    pub(super) fn begin(server: &str, copy: &Path) -> Result<Self, StoreError> {
        let file = beside(copy);
        let identity = Identity::at(&file)?;
        let failed = |error: std::io::Error| StoreError::Inaccessible {
            path: file.clone(),
            reason: error.to_string(),
        };
        let own = Host {
            mark: mark().map_err(failed)?,
            ..identity.host()
        };
        let impostor = identity.impostor(server, &own);
        Ok(Self {
            server: server.to_owned(),
            file,
            state: Mutex::new(State {
                identity,
                own,
                impostor,
                asked: None,
            }),
        })
    }

    /// As after another boot of this machine, for tests.
    #[cfg(test)]
    pub(super) fn of_boot(&self, boot: &str) {
        self.state().own.boot = boot.to_owned();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> String {
        format!("{HOSTS}{}", self.server)
    }

    fn row(&self, content: &Content, path: &Path) -> Result<Option<Host>, StoreError> {
        let key = self.key();
        let text = content.keys.get(&key);
        text.map(|text| super::content::read(path, &key, text))
            .transpose()
    }

    /// Looks at the row. In an etcd that nobody has committed anything to there is nothing to be used, either.
    pub(super) fn judge(&self, content: &Content, path: &Path) -> Result<Judged, StoreError> {
        if content.is_new() {
            return Ok(Judged::Done);
        }
        let row = self.row(content, path)?;
        let mut state = self.state();
        let verdict = state
            .own
            .judge(row.as_ref(), state.asked.as_ref(), Instant::now());
        match verdict {
            Verdict::Ours => self.is_ours(&mut state),
            Verdict::Theirs => self.is_theirs(&mut state, row),
            Verdict::Take { since, start } => {
                let wanted = Host {
                    since,
                    start,
                    ..state.own.clone()
                };
                let was_here = row.is_some_and(|row| wanted.is_of_boot(&row.boot));
                let transaction = Box::new(self.put(content, &wanted));
                return Ok(Judged::Make(transaction, Made::Taken(wanted, was_here)));
            }
            Verdict::Ask | Verdict::Wait => {
                let Some(row) = row else {
                    return Ok(Judged::Done);
                };
                let whom = row.mark.clone();
                if verdict == Verdict::Ask {
                    let asked = Some(state.own.mark.clone());
                    let transaction = Box::new(self.put(content, &Host { asked, ..row }));
                    return Ok(Judged::Make(transaction, Made::Asked(whom)));
                }
                if state.asked.as_ref().is_none_or(|asked| asked.whom != whom) {
                    state.ask(whom);
                }
                return Ok(Judged::Wait);
            }
        }
        Ok(Judged::Done)
    }

    /// Puts a row in the place of the one that was read, into a store that others have not left, or raised, meanwhile.
    fn put(&self, content: &Content, host: &Host) -> Transaction {
        let key = self.key();
        let before = content.keys.get(&key).cloned();
        Transaction {
            conditions: vec![
                Condition::Value(key.clone(), before),
                Condition::Value(SCHEMA_KEY.to_owned(), content.schema()),
            ],
            ops: vec![(key, Some(super::content::json(host)))],
            prune: None,
        }
    }

    /// The transaction of [`Self::judge`] was made; whether that was all.
    pub(super) fn has_made(&self, made: Made, content: &mut Content) -> bool {
        let host = match made {
            Made::Taken(host, _) => host,
            Made::Asked(whom) => {
                tracing::info!(
                    server = self.server,
                    "asking whether this server is at work on another host with the same identity"
                );
                self.state().ask(whom);
                return false;
            }
        };
        let text = super::content::json(&host);
        content.keys.insert(self.key(), text);
        let mut state = self.state();
        if host.start == 1 {
            tracing::info!(
                server = self.server,
                identity = host.id,
                "this host has taken the server's name"
            );
        }
        state.own = host;
        self.is_ours(&mut state);
        true
    }

    fn is_ours(&self, state: &mut State) {
        if state.impostor.take().is_some() {
            tracing::warn!(
                server = self.server,
                "the server's name is this host's again"
            );
        }
        let right = Identity {
            machine: state.own.machine.clone(),
            boot: state.own.boot.clone(),
            server: Some(self.server.clone()),
            lost_to: None,
            ..state.identity.clone()
        };
        self.keep(state, right);
    }

    fn is_theirs(&self, state: &mut State, row: Option<Host>) {
        let found = Impostor {
            server: self.server.clone(),
            own: state.own.clone(),
            other: row.clone(),
        };
        if state.impostor.as_ref() != Some(&found) {
            tracing::error!("{}", found.reason());
            state.impostor = Some(found);
        }
        let wrong = Identity {
            server: Some(self.server.clone()),
            lost_to: row,
            ..state.identity.clone()
        };
        self.keep(state, wrong);
    }

    fn keep(&self, state: &mut State, identity: Identity) {
        if identity == state.identity {
            return;
        }
        if let Err(error) = identity.keep(&self.file) {
            // Tried again with the next look.
            tracing::warn!(%error, "whether this host has its server's name could not be kept");
            return;
        }
        state.identity = identity;
    }

    /// What each change of who owns what depends on.
    ///
    /// # Errors
    /// [`StoreError::Impostor`] where this host is not that server.
    pub(super) fn condition(&self) -> Result<Condition, StoreError> {
        let state = self.state();
        match &state.impostor {
            Some(impostor) => Err(StoreError::Impostor(Box::new(impostor.clone()))),
            None => {
                let text = super::content::json(&state.own);
                Ok(Condition::Value(self.key(), Some(text)))
            }
        }
    }

    /// Says so in what is stored, where this host is not that server.
    pub(super) fn mark(&self, stored: &mut Stored) {
        if let Some(ownership) = &mut stored.ownership {
            ownership.impostor = self.state().impostor.clone();
        }
    }

    /// The transaction by which the operator says that this host is that server, with the one that was; none where it is
    /// already.
    pub(super) fn by_word(
        &self,
        content: &Content,
        path: &Path,
    ) -> Result<Option<(Transaction, Option<Host>)>, StoreError> {
        let row = self.row(content, path)?;
        let own = self.state().own.clone();
        // The daemon, which starts or looks next, goes on from there.
        Ok(match row {
            Some(row) if row.is(&own) => None,
            row => Some((self.put(content, &own), row)),
        })
    }

    /// Why this host is not that server, where another one with its identity was found at work.
    pub(super) fn copied(&self) -> Option<Impostor> {
        let state = self.state();
        let found = state.impostor.as_ref()?;
        let other = found.other.as_ref()?;
        other.is(&state.own).then(|| found.clone())
    }

    /// The operator's word is in etcd: without etcd it holds from now on, too.
    pub(super) fn was_given(&self) {
        self.is_ours(&mut self.state());
    }
}

/// What a server is forgotten with: its name is free for another host.
pub(super) fn freed(step: &Step) -> Option<Op> {
    match step {
        Step::Forgotten { server, after, .. } if *after > 0 => {
            Some((format!("{HOSTS}{server}"), None))
        }
        _ => None,
    }
}
