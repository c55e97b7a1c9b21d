//! Commands: every control action as a durable row, kept after its mirror.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, Postgres, Row as _, Transaction};
use uuid::Uuid;

use crate::crash_points::{WISH_COMMITTED, WISH_WRITTEN, crash_point};
use crate::leases::Role;
use crate::logs::{self, LogLevel};
use crate::replay::WAKES;
use crate::tables::TABLES;
use crate::{Catalog, Error, Result};

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// Nobody has begun.
    Pending,
    /// At least one step is done.
    Running,
    /// All is done.
    Done,
    /// It ended without its effect.
    Failed,
}

impl CommandState {
    /// The text the catalog holds.
    pub fn as_str(self) -> &'static str {
        match self {
            CommandState::Pending => "pending",
            CommandState::Running => "running",
            CommandState::Done => "done",
            CommandState::Failed => "failed",
        }
    }

    /// Whether there is still something to do.
    pub fn is_open(self) -> bool {
        matches!(self, CommandState::Pending | CommandState::Running)
    }

    fn parse(text: &str) -> Result<CommandState> {
        match text {
            "pending" => Ok(CommandState::Pending),
            "running" => Ok(CommandState::Running),
            "done" => Ok(CommandState::Done),
            "failed" => Ok(CommandState::Failed),
            other => Err(Error::internal("reading a command's state", other)),
        }
    }
}

/// A control action.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Command {
    /// Its id.
    pub id: Uuid,
    /// The mirror it is about, which may be gone.
    pub mirror_id: Option<Uuid>,
    /// The name the mirror had.
    pub mirror_name: String,
    /// `create`, `delete`, `retry`, ...
    pub kind: String,
    /// An object; what depends on the kind.
    #[schemars(with = "Map<String, Value>")]
    pub args: Value,
    /// Where it stands.
    pub state: CommandState,
    /// The steps done, in order.
    pub steps: Vec<String>,
    /// What came of it, where that is more than the state says.
    pub outcome: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The user who asked.
    pub requested_by: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it last moved.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Of these the API writes a fuller entry into the mirror's log itself.
const LOGGED_BY_API: [&str; 2] = ["create", TABLES];

/// Inserts a command inside the transaction of what it asks for, and says so in the mirror's log.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    mirror_name: &str,
    kind: &str,
    args: &Value,
    requested_by: &str,
) -> Result<Uuid> {
    let id = Uuid::new_v4();
    sqlx::query(
        "INSERT INTO bunny.commands (id, mirror_id, mirror_name, kind, args, requested_by)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(mirror_id)
    .bind(mirror_name)
    .bind(kind)
    .bind(args)
    .bind(requested_by)
    .execute(&mut *connection)
    .await
    .map_err(|error| Error::database("recording a command", error))?;
    if !LOGGED_BY_API.contains(&kind) {
        let message = format!("{kind} was asked for by {requested_by}");
        let details = json!({ "command_id": id, "args": shown_args(args) });
        logs::insert(connection, mirror_id, LogLevel::Info, &message, details).await?;
    }
    Ok(id)
}

/// Ends the transaction of what was asked for, with its command in it.
pub(crate) async fn commit(transaction: Transaction<'_, Postgres>) -> sqlx::Result<()> {
    crash_point(WISH_WRITTEN);
    transaction.commit().await?;
    crash_point(WISH_COMMITTED);
    Ok(())
}

/// The arguments without what only workers need.
fn shown_args(args: &Value) -> Value {
    let mut shown = args.clone();
    if let Some(shown) = shown.as_object_mut() {
        shown.retain(|name, value| {
            !["awaited", "versions", WAKES].contains(&name.as_str()) && !value.is_null()
        });
    }
    shown
}

/// The commands of one mirror that are not finished, oldest first. A transaction asks on its own
/// connection: one that waits for a second connection while it holds a row keeps others from theirs.
pub(crate) async fn open(executor: impl PgExecutor<'_>, mirror_id: Uuid) -> Result<Vec<Command>> {
    let rows = sqlx::query(
        "SELECT * FROM bunny.commands
         WHERE mirror_id = $1 AND state IN ('pending', 'running') ORDER BY created_at, id",
    )
    .bind(mirror_id)
    .fetch_all(executor)
    .await
    .map_err(|error| Error::database("listing open commands", error))?;
    rows.iter().map(command_from).collect()
}

/// Ends a command well, inside the transaction of its last effect. Doing so twice is nothing.
pub(crate) async fn finish(connection: &mut PgConnection, command_id: Uuid) -> Result<()> {
    finish_with(connection, command_id, None).await
}

/// The same, with what came of it.
pub(crate) async fn finish_with(
    connection: &mut PgConnection,
    command_id: Uuid,
    outcome: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.commands
         SET state = 'done', outcome = coalesce($2, outcome),
             updated_at = clock_timestamp(), finished_at = clock_timestamp()
         WHERE id = $1 AND state IN ('pending', 'running')",
    )
    .bind(command_id)
    .bind(outcome)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("finishing a command", error))
}

