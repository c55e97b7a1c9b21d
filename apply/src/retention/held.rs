//! What the topics hold, as the report shows it.

use std::sync::{Arc, Mutex, PoisonError};

use bunny_catalog::{ApplyReport, Mirror, MirrorTable, ReplayableFrom};
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
    /// Why the replay window is shorter than asked for, or soon will be.
    narrowed: Arc<Mutex<Vec<String>>>,
    /// `topic_retention_hours` as last read, which may be changed while a mirror runs.
    hours: Arc<Mutex<Option<u32>>>,
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

    /// Whether `topic_max_bytes` leaves less of a window than asked for, or soon will.
    pub(super) fn narrowed(&self, why: Vec<String>) {
        *self.narrowed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// For how long what is applied is wanted by now.
    pub(crate) fn keeps(&self, hours: u32) {
        *self.hours.lock().unwrap_or_else(PoisonError::into_inner) = Some(hours);
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

    /// When the newest copy was taken that a table can be rebuilt from, as far as is known.
    fn newest_copy_at(&self, table: &MirrorTable, generation: Uuid) -> Option<DateTime<Utc>> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let (retained, since) = (retained.as_ref()?, table.copies_since());
        let newest = retained.newest(&table.source, generation, &since, |_| true);
        DateTime::from_timestamp_micros(newest.ok()?.taken_at_us)
    }

    /// Adds to a report what the topics hold.
    pub(crate) fn show(&self, mirror: &Mirror, report: &mut ApplyReport) {
        for table in &mut report.tables {
            table.replayable_from = self.replayable_from(mirror, &table.source);
            let mut mapped = mirror.tables.iter();
            let mapping = mapped.find(|mapping| mapping.source == table.source);
            table.newest_copy_at =
                mapping.and_then(|mapping| self.newest_copy_at(mapping, mirror.generation));
        }
        let hours = *self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        let hours = hours.unwrap_or(mirror.config.topic_retention_hours);
        let mapped = (&*mirror.tables, mirror.generation);
        report
            .messages
            .extend(self.warnings(mapped, hours, Utc::now()));
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
    fn warnings(
        &self,
        (tables, generation): (&[MirrorTable], Uuid),
        hours: u32,
        now: DateTime<Utc>,
    ) -> Vec<String> {
        let hours = i64::from(hours);
        if hours == 0 {
            // No window is asked for.
            return Vec::new();
        }
        let soon = TimeDelta::minutes(hours * 6).min(TimeDelta::days(1));
        let cure = "POST …/checkpoint, or set checkpoint_interval_hours";
        let warning = |table: &MirrorTable| {
            let source = &table.source;
            let ends = self.newest_copy_at(table, generation)? + TimeDelta::hours(hours);
            if ends <= now {
                // What nothing has followed, or somebody needs, stays for longer.
                return Some(format!(
                    "table {source} can be rebuilt from the topics, and soon perhaps not any more: its newest copy is older than topic_retention_hours: {cure}"
                ));
            }
            (now + soon >= ends).then(|| {
                format!(
                    "table {source} can be rebuilt from the topics until about {} only: {cure}",
                    ends.format("%Y-%m-%d %H:%M UTC")
                )
            })
        };
        tables.iter().filter_map(warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use bunny_schemas::control::SyncRecord;

    use super::super::said::testing::{GENERATION, copy, mapping, retained};
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

    #[test]
    fn it_is_said_before_a_table_cannot_be_rebuilt_any_more() {
        let taken = DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
        let newest = SyncRecord {
            taken_at_us: taken.timestamp_micros(),
            ..copy(2, 20)
        };
        let held = Held::default();
        let tables = [mapping()];
        let said = |hours: u32, minutes: i64| {
            let now = taken + TimeDelta::minutes(minutes);
            held.warnings((&tables, GENERATION), hours, now)
        };
        assert!(said(10, 595).is_empty(), "nothing is known yet");
        // The earlier one is older than the window, and that is of no consequence.
        held.set(Retained {
            syncs: vec![copy(1, 10), newest],
            ..retained(0)
        });
        // The last tenth of ten hours is one hour, that of 300 would be more than a day.
        assert!(said(10, 539).is_empty());
        let near = "table public.t can be rebuilt from the topics until about 2023-11-15 08:13 UTC only: POST …/checkpoint, or set checkpoint_interval_hours";
        assert_eq!(said(10, 540), [near]);
        assert!(said(300, 275 * 60).is_empty());
        assert_eq!(said(300, 276 * 60).len(), 1);
        let over = said(10, 600);
        assert!(over[0].contains("is older than topic_retention_hours"));
        assert!(said(0, 1).is_empty(), "nobody wants a window");
        // What is trimmed is said when it goes, and not again.
        held.set(retained(21));
        assert!(said(10, 540).is_empty());
    }
}
