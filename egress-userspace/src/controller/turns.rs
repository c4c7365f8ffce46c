//! Whose turn it is to use the store: one change is made after the other, however long a shared store takes.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::StateStore;

/// The store, for one at a time.
pub(super) struct Turns {
    is_taken: Mutex<bool>,
    free: Condvar,
    store: Mutex<Box<dyn StateStore>>,
}

/// The store, until this is dropped.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    store: MutexGuard<'t, Box<dyn StateStore>>,
}

impl Turns {
    pub(super) fn new(store: Box<dyn StateStore>) -> Self {
        Self {
            is_taken: Mutex::new(false),
            free: Condvar::new(),
            store: Mutex::new(store),
        }
    }

    /// The store, once nobody else has it; none where that takes longer than `patience`.
    pub(super) fn take(&self, patience: Duration) -> Option<Turn<'_>> {
        let (mut is_taken, _) = self
            .free
            .wait_timeout_while(self.is_taken(), patience, |is_taken| *is_taken)
            .unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *is_taken, true) {
            return None;
        }
        drop(is_taken);
        // Nobody has it, or is about to be without it.
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Turn { turns: self, store })
    }

    fn is_taken(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.turns.is_taken() = false;
        self.turns.free.notify_one();
    }
}

impl Deref for Turn<'_> {
    type Target = dyn StateStore;

    fn deref(&self) -> &Self::Target {
        self.store.as_ref()
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.store.as_mut()
    }
}
