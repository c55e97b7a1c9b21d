//! Carries out what the lane of one partition decides.

use std::sync::Arc;

use bunny_postgres::Session;
use bunny_schemas::control::TableSyncStarted;
use bytes::Bytes;
use tokio::sync::watch;
use uuid::Uuid;

use super::board::{Outcome, SyncId};
use super::chunk_copy::{self, ChunkCopy, Refusal};
use super::finishing::Complete;
use super::lane::{Action, Head, Lane};
use super::loader::Shared;
use super::outcome;
use super::snapshot_topic::{PartitionReader, SnapshotRecord};
use super::start;
use crate::context::MirrorRun;
use crate::crash_points;
use crate::error::{Error, Result};

/// Loads one partition; holds at most one open chunk, and opens its session when it
/// first needs one.
pub(super) struct PartitionTask {
    shared: Arc<Shared>,
    reader: PartitionReader,
    changed: watch::Receiver<u64>,
    lane: Lane,
    /// Chunks are loaded here.
    session: Option<Session>,
    copy: Option<ChunkCopy>,
    /// Table states are written here, beside the open chunk.
    state_session: Option<Session>,
}

enum Event {
    Payload(Bytes),
    BoardChanged,
}

impl PartitionTask {
    pub(super) fn new(shared: Arc<Shared>, reader: PartitionReader) -> Self {
        PartitionTask {
            changed: shared.watch(),
            lane: Lane::new(reader.partition()),
            shared,
            reader,
            session: None,
            copy: None,
            state_session: None,
        }
    }

    /// Runs until an error; a load is over when its board says so, not when a partition ends.
    pub(super) async fn run(mut self) -> Error {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        let event = tokio::select! {
            payload = self.reader.next() => Event::Payload(payload?),
            _ = self.changed.changed() => Event::BoardChanged,
        };
        match event {
            Event::Payload(payload) => {
                let record = self.reader.decode(&payload).await?;
                Box::pin(self.use_up(record)).await
            }
            Event::BoardChanged => self.look_at_board().await,
        }
    }

    /// Something changed while no record was there: the open chunk may be void by now.
    async fn look_at_board(&mut self) -> Result<()> {
        let lane = &self.lane;
        let (is_revoked, must_reread) = self
            .shared
            .update(|board| (lane.is_revoked(board), lane.must_reread(board)));
        if must_reread {
            return Err(read_again());
        }
        if is_revoked {
            self.roll_back().await?;
        }
        Ok(())
    }

