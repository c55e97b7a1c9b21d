//! `POST /v1/mirrors/{name}/adopt`, and `"adopt": true` of a mirror that is created: the catalog
//! is older than what log and destination hold, or has never known of it, and takes it over.

use std::sync::Arc;

use axum::extract::State;
use bunny_catalog::Peer;
use uuid::Uuid;

use super::accepted;
use super::shown::Command;
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::mirror_validation::facts;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Path};
use crate::state::Api;

pub(crate) async fn adopt(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    fields.finish()?;
    let command_id = api.catalog.request_adopt(&name, &caller.username).await?;
    let message = format!("Mirror '{name}' goes on from what its log and its destination hold");
    Ok(accepted(message, command_id))
}

/// Under which id the destination knows a mirror of that name.
///
/// # Errors
/// 422 when it knows none, or more than one, or cannot be asked.
pub(super) async fn mirror_of(destination: &Peer, name: &str) -> Result<Uuid> {
    let peer = &destination.name;
    let mirrors = known_at(destination, name).await.map_err(|error| {
        Refusal::unprocessable(format!(
            "destination peer '{peer}' cannot be asked for mirrors: {error}"
        ))
    })?;
    match mirrors[..] {
        [mirror] => Ok(mirror),
        [] => Err(Refusal::unprocessable(format!(
            "there is nothing to adopt: destination peer '{peer}' knows no mirror '{name}' (its names stand in _bunny.owner)"
        ))),
        _ => Err(Refusal::unprocessable(format!(
            "destination peer '{peer}' knows {} mirrors '{name}': delete from _bunny.owner those that are gone",
            mirrors.len()
        ))),
    }
}

async fn known_at(destination: &Peer, name: &str) -> bunny_postgres::Result<Vec<Uuid>> {
    let session = facts::open(destination).await?;
    if session
        .query_one("SELECT to_regclass('_bunny.owner') IS NULL", &[])
        .await?
        .get(0)
    {
        return Ok(Vec::new());
    }
    let rows = session
        .query(
            "SELECT mirror_id FROM _bunny.owner WHERE mirror_name = $1 ORDER BY 1",
            &[&name],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
