//! Retention: trims the topics of what nobody needs any more (DeleteRecords).
//!
//! A *floor* is kept in the destination (`_bunny.retention`): the change topic is not needed
//! below it. It only rises, in a transaction that is fenced like every other, and nothing is
//! trimmed above the floor that is stored. So a worker that was frozen and thaws may only
//! repeat what had been decided before another took over. A replay that would need more is
//! refused before its table is touched; one that has begun holds the floor by its table's
//! offset.
//!
//! The floor is the lowest of: the last event applied, which always stays; what tables that
//! are set aside, being loaded or catching up need; and the first event younger than
//! `topic_retention_hours`. While a table waits for a sync of which nothing is known yet, it
//! stays where it is. Chunks go with the changes they need: a sync counts as long as its
//! changes begin at the floor or above.
//!
//! On failure: nothing is trimmed, and it is tried again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bunny_catalog::{ApplyReport, LogLevel, Mirror, ReplayableFrom};
use bunny_postgres::TableName;
use bunny_schemas::control::SyncRecord;
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::retained::Retained;
use bunny_schemas::topics::Topics;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::bookkeeping::{self, Progress, State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::reader::PARTITION;
use crate::swap;

/// How often it is looked at what can go.
const EVERY: Duration = Duration::from_secs(10);
/// Between saying what will not be replayable any more and trimming it: the report is written
/// every second.
const SAID_BEFORE: Duration = Duration::from_secs(3);

/// What the report shows of what the topics hold; shared with the task that trims them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    retained: Arc<Mutex<Option<Retained>>>,
}

impl Held {
    fn set(&self, retained: Retained) {
        *self.retained.lock().unwrap_or_else(PoisonError::into_inner) = Some(retained);
    }

