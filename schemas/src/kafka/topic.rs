//! Topics: created with the settings this project depends on, checked when they
//! exist, trimmed and deleted.

use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, ConfigResourceResult, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::MetadataBroker;
use rdkafka::{Offset, TopicPartitionList};

use super::{CALL_TIMEOUT, KafkaConfig};
use crate::error::names_no_topic;
use crate::{Error, Result};

/// Longest wait for an answer through a client that was there before: its leader may be gone.
const KEPT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a topic is for; decides its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicKind {
    /// Change events: one partition, kept until trimmed.
    Changes,
    /// Chunks of table syncs, kept until trimmed.
    Snapshot {
        /// Partitions, when it has to be created.
        partitions: i32,
    },
    /// Changes of one table, for tools that expect Debezium's: the broker trims it.
    Table {
        /// Hours that records are kept, when it has to be created.
        retention_hours: u32,
    },
    /// Published position, compacted.
    Position,
    /// Schema ids, compacted.
    Schemas,
}

/// One topic setting and whether a larger number at the broker will do.
struct Setting {
    name: &'static str,
    value: &'static str,
    at_least: bool,
}

const fn exactly(name: &'static str, value: &'static str) -> Setting {
    Setting {
        name,
        value,
        at_least: false,
    }
}

const fn at_least(name: &'static str, value: &'static str) -> Setting {
    Setting {
        name,
        value,
        at_least: true,
    }
}

/// Kept for ever unless we trim. A segment must hold the largest message (a broker
/// refuses a batch larger than `segment.bytes`), and be small, since DeleteRecords
/// frees whole segments only.
const LOG_SETTINGS: [Setting; 5] = [
    exactly("cleanup.policy", "delete"),
    exactly("retention.ms", "-1"),
    exactly("retention.bytes", "-1"),
    at_least("max.message.bytes", "83886080"),
    at_least("segment.bytes", "100663296"),
];

/// How long records are kept is up to those who read them. Compaction would refuse the records
/// that have no key: a truncate's, and all of a table without one.
const TABLE_SETTINGS: [Setting; 3] = [
    exactly("cleanup.policy", "delete"),
    at_least("max.message.bytes", "83886080"),
    at_least("segment.bytes", "100663296"),
];

/// Compaction leaves the active segment alone: small segments that roll often keep
/// the topic, and thereby a start, short.
const COMPACT_SETTINGS: [Setting; 3] = [
    exactly("cleanup.policy", "compact"),
    at_least("max.message.bytes", "4194304"),
    at_least("segment.bytes", "4194304"),
];

/// Given at creation only: nothing breaks when someone tunes them.
const COMPACT_HINTS: [(&str, &str); 2] = [
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

impl TopicKind {
    fn settings(self) -> &'static [Setting] {
        match self {
            TopicKind::Changes | TopicKind::Snapshot { .. } => &LOG_SETTINGS,
            TopicKind::Table { .. } => &TABLE_SETTINGS,
            TopicKind::Position | TopicKind::Schemas => &COMPACT_SETTINGS,
        }
    }

    fn hints(self) -> &'static [(&'static str, &'static str)] {
        match self {
            TopicKind::Changes | TopicKind::Snapshot { .. } | TopicKind::Table { .. } => &[],
            TopicKind::Position | TopicKind::Schemas => &COMPACT_HINTS,
        }
    }

    fn partitions(self) -> i32 {
        match self {
            TopicKind::Snapshot { partitions } => partitions,
            TopicKind::Changes
            | TopicKind::Table { .. }
            | TopicKind::Position
            | TopicKind::Schemas => 1,
        }
    }

    /// What `retention.ms` is at first, where it may be changed later.
    fn first_retention_ms(self) -> Option<String> {
        match self {
            TopicKind::Table { retention_hours } => {
                Some((u64::from(retention_hours) * 3_600_000).to_string())
            }
            _ => None,
        }
    }
}

