//! Kafka as this project uses it: client settings and topics.
//!
//! librdkafka's synchronous calls run in `spawn_blocking`; nothing here retries
//! by itself beyond what librdkafka does.

mod closing;
mod config;
mod kept;
mod producer;
mod topic;
mod transaction;

use std::time::Duration;

pub use closing::Closing;
pub use config::KafkaConfig;
pub use producer::{FencingIsUsual, TransactionalProducer};
pub use topic::TopicKind;
pub use transaction::commit_transaction;

/// Largest event in bytes that capture publishes whole; a larger one becomes a
/// `TableGap`.
pub const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Largest message in bytes that topics and clients accept: an event and its
/// batch overhead fit.
pub const MESSAGE_BYTES_MAX: usize = 80 * 1024 * 1024;

/// What a batch of a transactional producer holds at most, in bytes before compression. A batch is
/// sent when it is full, otherwise by its transaction's commit.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Limit of a single administrative call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
