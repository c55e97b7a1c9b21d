//! Users: listed, created, deleted; and who did what to users and peers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::{AuditEntry, User, UserRole, check_name};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::answer::{Created, Message, Under};
use crate::auth::Caller;
use crate::auth::passwords::CREDENTIAL_BYTES_MAX;
use crate::refusal::Result;
use crate::request::{Body, Fields, Path, Query};
use crate::state::Api;

/// Shortest password for a user (NIST SP 800-63B §5.1.1.2: eight characters).
const PASSWORD_CHARS_MIN: usize = 8;
const AUDIT_DEFAULT: i64 = 100;
const AUDIT_MAX: i64 = 500;

/// A user.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "User")]
pub(crate) struct Shown {
    username: String,
    role: UserRole,
    created_at: DateTime<Utc>,
}

impl From<User> for Shown {
    fn from(user: User) -> Self {
        Self {
            username: user.username,
            role: user.role,
            created_at: user.created_at,
        }
    }
}

/// A user who was created.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CreatedUser")]
pub(crate) struct Made {
    message: String,
    #[serde(flatten)]
    user: Shown,
}

/// Part of the record of who changed users and peers, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditPage")]
pub(crate) struct Audit {
    audit: Vec<AuditEntry>,
    /// Entries there are.
    total: i64,
    offset: i64,
    limit: i64,
}

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
pub(crate) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<Shown>>> {
    let users = api.catalog.list_users().await?;
    Ok(Json(users.into_iter().map(Shown::from).collect()))
}

/// `DELETE /v1/users/{username}`: the user's tokens are void at once.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Path(username): Path<String>,
    caller: Caller,
) -> Result<Json<Message>> {
    api.catalog.delete_user(&username, &caller.username).await?;
    let message = format!("User '{username}' deleted successfully");
    Ok(Json(Message { message }))
}

/// `GET /v1/audit?limit&offset`: who changed users and peers, newest first.
pub(crate) async fn audit(State(api): State<Arc<Api>>, query: Query) -> Result<Json<Audit>> {
    let (limit, offset) = read_page(query)?;
    let (audit, total) = api.catalog.list_audit(limit, offset).await?;
    Ok(Json(Audit {
        audit,
        total,
        offset,
        limit,
    }))
}

/// `POST /v1/users` `{username, password, role}`.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Created<Made>> {
    let (username, password, role) = read(fields)?;
    let user = api
        .catalog
        .create_user(&username, role, &password, &caller.username)
        .await?;
    Ok(Under(Made {
        message: format!("User '{}' created successfully", user.username),
        user: user.into(),
    }))
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
