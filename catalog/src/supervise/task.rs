//! What a supervised task is given, and what it gives back.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bunny_postgres::TableName;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::drift::Drift;
use crate::leases::Role;
use crate::logs::LogLevel;
use crate::mirrors::Mirror;
use crate::peers::Peer;
use crate::reports::Report;
use crate::{Catalog, Result};

/// A task that still reports after so long has recovered from its last failure.
const RECOVERED_AFTER: Duration = Duration::from_secs(3);
/// How often reports are stored.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How long storing one report may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last report of a task may take.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Log entries that wait for the catalog; older ones are dropped.
const LOG_QUEUE_MAX: usize = 500;

/// How a task ended without failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Nothing to do until the mirror's row changes (or it was cancelled).
    Idle,
    /// This role's side of a mirror being deleted is gone.
    Deleted,
}

/// Whether and when a failed task is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// After a pause that grows from 1 s to 60 s.
    Transient,
    /// When the mirror's row changes, or on `retry`: a person must act.
    Fatal,
    /// As fatal, and only another generation than this cures it: slot, log and source do not
    /// belong together any more.
    HistoryLost { generation: Uuid },
    /// As transient, but only once the catalog has said that the lease is still
    /// ours: another worker has fenced this one off, and two that fence each
    /// other off get nothing done.
    Fenced,
}

/// How a task failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// What was being done, to what, and what to do; shown to users.
    pub message: String,
    /// What happens next.
    pub kind: FailureKind,
}

impl TaskFailure {
    /// It may work later.
    pub fn transient(message: impl fmt::Display) -> TaskFailure {
        TaskFailure {
            message: message.to_string(),
            kind: FailureKind::Transient,
        }
    }

    /// A person must act.
    pub fn fatal(message: impl fmt::Display) -> TaskFailure {
        TaskFailure {
            message: message.to_string(),
            kind: FailureKind::Fatal,
        }
    }

    /// A person must ask for another generation than this one.
    pub fn history_lost(message: impl fmt::Display, generation: Uuid) -> TaskFailure {
        TaskFailure {
            message: message.to_string(),
            kind: FailureKind::HistoryLost { generation },
        }
    }

    /// Another worker has taken over.
    pub fn fenced(message: impl fmt::Display) -> TaskFailure {
        TaskFailure {
            message: message.to_string(),
            kind: FailureKind::Fenced,
        }
    }
}

/// What a task gives back.
pub type Outcome = std::result::Result<Finished, TaskFailure>;

/// What a task is given besides its mirror.
#[derive(Debug, Clone)]
pub struct MirrorContext {
    /// Cancelled when the task shall end: shutdown, a changed row, a lost lease.
    pub cancel: CancellationToken,
    /// Takes reports and log entries; never waits for the catalog.
    pub reporter: Reporter,
    /// Rises with each change of hands of the lease.
    pub lease_epoch: i64,
    /// For the few questions that a task asks itself. The data path must not
    /// wait for its answers.
    pub catalog: Catalog,
    /// The source peer, as last read.
    pub source: Peer,
    /// The destination peer, as last read.
    pub destination: Peer,
    pub(crate) updates: watch::Receiver<Arc<Mirror>>,
}

impl MirrorContext {
    /// The mirror's row as last read. It differs from what the task was started
    /// with in what does not restart it: `generation_ready`, and options that are read
    /// when they are needed.
    pub fn latest(&self) -> Arc<Mirror> {
        self.updates.borrow().clone()
    }

    /// The mirror's row as last read, and word when it changes, for parts of a task.
    pub fn updates(&self) -> watch::Receiver<Arc<Mirror>> {
        self.updates.clone()
    }

    /// Waits until [`MirrorContext::latest`] may have changed. Never returns
    /// once the supervisor is gone; wait for `cancel` as well.
    pub async fn changed(&mut self) {
        if self.updates.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    report: Option<Value>,
    /// Where the task stood when it last reported.
    place: Option<Value>,
    drift: Drift,
    logs: VecDeque<(LogLevel, String, Value)>,
}

/// Takes what a task has to say. What it takes is stored about twice a second
/// in the background of the task; while the catalog is away the newest report
/// and the newest log entries are kept.
#[derive(Debug, Clone)]
pub struct Reporter {
    mirror_id: Uuid,
    role: Role,
    epoch: i64,
    started: Instant,
    recovered: Arc<AtomicBool>,
    pending: Arc<Mutex<Pending>>,
}

impl Reporter {
    pub(crate) fn new(mirror_id: Uuid, role: Role, epoch: i64) -> Reporter {
        Reporter {
            mirror_id,
            role,
            epoch,
            started: Instant::now(),
            recovered: Arc::default(),
            pending: Arc::default(),
        }
    }

