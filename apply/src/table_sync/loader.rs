//! Runs a load: one task per partition of the snapshot topic, until nothing is left.

use std::sync::{Arc, Mutex, PoisonError};

use bunny_catalog::{LogLevel, OnTableError};
use bunny_postgres::{Session, TableName};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use uuid::Uuid;

use super::board::{SyncBoard, TableProgress, Wanted};
use super::chunk_copy;
use super::finishing::{self, Complete};
use super::outcome;
use super::partition_task::PartitionTask;
use super::refusals;
use super::snapshot_topic;
use crate::bookkeeping::{self, State};
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::mirror::stop;
use crate::swap;
use crate::waits::Task;

/// Shows how far a load is; cheap to clone, readable at any time.
#[derive(Clone, Default)]
pub struct LoadProgress {
    shared: Arc<Mutex<Option<Arc<Shared>>>>,
}

impl LoadProgress {
    /// The tables of the load that runs, or ran last; empty before the first.
    pub fn tables(&self) -> Vec<TableProgress> {
        let shared = self
            .shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        shared.map_or_else(Vec::new, |shared| shared.update(|board| board.progress()))
    }

    fn show(&self, shared: &Arc<Shared>) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared.clone());
    }
}

/// Both loads of a run.
#[derive(Clone, Default)]
pub(crate) struct Loads {
    /// Into the mirror's tables.
    pub(crate) own: LoadProgress,
    /// Beside them.
    pub(crate) beside: LoadProgress,
}

impl Loads {
    /// The tables of both.
    pub(crate) fn tables(&self) -> Vec<TableProgress> {
        let mut tables = self.own.tables();
        tables.extend(self.beside.tables());
        tables
    }
}

/// What the tasks of one load have in common.
pub(super) struct Shared {
    pub(super) run: MirrorRun,
    board: Mutex<SyncBoard>,
    /// Carries the board's revision, so that whoever waits for the board wakes.
    changed: watch::Sender<u64>,
    complete: mpsc::UnboundedSender<Complete>,
}

impl Shared {
    /// Reads or changes the board, and wakes who waits if something changed.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut SyncBoard) -> T) -> T {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut board);
        let revision = board.revision();
        // Under the lock, so that revisions are sent in order.
        self.changed
            .send_if_modified(|sent| std::mem::replace(sent, revision) != revision);
        result
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Hands on a table whose chunks are all committed.
    pub(super) fn complete(&self, table: Complete) {
        // The other end lives as long as the load; after it nobody waits for the table.
        let _ = self.complete.send(table);
    }

    /// Stores that a table has failed, which its board entry says already.
    pub(super) async fn store_failure(
        &self,
        session: &Session,
        request_id: Uuid,
        source: &TableName,
        reason: &str,
    ) -> Result<()> {
        outcome::store_failed(session, &self.run, source, reason).await?;
        if self.run.is_beside() {
            self.update(|board| board.settled(request_id));
            // The table itself has not failed.
            swap::say_given_up(&self.run, source, reason);
            return Ok(());
        }
        let details = json!({ "table": source.to_string(), "reason": reason });
        let message = format!("table {source} can't be loaded and is set aside");
        self.run.reporter.log(LogLevel::Error, message, details);
        if self.run.mirror.config.on_table_error == OnTableError::Stop {
            // Not settled: a load that ends before this error is heard would end well.
            return Err(stop(source.clone(), reason, None));
        }
        self.update(|board| board.settled(request_id));
        Ok(())
    }

    /// The source table of a request.
    pub(super) fn source_of(&self, request_id: Uuid) -> Result<TableName> {
        self.update(|board| board.table(request_id))
            .ok_or_else(|| Error::Inconsistent(format!("no table asked for sync {request_id}")))
    }
}

/// Loads every table that is wanted and not loaded yet; see the module `table_sync`.
///
/// # Errors
/// Whatever ends the run: [`Error::Cancelled`] when it was told to stop, [`Error::Table`]
/// when a table failed and `on_table_error` is `stop`, else what broke. Transient or not,
/// it may be called again, after a take-over that ends the sessions of this load.
pub async fn load(run: &MirrorRun, progress: &LoadProgress) -> Result<()> {
    tokio::select! {
        () = run.cancel.cancelled() => Err(Error::Cancelled),
        loaded = Box::pin(load_all(run, progress)) => loaded,
    }
}

