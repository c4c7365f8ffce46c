//! What is announced of a prefix: nothing that could be switched here. Routers in front of the gateway announce it, and
//! whether they do is not known.

use serde_json::json;

use super::super::body::{Body, invalid};
use super::super::envelope::{Answer, ApiError, Code};
use super::super::{Api, Call};
use super::{Found, id};

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/status`
pub(in crate::api) fn status(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    Found::of(&api.service.stored(), call)?;
    Ok(Answer::One(
        json!({ "advertised": null, "advertised_modified_at": null }),
    ))
}

/// `PATCH /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/status`
pub(in crate::api) fn edit(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = Body::of(call, &["advertised"])?;
    if !body
        .get("advertised")
        .is_some_and(serde_json::Value::is_boolean)
    {
        return Err(invalid("`advertised` is true or false"));
    }
    let found = Found::of(&api.service.stored(), call)?;
    Err(ApiError::new(
        Code::NotModifiable,
        format!(
            "{} is announced, or withdrawn, by the routers in front of this gateway: that cannot be changed here",
            found.prefix.cidr
        ),
    ))
}

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bgp/prefixes`
pub(in crate::api) fn prefixes(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let found = Found::of(&api.service.stored(), call)?;
    let cidr = found.prefix.cidr;
    let registration = found.prefix.registration.as_ref();
    Ok(Answer::One(json!([{
        "id": id(&["bgp", &cidr.to_string()]),
        "cidr": cidr,
        "asn": registration.map(|one| one.asn),
        "on_demand": {
            "advertised": null,
            "advertised_modified_at": null,
            "on_demand_enabled": false,
            "on_demand_locked": true,
        },
    }])))
}
