//! Reads the partitions of a mirror's snapshot topic side by side.
//!
//! Offsets are not kept at the destination: a load reads the topic from where capture says
//! that the syncs it wants begin, and what is already committed is passed over. One consumer serves all
//! partitions, each through a queue of its own, so that one that waits holds up no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bunny_schemas::control::{SchemaKind, SnapshotChunk, TableSyncFinished, TableSyncStarted};
use bunny_schemas::reader::read_positions;
use bunny_schemas::registry::{LOST_PATIENCE, Registry};
use bunny_schemas::wire;
use bytes::Bytes;
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer, DefaultConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use uuid::Uuid;

use super::board::{Announced, SyncId};
use super::lane::{Head, PartHead};
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::reader::log_end;
use crate::replay;
use bunny_schemas::kafka::{Closing, KafkaConfig};

/// What is prefetched for each partition; a part is about 1 MiB. The second counts
/// compressed bytes, which unpack to several times as much.
const QUEUED_KBYTES_MAX: &str = "1024";
const FETCH_BYTES_MAX: &str = "262144";

/// How often a topic that is not there yet is looked for, and for how long before that is said.
const TOPIC_POLL: Duration = Duration::from_millis(500);
const TOPIC_PATIENCE: Duration = Duration::from_secs(30);

/// One record of the snapshot topic.
#[derive(Debug, Clone)]
pub(super) enum SnapshotRecord {
    Started(Box<TableSyncStarted>),
    Part {
        head: PartHead,
        /// Columns in order; on part 0 only.
        columns: Vec<String>,
        /// COPY text, whole lines.
        data: Bytes,
    },
    Finished(TableSyncFinished),
}

impl SnapshotRecord {
    /// What decisions are made on, for a mirror of that generation.
    pub(super) fn head(&self, generation: Uuid) -> Head {
        match self {
            SnapshotRecord::Started(started) => Head::Started {
                sync: SyncId {
                    request_id: started.request_id,
                    attempt: started.attempt,
                },
                usable: started.generation == generation,
            },
            SnapshotRecord::Part { head, .. } => Head::Part(*head),
            SnapshotRecord::Finished(finished) => Head::Finished {
                sync: SyncId {
                    request_id: finished.request_id,
                    attempt: finished.attempt,
                },
                announced: Announced {
                    chunks: finished.chunks,
                    rows: finished.rows,
                    live: finished.live_position(),
                },
            },
        }
    }

    fn request_id_mut(&mut self) -> &mut Uuid {
        match self {
            SnapshotRecord::Started(started) => &mut started.request_id,
            SnapshotRecord::Part { head, .. } => &mut head.sync.request_id,
            SnapshotRecord::Finished(finished) => &mut finished.request_id,
        }
    }

    fn decode(kind: SchemaKind, payload: &Bytes) -> Result<SnapshotRecord> {
        let (_, datum) = wire::read_frame(payload)?;
        Ok(match kind {
            SchemaKind::TableSyncStarted => {
                SnapshotRecord::Started(Box::new(TableSyncStarted::decode(datum)?))
            }
            SchemaKind::TableSyncFinished => {
                SnapshotRecord::Finished(TableSyncFinished::decode(datum)?)
            }
            SchemaKind::SnapshotChunk => {
                let part = SnapshotChunk::decode(datum)?;
                SnapshotRecord::Part {
                    head: PartHead {
                        sync: SyncId {
                            request_id: part.request_id,
                            attempt: part.attempt,
                        },
                        chunk: part.chunk,
                        part: part.part,
                        last: part.last,
                        rows: part.rows,
                        chunk_rows: part.chunk_rows,
                    },
                    columns: part.columns.iter().map(|&name| name.to_owned()).collect(),
                    data: payload.slice_ref(part.data),
                }
            }
            other => {
                return Err(Error::Inconsistent(format!(
                    "the snapshot topic holds a record of kind {other:?}; something else writes to it"
                )));
            }
        })
    }
}

