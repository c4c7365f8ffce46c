//! What there is: one table, from which the router is made and against which the OpenAPI document is checked.

mod resources;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::authority::{Authority, authorise};
use super::envelope::{Answer, ApiError, Code};
use super::listen::Peer;
use super::{
    Access, Api, Call, egress, gateway, graphql, leases, metrics, openapi, page, settings,
};
use crate::store::Permission;

/// The most bytes of a body: settings are a line, and lists of them a page.
const MAX_BODY: usize = 1 << 20;
/// A body must be here within this time.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// A request that others keep waiting this long is turned away. One whose turn has come is answered, whatever time that
/// takes: its change is made, so nothing else may be said.
const TURN_PATIENCE: Duration = Duration::from_secs(30);
/// Requests that are answered at once; further ones wait. The controller takes one after the other anyway.
const AT_ONCE: usize = 8;

/// Something that can be asked for.
pub(super) struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    answer: fn(&Api, &Call) -> Result<Answer, ApiError>,
}

const fn route(
    method: Method,
    path: &'static str,
    access: Access,
    answer: fn(&Api, &Call) -> Result<Answer, ApiError>,
) -> Route {
    Route {
        method,
        path,
        access,
        answer,
    }
}

const READ_SETTINGS: Access = Access::Token(Permission::ZoneSettingsRead);
const WRITE_SETTINGS: Access = Access::Token(Permission::ZoneSettingsWrite);
const READ_EGRESS: Access = Access::Token(Permission::AccountEgressRead);
const READ_ANALYTICS: Access = Access::Token(Permission::AccountAnalyticsRead);
const WRITE_EGRESS: Access = Access::Token(Permission::AccountEgressWrite);
const WRITE_ADDRESSES: Access = Access::Token(Permission::AccountAddressesWrite);

/// All there is.
fn all() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().chain(&resources::ROUTES)
}

/// What there is of settings, policies, analytics and the daemon, and what can be seen of an account.
static ROUTES: [Route; 21] = [
    route(
        Method::GET,
        "/client/v4/zones/{zone_id}/settings/{setting_id}",
        READ_SETTINGS,
        settings::get,
    ),
    route(
        Method::PATCH,
        "/client/v4/zones/{zone_id}/settings/{setting_id}",
        WRITE_SETTINGS,
        settings::patch,
    ),
    route(
        Method::GET,
        "/client/v4/zones/{zone_id}/settings",
        READ_SETTINGS,
        settings::list,
    ),
    route(
        Method::PATCH,
        "/client/v4/zones/{zone_id}/settings",
        WRITE_SETTINGS,
        settings::patch_list,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/egress/pools",
        READ_EGRESS,
        egress::pools,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/egress/pools/{pool_id}",
        READ_EGRESS,
        egress::pool,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/egress/leased_ips",
        READ_EGRESS,
        leases::list,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/egress/drains",
        READ_EGRESS,
        egress::drains,
    ),
    route(
        Method::POST,
        "/client/v4/accounts/{account_id}/egress/drains",
        WRITE_EGRESS,
        egress::drain,
    ),
    route(
        Method::DELETE,
        "/client/v4/accounts/{account_id}/egress/drains/{subject}",
        WRITE_EGRESS,
        egress::undrain,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/gateway/rules",
        READ_EGRESS,
        gateway::list,
    ),
    route(
        Method::POST,
        "/client/v4/accounts/{account_id}/gateway/rules",
        WRITE_EGRESS,
        gateway::create,
    ),
    route(
        Method::GET,
        "/client/v4/accounts/{account_id}/gateway/rules/{rule_id}",
        READ_EGRESS,
        gateway::get,
    ),
    route(
        Method::PUT,
        "/client/v4/accounts/{account_id}/gateway/rules/{rule_id}",
        WRITE_EGRESS,
        gateway::put,
    ),
    route(
        Method::PATCH,
        "/client/v4/accounts/{account_id}/gateway/rules/{rule_id}",
        WRITE_EGRESS,
        gateway::patch,
    ),
    route(
        Method::DELETE,
        "/client/v4/accounts/{account_id}/gateway/rules/{rule_id}",
        WRITE_EGRESS,
        gateway::delete,
    ),
    route(
        Method::POST,
        "/client/v4/graphql",
        READ_ANALYTICS,
        graphql::graphql,
    ),
    route(
        Method::GET,
        "/client/v4/user/tokens/verify",
        Access::AnyToken,
        verify,
    ),
    route(Method::GET, "/openapi.json", Access::Anybody, describe),
    route(
        Method::GET,
        "/metrics",
        Access::Local(Permission::MetricsRead),
        metrics::metrics,
    ),
    route(
        Method::GET,
        "/status",
        Access::Local(Permission::MetricsRead),
        page::page,
    ),
];

