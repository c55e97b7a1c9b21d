//! The schema `_bunny` at the destination: who owns a mirror there, how far it is
//! applied, and in which state each table is. It is the truth about these (the catalog
//! only caches it), because it commits together with the rows.
//!
//! Every destination transaction begins with [`fence`]. The functions take whatever can
//! run statements, a session or a transaction; those that must share the caller's
//! transaction say so.

use std::time::{Duration, SystemTime};

use bunny_catalog::Mirror;
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use chrono::{DateTime, Utc};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, GenericClient, Row, Statement};
use uuid::Uuid;

use crate::context::{application_name, application_name_prefix};
use crate::error::{Error, Result, owner_missing};

/// Serialises concurrent installations; any fixed number no one else uses.
const INSTALL_LOCK: i64 = 0x0062_756e_6e79;

/// How long a take-over waits for a frozen owner's row lock before it terminates again.
const TAKE_OVER_LOCK_TIMEOUT: Duration = Duration::from_secs(3);
const TAKE_OVER_ATTEMPTS_MAX: u32 = 5;

const INSTALL_SQL: &str = include_str!("bookkeeping.sql");

/// The number that says who may write: raised by one at each take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

/// How far a mirror is applied: everything up to and including `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub generation: Uuid,
    pub position: Position,
    /// The change-topic offset to read next.
    pub next_offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Wanted; no sync of this generation has begun.
    Pending,
    /// Chunks are being loaded.
    Syncing,
    /// Loaded; the stream has not reached the end of its sync yet.
    CatchingUp,
    Live,
    Parked,
    /// Set aside: `error` says why, `restart_offset` from where its changes are missing.
    Errored,
    Removing,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "PENDING",
            State::Syncing => "SYNCING",
            State::CatchingUp => "CATCHING_UP",
            State::Live => "LIVE",
            State::Parked => "PARKED",
            State::Errored => "ERRORED",
            State::Removing => "REMOVING",
        }
    }

    pub fn parse(text: &str) -> Option<State> {
        Some(match text {
            "PENDING" => State::Pending,
            "SYNCING" => State::Syncing,
            "CATCHING_UP" => State::CatchingUp,
            "LIVE" => State::Live,
            "PARKED" => State::Parked,
            "ERRORED" => State::Errored,
            "REMOVING" => State::Removing,
            _ => return None,
        })
    }
}

/// One row of `_bunny.tables`.
#[derive(Clone, Debug, PartialEq)]
pub struct TableState {
    pub source: TableName,
    pub destination: TableName,
    pub state: State,
    /// The sync this destination wants or holds; None when no initial snapshot was asked for.
    pub request_id: Option<Uuid>,
    pub attempt: i32,
    pub generation: Option<Uuid>,
    /// L: the table holds all before it, main applies what commits at or after it.
    pub lsn: Option<Lsn>,
    /// The table is LIVE when main's progress reaches this.
    pub live: Option<Position>,
    pub in_main: bool,
    /// While loading: the change-topic offset its changes begin at. When ERRORED: the
    /// first offset not applied. The log is kept from here on.
    pub restart_offset: Option<i64>,
    /// The source's table definition at L, as `TableDefinition` serialises.
    pub definition: Option<serde_json::Value>,
    /// The columns the sync carries.
    pub columns: Vec<String>,
    pub chunks_total: Option<i32>,
    pub rows_total: Option<i64>,
    pub rows_synced: i64,
    pub rows_inserted: i64,
    pub rows_updated: i64,
    pub rows_deleted: i64,
    pub error: Option<String>,
    pub last_synced_at: Option<DateTime<Utc>>,
}

impl TableState {
    /// A table as it first appears: wanted, nothing done.
    pub fn wanted(
        source: TableName,
        destination: TableName,
        request_id: Option<Uuid>,
    ) -> TableState {
        TableState {
            source,
            destination,
            state: State::Pending,
            request_id,
            attempt: 0,
            generation: None,
            lsn: None,
            live: None,
            in_main: false,
            restart_offset: None,
            definition: None,
            columns: Vec::new(),
            chunks_total: None,
            rows_total: None,
            rows_synced: 0,
            rows_inserted: 0,
            rows_updated: 0,
            rows_deleted: 0,
            error: None,
            last_synced_at: None,
        }
    }
}

/// Source rows of each kind applied to one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
}

/// Whether the schema is there: only then is there anything to forget.
pub async fn is_installed(session: &Session) -> Result<bool> {
    let present = session
        .query_one("SELECT to_regclass('_bunny.chunks') IS NOT NULL", &[])
        .await
        .map_err(Error::sql(
            "looking for the schema _bunny at the destination",
        ))?;
    Ok(present.get(0))
}

