//! The log side of the stream: Kafka transactions that hold events and the position reached.
//!
//! A transaction is cut by size and time and may hold parts of source transactions. Its
//! position record is what a later run trusts, so both become visible together or not at
//! all (invariant I2). Any error leaves the publisher unusable: the run ends, and the next
//! one opens a new publisher, which aborts whatever was left open.

mod describe;
mod facts;
mod labels;
mod outbox;
mod recognise;
mod tables;
mod visibility;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bunny_postgres::TableName;
use bunny_schemas::control::{PositionRecord, SchemaKind, SyncRecord, TableRecord, WishRecord};
use bunny_schemas::kafka::{Closing, KafkaConfig, TransactionalProducer, commit_transaction};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use tokio::task::JoinHandle;

pub(crate) use describe::describe;
pub(crate) use tables::{Captured, Expected, Published, Tables};
pub(crate) use visibility::{Given, Visibility};

use self::outbox::{Message, Outbox};
use crate::crash_points::{
    AFTER_KAFKA_COMMIT, BEFORE_KAFKA_COMMIT, MID_TRANSACTION, READ_ON, crash_point, is_armed,
};
use crate::error::{Error, Result};
use crate::memory::Share;
use crate::size::Sent;
use crate::snapshot::SyncNote;
use crate::table_topics::Records;

/// A Kafka transaction is committed when it holds this much, or its share of the process's memory,
/// or is this old, or the source has nothing more to give.
const TRANSACTION_EVENTS_MAX: usize = 20_000;
/// The same for a process that is to die between two Kafka transactions of one of the source's:
/// that test's source transactions are small.
const TRANSACTION_EVENTS_ARMED: usize = 1_000;
const TRANSACTION_AGE_MAX: Duration = Duration::from_secs(1);

/// Longest wait for more after the source has gone quiet.
const QUIET_MAX: Duration = Duration::from_millis(20);

/// How long Kafka may be away before the run gives up, and with it its replication
/// connection: a walsender whose reader stands still blocks the source's fast shutdown.
const KAFKA_PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for room in librdkafka's queue before looking again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// What the next commit will hold. Kafka's transaction begins when something is handed over,
/// which is after the end of the one before.
struct OpenTransaction {
    bytes: usize,
    events: usize,
    since: Instant,
    is_begun: bool,
}

/// A commit that Kafka has not answered.
struct Commit {
    began: Instant,
    answer: JoinHandle<KafkaResult<()>>,
}

/// How long a commit takes, and when the last one ended.
struct Pace {
    took: Duration,
    ended: Instant,
}

impl Pace {
    /// When a transaction opened at `since` should end if the source goes quiet.
    ///
    /// At once if it came long after the last one: a lone change waits for nobody. Under
    /// load it stays open for as long as a commit takes, so that at least half of the time
    /// goes to reading, and transactions grow when the broker slows down.
    fn quiet_commit_at(&self, since: Instant) -> Instant {
        if since.saturating_duration_since(self.ended) > self.took {
            since
        } else {
            // What came during the commit counts from its end.
            since.max(self.ended) + self.took.min(QUIET_MAX)
        }
    }
}

/// Writes to a mirror's change, position and table topics, as the only one who can.
pub(crate) struct Publisher {
    producer: Arc<Closing<TransactionalProducer>>,
    changes_topic: String,
    position_topic: String,
    position_schema_id: u32,
    sync_schema_id: u32,
    table_schema_id: u32,
    wish_schema_id: u32,
    open: Option<OpenTransaction>,
    committing: Option<Commit>,
    /// Events of the open transaction that librdkafka does not have yet.
    outbox: Outbox,
    events_max: usize,
    pace: Pace,
    sent: Sent,
    share: Share,
}

impl Publisher {
    /// Opens the producer and fences the former one: after this, no other capture of the
    /// mirror can commit (invariant I7).
    pub(crate) async fn open(
        kafka: &KafkaConfig,
        topics: &Topics,
        registry: &Registry,
        slug: &str,
        share: Share,
    ) -> Result<Self> {
        let [
            position_schema_id,
            sync_schema_id,
            table_schema_id,
            wish_schema_id,
        ] = registry
            .register_controls([
                SchemaKind::Position,
                SchemaKind::Sync,
                SchemaKind::Table,
                SchemaKind::Wish,
            ])
            .await?;
        let id = topics.capture_transactional_id(slug);
        let producer =
            TransactionalProducer::create(kafka.transactional_producer(&id)).map_err(|error| {
                Error::Kafka {
                    doing: "opening the transactional producer",
                    error,
                }
            })?;
        let publisher = Self {
            producer: Arc::new(Closing::new(producer)),
            changes_topic: topics.changes(slug),
            position_topic: topics.position(slug),
            position_schema_id,
            sync_schema_id,
            table_schema_id,
            wish_schema_id,
            open: None,
            committing: None,
            outbox: Outbox::default(),
            events_max: match is_armed(MID_TRANSACTION) {
                true => TRANSACTION_EVENTS_ARMED,
                false => TRANSACTION_EVENTS_MAX,
            },
            pace: Pace {
                took: Duration::ZERO,
                ended: Instant::now(),
            },
            sent: Sent::default(),
            share,
        };
        let fenced = publisher.blocking(|producer| producer.init_transactions(KAFKA_PATIENCE));
        answered("fencing the former capture", fenced.await)?;
        Ok(publisher)
    }

