//! Opens the change topic at an offset, if it goes on from there.

use std::sync::Arc;
use std::time::Duration;

use bunny_schemas::kafka::Closing;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::{Instant, sleep};

use super::PARTITION;
use crate::context::MirrorRun;
use crate::error::{Error, Result, way_out};

/// What librdkafka holds ready, besides what the process's memory allows. A fetch counts compressed bytes, which unpack to ten
/// times as much and more, and each message costs it some hundred bytes besides: with the
/// usual settings the queue alone took 200 MB.
const QUEUED_MESSAGES_MIN: &str = "50000";
const FETCH_BYTES_MAX: &str = "1048576";

/// A broker that has just become leader, or is one no more, may answer with less than it
/// has for so long: only a disagreement that lasts is one.
const STALE_PATIENCE: Duration = Duration::from_secs(10);
const STALE_PAUSE: Duration = Duration::from_millis(700);

/// Opens the topic at the progress row's offset.
///
/// # Errors
/// [`Error::History`] when the log, for as long as an answer may be stale, does not go on from
/// there.
pub(crate) async fn open(
    run: &MirrorRun,
    next_offset: i64,
) -> Result<Arc<Closing<StreamConsumer>>> {
    let topic = run.topics.changes(run.mirror.topics_slug());
    let deadline = Instant::now() + STALE_PATIENCE;
    loop {
        match goes_on_from(run, &topic, next_offset).await {
            Err(error @ Error::History(_)) if Instant::now() < deadline => {
                tracing::info!(mirror = %run.mirror.name, %error, "log and destination disagree, asking again");
                run.kafka.ask_anew();
                sleep(STALE_PAUSE).await;
            }
            answer => break answer?,
        }
    }
    assign(run, &topic, next_offset)
}

/// # Errors
/// [`Error::History`] when the topic, as Kafka knows it now, does not hold what comes from
/// `next_offset` on.
async fn goes_on_from(run: &MirrorRun, topic: &str, next_offset: i64) -> Result<()> {
    let (low, end) = match run.kafka.watermarks(topic, PARTITION).await {
        Err(error) if run.kafka.has_lost(topic, error.kafka_code()).await => {
            return Err(Error::History(format!(
                "the change topic {topic} is gone: it was deleted by something else; {}",
                way_out(run.mirror.owner.as_ref())
            )));
        }
        found => found?,
    };
    if low > next_offset {
        return Err(Error::History(format!(
            "the change topic {topic} begins at offset {low}, but the destination needs it from offset {next_offset} on: \
             what is missing was trimmed. Either the destination was restored from a backup that is older than what is \
             kept (topic_retention_hours), or something else trims or has recreated the topic. Nothing was skipped; {}",
            way_out(run.mirror.owner.as_ref())
        )));
    }
    if end < next_offset {
        return Err(Error::History(format!(
            "the change topic {topic} ends at offset {end}, but the destination has applied it up to offset \
             {next_offset}: the topic was recreated, or Kafka lost data; {}",
            way_out(run.mirror.owner.as_ref())
        )));
    }
    Ok(())
}

pub(super) fn assign(
    run: &MirrorRun,
    topic: &str,
    offset: i64,
) -> Result<Arc<Closing<StreamConsumer>>> {
    let group = run.topics.apply_group(&run.mirror.slug);
    let mut config = run.kafka.read_committed_consumer(&group);
    config
        .set(
            "queued.max.messages.kbytes",
            run.memory.queue_kib().to_string(),
        )
        .set("queued.min.messages", QUEUED_MESSAGES_MIN)
        .set("fetch.message.max.bytes", FETCH_BYTES_MAX);
    let consumer: StreamConsumer = config
        .create()
        .map_err(Error::kafka(format!("creating a consumer of {topic}")))?;
    let consumer = Closing::new(consumer);
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, PARTITION, Offset::Offset(offset))
        .map_err(Error::kafka(format!("assigning {topic}")))?;
    consumer
        .assign(&assignment)
        .map_err(Error::kafka(format!("assigning {topic}")))?;
    Ok(Arc::new(consumer))
}
