//! Users. Creating one is all that the catalog offers so far.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bunny_catalog::{UserRole, check_name};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::auth::passwords::CREDENTIAL_BYTES_MAX;
use crate::refusal::Result;
use crate::request::Body;
use crate::service::Api;

/// Shortest password for a user (NIST SP 800-63B §5.1.1.2: eight characters).
const PASSWORD_CHARS_MIN: usize = 8;

/// `POST /v1/users` `{username, password, role}`.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Body(mut fields): Body,
) -> Result<(StatusCode, Json<Value>)> {
    let username = fields.required_text("username");
    if !username.is_empty()
        && let Err(why) = check_name("username", &username)
    {
        fields.sentence(why);
    }
    let password = fields.required_secret("password");
    let chars = password.expose_secret().chars().count();
    if !fields.faulty("password") && !(PASSWORD_CHARS_MIN..=CREDENTIAL_BYTES_MAX).contains(&chars) {
        fields.problem(
            "password",
            format!("must be {PASSWORD_CHARS_MIN} to {CREDENTIAL_BYTES_MAX} characters"),
        );
    }
    let role = fields
        .choice(
            "role",
            &[("admin", UserRole::Admin), ("viewer", UserRole::Viewer)],
        )
        .unwrap_or(UserRole::Viewer);
    fields.finish()?;
    let user = api.catalog.create_user(&username, role, &password).await?;
    let body = json!({
        "message": format!("User '{}' created successfully", user.username),
        "username": user.username,
        "role": user.role,
        "created_at": user.created_at,
    });
    Ok((StatusCode::CREATED, Json(body)))
}
