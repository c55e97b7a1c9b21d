//! Records of syncs that nobody needs any more leave the position topic.
//!
//! Every copy leaves a record there, with a checkpoint an hour 24 a day for each table, and the
//! topic is read whole by whoever wants to know what the log holds. A record has a use as long as
//! its table can be rebuilt from it, as long as the catalog names it, and if it is its table's
//! last: that one says what the topics hold of the table, or that they hold nothing.
//!
//! Crash points: none of its own. A record is taken away in the same Kafka transaction as the next
//! position; one that was not is found again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bunny_postgres::TableName;
use bunny_schemas::control::{SyncRecord, SyncState};
use bunny_schemas::retained::Retained;
use uuid::Uuid;

use crate::error::Result;
use crate::run::Run;
use crate::snapshot::SyncRecorder;

/// Copies come once an hour at most, and are trimmed as late.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// What has no use has none either after that time, or a broker has just not known better.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Those that go with one Kafka transaction.
const AT_ONCE: usize = 1000;

/// Looks at once and every ten minutes, for ever. What can't be looked at now is looked at later.
pub(crate) async fn run(run: &Run, recorder: &SyncRecorder) -> Result<()> {
    loop {
        if let Err(error) = remove(run, recorder).await {
            tracing::debug!(mirror = %run.mirror.name, %error, "records of former syncs stay for now");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn remove(run: &Run, recorder: &SyncRecorder) -> Result<()> {
    let first = look(run).await?;
    if first.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    let mut superseded = look(run).await?;
    superseded.retain(|request| first.contains(request));
    for some in superseded.chunks(AT_ONCE) {
        recorder.forget(some.to_vec()).await?;
    }
    let count = superseded.len();
    tracing::info!(mirror = %run.mirror.name, count, "records of former syncs are removed");
    Ok(())
}

async fn look(run: &Run) -> Result<Vec<Uuid>> {
    let options = &run.options;
    // In this order: what the catalog comes to name later was held when this was read.
    let retained = Retained::read(&options.kafka, &options.topics, &run.mirror.slug).await?;
    let named = options.catalog.syncs_named(run.mirror.id).await?;
    Ok(superseded(&retained, &named))
}

/// The syncs whose records have no use any more; `named`: those that the catalog speaks of. One
/// that has only started stays: it may be under way. Pure.
fn superseded(retained: &Retained, named: &HashSet<Uuid>) -> Vec<Uuid> {
    let mut last: HashMap<TableName, &SyncRecord> = HashMap::new();
    let finished = |sync: &&SyncRecord| sync.state == SyncState::Finished;
    for sync in retained.syncs.iter().filter(finished) {
        let last = last.entry(sync.table_name()).or_insert(sync);
        if sync.lsn > last.lsn {
            *last = sync;
        }
    }
    let is_last = |sync: &SyncRecord| {
        let last = last.get(&sync.table_name());
        last.is_some_and(|last| last.request_id == sync.request_id)
    };
    let superseded = retained.syncs.iter().filter(finished).filter(|sync| {
        !retained.holds(sync) && !named.contains(&sync.request_id) && !is_last(sync)
    });
    superseded.map(|sync| sync.request_id).collect()
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;

    use super::*;

    fn sync(request: u128, table: &str, lsn: u64, changes_offset: i64) -> SyncRecord {
        SyncRecord {
            request_id: Uuid::from_u128(request),
            attempt: 1,
            schema: "public".into(),
            table: table.into(),
            state: SyncState::Finished,
            lsn: Lsn(lsn),
            start_offsets: vec![0],
            generation: Uuid::from_u128(7),
            changes_offset,
            taken_at_us: 0,
            rows: 1,
            bytes: 1,
        }
    }

    #[test]
    fn only_what_cannot_be_loaded_and_nobody_names_and_has_a_successor_goes() {
        let started = SyncRecord {
            state: SyncState::Started,
            ..sync(5, "t", 40, 40)
        };
        let retained = |low: i64| Retained {
            syncs: vec![
                sync(1, "t", 10, 10),
                sync(2, "t", 20, 20),
                sync(3, "t", 30, 30),
                sync(4, "other", 5, 5),
                started.clone(),
            ],
            changes: (low, 100),
            snapshot: vec![(0, 100)],
            ..Retained::default()
        };
        let gone = |low: i64, named: &[u128]| {
            let named: HashSet<Uuid> = named.iter().copied().map(Uuid::from_u128).collect();
            let gone = superseded(&retained(low), &named).into_iter();
            gone.map(|request| request.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(gone(0, &[5]), [0; 0], "all are held, and one is under way");
        assert_eq!(gone(15, &[5]), [1]);
        assert_eq!(
            gone(15, &[1, 5]),
            [0; 0],
            "it is what is held at the destination"
        );
        assert_eq!(gone(90, &[5]), [1, 2], "the last of each table stays");
        assert_eq!(gone(0, &[]), [0; 0], "who began it may end it");
    }
}
