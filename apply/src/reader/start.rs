//! Looks into the change topic without following it: where a generation begins, and what
//! waits first.

use std::sync::Arc;

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::{GenerationStarted, SchemaKind};
use bunny_schemas::wire;
use rdkafka::Message;
use rdkafka::error::KafkaError;

use super::decode::{Decoding, Record};
use super::{PARTITION, assign};
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::routes::Routes;

/// The offset after the mirror's `GenerationStarted`, and the generation's first LSN.
/// Reads the topic from its beginning up to there; only a destination that has no
/// snapshot to start from needs it.
pub async fn generation_start(run: &MirrorRun) -> Result<(i64, Lsn)> {
    let topic = run.topics.changes(&run.mirror.slug);
    let (low, _) = run.kafka.watermarks(&topic, PARTITION).await?;
    let consumer = assign(run, &topic, low)?;
    loop {
        let message = match consumer.recv().await {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(_)) => {
                return Err(Error::NotYet(format!(
                    "generation {} does not begin in {topic} yet",
                    run.mirror.generation
                )));
            }
            Err(error) => return Err(Error::kafka(format!("reading {topic}"))(error)),
        };
        let (schema_id, datum) = wire::read_frame(message.payload().unwrap_or_default())?;
        let schema = run.registry.schema(schema_id).await?;
        if SchemaKind::of(&schema)? != SchemaKind::GenerationStarted {
            continue;
        }
        let started = GenerationStarted::decode(datum)?;
        if started.generation == run.mirror.generation {
            return Ok((message.offset() + 1, started.start_lsn));
        }
    }
}

/// The first event at or after `next_offset`, and its commit time at the source in
/// microseconds since the Unix epoch; `None` if there is none yet.
pub async fn first_waiting(run: &MirrorRun, next_offset: i64) -> Result<Option<(Position, i64)>> {
    let topic = run.topics.changes(&run.mirror.slug);
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