impl KafkaConfig {
    /// Creates the topic with the settings of its kind, or checks the one that
    /// exists, and returns its number of partitions. Replication is the broker's
    /// default. A setting under which events could be lost or refused is
    /// [`Error::TopicSetting`].
    pub async fn ensure_topic(&self, name: &str, kind: TopicKind) -> Result<i32> {
        let partitions = match self.partitions(name).await? {
            Some(partitions) => partitions,
            None => {
                self.create_topic(name, kind).await?;
                self.wait_for_topic(name).await?
            }
        };
        let fixed = !matches!(kind, TopicKind::Snapshot { .. });
        if fixed && partitions != kind.partitions() {
            return Err(Error::TopicSetting {
                topic: name.to_owned(),
                setting: "partitions".to_owned(),
                found: partitions.to_string(),
                wanted: kind.partitions().to_string(),
            });
        }
        self.check_settings(name, kind).await?;
        Ok(partitions)
    }

    /// Number of partitions of a topic; `None` when there is no such topic.
    pub async fn partitions(&self, name: &str) -> Result<Option<i32>> {
        let doing = format!("read metadata of topic {name}");
        let name = name.to_owned();
        self.with_consumer(move |consumer, longest| {
            let metadata = consumer
                .fetch_metadata(Some(&name), longest)
                .map_err(Error::kafka(doing.clone()))?;
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
                return Ok(None);
            };
            match topic.error().map(RDKafkaErrorCode::from) {
                None if topic.partitions().is_empty() => Ok(None),
                None => Ok(Some(topic.partitions().len() as i32)),
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                ) => Ok(None),
                Some(code) => Err(Error::kafka_code_error(doing.clone(), code)),
            }
        })
        .await
    }

    /// Whether an error of that code came because the topic is not there: a partition without a
    /// leader looks the same until the topic itself is asked for. False while Kafka cannot be asked.
    pub async fn has_lost(&self, topic: &str, code: Option<RDKafkaErrorCode>) -> bool {
        let says_so = code.is_some_and(names_no_topic);
        says_so && matches!(self.partitions(topic).await, Ok(None))
    }

    /// Names of all topics, sorted.
    pub async fn topic_names(&self) -> Result<Vec<String>> {
        self.with_consumer(|consumer, longest| {
            let metadata = consumer
                .fetch_metadata(None, longest)
                .map_err(Error::kafka("list the topics"))?;
            let mut names: Vec<String> = metadata
                .topics()
                .iter()
                .map(|topic| topic.name().to_owned())
                .collect();
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    /// Deletes topics; those that do not exist count as deleted. Returns once no broker that answers
    /// knows of them: one that has not heard yet would call a topic there that is made anew under the
    /// name, and lose what is written to it. One that is known for long has been made anew, by a
    /// subscriber where brokers make what is asked for (`auto.create.topics.enable`).
    pub async fn delete_topics(&self, names: &[&str]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let doing = format!("delete topics {}", names.join(", "));
        let results = self
            .with_admin(doing, async |admin| {
                admin.delete_topics(names, &options()).await
            })
            .await?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, code)) => {
                    return Err(Error::kafka_code_error(
                        format!("delete topic {name}"),
                        code,
                    ));
                }
            }
        }
        let brokers = self.each_broker().await?;
        for broker in &brokers {
            for name in names {
                if !broker.forgets(name).await {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A configuration for each broker, whose first client asks that one.
    async fn each_broker(&self) -> Result<Vec<KafkaConfig>> {
        let addresses = self
            .with_consumer(|consumer, longest| {
                let metadata = consumer
                    .fetch_metadata(None, longest)
                    .map_err(Error::kafka("list the brokers"))?;
                let brokers = metadata.brokers().iter();
                let address =
                    |broker: &MetadataBroker| format!("{}:{}", broker.host(), broker.port());
                Ok(brokers.map(address).collect::<Vec<_>>())
            })
            .await?;
        let at = |address| KafkaConfig::with_overrides(address, self.overrides().clone());
        Ok(addresses.into_iter().map(at).collect())
    }

    /// Waits until there is no such topic; false if it is there for long.
    async fn forgets(&self, name: &str) -> bool {
        let deadline = tokio::time::Instant::now() + CALL_TIMEOUT;
        loop {
            let known = match self.partitions(name).await {
                Ok(None) => return true,
                Ok(Some(_)) => "it is still known".to_owned(),
                Err(error) => error.to_string(),
            };
            if tokio::time::Instant::now() >= deadline {
                tracing::warn!(
                    topic = name,
                    broker = self.brokers(),
                    known,
                    "Kafka has deleted the topic, a broker does not say so"
                );
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Deletes a consumer group and the offsets it has committed; one that does not exist counts
    /// as deleted.
    pub async fn delete_group(&self, name: &str) -> Result<()> {
        let doing = format!("delete consumer group {name}");
        let results = self
            .with_admin(doing.clone(), async |admin| {
                admin.delete_groups(&[name], &options()).await
            })
            .await?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((_, code)) => return Err(Error::kafka_code_error(doing, code)),
            }
        }
        Ok(())
    }

    /// Deletes the records of a partition below `offset` (DeleteRecords) and
    /// returns the partition's new first offset.
    pub async fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> Result<i64> {
        let doing = format!("delete records of {topic}/{partition} below {offset}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .map_err(Error::kafka(doing.clone()))?;
        let low = self
            .with_admin(doing, async |admin| {
                let result = admin.delete_records(&list, &options()).await?;
                let Some(element) = result.find_partition(topic, partition) else {
                    return Ok(None);
                };
                element.error()?;
                Ok(Some(element.offset()))
            })
            .await?;
        match low {
            Some(Offset::Offset(low)) => Ok(low),
            Some(_) => Ok(offset),
            None => Err(Error::Corrupt(format!(
                "no answer for {topic}/{partition}, whose records were to be deleted"
            ))),
        }
    }

    /// Lets the next question about topics be asked by a new client, which learns anew who leads
    /// their partitions: for an answer that cannot be right.
    pub fn ask_anew(&self) {
        self.kept.reader.clear();
    }

    /// First offset of a partition and its end as a `read_committed` consumer sees
    /// it: the last stable offset, below any transaction still open.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let doing = format!("read first and last offset of {topic}/{partition}");
        let topic = topic.to_owned();
        self.with_consumer(move |consumer, longest| {
            consumer
                .fetch_watermarks(&topic, partition, longest)
                .map_err(Error::kafka(doing.clone()))
        })
        .await
    }

    /// The first offset of a partition whose record was appended at `timestamp_ms`
    /// (milliseconds since the Unix epoch) or later; its end if there is none.
    ///
    /// # Errors
    /// Kafka cannot be asked, or has no answer now: right after a broker's return, say.
    pub async fn offset_at(&self, topic: &str, partition: i32, timestamp_ms: i64) -> Result<i64> {
        let doing = format!("find the offset of a time in {topic}/{partition}");
        let topic = topic.to_owned();
        self.with_consumer(move |consumer, longest| {
            let mut times = TopicPartitionList::new();
            times
                .add_partition_offset(&topic, partition, Offset::Offset(timestamp_ms))
                .map_err(Error::kafka(doing.clone()))?;
            let found = consumer
                .offsets_for_times(times, longest)
                .map_err(Error::kafka(doing.clone()))?;
            let found = found
                .find_partition(&topic, partition)
                .ok_or_else(|| Error::Corrupt(format!("{doing}: no answer for the partition")))?;
            // A partition without a leader is answered with an error of its own, beside an
            // offset that would mean "none": not to be told from the end otherwise.
            found.error().map_err(Error::kafka(doing.clone()))?;
            match found.offset() {
                Offset::Offset(offset) => Ok(offset),
                Offset::End => consumer
                    .fetch_watermarks(&topic, partition, longest)
                    .map(|(_, end)| end)
                    .map_err(Error::kafka(doing.clone())),
                other => Err(Error::Corrupt(format!("{doing}: the answer is {other:?}"))),
            }
        })
        .await
    }

    /// When the last record before `offset` was appended, in milliseconds since the Unix epoch,
    /// visible or not; none if only ends of transactions are there, or nothing any more.
    ///
    /// # Errors
    /// Kafka cannot be asked, or does not answer in time.
    pub async fn time_before(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<Option<i64>> {
        let doing = format!("read the time of a record in {topic}/{partition}");
        // A record and the end of its transaction.
        let (low, _) = self.watermarks(topic, partition).await?;
        let from = (offset - 2).max(low);
        let mut config = self.read_committed_consumer("bunny-metadata");
        config.set("isolation.level", "read_uncommitted");
        let topic = topic.to_owned();
        crate::tail::blocking(move || {
            let consumer: BaseConsumer = config
                .create()
                .map_err(Error::kafka("create a Kafka consumer"))?;
            let mut start = TopicPartitionList::new();
            start
                .add_partition_offset(&topic, partition, Offset::Offset(from))
                .and_then(|()| consumer.assign(&start))
                .map_err(Error::kafka(doing.clone()))?;
            let deadline = Instant::now() + CALL_TIMEOUT;
            let mut found = None;
            while Instant::now() < deadline {
                match consumer.poll(CALL_TIMEOUT) {
                    Some(Ok(message)) if message.offset() < offset => {
                        found = message.timestamp().to_millis();
                        if message.offset() + 1 == offset {
                            return Ok(found);
                        }
                    }
                    Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(found),
                    Some(Err(error)) => return Err(Error::kafka(doing)(error)),
                    None => {}
                }
            }
            Err(Error::Timeout {
                doing,
                seconds: CALL_TIMEOUT.as_secs(),
            })
        })
        .await
    }

    /// How many brokers keep a topic that asks for no number of its own, as ours do.
    pub async fn default_replication(&self) -> Result<i32> {
        const SETTING: &str = "default.replication.factor";
        let doing = format!("read {SETTING} of a broker");
        let brokers_doing = doing.clone();
        let broker = self
            .with_consumer(move |consumer, longest| {
                let metadata = consumer
                    .fetch_metadata(None, longest)
                    .map_err(Error::kafka(brokers_doing.clone()))?;
                Ok(metadata.brokers().first().map(|broker| broker.id()))
            })
            .await?;
        let unknown = || Error::Corrupt(format!("{doing}: no answer"));
        let broker = broker.ok_or_else(unknown)?;
        let broker = ResourceSpecifier::Broker(broker);
        let results = self.settings(&broker, doing.clone()).await?;
        let found = results.into_iter().next().ok_or_else(unknown)?;
        let found = found.map_err(|code| Error::kafka_code_error(doing.clone(), code))?;
        let value = found.get(SETTING).and_then(|entry| entry.value.as_deref());
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(unknown)
    }

    /// Ok when a broker answers within `timeout`.
    pub async fn broker_reachable(&self, timeout: Duration) -> Result<()> {
        let doing = format!("reach Kafka at {}", self.brokers());
        self.with_consumer(move |consumer, longest| {
            consumer
                .fetch_metadata(None, longest.min(timeout))
                .map(|_| ())
                .map_err(Error::kafka(doing.clone()))
        })
        .await
    }

    async fn create_topic(&self, name: &str, kind: TopicKind) -> Result<()> {
        // Replication -1 leaves the factor to the broker's default (KIP-464).
        let mut topic = NewTopic::new(name, kind.partitions(), TopicReplication::Fixed(-1));
        for setting in kind.settings() {
            topic = topic.set(setting.name, setting.value);
        }
        for (key, value) in kind.hints() {
            topic = topic.set(key, value);
        }
        let retention_ms = kind.first_retention_ms();
        if let Some(retention_ms) = &retention_ms {
            topic = topic.set("retention.ms", retention_ms);
        }
        let doing = format!("create topic {name}");
        let results = self
            .with_admin(doing.clone(), async |admin| {
                admin.create_topics([&topic], &options()).await
            })
            .await?;
        for result in results {
            match result {
                // Someone else was faster; the settings are checked next.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(Error::kafka_code_error(doing, code)),
            }
        }
        tracing::info!(
            topic = name,
            partitions = kind.partitions(),
            "created topic"
        );
        Ok(())
    }

    /// Brokers learn of a new topic one after the other.
    async fn wait_for_topic(&self, name: &str) -> Result<i32> {
        let deadline = tokio::time::Instant::now() + CALL_TIMEOUT;
        while tokio::time::Instant::now() < deadline {
            if let Some(partitions) = self.partitions(name).await? {
                return Ok(partitions);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Error::Timeout {
            doing: format!("wait for new topic {name}"),
            seconds: CALL_TIMEOUT.as_secs(),
        })
    }

    async fn check_settings(&self, name: &str, kind: TopicKind) -> Result<()> {
        let doing = format!("read settings of topic {name}");
        let topic = ResourceSpecifier::Topic(name);
        let results = self.settings(&topic, doing.clone()).await?;
        for result in results {
            let found = result.map_err(|code| Error::kafka_code_error(doing.clone(), code))?;
            check(name, kind, &found)?;
        }
        Ok(())
    }

    async fn settings(
        &self,
        of: &ResourceSpecifier<'_>,
        doing: String,
    ) -> Result<Vec<ConfigResourceResult>> {
        self.with_admin(doing, async |admin| {
            admin.describe_configs([of], &options()).await
        })
        .await
    }

    /// What `ask` hears from the kept admin client.
    async fn with_admin<T>(
        &self,
        doing: String,
        ask: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> KafkaResult<T>,
    ) -> Result<T> {
        let kept = &self.kept.admin;
        let admin = kept.get(|| {
            self.client()
                .create()
                .map_err(Error::kafka("create a Kafka admin client"))
        })?;
        let answer = ask(&admin).await;
        if answer.is_err() {
            kept.forget(&admin);
        }
        answer.map_err(Error::kafka(doing))
    }

    /// What `ask` hears, within a time, from the kept consumer, where blocking is allowed. One that
    /// was there before may know leaders that are gone: if it fails, a new one is asked.
    async fn with_consumer<T: Send + 'static>(
        &self,
        ask: impl Fn(&BaseConsumer, Duration) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let config = self.clone();
        crate::tail::blocking(move || {
            let kept = &config.kept.reader;
            if let Some(consumer) = kept.present() {
                // Nothing is read by it: what comes is news of lost connections, which would pile up.
                while consumer.poll(Duration::ZERO).is_some() {}
                match ask(&consumer, KEPT_TIMEOUT) {
                    Ok(answer) => return Ok(answer),
                    Err(_) => kept.forget(&consumer),
                }
            }
            let consumer = kept.get(|| {
                config
                    .read_committed_consumer("bunny-metadata")
                    .create()
                    .map_err(Error::kafka("create a Kafka consumer"))
            })?;
            let answer = ask(&consumer, CALL_TIMEOUT);
            if answer.is_err() {
                kept.forget(&consumer);
            }
            answer
        })
        .await
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(CALL_TIMEOUT))
        .operation_timeout(Some(CALL_TIMEOUT))
}

fn check(topic: &str, kind: TopicKind, found: &ConfigResource) -> Result<()> {
    for setting in kind.settings() {
        let value = found
            .get(setting.name)
            .and_then(|entry| entry.value.as_deref())
            .unwrap_or("unset");
        if !setting.accepts(value) {
            return Err(Error::TopicSetting {
                topic: topic.to_owned(),
                setting: setting.name.to_owned(),
                found: value.to_owned(),
                wanted: if setting.at_least {
                    format!("at least {}", setting.value)
                } else {
                    setting.value.to_owned()
                },
            });
        }
    }
    Ok(())
}

impl Setting {
    fn accepts(&self, found: &str) -> bool {
        if !self.at_least {
            return found == self.value;
        }
        match (found.parse::<i64>(), self.value.parse::<i64>()) {
            (Ok(found), Ok(wanted)) => found >= wanted,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::MESSAGE_BYTES_MAX;

    fn number(settings: &[Setting], name: &str) -> usize {
        let setting = settings.iter().find(|setting| setting.name == name);
        setting.unwrap().value.parse().unwrap()
    }

    #[test]
    fn largest_message_fits_a_segment() {
        assert_eq!(
            number(&LOG_SETTINGS, "max.message.bytes"),
            MESSAGE_BYTES_MAX
        );
        assert!(number(&LOG_SETTINGS, "segment.bytes") >= MESSAGE_BYTES_MAX);
        assert!(
            number(&COMPACT_SETTINGS, "segment.bytes")
                >= number(&COMPACT_SETTINGS, "max.message.bytes")
        );
    }

    #[test]
    fn settings_are_compared_by_kind() {
        assert!(exactly("retention.ms", "-1").accepts("-1"));
        assert!(!exactly("retention.ms", "-1").accepts("604800000"));
        assert!(at_least("segment.bytes", "100").accepts("200"));
        assert!(!at_least("segment.bytes", "100").accepts("99"));
        assert!(!at_least("segment.bytes", "100").accepts("unset"));
    }
}