async fn load_all(run: &MirrorRun, progress: &LoadProgress) -> Result<()> {
    let wanted = wanted(run).await?;
    let requests: Vec<Uuid> = wanted.iter().map(|table| table.request_id).collect();
    let board = SyncBoard::new(wanted);
    let is_done = board.all_settled();
    let (complete, to_finish) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        complete,
        run: run.clone(),
        changed: watch::channel(board.revision()).0,
        board: Mutex::new(board),
    });
    progress.show(&shared);
    if is_done {
        return Ok(());
    }
    refusals::before_loading(&shared, &requests).await?;
    let mut changed = shared.watch();
    // Dropped with this future, which ends every task.
    let mut tasks = JoinSet::new();
    // What the source refuses, or the topics do not hold, may be all that is asked for.
    tasks.spawn(Box::pin(refusals::run(shared.clone(), requests.clone())));
    let (driver, readers) = tokio::select! {
        opened = snapshot_topic::open(run, &requests) => opened?,
        error = first_error(run, &mut tasks) => return Err(error),
        () = all_settled(&shared, &mut changed) => return Ok(()),
    };
    for reader in readers {
        let task = PartitionTask::new(shared.clone(), reader);
        tasks.spawn(Box::pin(task.run()));
    }
    tasks.spawn(Box::pin(finishing::run(shared.clone(), to_finish)));
    let ended = tokio::select! {
        error = driver.run() => Err(error),
        error = first_error(run, &mut tasks) => Err(error),
        () = all_settled(&shared, &mut changed) => Ok(()),
    };
    tasks.shutdown().await;
    ended
}

/// The tables to load, from their state rows.
async fn wanted(run: &MirrorRun) -> Result<Vec<Wanted>> {
    let session = chunk_copy::connect(run).await?;
    let client: &tokio_postgres::Client = &session;
    let ledger = run.ledger;
    let mut wanted = Vec::new();
    for table in bookkeeping::tables(client, ledger).await? {
        let is_open = matches!(table.state, State::Pending | State::Syncing);
        let Some(request_id) = table.request_id.filter(|_| is_open) else {
            continue;
        };
        // What belongs to an earlier generation is void; its rows stay known as ours.
        let is_loading =
            table.state == State::Syncing && table.generation == Some(run.mirror.generation);
        let loading = if is_loading {
            let chunks =
                bookkeeping::loaded_chunks(client, ledger, request_id, table.attempt).await?;
            Some((table.attempt, chunks.into_iter().collect()))
        } else {
            None
        };
        wanted.push(Wanted {
            request_id,
            table: table.source,
            loading,
        });
    }
    Ok(wanted)
}

async fn first_error(run: &MirrorRun, tasks: &mut JoinSet<Error>) -> Error {
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(error)) => died(run, "a loading task", &error),
        None => Error::Inconsistent("the snapshot topic has no partitions".to_owned()),
    }
}

/// The error of a load one of whose tasks is gone. It begins anew as after any other error,
/// but a panic is a fault of this program: it stays in the mirror's log.
pub(super) fn died(run: &MirrorRun, what: &str, error: &JoinError) -> Error {
    let message = format!("{what} ended by itself: {error}");
    if error.is_panic() {
        run.reporter
            .log(LogLevel::Error, message.clone(), json!({}));
    }
    Error::NotYet(format!("{message}; starting again"))
}

async fn all_settled(shared: &Shared, changed: &mut watch::Receiver<u64>) {
    let before = shared.update(|board| board.done());
    // The sender lives in `shared`, so waiting can't fail.
    while !shared.update(|board| board.all_settled()) {
        let _ = changed.changed().await;
        if shared.update(|board| board.done()) != before {
            shared.run.waits.over(Task::load_of(&shared.run));
        }
    }
}
