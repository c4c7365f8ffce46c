//! The store that servers share: etcd (CLU-1).
//!
//! All of it is read at one revision, and a commit holds only while nobody else has committed since: *generation* is a key
//! that every commit puts, and compares. What etcd says is copied into a local database, so that a server starts, and
//! knows its tokens, without it (CLU-2).

mod content;
mod hosts;
mod journal;
mod pulse;
mod remote;
#[cfg(test)]
mod tests;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use content::Content;
use hosts::{Claim, Judged, Made};
use journal::{Condition, Step, Transaction};
use pulse::EtcdPulse;
use remote::Remote;

use super::sqlite::{Asked, Copy};
use super::{
    COMMIT_PATIENCE, Change, Limits, NewToken, Permission, SqliteStore, StateStore, StoreError,
    Stored, Token, TokenStore, Trouble,
};
use crate::config::Etcd;
use crate::ownership::{self, Host};

/// The shared store of a cluster, with its copy on this server.
pub struct EtcdStore {
    remote: Arc<Remote>,
    copy: Arc<Mutex<SqliteStore>>,
    /// The commit that was read last; another one holds on top of that only.
    known: Mutex<Known>,
    /// Why the copy is not what was read last, if it is not.
    uncopied: Mutex<Option<String>>,
    /// The server that this host goes by; none for whoever only looks, or changes tokens.
    claim: Option<Arc<Claim>>,
    /// The copy's file.
    file: PathBuf,
    source: String,
}

#[derive(Clone, Debug, Default)]
struct Known {
    generation: i64,
    /// Which version of what is stored was read: a later one must not be lowered.
    schema: Option<String>,
    /// Whether that came from etcd, or from the copy.
    current: bool,
}

impl EtcdStore {
    /// The store under the configuration's endpoints and prefix; `copy` is the local database. Nothing is asked of etcd
    /// yet.
    ///
    /// # Errors
    /// When the copy cannot be used: above all where it is a store of its own.
    pub fn open(config: &Etcd, copy: &Path) -> Result<Self, StoreError> {
        let mut local = SqliteStore::open(copy)?;
        let source = config.source();
        // Members come and go.
        local.become_copy_of(&config.prefix)?;
        Ok(Self {
            remote: Arc::new(Remote::new(config).map_err(|reason| unavailable(&source, reason))?),
            copy: Arc::new(Mutex::new(local)),
            known: Mutex::new(Known::default()),
            uncopied: Mutex::default(),
            claim: None,
            file: copy.to_owned(),
            source,
        })
    }

    /// The same for the daemon of a server, which takes that name before it uses anything of it (CLU-3).
    ///
    /// # Errors
    /// When this host's identity cannot be read, or made.
    pub fn of_server(mut self, name: &str) -> Result<Self, StoreError> {
        self.claim = Some(Arc::new(Claim::begin(name, &self.file)?));
        Ok(self)
    }

    /// Takes the name of the server, since the operator says that the host that has it is gone: that host, if there was
    /// one, and whether anything was to be done.
    ///
    /// # Errors
    /// When etcd does not answer, or somebody else was faster; [`StoreError::Impostor`] where a host with this one's identity is at
    /// work under the name.
    pub fn take_name(&self) -> Result<(Option<Host>, bool), StoreError> {
        let content = self.read_content()?;
        let Some(claim) = self.claim.as_ref().filter(|_| !content.is_new()) else {
            return Ok((None, false));
        };
        let Some((transaction, before)) = claim.by_word(&content, &self.path())? else {
            // A copy of the host that has it cannot be told from it by a word.
            if let Some(found) = claim.copied() {
                return Err(StoreError::Impostor(Box::new(found)));
            }
            claim.was_given();
            return Ok((None, false));
        };
        let made = self.remote.transact(&transaction);
        let made = made.map_err(|reason| unavailable(&self.source, reason))?;
        made.ok_or(StoreError::Conflict)?;
        claim.was_given();
        Ok((before, true))
    }

