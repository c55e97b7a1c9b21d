//! The snapshot topic: made when it is not there, after what it held is put down as lost.

use std::collections::HashMap;
use std::time::Duration;

use bunny_schemas::control::{SyncRecord, SyncState};
use bunny_schemas::kafka::TopicKind;
use bunny_schemas::topics::SNAPSHOT_PARTITIONS_MAX;
use uuid::Uuid;

use super::SyncNote;
use crate::crash_points::{COPIES_LOST, crash_point};
use crate::error::Result;
use crate::publisher::Publisher;
use crate::run::Run;

/// A topic that is not there is not there either after that time, or a broker has just not known
/// better.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Makes the topic, or checks the one that is there. `recorded`: what the position topic knows.
///
/// One that somebody has deleted took its copies along. Their records say so before there is another
/// topic, in which the offsets where they began would mean something else.
pub(crate) async fn ensure_topic(
    run: &Run,
    publisher: &mut Publisher,
    recorded: &HashMap<Uuid, SyncRecord>,
) -> Result<()> {
    let (kafka, config) = (&run.options.kafka, &run.mirror.config);
    let topic = run.options.topics.snapshot(&run.mirror.slug);
    let lost = without_their_copies(recorded);
    if !lost.is_empty() && kafka.partitions(&topic).await?.is_none() {
        kafka.ask_anew();
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        if kafka.partitions(&topic).await?.is_none() {
            tracing::warn!(mirror = %run.mirror.name, topic, copies = lost.len(), "the topic is gone, and with it the copies of tables");
            publisher.note(&lost).await?;
            crash_point(COPIES_LOST);
        }
    }
    let workers = config
        .snapshot_num_tables_in_parallel
        .saturating_mul(config.snapshot_max_parallel_workers);
    let partitions = i32::try_from(workers)
        .unwrap_or(SNAPSHOT_PARTITIONS_MAX)
        .clamp(1, SNAPSHOT_PARTITIONS_MAX);
    let kind = TopicKind::Snapshot { partitions };
    kafka.ensure_topic(&topic, kind).await?;
    Ok(())
}

/// The records of the copies that are whole, as they are to be if the topic is gone. Pure.
fn without_their_copies(recorded: &HashMap<Uuid, SyncRecord>) -> Vec<SyncNote> {
    let held = recorded
        .values()
        .filter(|sync| sync.state == SyncState::Finished && !sync.start_offsets.is_empty());
    held.map(|sync| {
        let lost = SyncRecord {
            start_offsets: Vec::new(),
            ..sync.clone()
        };
        (sync.request_id, Some(lost))
    })
    .collect()
}
