//! `adopt`: the catalog takes over what the log and the destination hold of a mirror.
//!
//! It is asked for where the catalog is older than they are, and where a mirror is created that
//! an earlier catalog had. Each owner of a truth is read by its role: capture tells which
//! generation the log is of, then apply tells which copies the destination holds. Until both
//! have, neither acts; then the catalog takes all of it over in one transaction.

use bunny_postgres::TableName;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::mirrors::{self, notify};
use crate::replay::REPLAY;
use crate::tables::{RESYNC, TABLES, replace_open};
use crate::{Catalog, Command, Error, Result, commands, last_wish};

/// The command's kind.
pub const ADOPT: &str = "adopt";

/// Capture has read the log.
const LOG_READ: &str = "log_read";

/// What the log says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundLog {
    /// The generation it is of.
    pub generation: Uuid,
    /// The last wish it remembers.
    pub wish: Option<Uuid>,
}

/// What a table of the mirror is to ask for, so that it is what stands at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedTable {
    /// The table at the source.
    pub source: TableName,
    /// The sync that the destination holds; another one where it holds none that counts.
    pub request_id: Option<Uuid>,
    /// The last retry that was carried out there.
    pub retry_id: Option<Uuid>,
}

impl FoundLog {
    /// As capture has left it in the command; `None` until it has.
    pub fn of(command: &Command) -> Option<FoundLog> {
        let uuid = |name: &str| {
            let text = command.args[name].as_str()?;
            Uuid::try_parse(text).ok()
        };
        Some(FoundLog {
            generation: uuid("generation")?,
            wish: uuid("log_wish"),
        })
    }
}

impl Catalog {
    /// Asks for `adopt`; asked again while it is open, the same command, which workers try again. What was asked for
    /// before comes to nothing. [`Error::Conflict`] if this catalog knows all that was asked for.
    pub async fn request_adopt(&self, name: &str, requested_by: &str) -> Result<Uuid> {
        let failed = |error| Error::database("adopting a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        if let Some(owner) = &mirror.owner {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is fed by mirror \"{}\", whose log is not its own to adopt; delete it and attach it anew",
                owner.name
            )));
        }
        let open = commands::open(&mut *transaction, mirror.id).await?;
        if let Some(open) = open.into_iter().find(|open| open.kind == ADOPT) {
            mirrors::raise_version(&mut transaction, mirror.id).await?;
            notify(&mut transaction).await?;
            transaction.commit().await.map_err(failed)?;
            return Ok(open.id);
        }
        if !last_wish::has_unknown(&mut transaction, mirror.id).await? {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" has nothing to adopt: this catalog knows all that its log and its destination were told"
            )));
        }
        let command_id = insert(&mut transaction, mirror.id, name, requested_by).await?;
        for kind in [TABLES, RESYNC, REPLAY] {
            let by = "what the log and the destination hold";
            replace_open(&mut transaction, mirror.id, kind, by).await?;
        }
        mirrors::raise_version(&mut transaction, mirror.id).await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    /// Capture tells what the log is of.
    pub async fn adopt_log(&self, command_id: Uuid, found: FoundLog) -> Result<()> {
        let args = json!({ "generation": found.generation, "log_wish": found.wish });
        sqlx::query("UPDATE bunny.commands SET args = args || $2 WHERE id = $1")
            .bind(command_id)
            .bind(args)
            .execute(self.pool())
            .await
            .map_err(|error| Error::database("adopting a log", error))?;
        self.mark_step(command_id, LOG_READ).await
    }

    /// Takes over what was found, and ends the command; both roles begin anew. `outcome` says
    /// what the user should know of it. Nothing happens if the command has ended meanwhile.
    pub async fn finish_adopt(
        &self,
        mirror_id: Uuid,
        command: &Command,
        log: FoundLog,
        tables: &[AdoptedTable],
        wishes: &[Uuid],
        outcome: Option<&str>,
    ) -> Result<()> {
        let failed = |error| Error::database("adopting a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self
            .lock_living(&mut transaction, &command.mirror_name)
            .await?;
        let ended = sqlx::query(
            "UPDATE bunny.commands SET state = 'done', outcome = $3, updated_at = clock_timestamp(),
                 finished_at = clock_timestamp()
             WHERE id = $1 AND mirror_id = $2 AND state IN ('pending', 'running')",
        )
        .bind(command.id)
        .bind(mirror_id)
        .bind(outcome)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if ended.rows_affected() == 0 || mirror.id != mirror_id {
            return Ok(());
        }
        sqlx::query(
            "UPDATE bunny.mirrors SET generation = $2, generation_ready = true WHERE id = $1",
        )
        .bind(mirror_id)
        .bind(log.generation)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        for table in tables {
            take_over(&mut transaction, mirror_id, table).await?;
        }
        claim_names(&mut transaction, mirror_id).await?;
        last_wish::pass_over_noted(&mut transaction, mirror_id, command.id).await?;
        last_wish::pass_over(&mut transaction, mirror_id, wishes, command.id).await?;
        mirrors::raise_version(&mut transaction, mirror_id).await?;
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }
}

/// Inside the transaction of what it is about.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    name: &str,
    requested_by: &str,
) -> Result<Uuid> {
    let args = Value::Object(serde_json::Map::new());
    commands::insert(connection, mirror_id, name, ADOPT, &args, requested_by).await
}

/// Copies of before the present one are not asked for: what their mapping was is not known.
async fn take_over(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    table: &AdoptedTable,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirror_tables
         SET request_id = $4, since_request = $4, retry_id = $5, beside = false, replay = NULL
         WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
    )
    .bind(mirror_id)
    .bind(&table.source.schema)
    .bind(&table.source.name)
    .bind(table.request_id)
    .bind(table.retry_id)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("adopting a table", error))
}

/// Slot and publications are the mirror's own from now on, as if it had made them: the step of
/// its `create` command says so, and that ends.
async fn claim_names(connection: &mut PgConnection, mirror_id: Uuid) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.commands
         SET steps = CASE WHEN steps ? $2 THEN steps ELSE steps || to_jsonb($2::text) END,
             state = 'done', updated_at = clock_timestamp(),
             finished_at = coalesce(finished_at, clock_timestamp())
         WHERE mirror_id = $1 AND kind = 'create'",
    )
    .bind(mirror_id)
    .bind(mirrors::NAMES_CLAIMED)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("claiming the names of a mirror", error))
}