fn verify(_: &Api, call: &Call) -> Result<Answer, ApiError> {
    let id = call.token.as_ref().map(|token| &token.id);
    Ok(Answer::One(
        serde_json::json!({ "id": id, "status": "active" }),
    ))
}

fn describe(_: &Api, _: &Call) -> Result<Answer, ApiError> {
    let document = openapi::document().to_string();
    Ok(Answer::Text("application/json", document))
}

/// The router of the table.
pub(super) fn router(api: &Arc<Api>) -> Router {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut router = Router::new();
    for route in all() {
        let (api, places) = (Arc::clone(api), Arc::clone(&places));
        let answer = move |parameters: RawPathParams, request: Request| {
            let (api, places) = (Arc::clone(&api), Arc::clone(&places));
            let parameters = parameters
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            answer(api, places, route, parameters, request)
        };
        let method = MethodFilter::try_from(route.method.clone()).unwrap_or(MethodFilter::GET);
        router = router.route(route.path, on(method, answer));
    }
    router
        .method_not_allowed_fallback(|method: Method| async move {
            ApiError::new(
                Code::NoMethod,
                format!("method {method} not available for that URI"),
            )
        })
        .fallback(|| async { ApiError::new(Code::NoRoute, "No route for the URI") })
}

async fn answer(
    api: Arc<Api>,
    places: Arc<Semaphore>,
    route: &'static Route,
    parameters: Vec<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(Peer(peer)) = parts.extensions.get::<Peer>().copied() else {
        return ApiError::internal(&"a request without a peer").into_response();
    };
    let Authority { token, left } = match authorise(&api, route.access, &parts.headers, peer) {
        Ok(authority) => authority,
        Err((error, left)) => {
            let mut response = error.into_response();
            if let Some(left) = left {
                left.tell(response.headers_mut());
            }
            ask_browsers(route, &mut response);
            return response;
        }
    };
    let work = async {
        let call = Call {
            token,
            parameters,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: read(&parts.headers, body).await?,
        };
        in_turn(places, TURN_PATIENCE, move || (route.answer)(&api, &call)).await
    };
    let mut response = work.await.into_response();
    if let Some(left) = left {
        left.tell(response.headers_mut());
    }
    ask_browsers(route, &mut response);
    response
}

/// Lets a browser ask its user for a token, as a password: it cannot be told to show one in any other way.
fn ask_browsers(route: &Route, response: &mut Response) {
    if matches!(route.access, Access::Local(_)) && response.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"egress\", charset=\"UTF-8\"");
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
}

/// Does `work` when there is a place for it, which must be within `patience`.
///
/// The controller's lock and the database block: it is not done on the thread that serves everybody.
async fn in_turn<T: Send + 'static>(
    places: Arc<Semaphore>,
    patience: Duration,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let Ok(place) = timeout(patience, places.acquire_owned()).await else {
        return Err(ApiError::new(
            Code::Busy,
            "busy, nothing was changed: try again later",
        ));
    };
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    done.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request to the API ended early");
        Err(ApiError::new(
            Code::Internal,
            "internal error: see what is there now; the daemon's log says why",
        ))
    })
}

