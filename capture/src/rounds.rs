//! Table syncs of one run: which tables still need one, round after round.
//!
//! A round that fails leaves the stream alone; what it finished stays, the rest starts over
//! under a new consistent point and a higher attempt.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bunny_catalog::{LogLevel, Mirror, MirrorTable, SyncProgress, SyncRefusal};
use bunny_postgres::TableName;
use bunny_schemas::control::{SyncRecord, SyncState};
use bunny_schemas::registry::Registry;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::checkpoints::{self, GivenUp};
use crate::error::{Error, Result};
use crate::run::Run;
use crate::snapshot::{
    self, Cause, LogSink, Loudness, Passed, Progress, SnapshotContext, SyncRecorder, TableSync,
};
use crate::watch::{Exclusions, KeptOut, Pending};

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// So often may a table change under its snapshot before a person has to look.
const REWRITES_MAX: u32 = 3;
const LOG_LINES_MAX: usize = 256;

/// What the position topic and the mirror say about table syncs at the start of a run.
pub(crate) struct Rounds {
    wanted: Vec<(Uuid, MirrorTable)>,
    /// Those of them that the mirror's own destination does not load.
    for_others: HashSet<Uuid>,
    absent: BTreeSet<TableName>,
    unpublished: watch::Receiver<KeptOut>,
    exclusions: watch::Receiver<Exclusions>,
    attempts: HashMap<Uuid, i32>,
    finished: HashSet<Uuid>,
    /// Rows and bytes of copies that former runs have recorded.
    recorded: HashMap<Uuid, (u64, u64)>,
    /// How often a table was refused, or had changed under its snapshot, in this run.
    failures: HashMap<Uuid, u32>,
    /// Those that are not tried any more.
    refused: Arc<Mutex<Refused>>,
    progress: Progress,
    given_up: GivenUp,
}

type Refused = HashMap<Uuid, SyncRefusal>;

impl Rounds {
    /// Tables that are `absent` from the source wait, and those that are not published yet.
    pub(crate) fn new(
        mirror: &Mirror,
        recorded: &HashMap<Uuid, SyncRecord>,
        absent: &BTreeSet<TableName>,
        unpublished: watch::Receiver<KeptOut>,
        exclusions: watch::Receiver<Exclusions>,
    ) -> Self {
        let mut wanted: Vec<(Uuid, MirrorTable)> = mirror
            .tables
            .iter()
            .flat_map(|table| {
                // A destination waits for the first; the topics need the second.
                let requests = table.request_id.into_iter().chain(table.checkpoint_id);
                requests.map(|request| (request, table.clone()))
            })
            .collect();
        let given_up = GivenUp::default();
        for (request, table) in &wanted {
            // Nobody waits for the rows of a checkpoint: its command is told at once.
            if absent.contains(&table.source) && table.checkpoint_id == Some(*request) {
                given_up.put(*request, "the source has no such table now".to_owned());
            }
        }
        let mut for_others: HashSet<Uuid> = mirror
            .tables
            .iter()
            .filter_map(|table| table.checkpoint_id)
            .collect();
        for (request, table) in of_attached(mirror) {
            // What the mirror wants too, or several that are attached, is published once.
            if wanted.iter().all(|(known, _)| *known != request) {
                for_others.insert(request);
                wanted.push((request, table));
            }
        }
        Self {
            for_others,
            attempts: recorded
                .iter()
                .map(|(request, record)| (*request, record.attempt))
                .collect(),
            finished: recorded
                .iter()
                .filter(|(_, record)| record.state == SyncState::Finished)
                .map(|(request, _)| *request)
                .collect(),
            recorded: recorded
                .iter()
                .map(|(request, record)| {
                    (*request, (unsigned(record.rows), unsigned(record.bytes)))
                })
                .collect(),
            wanted,
            absent: absent.clone(),
            unpublished,
            exclusions,
            failures: HashMap::new(),
            refused: Arc::default(),
            progress: Progress::default(),
            given_up,
        }
    }

    /// A view for the report that stays current.
    pub(crate) fn view(&self) -> SyncView {
        SyncView {
            finished_before: self
                .wanted
                .iter()
                .filter(|(request, _)| self.finished.contains(request))
                .map(|(request, table)| {
                    let (rows, bytes) = self.recorded.get(request).copied().unwrap_or_default();
                    SyncProgress {
                        rows_done: rows,
                        rows_estimate: rows,
                        bytes_done: bytes,
                        finished: true,
                        ..SyncProgress::new(*request, table.source.clone())
                    }
                })
                .collect(),
            waiting: self
                .wanted
                .iter()
                .filter(|(request, _)| !self.finished.contains(request))
                .map(|(request, table)| SyncProgress::new(*request, table.source.clone()))
                .collect(),
            for_others: self.for_others.clone(),
            refused: self.refused.clone(),
            progress: self.progress.clone(),
        }
    }