    /// Does what the lane says until the record is used up.
    async fn use_up(&mut self, record: SnapshotRecord) -> Result<()> {
        let head = record.head(self.shared.run.mirror.generation);
        loop {
            self.changed.mark_unchanged();
            let lane = &mut self.lane;
            let action = self.shared.update(|board| lane.decide(board, &head));
            match action {
                Action::Skip => return Ok(()),
                Action::Wait => {
                    let _ = self.changed.changed().await;
                }
                Action::Reread => return Err(read_again()),
                Action::RollBack => self.roll_back().await?,
                Action::Begin => self.begin(&record).await?,
                Action::Append => return self.send(&record).await,
                Action::Complete { rows } => {
                    self.send(&record).await?;
                    return self.complete(rows).await;
                }
                Action::Broken(reason) => {
                    self.roll_back().await?;
                    return self.fail(head.sync(), &reason).await;
                }
                Action::Prepare => {
                    if let SnapshotRecord::Started(started) = &record {
                        self.prepare(started).await?;
                    }
                    return Ok(());
                }
                Action::Finish => {
                    if let Head::Finished { sync, announced } = head
                        && let Some(outcome) =
                            self.shared.update(|board| board.finish(&sync, announced))
                    {
                        self.settle(sync, outcome).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Opens the transaction of the chunk that the lane has just claimed.
    async fn begin(&mut self, record: &SnapshotRecord) -> Result<()> {
        let SnapshotRecord::Part { head, columns, .. } = record else {
            return Ok(());
        };
        let source = self.shared.source_of(head.sync.request_id)?;
        let client: &tokio_postgres::Client = open(&mut self.session, &self.shared.run).await?;
        match ChunkCopy::begin(client, &self.shared.run, &source, &head.sync, columns).await {
            Ok(copy) => self.copy = Some(copy),
            Err(Refusal::Run(error)) => {
                // Another partition may just have set the table aside: then the state row
                // says so, and the lane rolls back next.
                let lane = &self.lane;
                let is_revoked = self.shared.update(|board| lane.is_revoked(board));
                if !(is_revoked && matches!(error, Error::NotYet(_))) {
                    return Err(error);
                }
            }
            Err(Refusal::Table(error)) => self.refused(head.sync, error).await?,
        }
        Ok(())
    }

    async fn send(&mut self, record: &SnapshotRecord) -> Result<()> {
        let (SnapshotRecord::Part { head, data, .. }, Some(copy)) = (record, &mut self.copy) else {
            return Ok(());
        };
        let client: &tokio_postgres::Client = open(&mut self.session, &self.shared.run).await?;
        match copy.send(client, data.clone()).await {
            Ok(()) => Ok(()),
            Err(error) => self.refused(head.sync, error).await,
        }
    }

    /// All parts of the open chunk are sent.
    async fn complete(&mut self, rows: i64) -> Result<()> {
        let (Some((sync, chunk)), Some(copy)) = (self.lane.open_chunk(), self.copy.take()) else {
            return Ok(());
        };
        let client: &tokio_postgres::Client = open(&mut self.session, &self.shared.run).await?;
        match copy.finish(client).await {
            Ok(taken) if i64::try_from(taken) == Ok(rows) => {}
            Ok(taken) => {
                let reason =
                    format!("chunk {chunk} holds {rows} rows but the destination took {taken}");
                self.roll_back().await?;
                return self.fail(sync, &reason).await;
            }
            Err(error) => return self.refused(sync, error).await,
        }
        chunk_copy::commit(client, &self.shared.run, &sync, chunk, rows).await?;
        let lane = &mut self.lane;
        let settled = self.shared.update(|board| lane.committed(board, rows));
        tracing::debug!(request_id = %sync.request_id, attempt = sync.attempt, chunk, rows, "chunk loaded");
        match settled {
            Some((sync, outcome)) => self.settle(sync, outcome).await,
            None => Ok(()),
        }
    }

    /// The destination refused the open chunk: the table fails if that is about the table.
    async fn refused(&mut self, sync: SyncId, error: Error) -> Result<()> {
        if !outcome::blames_table(&error) {
            return Err(error);
        }
        self.roll_back().await?;
        self.fail(sync, &error.to_string()).await
    }

    async fn roll_back(&mut self) -> Result<()> {
        // An unfinished COPY fails when it is dropped.
        self.copy = None;
        if let Some(session) = &self.session {
            session
                .batch_execute("ROLLBACK")
                .await
                .map_err(Error::sql("rolling a chunk back"))?;
        }
        let lane = &mut self.lane;
        self.shared.update(|board| lane.abandon(board));
        Ok(())
    }

    /// Makes a sync's start true once no chunk of lower attempts is open anywhere.
    async fn prepare(&mut self, started: &TableSyncStarted) -> Result<()> {
        let sync = SyncId {
            request_id: started.request_id,
            attempt: started.attempt,
        };
        loop {
            self.changed.mark_unchanged();
            if !self
                .shared
                .update(|board| board.has_open_chunks(sync.request_id))
            {
                break;
            }
            let _ = self.changed.changed().await;
            self.look_at_board().await?;
        }
        let session = open(&mut self.state_session, &self.shared.run).await?;
        let made = start::make_true(session, &self.shared.run, started).await;
        let ensured = match made {
            Ok(ensured) => ensured,
            Err(error) if outcome::blames_table(&error) => {
                return self.fail(sync, &error.to_string()).await;
            }
            Err(error) => return Err(error),
        };
        crash_points::reached(crash_points::SYNC_STARTED);
        let table = started.table_name();
        tracing::info!(
            mirror = %self.shared.run.mirror.name, %table, attempt = sync.attempt, lsn = %started.lsn,
            created = ensured.created, "table sync started"
        );
        self.shared.update(|board| board.prepared(&sync));
        Ok(())
    }

    /// Hands a loaded table on to be finished, stores that one failed.
    async fn settle(&mut self, sync: SyncId, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Loaded(announced) => {
                self.shared.complete(Complete { sync, announced });
                Ok(())
            }
            Outcome::Failed(reason) => self.store_failure(sync.request_id, &reason).await,
        }
    }

    async fn fail(&mut self, sync: SyncId, reason: &str) -> Result<()> {
        if self.shared.update(|board| board.fail(&sync, reason)) {
            self.store_failure(sync.request_id, reason).await?;
        }
        Ok(())
    }

    async fn store_failure(&mut self, request_id: Uuid, reason: &str) -> Result<()> {
        let source = self.shared.source_of(request_id)?;
        let session = open(&mut self.state_session, &self.shared.run).await?;
        self.shared
            .store_failure(session, request_id, &source, reason)
            .await
    }
}

/// The session, opened if this is its first use.
async fn open<'a>(session: &'a mut Option<Session>, run: &MirrorRun) -> Result<&'a Session> {
    let opened = match session.take() {
        Some(opened) => opened,
        None => chunk_copy::connect(run).await?,
    };
    Ok(session.insert(opened))
}

fn read_again() -> Error {
    Error::NotYet(
        "a chunk was interrupted by one that turned out not to count; reading the snapshot topic again".to_owned(),
    )
}
