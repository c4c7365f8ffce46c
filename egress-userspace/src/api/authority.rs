//! Who asks, and whether they may (API-2).

use std::net::IpAddr;
use std::time::Instant;

use axum::http::{HeaderMap, header};

use super::envelope::{ApiError, Code};
use super::limit::{Asker, Left};
use super::{Access, Api};
use crate::store::{Permission, Token};

/// The token that a request shows, and what is left of its requests.
pub(super) struct Authority {
    pub(super) token: Option<Token>,
    pub(super) left: Option<Left>,
}

impl Authority {
    const NOBODY: Self = Self {
        token: None,
        left: None,
    };
}

/// Whether a request may go on. With a refusal comes what is left, too.
pub(super) fn authorise(
    api: &Api,
    access: Access,
    headers: &HeaderMap,
    peer: IpAddr,
) -> Result<Authority, (ApiError, Option<Left>)> {
    let wanted = match access {
        Access::Anybody => return Ok(Authority::NOBODY),
        Access::Local(_) if peer.to_canonical().is_loopback() => return Ok(Authority::NOBODY),
        Access::AnyToken => None,
        Access::Token(permission) | Access::Local(permission) => Some(permission),
    };
    let known = secret(headers).and_then(|secret| {
        api.token_of(secret)?.ok_or_else(|| {
            ApiError::new(Code::Authentication, "Authentication error: no such token")
        })
    });
    let asker = match &known {
        Ok(token) => Asker::Token(token.id.clone()),
        Err(_) => Asker::at(peer),
    };
    let left = api.limiter.take(asker, Instant::now());
    if !left.allowed {
        let error = ApiError::new(
            Code::TooMany,
            "too many requests: see the header retry-after",
        );
        return Err((error, Some(left)));
    }
    let may = known.and_then(|token| may(token, wanted));
    match may {
        Ok(token) => Ok(Authority {
            token: Some(token),
            left: Some(left),
        }),
        Err(error) => Err((error, Some(left))),
    }
}

fn may(token: Token, wanted: Option<Permission>) -> Result<Token, ApiError> {
    match wanted {
        Some(permission) if !token.allows(permission) => Err(ApiError::forbidden(format!(
            "Authentication error: this token lacks the permission {}",
            permission.name()
        ))),
        _ => Ok(token),
    }
}

/// The secret of `Authorization: Bearer SECRET` (RFC 6750, 2.1).
fn secret(headers: &HeaderMap) -> Result<&str, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(ApiError::new(
            Code::Authentication,
            "Authentication error: the header Authorization: Bearer TOKEN is missing",
        ));
    };
    let bad = || ApiError::header(6111, "Invalid format for Authorization header");
    let (scheme, secret) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(bad)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && secret.bytes().all(fits) {
        Ok(secret)
    } else {
        Err(bad())
    }
}
