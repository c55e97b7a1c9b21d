//! Users: listed, created, deleted; and who did what to users and peers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bunny_catalog::{UserRole, check_name};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::auth::passwords::CREDENTIAL_BYTES_MAX;
use crate::refusal::Result;
use crate::request::{Body, Fields, Path, Query};
use crate::state::Api;

/// Shortest password for a user (NIST SP 800-63B §5.1.1.2: eight characters).
const PASSWORD_CHARS_MIN: usize = 8;
const AUDIT_DEFAULT: i64 = 100;
const AUDIT_MAX: i64 = 500;

/// A password that may be set: long enough, and not longer than a login accepts.
pub(crate) fn new_password(fields: &mut Fields, name: &'static str) -> SecretString {
    let password = fields.required_secret(name);
    let text = password.expose_secret();
    let is_unfit = text.chars().count() < PASSWORD_CHARS_MIN || text.len() > CREDENTIAL_BYTES_MAX;
    if is_unfit && !fields.faulty(name) {
        fields.problem(
            name,
            format!("must have at least {PASSWORD_CHARS_MIN} characters and at most {CREDENTIAL_BYTES_MAX} bytes"),
        );
    }
    password
}

/// `GET /v1/users`.
pub(crate) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<Value>>> {
    let users = api.catalog.list_users().await?;
    let views = users.into_iter().map(|user| {
        json!({
            "username": user.username,
            "role": user.role,
            "created_at": user.created_at,
        })
    });
    Ok(Json(views.collect()))
}

/// `DELETE /v1/users/{username}`: the user's tokens are void at once.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Path(username): Path<String>,
    caller: Caller,
) -> Result<Json<Value>> {
    api.catalog.delete_user(&username, &caller.username).await?;
    Ok(Json(
        json!({ "message": format!("User '{username}' deleted successfully") }),
    ))
}

/// `GET /v1/audit?limit&offset`: who changed users and peers, newest first.
pub(crate) async fn audit(State(api): State<Arc<Api>>, query: Query) -> Result<Json<Value>> {
    let (limit, offset) = read_page(query)?;
    let (entries, total) = api.catalog.list_audit(limit, offset).await?;
    Ok(Json(
        json!({ "audit": entries, "total": total, "offset": offset, "limit": limit }),
    ))
}

/// `POST /v1/users` `{username, password, role}`.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<(StatusCode, Json<Value>)> {
    let (username, password, role) = read(fields)?;
    let user = api
        .catalog
        .create_user(&username, role, &password, &caller.username)
        .await?;
    let body = json!({
        "message": format!("User '{}' created successfully", user.username),
        "username": user.username,
        "role": user.role,
        "created_at": user.created_at,
    });
    Ok((StatusCode::CREATED, Json(body)))
}

/// Limit and offset of a list.
pub(crate) fn read_page(mut query: Query) -> Result<(i64, i64)> {
    let limit = query.integer("limit", 1..=AUDIT_MAX, AUDIT_DEFAULT);
    let offset = query.integer("offset", 0..=i64::from(i32::MAX), 0);
    query.finish()?;
    Ok((limit, offset))
}

/// A user as it is asked for.
pub(crate) fn read(mut fields: Fields) -> Result<(String, SecretString, UserRole)> {
    let username = fields.required_text("username");
    if !username.is_empty()
        && let Err(why) = check_name("username", &username)
    {
        fields.sentence(why);
    }
    let password = new_password(&mut fields, "password");
    let role = fields
        .choice(
            "role",
            &[("admin", UserRole::Admin), ("viewer", UserRole::Viewer)],
        )
        .unwrap_or(UserRole::Viewer);
    fields.finish()?;
    Ok((username, password, role))
}
