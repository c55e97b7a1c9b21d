//! `/v1/auth`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use chrono::{SecondsFormat, Utc};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::Caller;
use super::guard::client_address;
use super::passwords::CREDENTIAL_BYTES_MAX;
use crate::refusal::{Refusal, Result};
use crate::request::Body;
use crate::service::Api;

/// `POST /v1/auth/login` `{username, password}` → `{token, username, role, expires_at}`.
pub(crate) async fn login(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>> {
    let address = client_address(request.extensions());
    let Body(mut fields) = Body::from_request(request, &()).await?;
    let username = fields.required_text("username");
    let password = fields.required_secret("password");
    for (name, length) in [
        ("username", username.len()),
        ("password", password.expose_secret().len()),
    ] {
        if length > CREDENTIAL_BYTES_MAX {
            fields.problem(name, format!("is longer than {CREDENTIAL_BYTES_MAX} bytes"));
        }
    }
    fields.finish()?;
    let user = api
        .passwords
        .check(&api.catalog, &username, password, address)
        .await?;
    let (token, expires_at) = api
        .tokens
        .issue(&user.username, user.role, user.token_version, Utc::now())
        .map_err(|error| Refusal::internal("signing a token", error))?;
    Ok(Json(json!({
        "token": token,
        "username": user.username,
        "role": user.role,
        "expires_at": expires_at.to_rfc3339_opts(SecondsFormat::Secs, true),
    })))
}

/// `GET /v1/auth/me` → `{username, role}`.
pub(crate) async fn me(caller: Caller) -> Json<Value> {
    Json(json!({ "username": caller.username, "role": caller.role }))
}
