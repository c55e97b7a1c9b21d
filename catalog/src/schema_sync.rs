//! `sync-schema`: the destination is brought to the source's present schema.
//!
//! Three steps, each of which may be done twice. Apply holds before it follows the stream
//! ([`HELD`]); then capture reads the definitions of the source's tables and hands them
//! over with the position they are true at ([`SourceDefinitions`]); then apply follows the
//! stream up to that position and brings its tables in line. Because apply holds before
//! the position is chosen, it can never have passed it. Either side ends the command when it
//! cannot go on: nobody waits for ever.

use bunny_postgres::Lsn;
use serde_json::{Value, json};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::commands::{self, Command, CommandState};
use crate::mirrors::{Desired, SchemaChanges, notify, refuse_attached};
use crate::tables::{RESYNC, TABLES};
use crate::{Catalog, Error, Result};

/// The command of a schema sync.
pub const SYNC_SCHEMA: &str = "sync_schema";
/// Its step: apply stands still until the definitions are there.
pub const HELD: &str = "apply holds";
/// Its step: the definitions are there.
pub const READ: &str = "definitions read";

/// Definitions of a mirror's source tables, true at one position of its stream.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceDefinitions {
    /// In which the positions count.
    pub generation: Uuid,
    /// What committed before is in the definitions, nothing else is.
    pub lsn: Lsn,
    /// Commit LSN and number of the last event in the change topic at a moment when everything
    /// that committed before `lsn` was in it.
    pub published: (Lsn, u64),
    /// The tables, as the event contract's crate describes them.
    pub tables: Value,
}

/// The `schema_changes` that a schema sync works with: what it was asked with, or the
/// mirror's. `manual` means that nothing is done unasked, and this was asked for: it counts
/// as `additive`.
pub fn sync_mode(command: &Command, configured: SchemaChanges) -> SchemaChanges {
    let asked = command.args.get("schema_changes").cloned();
    let asked = asked.and_then(|asked| serde_json::from_value(asked).ok());
    match asked.unwrap_or(configured) {
        SchemaChanges::Manual => SchemaChanges::Additive,
        mode => mode,
    }
}

/// The conflict with a command that is not about tables one can name.
pub(crate) fn under_way(mirror: &str, open: &Command) -> Error {
    Error::conflict(format!(
        "mirror \"{mirror}\": the command {} {} is under way: wait for it to end",
        open.kind, open.id
    ))
}

