//! The source side of a table sync: tables read at one consistent point, as chunks of COPY
//! text, into the snapshot topic.
//!
//! A round ([`run`]) serves a set of tables that share a consistent point L. The mirror's
//! own slot and stream are never touched. A keeper session holds the snapshot for as long
//! as the round lasts; workers import it and copy chunks, each of which is one partition's
//! only writer meanwhile. Per table the topic shows `TableSyncStarted` (partition 0), the
//! chunks, and, once all of them are acknowledged and the main stream has passed L,
//! `TableSyncFinished` (partition 0).
//!
//! On failure: a table's own trouble (changed since L, a lock, a privilege, a lost worker)
//! ends that table, the others go on. A lost keeper, Kafka or publisher ends the round.
//! Either way finished tables stay finished, and the caller gives the others to a new round
//! with a higher attempt, which voids everything written under the lower one.
//!
//! - [`port`]: what a round needs of the main stream.
//! - `keeper`: the temporary slot and the session that keeps its snapshot.
//! - `survey`, `keys`: looking at a table; `plan`: cutting it into chunks (pure).
//! - `table`: one table from start to finish; `worker`: its chunks.
//! - `sessions`: worker transactions and the check that a table is still what L saw.
//! - `parts`: rows gathered into records (pure); `partitions`, `outlet`: on their way.
//! - `large_rows`: how many large rows are on their way at once.

mod keeper;
mod keys;
mod labels;
mod large_rows;
mod outlet;
mod partitions;
mod parts;
mod plan;
mod port;
mod progress;
mod sessions;
mod survey;
mod table;
mod topic;
mod trouble;
mod worker;

use std::sync::Arc;

use bunny_catalog::Mirror;
use bunny_postgres::{ConnectOptions, TableName};
use bunny_schemas::control::SchemaKind;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::watch::Exclusions;
use keeper::{Keeper, Source};
use outlet::Outlet;
pub(crate) use outlet::UnderWay;
use partitions::Partitions;
use sessions::Sessions;
use trouble::Trouble;

pub(crate) use port::{LogSink, Loudness, Passed, SyncNote, SyncRecorder, SyncRequest, passed};
pub(crate) use progress::Progress;
pub(crate) use survey::published_columns;
pub(crate) use topic::ensure_topic;
pub(crate) use trouble::Cause;

/// One table of a round.
#[derive(Debug, Clone)]
pub(crate) struct TableSync {
    pub source: TableName,
    pub request_id: Uuid,
    /// From 1; higher than any before of this request.
    pub attempt: i32,
    /// Cut chunks by ranges of this column, where an index leads on it.
    pub partition_key: Option<String>,
    /// Columns that are not copied.
    pub exclude_columns: Vec<String>,
    /// The same, by what is known of their numbers.
    pub exclusions: watch::Receiver<Exclusions>,
}

/// What a round works with.
pub(crate) struct SnapshotContext {
    pub source: ConnectOptions,
    /// Of every session the round opens: a later owner of the mirror finds them by it.
    pub application_name: String,
    pub kafka: KafkaConfig,
    pub topics: Topics,
    /// Who chooses schema ids. The stream's own: two that give ids would fence each other off.
    pub registry: Registry,
    /// Of the mirror, for topic names.
    pub slug: String,
    /// The mirror's slot; the temporary one is named after it.
    pub slot_name: String,
    pub mirror: Arc<Mirror>,
    /// The mirror as it is now: the snapshot options may change while a round runs.
    pub latest: watch::Receiver<Arc<Mirror>>,
    /// In which L counts.
    pub generation: Uuid,
    /// Shared with the rounds of other mirrors.
    pub under_way: UnderWay,
    pub tables: Vec<TableSync>,
    /// Records started and finished syncs.
    pub recorder: SyncRecorder,
    /// How far the main stream is.
    pub passed: watch::Receiver<Passed>,
    /// For the mirror's log.
    pub log: LogSink,
    /// Written by the round, read by the reporter.
    pub progress: Progress,
}

/// What the tables of a running round share.
struct Round {
    context: SnapshotContext,
    keeper: Keeper,
    sessions: Sessions,
    partitions: Partitions,
    outlet: Outlet,
    ids: SchemaIds,
    /// End of the change topic before L was taken: all changes since L come after it.
    changes_offset: i64,
}

