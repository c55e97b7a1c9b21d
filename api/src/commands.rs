//! What was asked of a mirror and what came of it. Commands outlive their mirror.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bunny_catalog::Command;
use uuid::Uuid;

use crate::refusal::{Refusal, Result};
use crate::request::Path;
use crate::state::Api;

/// `GET /v1/mirrors/{name}/commands`, newest first; also of a mirror that is gone.
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Command>>> {
    let commands = api.catalog.list_commands(&name).await?;
    if commands.is_empty() {
        // Every mirror has at least the command that created it.
        api.catalog.get_mirror(&name).await?;
    }
    Ok(Json(commands))
}

/// `GET /v1/mirrors/{name}/commands/{id}`.
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<Command>> {
    let unknown = || Refusal::not_found(format!("mirror '{name}' has no command {id}"));
    let Ok(command_id) = Uuid::parse_str(&id) else {
        return Err(unknown());
    };
    let command = api.catalog.get_command(command_id).await?;
    if command.mirror_name != name {
        return Err(unknown());
    }
    Ok(Json(command))
}
