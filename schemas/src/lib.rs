//! The event contract: everything that capture, apply and outside subscribers
//! must agree on to exchange changes through Kafka.
//!
//! * [`topics`]: topic, group and transactional names.
//! * [`kafka`]: client settings, topic creation and checks.
//! * [`wire`]: Avro primitives and the Confluent frame.
//! * [`envelope`]: the change event of a table, encoded and decoded by a plan.
//! * [`debezium`]: the same changes as records of table topics, for tools that expect Debezium's.
//! * [`control`]: the fixed records (`schemas/avro/*.avsc`).
//! * [`registry`]: schema ids in a compacted topic, chosen there or by a schema registry outside.
//! * [`reader`]: reads back what has been published; [`retained`]: what can be loaded again.
//! * [`follow`]: watches a change topic as it grows.
//!
//! The crate opens no Postgres connection. `docs/events.md` describes the same
//! contract for readers in other languages.

pub mod control;
pub mod crash_points;
pub mod debezium;
pub mod envelope;
mod error;
pub mod follow;
pub mod kafka;
mod position;
pub mod reader;
pub mod registry;
pub mod retained;
pub mod source_tables;
mod tail;
pub mod topics;
pub mod wire;

pub use error::{Error, Result};
pub use position::Position;