/// Ids of the snapshot topic's schemas.
#[derive(Debug, Clone, Copy)]
struct SchemaIds {
    started: u32,
    chunk: u32,
    finished: u32,
}

/// Syncs `context.tables`, all at one consistent point. Returns when each has finished or
/// failed; `context.progress` tells which.
///
/// # Errors
/// The round could not go on, or a table of it failed (its [`TableProgress::failure`] says
/// why). Tables that finished stay finished in any case.
pub(crate) async fn run(context: SnapshotContext, cancel: CancellationToken) -> Result<()> {
    if context.tables.is_empty() {
        return Ok(());
    }
    let tables = context.tables.iter();
    context
        .progress
        .begin(tables.map(|table| (table.request_id, table.attempt, table.source.clone())));
    tokio::select! {
        ended = Box::pin(round(context)) => ended,
        () = cancel.cancelled() => Err(Error::transient("table sync was told to stop")),
    }
}

async fn round(context: SnapshotContext) -> Result<()> {
    let round = Arc::new(open(context).await?);
    tracing::info!(
        mirror = %round.context.mirror.name,
        lsn = %round.keeper.lsn,
        tables = round.context.tables.len(),
        "table sync round began"
    );
    tokio::select! {
        ended = all_tables(&round) => ended,
        lost = round.keeper.lost() => Err(lost),
    }
}

async fn open(context: SnapshotContext) -> Result<Round> {
    let [started, chunk, finished] = context
        .registry
        .register_controls([
            SchemaKind::TableSyncStarted,
            SchemaKind::SnapshotChunk,
            SchemaKind::TableSyncFinished,
        ])
        .await?;
    let ids = SchemaIds {
        started,
        chunk,
        finished,
    };
    let topic = context.topics.snapshot(&context.slug);
    let partitions =
        context.kafka.partitions(&topic).await?.ok_or_else(|| {
            Error::transient(format!("the snapshot topic {topic} does not exist"))
        })?;
    let outlet = Outlet::open(&context.kafka, topic, context.under_way.clone())?;

    // In this order: whatever commits at or after L is published after this offset.
    let changes = context.topics.changes(&context.slug);
    let (_, changes_offset) = context.kafka.watermarks(&changes, 0).await?;
    let source = Source {
        options: context.source.clone(),
        application_name: context.application_name.clone(),
    };
    let keeper = Keeper::open(&source, &context.slot_name, &context.progress, &context.log).await?;

    let partitions = Partitions::new(usize::try_from(partitions).unwrap_or_default());
    Ok(Round {
        // More could read than may write.
        sessions: Sessions::new(source, keeper.snapshot_name.clone(), partitions.count()),
        partitions,
        keeper,
        outlet,
        ids,
        changes_offset,
        context,
    })
}

/// Runs the tables in their order, some at a time. A table's failure is put down and the
/// others go on.
async fn all_tables(round: &Arc<Round>) -> Result<()> {
    let mut waiting = round.context.tables.iter().peekable();
    let mut latest = round.context.latest.clone();
    // Dropped with this future, which ends every task.
    let mut tasks = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        let config = latest.borrow_and_update().config.clone();
        let at_a_time = config.snapshot_num_tables_in_parallel.max(1) as usize;
        while tasks.len() < at_a_time
            && let Some(table) = waiting.next()
        {
            tasks.spawn(one_table(round.clone(), table.clone()));
        }
        let joined = tokio::select! {
            joined = tasks.join_next() => joined,
            Ok(()) = latest.changed(), if waiting.peek().is_some() => continue,
        };
        let Some(joined) = joined else { break };
        let (table, ended) =
            joined.map_err(|error| Error::transient(format!("a table sync task: {error}")))?;
        match ended {
            Ok(()) => {}
            Err(Trouble::Round(error)) => return Err(error),
            Err(Trouble::Table(cause)) => {
                failures.push(format!("{}: {cause}", table.source));
                round.context.progress.update(table.request_id, |progress| {
                    progress.failure = Some(cause);
                });
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::transient(failures.join("; ")))
    }
}

async fn one_table(
    round: Arc<Round>,
    table: TableSync,
) -> (TableSync, std::result::Result<(), Trouble>) {
    let ended = table::sync(round, &table).await;
    (table, ended)
}
