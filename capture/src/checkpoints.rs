//! Checkpoints: ends their commands, and asks for those that are due.
//!
//! The copies themselves are made by the rounds, like those of any other sync.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bunny_catalog::{AwaitedTable, CHECKPOINT, Mirror, MirrorTable};
use bunny_postgres::TableName;
use bunny_schemas::control::{SyncRecord, SyncState};
use bunny_schemas::reader::read_positions;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::crash_points::{CHECKPOINT_COPIED, crash_point};
use crate::error::Result;
use crate::rounds::SyncView;
use crate::run::Run;

/// How often commands are looked after while there are any.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether a checkpoint is due.
const DUE_EVERY: Duration = Duration::from_secs(60);

/// Checkpoints that came to nothing, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenUp {
    reasons: Arc<Mutex<HashMap<Uuid, String>>>,
}

impl GivenUp {
    pub(crate) fn put(&self, request_id: Uuid, why: String) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.insert(request_id, why);
    }

    fn get(&self, request_id: Uuid) -> Option<String> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.get(&request_id).cloned()
    }
}

/// Runs beside the rounds, for ever. The catalog or Kafka being away is no reason to stop
/// capturing: it is tried again.
pub(crate) async fn run(run: &Run, view: SyncView, given_up: GivenUp) -> Result<()> {
    let mut has_open = true;
    let mut looked_at = tokio::time::Instant::now();
    loop {
        if has_open {
            match settle(run, &view, &given_up).await {
                Ok(still) => has_open = still,
                Err(error) => {
                    tracing::debug!(mirror = %run.mirror.name, %error, "checkpoints are ended later");
                }
            }
        }
        tokio::time::sleep(SETTLE_EVERY).await;
        if looked_at.elapsed() >= DUE_EVERY {
            looked_at = tokio::time::Instant::now();
            if let Err(error) = ask_if_due(run).await {
                tracing::debug!(mirror = %run.mirror.name, %error, "whether a checkpoint is due is looked at later");
            }
        }
    }
}

/// Ends the commands whose copies are there. Whether there are others; a new one starts this
/// run anew.
async fn settle(run: &Run, view: &SyncView, given_up: &GivenUp) -> Result<bool> {
    let catalog = &run.options.catalog;
    let mut still_open = false;
    for command in catalog.open_commands(run.mirror.id).await? {
        if command.kind != CHECKPOINT {
            continue;
        }
        let awaited = AwaitedTable::of(&command);
        let requests: Vec<(Uuid, &TableName)> = awaited
            .iter()
            .filter_map(|awaited| Some((awaited.request_id?, &awaited.table)))
            .filter(|(request, _)| is_wanted(&run.mirror, *request))
            .collect();
        let done = view.finished();
        let is_open = |request: &Uuid| !done.contains(request) && given_up.get(*request).is_none();
        if requests.iter().any(|(request, _)| is_open(request)) {
            still_open = true;
            continue;
        }
        let failures: Vec<String> = requests
            .iter()
            .filter_map(|(request, table)| Some(format!("{table}: {}", given_up.get(*request)?)))
            .collect();
        if failures.is_empty() {
            crash_point(CHECKPOINT_COPIED);
            catalog.finish_command(command.id).await?;
        } else {
            catalog
                .fail_command(command.id, &failures.join("; "))
                .await?;
        }
    }
    Ok(still_open)
}

/// A table that left the mirror, or of which a later checkpoint is wanted, is not waited for.
fn is_wanted(mirror: &Mirror, request_id: Uuid) -> bool {
    let mut tables = mirror.tables.iter();
    tables.any(|table| table.checkpoint_id == Some(request_id))
}

async fn ask_if_due(run: &Run) -> Result<()> {
    let mirror = run.context.latest();
    let Some(hours) = mirror.config.checkpoint_interval_hours else {
        return Ok(());
    };
    let options = &run.options;
    let recorded = read_positions(&options.kafka, &options.topics, &mirror.slug).await?;
    let mapped = (&*mirror.tables, mirror.generation);
    let due = due(mapped, recorded.syncs.values(), hours, Utc::now());
    if due.is_empty() {
        return Ok(());
    }
    tracing::info!(mirror = %mirror.name, ?due, "a checkpoint is due");
    options
        .catalog
        .request_checkpoint(&mirror.name, Some(&due), "checkpoint_interval_hours")
        .await?;
    Ok(())
}

