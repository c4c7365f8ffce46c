//! Egress policies made through the API: judged as those of a file are, but against nothing that is another account's
//! (ZONE-5).

use super::Writer;
use crate::control::protocol::Failure;
use crate::diagnostic::{Report, Severity, Source};
use crate::policy::budget::Taken;
use crate::policy::compile;
use crate::resolve;
use crate::resource::check::check_policies;
use crate::resource::{Kind, Object, Owner, POLICY_PERCENT, Policy, Resources};
use crate::store::Change;

/// Why a policy was not put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be.
    #[error("{0}")]
    Invalid(String),
    /// It can, but the change did not work, and was undone.
    #[error("{0}")]
    Failed(Failure),
}

impl Writer<'_> {
    /// Adds a policy, or puts it in the place of the one with its id. Returns what deserves a warning.
    ///
    /// # Errors
    /// Which kind of mistake it was; everything is then as before.
    pub fn put_policy(&mut self, policy: &Policy) -> Result<Vec<String>, PolicyError> {
        let put = Object::Policy(policy.clone());
        let mut after = self.stored.resources();
        after
            .policies
            .retain(|one| Object::Policy(one.clone()).id() != put.id());
        if let Some(why) = taken(&after, policy) {
            return Err(PolicyError::Invalid(why));
        }
        after.policies.push(policy.clone());
        let own = of_account(&after, &policy.account);
        let warnings = judge(&own)?;
        let before = of_account(&self.stored.resources(), &policy.account);
        within_budget(&before, &own)?;
        self.fits(after)?;
        self.commit(&[Change::Put {
            owner: Owner::Api,
            object: put,
        }])
        .map_err(PolicyError::Failed)?;
        Ok(warnings)
    }

    /// Removes the policy with this id.
    ///
    /// # Errors
    /// It did not work, and was undone.
    pub fn remove_policy(&mut self, id: &str) -> Result<(), Failure> {
        self.commit(&[Change::Remove {
            kind: Kind::Policy,
            id: id.to_owned(),
        }])
    }

    /// Whether all policies fit into the data plane's tables, those that are off as well. How full they are is nobody's
    /// business but the operator's.
    fn fits(&self, mut after: Resources) -> Result<(), PolicyError> {
        for policy in &mut after.policies {
            policy.enabled = true;
        }
        let desired = resolve::resolve(&after, &self.config, &self.stored.numbers)
            .map_err(|error| PolicyError::Failed(error.into()))?;
        if let Err(error) = compile::compile(&desired, |_| Default::default()) {
            tracing::warn!(%error, "a policy made through the API does not fit beside the others");
            return Err(PolicyError::Invalid(
                "this gateway's tables have no room for these alternatives and values: ask the operator".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether an account's policies stay within its part of the tables.
fn within_budget(before: &Resources, own: &Resources) -> Result<(), PolicyError> {
    let percent = own.accounts.first().and_then(|one| one.policy_percent);
    let invalid = |error: &dyn std::fmt::Display| PolicyError::Invalid(error.to_string());
    let now = Taken::by(&own.policies).map_err(|error| invalid(&error))?;
    let before = Taken::by(&before.policies).unwrap_or(now);
    now.within(percent.unwrap_or(POLICY_PERCENT), &before)
        .map_err(|error| invalid(&error))
}

/// What of a policy another one of its account has already.
fn taken(resources: &Resources, policy: &Policy) -> Option<String> {
    let mut others = resources
        .policies
        .iter()
        .filter(|one| resources.same_account(&one.account, &policy.account));
    others.find_map(|other| {
        if other.name == policy.name {
            Some(format!("there is a policy {} already", other.name))
        } else if other.precedence == policy.precedence {
            Some(format!(
                "precedence {} is that of policy {}: the lowest is asked first, so each has its own (POLICY-1)",
                other.precedence, other.name
            ))
        } else {
            None
        }
    })
}

/// What of the resources an account may know about.
fn of_account(resources: &Resources, account: &str) -> Resources {
    let is_its = |owner: &str| resources.same_account(owner, account);
    let mut own = resources.clone();
    own.accounts.retain(|one| is_its(&one.id));
    own.prefixes.clear();
    own.pools.retain(|one| is_its(&one.account));
    own.zones.retain(|one| is_its(&one.account));
    own.policies.retain(|one| is_its(&one.account));
    own
}

/// The first mistake, or all warnings.
fn judge(own: &Resources) -> Result<Vec<String>, PolicyError> {
    let source = Source::new("", "");
    let report = Report::new(&source);
    check_policies(own, &report);
    let found = report.finish().0;
    let error = found
        .iter()
        .find(|one| one.severity == Severity::Error)
        .map(|one| one.reason.clone());
    error.map_or_else(
        || Ok(found.into_iter().map(|one| one.reason).collect()),
        |error| Err(PolicyError::Invalid(error)),
    )
}