/// Creates the schema and its tables where missing. Safe to run concurrently.
pub async fn install(session: &Session) -> Result<()> {
    if is_installed(session).await? {
        return Ok(());
    }
    session
        .batch_execute(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({INSTALL_LOCK}); {INSTALL_SQL} COMMIT"
        ))
        .await
        .map_err(Error::sql(
            "creating the schema _bunny at the destination (its user needs CREATE on the database)",
        ))
}

/// Makes this session's worker the owner: terminates the former owner's sessions (a
/// frozen process keeps its locks), raises the epoch, renames the session after it.
pub async fn take_over(session: &Session, mirror: &Mirror) -> Result<Epoch> {
    session
        .execute(
            "INSERT INTO _bunny.owner (mirror_id, mirror_name, epoch) VALUES ($1, $2, 0)
             ON CONFLICT (mirror_id) DO NOTHING",
            &[&mirror.id, &mirror.name],
        )
        .await
        .map_err(Error::sql("creating the owner row"))?;

    let mut attempt = 0;
    let epoch = loop {
        attempt += 1;
        terminate_former(session, mirror.id, None).await?;
        match raise_epoch(session, mirror).await {
            Ok(epoch) => break epoch,
            Err(error) if error.is_transient() && attempt < TAKE_OVER_ATTEMPTS_MAX => {
                let _ = session.batch_execute("ROLLBACK").await;
                tracing::info!(mirror = %mirror.name, %error, "the owner row is still locked, trying again");
            }
            Err(error) => return Err(error),
        }
    };
    // Sessions the former owner opened between the two statements above.
    terminate_former(session, mirror.id, Some(epoch)).await?;
    let name = application_name(mirror.id, epoch);
    session
        .query("SELECT set_config('application_name', $1, false)", &[&name])
        .await
        .map_err(Error::sql("naming the session"))?;
    Ok(epoch)
}

async fn raise_epoch(session: &Session, mirror: &Mirror) -> Result<Epoch> {
    session
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = {}",
            TAKE_OVER_LOCK_TIMEOUT.as_millis()
        ))
        .await
        .map_err(Error::sql("beginning a take-over"))?;
    let row = session
        .query_one(
            "UPDATE _bunny.owner SET epoch = epoch + 1, mirror_name = $2 WHERE mirror_id = $1 RETURNING epoch",
            &[&mirror.id, &mirror.name],
        )
        .await
        .map_err(Error::sql("raising the owner epoch"))?;
    session
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing a take-over"))?;
    Ok(Epoch(row.get(0)))
}

/// Terminates the sessions of earlier epochs; without `below`, those of every epoch.
async fn terminate_former(session: &Session, mirror_id: Uuid, below: Option<Epoch>) -> Result<()> {
    let prefix = application_name_prefix(mirror_id);
    let below = below.map_or(i64::MAX, |epoch| epoch.0);
    let rows = session
        .query(
            "SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND datname = current_database() AND usename = current_user
               AND starts_with(application_name, $1)
               AND substr(application_name, length($1) + 1) ~ '^[0-9]{1,18}$'
               AND CASE WHEN substr(application_name, length($1) + 1) ~ '^[0-9]{1,18}$'
                        THEN substr(application_name, length($1) + 1)::bigint END < $2",
            &[&prefix, &below],
        )
        .await
        .map_err(Error::sql("terminating the former owner's sessions"))?;
    for row in rows {
        let (pid, name): (i32, String) = (row.get(0), row.get(1));
        tracing::info!(pid, session = %name, "terminated a former owner's session");
    }
    Ok(())
}

const FENCE_SQL: &str = "SELECT epoch FROM _bunny.owner WHERE mirror_id = $1 FOR SHARE";

const SET_PROGRESS_SQL: &str =
    "INSERT INTO _bunny.progress (mirror_id, generation, commit_lsn, seq, next_offset, updated_at)
     VALUES ($1, $2, $3, $4, $5, now())
     ON CONFLICT (mirror_id) DO UPDATE SET generation = excluded.generation,
         commit_lsn = excluded.commit_lsn, seq = excluded.seq,
         next_offset = excluded.next_offset, updated_at = excluded.updated_at";

const ADD_COUNTS_SQL: &str =
    "UPDATE _bunny.tables SET rows_inserted = rows_inserted + $4, rows_updated = rows_updated + $5,
         rows_deleted = rows_deleted + $6, last_synced_at = now(), updated_at = now()
     WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3";