    /// Tells whenever somebody has committed, or etcd answers again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.remote.changes()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uncopied(&self) -> MutexGuard<'_, Option<String>> {
        self.uncopied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, SqliteStore> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What etcd holds now, once this server has its name there, or it is known that another host has.
    fn fetch(&self) -> Result<Content, StoreError> {
        let mut content = self.read_content()?;
        let Some(claim) = &self.claim else {
            return Ok(content);
        };
        let end = Instant::now() + ownership::ANSWER * 2;
        while Instant::now() < end {
            match claim.judge(&content, &self.path())? {
                Judged::Done => return Ok(content),
                Judged::Wait => thread::sleep(AGAIN),
                Judged::Make(transaction, made) => match (self.remote.transact(&transaction), made)
                {
                    (Ok(Some(_)), made) => {
                        if claim.has_made(made, &mut content) {
                            return Ok(content);
                        }
                    }
                    // Somebody was faster.
                    (Ok(None), _) => {}
                    // It was this host's before. Who can read and not write can follow the others, and hands nothing over.
                    (Err(_), Made::Taken(_, true)) => return Ok(content),
                    (Err(reason), _) => return Err(unavailable(&self.source, reason)),
                },
            }
            content = self.read_content()?;
        }
        Err(StoreError::Conflict)
    }

    fn read_content(&self) -> Result<Content, StoreError> {
        let mut content = self
            .remote
            .read()
            .map_err(|reason| unavailable(&self.source, reason))?;
        content.check(&self.path())?;
        // The copy of one that nobody has committed to yet is of generation 0.
        if content.is_new()
            && let Some(before) = self.copy().generation()?.filter(|before| *before > 0)
        {
            return Err(unavailable(
                &self.source,
                format!(
                    "it holds nothing at all, and held generation {before}: restore etcd from a backup; to begin anew, \
                     stop egress and move its copy (`[store] sqlite`) away"
                ),
            ));
        }
        content.keys = journal::settled(&content).map_err(|reason| self.corrupt(reason))?;
        Ok(content)
    }

    /// What is stored, and whether this host is the server that it goes by.
    fn stored(&self, content: &Content) -> Result<Stored, StoreError> {
        let mut stored = content.stored(&self.path())?;
        self.marked(&mut stored);
        Ok(stored)
    }

    fn marked(&self, stored: &mut Stored) {
        if let Some(claim) = &self.claim {
            claim.mark(stored);
        }
    }

    fn corrupt(&self, reason: String) -> StoreError {
        StoreError::Corrupt {
            path: self.path(),
            reason,
        }
    }

    fn path(&self) -> PathBuf {
        self.source.clone().into()
    }

    /// Commits on top of `before`: the new generation, or none where somebody else has committed since.
    fn put(&self, before: &Content, changes: Vec<content::Op>) -> Result<Option<i64>, StoreError> {
        let failed = |reason| unavailable(&self.source, reason);
        let end = Instant::now() + COMMIT_PATIENCE;
        let mark = journal::mark().map_err(|error| failed(error.to_string()))?;
        let mut generation = before.generation;
        let steps =
            journal::steps(before, changes, &mark).map_err(|reason| self.corrupt(reason))?;
        for step in steps {
            let is_late = Instant::now() >= end;
            match step {
                Step::Must(txn) if txn.commits() => match self.settle(&txn, &mark, end)? {
                    Some(revision) => generation = revision,
                    None => return Ok(None),
                },
                Step::Must(_) if is_late => {
                    let reason = format!("the change was not written within {COMMIT_PATIENCE:?}");
                    return Err(failed(reason));
                }
                Step::Must(txn) => match self.remote.transact(&txn).map_err(failed)? {
                    Some(_) => {}
                    None => return Ok(None),
                },
                // Somebody else has done it already, or will: it is committed.
                Step::Then(_) if is_late && generation != before.generation => break,
                Step::Then(txn) => match self.remote.transact(&txn) {
                    Err(reason) if generation != before.generation => {
                        tracing::warn!(reason, "a commit is left to the next writer to carry out");
                        break;
                    }
                    other => drop(other.map_err(failed)?),
                },
            }
        }
        Ok(Some(generation))
    }

