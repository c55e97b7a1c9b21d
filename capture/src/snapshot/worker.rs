//! Copying chunks: COPY out of the snapshot, records into the topic.

use std::sync::Arc;

use bunny_postgres::{ResultExt, Session};
use bunny_schemas::control::SnapshotChunk;
use futures_util::StreamExt;

use super::labels::Labels;
use super::large_rows;
use super::outlet::Consignment;
use super::parts::{Gatherer, PART_BYTES, Part, ROW_BYTES_MAX};
use super::plan::{self, Chunk};
use super::sessions::check_unchanged;
use super::survey;
use super::trouble::{Cause, Trouble};
use super::{Round, TableSync};
use crate::crash_points::{CHUNK_DELIVERED, CHUNK_MID_COPY, crash_point};

/// A larger record gives its memory back before the next.
const RECORD_KEPT_BYTES: usize = 3 * PART_BYTES;

/// The chunks of one table, which its workers share.
pub(super) struct ChunkJob {
    pub(super) table: TableSync,
    pub(super) columns: Vec<String>,
    pub(super) chunks: Vec<Chunk>,
}

/// Copies the chunk at `index`; returns its rows.
pub(super) async fn work(
    round: Arc<Round>,
    job: Arc<ChunkJob>,
    index: usize,
) -> Result<i64, Trouble> {
    match job.chunks.get(index) {
        Some(chunk) => copy_chunk(&round, &job, chunk).await,
        None => Ok(0),
    }
}

/// Copies one chunk; returns its rows once Kafka has acknowledged all of it.
async fn copy_chunk(round: &Round, job: &ChunkJob, chunk: &Chunk) -> Result<i64, Trouble> {
    let session = round.sessions.take().await?;
    begin(round, job, chunk, &session).await?;
    let labels = Labels::of_snapshot(&session, chunk.relation.oid).await?;
    // Last, so that nobody waits for a partition because its owner waits for a lock.
    let owned = round.partitions.any(chunk.number as usize).await;

    let mut writer = ChunkWriter {
        round,
        job,
        chunk,
        partition: owned.partition,
        consignment: Consignment::default(),
        record: Vec::new(),
    };
    let mut gatherer = Gatherer::default();
    // Of the large row that is gathered, if one is.
    let mut turn = None;
    let doing = || format!("copying {}", chunk.relation.name);
    let copy = plan::copy_sql(chunk, &job.columns);
    let lines = session.copy_out(&copy).await.doing(doing())?;
    let mut lines = std::pin::pin!(lines);
    // The server sends one message a row.
    while let Some(line) = lines.next().await {
        let line = line.doing(doing())?;
        let complete = gatherer.make_room(&line).map_err(|row| {
            Cause::Refused(format!(
                "a row of {} is {} bytes long as COPY text, the limit is {ROW_BYTES_MAX}",
                chunk.relation.name, row.bytes
            ))
        })?;
        if let Some(part) = complete {
            writer.send(&part, 0).await?;
            crash_point(CHUNK_MID_COPY);
        }
        // What was large is sent by now: nobody holds two turns.
        drop(turn.take());
        turn = large_rows::turn(line.len()).await;
        gatherer.push(&line);
    }
    let (last, rows) = gatherer.finish();
    let rows = rows as i64;
    writer.send(&last, rows).await?;
    drop(turn);

    session.batch("COMMIT").await?;
    labels.check_unchanged(&session, chunk.relation.oid).await?;
    round.sessions.keep(session);
    writer.consignment.settled().await?;
    drop(owned);
    crash_point(CHUNK_DELIVERED);
    let progress = &round.context.progress;
    progress.update(job.table.request_id, |progress| progress.chunks_done += 1);
    Ok(rows)
}

/// Begins the chunk's transaction and makes sure that the snapshot still tells the truth
/// about its relation, for as long as the transaction lasts.
async fn begin(
    round: &Round,
    job: &ChunkJob,
    chunk: &Chunk,
    session: &Session,
) -> Result<(), Trouble> {
    let lock = survey::lock_sql(std::slice::from_ref(&chunk.relation));
    let progress = &round.context.progress;
    let waiting = |reason: Option<&str>| {
        progress.update(job.table.request_id, |progress| {
            progress.waiting_for = reason.map(str::to_owned);
        });
    };
    round.sessions.begin(session, &lock, waiting).await?;
    check_unchanged(session, std::iter::once(chunk.relation.as_ref())).await
}

/// Sends the parts of one chunk to the partition it owns.
struct ChunkWriter<'a> {
    round: &'a Round,
    job: &'a ChunkJob,
    chunk: &'a Chunk,
    partition: i32,
    consignment: Consignment,
    /// The record being sent, kept for its memory.
    record: Vec<u8>,
}

impl ChunkWriter<'_> {
    /// `chunk_rows` counts the whole chunk and is 0 on all parts but the last.
    async fn send(&mut self, part: &Part, chunk_rows: i64) -> Result<(), Trouble> {
        let columns = match part.number {
            0 => self.job.columns.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        let record = SnapshotChunk {
            request_id: self.job.table.request_id,
            attempt: self.job.table.attempt,
            chunk: self.chunk.number,
            part: part.number,
            last: part.last,
            rows: part.rows as i64,
            chunk_rows,
            columns,
            data: &part.data,
        };
        if self.record.capacity() > RECORD_KEPT_BYTES {
            self.record = Vec::new();
        }
        self.record.clear();
        record.encode_into(&mut self.record, self.round.ids.chunk);
        self.round
            .outlet
            .send(&self.consignment, self.partition, &self.record)
            .await?;
        let progress = &self.round.context.progress;
        progress.update(self.job.table.request_id, |progress| {
            progress.rows_done += part.rows;
            progress.bytes_done += part.data.len() as u64;
        });
        Ok(())
    }
}
