//! `POST /v1/mirrors/{name}/sync-schema`: 202 and the command to watch.

use std::sync::Arc;

use axum::extract::State;
use bunny_catalog::{SchemaChanges, Status};

use super::shown::Command;
use super::{accepted, see, when};
use crate::answer::Accepted;
use crate::auth::Caller;
use crate::refusal::{Refusal, Result};
use crate::request::{Body, Fields, Path};
use crate::state::Api;

/// Brings the destination to the source's present schema, `{"schema_changes"?}`.
pub(crate) async fn sync_schema(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Accepted<Command>> {
    let mode = read_sync_schema(fields)?;
    let seen = see(&api.catalog, api.catalog.get_mirror(&name).await?).await?;
    match seen.status.status {
        Status::Setup | Status::Snapshot => {
            return Err(Refusal::conflict(format!(
                "mirror '{name}' is {}: its tables are made as they are at the source; ask when it is RUNNING",
                seen.status.status.as_str()
            )));
        }
        Status::Failed => {
            return Err(Refusal::conflict(format!(
                "mirror '{name}' is FAILED: {}; remove the cause, POST /v1/mirrors/{name}/retry, then ask again",
                seen.status
                    .error_message
                    .as_deref()
                    .unwrap_or("no cause is known")
            )));
        }
        _ => {}
    }
    let command_id = api
        .catalog
        .request_sync_schema(&name, mode, &caller.username)
        .await?;
    let (is, when) = when(&seen.mirror, "is being", "will be");
    Ok(accepted(
        format!("Mirror '{name}' {is} brought to the source's present schema{when}"),
        command_id,
    ))
}

/// What may be done, if it is not the mirror's `schema_changes` that says so.
pub(crate) fn read_sync_schema(mut fields: Fields) -> Result<Option<SchemaChanges>> {
    let mode = fields.choice(
        "schema_changes",
        &[
            ("additive", SchemaChanges::Additive),
            ("all", SchemaChanges::All),
        ],
    );
    fields.finish()?;
    Ok(mode)
}
