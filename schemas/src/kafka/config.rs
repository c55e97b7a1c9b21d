//! Client settings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;

use super::kept::KeptClients;
use super::{Closing, MESSAGE_BYTES_MAX, TransactionalProducer};
use crate::{Error, Result};

/// How to reach Kafka; clones ask it through the same clients. `Debug` hides values that may be
/// secret.
#[derive(Clone)]
pub struct KafkaConfig {
    brokers: String,
    overrides: BTreeMap<String, String>,
    pub(super) kept: Arc<KeptClients>,
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: BTreeMap<&str, &str> = self
            .overrides
            .iter()
            .map(|(key, value)| {
                let shown = if is_secret(key) { "***" } else { value };
                (key.as_str(), shown)
            })
            .collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("overrides", &shown)
            .finish()
    }
}

/// Whether a setting's value must not be shown.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "key",
        "secret",
        "jaas",
        "token",
        "sasl.oauthbearer.config",
    ]
    .iter()
    .any(|word| key.contains(word))
}

/// Defaults that an override may change, of every client.
const CLIENT: [(&str, &str); 6] = [
    ("client.id", "bunny"),
    ("socket.keepalive.enable", "true"),
    ("socket.nagle.disable", "true"),
    // librdkafka waits up to 10 s by default before it tries a broker again. A new client connects to
    // one broker in half of the first pause at most, which is 50 ms by default.
    ("reconnect.backoff.ms", "20"),
    ("reconnect.backoff.max.ms", "2000"),
    // A new topic is known at once instead of up to 5 min later.
    ("topic.metadata.refresh.interval.ms", "60000"),
];

/// Defaults that an override may change, of producers.
const PRODUCER: [(&str, &str); 4] = [
    ("compression.codec", "lz4"),
    // Must hold one message of the largest size, and bounds the memory.
    ("queue.buffering.max.kbytes", "98304"),
    ("queue.buffering.max.messages", "500000"),
    ("message.timeout.ms", "60000"),
];

/// The same, of those without transactions: batches fill by size; under low load nobody waits.
const PLAIN: [(&str, &str); 2] = [("linger.ms", "2"), ("batch.size", "1048576")];

/// The same, of those with transactions: a batch is sent when it is full, or by the commit, which
/// makes it visible and has it sent at once (docs/adr/0049). librdkafka has one batch of a partition
/// on its way at a time, and spins while messages that have lingered long enough wait behind it:
/// so a transaction is no more than one batch (docs/adr/0064), and none waits for its time.
const TRANSACTIONAL: [(&str, &str); 4] = [
    // A coordinator that may not be connected to at once is asked 500 ms later: `init_transactions`
    // took 510 ms in four of ten cases, and with this 6 to 16 ms.
    ("enable.sparse.connections", "false"),
    ("linger.ms", "1000"),
    ("batch.size", "8388608"),
    ("batch.num.messages", "100000"),
];

/// Defaults that an override may change, of consumers.
const CONSUMER: [(&str, &str); 7] = [
    // The default of 1 s stalls a consumer that drains its queue.
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.error.backoff.ms", "200"),
    // The end of a partition is signalled after an empty answer, which a broker
    // holds back for so long.
    ("fetch.wait.max.ms", "25"),
    // Soft limits: a broker sends a larger batch whole when it stands first.
    ("fetch.message.max.bytes", "8388608"),
    ("fetch.max.bytes", "16777216"),
    // Bounds the memory of a consumer that reads faster than we apply.
    ("queued.max.messages.kbytes", "32768"),
    ("queued.min.messages", "100000"),
];

/// Largest response in bytes: one message of the largest size and the overhead
/// of a fetch.
const RESPONSE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 48 * 1024 * 1024;

impl KafkaConfig {
    /// Kafka at `brokers` (`host:port`, comma-separated) with default settings.
    pub fn new(brokers: impl Into<String>) -> KafkaConfig {
        KafkaConfig::with_overrides(brokers, BTreeMap::new())
    }

    /// As [`KafkaConfig::new`], with librdkafka settings passed through (SASL, TLS, tuning). They
    /// win over defaults, not over what correctness needs.
    pub fn with_overrides(
        brokers: impl Into<String>,
        overrides: BTreeMap<String, String>,
    ) -> KafkaConfig {
        KafkaConfig {
            brokers: brokers.into(),
            overrides,
            kept: Arc::default(),
        }
    }

    /// `host:port`, comma-separated.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The librdkafka settings passed through.
    pub fn overrides(&self) -> &BTreeMap<String, String> {
        &self.overrides
    }