impl Catalog {
    /// Asks for a schema sync, with another `schema_changes` than the mirror's if `mode` says
    /// so; returns the command. Asked again while the same is under way, the same command.
    /// [`Error::Conflict`] while the mirror is not to run, or other things are done to it.
    pub async fn request_sync_schema(
        &self,
        name: &str,
        mode: Option<SchemaChanges>,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("asking for a schema sync", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_mirror(&mut transaction, name).await?;
        let what = "a schema sync of it is not available in this version; resync a table to have it as it is at the source";
        refuse_attached(&mirror, what)?;
        if mirror.desired != Desired::Running {
            let why = match mirror.desired {
                Desired::Deleted => "TERMINATING: it is being deleted",
                _ => "PAUSED; resume it first",
            };
            return Err(Error::conflict(format!("mirror \"{name}\" is {why}")));
        }
        let args = json!({ "schema_changes": mode });
        for open in commands::open(&mut *transaction, mirror.id).await? {
            if open.kind == SYNC_SCHEMA && open.args["schema_changes"] == args["schema_changes"] {
                return Ok(open.id);
            }
            if [SYNC_SCHEMA, RESYNC, TABLES, "replay"].contains(&&*open.kind) {
                return Err(under_way(name, &open));
            }
        }
        let by = requested_by;
        let command_id =
            commands::insert(&mut transaction, mirror.id, name, SYNC_SCHEMA, &args, by).await?;
        // Apply begins anew and finds the command before it follows the stream.
        sqlx::query(
            "UPDATE bunny.mirrors SET apply_version = apply_version + 1, updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(mirror.id)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    /// Hands the definitions of an open command over. False if it has ended meanwhile; what was
    /// handed over before stays.
    pub async fn hand_over_definitions(
        &self,
        command_id: Uuid,
        definitions: &SourceDefinitions,
    ) -> Result<bool> {
        let failed = |error| Error::database("handing definitions over", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        if !is_open(&mut transaction, command_id).await? {
            return Ok(false);
        }
        // Those of commands that failed before apply could take them away.
        sqlx::query(
            "DELETE FROM bunny.source_definitions d USING bunny.commands c
             WHERE c.id = d.command_id AND c.state NOT IN ('pending', 'running')",
        )
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        let (published_lsn, published_seq) = definitions.published;
        sqlx::query(
            "INSERT INTO bunny.source_definitions (command_id, generation, lsn, published_lsn, published_seq, tables)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (command_id) DO NOTHING",
        )
        .bind(command_id)
        .bind(definitions.generation)
        .bind(definitions.lsn.to_string())
        .bind(published_lsn.to_string())
        .bind(i64::try_from(published_seq).unwrap_or(i64::MAX))
        .bind(&definitions.tables)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.commands SET steps = CASE WHEN steps ? $2 THEN steps ELSE steps || to_jsonb($2::text) END,
                 state = 'running', updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(command_id)
        .bind(READ)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// The definitions handed over for a command, if they are there.
    pub async fn source_definitions(&self, command_id: Uuid) -> Result<Option<SourceDefinitions>> {
        let read = |error| Error::database("reading definitions", error);
        let row = sqlx::query("SELECT * FROM bunny.source_definitions WHERE command_id = $1")
            .bind(command_id)
            .fetch_optional(self.pool())
            .await
            .map_err(read)?;
        let Some(row) = row else {
            return Ok(None);
        };
        let lsn = |column: &str| -> Result<Lsn> {
            let text: String = row.try_get(column).map_err(read)?;
            text.parse()
                .map_err(|error| Error::internal("reading a position", error))
        };
        let seq: i64 = row.try_get("published_seq").map_err(read)?;
        Ok(Some(SourceDefinitions {
            generation: row.try_get("generation").map_err(read)?,
            lsn: lsn("lsn")?,
            published: (
                lsn("published_lsn")?,
                u64::try_from(seq).unwrap_or_default(),
            ),
            tables: row.try_get("tables").map_err(read)?,
        }))
    }

    /// Ends a command for which no definitions came. False, and nothing, if they are there.
    pub async fn give_up_definitions(&self, command_id: Uuid, why: &str) -> Result<bool> {
        let failed = |error| Error::database("giving a schema sync up", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        if !is_open(&mut transaction, command_id).await? {
            return Ok(true);
        }
        let found: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM bunny.source_definitions WHERE command_id = $1)",
        )
        .bind(command_id)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
        if found {
            return Ok(false);
        }
        sqlx::query(
            "UPDATE bunny.commands SET state = 'failed', error = $2, updated_at = clock_timestamp(),
                 finished_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(command_id)
        .bind(why)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// Ends a schema sync with what came of it: a text for people, and `report` in the
    /// command's `args` for programs. Doing so twice is nothing.
    pub async fn finish_sync_schema(
        &self,
        command_id: Uuid,
        outcome: &str,
        report: &Value,
    ) -> Result<()> {
        let failed = |error| Error::database("finishing a schema sync", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        sqlx::query(
            "UPDATE bunny.commands SET outcome = $2, args = args || jsonb_build_object('report', $3::jsonb)
             WHERE id = $1 AND state IN ('pending', 'running')",
        )
        .bind(command_id)
        .bind(outcome)
        .bind(report)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        commands::finish(&mut transaction, command_id).await?;
        sqlx::query("DELETE FROM bunny.source_definitions WHERE command_id = $1")
            .bind(command_id)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }
}

/// Whether a command is open; it is locked until the transaction ends.
async fn is_open(connection: &mut PgConnection, command_id: Uuid) -> Result<bool> {
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM bunny.commands WHERE id = $1 FOR UPDATE")
            .bind(command_id)
            .fetch_optional(connection)
            .await
            .map_err(|error| Error::database("looking at a command", error))?;
    let open = [CommandState::Pending, CommandState::Running];
    Ok(state.is_some_and(|state| open.iter().any(|open| open.as_str() == state)))
}
