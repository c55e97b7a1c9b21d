//! Reads one partition up to its committed end.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::kafka::{CALL_TIMEOUT, Closing, KafkaConfig};
use crate::{Error, Result};

/// Longest wait for a broker to answer anything before a read gives up.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);

/// Runs blocking work on tokio's blocking threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Invalid("the runtime is shutting down".to_owned())),
    }
}

/// A message of the partition.
pub(crate) struct Record<'m> {
    pub(crate) offset: i64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<&'m [u8]>,
    pub(crate) value: Option<&'m [u8]>,
}

/// A `read_committed` reader of one partition. Its calls block.
pub(crate) struct Tail {
    /// Closing takes 100 ms as often as not, which nobody waits for.
    consumer: Closing<BaseConsumer>,
    topic: String,
    partition: i32,
}

impl Tail {
    /// Opens a reader; connects in the background.
    pub(crate) fn open(kafka: &KafkaConfig, topic: &str, partition: i32) -> Result<Tail> {
        let consumer: BaseConsumer = kafka
            .read_committed_consumer("bunny-reader")
            // The end is what is waited for.
            .set("fetch.wait.max.ms", "5")
            .create()
            .map_err(Error::kafka(format!("create a consumer for {topic}")))?;
        Ok(Tail {
            consumer: Closing::new(consumer),
            topic: topic.to_owned(),
            partition,
        })
    }

    /// First offset and committed end.
    pub(crate) fn watermarks(&self) -> Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(&self.topic, self.partition, CALL_TIMEOUT)
            .map_err(Error::kafka(format!(
                "read first and last offset of {}/{}",
                self.topic, self.partition
            )))
    }

    /// Offset and time of the first committed message from `from` on; `None` at the end.
    pub(crate) fn first_written(&self, from: i64) -> Result<Option<(i64, Option<i64>)>> {
        let mut found = None;
        self.read_while(from, |record| {
            found = Some((record.offset, record.timestamp_ms));
            Ok(false)
        })?;
        Ok(found)
    }

    /// Offset and value of the first committed message from `from` on; `None` at the end.
    pub(crate) fn first(&self, from: i64) -> Result<Option<(i64, Vec<u8>)>> {
        let mut found = None;
        self.read_while(from, |record| {
            found = Some((record.offset, record.value.unwrap_or_default().to_vec()));
            Ok(false)
        })?;
        Ok(found)
    }

    /// Calls `each` for every committed message from `from` to the end, which is
    /// known by the broker's end-of-partition signal: what lies between the last
    /// message and the end may be control records or aborted messages, which are
    /// skipped. Returns the offset after the last message seen, or `from`.
    pub(crate) fn read(
        &self,
        from: i64,
        mut each: impl FnMut(Record<'_>) -> Result<()>,
    ) -> Result<i64> {
        self.read_while(from, |record| each(record).map(|()| true))
    }

    /// As [`Tail::read`], but ends too once `each` says that it has enough.
    fn read_while(
        &self,
        from: i64,
        mut each: impl FnMut(Record<'_>) -> Result<bool>,
    ) -> Result<i64> {
        let doing = || format!("read {}/{} from {from}", self.topic, self.partition);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(&self.topic, self.partition, Offset::Offset(from))
            .map_err(Error::kafka(doing()))?;
        self.consumer
            .assign(&assignment)
            .map_err(Error::kafka(doing()))?;
        let mut next = from;
        let mut last_answer = Instant::now();
        let mut last_error = None;
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let goes_on = each(Record {
                        offset: message.offset(),
                        timestamp_ms: message.timestamp().to_millis(),
                        key: message.key(),
                        value: message.payload(),
                    })?;
                    next = message.offset() + 1;
                    if !goes_on {
                        return Ok(next);
                    }
                    last_answer = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(next),
                Some(Err(source)) => {
                    let error = Error::Kafka {
                        doing: doing(),
                        source,
                    };
                    // librdkafka reconnects by itself; anything else ends the read.
                    if !error.is_transient() {
                        return Err(error);
                    }
                    last_error = Some(error);
                }
                None => {}
            }
            if last_answer.elapsed() > STALL_MAX {
                return Err(last_error.unwrap_or_else(|| Error::Timeout {
                    doing: doing(),
                    seconds: STALL_MAX.as_secs(),
                }));
            }
        }
    }
}