    /// Makes one client of each kind, which asks no broker: what librdkafka refuses, it refuses
    /// now.
    ///
    /// # Errors
    /// What it does not take; the value is not shown, since the key may be a misspelt password's.
    pub fn check(&self) -> Result<()> {
        let consumer = self.read_committed_consumer("bunny-check");
        let consumer = consumer.create::<BaseConsumer>().map(Closing::new);
        let producer = TransactionalProducer::create(self.transactional_producer("bunny-check"));
        let checked = consumer.and(producer.map(Closing::new));
        checked.map(drop).map_err(|error| match error {
            KafkaError::ClientConfig(_, why, key, _) => {
                Error::Invalid(format!("librdkafka refuses the setting {key}: {why}"))
            }
            error => Error::Invalid(format!("librdkafka refuses the settings: {error}")),
        })
    }

    /// Settings of any client, such as an admin client.
    pub fn client(&self) -> ClientConfig {
        self.build(&[], &[])
    }

    /// Settings of a transactional producer. Whoever calls `init_transactions`
    /// last under an id fences the others.
    pub fn transactional_producer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.producer(&TRANSACTIONAL);
        config.set("transactional.id", transactional_id);
        config
    }

    /// Settings of an idempotent producer without transactions.
    pub fn idempotent_producer(&self) -> ClientConfig {
        self.producer(&PLAIN)
    }

    /// Settings of a consumer that sees committed messages only, signals the end
    /// of a partition (`PartitionEOF`), commits nothing by itself and never jumps
    /// to another offset than the one it was assigned.
    pub fn read_committed_consumer(&self, group: &str) -> ClientConfig {
        let response_bytes_max = RESPONSE_BYTES_MAX.to_string();
        self.build(
            &CONSUMER,
            &[
                ("group.id", group),
                ("isolation.level", "read_committed"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("enable.partition.eof", "true"),
                ("auto.offset.reset", "error"),
                ("allow.auto.create.topics", "false"),
                ("receive.message.max.bytes", &response_bytes_max),
            ],
        )
    }

    fn producer(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let message_bytes_max = MESSAGE_BYTES_MAX.to_string();
        self.build(
            &[&PRODUCER, defaults].concat(),
            &[
                ("enable.idempotence", "true"),
                ("acks", "all"),
                ("message.max.bytes", &message_bytes_max),
            ],
        )
    }

    /// Defaults, then overrides, then what must be so.
    fn build(&self, defaults: &[(&str, &str)], required: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in CLIENT.iter().chain(defaults) {
            config.set(*key, *value);
        }
        for (key, value) in &self.overrides {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        for (key, value) in required {
            config.set(*key, *value);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::BATCH_BYTES_MAX;

    fn config() -> KafkaConfig {
        let overrides = [
            ("sasl.password", "hunter2"),
            ("ssl.key.pem", "hunter2"),
            ("sasl.oauthbearer.client.secret", "hunter2"),
            ("sasl.username", "bunny"),
            ("isolation.level", "read_uncommitted"),
            ("linger.ms", "50"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        KafkaConfig::with_overrides("localhost:9092", overrides.into())
    }

    #[test]
    fn what_librdkafka_refuses_is_named_without_its_value() {
        let refused = |key: &str, value: &str| {
            let overrides = [(key.to_owned(), value.to_owned())];
            let config = KafkaConfig::with_overrides("localhost:1", overrides.into());
            config.check().unwrap_err().to_string()
        };
        let misspelt = refused("sasl.pasword", "hunter2");
        assert!(misspelt.contains("sasl.pasword"), "{misspelt}");
        assert!(!misspelt.contains("hunter2"), "{misspelt}");
        // Fine for a consumer, and for a producer without transactions.
        let late = refused("message.timeout.ms", "900000");
        assert!(late.contains("message.timeout.ms"), "{late}");
        KafkaConfig::new("localhost:1").check().unwrap();
    }

    #[test]
    fn batches_of_transactions_are_as_large_as_is_said() {
        let producer = config().transactional_producer("t");
        let said = BATCH_BYTES_MAX.to_string();
        assert_eq!(producer.get("batch.size"), Some(said.as_str()));
    }

    #[test]
    fn debug_hides_secrets() {
        let text = format!("{:?}", config());
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("\"bunny\""), "{text}");
    }

    #[test]
    fn overrides_win_over_defaults_but_not_over_correctness() {
        let consumer = config().read_committed_consumer("g");
        assert_eq!(consumer.get("isolation.level"), Some("read_committed"));
        assert_eq!(consumer.get("auto.offset.reset"), Some("error"));
        let producer = config().transactional_producer("t");
        assert_eq!(producer.get("linger.ms"), Some("50"));
        assert_eq!(producer.get("transactional.id"), Some("t"));
        assert_eq!(producer.get("sasl.password"), Some("hunter2"));
    }
}
