//! `_bunny.tables`: what each table of a mirror is, at this destination.

use std::time::SystemTime;

use bunny_postgres::{Lsn, TableName};
use bunny_schemas::Position;
use chrono::{DateTime, Utc};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use super::{lsn_from, lsn_to};
use crate::error::{Error, Result};

/// The API's document names them by [`bunny_catalog::TABLE_STATES`].
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
    /// Wanted beside its table no more, and to be dropped.
    Removing,
}

impl State {
    const ALL: [State; 7] = [
        State::Pending,
        State::Syncing,
        State::CatchingUp,
        State::Live,
        State::Parked,
        State::Errored,
        State::Removing,
    ];

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
        State::ALL.into_iter().find(|state| state.as_str() == text)
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
    /// The last request to bring the table back that was carried out here.
    pub retry_id: Option<Uuid>,
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
            retry_id: None,
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

const TABLE_COLUMNS: &str = "source_schema, source_table, dest_schema, dest_table, state, request_id, attempt, \
     generation, lsn, live_commit_lsn, live_seq, in_main, restart_offset, definition, columns, chunks_total, \
     rows_total, rows_synced, rows_inserted, rows_updated, rows_deleted, error, last_synced_at, retry_id";

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
                 rows_deleted, error, last_synced_at, retry_id, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                 $21, $22, $23, $24, $25, now())
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
                 retry_id = excluded.retry_id,
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
                &table.retry_id,
            ],
        )
        .await
        .map_err(Error::sql(format!("writing the state of table {}", table.source)))?;
    Ok(())
}

/// Whether the table held rows of others when its sync first began, to be kept.
pub async fn keeps_rows<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
) -> Result<bool> {
    let row = client
        .query_opt(
            "SELECT keeps_rows FROM _bunny.tables
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[&mirror_id, &source.schema, &source.name],
        )
        .await
        .map_err(Error::sql(format!("reading the state of table {source}")))?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Stores what [`keeps_rows`] answers; the table's row is there.
pub async fn set_keeps_rows<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    keeps_rows: bool,
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET keeps_rows = $4
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
            &[&mirror_id, &source.schema, &source.name, &keeps_rows],
        )
        .await
        .map_err(Error::sql(format!("writing the state of table {source}")))?;
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
/// An earlier restart offset is kept. One that leaves main without one lacks what main has
/// not committed: without any it could never come back from the log.
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
                 restart_offset = CASE
                     WHEN in_main THEN coalesce($5, (SELECT next_offset FROM _bunny.progress WHERE mirror_id = $1))
                     WHEN restart_offset IS NULL THEN $5 ELSE restart_offset END,
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

/// Takes a table out because somebody keeps it locked. From the catch-up reader it goes with
/// the offset it has; out of main, with that of main.
pub async fn park_table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
    reason: &str,
    restart_offset: Option<i64>,
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET state = 'PARKED', in_main = false, error = $4,
                 restart_offset = CASE
                     WHEN in_main THEN coalesce($5, (SELECT next_offset FROM _bunny.progress WHERE mirror_id = $1))
                     WHEN restart_offset IS NULL THEN $5 ELSE restart_offset END,
                 updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3
               AND (in_main OR state = 'CATCHING_UP')",
            &[&mirror_id, &source.schema, &source.name, &reason, &restart_offset],
        )
        .await
        .map(|_| ())
        .map_err(Error::sql(format!("parking table {source}")))
}

/// Lets a table that was parked catch up.
pub async fn unpark_table<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    source: &TableName,
) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET state = 'CATCHING_UP', error = NULL, updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3 AND state = 'PARKED'",
            &[&mirror_id, &source.schema, &source.name],
        )
        .await
        .map(|_| ())
        .map_err(Error::sql(format!("letting table {source} go on")))
}

/// Every table leaves main: another generation begins. ERRORED tables stay so, and what is to
/// be dropped.
pub async fn leave_main<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET in_main = false, live_commit_lsn = NULL, live_seq = NULL,
                 state = CASE WHEN state IN ('ERRORED', 'REMOVING') THEN state ELSE 'PENDING' END,
                 updated_at = now()
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
        "DELETE FROM _bunny.shapes WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
        "DELETE FROM _bunny.objects WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
        "DELETE FROM _bunny.tables WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
    ] {
        client
            .execute(statement, &[&mirror_id, &source.schema, &source.name])
            .await
            .map_err(Error::sql(format!("removing table {source}")))?;
    }
    Ok(())
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
        retry_id: row.get(23),
    })
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn the_states_are_those_that_the_catalog_names() {
        assert_eq!(State::ALL.map(State::as_str), bunny_catalog::TABLE_STATES);
    }
}