    /// The earliest copy that a table can be rebuilt from, as far as is known.
    fn replayable_from(&self, mirror: &Mirror, source: &TableName) -> Option<ReplayableFrom> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let mapping = mirror.tables.iter().find(|table| table.source == *source)?;
        let retained = retained.as_ref()?;
        let earliest = retained.earliest(source, mirror.generation, mapping.since_request)?;
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
    }

    /// Reads what the topics hold and do not give up.
    pub(crate) async fn read(&self, run: &MirrorRun) {
        let slug = &run.mirror.slug;
        let read = async {
            let mut retained = Retained::read(&run.kafka, &run.topics, slug).await?;
            let session = run.connect().await?;
            let floor = floor::<Client>(&session, run.mirror_id()).await?;
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
        let warning = |source: &TableName, since: Option<Uuid>| {
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
            .filter_map(|table| warning(&table.source, table.since_request))
            .collect()
    }
}

/// Trims until it is dropped.
pub(crate) async fn run(run: MirrorRun, held: Held) {
    loop {
        if let Err(error) = look(&run, &held).await {
            tracing::debug!(mirror = %run.mirror.name, %error, "the topics are trimmed later");
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(run: &MirrorRun, held: &Held) -> Result<()> {
    let slug = &run.mirror.slug;
    let changes = run.topics.changes(slug);
    let snapshot = run.topics.snapshot(slug);
    // Before the syncs are read: one that is recorded later writes behind these ends.
    let mut ends = Vec::new();
    for partition in 0..run.kafka.partitions(&snapshot).await?.unwrap_or_default() {
        ends.push(run.kafka.watermarks(&snapshot, partition).await?.1);
    }
    let mut retained = Retained::read(&run.kafka, &run.topics, slug).await?;
    // The options may change while this runs.
    let hours = run
        .catalog
        .get_mirror(&run.mirror.name)
        .await?
        .config
        .topic_retention_hours;
    let oldest = Utc::now() - TimeDelta::hours(hours.into());
    let in_window = run
        .kafka
        .offset_at(&changes, PARTITION, oldest.timestamp_millis())
        .await?;

    let session = run.connect().await?;
    let client: &Client = &session;
    let Some(progress) = bookkeeping::progress(client, run.mirror_id()).await? else {
        held.set(retained);
        return Ok(());
    };
    let mut tables = bookkeeping::tables(client, run.mirror_id()).await?;
    tables.extend(bookkeeping::tables(client, swap::ledger_of(run.mirror_id())).await?);
    let former = floor(client, run.mirror_id()).await?;
    let lowest = lowest_needed(&tables, &progress, in_window);
    let next = lowest.map_or(former, |lowest| lowest.max(former));
    if next > former {
        raise(client, run, next).await?;
        reached(crash_points::RETENTION_RAISED);
    }
    let before = retained.clone();
    retained.changes.0 = retained.changes.0.max(next);
    say_what_goes(run, &before, &retained);
    let firsts = first_needed(&retained, next, &ends);
    let is_trimmed = before.changes.0 >= next
        && before
            .snapshot
            .iter()
            .zip(&firsts)
            .all(|(low, first)| low >= first);
    held.set(retained);
    if is_trimmed {
        return Ok(());
    }
    tokio::time::sleep(SAID_BEFORE).await;
    if before.changes.0 < next {
        run.kafka.delete_records(&changes, PARTITION, next).await?;
        tracing::info!(mirror = %run.mirror.name, offset = next, "the change topic is trimmed");
    }
    for (partition, (first, low)) in (0..).zip(firsts.iter().zip(&before.snapshot)) {
        if low < first {
            run.kafka
                .delete_records(&snapshot, partition, *first)
                .await?;
        }
    }
    Ok(())
}

/// The first offset of the change topic that is needed; none: that cannot be told now. Pure.
fn lowest_needed(tables: &[TableState], progress: &Progress, in_window: i64) -> Option<i64> {
    let waits_for_unknown = |table: &TableState| {
        table.restart_offset.is_none()
            && !table.in_main
            && (table.state != State::Live || table.request_id.is_some())
    };
    if tables.iter().any(waits_for_unknown) {
        return None;
    }
    let kept = tables.iter().filter(|table| !table.in_main);
    let kept = kept.filter_map(|table| table.restart_offset);
    // The last event applied stays: capture and apply find their place by the last of all.
    let applied = (progress.next_offset - 1).max(0);
    Some(kept.chain([applied, in_window]).min().unwrap_or(0))
}

/// For each partition of the snapshot topic, the first offset that a sync needs whose changes
/// begin at the floor or above, finished or not. `ends`: what came later is not known. Pure.
fn first_needed(retained: &Retained, floor: i64, ends: &[i64]) -> Vec<i64> {
    let counts = |sync: &&SyncRecord| sync.generation.is_nil() || sync.changes_offset >= floor;
    let needed: Vec<&SyncRecord> = retained.syncs.iter().filter(counts).collect();
    let first = |(partition, end): (usize, &i64)| {
        let starts = needed
            .iter()
            .map(|sync| sync.start_offsets.get(partition).copied().unwrap_or(0));
        starts.min().unwrap_or(*end).min(*end)
    };
    ends.iter().enumerate().map(first).collect()
}

fn say_what_goes(run: &MirrorRun, before: &Retained, after: &Retained) {
    for table in &run.mirror.tables {
        let earliest = |retained: &Retained| {
            let found =
                retained.earliest(&table.source, run.mirror.generation, table.since_request);
            found.map(|sync| sync.lsn)
        };
        let (was, is) = (earliest(before), earliest(after));
        if was.is_some() && is.is_none() {
            let message = format!(
                "table {} cannot be rebuilt from the topics any more: what its last copy needs is older than topic_retention_hours. POST …/checkpoint makes a new one",
                table.source
            );
            let details = json!({"table": table.source.to_string()});
            run.reporter.log(LogLevel::Warn, message, details);
        }
    }
}

/// Below which offset of the change topic nothing is needed; 0 before anything was decided.
pub(crate) async fn floor<C: GenericClient + Sync>(client: &C, mirror_id: Uuid) -> Result<i64> {
    let row = client
        .query_opt(
            "SELECT floor_offset FROM _bunny.retention WHERE mirror_id = $1",
            &[&mirror_id],
        )
        .await
        .map_err(Error::sql("reading what the topics are kept for"))?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// Raises the floor, unless something is needed below it by now: then nothing is stored.
async fn raise(client: &Client, run: &MirrorRun, floor: i64) -> Result<()> {
    let mirror_id = run.mirror_id();
    client
        .batch_execute("BEGIN")
        .await
        .map_err(Error::sql("beginning to raise the retention floor"))?;
    let raised = async {
        bookkeeping::fence(client, mirror_id, run.epoch).await?;
        client
            .execute(
                "INSERT INTO _bunny.retention (mirror_id, floor_offset) VALUES ($1, $2)
                 ON CONFLICT (mirror_id) DO UPDATE
                 SET floor_offset = greatest(_bunny.retention.floor_offset, excluded.floor_offset), updated_at = now()",
                &[&mirror_id, &floor],
            )
            .await
            .map_err(Error::sql("raising the retention floor"))?;
        client
            .batch_execute("COMMIT")
            .await
            .map_err(Error::sql("committing the retention floor"))
    };
    raised.await
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use bunny_schemas::Position;
    use bunny_schemas::control::SyncState;

    use super::*;

    fn table(state: State, in_main: bool, restart_offset: Option<i64>) -> TableState {
        let name = TableName::new("public", "t");
        TableState {
            state,
            in_main,
            restart_offset,
            ..TableState::wanted(name.clone(), name, Some(Uuid::from_u128(1)))
        }
    }

    fn lowest(tables: &[TableState], in_window: i64) -> Option<i64> {
        let progress = Progress {
            generation: Uuid::nil(),
            position: Position::default(),
            next_offset: 100,
        };
        lowest_needed(tables, &progress, in_window)
    }

    #[test]
    fn the_lowest_of_all_that_need_the_log() {
        let live = table(State::Live, true, None);
        assert_eq!(
            lowest(std::slice::from_ref(&live), 500),
            Some(99),
            "the last event stays"
        );
        assert_eq!(
            lowest(std::slice::from_ref(&live), 50),
            Some(50),
            "the window"
        );
        for state in [
            State::Errored,
            State::Parked,
            State::CatchingUp,
            State::Syncing,
            State::Pending,
        ] {
            let behind = table(state, false, Some(20));
            assert_eq!(lowest(&[live.clone(), behind], 500), Some(20), "{state:?}");
        }
    }

    #[test]
    fn nothing_goes_while_a_sync_may_need_what_nobody_knows() {
        let waiting = table(State::Pending, false, None);
        assert_eq!(lowest(&[waiting], 500), None);
    }

    #[test]
    fn chunks_go_with_their_changes() {
        let sync = |changes_offset, start_offsets: [i64; 2], state| SyncRecord {
            request_id: Uuid::new_v4(),
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state,
            lsn: Lsn(1),
            start_offsets: start_offsets.to_vec(),
            generation: Uuid::from_u128(7),
            changes_offset,
            taken_at_us: 0,
            rows: 0,
            bytes: 0,
        };
        let retained = Retained {
            syncs: vec![
                sync(10, [0, 0], SyncState::Finished),
                sync(20, [5, 7], SyncState::Finished),
                sync(30, [9, 8], SyncState::Started),
            ],
            ..Retained::default()
        };
        assert_eq!(first_needed(&retained, 10, &[50, 50]), [0, 0]);
        assert_eq!(first_needed(&retained, 11, &[50, 50]), [5, 7]);
        assert_eq!(
            first_needed(&retained, 21, &[50, 6]),
            [9, 6],
            "not past what was there"
        );
        assert_eq!(first_needed(&retained, 31, &[50, 60]), [50, 60]);
    }
}
