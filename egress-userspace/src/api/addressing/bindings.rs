//! Bindings: what a prefix, or a part of it, is for. The first is of the whole prefix; the most specific one counts.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::body::{Body, invalid, not_found, shown};
use super::super::envelope::{Answer, ApiError};
use super::super::{Api, Call};
use super::{Found, SERVICES, id, name, part, put, service_id};
use crate::resource::{Binding, Prefix};

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bindings`
pub(in crate::api) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let found = Found::of(&api.service.stored(), call)?;
    let all = all(&found.prefix);
    Ok(Answer::One(
        all.iter().map(|one| json(&found.prefix, one)).collect(),
    ))
}

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/bindings/{binding_id}`
pub(in crate::api) fn get(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let found = Found::of(&api.service.stored(), call)?;
    let cidr = wanted(&found.prefix, call)?;
    let mut all = all(&found.prefix).into_iter();
    let binding = all.find(|one| one.cidr == cidr);
    let binding = binding.ok_or_else(|| not_found("there is no such binding"))?;
    Ok(Answer::One(json(&found.prefix, &binding)))
}

/// `POST /accounts/{account_id}/addressing/prefixes/{prefix_id}/bindings`
pub(in crate::api) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = Body::of(call, &["cidr", "service_id"])?;
    let cidr = body.needs("cidr", "\"198.51.100.0/24\"")?;
    let wanted = body.needs("service_id", "one of /addressing/services")?;
    let mut writer = api.service.writer()?;
    let (prefix, mut registration) = Found::of(writer.stored(), call)?.changeable()?;
    let cidr = part(&prefix, cidr)?;
    let mut services = SERVICES.into_iter();
    let service = services.find(|service| service_id(*service) == wanted);
    let service = service.ok_or_else(|| {
        invalid(format!(
            "there is no service {:?}: /addressing/services lists them",
            shown(wanted)
        ))
    })?;
    if registration.bindings.is_empty() && cidr != prefix.cidr {
        return Err(invalid(format!(
            "the first binding is of the whole prefix, {}",
            prefix.cidr
        )));
    }
    if let Some(other) = registration
        .bindings
        .iter()
        .find(|one| one.service != service)
    {
        return Err(invalid(format!(
            "{} is bound to {}, and {cidr} cannot be bound to {} too: a prefix serves ingress or egress, never both (POOL-3)",
            other.cidr,
            name(other.service),
            name(service)
        )));
    }
    if registration.bindings.iter().any(|one| one.cidr == cidr) {
        return Err(invalid(format!("{cidr} is bound already")));
    }
    let binding = Binding { cidr, service };
    registration.bindings.push(binding.clone());
    let answer = json(&prefix, &binding);
    put(&mut writer, prefix, registration)?;
    Ok(Answer::Created(answer))
}

/// `DELETE /accounts/{account_id}/addressing/prefixes/{prefix_id}/bindings/{binding_id}`
pub(in crate::api) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let mut writer = api.service.writer()?;
    let found = Found::of(writer.stored(), call)?;
    let cidr = wanted(&found.prefix, call)?;
    let (prefix, mut registration) = found.changeable()?;
    registration.bindings.retain(|one| one.cidr != cidr);
    put(&mut writer, prefix, registration)?;
    Ok(Answer::Gone)
}

/// The bindings of a prefix; of one of the file, the one that it says.
fn all(prefix: &Prefix) -> Vec<Binding> {
    match &prefix.registration {
        Some(registration) => registration.bindings.clone(),
        None => vec![Binding {
            cidr: prefix.cidr,
            service: prefix.service,
        }],
    }
}

/// What the binding of the path binds.
fn wanted(prefix: &Prefix, call: &Call) -> Result<IpNet, ApiError> {
    let wanted = call.parameter("binding_id");
    let mut all = all(prefix).into_iter();
    all.find(|one| binding_id(prefix, one) == wanted)
        .map(|one| one.cidr)
        .ok_or_else(|| {
            not_found(format!(
                "prefix {} has no binding {}",
                prefix.cidr,
                shown(wanted)
            ))
        })
}

fn binding_id(prefix: &Prefix, binding: &Binding) -> String {
    let (prefix, cidr) = (prefix.cidr.to_string(), binding.cidr.to_string());
    id(&["binding", &prefix, &cidr, binding.service.word()])
}

fn json(prefix: &Prefix, binding: &Binding) -> Value {
    json!({
        "id": binding_id(prefix, binding),
        "cidr": binding.cidr,
        "service_id": service_id(binding.service),
        "service_name": name(binding.service),
        // When it is told, it is in force.
        "provisioning": { "state": "active" },
    })
}