/// The body, if it is not too large and comes soon.
async fn read(headers: &HeaderMap, body: Body) -> Result<axum::body::Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            Code::TooLarge,
            format!("a body has at most {MAX_BODY} bytes"),
        )
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > MAX_BODY) {
        return Err(too_large());
    }
    match timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            Err(
                if source.is_some_and(|s| s.to_string().contains("length limit")) {
                    too_large()
                } else {
                    ApiError::new(Code::MalformedJson, "the body ended early")
                },
            )
        }
        Err(_) => Err(ApiError::new(
            Code::TooSlow,
            "the body did not come in time",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Runs `work` with this many places, after `patience` at most.
    fn run<T: Send + 'static>(
        places: usize,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let places = Arc::new(Semaphore::new(places));
        runtime.block_on(in_turn(places, patience, move || Ok(work())))
    }

    #[test]
    fn a_change_that_is_being_made_is_never_said_to_have_failed() {
        let patience = Duration::from_millis(20);
        let slow = move || {
            std::thread::sleep(5 * patience);
            "done"
        };
        assert_eq!(run(1, patience, slow), Ok("done"));
    }

    #[test]
    fn what_gets_no_turn_is_turned_away_before_anything_was_done() {
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let work = Arc::clone(&done);
        let work = move || work.store(true, std::sync::atomic::Ordering::SeqCst);
        let busy = run(0, Duration::from_millis(20), work).unwrap_err();
        let response = busy.into_response();
        assert_eq!(response.status(), 503);
        assert!(!done.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[test]
    fn the_openapi_document_describes_every_route_and_no_other() {
        let document = openapi::document();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap();
                methods
                    .keys()
                    .filter(|key| *key != "parameters")
                    .map(move |method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> = all()
            .map(|route| (route.path.to_owned(), route.method.to_string()))
            .collect();
        assert_eq!(described, routed);
        for route in all() {
            let path = &document["paths"][route.path];
            let operation = &path[route.method.as_str().to_lowercase()];
            let named = |name: &str| {
                let parameters = path["parameters"].as_array();
                let is_it = |one: &Value| match one["$ref"].as_str() {
                    Some(to) => document.pointer(&to[1..]).unwrap()["name"] == name,
                    None => one["name"] == name,
                };
                parameters.is_some_and(|all| all.iter().any(is_it))
            };
            for part in route.path.split('/').filter(|part| part.starts_with('{')) {
                assert!(
                    named(part.trim_matches(['{', '}'])),
                    "{part} of {}",
                    route.path
                );
            }
            // What the token must allow stands where generators of clients show it.
            let required = match route.access {
                Access::Token(permission) | Access::Local(permission) => {
                    serde_json::json!([{ "bearer": [permission.name()] }])
                }
                Access::AnyToken => serde_json::json!([{ "bearer": [] }]),
                Access::Anybody => serde_json::json!([]),
            };
            let mut stated = operation["security"].clone();
            if matches!(route.access, Access::Local(_)) {
                let without = stated.as_array_mut().unwrap().pop();
                assert_eq!(without, Some(serde_json::json!({})));
            }
            assert_eq!(stated, required, "{} {}", route.method, route.path);
            assert!(
                operation["responses"]["200"].is_object()
                    || operation["responses"]["201"].is_object()
            );
        }
    }

    /// Follows every `$ref`.
    #[test]
    fn its_references_lead_somewhere() {
        fn walk(value: &Value, document: &Value, found: &mut usize) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        let pointer = to.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{to}");
                        *found += 1;
                    }
                    map.values().for_each(|value| walk(value, document, found));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, document, found)),
                _ => {}
            }
        }
        let document = openapi::document();
        let mut found = 0;
        walk(document, document, &mut found);
        assert!(found > 10);
    }
}
