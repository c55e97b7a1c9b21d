//! Loads one chunk: a fenced transaction with one COPY, the chunk's own record in it.

use bunny_catalog::OnExistingRows;
use bunny_postgres::copy_binary::{self, Encoding, NotKnown};
use bunny_postgres::{Session, TableDefinition, TableName, copy_text, quote_ident};
use bytes::Bytes;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::board::SyncId;
use super::start::changed_meanwhile;
use crate::ambiguous_text::AmbiguousText;
use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
use crate::copy_in::{CopyIn, CopyRow, Gatherer, Inlet, Into, Piece};
use crate::crash_points;
use crate::error::{Error, Result};

/// Where a chunk is put first when its rows may meet rows that are there.
const STAGING: &str = "pg_temp._bunny_chunk";

/// How long a chunk waits for somebody's lock on the destination table before the load
/// ends and is tried again, which the mirror's status shows.
const LOCK_TIMEOUT_SECONDS: u32 = 60;

/// Opens a session for loading: triggers and foreign keys don't fire in it.
pub(crate) async fn connect(run: &MirrorRun) -> Result<Session> {
    let session = run.connect().await?;
    match session
        .batch_execute("SET session_replication_role = replica")
        .await
    {
        Ok(()) => {}
        // Whether the mirror can do without was decided before anything is loaded.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            tracing::debug!("loading without session_replication_role = replica");
        }
        Err(error) => return Err(Error::sql("setting session_replication_role")(error)),
    }
    Ok(session)
}

/// A chunk being copied. Dropping it leaves the session in a failed transaction: the
/// owner rolls back.
pub(super) struct ChunkCopy {
    copy: CopyIn,
    gatherer: Gatherer,
    source: TableName,
    ambiguous: AmbiguousText,
    /// Why its rows must not be loaded, which is said at the end.
    refused: Option<String>,
    /// The statement that moves the rows from the staging table, if they go there first.
    merge: Option<String>,
}

impl CopyRow for copy_text::Row<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.line);
    }

    fn binary(
        &self,
        out: &mut Vec<u8>,
        encodings: &[Encoding],
    ) -> std::result::Result<(), NotKnown> {
        copy_binary::row(out, encodings.len())?;
        let mut cells = self.cells();
        for encoding in encodings {
            copy_binary::cell(out, *encoding, cells.next().ok_or(NotKnown)?)?;
        }
        match cells.next() {
            None => Ok(()),
            Some(_) => Err(NotKnown),
        }
    }
}

/// Why a chunk could not be begun.
pub(super) enum Refusal {
    /// The destination table doesn't take it.
    Table(Error),
    /// Anything else: the run ends.
    Run(Error),
}

impl ChunkCopy {
    /// Opens the transaction and its COPY. `columns` are those of the chunk's part 0.
    pub(super) async fn begin(
        client: &Client,
        run: &MirrorRun,
        source: &TableName,
        sync: &SyncId,
        columns: &[String],
    ) -> Result<ChunkCopy, Refusal> {
        let table = open_transaction(client, run, source, sync)
            .await
            .map_err(Refusal::Run)?;
        start_copy(client, run, table, columns)
            .await
            .map_err(Refusal::Table)
    }

    /// Sends one part; waits while the server is busy.
    pub(super) async fn send(&mut self, client: &Client, data: Bytes) -> Result<()> {
        if self.refused.is_none() {
            self.refused = self.ambiguous.refuse_lines(&data);
        }
        if !data.is_empty() && self.refused.is_none() {
            self.send_rows(client, data).await?;
        }
        crash_points::reached(crash_points::CHUNK_MID_COPY);
        Ok(())
    }

    async fn send_rows(&mut self, client: &Client, data: Bytes) -> Result<()> {
        if self.gatherer.is_text() {
            return self.copy.send(client, Piece::text(data)).await;
        }
        for row in copy_text::rows(&data) {
            if let Some(piece) = self.gatherer.push(&row) {
                self.copy.send(client, piece).await?;
            }
        }
        match self.gatherer.rest() {
            Some(piece) => self.copy.send(client, piece).await,
            None => Ok(()),
        }
    }

    /// Ends the COPY and returns how many rows the server took.
    pub(super) async fn finish(self, client: &Client) -> Result<u64> {
        if let Some(reason) = self.refused {
            return Err(Error::Refused(reason));
        }
        let rows = self.copy.finish().await?;
        if let Some(merge) = &self.merge {
            client
                .batch_execute(merge)
                .await
                .map_err(Error::sql(format!(
                    "merging a chunk into the table for {}",
                    self.source
                )))?;
        }
        Ok(rows)
    }
}

/// Records the chunk in the transaction that loaded it, and commits.
pub(super) async fn commit(
    client: &Client,
    run: &MirrorRun,
    sync: &SyncId,
    chunk: i32,
    rows: i64,
) -> Result<()> {
    let recorded = bookkeeping::record_chunk(
        client,
        run.ledger,
        sync.request_id,
        sync.attempt,
        chunk,
        rows,
    )
    .await;
    match recorded {
        Err(error) if error.sqlstate() == Some(SqlState::UNIQUE_VIOLATION.code()) => {
            return Err(Error::NotYet(format!(
                "chunk {chunk} was committed by an earlier session meanwhile; starting again"
            )));
        }
        other => other?,
    }
    crash_points::reached(crash_points::CHUNK_BEFORE_COMMIT);
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql(format!("committing chunk {chunk}")))?;
    crash_points::reached(crash_points::CHUNK_AFTER_COMMIT);
    Ok(())
}