/// Opens the topic, waiting for capture to create it, from where the syncs of `requests`
/// begin. Returns one reader per partition, and the driver that has to run beside them.
pub(super) async fn open(
    run: &MirrorRun,
    requests: &[Uuid],
) -> Result<(Driver, Vec<PartitionReader>)> {
    let topic = run.topics.snapshot(run.mirror.topics_slug());
    let deadline = Instant::now() + TOPIC_PATIENCE;
    let partitions = loop {
        match run.kafka.partitions(&topic).await? {
            Some(partitions) => break partitions,
            None if Instant::now() < deadline => tokio::time::sleep(TOPIC_POLL).await,
            None => {
                return Err(Error::NotYet(format!(
                    "there is no topic {topic}, which capture makes as it starts; waiting for it"
                )));
            }
        }
    };
    let mut config = run
        .kafka
        .read_committed_consumer(&run.topics.apply_group(&run.mirror.slug));
    config
        .set("queued.max.messages.kbytes", QUEUED_KBYTES_MAX)
        .set("fetch.message.max.bytes", FETCH_BYTES_MAX)
        .set("enable.partition.eof", "false");
    let consumer: StreamConsumer = config
        .create()
        .map_err(Error::kafka(format!("creating a consumer of {topic}")))?;
    let consumer = Arc::new(Closing::new(Arc::new(consumer)));
    let aliases = Arc::new(replay::aliases(&run.mirror, requests));
    let offsets = begin_offsets(run, &topic, partitions, requests).await?;
    tracing::info!(mirror = %run.mirror.name, ?offsets, "loading the snapshot topic");
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(offsets) {
        assignment
            .add_partition_offset(&topic, partition, Offset::Offset(offset))
            .map_err(Error::kafka(format!("assigning {topic}/{partition}")))?;
    }
    consumer
        .assign(&assignment)
        .map_err(Error::kafka(format!("assigning {topic}")))?;
    let mut readers = Vec::new();
    for partition in 0..partitions {
        let queue = consumer
            .split_partition_queue(&topic, partition)
            .ok_or_else(|| {
                Error::Inconsistent(format!("librdkafka gives no queue for {topic}/{partition}"))
            })?;
        readers.push(PartitionReader {
            topic: topic.clone(),
            partition,
            queue: Closing::new(queue),
            registry: run.registry.clone(),
            kinds: HashMap::new(),
            aliases: aliases.clone(),
        });
    }
    let driver = Driver {
        kafka: run.kafka.clone(),
        topic,
        consumer,
    };
    Ok((driver, readers))
}

/// For each partition, where the syncs of `requests` begin.
async fn begin_offsets(
    run: &MirrorRun,
    topic: &str,
    partitions: i32,
    requests: &[Uuid],
) -> Result<Vec<i64>> {
    // In this order: a sync that is not recorded then begins after what is there now.
    let mut present = Vec::new();
    for partition in 0..partitions {
        present.push(run.kafka.watermarks(topic, partition).await?);
    }
    let recorded = read_positions(&run.kafka, &run.topics, run.mirror.topics_slug())
        .await?
        .syncs;
    let recorded: Vec<&[i64]> = requests
        .iter()
        .filter_map(|request| recorded.get(&replay::published_as(&run.mirror, *request)))
        .map(|record| record.start_offsets.as_slice())
        .collect();
    Ok(first_of(&present, &recorded))
}

/// For each partition, given as (low, end), the first offset that one of the syncs may use:
/// `recorded` says where they begin, a sync without a record begins at the end. Pure.
fn first_of(present: &[(i64, i64)], recorded: &[&[i64]]) -> Vec<i64> {
    let first = |(partition, (low, end)): (usize, &(i64, i64))| {
        let begins = recorded
            .iter()
            .map(|offsets| offsets.get(partition).copied().unwrap_or(*low));
        begins.min().unwrap_or(*end).clamp(*low, *end)
    };
    present.iter().enumerate().map(first).collect()
}