    /// Counts the bytes sent to the change topic; what is aborted takes room too.
    pub(crate) fn sent(&self) -> Sent {
        self.sent.clone()
    }

    /// True when something was sent that no commit covers yet, not even one under way.
    pub(crate) fn has_open(&self) -> bool {
        self.open.is_some()
    }

    /// True while Kafka has not answered the latest commit.
    pub(crate) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// True when the open transaction should be committed before more is sent. `now` may be a moment
    /// ago: the clock is not asked for every event.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.bytes >= self.share.transaction_bytes_max()
                || open.events >= self.events_max
                || now.saturating_duration_since(open.since) >= TRANSACTION_AGE_MAX
        })
    }

    /// When the open transaction was begun; `None` if nothing is open.
    pub(crate) fn open_since(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.since)
    }

    /// When to commit if the source has nothing more to give until then; `None` if nothing
    /// is open.
    pub(crate) fn quiet_commit_at(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        Some(self.pace.quiet_commit_at(open.since))
    }

    /// Appends one event to the change topic, inside the open transaction.
    pub(crate) async fn send_event(&mut self, key: Option<&[u8]>, value: &[u8]) -> Result<()> {
        let bytes = value.len() + key.map_or(0, <[u8]>::len);
        self.count(bytes);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        let message = Message {
            topic: None,
            key,
            value: Some(value),
        };
        self.put(message, bytes).await
    }

    /// Appends to table topics what belongs to the event that was sent last, inside the same
    /// transaction.
    pub(crate) async fn send_records(&mut self, records: &Records) -> Result<()> {
        for record in records.iter() {
            let bytes = record.bytes();
            self.count(bytes);
            let message = Message {
                topic: Some(record.topic),
                key: record.key,
                value: record.value,
            };
            match record.header {
                None => self.put(message, bytes).await?,
                // Headers are as rare as changes of keys.
                Some(_) => {
                    self.hand_over().await?;
                    send(&self.producer, &self.changes_topic, message, record.header).await?;
                }
            }
        }
        Ok(())
    }

    /// While Kafka commits, what comes waits here, but no more than is handed over at a time.
    async fn put(&mut self, message: Message<'_>, bytes: usize) -> Result<()> {
        if outbox::is_large(bytes) {
            self.hand_over().await?;
            return send(&self.producer, &self.changes_topic, message, None).await;
        }
        if self.is_committing() {
            crash_point(READ_ON);
        }
        self.outbox.push(message);
        if self.outbox.is_full() {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Gives librdkafka what waits for it, in a transaction of its own: the one before ends first.
    async fn hand_over(&mut self) -> Result<()> {
        self.answered().await?;
        if let Some(open) = self.open.as_mut().filter(|open| !open.is_begun) {
            self.producer
                .begin_transaction()
                .map_err(|error| Error::Kafka {
                    doing: "beginning a transaction",
                    error,
                })?;
            open.is_begun = true;
        }
        for message in self.outbox.iter() {
            send(&self.producer, &self.changes_topic, message, None).await?;
        }
        self.outbox.clear();
        Ok(())
    }

    /// Counts a message into the open transaction, or opens one with it.
    fn count(&mut self, bytes: usize) {
        let open = self.open.get_or_insert_with(|| OpenTransaction {
            bytes: 0,
            events: 0,
            since: Instant::now(),
            is_begun: false,
        });
        open.bytes += bytes;
        open.events += 1;
    }

    /// Has Kafka commit what was sent, together with the position it reaches, the table syncs it
    /// records and what is known of tables (None forgets one). The answer comes by
    /// [`Publisher::answered`]; what is sent before it belongs to the next commit.
    pub(crate) async fn begin_commit(
        &mut self,
        position: &PositionRecord,
        syncs: &[SyncNote],
        tables: &[(TableName, Option<TableRecord>)],
    ) -> Result<()> {
        self.hand_over().await?;
        let record = position.encode(self.position_schema_id);
        self.record(PositionRecord::KEY, Some(&record)).await?;
        self.record_all(syncs).await?;
        for (table, record) in tables {
            let record = record
                .as_ref()
                .map(|record| record.encode(self.table_schema_id));
            let key = TableRecord::key_of(table);
            self.record(key.as_bytes(), record.as_deref()).await?;
        }
        self.end_transaction();
        Ok(())
    }

    /// Records the wish that is acted on from now on; returns once Kafka has answered.
    pub(crate) async fn remember(&mut self, wish: WishRecord) -> Result<()> {
        let record = wish.encode(self.wish_schema_id);
        self.record(WishRecord::KEY, Some(&record)).await?;
        self.end_transaction();
        self.answered().await
    }

    /// Records what is known of syncs; returns once Kafka has answered.
    pub(crate) async fn note(&mut self, syncs: &[SyncNote]) -> Result<()> {
        self.record_all(syncs).await?;
        self.end_transaction();
        self.answered().await
    }

    async fn record_all(&mut self, syncs: &[SyncNote]) -> Result<()> {
        for (request, record) in syncs {
            let record = record
                .as_ref()
                .map(|record| record.encode(self.sync_schema_id));
            let key = SyncRecord::key_of(*request);
            self.record(key.as_bytes(), record.as_deref()).await?;
        }
        Ok(())
    }

    /// Has Kafka commit all that was handed over.
    fn end_transaction(&mut self) {
        crash_point(BEFORE_KAFKA_COMMIT);
        self.open = None;
        self.committing = Some(Commit {
            began: Instant::now(),
            answer: self.blocking(|producer| commit_transaction(&**producer, KAFKA_PATIENCE)),
        });
    }

    /// Returns once Kafka has answered the commit under way, at once if none is. Can be dropped
    /// and asked again.
    pub(crate) async fn answered(&mut self) -> Result<()> {
        let Some(commit) = &mut self.committing else {
            return Ok(());
        };
        let answer = (&mut commit.answer).await;
        let took = commit.began.elapsed();
        self.committing = None;
        answered("committing a transaction", answer)?;
        self.pace = Pace {
            took,
            ended: Instant::now(),
        };
        crash_point(AFTER_KAFKA_COMMIT);
        Ok(())
    }

    /// Appends to the position topic, inside the open transaction.
    async fn record(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        self.count(key.len() + value.map_or(0, <[u8]>::len));
        self.hand_over().await?;
        let message = Message {
            topic: None,
            key: Some(key),
            value,
        };
        send(&self.producer, &self.position_topic, message, None).await
    }

    /// Runs one of librdkafka's blocking calls away from the async threads.
    fn blocking(
        &self,
        call: impl FnOnce(&TransactionalProducer) -> KafkaResult<()> + Send + 'static,
    ) -> JoinHandle<KafkaResult<()>> {
        let producer = Arc::clone(&self.producer);
        tokio::task::spawn_blocking(move || call(&producer))
    }
}

/// What a blocking call said.
fn answered(
    doing: &'static str,
    answer: std::result::Result<KafkaResult<()>, tokio::task::JoinError>,
) -> Result<()> {
    answer
        .map_err(|error| Error::transient(format!("{doing}: {error}")))?
        .map_err(|error| Error::Kafka { doing, error })
}

/// Hands a message over to librdkafka, inside the open transaction; one that names no topic goes
/// to `topic`.
async fn send(
    producer: &TransactionalProducer,
    topic: &str,
    message: Message<'_>,
    header: Option<(&str, &[u8])>,
) -> Result<()> {
    let topic = message.topic.map_or(topic, |topic| topic);
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(0);
    if let Some(value) = message.value {
        record = record.payload(value);
    }
    if let Some(key) = message.key {
        record = record.key(key);
    }
    if let Some((key, value)) = header {
        let value = Some(value);
        record = record.headers(OwnedHeaders::new().insert(Header { key, value }));
    }
    let mut deadline = None;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                if Instant::now()
                    < *deadline.get_or_insert_with(|| Instant::now() + KAFKA_PATIENCE) =>
            {
                record = again;
                tokio::time::sleep(QUEUE_FULL_PAUSE).await;
            }
            Err((error, _)) => {
                return Err(Error::Kafka {
                    doing: "sending an event",
                    error,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(took: Duration, ended: Instant) -> Pace {
        Pace { took, ended }
    }

    #[test]
    fn a_lone_change_waits_for_nobody() {
        let ended = Instant::now();
        let since = ended + 50 * MS;
        assert_eq!(pace(8 * MS, ended).quiet_commit_at(since), since);
    }

    #[test]
    fn under_load_a_transaction_lasts_as_long_as_a_commit() {
        let ended = Instant::now();
        let since = ended + MS;
        assert_eq!(pace(8 * MS, ended).quiet_commit_at(since), since + 8 * MS);
        let slow = pace(800 * MS, ended).quiet_commit_at(since);
        assert_eq!(slow, since + QUIET_MAX);
        let during = pace(8 * MS, since).quiet_commit_at(ended);
        assert_eq!(during, since + 8 * MS);
    }
}
