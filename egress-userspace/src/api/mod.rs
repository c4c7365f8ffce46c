//! The HTTP API (API-1 to API-4): compatible with the original where that has a public interface.
//!
//! A request's way: [`listen`] accepts it (with [`tls`] beyond loopback; [`linger`] ends connections so that answers arrive), [`routes`] finds what it asks for,
//! [`authority`] says whether its token may, [`limit`] whether it may yet; then one of the answering files
//! ([`settings`], [`egress`], [`pools`], [`leases`], [`placements`], [`addressing`], [`gateway`], [`graphql`], [`metrics`], [`page`]) does the work with the controller that the command line also uses, and
//! [`envelope`] wraps the answer. What there is stands in one table, `routes::ROUTES`; [`openapi`] describes it.

mod addressing;
mod authority;
mod body;
mod egress;
mod envelope;
mod gateway;
mod graphql;
mod leases;
mod limit;
mod linger;
mod listen;
mod metrics;
mod openapi;
mod page;
mod placements;
mod pools;
mod routes;
mod settings;
pub(crate) mod time;
mod tls;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;

pub use listen::{Listener, Serving};

use crate::carried::{Carried, Sums};
use crate::cluster::Trust;
use crate::controller::Service;
use crate::dataplane::api::{DataPlaneError, DataPlaneView};
use crate::resource::{Resources, Zone};
use crate::store::{Permission, SqliteStore, Token};
use envelope::{ApiError, Code};
use graphql::Analytics;
use limit::Limiter;

/// What all requests share.
pub(crate) struct Api {
    service: Arc<Service>,
    tokens: Mutex<SqliteStore>,
    limiter: Limiter,
    analytics: Analytics,
    /// What was carried by pool, for [`metrics`].
    carried: Mutex<Sums>,
    /// How the other servers are asked.
    trust: Option<Arc<Trust>>,
}

impl Api {
    fn new(
        service: Arc<Service>,
        tokens: SqliteStore,
        history: &Path,
        trust: Option<Arc<Trust>>,
        requests: u32,
    ) -> Self {
        Self {
            service,
            tokens: Mutex::new(tokens),
            limiter: Limiter::new(requests),
            analytics: Analytics::new(history),
            carried: Mutex::new(Sums::default()),
            trust,
        }
    }

    /// What was carried by pool since the first look.
    fn carried(&self, view: &dyn DataPlaneView) -> Result<BTreeMap<u16, Carried>, DataPlaneError> {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.look(view).cloned()
    }

    /// Looks, so that no flow comes and goes between two scrapes unseen. Where it cannot, it will be able to, or nothing is
    /// carried.
    fn look(&self) {
        if let Ok(view) = self.service.view() {
            drop(self.carried(view.as_ref()));
        }
    }

    fn token_of(&self, secret: &str) -> Result<Option<Token>, ApiError> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .token_of(secret)
            .map_err(|error| ApiError::internal(&error))
    }
}

/// One request, once it is known who asks.
#[derive(Debug)]
pub(crate) struct Call {
    /// Whose it is; nobody's where none is needed.
    token: Option<Token>,
    /// The parts of the path that vary, by name.
    parameters: Vec<(String, String)>,
    /// What stands behind the question mark.
    query: String,
    /// The body.
    body: Bytes,
}

impl Call {
    /// A part of the path.
    fn parameter(&self, name: &str) -> &str {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// The body as JSON.
    fn json(&self) -> Result<serde_json::Value, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            ApiError::new(
                Code::MalformedJson,
                format!("the body is not JSON: {error}"),
            )
        })
    }

    /// Whether the token is for the account that `reference` (id or name) means.
    fn is_for(&self, resources: &Resources, reference: &str) -> bool {
        let account = resources.account(reference);
        account
            .zip(self.token.as_ref())
            .is_some_and(|(account, token)| token.is_for(&account.id))
    }

    /// Whether the token allows this, too.
    fn allows(&self, wanted: Permission) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| token.allows(wanted))
    }

    /// The zone of the path. One of another account is treated as one that does not exist: nobody learns which ids
    /// there are.
    fn zone<'r>(&self, resources: &'r Resources) -> Result<&'r Zone, ApiError> {
        let id = self.parameter("zone_id");
        let zone = resources.zones.iter().find(|zone| zone.id == id);
        zone.filter(|zone| self.is_for(resources, &zone.account))
            .ok_or_else(|| ApiError::forbidden(format!("this token has no access to a zone {id}")))
    }

    /// The id of the account of the path.
    fn account(&self) -> Result<&str, ApiError> {
        let id = self.parameter("account_id");
        match &self.token {
            Some(token) if token.is_for(id) => Ok(id),
            _ => Err(ApiError::forbidden(format!(
                "this token has no access to an account {id}"
            ))),
        }
    }
}

/// What a route asks of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Anybody,
    /// Any token.
    AnyToken,
    /// A token with this permission.
    Token(Permission),
    /// To come from this host, or a token with this permission.
    Local(Permission),
}