/// Serves the consumer's own events: the partitions' queues stand still without it.
pub(super) struct Driver {
    kafka: KafkaConfig,
    topic: String,
    consumer: Arc<Closing<Arc<StreamConsumer>>>,
}

impl Driver {
    /// Runs until an error that librdkafka does not get over by itself.
    pub(super) async fn run(&self) -> Error {
        tokio::select! {
            error = self.serve() => error,
            lost = log_end::watch(&self.kafka, self.consumer.clone(), &self.topic, 0, |_| ()) => lost,
        }
    }

    async fn serve(&self) -> Error {
        loop {
            match self.consumer.recv().await {
                // Fetched before its queue was split off, so it would be missing there.
                Ok(message) => {
                    return Error::NotYet(format!(
                        "a record of {}/{} came before its queue was ready; reading again",
                        self.topic,
                        message.partition()
                    ));
                }
                Err(source) => {
                    let error = Error::kafka(format!("reading {}", self.topic))(source);
                    if !error.is_transient() {
                        return error;
                    }
                    tracing::warn!(topic = %self.topic, %error, "Kafka is in trouble, waiting for it");
                }
            }
        }
    }
}

/// Reads one partition, in order.
pub(super) struct PartitionReader {
    topic: String,
    partition: i32,
    /// Holds the consumer too.
    queue: Closing<StreamPartitionQueue<DefaultConsumerContext>>,
    registry: Registry,
    /// What each schema id met so far stands for.
    kinds: HashMap<u32, SchemaKind>,
    /// Syncs that are loaded again, and the requests they are loaded for.
    aliases: Arc<HashMap<Uuid, Uuid>>,
}

impl PartitionReader {
    pub(super) fn partition(&self) -> i32 {
        self.partition
    }

    /// The next message's bytes. Cancel safe.
    pub(super) async fn next(&self) -> Result<Bytes> {
        loop {
            match self.queue.recv().await {
                Ok(message) => {
                    if let Some(payload) = message.payload() {
                        return Ok(Bytes::copy_from_slice(payload));
                    }
                }
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(source) => {
                    let doing = format!("reading {}/{}", self.topic, self.partition);
                    let trimmed = matches!(
                        source.rdkafka_error_code(),
                        Some(
                            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange
                        )
                    );
                    if trimmed {
                        // The topic was trimmed under us; its new beginning is as good.
                        return Err(Error::NotYet(format!(
                            "{doing}: trimmed meanwhile; starting again"
                        )));
                    }
                    return Err(Error::kafka(doing)(source));
                }
            }
        }
    }

    /// Reads what [`PartitionReader::next`] returned.
    pub(super) async fn decode(&mut self, payload: &Bytes) -> Result<SnapshotRecord> {
        let (id, _) = wire::read_frame(payload)?;
        let kind = match self.kinds.get(&id) {
            Some(kind) => *kind,
            None => {
                let carrier = format!("a record of {}/{}", self.topic, self.partition);
                let schema = self.registry.schema_of(id, &carrier, LOST_PATIENCE).await?;
                let kind = SchemaKind::of(&schema)?;
                self.kinds.insert(id, kind);
                kind
            }
        };
        let mut record = SnapshotRecord::decode(kind, payload)?;
        let request_id = record.request_id_mut();
        if let Some(alias) = self.aliases.get(request_id) {
            *request_id = *alias;
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_begins_with_the_first_of_its_syncs() {
        let present = [(2, 10), (0, 7)];
        assert_eq!(first_of(&present, &[]), [10, 7], "none has begun");
        assert_eq!(first_of(&present, &[&[5, 3], &[4, 6]]), [4, 3]);
        assert_eq!(
            first_of(&present, &[&[1, 3]]),
            [2, 3],
            "the topic is trimmed"
        );
        assert_eq!(
            first_of(&present, &[&[5]]),
            [5, 0],
            "a partition came later"
        );
        assert_eq!(first_of(&present, &[&[5, 3], &[]]), [2, 0], "not known");
        assert_eq!(
            first_of(&present, &[&[12, 3]]),
            [10, 3],
            "another topic of that name"
        );
    }
}
