//! `POST /v1/mirrors/{name}/pause` and `/resume`: 202 and the command to watch.

use std::sync::Arc;

use axum::extract::State;
use bunny_catalog::{Desired, PauseScope, Status};

use super::shown::Command;
use super::{accepted, see};
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

/// `POST /v1/mirrors/{name}/pause` `{"scope": "apply" | "all"}`.
pub(crate) async fn pause(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let scope = read_pause(fields)?;
    let command_id = api
        .catalog
        .request_pause(&name, scope, &caller.username)
        .await?;
    let what = match scope {
        PauseScope::Apply => "being paused; capture goes on",
        PauseScope::All => "being paused, capture too: the source keeps WAL until it is resumed",
    };
    Ok(accepted(format!("Mirror '{name}' is {what}"), command_id))
}

/// `POST /v1/mirrors/{name}/resume`.
pub(crate) async fn resume(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    fields.finish()?;
    let seen = see(&api.catalog, api.catalog.get_mirror(&name).await?).await?;
    if seen.mirror.desired == Desired::Running && seen.status.status == Status::Failed {
        return Err(Refusal::conflict(format!(
            "mirror '{name}' is FAILED, not paused: {}; remove the cause, then POST /v1/mirrors/{name}/retry",
            seen.status
                .error_message
                .as_deref()
                .unwrap_or("no cause is known")
        )));
    }
    let status = seen.status.status.as_str();
    match api.catalog.request_resume(&name, &caller.username).await {
        Ok(command_id) => Ok(accepted(
            format!("Mirror '{name}' is being resumed"),
            command_id,
        )),
        Err(bunny_catalog::Error::Conflict { message }) => {
            Err(Refusal::conflict(format!("{message}; it is {status}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// What is to be stopped.
pub(crate) fn read_pause(mut fields: Fields) -> Result<PauseScope> {
    let scope = fields
        .choice(
            "scope",
            &[("apply", PauseScope::Apply), ("all", PauseScope::All)],
        )
        .unwrap_or_default();
    fields.finish()?;
    Ok(scope)
}
