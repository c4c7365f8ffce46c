//! Who asks, and whether they may (API-2).

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

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
        Access::Local(_) if is_from_here(headers, peer) => return Ok(Authority::NOBODY),
        Access::AnyToken => None,
        Access::Token(permission) | Access::Local(permission) => Some(permission),
    };
    let known = secret(headers, access).and_then(|secret| {
        api.token_of(&secret)?.ok_or_else(|| {
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

/// Whether this host itself asks, on nobody's behalf. Who shows a token is judged by it.
///
/// A web page can make a browser of this host ask under a name of its own that leads here (DNS rebinding), and would read
/// the answer; so whoever asks here without a token names this host by an address, or `localhost`.
fn is_from_here(headers: &HeaderMap, peer: IpAddr) -> bool {
    let names_an_address = |host: &HeaderValue| {
        let host = host.to_str().unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let address = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        name.eq_ignore_ascii_case("localhost") || address.unwrap_or(name).parse::<IpAddr>().is_ok()
    };
    peer.to_canonical().is_loopback()
        && !headers.contains_key(header::AUTHORIZATION)
        && headers.get(header::HOST).is_none_or(names_an_address)
}

/// The secret of `Authorization: Bearer SECRET` (RFC 6750, 2.1); where browsers ask, also the password of
/// `Authorization: Basic` (RFC 7617).
fn secret(headers: &HeaderMap, access: Access) -> Result<Cow<'_, str>, ApiError> {
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
    if matches!(access, Access::Local(_)) && scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64_STANDARD.decode(secret).map_err(|_| bad())?;
        let pair = String::from_utf8(decoded).map_err(|_| bad())?;
        let (_, password) = pair.split_once(':').ok_or_else(bad)?;
        return Ok(Cow::Owned(password.to_owned()));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && secret.bytes().all(fits) {
        Ok(Cow::Borrowed(secret))
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_under_its_own_name_and_without_a_token_is_from_here() {
        let here = |peer: &str, host: Option<&str>, token: bool| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert(header::HOST, host.parse().unwrap());
            }
            if token {
                headers.insert(header::AUTHORIZATION, "Bearer x".parse().unwrap());
            }
            is_from_here(&headers, peer.parse().unwrap())
        };
        for host in [
            "127.0.0.1:8080",
            "127.0.0.1",
            "localhost:8080",
            "LOCALHOST",
            "[::1]:8080",
            "[::1]",
            "192.0.2.1:80",
        ] {
            assert!(here("127.0.0.1", Some(host), false), "{host}");
            assert!(here("::1", Some(host), false), "{host}");
            assert!(here("::ffff:127.0.0.1", Some(host), false), "{host}");
            assert!(!here("192.0.2.9", Some(host), false), "{host}");
            assert!(!here("127.0.0.1", Some(host), true), "{host}");
        }
        // A name that somebody else may let lead here.
        for host in [
            "evil.example:8080",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "",
        ] {
            assert!(!here("127.0.0.1", Some(host), false), "{host}");
        }
        assert!(here("127.0.0.1", None, false), "HTTP/1.0, no browser");
    }

    #[test]
    fn a_password_is_a_token_where_browsers_ask_and_nowhere_else() {
        let of = |value: &str, access| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            secret(&headers, access).map(Cow::into_owned)
        };
        let local = Access::Local(Permission::MetricsRead);
        // me:se:cret
        assert_eq!(of("Basic bWU6c2U6Y3JldA==", local), Ok("se:cret".into()));
        assert_eq!(of("Bearer secret", local), Ok("secret".into()));
        assert!(of("Basic bWU6c2U6Y3JldA==", Access::AnyToken).is_err());
        for wrong in ["Basic", "Basic ***", "Basic bWU=", "Basic /w==", "Digest x"] {
            assert!(of(wrong, local).is_err(), "{wrong}");
        }
    }
}
