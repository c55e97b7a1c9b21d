//! What a run knows about itself from moment to moment; the report reads it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bunny_schemas::Position;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::bookkeeping::Progress;

/// One moment of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// What the run is doing, a word or a sentence.
    pub phase: String,
    pub generation: Option<Uuid>,
    /// The last event applied and committed.
    pub applied: Position,
    pub next_offset: i64,
    /// Commit time at the source of the oldest event received and not applied,
    /// microseconds since the Unix epoch.
    pub oldest_waiting_us: Option<i64>,
    /// The last event received.
    pub received: Option<Position>,
    /// The reader met the end of the log and has received nothing since.
    pub at_end: bool,
    /// The end of the log as last asked for.
    pub end_offset: i64,
    /// Events applied since the run began, those without effect included.
    pub events_applied: u64,
}

impl Moment {
    /// The log holds nothing that is not applied.
    pub fn is_caught_up(&self) -> bool {
        self.at_end
            && self
                .received
                .is_none_or(|received| received <= self.applied)
    }
}

/// Shared by the tasks of a run.
#[derive(Debug, Default)]
pub struct Stats {
    moment: Mutex<Moment>,
    news: Notify,
}

impl Stats {
    pub fn moment(&self) -> Moment {
        self.lock().clone()
    }

    pub fn phase(&self, phase: impl Into<String>) {
        self.lock().phase = phase.into();
        self.news();
    }

    /// Something has changed that people wait for.
    pub fn news(&self) {
        self.news.notify_one();
    }

    /// Returns when there is news, and in any case after `longest`. For one task.
    pub async fn news_or(&self, longest: Duration) {
        // No news in that time is an answer too.
        let _ = tokio::time::timeout(longest, self.news.notified()).await;
    }

    /// An event came from the log.
    pub fn received(&self, position: Position, commit_ts_us: i64) {
        let mut moment = self.lock();
        moment.at_end = false;
        moment.received = Some(position);
        moment.oldest_waiting_us.get_or_insert(commit_ts_us);
    }

    /// The reader met the end of the log.
    pub fn at_end(&self) {
        self.lock().at_end = true;
    }

    pub fn end_offset(&self, end_offset: i64) {
        self.lock().end_offset = end_offset;
    }

    /// A run of main begins at `progress`; what an earlier one had received is forgotten.
    pub fn begins(&self, progress: &Progress) {
        {
            let mut moment = self.lock();
            moment.received = None;
            moment.at_end = false;
        }
        self.applied(progress, 0);
    }

    /// The applier begins to write events of that commit time.
    pub fn writing(&self, commit_ts_us: i64) {
        self.lock().oldest_waiting_us = Some(commit_ts_us);
    }

    pub fn applied(&self, progress: &Progress, events: u64) {
        let mut moment = self.lock();
        moment.generation = Some(progress.generation);
        moment.applied = progress.position;
        moment.next_offset = progress.next_offset;
        moment.events_applied += events;
        // What waits behind it says its own time when it is received or written.
        moment.oldest_waiting_us = None;
    }

    fn lock(&self) -> MutexGuard<'_, Moment> {
        self.moment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
