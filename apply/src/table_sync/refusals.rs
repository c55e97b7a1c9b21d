//! Sets tables aside that the source does not let be copied: their syncs will not come.
//!
//! Capture says so in its report, with the request to bring the table back that it knew.
//! Only if that is the one that this run knows too does it count: a report outlives the
//! capture that gave it, and a table that is tried again must not be refused by it.
//!
//! Nor will a copy come that was published whole and is not in the topics any more. Nobody who
//! knows that it is to be loaded trims it, but a destination may know less than it did: it was
//! restored from a backup, or made anew. Or someone has deleted the topic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bunny_catalog::{Mirror, Reports};
use bunny_schemas::control::SyncState;
use bunny_schemas::retained::Retained;
use uuid::Uuid;

use super::chunk_copy;
use super::loader::Shared;
use crate::error::{Error, Result};
use crate::replay;

/// What is said of a table whose copy is gone.
const GONE: &str = "its copy was published, and what it needs is not in the topics any more: the destination was restored \
     from a backup older than topic_retention_hours, or made anew, or the topics were changed by something else";

/// How often the report is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether the copies are there.
const COPIES_EVERY: Duration = Duration::from_secs(10);

/// A copy that is missing is so still after that time, or a broker has just not known better.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// Sets aside the tables whose copies are gone, before anything is done for them at the destination.
/// What Kafka does not say now is asked again while the others are loaded.
///
/// # Errors
/// The destination cannot be told.
pub(super) async fn before_loading(shared: &Shared, requests: &[Uuid]) -> Result<()> {
    let missing = missing(shared, requests).await.unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(GONE_AFTER).await;
    for request_id in self::missing(shared, &missing).await.unwrap_or_default() {
        set_aside(shared, request_id, &said_of_gone(shared, request_id)).await?;
    }
    Ok(())
}

/// Looks until an error.
pub(super) async fn run(shared: Arc<Shared>, requests: Vec<Uuid>) -> Error {
    let mut known_missing: Vec<Uuid> = Vec::new();
    let mut looked_at = Instant::now();
    loop {
        let run = &shared.run;
        let pause = match known_missing.is_empty() {
            true => COPIES_EVERY,
            false => GONE_AFTER,
        };
        if looked_at.elapsed() >= pause
            && let Ok(found) = missing(&shared, &requests).await
        {
            looked_at = Instant::now();
            // One that can't be set aside at the moment is still missing the next time.
            for request_id in found.iter().filter(|found| known_missing.contains(found)) {
                let reason = said_of_gone(&shared, *request_id);
                if let Err(error) = set_aside(&shared, *request_id, &reason).await {
                    return error;
                }
            }
            known_missing = found;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        // Without the catalog the tables wait.
        let Ok(reports) = run.catalog.reports(run.mirror_id()).await else {
            continue;
        };
        for (request_id, reason) in refused(&run.mirror, &reports) {
            if let Err(error) = set_aside(&shared, request_id, &reason).await {
                return error;
            }
        }
    }
}

/// Those of `requests` that wait for a copy which was made and is not there.
async fn missing(shared: &Shared, requests: &[Uuid]) -> Result<Vec<Uuid>> {
    let run = &shared.run;
    let retained = Retained::read(&run.kafka, &run.topics, run.mirror.topics_slug()).await?;
    let published = |request| replay::published_as(&run.mirror, request);
    let gone = gone(requests, published, run.mirror.generation, &retained);
    let tables = shared.update(|board| board.progress());
    let waits = |request: &Uuid| {
        let mut tables = tables.iter();
        tables.any(|table| table.request_id == *request && table.outcome.is_none())
    };
    Ok(gone.into_iter().filter(waits).collect())
}

fn said_of_gone(shared: &Shared, request_id: Uuid) -> String {
    let tables = shared.update(|board| board.progress());
    let mut tables = tables.iter();
    let is_begun = tables.any(|table| table.request_id == request_id && table.started);
    match is_begun {
        true => format!("{GONE}. What was loaded of it is not whole; resync the table"),
        false => format!("{GONE}. Nothing was changed; resync the table"),
    }
}

async fn set_aside(shared: &Shared, request_id: Uuid, reason: &str) -> Result<()> {
    if !shared.update(|board| board.refuse(request_id, reason)) {
        return Ok(());
    }
    let source = shared.source_of(request_id)?;
    let session = chunk_copy::connect(&shared.run).await?;
    shared
        .store_failure(&session, request_id, &source, reason)
        .await
}

/// Those of `requests` whose copies were finished and are not held any more; `published_as`:
/// under which request capture has published what is loaded for one. Pure.
fn gone(
    requests: &[Uuid],
    published_as: impl Fn(Uuid) -> Uuid,
    generation: Uuid,
    retained: &Retained,
) -> Vec<Uuid> {
    let is_gone = |request_id: &&Uuid| {
        let published = published_as(**request_id);
        retained.syncs.iter().any(|sync| {
            sync.request_id == published
                && sync.generation == generation
                && sync.state == SyncState::Finished
                && !retained.holds(sync)
        })
    };
    requests.iter().filter(is_gone).copied().collect()
}

/// The syncs of this mirror that capture has given up, with the reasons. Pure.
fn refused(mirror: &Mirror, reports: &Reports) -> Vec<(Uuid, String)> {
    let report = reports.capture.report.as_ref();
    let report = report.filter(|report| report.generation == Some(mirror.generation));
    let syncs = report.map_or(&[][..], |report| &report.syncs);
    let is_meant = |request_id: Uuid, retry_id: Option<Uuid>| {
        let mut tables = mirror.tables.iter();
        tables.any(|table| table.request_id == Some(request_id) && table.retry_id == retry_id)
    };
    syncs
        .iter()
        .filter_map(|sync| {
            let refusal = sync.refused.as_ref()?;
            is_meant(sync.request_id, refusal.retry_id)
                .then(|| (sync.request_id, refusal.reason.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use bunny_schemas::control::SyncRecord;

    use super::*;

    #[test]
    fn a_copy_that_is_gone_is_not_waited_for() {
        let generation = Uuid::from_u128(7);
        let copy = SyncRecord {
            request_id: Uuid::from_u128(1),
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state: SyncState::Finished,
            lsn: Lsn(1),
            start_offsets: vec![3],
            generation,
            changes_offset: 20,
            taken_at_us: 0,
            rows: 0,
            bytes: 0,
        };
        let found = |sync: SyncRecord, changes: (i64, i64), low: i64| {
            let requests = [sync.request_id, Uuid::from_u128(2)];
            let retained = Retained {
                syncs: vec![sync],
                changes,
                snapshot: vec![(low, 9)],
                ..Retained::default()
            };
            gone(&requests, |request| request, generation, &retained).len()
        };
        assert_eq!(found(copy.clone(), (20, 50), 3), 0, "held");
        assert_eq!(found(copy.clone(), (20, 50), 4), 1, "its chunks are gone");
        assert_eq!(found(copy.clone(), (21, 50), 3), 1, "its changes are");
        let under_way = SyncRecord {
            state: SyncState::Started,
            ..copy.clone()
        };
        assert_eq!(found(under_way, (21, 50), 4), 0, "another attempt comes");
        let former = SyncRecord {
            generation: Uuid::from_u128(8),
            ..copy
        };
        assert_eq!(found(former, (20, 50), 4), 0, "this generation's comes");
    }
}