impl Catalog {
    /// Records that a step of a command is done. Doing so twice is nothing.
    pub async fn mark_step(&self, command_id: Uuid, step: &str) -> Result<()> {
        sqlx::query(
            "UPDATE bunny.commands
             SET steps = CASE WHEN steps ? $2 THEN steps ELSE steps || to_jsonb($2::text) END,
                 state = 'running', updated_at = clock_timestamp()
             WHERE id = $1 AND state IN ('pending', 'running')",
        )
        .bind(command_id)
        .bind(step)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("recording a step of a command", error))
    }

    /// Records a step of a command that gave something up, and tells what in the outcome.
    /// Doing so twice is nothing.
    pub async fn leave_behind(&self, command_id: Uuid, step: &str, what: &str) -> Result<()> {
        sqlx::query(
            "UPDATE bunny.commands
             SET steps = steps || to_jsonb($2::text), outcome = concat_ws('; ', outcome, $3),
                 state = 'running', updated_at = clock_timestamp()
             WHERE id = $1 AND state IN ('pending', 'running') AND NOT steps ? $2",
        )
        .bind(command_id)
        .bind(step)
        .bind(what)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("recording what a command left behind", error))
    }

    /// Ends a command well. Doing so twice is nothing.
    pub async fn finish_command(&self, command_id: Uuid) -> Result<()> {
        let mut connection = self
            .pool()
            .acquire()
            .await
            .map_err(|error| Error::database("finishing a command", error))?;
        finish(&mut connection, command_id).await
    }

    /// Ends a command that will not have its effect.
    pub async fn fail_command(&self, command_id: Uuid, why: &str) -> Result<()> {
        sqlx::query(
            "UPDATE bunny.commands
             SET state = 'failed', error = $2,
                 updated_at = clock_timestamp(), finished_at = clock_timestamp()
             WHERE id = $1 AND state IN ('pending', 'running')",
        )
        .bind(command_id)
        .bind(why)
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("failing a command", error))
    }

    /// Records that a role has started a mirror anew at `version`
    /// ([`crate::Mirror::version_of`]), and so has done its part of every `retry` that
    /// asked for that or an older version. The command ends when every role it concerns
    /// has.
    pub(crate) async fn note_restarted(
        &self,
        mirror_id: Uuid,
        role: Role,
        version: i64,
    ) -> Result<()> {
        sqlx::query(
            // Counted in the row that is updated: both roles may start at once, and what a
            // subquery saw before it waited for the other's step would leave the command open.
            "UPDATE bunny.commands
             SET steps = steps || to_jsonb($2::text),
                 state = CASE WHEN jsonb_array_length(steps) + 1
                           >= (SELECT count(*) FROM jsonb_object_keys(args -> 'versions'))
                         THEN 'done' ELSE 'running' END,
                 updated_at = clock_timestamp(),
                 finished_at = CASE WHEN jsonb_array_length(steps) + 1
                                 >= (SELECT count(*) FROM jsonb_object_keys(args -> 'versions'))
                               THEN clock_timestamp() END
             WHERE mirror_id = $1 AND kind = 'retry' AND state IN ('pending', 'running')
               AND (args -> 'versions' ->> $4)::bigint <= $3 AND NOT steps ? $2",
        )
        .bind(mirror_id)
        .bind(format!("{role} started again"))
        .bind(version)
        .bind(role.as_str())
        .execute(self.pool())
        .await
        .map(|_| ())
        .map_err(|error| Error::database("recording a retry", error))
    }

    /// The newest 500 commands of all mirrors that ever had this name.
    pub async fn list_commands(&self, mirror_name: &str) -> Result<Vec<Command>> {
        let rows = sqlx::query(
            "SELECT * FROM bunny.commands WHERE mirror_name = $1
             ORDER BY created_at DESC, id LIMIT 500",
        )
        .bind(mirror_name)
        .fetch_all(self.pool())
        .await
        .map_err(|error| Error::database("listing commands", error))?;
        rows.iter().map(command_from).collect()
    }

    /// The commands of one mirror that are not finished, oldest first.
    pub async fn open_commands(&self, mirror_id: Uuid) -> Result<Vec<Command>> {
        open(self.pool(), mirror_id).await
    }

    /// The oldest unfinished command of a kind.
    pub async fn open_command(&self, mirror_id: Uuid, kind: &str) -> Result<Option<Command>> {
        let commands = self.open_commands(mirror_id).await?;
        Ok(commands.into_iter().find(|command| command.kind == kind))
    }

    /// The newest command of a kind, finished or not.
    pub async fn last_command(&self, mirror_id: Uuid, kind: &str) -> Result<Option<Command>> {
        let row = sqlx::query(
            "SELECT * FROM bunny.commands WHERE mirror_id = $1 AND kind = $2
             ORDER BY created_at DESC, id LIMIT 1",
        )
        .bind(mirror_id)
        .bind(kind)
        .fetch_optional(self.pool())
        .await
        .map_err(|error| Error::database("reading a command", error))?;
        row.as_ref().map(command_from).transpose()
    }

    /// Every source table that was ever taken out of a mirror, as [`bunny_postgres::TableName`]
    /// writes it; it may have come back since.
    pub async fn tables_taken_out(&self, mirror_id: Uuid) -> Result<BTreeSet<String>> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT removed.name
             FROM bunny.commands, jsonb_array_elements_text(args -> 'removed') AS removed (name)
             WHERE mirror_id = $1 AND kind = 'tables'",
        )
        .bind(mirror_id)
        .fetch_all(self.pool())
        .await
        .map_err(|error| Error::database("looking for tables taken out of a mirror", error))?;
        Ok(names.into_iter().collect())
    }

    /// One command. [`Error::NotFound`] if there is none.
    pub async fn get_command(&self, command_id: Uuid) -> Result<Command> {
        let row = sqlx::query("SELECT * FROM bunny.commands WHERE id = $1")
            .bind(command_id)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| Error::database("reading a command", error))?
            .ok_or_else(|| Error::not_found("command", command_id))?;
        command_from(&row)
    }
}

fn command_from(row: &PgRow) -> Result<Command> {
    let read = |error| Error::database("reading a command", error);
    let state: String = row.try_get("state").map_err(read)?;
    let steps: sqlx::types::Json<Vec<String>> = row.try_get("steps").map_err(read)?;
    Ok(Command {
        id: row.try_get("id").map_err(read)?,
        mirror_id: row.try_get("mirror_id").map_err(read)?,
        mirror_name: row.try_get("mirror_name").map_err(read)?,
        kind: row.try_get("kind").map_err(read)?,
        args: row.try_get("args").map_err(read)?,
        state: CommandState::parse(&state)?,
        steps: steps.0,
        outcome: row.try_get("outcome").map_err(read)?,
        error: row.try_get("error").map_err(read)?,
        requested_by: row.try_get("requested_by").map_err(read)?,
        created_at: row.try_get("created_at").map_err(read)?,
        updated_at: row.try_get("updated_at").map_err(read)?,
        finished_at: row.try_get("finished_at").map_err(read)?,
    })
}
