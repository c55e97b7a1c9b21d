//! The permission table: every route with every kind of token, against the real router and guard. The
//! catalog is one that cannot be reached: a request that got past the guard's own decision is seen by
//! its 503.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bunny_catalog::{Catalog, EncryptionKey, Location, UserRole};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::topics::Topics;
use chrono::Utc;
use secrecy::SecretString;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::auth::token::Tokens;
use crate::state::Options;

const SECRET: &str = "a secret for tests of at least 32 bytes";

fn app() -> Router {
    // Port 1 is reserved and refuses at once.
    let nowhere = Location::Parts {
        host: "127.0.0.1".into(),
        port: 1,
        user: "nobody".into(),
        password: None,
        database: "none".into(),
    };
    let options = Options {
        catalog: Catalog::open(&nowhere, EncryptionKey::generate()).unwrap(),
        kafka: KafkaConfig::new("127.0.0.1:1"),
        topics: Topics::new("test"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        jwt_secret: SecretString::from(SECRET),
    };
    router(Api::new(&options).unwrap())
}

fn token(secret: &str, role: UserRole, age: Duration) -> String {
    let tokens = Tokens::new(&SecretString::from(secret), Duration::from_secs(600)).unwrap();
    let issued = Utc::now() - chrono::Duration::from_std(age).unwrap();
    tokens.issue("ann", role, 0, issued).unwrap().0
}

fn unsigned() -> String {
    let signed = token(SECRET, UserRole::Admin, Duration::ZERO);
    let payload = signed.split('.').nth(1).unwrap();
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
    format!("{header}.{payload}.")
}

/// A path of the route with something in its placeholders.
fn example(route: &Route) -> String {
    route
        .path
        .replace("{id}", "7")
        .replace("{version}", "latest")
        .replace("{table}", "public.t")
        .replace("{name}", "x")
        .replace("{username}", "x")
        .replace("{subject}", "x")
}

async fn call(
    app: &Router,
    method: Method,
    path: &str,
    authorization: Option<String>,
    body: &str,
) -> (u16, header::HeaderMap, Value) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let json = match serde_json::from_slice(&bytes) {
        Ok(json) => json,
        Err(_) if path == "/docs" => Value::Null,
        Err(error) => panic!("{path} did not answer JSON: {error}"),
    };
    (parts.status.as_u16(), parts.headers, json)
}

fn bearer(token: String) -> Option<String> {
    Some(format!("Bearer {token}"))
}