    /// A reporter that stores nothing, for tests of tasks.
    pub fn discard() -> Reporter {
        Reporter::new(Uuid::nil(), Role::Capture, 0)
    }

    /// Replaces the last report. Call it about once a second. One of the other
    /// role's kind is a mistake and is not stored.
    pub fn report<R: Report>(&self, report: &R) {
        if R::ROLE != self.role {
            tracing::error!(role = %self.role, "a task reported for the other role");
            return;
        }
        match serde_json::to_value(report) {
            Ok(value) => {
                let mut pending = self.pending();
                pending.report = Some(value);
                pending.place = Some(report.place());
            }
            Err(error) => tracing::error!(%error, "a report cannot be serialised"),
        }
        if self.started.elapsed() >= RECOVERED_AFTER {
            self.recovered();
        }
    }

    /// Adds an entry to the mirror's log. `details` is an object.
    pub fn log(&self, level: LogLevel, message: impl Into<String>, details: Value) {
        let mut pending = self.pending();
        if pending.logs.len() >= LOG_QUEUE_MAX {
            pending.logs.pop_front();
        }
        pending.logs.push_back((level, message.into(), details));
    }

    /// Counts rows of a destination table that were not as the stream implies. The mirror's log
    /// tells of them about once a minute, and when the task ends.
    pub fn drifted(&self, table: &TableName, kind: &'static str, rows: u64) {
        self.pending().drift.add(table, kind, rows);
    }

    /// Where the task stood when it last reported, for the log.
    pub(crate) fn place(&self) -> Option<Value> {
        self.pending().place.clone()
    }

    /// Says that the task does its work again: the last failure is over, and
    /// the next one starts with a short pause. Said by itself with the first
    /// report that comes 3 s after the start.
    pub fn recovered(&self) {
        self.recovered.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_recovered(&self) -> bool {
        self.recovered.load(Ordering::Relaxed)
    }

    /// Stores what comes, for ever; run beside the task.
    pub(crate) async fn flush_forever(&self, catalog: &Catalog) -> Infallible {
        loop {
            tokio::time::sleep(FLUSH_EVERY).await;
            let drift = self.pending().drift.due(Instant::now());
            self.log_drift(drift);
            self.flush(catalog, FLUSH_TIMEOUT).await;
        }
    }

    pub(crate) async fn flush_last(&self, catalog: &Catalog) {
        let drift = self.pending().drift.rest(Instant::now());
        self.log_drift(drift);
        self.flush(catalog, LAST_FLUSH_TIMEOUT).await;
    }

    fn log_drift(&self, drift: Option<(String, Value)>) {
        if let Some((message, details)) = drift {
            self.log(LogLevel::Warn, message, details);
        }
    }

    async fn flush(&self, catalog: &Catalog, timeout: Duration) {
        match tokio::time::timeout(timeout, self.store(catalog)).await {
            Ok(Ok(())) => {}
            // The supervisor says that the catalog is away; once is enough.
            Ok(Err(error)) => tracing::debug!(mirror_id = %self.mirror_id, %error, "not reported"),
            Err(_) => tracing::debug!(mirror_id = %self.mirror_id, "not reported in time"),
        }
    }

    async fn store(&self, catalog: &Catalog) -> Result<()> {
        let report = self.pending().report.clone();
        if let Some(report) = report {
            catalog
                .put_report(self.mirror_id, self.role, self.epoch, &report)
                .await?;
            let mut pending = self.pending();
            if pending.report.as_ref() == Some(&report) {
                pending.report = None;
            }
        }
        loop {
            let entry = self.pending().logs.front().cloned();
            let Some((level, message, details)) = entry else {
                return Ok(());
            };
            catalog
                .log(self.mirror_id, level, &message, details)
                .await?;
            self.pending().logs.pop_front();
        }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