const SET_LIVE_SQL: &str = "UPDATE _bunny.tables SET state = 'LIVE', updated_at = now()
     WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3 AND state = 'CATCHING_UP'";

/// The first statement of every destination transaction: we are still the owner, and
/// stay so until it ends (a take-over waits for the row lock).
pub async fn fence<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    epoch: Epoch,
) -> Result<()> {
    let row = client
        .query_opt(FENCE_SQL, &[&mirror_id])
        .await
        .map_err(Error::sql("checking the owner epoch"))?;
    check_fence(row, mirror_id, epoch)
}

/// None before the first progress of a mirror.
pub async fn progress<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<Option<Progress>> {
    let row = client
        .query_opt(
            "SELECT generation, commit_lsn, seq, next_offset FROM _bunny.progress WHERE mirror_id = $1",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading the progress row"))?;
    Ok(row.map(|row| Progress {
        generation: row.get(0),
        position: Position {
            commit_lsn: lsn_from(row.get(1)),
            seq: row.get::<_, i64>(2) as u64,
        },
        next_offset: row.get(3),
    }))
}

/// In the transaction whose rows it describes (I3).
pub async fn set_progress<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    progress: &Progress,
) -> Result<()> {
    client
        .execute(
            SET_PROGRESS_SQL,
            &[
                &mirror_id,
                &progress.generation,
                &lsn_to(progress.position.commit_lsn),
                &(progress.position.seq as i64),
                &progress.next_offset,
            ],
        )
        .await
        .map_err(Error::sql("writing the progress row"))?;
    Ok(())
}

const TABLE_COLUMNS: &str = "source_schema, source_table, dest_schema, dest_table, state, request_id, attempt, \
     generation, lsn, live_commit_lsn, live_seq, in_main, restart_offset, definition, columns, chunks_total, \
     rows_total, rows_synced, rows_inserted, rows_updated, rows_deleted, error, last_synced_at";

/// All tables of a mirror, by source name.
pub async fn tables<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
) -> Result<Vec<TableState>> {
    let rows = client
        .query(
            &format!(
                "SELECT {TABLE_COLUMNS} FROM _bunny.tables WHERE mirror_id = $1 ORDER BY 1, 2"
            ),
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading the table states"))?;
    rows.iter().map(table_from_row).collect()
}

pub async fn table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
) -> Result<Option<TableState>> {
    let row = client
        .query_opt(
            &format!(
                "SELECT {TABLE_COLUMNS} FROM _bunny.tables
                 WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3"
            ),
            &[&mirror_id, &source.schema, &source.name],
        )
        .await
        .map_err(Error::sql("reading a table state"))?;
    row.as_ref().map(table_from_row).transpose()
}

/// Writes the whole row, counters included; the caller owns the table at that moment.
pub async fn put_table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    table: &TableState,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO _bunny.tables (mirror_id, source_schema, source_table, dest_schema, dest_table, state,
                 request_id, attempt, generation, lsn, live_commit_lsn, live_seq, in_main, restart_offset,
                 definition, columns, chunks_total, rows_total, rows_synced, rows_inserted, rows_updated,
                 rows_deleted, error, last_synced_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                 $21, $22, $23, $24, now())
             ON CONFLICT (mirror_id, source_schema, source_table) DO UPDATE SET
                 dest_schema = excluded.dest_schema, dest_table = excluded.dest_table, state = excluded.state,
                 request_id = excluded.request_id, attempt = excluded.attempt, generation = excluded.generation,
                 lsn = excluded.lsn, live_commit_lsn = excluded.live_commit_lsn, live_seq = excluded.live_seq,
                 in_main = excluded.in_main, restart_offset = excluded.restart_offset,
                 definition = excluded.definition, columns = excluded.columns,
                 chunks_total = excluded.chunks_total, rows_total = excluded.rows_total,
                 rows_synced = excluded.rows_synced, rows_inserted = excluded.rows_inserted,
                 rows_updated = excluded.rows_updated, rows_deleted = excluded.rows_deleted,
                 error = excluded.error, last_synced_at = excluded.last_synced_at,
                 updated_at = excluded.updated_at",
            &[
                &mirror_id,
                &table.source.schema,
                &table.source.name,
                &table.destination.schema,
                &table.destination.name,
                &table.state.as_str(),
                &table.request_id,
                &table.attempt,
                &table.generation,
                &table.lsn.map(lsn_to),
                &table.live.map(|live| lsn_to(live.commit_lsn)),
                &table.live.map(|live| live.seq as i64),
                &table.in_main,
                &table.restart_offset,
                &table.definition,
                &table.columns,
                &table.chunks_total,
                &table.rows_total,
                &table.rows_synced,
                &table.rows_inserted,
                &table.rows_updated,
                &table.rows_deleted,
                &table.error,
                &table.last_synced_at.map(SystemTime::from),
            ],
        )
        .await
        .map_err(Error::sql(format!("writing the state of table {}", table.source)))?;
    Ok(())
}

