//! What can go wrong with events, topics and schema ids.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The ways out for whoever has events whose schema ids are lost.
pub(crate) const IDS_LOST_CURE: &str = "Restore that topic as it was, or resync every mirror under this BUNNY_TOPIC_PREFIX, so that each starts a new generation";

/// Errors of the event contract.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Kafka call failed.
    #[error("{doing}: {source}")]
    Kafka {
        /// What was being done, and to which topic.
        doing: String,
        /// librdkafka's error.
        source: KafkaError,
    },
    /// Kafka answered nothing in time.
    #[error("{doing}: no answer from Kafka within {seconds} s")]
    Timeout {
        /// What was being done, and to which topic.
        doing: String,
        /// The limit that ran out, in seconds.
        seconds: u64,
    },
    /// A topic exists with a setting under which events could be lost or refused.
    #[error(
        "topic {topic} has {setting}={found}, needs {wanted}: change it with kafka-configs or delete the topic"
    )]
    TopicSetting {
        /// Topic name.
        topic: String,
        /// Setting, or `partitions`.
        setting: String,
        /// Value at the broker.
        found: String,
        /// Value that is needed.
        wanted: String,
    },
    /// Bytes that are not the record they should be: truncated, or not of the
    /// schema they name.
    #[error("malformed event: {what} at byte {at}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// Offset in the datum.
        at: usize,
    },
    /// A schema that is not of this contract.
    #[error("unknown schema: {0}")]
    Schema(String),
    /// No schema with this id is in the registry.
    #[error("schema id {0} is not in the registry")]
    UnknownId(u32),
    /// A value or argument that cannot be encoded.
    #[error("{0}")]
    Invalid(String),
    /// A schema registry outside does not answer, or says that it cannot now.
    #[error("schema registry {url}: cannot {doing}: {why}")]
    RegistryAway {
        /// Where it is.
        url: String,
        /// What was being done.
        doing: String,
        /// What came instead of an answer.
        why: String,
    },
    /// A schema registry outside says no, and would say so again.
    #[error("schema registry {url} refuses to {doing}: {why} ({cure})")]
    RegistryRefused {
        /// Where it is.
        url: String,
        /// What was being done.
        doing: String,
        /// What it said.
        why: String,
        /// What a person can do.
        cure: String,
    },
    /// A schema id would mean two things; says which, and the ways out.
    #[error("{0}")]
    IdsClash(String),
    /// Events carry a schema id that the schemas topic does not have, or has for something else;
    /// says which, and the ways out.
    #[error("{0}")]
    IdLost(String),
    /// What the topics hold contradicts itself.
    #[error("{0}")]
    Corrupt(String),
}

impl Error {
    pub(crate) fn kafka(doing: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
        let doing = doing.into();
        move |source| Error::Kafka { doing, source }
    }

    pub(crate) fn kafka_code_error(doing: impl Into<String>, code: RDKafkaErrorCode) -> Error {
        Error::Kafka {
            doing: doing.into(),
            source: KafkaError::AdminOp(code),
        }
    }

    /// For what does not read by the schema whose id it carries: says that, and the ways out.
    /// `carrier` is the record, in words. Other errors stay as they are.
    pub fn not_of_schema(self, id: u32, carrier: &str) -> Error {
        match self {
            Error::Malformed { .. } | Error::Schema(_) => Error::IdLost(format!(
                "{carrier} is not of schema id {id}, which it carries ({self}): was the schemas topic deleted, and begun anew with other ids? {IDS_LOST_CURE}"
            )),
            other => other,
        }
    }

    /// librdkafka's error code, when the error came from Kafka.
    pub fn kafka_code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Error::Kafka { source, .. } => source.rdkafka_error_code(),
            _ => None,
        }
    }

    /// Whether what was to be read is no longer, or not yet, in the topic.
    pub fn is_trimmed(&self) -> bool {
        matches!(
            self.kafka_code(),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
        )
    }

    /// Whether there seems to be no such topic. A partition without a leader can look the same:
    /// [`KafkaConfig::has_lost`](crate::kafka::KafkaConfig::has_lost) knows.
    pub fn is_gone(&self) -> bool {
        self.kafka_code().is_some_and(names_no_topic)
    }

    /// Whether the same call may succeed later without anybody changing anything:
    /// a broker away or busy, a fenced producer (the caller starts over), a
    /// schema id whose record has not arrived yet.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Kafka { source, .. } => is_transient_kafka(source),
            Error::Timeout { .. } | Error::UnknownId(_) | Error::RegistryAway { .. } => true,
            Error::TopicSetting { .. }
            | Error::Malformed { .. }
            | Error::Schema(_)
            | Error::Invalid(_)
            | Error::RegistryRefused { .. }
            | Error::IdsClash(_)
            | Error::IdLost(_)
            | Error::Corrupt(_) => false,
        }
    }
}

/// Whether a code says that there is no such topic, or no such partition of it.
pub(crate) fn names_no_topic(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
    )
}

/// Lists what is *not* worth another try; whatever a broker may say in trouble,
/// and codes of later brokers, are.
fn is_transient_kafka(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    if matches!(
        error,
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_)
    ) {
        return false;
    }
    !matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::UnsupportedSASLMechanism
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::InvalidTopic
                | Code::InvalidConfig
                | Code::InvalidReplicationFactor
                | Code::PolicyViolation
                | Code::MessageSizeTooLarge
                | Code::OffsetOutOfRange
                | Code::AutoOffsetReset
                | Code::UnsupportedVersion
                | Code::UnsupportedFeature
                | Code::InvalidArgument
        )
    )
}
