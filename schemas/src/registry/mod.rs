//! Schema ids, kept in the compacted topic `<prefix>.schemas`.
//!
//! A record's key is the id in decimal, its value
//! `{"subject": …, "version": …, "schema": …}`. One writer allocates at a time,
//! under the transactional id [`Topics::schemas_transactional_id`]: it initialises
//! (which fences whoever allocated before and ends what that one had open), reads
//! the topic to its end, and commits records with the ids that follow the highest
//! one. Whoever is fenced starts over, so no id is given twice and no schema of a
//! subject gets two ids, whatever dies in between. A new topic begins anywhere, so that
//! its ids are not those of a topic that was lost.
//!
//! With a [`Server`] it is that schema registry outside which chooses the ids; they are recorded in
//! the topic in the same way before they are used, so that readers of ours need only Kafka, and
//! an id that would mean two things is refused (docs/adr/0035).

mod allocator;
mod confirmed;
mod server;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crate::control::SchemaKind;
use crate::crash_points::{SCHEMA_REGISTERED, crash_point};
use crate::debezium::{AvroIds, AvroSchemas};
use crate::envelope::TableSchema;
use crate::error::IDS_LOST_CURE;
use crate::kafka::{KafkaConfig, TopicKind};
use crate::tail::{Tail, blocking};
use crate::topics::Topics;
use crate::{Error, Result};

use allocator::Allocator;
pub use server::{Credentials, Server};
use state::State;

/// How long `register` goes on when it is fenced or Kafka is in trouble.
const REGISTER_MAX: Duration = Duration::from_secs(60);

/// How long an id that an event carries may seem to be missing.
pub const LOST_PATIENCE: Duration = Duration::from_secs(30);
const LOST_PAUSE: Duration = Duration::from_secs(1);

/// Who chooses the ids of new schemas.
#[derive(Debug, Clone, Default)]
pub enum Authority {
    /// The topic itself. Refused once a server has: its next ids are not ours to give.
    #[default]
    Topic,
    /// The topic itself, although a server did before, which nobody asks any more.
    TopicAgain,
    /// A schema registry outside.
    Server(Arc<Server>),
}

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
    authority: Authority,
    state: RwLock<State>,
}

impl Registry {
    /// Creates or checks the topic and reads it. New ids are the topic's own.
    pub async fn open(kafka: KafkaConfig, topics: &Topics) -> Result<Registry> {
        Registry::open_with(kafka, topics, Authority::Topic).await
    }

    /// The same, with new ids chosen by `authority`.
    pub async fn open_with(
        kafka: KafkaConfig,
        topics: &Topics,
        authority: Authority,
    ) -> Result<Registry> {
        let topic = topics.schemas();
        kafka.ensure_topic(&topic, TopicKind::Schemas).await?;
        let registry = Registry::of(kafka, topics, authority);
        registry.refresh().await?;
        Ok(registry)
    }

    /// For those who only read: the topic is neither created nor checked, and is read when
    /// first needed.
    pub fn reading(kafka: KafkaConfig, topics: &Topics) -> Registry {
        Registry::of(kafka, topics, Authority::Topic)
    }

