//! One table's sync from start to finish.

use std::sync::Arc;

use bunny_schemas::control::{SyncRecord, SyncState, TableSyncFinished, TableSyncStarted};
use tokio::task::JoinSet;

use super::outlet::Consignment;
use super::plan::Chunk;
use super::survey::{self, Survey};
use super::trouble::Trouble;
use super::worker::{self, ChunkJob};
use super::{Round, TableSync, port};
use crate::crash_points::{AFTER_SYNC_FINISHED, BEFORE_SYNC_FINISHED, SYNC_STARTED, crash_point};
use crate::error::{Error, Result};

/// Copies `table`. When this returns Ok, the sync is recorded as finished.
pub(super) async fn sync(round: Arc<Round>, table: &TableSync) -> std::result::Result<(), Trouble> {
    let context = &round.context;
    let rows_per_chunk = context
        .latest
        .borrow()
        .config
        .snapshot_num_rows_per_partition;
    let survey = survey::survey(
        &round.sessions,
        table,
        rows_per_chunk,
        &context.progress,
        &context.log,
    )
    .await?;
    context.progress.update(table.request_id, |progress| {
        progress.chunks_total = Some(survey.chunks.len() as u64);
        progress.rows_estimate = survey.rows_estimate;
        progress.insert_only = !survey.definition.can_carry_updates();
    });

    // Before anything of this attempt is there.
    let start_offsets = round.outlet.ends(round.partitions.count()).await?;
    record(&round, table, SyncState::Started, &start_offsets).await?;
    announce(&round, table, &survey, &start_offsets).await?;
    crash_point(SYNC_STARTED);

    let Survey {
        columns, chunks, ..
    } = survey;
    let (chunks_total, rows) = copy(&round, table, columns, chunks).await?;
    crash_point(BEFORE_SYNC_FINISHED);
    finish(&round, table, chunks_total, rows).await?;
    crash_point(AFTER_SYNC_FINISHED);
    record(&round, table, SyncState::Finished, &start_offsets).await?;

    context.progress.update(table.request_id, |progress| {
        progress.finished = true;
        progress.rows_estimate = progress.rows_done;
    });
    context.log.info(
        format!("table {} is in the snapshot topic", table.source),
        serde_json::json!({
            "table": table.source.to_string(), "rows": rows, "chunks": chunks_total,
            "attempt": table.attempt, "lsn": round.keeper.lsn.to_string(),
        }),
    );
    Ok(())
}

/// Has the main publisher commit the state of this sync to the position topic.
async fn record(
    round: &Round,
    table: &TableSync,
    state: SyncState,
    start_offsets: &[i64],
) -> Result<()> {
    let progress = round.context.progress.tables();
    let (rows, bytes) = progress
        .iter()
        .find(|progress| progress.request_id == table.request_id)
        .map_or((0, 0), |copied| (copied.rows_done, copied.bytes_done));
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let record = SyncRecord {
        request_id: table.request_id,
        attempt: table.attempt,
        schema: table.source.schema.clone(),
        table: table.source.name.clone(),
        state,
        lsn: round.keeper.lsn,
        start_offsets: start_offsets.to_vec(),
        generation: round.context.generation,
        changes_offset: round.changes_offset,
        taken_at_us: round.keeper.taken_at_us,
        rows: signed(rows),
        bytes: signed(bytes),
    };
    round.context.recorder.record(record).await
}

/// Writes `TableSyncStarted`: from here on the topic holds a void or running attempt.
async fn announce(
    round: &Round,
    table: &TableSync,
    survey: &Survey,
    start_offsets: &[i64],
) -> Result<()> {
    let definition = serde_json::to_string(&survey.definition)
        .map_err(|error| Error::transient(format!("encoding a table definition: {error}")))?;
    let started = TableSyncStarted {
        request_id: table.request_id,
        attempt: table.attempt,
        schema: table.source.schema.clone(),
        table: table.source.name.clone(),
        generation: round.context.generation,
        lsn: round.keeper.lsn,
        changes_offset: round.changes_offset,
        columns: survey.columns.clone(),
        definition,
        start_offsets: start_offsets.to_vec(),
    };
    frame(round, &started.encode(round.ids.started)).await
}

/// Waits until the main stream has passed L, and writes `TableSyncFinished`.
async fn finish(round: &Round, table: &TableSync, chunks: i32, rows: i64) -> Result<()> {
    let mut stream = round.context.passed.clone();
    let passed = port::passed(&mut stream, round.keeper.lsn).await?;
    let changes = round.context.topics.changes(&round.context.slug);
    let (_, live_offset) = round.context.kafka.watermarks(&changes, 0).await?;
    let finished = TableSyncFinished {
        request_id: table.request_id,
        attempt: table.attempt,
        schema: table.source.schema.clone(),
        table: table.source.name.clone(),
        chunks,
        rows,
        live_offset,
        live_commit_lsn: passed.published.commit_lsn,
        live_seq: passed.published.seq,
    };
    frame(round, &finished.encode(round.ids.finished)).await
}

/// Writes a record that frames a sync to partition 0 and waits for its acknowledgement.
async fn frame(round: &Round, record: &[u8]) -> Result<()> {
    let owned = round.partitions.first().await;
    let consignment = Consignment::default();
    round
        .outlet
        .send(&consignment, owned.partition, record)
        .await?;
    consignment.settled().await
}

/// Copies all chunks, some at a time, and returns how many chunks and rows there were. How
/// many at a time may change meanwhile, and counts from the next chunk on.
async fn copy(
    round: &Arc<Round>,
    table: &TableSync,
    columns: Vec<String>,
    chunks: Vec<Chunk>,
) -> std::result::Result<(i32, i64), Trouble> {
    let count = chunks.len();
    let chunks_total = i32::try_from(count).unwrap_or(i32::MAX);
    let job = Arc::new(ChunkJob {
        table: table.clone(),
        columns,
        chunks,
    });
    let mut latest = round.context.latest.clone();
    let mut next = 0;
    let mut rows = 0;
    // Dropped on the first failure, which ends the other workers.
    let mut tasks = JoinSet::new();
    loop {
        let config = latest.borrow_and_update().config.clone();
        let at_a_time = config.snapshot_max_parallel_workers.max(1) as usize;
        while next < count && tasks.len() < at_a_time {
            tasks.spawn(worker::work(round.clone(), job.clone(), next));
            next += 1;
        }
        let joined = tokio::select! {
            joined = tasks.join_next() => joined,
            Ok(()) = latest.changed(), if next < count => continue,
        };
        let Some(joined) = joined else {
            return Ok((chunks_total, rows));
        };
        let copied = joined.map_err(|error| {
            Trouble::Round(Error::transient(format!("a table sync worker: {error}")))
        })?;
        rows += copied?;
    }
}
