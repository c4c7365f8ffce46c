//! Whether a prefix is announced: by `[announce]`, whose routes a routing daemon exports (ANN-1). Withdrawing it takes the
//! routes to its egress IPs away, on all servers that share the store, and touches no connection.
//!
//! Without `[announce]` the routers in front of this server announce it, or do not; which of it is not known here.

use serde_json::{Value, json};

use super::super::body::{Body, invalid, of_file};
use super::super::envelope::{Answer, ApiError, Code};
use super::super::time::rfc3339;
use super::super::{Api, Call};
use super::{Found, id, put};
use crate::control::Failure;
use crate::resource::{Owner, Registration};
use crate::store::now;

/// How a prefix stands.
pub(super) struct Advertisement {
    /// Whether it is announced wherever it has an egress IP; `None` if that is not known here.
    pub(super) advertised: Option<bool>,
    /// When that was changed last.
    pub(super) modified_at: Option<String>,
    /// Whether it can be changed here.
    pub(super) on_demand: bool,
}

impl Advertisement {
    pub(super) fn of(api: &Api, found: &Found) -> Self {
        let announces = announces(api);
        let prefix = &found.prefix;
        let registration = prefix.registration.as_ref();
        Self {
            advertised: (announces || prefix.withdrawn).then_some(!prefix.withdrawn),
            modified_at: registration
                .and_then(|one| one.advertised_modified)
                .map(rfc3339),
            on_demand: announces && found.owner == Owner::Api,
        }
    }

    fn json(&self) -> Value {
        json!({ "advertised": self.advertised, "advertised_modified_at": self.modified_at })
    }
}

/// Whether this server announces anything.
fn announces(api: &Api) -> bool {
    api.service.controller().config().announce.is_some()
}

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/status`
pub(in crate::api) fn status(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let found = Found::of(&api.service.stored(), call)?;
    let mut answer = Advertisement::of(api, &found).json();
    let status = api.service.controller().dataplane().status();
    let mut routes = status.map_err(Failure::from)?.announced;
    routes.retain(|route| found.prefix.cidr.contains(route));
    // Besides what the original has: what this very server announces of it at this moment.
    answer["announced_here"] = json!(routes);
    Ok(Answer::One(answer))
}

/// `PATCH /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/status`
pub(in crate::api) fn edit(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = Body::of(call, &["advertised"])?;
    let advertised = body
        .get("advertised")
        .and_then(Value::as_bool)
        .ok_or_else(|| invalid("`advertised` is true or false"))?;
    let mut writer = api.service.writer()?;
    let found = Found::of(writer.stored(), call)?;
    let cidr = found.prefix.cidr;
    if !announces(api) {
        return Err(ApiError::new(
            Code::NotModifiable,
            format!(
                "this server has no section [announce]: {cidr} is announced, or withdrawn, by the routers in front of it, \
                 and that cannot be changed here"
            ),
        ));
    }
    let same = found.prefix.withdrawn != advertised;
    if found.owner != Owner::Api {
        return Err(of_file(&format!("prefix {cidr}")));
    }
    if !same {
        let (mut prefix, registration) = found.changeable()?;
        prefix.withdrawn = !advertised;
        let registration = Registration {
            advertised_modified: Some(now()),
            ..registration
        };
        put(&mut writer, prefix, registration)?;
    }
    let found = Found::of(writer.stored(), call)?;
    Ok(Answer::One(Advertisement::of(api, &found).json()))
}

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/prefixes`
pub(in crate::api) fn prefixes(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let found = Found::of(&api.service.stored(), call)?;
    let advertisement = Advertisement::of(api, &found);
    let cidr = found.prefix.cidr;
    let registration = found.prefix.registration.as_ref();
    Ok(Answer::One(json!([{
        "id": id(&["bgp", &cidr.to_string()]),
        "cidr": cidr,
        "asn": registration.map(|one| one.asn),
        "on_demand": {
            "advertised": advertisement.advertised,
            "advertised_modified_at": advertisement.modified_at,
            "on_demand_enabled": advertisement.on_demand,
            "on_demand_locked": !advertisement.on_demand,
        },
    }])))
}
