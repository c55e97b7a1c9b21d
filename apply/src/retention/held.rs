//! What the topics hold, as the report shows it.

use std::sync::{Arc, Mutex, PoisonError};

use bunny_catalog::{ApplyReport, Mirror, ReplayableFrom};
use bunny_postgres::TableName;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::retained::Retained;
use bunny_schemas::topics::Topics;
use chrono::{DateTime, TimeDelta, Utc};
use tokio_postgres::Client;
use uuid::Uuid;

use super::floor::floor;
use crate::context::MirrorRun;
use crate::error::Error;

/// So many failures to trim in a row are said: topics that only grow fill a disk some day.
const FAILURES_SAID: u32 = 3;

/// What the report shows of what the topics hold; shared with the task that trims them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    retained: Arc<Mutex<Option<Retained>>>,
    /// Failures to trim in a row, and the last of them.
    failures: Arc<Mutex<(u32, String)>>,
    /// Why the replay window is shorter than asked for, if it is.
    narrowed: Arc<Mutex<Option<String>>>,
}

impl Held {
    pub(super) fn set(&self, retained: Retained) {
        *self.retained.lock().unwrap_or_else(PoisonError::into_inner) = Some(retained);
    }

    /// How an attempt to trim has ended.
    pub(super) fn trimmed(&self, error: Option<Error>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures = match error {
            None => (0, String::new()),
            Some(error) => (failures.0.saturating_add(1), error.to_string()),
        };
    }

    /// Whether `topic_max_bytes` leaves less of a window than asked for.
    pub(super) fn narrowed(&self, why: Option<String>) {
        *self.narrowed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What lasts of the trouble to trim the topics.
    fn trouble(&self) -> Option<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = &*failures;
        (*count >= FAILURES_SAID).then(|| {
            format!("the topics are not trimmed, though some of what they hold is not needed any more: {last}")
        })
    }

    /// The earliest copy that a table can be rebuilt from, as far as is known.
    fn replayable_from(&self, mirror: &Mirror, source: &TableName) -> Option<ReplayableFrom> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let mapping = mirror.tables.iter().find(|table| table.source == *source)?;
        let retained = retained.as_ref()?;
        let earliest = retained.earliest(source, mirror.generation, &mapping.copies_since())?;
        Some(ReplayableFrom {
            lsn: earliest.lsn,
            time: DateTime::from_timestamp_micros(earliest.taken_at_us).unwrap_or_default(),
        })
    }

    /// Adds to a report what the topics hold.
    pub(crate) fn show(&self, mirror: &Mirror, report: &mut ApplyReport) {
        for table in &mut report.tables {
            table.replayable_from = self.replayable_from(mirror, &table.source);
        }
        report.messages.extend(self.warnings(mirror, Utc::now()));
        report.messages.extend(self.trouble());
        let narrowed = self.narrowed.lock().unwrap_or_else(PoisonError::into_inner);
        report.messages.extend(narrowed.clone());
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        report.copies_bytes = retained.as_ref().map(Retained::copies_bytes);
    }

    /// Reads what the topics hold and do not give up.
    pub(crate) async fn read(&self, run: &MirrorRun) {
        let slug = run.mirror.topics_slug();
        let read = async {
            let mut retained = Retained::read(&run.kafka, &run.topics, slug).await?;
            let session = run.connect().await?;
            let client: &Client = &session;
            let floor = floor(client, run.mirror_id(), run.mirror.generation).await?;
            retained.changes.0 = retained.changes.0.max(floor);
            Ok::<_, Error>(retained)
        };
        match read.await {
            Ok(retained) => self.set(retained),
            Err(error) => {
                tracing::debug!(mirror = %run.mirror.name, %error, "what the topics hold is not known yet");
            }
        }
    }

    /// Reads what the topics hold, for a mirror that trims nothing.
    pub(crate) async fn read_topics(
        &self,
        kafka: &KafkaConfig,
        topics: &Topics,
        slug: &str,
        floor: i64,
    ) {
        if let Ok(mut retained) = Retained::read(kafka, topics, slug).await {
            retained.changes.0 = retained.changes.0.max(floor);
            self.set(retained);
        }
    }

    /// Tables that soon cannot be rebuilt any more, a sentence each.
    fn warnings(&self, mirror: &Mirror, now: DateTime<Utc>) -> Vec<String> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(retained) = retained.as_ref() else {
            return Vec::new();
        };
        let hours = i64::from(mirror.config.topic_retention_hours);
        let soon = TimeDelta::minutes(hours * 6).min(TimeDelta::days(1));
        let warning = |source: &TableName, since: &[Uuid]| {
            let newest = retained
                .newest(source, mirror.generation, since, |_| true)
                .ok()?;
            let taken = DateTime::from_timestamp_micros(newest.taken_at_us)?;
            let ends = taken + TimeDelta::hours(hours);
            (now + soon >= ends).then(|| {
                format!(
                    "table {source} can be rebuilt from the topics until about {} only: POST …/checkpoint, or set checkpoint_interval_hours",
                    ends.format("%Y-%m-%d %H:%M UTC")
                )
            })
        };
        let tables = mirror.tables.iter();
        tables
            .filter_map(|table| warning(&table.source, &table.copies_since()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said() {
        let held = Held::default();
        for _ in 0..FAILURES_SAID {
            assert_eq!(held.trouble(), None);
            held.trimmed(Some(Error::NotYet("not authorized".into())));
        }
        let said = held.trouble().expect("said");
        assert!(said.ends_with("not authorized"), "{said}");
        held.trimmed(None);
        assert_eq!(held.trouble(), None);
    }
}