    fn next_round(&mut self) -> Vec<TableSync> {
        let mut round = Vec::new();
        let refused: HashSet<Uuid> = self.refused().keys().copied().collect();
        let unpublished = self.unpublished.borrow().clone();
        for (request, table) in &self.wanted {
            let is_left = self.finished.contains(request) || refused.contains(request);
            let source = &table.source;
            if is_left || self.absent.contains(source) || unpublished.contains_key(source) {
                continue;
            }
            let attempt = self.attempts.entry(*request).or_insert(0);
            *attempt += 1;
            round.push(TableSync {
                source: table.source.clone(),
                request_id: *request,
                attempt: *attempt,
                partition_key: table.partition_key.clone(),
                exclude_columns: table.exclude_columns.clone(),
                exclusions: self.exclusions.clone(),
            });
        }
        round
    }

    /// Tables that cannot be copied whatever is tried are not tried any more, each try would
    /// only fill the log; the others go on. Returns what is refused since the last time.
    fn take_refused(&mut self) -> Vec<(TableName, String)> {
        let mut refused = Vec::new();
        for table in self.progress.tables() {
            let limit = match &table.failure {
                Some(Cause::Refused(_)) => 1,
                Some(Cause::Rewritten(_)) => REWRITES_MAX,
                Some(Cause::Transient(_)) | None => continue,
            };
            let failures = self.failures.entry(table.request_id).or_insert(0);
            *failures += 1;
            if *failures < limit {
                continue;
            }
            let Some(cause) = table.failure else {
                continue;
            };
            let mut wanted = self.wanted.iter();
            let found = wanted.find(|(request, _)| *request == table.request_id);
            if found.is_some_and(|(request, wanted)| wanted.checkpoint_id == Some(*request)) {
                // Nobody waits for its rows.
                self.given_up.put(table.request_id, cause.to_string());
                self.finished.insert(table.request_id);
                continue;
            }
            let reason = format!(
                "it cannot be copied at the source: {cause}; mend that and retry the table, or take it out of the mirror"
            );
            let refusal = SyncRefusal {
                reason: reason.clone(),
                retry_id: found.and_then(|(_, table)| table.retry_id),
            };
            if self.refused().insert(table.request_id, refusal).is_none() {
                refused.push((table.source, reason));
            }
        }
        refused
    }