/// Changes a table's state, and its error text, only.
pub async fn set_state<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    state: State,
    error: Option<&str>,
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET state = $4, error = $5, updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[
                &mirror_id,
                &source.schema,
                &source.name,
                &state.as_str(),
                &error,
            ],
        )
        .await
        .map_err(Error::sql(format!(
            "setting table {source} to {}",
            state.as_str()
        )))?;
    Ok(())
}

/// Sets a table aside: its changes from `restart_offset` on are not applied any more.
/// An earlier restart offset is kept.
pub async fn quarantine_table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    reason: &str,
    restart_offset: Option<i64>,
) -> Result<()> {
    let rows = client
        .execute(
            "UPDATE _bunny.tables SET state = 'ERRORED', in_main = false, error = $4,
                 restart_offset = CASE WHEN in_main OR restart_offset IS NULL THEN $5 ELSE restart_offset END,
                 updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[&mirror_id, &source.schema, &source.name, &reason, &restart_offset],
        )
        .await
        .map_err(Error::sql(format!("setting table {source} aside")))?;
    if rows == 0 {
        return Err(Error::Inconsistent(format!(
            "table {source} failed, but the destination has no state row for it: {reason}"
        )));
    }
    Ok(())
}

/// Every table leaves main: another generation begins. ERRORED tables stay so.
pub async fn leave_main<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET in_main = false, live_commit_lsn = NULL, live_seq = NULL,
                 state = CASE WHEN state = 'ERRORED' THEN state ELSE 'PENDING' END, updated_at = now()
             WHERE mirror_id = $1",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("taking the tables out of main"))?;
    Ok(())
}

pub async fn remove_table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
) -> Result<()> {
    for statement in [
        "DELETE FROM _bunny.chunks c USING _bunny.tables t WHERE t.mirror_id = $1 AND t.source_schema = $2
             AND t.source_table = $3 AND c.mirror_id = $1 AND c.request_id = t.request_id",
        "DELETE FROM _bunny.tables WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
    ] {
        client
            .execute(statement, &[&mirror_id, &source.schema, &source.name])
            .await
            .map_err(Error::sql(format!("removing table {source}")))?;
    }
    Ok(())
}

/// The chunks of a sync already loaded: chunk number and rows.
pub async fn loaded_chunks<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
    attempt: i32,
) -> Result<Vec<(i32, i64)>> {
    let rows = client
        .query(
            "SELECT chunk, rows FROM _bunny.chunks WHERE mirror_id = $1 AND request_id = $2 AND attempt = $3
             ORDER BY chunk",
            &[&mirror_id, &request_id, &attempt],
        )
        .await
        .map_err(Error::sql("reading the loaded chunks"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// In the transaction that loads the chunk. A chunk recorded twice is an error (23505).
pub async fn record_chunk<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
    attempt: i32,
    chunk: i32,
    rows: i64,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO _bunny.chunks (mirror_id, request_id, attempt, chunk, rows) VALUES ($1, $2, $3, $4, $5)",
            &[&mirror_id, &request_id, &attempt, &chunk, &rows],
        )
        .await
        .map_err(Error::sql(format!("recording chunk {chunk}")))?;
    Ok(())
}

/// Forgets all chunks of a request: of a sync that is void, or whose table is loaded.
pub async fn forget_chunks<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    request_id: Uuid,
) -> Result<()> {
    client
        .execute(
            "DELETE FROM _bunny.chunks WHERE mirror_id = $1 AND request_id = $2",
            &[&mirror_id, &request_id],
        )
        .await
        .map_err(Error::sql("forgetting the chunks of a sync"))?;
    Ok(())
}

/// Removes every trace of a mirror from `_bunny`, the owner row last; destination
/// tables are never touched.
pub async fn forget_mirror<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<()> {
    for table in ["chunks", "tables", "progress", "owner"] {
        client
            .execute(
                &format!("DELETE FROM _bunny.{table} WHERE mirror_id = $1"),
                &[&mirror_id],
            )
            .await
            .map_err(Error::sql(format!(
                "removing the mirror from _bunny.{table}"
            )))?;
    }
    Ok(())
}

