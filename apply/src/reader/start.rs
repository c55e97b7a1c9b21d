//! Looks into the change topic without following it: where a generation begins, and what
//! waits first.

use std::collections::HashSet;
use std::sync::Arc;

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::{GenerationStarted, SchemaKind};
use bunny_schemas::wire;
use rdkafka::Message;
use rdkafka::error::KafkaError;

use super::PARTITION;
use super::decode::{Decoding, Record};
use super::open::assign;
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::routes::Routes;

/// So many offsets before the end of the log a generation is looked for first.
const LOOK_BACK: i64 = 2_000;
/// And so many times more each time it does not begin there.
const LOOK_BACK_GROWS: i64 = 8;

/// The offset after the mirror's `GenerationStarted`, and the generation's first LSN. It is
/// the last generation of the topic, so it is looked for from the end on.
pub async fn generation_start(run: &MirrorRun) -> Result<(i64, Lsn)> {
    let topic = run.topics.changes(run.mirror.topics_slug());
    let (low, end) = run.kafka.watermarks(&topic, PARTITION).await?;
    let mut back = LOOK_BACK;
    loop {
        let from = low.max(end.saturating_sub(back));
        if let Some(found) = generation_start_after(run, &topic, from).await? {
            return Ok(found);
        }
        if from == low {
            return Err(Error::NotYet(format!(
                "generation {} does not begin in {topic} yet",
                run.mirror.generation
            )));
        }
        back = back.saturating_mul(LOOK_BACK_GROWS);
    }
}

async fn generation_start_after(
    run: &MirrorRun,
    topic: &str,
    from: i64,
) -> Result<Option<(i64, Lsn)>> {
    let consumer = assign(run, topic, from)?;
    // Of ids that went with a former schemas topic: what they are of is passed over, and to ask
    // for one reads that topic again.
    let mut lost = HashSet::new();
    loop {
        let message = match consumer.recv().await {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(_)) => return Ok(None),
            Err(error) => return Err(Error::kafka(format!("reading {topic}"))(error)),
        };
        let (schema_id, datum) = wire::read_frame(message.payload().unwrap_or_default())?;
        if lost.contains(&schema_id) {
            continue;
        }
        let schema = match run.registry.schema(schema_id).await {
            Err(bunny_schemas::Error::UnknownId(_)) => {
                lost.insert(schema_id);
                continue;
            }
            found => found?,
        };
        if SchemaKind::of(&schema)? != SchemaKind::GenerationStarted {
            continue;
        }
        // The same id may have meant something else in that one.
        let Ok(started) = GenerationStarted::decode(datum) else {
            continue;
        };
        if started.generation == run.mirror.generation {
            return Ok(Some((message.offset() + 1, started.start_lsn)));
        }
    }
}

/// The first event at or after `next_offset`, and its commit time at the source in
/// microseconds since the Unix epoch; `None` if there is none yet.
pub async fn first_waiting(run: &MirrorRun, next_offset: i64) -> Result<Option<(Position, i64)>> {
    let topic = run.topics.changes(run.mirror.topics_slug());
    let consumer = assign(run, &topic, next_offset)?;
    // Nothing is applied, so no table needs a route.
    let mut decoding = Decoding::new(Arc::new(Routes::of(&[])));
    loop {
        let message = match consumer.recv().await {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(_)) => return Ok(None),
            Err(error) => return Err(Error::kafka(format!("reading {topic}"))(error)),
        };
        let (schema_id, datum) = wire::read_frame(message.payload().unwrap_or_default())?;
        if !decoding.knows(schema_id) {
            let schema = run.registry.schema(schema_id).await?;
            decoding.learn(schema_id, &schema)?;
        }
        if let Record::Event { event, .. } = decoding.decode(schema_id, datum, message.offset())? {
            return Ok(Some((event.position, event.commit_ts_us)));
        }
    }
}