    /// Forgets what was refused of tables that someone has asked to try again since.
    fn try_again(&mut self, latest: &Mirror) {
        for (request, table) in &mut self.wanted {
            let own = latest
                .tables
                .iter()
                .map(|now| (now.request_id, now.retry_id));
            let attached = latest
                .attached
                .iter()
                .map(|now| (now.request_id, now.retry_id));
            let mut all = own.chain(attached);
            let asked = all.find(|(asked, _)| *asked == Some(*request));
            let Some((_, retry_id)) = asked.filter(|(_, retry_id)| *retry_id != table.retry_id)
            else {
                continue;
            };
            table.retry_id = retry_id;
            self.failures.remove(request);
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.remove(request);
        }
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the round that just ended has finished.
    fn take_finished(&mut self) {
        for table in self.progress.tables() {
            self.attempts.insert(table.request_id, table.attempt);
            if table.finished {
                self.finished.insert(table.request_id);
            }
        }
    }
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// The syncs that attached mirrors want, of the mirror's tables as it maps them. Pure.
fn of_attached(mirror: &Mirror) -> impl Iterator<Item = (Uuid, MirrorTable)> {
    mirror.attached.iter().filter_map(|attached| {
        let request = attached.request_id?;
        let mut tables = mirror.tables.iter();
        let table = tables.find(|table| table.source == attached.source)?;
        let table = MirrorTable {
            request_id: Some(request),
            retry_id: attached.retry_id,
            checkpoint_id: None,
            ..table.clone()
        };
        Some((request, table))
    })
}

/// The tables whose sync the mirror's own destination asks for and that is not recorded as
/// finished.
pub(crate) fn pending(mirror: &Mirror, recorded: &HashMap<Uuid, SyncRecord>) -> Pending {
    let is_finished = |request: &Uuid| {
        let record = recorded.get(request);
        record.is_some_and(|record| record.state == SyncState::Finished)
    };
    mirror
        .tables
        .iter()
        .filter(|table| {
            table
                .request_id
                .is_some_and(|request| !is_finished(&request))
        })
        .map(|table| table.source.clone())
        .collect()
}

/// Table syncs as the report shows them.
#[derive(Clone)]
pub(crate) struct SyncView {
    finished_before: Vec<SyncProgress>,
    waiting: Vec<SyncProgress>,
    /// Requests that the mirror's own destination does not load.
    for_others: HashSet<Uuid>,
    refused: Arc<Mutex<Refused>>,
    progress: Progress,
}

impl SyncView {
    /// Every table that was asked to be synced: the present state where a round has one.
    pub(crate) fn tables(&self) -> Vec<SyncProgress> {
        let running: HashMap<Uuid, _> = self
            .progress
            .tables()
            .into_iter()
            .map(|table| (table.request_id, table))
            .collect();
        let refused = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let present = self.waiting.iter().map(|waiting| {
            let refused = refused.get(&waiting.request_id).cloned();
            let Some(table) = running.get(&waiting.request_id) else {
                return SyncProgress {
                    refused,
                    ..waiting.clone()
                };
            };
            SyncProgress {
                refused,
                attempt: u32::try_from(table.attempt).unwrap_or_default(),
                chunks_done: table.chunks_done,
                chunks_total: table.chunks_total,
                rows_done: table.rows_done,
                rows_estimate: table.rows_estimate,
                bytes_done: table.bytes_done,
                finished: table.finished,
                ..waiting.clone()
            }
        });
        self.finished_before
            .iter()
            .cloned()
            .chain(present)
            .collect()
    }

    /// The requests whose sync is in the topics.
    pub(crate) fn finished(&self) -> HashSet<Uuid> {
        let finished = self.tables().into_iter().filter(|table| table.finished);
        finished.map(|table| table.request_id).collect()
    }

    /// The tables whose sync has not finished. A checkpoint under way changes nothing for a
    /// destination, and so nothing about what the log must say; nor does what only a destination
    /// loads that is attached, for the others read the same log.
    pub(crate) fn pending(&self) -> Pending {
        let tables = self.tables().into_iter();
        tables
            .filter(|table| !table.finished && !self.for_others.contains(&table.request_id))
            .map(|table| table.source)
            .collect()
    }

    /// Those of them that are being copied or will be, without anyone's doing.
    pub(crate) fn copying(&self) -> Pending {
        let tables = self.tables().into_iter();
        tables
            .filter(|table| !table.finished && table.refused.is_none())
            .map(|table| table.source)
            .collect()
    }

    /// What a round waits for, in words.
    pub(crate) fn messages(&self) -> Vec<String> {
        let tables = self.progress.tables().into_iter().filter_map(|table| {
            let failure = table.failure.map(|cause| cause.to_string());
            let reason = failure.or(table.waiting_for)?;
            Some(format!("{}: {reason}", table.source))
        });
        self.progress
            .waiting_for()
            .into_iter()
            .chain(tables)
            .collect()
    }
}

/// Runs rounds until every table is synced, then waits for the run to end.
pub(crate) async fn run(
    run: &Run,
    mut rounds: Rounds,
    registry: &Registry,
    recorder: SyncRecorder,
    passed: watch::Receiver<Passed>,
) -> Result<()> {
    let (lines, mut received) = mpsc::channel(LOG_LINES_MAX);
    let (view, given_up) = (rounds.view(), rounds.given_up.clone());
    let work = async {
        let mut backoff = BACKOFF_FIRST;
        let mut updates = run.context.updates();
        let mut unpublished = rounds.unpublished.clone();
        loop {
            let latest = updates.borrow_and_update().clone();
            unpublished.mark_unchanged();
            rounds.try_again(&latest);
            let tables = rounds.next_round();
            if tables.is_empty() {
                // What is refused waits for someone to ask for it again.
                tokio::select! {
                    changed = updates.changed() => if changed.is_err() {
                        return std::future::pending::<Result<()>>().await;
                    },
                    Ok(()) = unpublished.changed() => {}
                }
                continue;
            }
            let context = SnapshotContext {
                source: run.peer()?,
                application_name: run.application_name.clone(),
                kafka: run.options.kafka.clone(),
                topics: run.options.topics.clone(),
                registry: registry.clone(),
                slug: run.mirror.slug.clone(),
                slot_name: run.mirror.slot_name.clone(),
                mirror: Arc::clone(&run.mirror),
                latest: run.context.updates(),
                generation: run.mirror.generation,
                under_way: run.memory.chunks.clone(),
                tables,
                recorder: recorder.clone(),
                passed: passed.clone(),
                log: LogSink::new(lines.clone()),
                progress: rounds.progress.clone(),
            };
            let ended = snapshot::run(context, run.context.cancel.clone()).await;
            rounds.take_finished();
            for (table, reason) in rounds.take_refused() {
                let details = serde_json::json!({ "table": table.to_string(), "reason": reason });
                let message = format!("table {table} is not copied any more");
                run.context.reporter.log(LogLevel::Error, message, details);
            }
            match ended {
                Ok(()) => backoff = BACKOFF_FIRST,
                Err(error) if error.is_fatal() => return Err(error),
                // The run is ending, and this is only how the round says so.
                Err(_) if run.context.cancel.is_cancelled() => {
                    return std::future::pending().await;
                }
                Err(error) => {
                    let topic = run.options.topics.snapshot(&run.mirror.slug);
                    if let Ok(None) = run.options.kafka.partitions(&topic).await {
                        return Err(Error::transient(format!(
                            "there is no topic {topic} any more, it is made anew for the copies that are not finished: {error}"
                        )));
                    }
                    let message = format!(
                        "copying tables was interrupted and starts over for those not finished: {error}"
                    );
                    let details = serde_json::json!({});
                    run.context.reporter.log(LogLevel::Warn, message, details);
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    };
    let write_log = async {
        while let Some(line) = received.recv().await {
            let level = match line.loudness {
                Loudness::Info => LogLevel::Info,
                Loudness::Warning => LogLevel::Warn,
            };
            run.context.reporter.log(level, line.message, line.details);
        }
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = Box::pin(work) => ended,
        ended = write_log => ended,
        ended = Box::pin(checkpoints::run(run, view, given_up)) => ended,
    }
}