#[tokio::test]
async fn every_route_refuses_who_may_not_call_it() {
    let app = app();
    let strangers: Vec<(&str, Option<String>)> = vec![
        ("no token", None),
        ("nonsense", Some("nonsense".into())),
        ("another scheme", Some("Digest x".into())),
        ("not a token", bearer("not.a.token".into())),
        (
            "expired",
            bearer(token(SECRET, UserRole::Admin, Duration::from_secs(601))),
        ),
        (
            "forged",
            bearer(token(
                "some other secret of 32 bytes or so",
                UserRole::Admin,
                Duration::ZERO,
            )),
        ),
        ("alg none", bearer(unsigned())),
    ];
    // Those who get past the guard wait for the catalog that is away, so they wait together.
    let mut callers = tokio::task::JoinSet::new();
    for route in routes() {
        let path = example(&route);
        if route.access == Access::Open {
            let (status, _, _) = call(&app, route.method.clone(), &path, None, "{}").await;
            assert!(
                ![401, 403].contains(&status),
                "{} {path}: {status}",
                route.method
            );
            continue;
        }
        for (who, authorization) in &strangers {
            let (status, headers, body) = call(
                &app,
                route.method.clone(),
                &path,
                authorization.clone(),
                "{}",
            )
            .await;
            assert_eq!(status, 401, "{} {path} with {who}", route.method);
            assert!(headers.contains_key(header::WWW_AUTHENTICATE));
            assert!(body["error"].is_string(), "{body}");
        }
        for (role, may) in [
            (UserRole::Viewer, route.access != Access::Admin),
            (UserRole::Admin, true),
        ] {
            let bearer = bearer(token(SECRET, role, Duration::ZERO));
            let (app, method, path) = (app.clone(), route.method.clone(), path.clone());
            callers.spawn(async move {
                let (status, _, body) = call(&app, method.clone(), &path, bearer, "{}").await;
                let expected = if may { 503 } else { 403 };
                assert_eq!(status, expected, "{method} {path} as {role:?}: {body}");
            });
        }
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn every_route_that_is_not_open_asks_whether_the_token_was_revoked() {
    let app = app();
    // A few only: each waits for the catalog that is away.
    for path in ["/v1/auth/me", "/v1/peers", "/registry/subjects"] {
        let admin = bearer(token(SECRET, UserRole::Admin, Duration::ZERO));
        let (status, _, _) = call(&app, Method::GET, path, admin, "").await;
        assert_eq!(status, 503, "{path}");
    }
}

#[test]
fn writing_is_for_admins() {
    for route in routes() {
        let open_to_all = ["/v1/auth/login", "/v1/auth/change-password"].contains(&route.path);
        if route.method != Method::GET && !open_to_all {
            assert_eq!(
                route.access,
                Access::Admin,
                "{} {}",
                route.method,
                route.path
            );
        }
    }
}

#[tokio::test]
async fn basic_auth_is_for_the_registry_only() {
    let app = app();
    let basic = format!("Basic {}", STANDARD.encode("ann:secret"));
    let (status, _, _) = call(&app, Method::GET, "/v1/peers", Some(basic.clone()), "").await;
    assert_eq!(status, 401);
    let (status, headers, _) = call(&app, Method::GET, "/registry/subjects", Some(basic), "").await;
    // Past the guard's decision, at the catalog that is away.
    assert_eq!(status, 503);
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/vnd.schemaregistry.v1+json"
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let app = app();
    let (status, _, body) = call(&app, Method::GET, "/v1/nothing", None, "").await;
    assert_eq!((status, body["error"].is_string()), (404, true));
    let (status, headers, body) = call(&app, Method::DELETE, "/health", None, "").await;
    assert_eq!((status, body["error"].is_string()), (405, true));
    assert!(headers.contains_key(header::ALLOW));
}

#[tokio::test]
async fn bad_bodies_are_refused_in_json() {
    let app = app();
    let login = |body: String| {
        let app = app.clone();
        async move { call(&app, Method::POST, "/v1/auth/login", None, &body).await }
    };
    let (status, _, body) = login("{\"username\":".into()).await;
    assert_eq!(status, 400, "{body}");
    let (status, _, body) = login("{\"user\": \"a\", \"password\": \"b\"}".into()).await;
    assert_eq!(status, 400);
    let message = body["error"].as_str().unwrap();
    assert!(message.contains("username: is required") && message.contains("user: is not"));
    let (status, _, body) = login("x".repeat(BODY_BYTES_MAX + 1)).await;
    assert_eq!((status, body["error"].is_string()), (413, true));
    let long = "p".repeat(5_000);
    let (status, _, _) = login(format!("{{\"username\":\"a\",\"password\":\"{long}\"}}")).await;
    assert_eq!(status, 400);
    let (status, _, body) = login("{\"username\":\"a\",\"password\":\"b\"}".into()).await;
    assert_eq!((status, body["error"].is_string()), (503, true));
}

#[tokio::test]
async fn parameters_that_nobody_reads_are_refused_by_name() {
    let app = app();
    let login = "{\"username\":\"a\",\"password\":\"b\"}";
    let path = "/v1/auth/login?limit=1";
    let (status, _, body) = call(&app, Method::POST, path, None, login).await;
    assert_eq!(status, 400, "{body}");
    let message = body["error"].as_str().unwrap();
    assert!(
        message.contains("limit: is not a known parameter"),
        "{message}"
    );
    let (status, _, _) = call(&app, Method::GET, "/health?from=probe", None, "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn readiness_names_what_is_away_and_health_does_not_depend_on_it() {
    let app = app();
    let (status, _, _) = call(&app, Method::GET, "/health", None, "").await;
    assert_eq!(status, 200);
    let (status, _, body) = call(&app, Method::GET, "/ready", None, "").await;
    assert_eq!(status, 503);
    assert_eq!(
        (&body["catalog"], &body["kafka"]),
        (&"unreachable".into(), &"unreachable".into())
    );
}

#[tokio::test]
async fn a_panic_is_an_error_of_ours() {
    let response = panicked(Box::new("boom"));
    assert_eq!(response.status().as_u16(), 500);
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("boom"));
}