async fn open_transaction(
    client: &Client,
    run: &MirrorRun,
    source: &TableName,
    sync: &SyncId,
) -> Result<TableState> {
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
        ))
        .await
        .map_err(Error::sql("beginning a chunk"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    bookkeeping::table(client, run.ledger, source)
        .await?
        .filter(|table| {
            table.state == State::Syncing
                && table.request_id == Some(sync.request_id)
                && table.attempt == sync.attempt
        })
        .ok_or_else(|| changed_meanwhile(source))
}

async fn start_copy(
    client: &Client,
    run: &MirrorRun,
    table: TableState,
    columns: &[String],
) -> Result<ChunkCopy> {
    let target = table.destination.quoted();
    let into = columns.iter().map(|column| Some(column.as_str()));
    let ambiguous = AmbiguousText::find(client, &table.destination, into).await?;
    let columns: Vec<String> = columns.iter().map(|column| quote_ident(column)).collect();
    let mut into = target.clone();
    let mut merge = None;
    if run.mirror.config.on_existing_rows == OnExistingRows::Upsert {
        let merged = Merge {
            key: quoted_key(&table)?,
            fixed: fixed_columns(client, &table.destination).await?,
        };
        merge = merge_statement(&merged, &target, &columns);
    }
    if merge.is_some() {
        let staging = format!(
            "CREATE TEMPORARY TABLE {STAGING} ON COMMIT DROP AS SELECT {} FROM {target} WITH NO DATA",
            columns.join(", ")
        );
        client
            .batch_execute(&staging)
            .await
            .map_err(Error::sql(format!(
                "creating a staging table for {}",
                table.source
            )))?;
        into = STAGING.to_owned();
    }
    let doing = format!("loading destination table {}", table.destination);
    let columns = columns.join(", ");
    let into = Into {
        table: &into,
        columns: Some(columns.as_str()).filter(|columns| !columns.is_empty()),
        own_columns: 0,
        staged: Vec::new(),
    };
    // Of no columns, `*` would be those that only the destination has.
    let inlet = match into.columns {
        Some(_) => Inlet::prepare(client, &into, &doing).await?,
        None => Inlet::text(client, &into, &doing).await?,
    };
    Ok(ChunkCopy {
        gatherer: inlet.gatherer(),
        copy: CopyIn::begin(client, inlet, doing).await?,
        source: table.source,
        ambiguous,
        refused: None,
        merge,
    })
}

/// What decides how staged rows go over those that are there; names are quoted.
#[derive(Debug, Default)]
struct Merge {
    /// The columns that identify a row; empty when nothing does.
    key: Vec<String>,
    /// GENERATED ALWAYS identities, which no UPDATE may set.
    fixed: Vec<String>,
}

fn quoted_key(table: &TableState) -> Result<Vec<String>> {
    let Some(definition) = &table.definition else {
        return Ok(Vec::new());
    };
    let definition: TableDefinition =
        serde_json::from_value(definition.clone()).map_err(|error| {
            Error::Inconsistent(format!(
                "_bunny.tables holds a definition of {} that can't be read: {error}",
                table.source
            ))
        })?;
    Ok(definition
        .row_key()
        .iter()
        .map(|name| quote_ident(name))
        .collect())
}

/// The quoted GENERATED ALWAYS identities of a destination table.
pub(super) async fn fixed_columns(client: &Client, table: &TableName) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attidentity = 'a'",
            &[&table.quoted()],
        )
        .await
        .map_err(Error::sql(format!("looking at the identities of {table}")))?;
    Ok(rows.iter().map(|row| quote_ident(row.get(0))).collect())
}

/// Moves staged rows over those of the same key. The key is set too, because equal keys may be
/// written differently (1.0 and 1.00). `None` when there is no key to go by.
fn merge_statement(merge: &Merge, target: &str, columns: &[String]) -> Option<String> {
    if merge.key.is_empty() {
        return None;
    }
    let set: Vec<String> = columns
        .iter()
        .filter(|column| !merge.fixed.contains(column))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    let action = if set.is_empty() {
        "NOTHING".to_owned()
    } else {
        format!("UPDATE SET {}", set.join(", "))
    };
    let list = columns.join(", ");
    Some(format!(
        "INSERT INTO {target} ({list}) OVERRIDING SYSTEM VALUE SELECT {list} FROM {STAGING} \
         ON CONFLICT ({}) DO {action}",
        merge.key.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| quote_ident(name)).collect()
    }

    fn merge(key: &[&str], fixed: &[&str]) -> Merge {
        Merge {
            key: quoted(key),
            fixed: quoted(fixed),
        }
    }

    #[test]
    fn staged_rows_overwrite_by_key_and_bring_its_spelling() {
        let columns = quoted(&["i\"d", "v"]);
        assert_eq!(
            merge_statement(&merge(&["i\"d"], &[]), "\"s\".\"t\"", &columns).as_deref(),
            Some(
                "INSERT INTO \"s\".\"t\" (\"i\"\"d\", \"v\") OVERRIDING SYSTEM VALUE \
                 SELECT \"i\"\"d\", \"v\" FROM pg_temp._bunny_chunk \
                 ON CONFLICT (\"i\"\"d\") DO UPDATE SET \"i\"\"d\" = excluded.\"i\"\"d\", \"v\" = excluded.\"v\""
            )
        );
        assert_eq!(merge_statement(&Merge::default(), "t", &columns), None);
    }

    #[test]
    fn an_always_identity_is_not_set() {
        let sql = merge_statement(&merge(&["id"], &["id"]), "t", &quoted(&["id"]));
        assert!(sql.is_some_and(|sql| sql.ends_with("ON CONFLICT (\"id\") DO NOTHING")));
        let sql = merge_statement(&merge(&["k"], &["id"]), "t", &quoted(&["k", "id"]));
        assert!(sql.is_some_and(|sql| sql.ends_with("DO UPDATE SET \"k\" = excluded.\"k\"")));
    }
}
