//! What a sync round needs of the mirror's main stream, as small concrete types.
//!
//! The round never publishes to the change or position topic itself: whether a sync has
//! started or finished is recorded by the one transactional, fenced publisher, so a round
//! of a worker that has been replaced can't claim anything.

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::SyncRecord;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::error::{Error, Result};

/// What is to be recorded of a sync, by its request; without a record the former one is removed.
pub type SyncNote = (Uuid, Option<SyncRecord>);

/// Notes on their way to the publisher, with the line to answer on once the Kafka
/// transaction that holds them is committed. Dropping the answer means: not recorded.
pub type SyncRequest = (Vec<SyncNote>, oneshot::Sender<()>);

/// How far the main stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Every event of a transaction with `commit_lsn` below this is in the change topic,
    /// committed.
    pub lsn: Lsn,
    /// The last event published.
    pub published: Position,
}

/// Hands sync records to the main publisher.
#[derive(Debug, Clone)]
pub struct SyncRecorder {
    requests: mpsc::Sender<SyncRequest>,
}

impl SyncRecorder {
    /// A recorder that sends to whoever holds the other end of `requests`.
    pub fn new(requests: mpsc::Sender<SyncRequest>) -> Self {
        Self { requests }
    }

    /// Returns when `record` is committed to the position topic.
    ///
    /// # Errors
    /// The publisher is gone; the record may or may not have been committed.
    pub async fn record(&self, record: SyncRecord) -> Result<()> {
        self.note(vec![(record.request_id, Some(record))]).await
    }

    /// Returns when the position topic has no records of these syncs any more.
    ///
    /// # Errors
    /// The publisher is gone; they may or may not have been removed.
    pub async fn forget(&self, requests: Vec<Uuid>) -> Result<()> {
        let notes = requests.into_iter().map(|request| (request, None));
        self.note(notes.collect()).await
    }

    async fn note(&self, notes: Vec<SyncNote>) -> Result<()> {
        let (committed, answer) = oneshot::channel();
        self.requests
            .send((notes, committed))
            .await
            .map_err(|_| publisher_gone())?;
        answer.await.map_err(|_| publisher_gone())
    }
}

/// Waits until everything below `lsn` is published and returns where the stream is then.
pub(crate) async fn passed(stream: &mut watch::Receiver<Passed>, lsn: Lsn) -> Result<Passed> {
    let passed = stream
        .wait_for(|passed| passed.lsn >= lsn)
        .await
        .map_err(|_| publisher_gone())?;
    Ok(*passed)
}

fn publisher_gone() -> Error {
    Error::transient("the mirror's publisher ended while tables were being synced")
}

/// How loud a line of the mirror's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loudness {
    Info,
    Warning,
}

/// A line for the mirror's log, which users read.
#[derive(Debug, Clone)]
pub struct LogLine {
    pub loudness: Loudness,
    pub message: String,
    /// Further facts by name; an object.
    pub details: serde_json::Value,
}

/// Where lines for the mirror's log go. Never waits: a full queue costs the line, which is
/// then only in the process's own log.
#[derive(Debug, Clone)]
pub struct LogSink {
    lines: mpsc::Sender<LogLine>,
}

impl LogSink {
    /// A sink that sends to whoever holds the other end of `lines`.
    pub fn new(lines: mpsc::Sender<LogLine>) -> Self {
        Self { lines }
    }

    pub(super) fn info(&self, message: impl Into<String>, details: serde_json::Value) {
        self.say(Loudness::Info, message.into(), details);
    }

    pub(super) fn warning(&self, message: impl Into<String>, details: serde_json::Value) {
        self.say(Loudness::Warning, message.into(), details);
    }

    fn say(&self, loudness: Loudness, message: String, details: serde_json::Value) {
        match loudness {
            Loudness::Info => tracing::info!(%details, "{message}"),
            Loudness::Warning => tracing::warn!(%details, "{message}"),
        }
        let line = LogLine {
            loudness,
            message,
            details,
        };
        if let Err(error) = self.lines.try_send(line) {
            tracing::debug!(%error, "a line did not reach the mirror's log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_the_stream_to_pass() {
        let (sender, mut receiver) = watch::channel(Passed::default());
        let waiting = tokio::spawn(async move { passed(&mut receiver, Lsn(10)).await });
        sender.send_replace(Passed {
            lsn: Lsn(9),
            ..Passed::default()
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        sender.send_replace(Passed {
            lsn: Lsn(10),
            ..Passed::default()
        });
        let found = waiting.await.expect("task").expect("passed");
        assert_eq!(found.lsn, Lsn(10));
    }

    #[tokio::test]
    async fn a_lost_publisher_is_an_error() {
        let (sender, mut receiver) = watch::channel(Passed::default());
        drop(sender);
        assert!(passed(&mut receiver, Lsn(1)).await.is_err());
    }
}
