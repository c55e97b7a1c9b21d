//! The one table of routes with who may call each, and the layers around them.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use tower_http::catch_panic::CatchPanicLayer;

use crate::answer::{Answering, Form};
use crate::auth::guard::guard;
use crate::auth::{Access, handlers as auth};
use crate::refusal::Refusal;
use crate::request::{BODY_BYTES_MAX, Query};
use crate::state::Api;
use crate::{commands, health, mirrors, openapi, peers, registry, users};

/// The longest a request may take; a create examines every table of two servers.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(120);

const REQUESTS_TOTAL: &str = "bunny_api_requests_total";
const REQUEST_SECONDS: &str = "bunny_api_request_seconds";

/// One route: how it is called, who may, and what answers.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    /// What it answers when all is well.
    pub(crate) forms: fn() -> Vec<Form>,
    handler: MethodRouter<Arc<Api>>,
}

fn route<H, T, A>(method: Method, path: &'static str, access: Access, handler: H) -> Route
where
    H: Handler<T, Arc<Api>> + Answering<A>,
    T: 'static,
{
    // Every method named below has a filter; GET answers HEAD too.
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Route {
        method,
        path,
        access,
        forms: <H as Answering<A>>::forms,
        handler: on(filter, handler),
    }
}

/// Every route there is.
pub(crate) fn routes() -> Vec<Route> {
    use Access::{Admin, Any, Open, Registry};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    vec![
        route(GET, "/health", Open, health::health),
        route(GET, "/ready", Open, health::ready),
        route(GET, "/openapi.json", Open, openapi::document_json),
        route(GET, "/docs", Open, openapi::page),
        route(POST, "/v1/auth/login", Open, auth::login),
        route(GET, "/v1/auth/me", Any, auth::me),
        route(POST, "/v1/auth/change-password", Any, auth::change_password),
        route(GET, "/v1/users", Admin, users::list),
        route(POST, "/v1/users", Admin, users::create),
        route(DELETE, "/v1/users/{username}", Admin, users::delete),
        route(GET, "/v1/audit", Admin, users::audit),
        route(GET, "/v1/peers", Any, peers::list),
        route(POST, "/v1/peers", Admin, peers::create),
        route(GET, "/v1/peers/{name}", Any, peers::get),
        route(PUT, "/v1/peers/{name}", Admin, peers::replace),
        route(DELETE, "/v1/peers/{name}", Admin, peers::delete),
        route(POST, "/v1/peers/{name}/test", Admin, peers::test),
        route(GET, "/v1/peers/{name}/tables", Any, peers::tables),
        route(GET, "/v1/mirrors", Any, mirrors::list),
        route(POST, "/v1/mirrors", Admin, mirrors::create),
        route(GET, "/v1/mirrors/{name}", Any, mirrors::get),
        route(PATCH, "/v1/mirrors/{name}", Admin, mirrors::patch),
        route(DELETE, "/v1/mirrors/{name}", Admin, mirrors::delete),
        route(GET, "/v1/mirrors/{name}/metrics", Any, mirrors::metrics),
        route(GET, "/v1/mirrors/{name}/logs", Any, mirrors::logs),
        route(GET, "/v1/mirrors/{name}/tables", Any, mirrors::tables),
        route(PUT, "/v1/mirrors/{name}/tables", Admin, mirrors::set_tables),
        route(
            GET,
            "/v1/mirrors/{name}/available-tables",
            Any,
            mirrors::available_tables,
        ),
        route(POST, "/v1/mirrors/{name}/retry", Admin, mirrors::retry),
        route(POST, "/v1/mirrors/{name}/pause", Admin, mirrors::pause),
        route(POST, "/v1/mirrors/{name}/resume", Admin, mirrors::resume),
        route(
            POST,
            "/v1/mirrors/{name}/sync-schema",
            Admin,
            mirrors::sync_schema,
        ),
        route(POST, "/v1/mirrors/{name}/resync", Admin, mirrors::resync),
        route(
            POST,
            "/v1/mirrors/{name}/resync/{table}",
            Admin,
            mirrors::resync_table,
        ),
        route(POST, "/v1/mirrors/{name}/adopt", Admin, mirrors::adopt),
        route(POST, "/v1/mirrors/{name}/replay", Admin, mirrors::replay),
        route(
            POST,
            "/v1/mirrors/{name}/checkpoint",
            Admin,
            mirrors::checkpoint,
        ),
        route(GET, "/v1/mirrors/{name}/commands", Any, commands::list),
        route(GET, "/v1/mirrors/{name}/commands/{id}", Any, commands::get),
        route(
            GET,
            "/registry/schemas/ids/{id}",
            Registry,
            registry::schema_by_id,
        ),
        route(GET, "/registry/subjects", Registry, registry::subjects),
        route(
            GET,
            "/registry/subjects/{subject}/versions",
            Registry,
            registry::versions,
        ),
        route(
            GET,
            "/registry/subjects/{subject}/versions/{version}",
            Registry,
            registry::version,
        ),
    ]
}

/// The whole service without its listener.
pub fn router(api: Arc<Api>) -> Router {
    let mut router: Router<Arc<Api>> = Router::new();
    for route in routes() {
        let state = (Arc::clone(&api), route.access);
        let handler = match takes_any_query(&route) {
            true => route.handler,
            false => route.handler.route_layer(from_fn(refuse_query)),
        };
        let guarded = handler.route_layer(from_fn_with_state(state, guard));
        router = router.route(route.path, guarded);
    }
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(limit_time))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(observe))
        .with_state(api)
}

/// Handlers that read a query string refuse by themselves what they do not know. What others than
/// people ask (probes, clients of a schema registry) may come with parameters of theirs.
fn takes_any_query(route: &Route) -> bool {
    !route.path.starts_with("/v1/") || openapi::reads_query(route)
}

async fn refuse_query(query: Query, request: Request, next: Next) -> Response {
    match query.finish() {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn unknown_path(uri: Uri) -> Refusal {
    Refusal::not_found(format!(
        "there is nothing at {}; check the path",
        uri.path()
    ))
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{method} is not possible at {}; the Allow header lists what is",
            uri.path()
        ),
    )
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::unavailable(format!(
            "the request took longer than {} s and was given up; try again",
            REQUEST_TIME_MAX.as_secs()
        ))
        .into_response(),
    }
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text");
    Refusal::internal("handling a request (panic)", text).into_response()
}

async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // The pattern, not the path: names of mirrors would make a label without bounds.
    let pattern = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", |matched| matched.as_str())
        .to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    metrics::counter!(
        REQUESTS_TOTAL,
        "method" => method.as_str().to_owned(),
        "route" => pattern.clone(),
        "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!(REQUEST_SECONDS, "route" => pattern).record(elapsed.as_secs_f64());
    let duration_ms = elapsed.as_millis();
    tracing::debug!(%method, path, status, duration_ms, "answered {method} {path}");
    response
}

#[cfg(test)]
mod tests;
