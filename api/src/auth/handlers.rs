//! `/v1/auth`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use bunny_catalog::{User, UserRole};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::Caller;
use super::guard::client_address;
use super::passwords::CREDENTIAL_BYTES_MAX;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields};
use crate::state::Api;
use crate::users::new_password;

/// A token for a user.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Session {
    /// For the header `Authorization: Bearer <token>`.
    token: String,
    username: String,
    role: UserRole,
    /// When the token is void.
    expires_at: DateTime<Utc>,
}

/// The token after a change of the password.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RenewedSession {
    #[serde(flatten)]
    session: Session,
    message: &'static str,
}

/// Who is asking.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Me {
    username: String,
    role: UserRole,
}

/// `POST /v1/auth/login` `{username, password}` → `{token, username, role, expires_at}`.
pub(crate) async fn login(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Session>> {
    let address = client_address(request.extensions());
    let Body(fields) = Body::from_request(request, &()).await?;
    let (username, password) = read_login(fields)?;
    let user = api
        .passwords
        .check(&api.catalog, &username, password, address)
        .await?;
    issued(&api, &user).map(Json)
}

/// `GET /v1/auth/me` → `{username, role}`.
pub(crate) async fn me(caller: Caller) -> Json<Me> {
    Json(Me {
        username: caller.username,
        role: caller.role,
    })
}

/// `POST /v1/auth/change-password` `{current_password, new_password}`: every token issued
/// before is void; the answer holds a new one, so that the caller stays logged in.
pub(crate) async fn change_password(
    State(api): State<Arc<Api>>,
    caller: Caller,
    request: Request,
) -> Result<Json<RenewedSession>> {
    let address = client_address(request.extensions());
    let Body(fields) = Body::from_request(request, &()).await?;
    let (current, new) = read_change_password(fields)?;
    // A stolen token alone must not be enough, and guessing is slowed as at a login.
    let checked = api
        .passwords
        .check(&api.catalog, &caller.username, current, address)
        .await;
    if let Err(refusal) = checked {
        if refusal.status == StatusCode::UNAUTHORIZED {
            return Err(Refusal::forbidden("current_password is wrong"));
        }
        return Err(refusal);
    }
    let user = api.catalog.change_password(&caller.username, &new).await?;
    Ok(Json(RenewedSession {
        session: issued(&api, &user)?,
        message: "Password changed successfully; earlier tokens are void",
    }))
}

/// A token for a user, as a login answers it.
fn issued(api: &Api, user: &User) -> Result<Session> {
    let (token, expires_at) = api
        .tokens
        .issue(&user.username, user.role, user.token_version, Utc::now())
        .map_err(|error| Refusal::internal("signing a token", error))?;
    Ok(Session {
        token,
        username: user.username.clone(),
        role: user.role,
        expires_at,
    })
}

/// User name and password of a login.
pub(crate) fn read_login(mut fields: Fields) -> Result<(String, SecretString)> {
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
    Ok((username, password))
}

/// The present password and the new one.
pub(crate) fn read_change_password(mut fields: Fields) -> Result<(SecretString, SecretString)> {
    let current = fields.required_secret("current_password");
    if current.expose_secret().len() > CREDENTIAL_BYTES_MAX {
        fields.problem(
            "current_password",
            format!("is longer than {CREDENTIAL_BYTES_MAX} bytes"),
        );
    }
    let new = new_password(&mut fields, "new_password");
    fields.finish()?;
    Ok((current, new))
}