/// The tables whose newest copy is older than so many hours, and none is under way. One that is
/// trimmed already counts too: where the window, or `topic_max_bytes`, is too small to keep a
/// copy for so long, the next one would not stay either, and tables are not read more often than
/// was asked for. Pure.
fn due<'a>(
    (tables, generation): (&[MirrorTable], Uuid),
    recorded: impl Iterator<Item = &'a SyncRecord> + Clone,
    hours: u32,
    now: DateTime<Utc>,
) -> Vec<TableName> {
    let oldest_us = now.timestamp_micros() - i64::from(hours) * 3_600_000_000;
    let is_due = |source: &TableName, wanted: [Option<Uuid>; 2]| {
        let mut of_table = recorded
            .clone()
            .filter(|sync| sync.table_name() == *source && sync.generation == generation);
        let is_finished = |request: &Uuid| {
            let mut syncs = recorded.clone();
            syncs.any(|sync| sync.request_id == *request && sync.state == SyncState::Finished)
        };
        let is_under_way = wanted.iter().flatten().any(|request| !is_finished(request));
        !is_under_way
            && !of_table
                .any(|sync| sync.state == SyncState::Finished && sync.taken_at_us >= oldest_us)
    };
    tables
        .iter()
        .filter(|table| is_due(&table.source, [table.request_id, table.checkpoint_id]))
        .map(|table| table.source.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;

    use super::*;

    const GENERATION: Uuid = Uuid::from_u128(7);
    const LOADED: Uuid = Uuid::from_u128(1);
    const CHECKPOINT: Uuid = Uuid::from_u128(2);
    const HOUR_US: i64 = 3_600_000_000;

    fn mapping(checkpoint_id: Option<Uuid>) -> MirrorTable {
        MirrorTable {
            source: TableName::new("public", "t"),
            destination: TableName::new("public", "t"),
            partition_key: None,
            exclude_columns: Vec::new(),
            identity: None,
            request_id: Some(LOADED),
            retry_id: None,
            replay: None,
            since_request: Some(LOADED),
            checkpoint_id,
            beside: false,
        }
    }

    fn copy(request_id: Uuid, state: SyncState, hours: i64) -> SyncRecord {
        SyncRecord {
            request_id,
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state,
            lsn: Lsn(1),
            start_offsets: vec![0],
            generation: GENERATION,
            changes_offset: 0,
            taken_at_us: hours * HOUR_US,
            rows: 0,
            bytes: 0,
        }
    }

    /// Whether a checkpoint is due every 3 hours, at the hour 10.
    fn is_due(checkpoint_id: Option<Uuid>, recorded: &[SyncRecord]) -> bool {
        let now = DateTime::from_timestamp_micros(10 * HOUR_US).unwrap();
        let mapped = mapping(checkpoint_id);
        let due = due((&[mapped], GENERATION), recorded.iter(), 3, now);
        assert!(due.len() <= 1);
        !due.is_empty()
    }

    #[test]
    fn a_copy_is_due_when_the_newest_is_too_old() {
        use SyncState::{Finished, Started};
        let loaded = |hours| copy(LOADED, Finished, hours);
        let later = |state, hours| copy(CHECKPOINT, state, hours);
        let asked = Some(CHECKPOINT);
        let of_another = |sync: SyncRecord, generation, table: &str| SyncRecord {
            generation: Uuid::from_u128(generation),
            table: table.into(),
            ..sync
        };
        let expected = [
            ("just loaded", None, vec![loaded(9)], false),
            ("at the edge", None, vec![loaded(7)], false),
            ("too old", None, vec![loaded(6)], true),
            ("not loaded yet", None, vec![], false),
            ("being loaded", None, vec![copy(LOADED, Started, 1)], false),
            ("asked for", asked, vec![loaded(1)], false),
            (
                "under way",
                asked,
                vec![loaded(1), later(Started, 1)],
                false,
            ),
            ("taken", asked, vec![loaded(1), later(Finished, 8)], false),
            (
                "taken long ago",
                asked,
                vec![loaded(1), later(Finished, 5)],
                true,
            ),
            (
                "of another generation",
                None,
                vec![loaded(1), of_another(later(Finished, 9), 8, "t")],
                true,
            ),
            (
                "of another table",
                None,
                vec![loaded(1), of_another(later(Finished, 9), 7, "u")],
                true,
            ),
        ];
        for (what, checkpoint_id, recorded, due) in expected {
            assert_eq!(is_due(checkpoint_id, &recorded), due, "{what}");
        }
    }
}
