//! The OpenAPI document and the page that shows it.
//!
//! Nothing of it is kept by hand beside the code: paths, methods and permissions come from the
//! table of routes, and bodies and query strings from the very functions that read them. Those
//! run once over a recorder ([`crate::request::Asked`]), which notes what they ask for, of what
//! type and range, and what they insist on. So a field cannot be read and not documented, or the
//! other way round. (The crates that exist derive a document from types that serde reads; bodies
//! here are read field by field, so that every fault is named at once.) Answers are written by
//! serde, so their schemas are derived from the types that handlers return ([`crate::answer`]).

mod answers;
mod operations;
mod schema;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::Json;
use axum::http::{HeaderName, header};
use axum::response::Html;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::auth::Access;
use crate::router::{Route, routes};
use answers::Answers;
use operations::{Body, Operation, operation};

/// Everything the page needs is in the page; the browser is told to load nothing else.
const PAGE: &str = include_str!("page.html");
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /openapi.json`.
pub(crate) async fn document_json() -> Json<Document> {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    Json(Document(DOCUMENT.get_or_init(|| document(&routes()))))
}

/// OpenAPI 3.1.
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Document(#[schemars(with = "Map<String, Value>")] &'static Value);

/// `GET /docs`.
pub(crate) async fn page() -> ([(HeaderName, &'static str); 1], Html<&'static str>) {
    let headers = [(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)];
    (headers, Html(PAGE))
}

/// The document of a table of routes. Pure.
pub(crate) fn document(routes: &[Route]) -> Value {
    let mut answers = Answers::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in routes {
        let method = route.method.as_str().to_lowercase();
        let described = describe(route, &method, &mut answers);
        paths
            .entry(route.path)
            .or_default()
            .insert(method, described);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "BunnyDB",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Postgres to Postgres replication through Kafka: peers, mirrors, and the commands that act on them.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A token of POST /v1/auth/login." },
                "basic": { "type": "http", "scheme": "basic", "description": "User name and password; for /registry only." },
            },
            "schemas": answers.components(),
        },
    })
}

/// Whether the handler of a route takes parameters in a query string.
pub(crate) fn reads_query(route: &Route) -> bool {
    operation(route.method.as_str(), route.path).query.is_some()
}

fn describe(route: &Route, method: &str, answers: &mut Answers) -> Value {
    let operation = operation(route.method.as_str(), route.path);
    let mut described = json!({
        "operationId": operation_id(method, route.path),
        "tags": [tag(route.path)],
        "summary": operation.summary,
        "description": access(route.access),
        "security": security(route.access),
    });
    let parameters = parameters(route.path, &operation);
    if !parameters.is_empty() {
        described["parameters"] = json!(parameters);
    }
    if let Some(read) = operation.body {
        described["requestBody"] = request_body(read);
    }
    described["responses"] = responses(route, answers);
    described
}

fn request_body(read: Body) -> Value {
    let asked = schema::of_body(read);
    json!({
        "required": asked.get("required").is_some(),
        "content": { "application/json": { "schema": asked } },
    })
}

fn parameters(path: &str, operation: &Operation) -> Vec<Value> {
    let mut parameters: Vec<Value> = placeholders(path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if let Some(read) = operation.query {
        parameters.extend(schema::of_query(read));
    }
    parameters
}

fn responses(route: &Route, answers: &mut Answers) -> Value {
    let mut responses = answers.of(route);
    let mut error = |what: &str| answers.refusal(route.access, what);
    if route.path.starts_with("/v1/") {
        responses.insert(
            "400".into(),
            error("The input is wrong; every bad field or parameter is named."),
        );
    }
    if route.access != Access::Open {
        responses.insert(
            "401".into(),
            error("No token, or one that is not valid any more."),
        );
    }
    if route.access == Access::Admin {
        responses.insert("403".into(), error("This needs the role admin."));
    }
    if placeholders(route.path).next().is_some() {
        responses.insert("404".into(), error("There is nothing of that name."));
    }
    responses.insert("default".into(), error("Anything else that went wrong."));
    Value::Object(responses)
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Open => "Open to anyone.",
        Access::Any => "For every user.",
        Access::Admin => "For users with the role admin.",
        Access::Registry => "For every user, by token or by basic authentication.",
    }
}

fn security(access: Access) -> Value {
    match access {
        Access::Open => json!([]),
        Access::Any | Access::Admin => json!([{ "bearer": [] }]),
        Access::Registry => json!([{ "bearer": [] }, { "basic": [] }]),
    }
}

fn placeholders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

/// The first part of the path that is not the version.
fn tag(path: &str) -> &str {
    path.split('/')
        .find(|part| !part.is_empty() && *part != "v1")
        .unwrap_or("service")
}

/// `post_mirrors_name_pause`: unique, since method and path are.
fn operation_id(method: &str, path: &str) -> String {
    let words = path
        .split(['/', '-', '{', '}', '.'])
        .filter(|part| !part.is_empty() && *part != "v1");
    let mut id = method.to_owned();
    for word in words {
        id.push('_');
        id.push_str(word);
    }
    id
}

#[cfg(test)]
mod tests;
