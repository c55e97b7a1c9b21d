//! Schema ids, kept in the compacted topic `<prefix>.schemas`.
//!
//! A record's key is the id in decimal, its value
//! `{"subject": …, "version": …, "schema": …}`. One writer allocates at a time,
//! under the transactional id [`Topics::schemas_transactional_id`]: it initialises
//! (which fences whoever allocated before and ends what that one had open), reads
//! the topic to its end, and commits records with the ids that follow the highest
//! one. Whoever is fenced starts over, so no id is given twice and no schema of a
//! subject gets two ids, whatever dies in between.

mod allocator;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crate::control::SchemaKind;
use crate::envelope::TableSchema;
use crate::kafka::{KafkaConfig, TopicKind};
use crate::tail::{Tail, blocking};
use crate::topics::Topics;
use crate::{Error, Result};

use allocator::Allocator;
use state::State;

/// How long `register` goes on when it is fenced or Kafka is in trouble.
const REGISTER_MAX: Duration = Duration::from_secs(60);

/// The registry. Clones share one cache and one allocator.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    allocator: Arc<tokio::sync::Mutex<Allocator>>,
}

/// What reading and allocating share.
struct Shared {
    kafka: KafkaConfig,
    topic: String,
    transactional_id: String,
    state: RwLock<State>,
}

impl Registry {
    /// Creates or checks the topic and reads it.
    pub async fn open(kafka: KafkaConfig, topics: &Topics) -> Result<Registry> {
        let topic = topics.schemas();
        kafka.ensure_topic(&topic, TopicKind::Schemas).await?;
        let registry = Registry::of(kafka, topics);
        registry.refresh().await?;
        Ok(registry)
    }

    /// For those who only read: the topic is neither created nor checked, and is read when
    /// first needed.
    pub fn reading(kafka: KafkaConfig, topics: &Topics) -> Registry {
        Registry::of(kafka, topics)
    }

    fn of(kafka: KafkaConfig, topics: &Topics) -> Registry {
        Registry {
            shared: Arc::new(Shared {
                kafka,
                topic: topics.schemas(),
                transactional_id: topics.schemas_transactional_id(),
                state: RwLock::default(),
            }),
            allocator: Arc::default(),
        }
    }

    /// Id of `schema_json` under `subject`, allocated and written when it has none.
    pub async fn register(&self, subject: &str, schema_json: &str) -> Result<u32> {
        let ids = self
            .register_all(&[(subject.to_owned(), schema_json.to_owned())])
            .await?;
        single(&ids)
    }

    /// Ids of several schemas, `(subject, schema)` each, in the same order. Those
    /// that have none get them in one transaction.
    ///
    /// Fenced or troubled attempts start over for up to a minute; the error then
    /// is transient.
    pub async fn register_all(&self, wanted: &[(String, String)]) -> Result<Vec<u32>> {
        if let Some(ids) = self.shared.read_state(|state| state.ids(wanted)) {
            return Ok(ids);
        }
        let wanted: Arc<[(String, String)]> = wanted.into();
        let deadline = Instant::now() + REGISTER_MAX;
        let mut attempt = 0_u32;
        loop {
            let error = match self.allocate(Arc::clone(&wanted)).await {
                Ok(ids) => return Ok(ids),
                Err(error) => error,
            };
            if !error.is_transient() || Instant::now() >= deadline {
                return Err(error);
            }
            attempt += 1;
            tracing::debug!(attempt, %error, "allocating schema ids starts over");
            // Random, so that two allocators do not keep fencing each other.
            let longest_ms = 50 << attempt.min(5);
            let pause_ms = rand::random_range(10..longest_ms);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    /// Ids of a table version: envelope and key.
    pub async fn register_table(&self, schema: &TableSchema) -> Result<(u32, u32)> {
        let ids = self
            .register_all(&[
                (schema.value_subject(), schema.value_avro_json()),
                (schema.key_subject(), schema.key_avro_json()),
            ])
            .await?;
        match ids[..] {
            [value_id, key_id] => Ok((value_id, key_id)),
            _ => Err(wrong_count()),
        }
    }

    /// Id of a fixed record's schema.
    pub async fn register_control(&self, kind: SchemaKind) -> Result<u32> {
        let (Some(subject), Some(json)) = (kind.subject(), kind.avro_json()) else {
            return Err(Error::Invalid(format!("{kind:?} has no schema of its own")));
        };
        self.register(subject, &json).await
    }

    /// Schema with this id; the topic is read on when it is not known yet.
    /// [`Error::UnknownId`] when the topic has none either.
    pub async fn schema(&self, id: u32) -> Result<Arc<str>> {
        if let Some(schema) = self.shared.read_state(|state| state.schema(id)) {
            return Ok(schema);
        }
        self.refresh().await?;
        self.shared
            .read_state(|state| state.schema(id))
            .ok_or(Error::UnknownId(id))
    }

    /// Subject and version of an id, as known since the last [`Registry::refresh`].
    pub async fn subject_version(&self, id: u32) -> Option<(Arc<str>, u32)> {
        self.shared.read_state(|state| state.subject_version(id))
    }

    /// All subjects, sorted, as known since the last [`Registry::refresh`].
    pub async fn subjects(&self) -> Vec<String> {
        self.shared.read_state(State::subjects)
    }

    /// Versions of a subject, as `(version, id, schema)` in order, as known since
    /// the last [`Registry::refresh`]; empty when there is no such subject.
    pub async fn versions(&self, subject: &str) -> Vec<(u32, u32, Arc<str>)> {
        self.shared.read_state(|state| state.versions(subject))
    }

    /// Reads what has been added to the topic.
    pub async fn refresh(&self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.read_on()).await
    }

    async fn allocate(&self, wanted: Arc<[(String, String)]>) -> Result<Vec<u32>> {
        let shared = Arc::clone(&self.shared);
        let mut allocator = Arc::clone(&self.allocator).lock_owned().await;
        blocking(move || allocator.allocate(&shared, &wanted)).await
    }
}

impl Shared {
    /// Reads the topic from where the last read ended. Reading a stretch twice is
    /// harmless, so readers need no turn.
    fn read_on(&self) -> Result<()> {
        let tail = Tail::open(&self.kafka, &self.topic, 0)?;
        let (low, _) = tail.watermarks()?;
        let known = self.read_state(|state| state.next_offset);
        let mut records = Vec::new();
        let next_offset = tail.read(known.max(low), |record| {
            records.push(state::parse(&self.topic, &record)?);
            Ok(())
        })?;
        self.write_state(|state| {
            for record in records {
                state.insert(record)?;
            }
            state.next_offset = state.next_offset.max(next_offset);
            Ok(())
        })
    }

    fn read_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        // A panic between two lines of bookkeeping leaves nothing half done.
        let state = self.state.read();
        read(&state.unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write_state<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        let state = self.state.write();
        write(&mut state.unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn single(ids: &[u32]) -> Result<u32> {
    ids.first().copied().ok_or_else(wrong_count)
}

fn wrong_count() -> Error {
    Error::Invalid("another number of ids than of schemas".to_owned())
}
