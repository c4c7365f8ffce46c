//! Signs of life (CLU-3). They touch neither what is stored nor whose turn it is to change that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::content::{self, BEATS, Op};
use super::hosts::Claim;
use super::journal::{Condition, Transaction};
use super::remote::Remote;
use super::{EtcdStore, unavailable};
use crate::ownership::{Promise, Step};
use crate::store::{Pulse, SqliteStore, StoreError};

pub(super) struct EtcdPulse {
    remote: Arc<Remote>,
    copy: Arc<Mutex<SqliteStore>>,
    /// The promise that the copy is known to have.
    copied: Mutex<Option<Promise>>,
    source: String,
    file: PathBuf,
    claim: Option<Arc<Claim>>,
}

impl EtcdPulse {
    pub(super) fn of(store: &EtcdStore) -> Self {
        Self {
            remote: Arc::clone(&store.remote),
            copy: Arc::clone(&store.copy),
            copied: Mutex::default(),
            source: store.source.clone(),
            file: store.file.clone(),
            claim: store.claim.clone(),
        }
    }

    /// Whether a daemon that starts without etcd learns of the promise, and so uses nothing.
    fn is_copied(&self, server: &str, promise: Promise) -> Result<bool, StoreError> {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        if *copied != Some(promise) {
            let copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = copy.ownership()?;
            *copied = kept.and_then(|all| all.promises.get(server).copied());
        }
        Ok(*copied == Some(promise))
    }

    fn transact(&self, mut conditions: Vec<Condition>, ops: Vec<Op>) -> Result<(), StoreError> {
        // Another host of the same name is not heard of in this one's stead.
        if let Some(claim) = &self.claim {
            conditions.push(claim.condition()?);
        }
        let transaction = Transaction {
            conditions,
            ops,
            prune: None,
        };
        let made = self.remote.transact(&transaction);
        let made = made.map_err(|reason| unavailable(&self.source, reason))?;
        made.map(drop).ok_or(StoreError::Conflict)
    }
}

impl Pulse for EtcdPulse {
    fn beat(&self, server: &str, promise: Promise, mark: Option<i64>) -> Result<(), StoreError> {
        if !self.is_copied(server, promise)? {
            return Err(StoreError::Uncopied {
                path: self.file.clone(),
                reason: "what this server has promised is not in it".to_owned(),
            });
        }
        let random =
            crate::store::random().map_err(|error| unavailable(&self.source, error.to_string()))?;
        let beat = promise.beat(u64::from_ne_bytes(random));
        let (conditions, op) = content::beat(server, promise, mark, beat);
        self.transact(conditions, vec![op])
    }

    fn beats(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let beats = self.remote.under(BEATS);
        beats.map_err(|reason| unavailable(&self.source, reason))
    }

    fn take_over(&self, step: &Step) -> Result<(), StoreError> {
        let (conditions, op) = content::hand_over(step);
        self.transact(conditions, vec![op])
    }
}
