//! Changes of pools, leases, placements and prefixes through the API: judged with all there is, then made, or nothing is.

use std::collections::HashSet;

use super::{Writer, budget};
use crate::control::protocol::Failure;
use crate::diagnostic::{Report, Severity, Source};
use crate::resolve;
use crate::resource::Resources;
use crate::resource::check::check;
use crate::store::{Change, Stored};

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be: what is wrong, and what to do about it.
    #[error("{0}")]
    Invalid(Failure),
    /// It can, but it did not work, and was undone.
    #[error("{0}")]
    Failed(Failure),
}

/// What other accounts' objects are left out of. Prefixes stay: an account knows those that it was delegated.
fn without_others(mut all: Resources, account: &str) -> Resources {
    let accounts = all.clone();
    let is_its = |owner: &str| accounts.same_account(owner, account);
    all.pools.retain(|one| is_its(&one.account));
    all.zones.retain(|one| is_its(&one.account));
    all.policies.retain(|one| is_its(&one.account));
    all.leases.retain(|one| is_its(&one.account));
    all
}

impl Writer<'_> {
    /// Makes changes of objects that the API owns, for an account: all, or none. What was wrong before is not held against
    /// them.
    ///
    /// # Errors
    /// Which kind of mistake it was, in words that tell nothing of other accounts' objects; everything is then as before.
    pub fn change(&mut self, account: &str, changes: &[Change]) -> Result<(), ChangeError> {
        let mut after = Stored::clone(&self.stored);
        for change in changes {
            match change {
                Change::Put { owner, object } => {
                    let key = (object.kind(), object.id());
                    after.objects.insert(key, (*owner, object.clone()));
                }
                Change::Remove { kind, id } => drop(after.objects.remove(&(*kind, id.clone()))),
            }
        }
        let after = after.resources();
        let before = self.stored.resources();
        budget::within(&before, &after, account).map_err(ChangeError::Invalid)?;
        let known: HashSet<String> = self.mistakes(&before).map(|found| found.reason).collect();
        let mut new: Vec<Failure> = self.mistakes(&after).collect();
        new.retain(|found| !known.contains(&found.reason));
        if !new.is_empty() {
            // What is wrong without what others have, too, may be told.
            let own: HashSet<String> = self
                .mistakes(&without_others(after, account))
                .map(|found| found.reason)
                .collect();
            let mistake = new.into_iter().find(|found| own.contains(&found.reason));
            return Err(ChangeError::Invalid(mistake.unwrap_or_else(|| {
                Failure::usage(
                    "what another account has is in the way of this, or needs what it takes away",
                    "the operator knows",
                )
            })));
        }
        let addresses = resolve::addresses(&after, &self.config);
        self.controller()
            .dataplane()
            .check(&addresses)
            .map_err(|error| ChangeError::Invalid(error.into()))?;
        self.commit(changes).map_err(ChangeError::Failed)
    }

    /// What is wrong with a whole set.
    fn mistakes(&self, resources: &Resources) -> impl Iterator<Item = Failure> + use<> {
        let source = Source::new("", "");
        let report = Report::new(&source);
        check(resources, &Default::default(), Some(&self.config), &report);
        let found = report.finish().0.into_iter();
        found
            .filter(|one| one.severity == Severity::Error)
            .map(|one| Failure::usage(one.reason, one.remedy))
    }
}