/// The statements of every batch, prepared once per session, so that each costs one
/// message and several travel together.
pub struct Prepared {
    fence: Statement,
    progress: Statement,
    counts: Statement,
    live: Statement,
}

impl Prepared {
    pub async fn new(client: &Client) -> Result<Prepared> {
        let prepare = async |sql: &str| {
            client
                .prepare(sql)
                .await
                .map_err(Error::sql("preparing the statements of _bunny"))
        };
        Ok(Prepared {
            fence: prepare(FENCE_SQL).await?,
            progress: prepare(SET_PROGRESS_SQL).await?,
            counts: prepare(ADD_COUNTS_SQL).await?,
            live: prepare(SET_LIVE_SQL).await?,
        })
    }

    /// See [`fence`].
    pub async fn fence(&self, client: &Client, mirror_id: Uuid, epoch: Epoch) -> Result<()> {
        let row = client
            .query_opt(&self.fence, &[&mirror_id])
            .await
            .map_err(Error::sql("checking the owner epoch"))?;
        check_fence(row, mirror_id, epoch)
    }

    /// See [`set_progress`].
    pub async fn set_progress(
        &self,
        client: &Client,
        mirror_id: Uuid,
        progress: &Progress,
    ) -> Result<()> {
        client
            .execute(
                &self.progress,
                &[
                    &mirror_id,
                    &progress.generation,
                    &lsn_to(progress.position.commit_lsn),
                    &(progress.position.seq as i64),
                    &progress.next_offset,
                ],
            )
            .await
            .map_err(Error::sql("writing the progress row"))?;
        Ok(())
    }

    /// Adds to a table's counters, in the transaction that writes the rows.
    pub async fn add_counts(
        &self,
        client: &Client,
        mirror_id: Uuid,
        source: &TableName,
        counts: Counts,
    ) -> Result<()> {
        client
            .execute(
                &self.counts,
                &[
                    &mirror_id,
                    &source.schema,
                    &source.name,
                    &counts.inserted,
                    &counts.updated,
                    &counts.deleted,
                ],
            )
            .await
            .map_err(Error::sql(format!("counting the rows of table {source}")))?;
        Ok(())
    }

    /// A table that was catching up has caught up.
    pub async fn set_live(
        &self,
        client: &Client,
        mirror_id: Uuid,
        source: &TableName,
    ) -> Result<()> {
        client
            .execute(&self.live, &[&mirror_id, &source.schema, &source.name])
            .await
            .map_err(Error::sql(format!("setting table {source} to LIVE")))?;
        Ok(())
    }
}

fn check_fence(row: Option<Row>, mirror_id: Uuid, epoch: Epoch) -> Result<()> {
    let found: i64 = row.ok_or_else(|| owner_missing(mirror_id))?.get(0);
    if found != epoch.0 {
        return Err(Error::Fenced {
            ours: epoch.0,
            found,
        });
    }
    Ok(())
}

fn lsn_to(lsn: Lsn) -> PgLsn {
    PgLsn::from(lsn.0)
}

fn lsn_from(lsn: PgLsn) -> Lsn {
    Lsn(u64::from(lsn))
}

fn table_from_row(row: &Row) -> Result<TableState> {
    let state_text: String = row.get(4);
    let state = State::parse(&state_text).ok_or_else(|| {
        Error::Inconsistent(format!(
            "_bunny.tables holds the unknown state {state_text}: it was written by a newer version; run that version"
        ))
    })?;
    let live_commit_lsn: Option<PgLsn> = row.get(9);
    let live_seq: Option<i64> = row.get(10);
    Ok(TableState {
        source: TableName {
            schema: row.get(0),
            name: row.get(1),
        },
        destination: TableName {
            schema: row.get(2),
            name: row.get(3),
        },
        state,
        request_id: row.get(5),
        attempt: row.get(6),
        generation: row.get(7),
        lsn: row.get::<_, Option<PgLsn>>(8).map(lsn_from),
        live: live_commit_lsn.zip(live_seq).map(|(lsn, seq)| Position {
            commit_lsn: lsn_from(lsn),
            seq: seq as u64,
        }),
        in_main: row.get(11),
        restart_offset: row.get(12),
        definition: row.get(13),
        columns: row.get::<_, Option<Vec<String>>>(14).unwrap_or_default(),
        chunks_total: row.get(15),
        rows_total: row.get(16),
        rows_synced: row.get(17),
        rows_inserted: row.get(18),
        rows_updated: row.get(19),
        rows_deleted: row.get(20),
        error: row.get(21),
        last_synced_at: row.get::<_, Option<SystemTime>>(22).map(DateTime::from),
    })
}