    /// Makes the transaction that commits: its revision, or none where somebody was faster. What becomes of one that is not
    /// answered is found out: made again, it holds only if the first one did not.
    fn settle(
        &self,
        txn: &Transaction,
        mark: &str,
        end: Instant,
    ) -> Result<Option<i64>, StoreError> {
        let mut unanswered = None;
        loop {
            let reason = match self.remote.transact(txn) {
                Ok(Some(revision)) => return Ok(Some(revision)),
                Ok(None) if unanswered.is_none() => return Ok(None),
                // Somebody has committed: perhaps this.
                Ok(None) => match self.remote.read() {
                    Ok(now) if now.mark() == Some(mark) => return Ok(Some(now.generation)),
                    Ok(_) => "another server has committed as well".to_owned(),
                    Err(reason) => reason,
                },
                Err(reason) => reason,
            };
            let first = *unanswered.get_or_insert_with(Instant::now);
            if Instant::now() >= end.min(first + SETTLE) {
                return Err(StoreError::Unknown {
                    store: self.source.clone(),
                    reason,
                });
            }
            thread::sleep(AGAIN);
        }
    }

    /// Keeps a copy of what etcd holds.
    fn keep(&self, content: &Content, stored: &Stored) -> Result<(), StoreError> {
        let tokens = content.tokens(&self.path())?;
        let copied = self.copy().copy(&Copy {
            stored,
            tokens: &tokens,
            generation: content.generation,
            revision: content.revision,
            asked: &content.asked,
            told: &content.told,
        });
        let reason = copied.err().map(|error| match error {
            StoreError::Inaccessible { reason, .. } => reason,
            other => other.to_string(),
        });
        if let Some(reason) = &reason {
            // A full disk: this server goes on, and could not start without etcd.
            tracing::warn!(reason, "etcd's contents could not be copied");
        }
        *self.uncopied() = reason;
        *self.known() = Known {
            generation: content.generation,
            schema: content.schema(),
            current: true,
        };
        Ok(())
    }

    /// Reads, changes and commits, again if somebody was faster.
    fn amend<T>(
        &self,
        mut change: impl FnMut(&Content) -> Result<(Vec<content::Op>, T), StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..ATTEMPTS {
            let before = self.fetch()?;
            let (ops, outcome) = change(&before)?;
            if ops.is_empty() || self.put(&before, ops)?.is_some() {
                // The copy has what the tokens are looked up in.
                self.current()?;
                return Ok(outcome);
            }
        }
        Err(StoreError::Conflict)
    }
}

/// Steps of a hand-over in one transaction.
const STEPS: usize = 50;
/// How often a change that others make void is made anew.
const ATTEMPTS: usize = 8;
/// How long it may take to find out what became of a commit that was not answered.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two attempts to find out.
const AGAIN: Duration = Duration::from_millis(100);

impl StateStore for EtcdStore {
    fn load(&self) -> Result<Stored, StoreError> {
        match self.current() {
            Ok(stored) => Ok(stored),
            Err(error @ StoreError::Unavailable { .. }) => {
                let copy = self.copy();
                let generation = copy.generation()?.ok_or(error)?;
                let mut stored = copy.load()?;
                self.marked(&mut stored);
                let mut known = self.known();
                if !known.current {
                    known.generation = generation;
                }
                Ok(stored)
            }
            Err(error) => Err(error),
        }
    }

    fn current(&self) -> Result<Stored, StoreError> {
        let content = self.fetch()?;
        let stored = self.stored(&content)?;
        self.keep(&content, &stored)?;
        Ok(stored)
    }

