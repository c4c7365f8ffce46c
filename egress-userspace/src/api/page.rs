//! `/status`: what is, as a page for people (OBS-5). Read-only, without a script, without anything from elsewhere.
//!
//! Whoever asks from this host sees what `/metrics` tells. What customers' names are and where they connect to is shown to a
//! token alone: other users of this host, and programs that can be made to fetch a URL, get no list of origins.

mod html;
mod look;

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

use super::envelope::{Answer, ApiError, Code};
use super::{Api, Call};
use crate::control::{Failure, Filter};
use crate::dataplane::api::OriginFilter;
use crate::inventory::{self, Status};
use look::Look;

/// The page's only style; the policy below allows it by its hash and no other.
const STYLE: &str = include_str!("page/style.css");

/// What a browser may do with the page: nothing but show it.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// `GET /status`
pub(super) fn page(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let known = call.token.is_some();
    if !known && call.query == "all" {
        return Err(ApiError::new(
            Code::Authentication,
            "Authentication error: zones and origins are shown to a token with metrics:read, for instance as the password that a browser asks for",
        ));
    }
    let look = look(api, known).map_err(|failure| ApiError::internal(&failure))?;
    Ok(Answer::Html(look.html()))
}

fn look(api: &Api, known: bool) -> Result<Look, Failure> {
    let view = api.service.view()?;
    let live = view.pools()?;
    let origins = view.origins(&OriginFilter::default())?;
    let controller = api.service.controller();
    let status = Status {
        frozen: controller.frozen(),
        stuck: controller.stuck().map(str::to_owned),
        servers: controller.healths().clone(),
        ..Status::new(controller.status()?, Some(std::process::id()))
    };
    let stored = controller.stored();
    let server = &controller.config().server;
    Ok(Look {
        server: server.name.clone(),
        data_center: server.data_center.clone(),
        status,
        pools: inventory::pools(stored, &live, &Filter::default())?,
        live,
        origins,
        names: stored.names(),
        known,
    })
}

/// What goes with the page.
pub(super) fn headers() -> HeaderMap {
    let fixed = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let mut headers: HeaderMap = fixed
        .into_iter()
        .map(|(name, value)| (name, HeaderValue::from_static(value)))
        .collect();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    let name = header::HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(name, HeaderValue::from_static("same-origin"));
    headers
}
