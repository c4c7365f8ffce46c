//! The envelope around every answer, its error codes, and pages of lists.

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Call, page};
use crate::control::Failure;
use crate::control::protocol::Cause;

/// Members of a page unless asked otherwise.
const PER_PAGE: usize = 20;
/// The most members of a page.
const MAX_PER_PAGE: usize = 1000;

/// The code of every warning, among the messages of an answer that says yes.
const WARNING: u32 = 1100;

/// Codes of errors: those of the original's public interface, and seven of our own (1400, 1404, 1408, 1409, 1413,
/// 1429, 1503)
/// where that has none in common use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// A bulk change without its list.
    MissingItems = 1004,
    /// Not the caller's fault.
    Internal = 1005,
    /// A setting that does not exist.
    UnknownSetting = 1006,
    /// A value that cannot be.
    InvalidValue = 1007,
    /// A setting that something else decides.
    NotModifiable = 1057,
    /// An origin that a zone requires to let a pool in does not.
    NotLetIn = 1400,
    /// A thing that the path names and that is not there.
    NotFound = 1404,
    /// The request did not come to its end.
    TooSlow = 1408,
    /// Somebody else has changed the same meanwhile.
    Conflict = 1409,
    /// A body of more than fits.
    TooLarge = 1413,
    /// More requests than a token has.
    TooMany = 1429,
    /// Too many others are being answered, or the store that servers share cannot be had.
    Busy = 1503,
    /// Headers that say nothing.
    InvalidHeaders = 6003,
    /// A body that is not JSON.
    MalformedJson = 6007,
    /// A path with other methods.
    NoMethod = 7001,
    /// No such path.
    NoRoute = 7003,
    /// Who are you, or you may not.
    Authentication = 10000,
}

impl Code {
    const fn status(self) -> StatusCode {
        match self {
            Self::MissingItems
            | Self::UnknownSetting
            | Self::InvalidValue
            | Self::NotModifiable
            | Self::NotLetIn
            | Self::InvalidHeaders
            | Self::MalformedJson => StatusCode::BAD_REQUEST,
            Self::Authentication => StatusCode::UNAUTHORIZED,
            Self::NotFound | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An answer that says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    code: Code,
    status: StatusCode,
    message: String,
    /// What exactly was wrong, as a second code.
    chain: Option<(u32, &'static str)>,
}

impl ApiError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            status: code.status(),
            message: message.into(),
            chain: None,
        }
    }

    /// The caller is known, and may not.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            ..Self::new(Code::Authentication, message)
        }
    }

    /// A header that cannot be read.
    pub(super) fn header(code: u32, message: &'static str) -> Self {
        Self {
            chain: Some((code, message)),
            ..Self::new(Code::InvalidHeaders, "Invalid request headers")
        }
    }

    /// Not the caller's fault: the log gets the cause, which may be none of the caller's business.
    pub(super) fn internal(cause: &dyn Display) -> Self {
        tracing::error!(%cause, "a request to the API failed");
        Self::new(
            Code::Internal,
            "internal error: nothing was changed, and the daemon's log says why",
        )
    }
}

impl From<Failure> for ApiError {
    /// What did not work, though nothing is wrong with what was asked for.
    fn from(failure: Failure) -> Self {
        let (code, message) = match failure.cause {
            Cause::Other if failure.usage => {
                return Self::new(Code::InvalidValue, failure.reason);
            }
            Cause::Other => return Self::internal(&failure),
            Cause::Unavailable => (
                Code::Busy,
                "the configuration cannot be changed now, since its store does not answer: nothing was changed, and \
                 what is in force stays so; try again later",
            ),
            Cause::Unknown => (
                Code::Busy,
                "the store of the configuration was lost in the middle of the change, which may have been made: get \
                 it again before you try again",
            ),
            Cause::Conflict => (
                Code::Conflict,
                "somebody else has changed the configuration meanwhile, and nothing was changed: try again",
            ),
        };
        // Where the store is, and what it said, is the operator's business.
        tracing::warn!("a request to the API was turned away: {failure}");
        Self::new(code, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code as u32, "message": self.message });
        if let Some((code, message)) = self.chain {
            error["error_chain"] = json!([{ "code": code, "message": message }]);
        }
        let body = json!({
            "success": false,
            "errors": [error],
            "messages": [],
            "result": null,
        });
        respond(self.status, &body)
    }
}

/// An answer that says yes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// One thing.
    One(Value),
    /// One thing, and what deserves a warning about it.
    Noted(Value, Vec<String>),
    /// A thing that is new.
    Created(Value),
    /// A thing that is not there any more.
    Gone,
    /// A page of a list, and where it stands.
    Page(Vec<Value>, Value),
    /// Text of some type, without an envelope.
    Text(&'static str, String),
    /// The page for people.
    Html(String),
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let envelope = |result: Value| json!({ "success": true, "errors": [], "messages": [], "result": result });
        match self {
            Self::One(result) => respond(StatusCode::OK, &envelope(result)),
            Self::Noted(result, warnings) => {
                let mut body = envelope(result);
                body["messages"] = warnings
                    .into_iter()
                    .map(|warning| json!({ "code": WARNING, "message": warning }))
                    .collect();
                respond(StatusCode::OK, &body)
            }
            Self::Created(result) => respond(StatusCode::CREATED, &envelope(result)),
            Self::Gone => respond(
                StatusCode::OK,
                &json!({ "success": true, "errors": [], "messages": [] }),
            ),
            Self::Page(members, info) => {
                let mut body = envelope(members.into());
                body["result_info"] = info;
                respond(StatusCode::OK, &body)
            }
            Self::Text(kind, text) => {
                let kind = HeaderValue::from_static(kind);
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Self::Html(html) => (page::headers(), html).into_response(),
        }
    }
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let kind = HeaderValue::from_static("application/json");
    let headers = [(header::CONTENT_TYPE, kind)];
    (status, headers, body.to_string()).into_response()
}

/// The page of `members` that a call asks for by `page` and `per_page`; past the end an empty one, or clients that
/// ask on until there is nothing would never end.
pub(super) fn page(call: &Call, members: Vec<Value>) -> Result<Answer, ApiError> {
    let mut page = 1;
    let mut per_page = PER_PAGE;
    for pair in call.query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = |most: usize| {
            value
                .parse()
                .ok()
                .filter(|number| (1..=most).contains(number))
                .ok_or_else(|| {
                    ApiError::new(
                        Code::InvalidValue,
                        format!("`{key}` is a number from 1 to {most}"),
                    )
                })
        };
        match key {
            "page" => page = number(1_000_000)?,
            "per_page" => per_page = number(MAX_PER_PAGE)?,
            _ => {}
        }
    }
    let total = members.len();
    let members: Vec<_> = members
        .into_iter()
        .skip((page - 1) * per_page)
        .take(per_page)
        .collect();
    let info = json!({
        "page": page,
        "per_page": per_page,
        "count": members.len(),
        "total_count": total,
        "total_pages": total.div_ceil(per_page),
    });
    Ok(Answer::Page(members, info))
}