    fn of(kafka: KafkaConfig, topics: &Topics, authority: Authority) -> Registry {
        Registry {
            shared: Arc::new(Shared {
                kafka,
                topic: topics.schemas(),
                transactional_id: topics.schemas_transactional_id(),
                authority,
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
    /// is transient. A server that is away is an error at once.
    pub async fn register_all(&self, wanted: &[(String, String)]) -> Result<Vec<u32>> {
        if let Authority::Server(server) = &self.shared.authority {
            let given = self.ask(server, wanted).await?;
            let ids = self.record(wanted, Some(given.into())).await?;
            server.confirmed.lock().await.good(&ids);
            return Ok(ids);
        }
        let known = self.shared.read_state(|state| {
            self.shared.refuse_own_ids(state)?;
            Ok::<_, Error>(state.ids(wanted))
        })?;
        match known {
            Some(ids) => Ok(ids),
            None => self.record(wanted, None).await,
        }
    }

    /// Ids that the server has given to `wanted`, or gives now. Those that the topic holds are
    /// not asked for again, once it is sure that they mean the same there.
    async fn ask(&self, server: &Server, wanted: &[(String, String)]) -> Result<Vec<u32>> {
        let known: Vec<Option<u32>> = {
            let mut confirmed = server.confirmed.lock().await;
            let known = self.shared.read_state(|state| state.ids(wanted));
            if let Some(ids) = known.filter(|ids| confirmed.are_good(ids)) {
                return Ok(ids);
            }
            let recorded = self.shared.read_state(State::records);
            confirmed
                .look_up(server, &self.shared.topic, recorded)
                .await?;
            let known = |state: &State| {
                let ids = wanted.iter().map(|(subject, schema)| {
                    let id = state.id(subject, schema);
                    id.filter(|id| !confirmed.is_lost(*id))
                });
                ids.collect()
            };
            self.shared.read_state(known)
        };
        let mut ids = Vec::with_capacity(wanted.len());
        for ((subject, schema), known) in wanted.iter().zip(&known) {
            ids.push(match known {
                Some(id) => *id,
                None => server.register(subject, schema).await?,
            });
        }
        if known.contains(&None) {
            crash_point(SCHEMA_REGISTERED);
        }
        Ok(ids)
    }

    /// Writes `wanted` into the topic where it has them not, with the ids that a server has
    /// `given`, or the next ones.
    async fn record(
        &self,
        wanted: &[(String, String)],
        given: Option<Arc<[u32]>>,
    ) -> Result<Vec<u32>> {
        let wanted: Arc<[(String, String)]> = wanted.into();
        let deadline = Instant::now() + REGISTER_MAX;
        let mut attempt = 0_u32;
        loop {
            let error = match self.allocate(Arc::clone(&wanted), given.clone()).await {
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

    /// Ids of the schemas of a table topic's records, under the subjects `<topic>-value` and
    /// `<topic>-key`, where clients of Confluent's look for them.
    pub async fn register_topic(&self, topic: &str, schemas: &AvroSchemas) -> Result<AvroIds> {
        let mut wanted = vec![(format!("{topic}-value"), schemas.value.clone())];
        if let Some(key) = &schemas.key {
            wanted.push((format!("{topic}-key"), key.clone()));
        }
        let ids = self.register_all(&wanted).await?;
        Ok(AvroIds {
            value: single(&ids)?,
            key: ids.get(1).copied(),
        })
    }

    /// Id of a fixed record's schema.
    pub async fn register_control(&self, kind: SchemaKind) -> Result<u32> {
        let [id] = self.register_controls([kind]).await?;
        Ok(id)
    }

    /// Ids of several fixed records' schemas, in the same order.
    pub async fn register_controls<const N: usize>(
        &self,
        kinds: [SchemaKind; N],
    ) -> Result<[u32; N]> {
        let mut wanted = Vec::with_capacity(N);
        for kind in kinds {
            let (Some(subject), Some(json)) = (kind.subject(), kind.avro_json()) else {
                return Err(Error::Invalid(format!("{kind:?} has no schema of its own")));
            };
            wanted.push((subject.to_owned(), json));
        }
        let ids = self.register_all(&wanted).await?;
        ids.try_into().map_err(|_| wrong_count())
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

    /// Schema with the id that `carrier` carries, a record in words: it was in the schemas topic
    /// before that was written. Only a broker that answers with less than it has hides it, which
    /// is waited for.
    ///
    /// # Errors
    /// [`Error::IdLost`] when it is not there after `patience`.
    pub async fn schema_of(&self, id: u32, carrier: &str, patience: Duration) -> Result<Arc<str>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.schema(id).await {
                Err(Error::UnknownId(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(LOST_PAUSE).await;
                }
                Err(Error::UnknownId(_)) => {
                    return Err(Error::IdLost(format!(
                        "{} lacks schema id {id}, which {carrier} carries: was it deleted, or trimmed? {IDS_LOST_CURE}",
                        self.shared.topic
                    )));
                }
                found => return found,
            }
        }
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

    async fn allocate(
        &self,
        wanted: Arc<[(String, String)]>,
        given: Option<Arc<[u32]>>,
    ) -> Result<Vec<u32>> {
        let shared = Arc::clone(&self.shared);
        let mut allocator = Arc::clone(&self.allocator).lock_owned().await;
        blocking(move || allocator.allocate(&shared, &wanted, given.as_deref())).await
    }
}

impl Shared {
    /// Reads the topic from where the last read ended. Reading a stretch twice is
    /// harmless, so readers need no turn. Of a topic that is another one than was read before
    /// (Kafka was lost, and is there anew) all is read, and what was known is void.
    fn read_on(&self) -> Result<()> {
        let tail = Tail::open(&self.kafka, &self.topic, 0)?;
        let (low, end) = tail.watermarks()?;
        let first = tail.first_written(low)?;
        let (is_other, known) =
            self.read_state(|state| (state.is_of_another(first), state.next_offset));
        let from = if is_other { low } else { known.max(low) };
        // Shorter than it was: a broker that is only just back, or a topic made anew that nobody has
        // written to. Neither says anything new.
        if from > end {
            return Ok(());
        }
        let mut records = Vec::new();
        let next_offset = tail.read(from, |record| {
            records.push(state::parse(&self.topic, &record)?);
            Ok(())
        })?;
        if is_other {
            tracing::warn!(
                topic = self.topic,
                "the schemas topic is another one than it was"
            );
        }
        // All at once: who gives ids must never see a part.
        self.write_state(|state| {
            let mut anew = State::default();
            let read = if is_other { &mut anew } else { &mut *state };
            for record in records {
                read.insert(record)?;
            }
            read.next_offset = read.next_offset.max(next_offset);
            read.first = first.or(read.first);
            if is_other {
                *state = anew;
            }
            Ok(())
        })
    }

    /// Ids of ours could be given by the server to others, now or later.
    fn refuse_own_ids(&self, state: &State) -> Result<()> {
        if matches!(self.authority, Authority::Topic) && state.has_ids_of_a_server() {
            return Err(Error::IdsClash(format!(
                "the schema ids in {} were given by a schema registry outside: set BUNNY_SCHEMA_REGISTRY_URL to it. If it is gone for good and nobody reads events with it any more, set it to \"built-in\"",
                self.topic
            )));
        }
        Ok(())
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