    fn commit_if(
        &mut self,
        changes: &[Change],
        limits: Limits,
        agrees: &mut dyn FnMut(&Stored) -> bool,
    ) -> Result<Stored, StoreError> {
        let seen = self.known().generation;
        let before = self.fetch()?;
        if before.generation != seen {
            return Err(StoreError::Conflict);
        }
        let ops = before.ops(changes, limits, &self.path())?;
        if let Some((key, bytes)) = journal::too_large(&ops) {
            let row = key.strip_prefix("object/").unwrap_or(key);
            return Err(StoreError::TooLarge {
                what: row.replacen('/', " ", 1),
                bytes,
                most: journal::LARGEST,
            });
        }
        let mut after = before.with(&ops);
        let stored = self.stored(&after)?;
        if !agrees(&stored) {
            return Err(StoreError::Refused);
        }
        after.told = Asked::now();
        after.keys.extend([content::raised()]);
        after.generation = self.put(&before, ops)?.ok_or(StoreError::Conflict)?;
        self.keep(&after, &stored)?;
        Ok(stored)
    }

    fn hand_over(&mut self, steps: &[ownership::Step]) -> Result<(), StoreError> {
        let name = self.claim.as_deref().map(Claim::condition).transpose()?;
        // What this server passes on it must not hold again when it starts without etcd: so its copy says so before.
        let kept = self.copy().ownership()?;
        let is_copied = self.uncopied().is_none();
        let copied = |step: &ownership::Step| match step {
            // Without etcd it goes by what its copy says that it has promised.
            ownership::Step::Promised { .. } => is_copied,
            ownership::Step::Row {
                address,
                before: Some(before),
                ..
            } => kept.as_ref().and_then(|kept| kept.rows.get(address)) == Some(before),
            _ => true,
        };
        if !steps.iter().all(copied) {
            return Err(match &*self.uncopied() {
                Some(reason) => StoreError::Uncopied {
                    path: self.file.clone(),
                    reason: reason.clone(),
                },
                None => StoreError::Conflict,
            });
        }
        for part in steps.chunks(STEPS) {
            let (conditions, mut ops): (Vec<_>, Vec<_>) =
                part.iter().map(content::hand_over).unzip();
            // An earlier version that looks into rows it does not know would go on by the division.
            ops.push(content::put_schema());
            ops.extend(part.iter().filter_map(hosts::freed));
            // The same servers are fenced for every row, and etcd takes 128 of these.
            let schema = self.known().schema.clone();
            let mut all = vec![Condition::Value(content::SCHEMA_KEY.to_owned(), schema)];
            all.extend(name.clone());
            for condition in conditions.into_iter().flatten() {
                if !all.contains(&condition) {
                    all.push(condition);
                }
            }
            let transaction = Transaction {
                conditions: all,
                ops,
                prune: None,
            };
            let made = self.remote.transact(&transaction);
            let made = made.map_err(|reason| unavailable(&self.source, reason))?;
            made.ok_or(StoreError::Conflict)?;
            self.known().schema = Some(content::raised().1);
        }
        Ok(())
    }

    fn pulse(&self) -> Option<Arc<dyn super::Pulse>> {
        Some(Arc::new(EtcdPulse::of(self)))
    }

    fn trouble(&self) -> Trouble {
        let (deafness, source) = (self.remote.deafness(), self.source.clone());
        Arc::new(move || {
            let reason = deafness()?;
            Some(format!("etcd at {source} does not answer: {reason}"))
        })
    }
}

impl TokenStore for EtcdStore {
    fn create_token(
        &mut self,
        name: String,
        permissions: Vec<Permission>,
        accounts: Vec<String>,
    ) -> Result<NewToken, StoreError> {
        let new = NewToken::make(name, permissions, accounts, super::now())
            .map_err(|error| unavailable(&self.source, error.to_string()))?;
        self.amend(|_| Ok((vec![content::put_token(&new)], ())))?;
        Ok(new)
    }

    fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.load()?;
        self.copy().tokens()
    }

    fn revoke_token(&mut self, id: &str) -> Result<bool, StoreError> {
        self.amend(|content| Ok(content.without_token(id)))
    }
}

fn unavailable(source: &str, reason: String) -> StoreError {
    StoreError::Unavailable {
        store: source.to_owned(),
        reason,
    }
}
