//! What comes between a table's last chunk and its being loaded: its indexes and
//! constraints, which loading doesn't need.
//!
//! Until they are there the table stays SYNCING, with all its chunks recorded, so a crash
//! leads back here. Partitions go on with other tables meanwhile.

use std::sync::Arc;

use bunny_catalog::LogLevel;
use bunny_postgres::{Session, TableDefinition, TableName};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::board::{Announced, SyncId};
use super::loader::{self, Shared};
use super::outcome;
use super::start::changed_meanwhile;
use crate::bookkeeping;
use crate::context::MirrorRun;
use crate::crash_points;
use crate::error::{Error, Result};
use crate::schema::build::Builder;
use crate::schema::sequences;

/// A table whose chunks are all committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Complete {
    pub(super) sync: SyncId,
    pub(super) announced: Announced,
}

/// Finishes tables side by side until an error; each has a session or two of its own
/// beside those of the builder.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut complete: mpsc::UnboundedReceiver<Complete>,
) -> Error {
    let builder = Builder::new(&shared.run);
    let at_a_time = shared
        .run
        .mirror
        .config
        .snapshot_max_parallel_workers
        .max(1) as usize;
    // Dropped with this future, which ends every task.
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    loop {
        tokio::select! {
            table = complete.recv(), if tasks.len() < at_a_time => match table {
                Some(table) => {
                    tasks.spawn(Box::pin(finish(shared.clone(), builder.clone(), table)));
                }
                // The load holds the other end for as long as it runs.
                None => return Error::Cancelled,
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(error) => return loader::died(&shared.run, "finishing a table", &error),
            },
        }
    }
}

async fn finish(shared: Arc<Shared>, builder: Arc<Builder>, table: Complete) -> Result<()> {
    let Complete { sync, announced } = table;
    let run = &shared.run;
    let source = shared.source_of(sync.request_id)?;
    crash_points::reached(crash_points::CHUNKS_LOADED);
    let session = builder.open().await?;
    // What is loaded beside a table was made with the table's indexes, and its rows go
    // where everything else is.
    if !run.is_beside() {
        complete_objects(run, &session, &builder, &source).await?;
    }
    outcome::store_loaded(&session, run, &source, &sync, &announced).await?;
    builder.keep(session);
    crash_points::reached(crash_points::TABLE_LOADED);
    shared.update(|board| board.settled(sync.request_id));
    tracing::info!(
        mirror = %run.mirror.name, table = %source, rows = announced.rows,
        chunks = announced.chunks, "table loaded"
    );
    let details = json!({
        "table": source.to_string(), "rows": announced.rows, "chunks": announced.chunks,
    });
    run.reporter
        .log(LogLevel::Info, format!("table {source} is loaded"), details);
    Ok(())
}

/// Indexes and constraints of a loaded table, and where its sequences stand.
async fn complete_objects(
    run: &MirrorRun,
    session: &Session,
    builder: &Arc<Builder>,
    source: &TableName,
) -> Result<()> {
    let state = bookkeeping::table::<tokio_postgres::Client>(session, run.mirror_id(), source)
        .await?
        .ok_or_else(|| changed_meanwhile(source))?;
    let definition = definition(source, state.definition)?;
    if let Some(objects) = definition.objects {
        let destination = &state.destination;
        let never: Vec<String> = objects
            .not_copied
            .iter()
            .map(|what| format!("{what} of {destination}: such things are never copied"))
            .collect();
        builder.note(source, &never).await?;
        builder.after_load(source, destination, &objects).await?;
        // A table that is synced again has its sequences from the first time.
        if !objects.sequences.is_empty() {
            let raised = sequences::raise(session, run, destination, &objects.sequences).await;
            stays_behind(session, run, source, raised).await?;
        }
    }
    Ok(())
}

/// Rows are worth more than the state of sequences: what the destination refuses is said.
async fn stays_behind(
    session: &Session,
    run: &MirrorRun,
    source: &TableName,
    raised: Result<()>,
) -> Result<()> {
    let Err(error) = raised else { return Ok(()) };
    if error.sqlstate().is_none() || error.is_transient() {
        return Err(error);
    }
    session
        .batch_execute("ROLLBACK")
        .await
        .map_err(Error::sql("leaving a transaction"))?;
    let message = format!("sequences of table {source} stay where they are at the destination");
    let details = json!({ "table": source.to_string(), "reason": error.to_string() });
    run.reporter.log(LogLevel::Warn, message, details);
    Ok(())
}

/// The source's definition as the sync's start stored it.
fn definition(source: &TableName, stored: Option<serde_json::Value>) -> Result<TableDefinition> {
    let stored = stored.ok_or_else(|| changed_meanwhile(source))?;
    serde_json::from_value(stored).map_err(|error| {
        Error::Inconsistent(format!(
            "the definition of {source} in _bunny.tables cannot be read: {error}"
        ))
    })
}
