//! The registry, the topics and the readers on a real broker.
//!
//! Needs Kafka at `BUNNY_KAFKA_BROKERS`:
//! `cargo test -p bunny-schemas --test kafka -- --ignored`

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bunny_postgres::Lsn;
use bunny_schemas::control::{
    GenerationStarted, PositionRecord, SchemaKind, SyncRecord, SyncState, TableGap,
};
use bunny_schemas::envelope::{ColumnSchema, Encoder, Op, Source, TableSchema, Value};
use bunny_schemas::kafka::{
    KafkaConfig, MESSAGE_BYTES_MAX, TopicKind, TransactionalProducer, commit_transaction,
};
use bunny_schemas::reader::{last_change, last_position, read_positions};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use bunny_schemas::{Error, Position};
use rdkafka::producer::{BaseRecord, Producer};
use uuid::Uuid;

#[path = "kafka/server.rs"]
mod server;

const TIMEOUT: Duration = Duration::from_secs(30);
const SLUG: &str = "m";

fn kafka() -> KafkaConfig {
    KafkaConfig::new(std::env::var("BUNNY_KAFKA_BROKERS").expect("BUNNY_KAFKA_BROKERS"))
}

/// Names that no other run uses.
fn topics() -> Topics {
    Topics::new(format!("t{}", Uuid::new_v4().simple()))
}

fn producer(kafka: &KafkaConfig, id: &str) -> TransactionalProducer {
    let mut config = kafka.transactional_producer(id);
    // Some tests look at what is delivered before the commit has it sent.
    config.set("linger.ms", "2");
    let producer = TransactionalProducer::create(config).expect("create a producer");
    producer
        .init_transactions(TIMEOUT)
        .expect("initialise transactions");
    producer
}

fn send(producer: &TransactionalProducer, topic: &str, key: Option<&[u8]>, value: &[u8]) {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(0).payload(value);
    if let Some(key) = key {
        record = record.key(key);
    }
    producer
        .send(record)
        .map_err(|(error, _)| error)
        .expect("send");
}

/// Waits for the delivery reports; rdkafka's `flush` takes 100 ms whatever there is.
fn delivered(producer: &TransactionalProducer) {
    while producer.in_flight_count() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the end of the last transaction, which brokers write after they answered for it: until
/// then a partition ends, for `read_committed`, where that transaction begins.
async fn ends_at(kafka: &KafkaConfig, topic: &str, end: i64) {
    while kafka.watermarks(topic, 0).await.expect("watermarks").1 != end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn table(index: usize) -> TableSchema {
    TableSchema {
        mirror: "m".to_owned(),
        schema: "public".to_owned(),
        table: format!("table {index}"),
        columns: vec![ColumnSchema {
            name: "id".to_owned(),
            attnum: 1,
            type_oid: 20,
            type_name: "bigint".to_owned(),
            typmod: -1,
            not_null: true,
            key: true,
            facts: None,
        }],
    }
}

fn source(commit_lsn: u64, seq: u64) -> Source<'static> {
    Source {
        generation: Uuid::from_u128(7),
        mirror: "m",
        schema: "public",
        table: "table 0",
        xid: 1,
        lsn: Lsn(commit_lsn),
        commit_lsn: Lsn(commit_lsn),
        commit_ts_us: 0,
        seq,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn topics_are_created_and_checked() {
    let (kafka, topics) = (kafka(), topics());
    kafka
        .broker_reachable(Duration::from_secs(10))
        .await
        .unwrap();
    let changes = topics.changes(SLUG);
    assert_eq!(kafka.partitions(&changes).await.unwrap(), None);
    for _ in 0..2 {
        assert_eq!(
            kafka
                .ensure_topic(&changes, TopicKind::Changes)
                .await
                .unwrap(),
            1
        );
        let kind = TopicKind::Snapshot { partitions: 3 };
        assert_eq!(
            kafka
                .ensure_topic(&topics.snapshot(SLUG), kind)
                .await
                .unwrap(),
            3
        );
        let position = topics.position(SLUG);
        assert_eq!(
            kafka
                .ensure_topic(&position, TopicKind::Position)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            kafka
                .ensure_topic(&topics.schemas(), TopicKind::Schemas)
                .await
                .unwrap(),
            1
        );
    }
    let error = kafka
        .ensure_topic(&changes, TopicKind::Position)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TopicSetting { .. }), "{error}");
    assert!(!error.is_transient());
    let snapshot = topics.snapshot(SLUG);
    let error = kafka
        .ensure_topic(&snapshot, TopicKind::Changes)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("partitions=3"), "{error}");

    assert_eq!(kafka.watermarks(&changes, 0).await.unwrap(), (0, 0));
    let writer = producer(&kafka, "trim");
    writer.begin_transaction().unwrap();
    for _ in 0..3 {
        send(&writer, &changes, None, b"x");
    }
    commit_transaction(&*writer, TIMEOUT).unwrap();
    ends_at(&kafka, &changes, 4).await;
    assert_eq!(kafka.delete_records(&changes, 0, 2).await.unwrap(), 2);
    assert_eq!(kafka.watermarks(&changes, 0).await.unwrap(), (2, 4));

    kafka
        .delete_topics(&[&changes, &snapshot, "no.such.topic"])
        .await
        .unwrap();
    let away = KafkaConfig::new("127.0.0.1:1");
    let error = away
        .broker_reachable(Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// The broker takes its time with many topics that go, and answers all the while with what it knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn a_deleted_topic_is_gone_while_the_broker_is_busy_with_others() {
    let kafka = kafka();
    let prefix = topics().changes("gone");
    let many: Vec<String> = (0..100).map(|n| format!("{prefix}.{n}")).collect();
    for name in &many {
        kafka
            .ensure_topic(name, TopicKind::Snapshot { partitions: 4 })
            .await
            .unwrap();
    }
    let (last, others) = many.split_last().unwrap();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let (deleted_others, gone) = tokio::join!(kafka.delete_topics(&others), async {
        kafka.delete_topics(&[last]).await.unwrap();
        kafka.partitions(last).await.unwrap().is_none()
    });
    deleted_others.unwrap();
    assert!(gone, "{last} is still known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn a_commit_has_sent_what_would_linger() {
    let (kafka, topics) = (kafka(), topics());
    let changes = topics.changes(SLUG);
    kafka
        .ensure_topic(&changes, TopicKind::Changes)
        .await
        .unwrap();
    let mut config = kafka.transactional_producer("lingering");
    // Longer than the commit is given: without a flush it fails.
    config.set("linger.ms", "55000");
    let writer = TransactionalProducer::create(config).expect("create a producer");
    writer.init_transactions(TIMEOUT).expect("initialise");
    for _ in 0..2 {
        writer.begin_transaction().unwrap();
        send(&writer, &changes, None, b"x");
        commit_transaction(&*writer, Duration::from_secs(25)).unwrap();
    }
    // Two events and the ends of their transactions.
    ends_at(&kafka, &changes, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn largest_messages_pass() {
    let (kafka, topics) = (kafka(), topics());
    let changes = topics.changes(SLUG);
    kafka
        .ensure_topic(&changes, TopicKind::Changes)
        .await
        .unwrap();
    // Random bytes, which do not compress.
    let mut value = vec![0_u8; MESSAGE_BYTES_MAX - 4096];
    let mut seed = 1_u64;
    for byte in &mut value {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *byte = (seed >> 56) as u8;
    }
    let writer = producer(&kafka, "large");
    writer.begin_transaction().unwrap();
    send(&writer, &changes, None, &value);
    commit_transaction(&*writer, TIMEOUT).unwrap();

    use rdkafka::Message;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let consumer: BaseConsumer = kafka.read_committed_consumer("g").create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&changes, 0, rdkafka::Offset::Offset(0))
        .unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(TIMEOUT).unwrap().unwrap();
    assert!(message.payload() == Some(value.as_slice()));
    kafka.delete_topics(&[&changes]).await.unwrap();
}

/// Several registries, as in several processes, ask for overlapping schemas at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn concurrent_registries_agree() {
    const REGISTRIES: usize = 4;
    const TABLES: usize = 12;
    let (kafka, topics) = (kafka(), topics());
    let mut tasks = tokio::task::JoinSet::new();
    for start in 0..REGISTRIES {
        let (kafka, topics) = (kafka.clone(), topics.clone());
        tasks.spawn(async move {
            let registry = Registry::open(kafka, &topics).await.unwrap();
            let mut ids = Vec::new();
            for step in 0..TABLES {
                let index = (start * 3 + step) % TABLES;
                ids.push((index, registry.register_table(&table(index)).await.unwrap()));
            }
            ids
        });
    }
    let mut by_table: HashMap<usize, (u32, u32)> = HashMap::new();
    while let Some(ids) = tasks.join_next().await {
        for (index, ids) in ids.unwrap() {
            assert_eq!(*by_table.entry(index).or_insert(ids), ids, "table {index}");
        }
    }
    let distinct: HashSet<u32> = by_table
        .values()
        .flat_map(|(value, key)| [*value, *key])
        .collect();
    assert_eq!(distinct.len(), TABLES * 2);

    let fresh = Registry::open(kafka.clone(), &topics).await.unwrap();
    assert_eq!(fresh.subjects().await.len(), TABLES * 2);
    for (index, (value_id, _)) in by_table {
        let table = table(index);
        assert_eq!(
            &*fresh.schema(value_id).await.unwrap(),
            table.value_avro_json()
        );
        let versions = fresh.versions(&table.value_subject()).await;
        assert_eq!(versions.len(), 1);
        assert_eq!((versions[0].0, versions[0].1), (1, value_id));
    }
    // Ids are dense: nothing was lost to aborted attempts.
    let (first, last) = (
        distinct.iter().min().unwrap(),
        distinct.iter().max().unwrap(),
    );
    assert_eq!(last - first + 1, TABLES as u32 * 2);
    let unknown = last + 1;
    let error = fresh.schema(unknown).await.unwrap_err();
    assert!(
        matches!(error, Error::UnknownId(id) if id == unknown),
        "{error}"
    );
    let patience = Duration::from_secs(2);
    let lost = fresh.schema_of(unknown, "an event", patience).await;
    let error = lost.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    let says = format!("lacks schema id {unknown}, which an event carries");
    assert!(error.to_string().contains(&says), "{error}");
    kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
}

/// A writer that died in the middle of a transaction.
/// Success is not reported, failure is: it fails the commit, and does not stay in the producer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn what_was_not_delivered_is_not_committed() {
    let (kafka, topic) = (kafka(), topics().changes(SLUG));
    kafka
        .ensure_topic(&topic, TopicKind::Changes)
        .await
        .expect("create");
    let producer = producer(&kafka, &topic);
    producer.begin_transaction().expect("begin");
    send(&producer, &topic, None, b"goes");
    let nowhere: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic).partition(7).payload(b"stays");
    // It is told at once where the topic is known already, else it is reported.
    let is_told = producer.send(nowhere).is_err();
    delivered(&producer);
    let committed = commit_transaction(&*producer, TIMEOUT);
    assert_eq!(committed.is_ok(), is_told, "{committed:?}");
    if !is_told {
        producer.abort_transaction(TIMEOUT).expect("abort");
    }
    producer.begin_transaction().expect("begin again");
    send(&producer, &topic, None, b"goes too");
    commit_transaction(&*producer, TIMEOUT).expect("commit");
    kafka.delete_topics(&[&topic]).await.expect("delete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn an_unfinished_allocation_is_void() {
    let (kafka, topics) = (kafka(), topics());
    let registry = Registry::open(kafka.clone(), &topics).await.unwrap();
    let first = registry.register("a", "\"string\"").await.unwrap();
    let dead = producer(&kafka, &topics.schemas_transactional_id());
    dead.begin_transaction().unwrap();
    let value = br#"{"subject":"b","version":1,"schema":"\"int\""}"#;
    send(
        &dead,
        &topics.schemas(),
        Some((first + 1).to_string().as_bytes()),
        value,
    );
    delivered(&dead);

    // The registry's own producer is fenced by now and its next write starts over.
    let second = registry.register("b", "\"long\"").await.unwrap();
    assert_eq!(second, first + 1);
    assert!(dead.commit_transaction(TIMEOUT).is_err());
    let fresh = Registry::open(kafka.clone(), &topics).await.unwrap();
    assert_eq!(&*fresh.schema(second).await.unwrap(), "\"long\"");
    assert_eq!(fresh.register("b", "\"long\"").await.unwrap(), second);
    kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn ids_of_a_lost_topic_mean_nothing_in_the_next() {
    let (kafka, topics) = (kafka(), topics());
    let mut lost: HashSet<u32> = HashSet::new();
    for history in ["first", "second", "third"] {
        let registry = Registry::open(kafka.clone(), &topics).await.unwrap();
        for id in &lost {
            let error = registry.schema(*id).await.unwrap_err();
            assert!(matches!(error, Error::UnknownId(_)), "{history}: {error}");
        }
        for subject in ["a", "b", "c"] {
            let schema = format!(r#"{{"type":"string","doc":"{history}"}}"#);
            let id = registry.register(subject, &schema).await.unwrap();
            assert!(lost.insert(id), "{history}: {id} was given before");
        }
        kafka.delete_topics(&[&topics.schemas()]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker"]
async fn last_event_and_positions_are_found() {
    let (kafka, topics) = (kafka(), topics());
    let registry = Registry::open(kafka.clone(), &topics).await.unwrap();
    let (changes, positions) = (topics.changes(SLUG), topics.position(SLUG));
    kafka
        .ensure_topic(&changes, TopicKind::Changes)
        .await
        .unwrap();
    kafka
        .ensure_topic(&positions, TopicKind::Position)
        .await
        .unwrap();
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        None
    );
    assert_eq!(last_position(&kafka, &topics, SLUG).await.unwrap(), None);

    let id = topics.capture_transactional_id(SLUG);
    let writer = producer(&kafka, &id);
    // Aborted messages only: nothing is found, and the search ends.
    for _ in 0..100 {
        writer.begin_transaction().unwrap();
        send(&writer, &changes, None, b"void");
        delivered(&writer);
        writer.abort_transaction(TIMEOUT).unwrap();
    }
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        None
    );

    let started = GenerationStarted {
        generation: Uuid::from_u128(7),
        mirror: "m".to_owned(),
        system_id: "1".to_owned(),
        timeline: 1,
        start_lsn: Lsn(10),
    };
    let started_id = registry
        .register_control(SchemaKind::GenerationStarted)
        .await
        .unwrap();
    let position_id = registry
        .register_control(SchemaKind::Position)
        .await
        .unwrap();
    let mut record = PositionRecord {
        generation: Uuid::from_u128(7),
        system_id: "1".to_owned(),
        timeline: 1,
        commit_lsn: Lsn(10),
        seq: 0,
        confirm_lsn: Lsn(10),
    };
    writer.begin_transaction().unwrap();
    send(&writer, &changes, None, &started.encode(started_id));
    send(
        &writer,
        &positions,
        Some(PositionRecord::KEY),
        &record.encode(position_id),
    );
    commit_transaction(&*writer, TIMEOUT).unwrap();
    ends_at(&kafka, &changes, 202).await;
    let event = last_change(&kafka, &registry, &topics, SLUG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (event.generation, event.position),
        (started.generation, None)
    );

    let table = table(0);
    let (value_id, key_id) = registry.register_table(&table).await.unwrap();
    let encoder = Encoder::new(&table, value_id, key_id);
    let sync_id = registry.register_control(SchemaKind::Sync).await.unwrap();
    let sync = SyncRecord {
        request_id: Uuid::new_v4(),
        attempt: 1,
        schema: "public".to_owned(),
        table: "table 0".to_owned(),
        state: SyncState::Started,
        lsn: Lsn(15),
        start_offsets: vec![1],
        generation: Uuid::from_u128(1),
        changes_offset: 4,
        taken_at_us: 5,
        rows: 6,
        bytes: 7,
    };
    for seq in 0..300 {
        let row = [Value::Text(b"1")];
        let (mut key, mut value) = (Vec::new(), Vec::new());
        encoder.key(&mut key, &row).unwrap();
        encoder
            .change(&mut value, Op::Create, None, Some(&row), &source(20, seq))
            .unwrap();
        writer.begin_transaction().unwrap();
        send(&writer, &changes, Some(&key), &value);
        record.commit_lsn = Lsn(20);
        record.seq = seq;
        send(
            &writer,
            &positions,
            Some(PositionRecord::KEY),
            &record.encode(position_id),
        );
        send(
            &writer,
            &positions,
            Some(sync.key().as_bytes()),
            &sync.encode(sync_id),
        );
        commit_transaction(&*writer, TIMEOUT).unwrap();
    }
    ends_at(&kafka, &changes, 802).await;
    let event = last_change(&kafka, &registry, &topics, SLUG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        event.position,
        Some(Position {
            commit_lsn: Lsn(20),
            seq: 299
        })
    );

    // Position-only transactions leave no mark in the change topic; aborted ones
    // leave more than the first step back covers.
    for _ in 0..100 {
        writer.begin_transaction().unwrap();
        send(&writer, &changes, None, b"void");
        delivered(&writer);
        writer.abort_transaction(TIMEOUT).unwrap();
    }
    ends_at(&kafka, &changes, 1002).await;
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        Some(event)
    );

    // An open transaction is not seen, nor does it hide what came before.
    let gap = TableGap {
        reason: "too large",
        source: source(30, 0),
        last: false,
    };
    let gap_id = registry
        .register_control(SchemaKind::TableGap)
        .await
        .unwrap();
    let (_, end) = kafka.watermarks(&changes, 0).await.unwrap();
    writer.begin_transaction().unwrap();
    send(&writer, &changes, None, &gap.encode(gap_id));
    record.commit_lsn = Lsn(30);
    send(
        &writer,
        &positions,
        Some(PositionRecord::KEY),
        &record.encode(position_id),
    );
    delivered(&writer);
    assert_eq!(kafka.watermarks(&changes, 0).await.unwrap().1, end);
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        Some(event)
    );
    let read = last_position(&kafka, &topics, SLUG).await.unwrap().unwrap();
    assert_eq!(read.commit_lsn, Lsn(20));
    commit_transaction(&*writer, TIMEOUT).unwrap();
    ends_at(&kafka, &changes, 1004).await;
    ends_at(&kafka, &positions, 904).await;
    let event = last_change(&kafka, &registry, &topics, SLUG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        event.position,
        Some(Position {
            commit_lsn: Lsn(30),
            seq: 0
        })
    );
    let read = read_positions(&kafka, &topics, SLUG).await.unwrap();
    assert_eq!(read.position, Some(record));
    assert_eq!(read.syncs.values().collect::<Vec<_>>(), [&sync]);

    // The former writer's open transaction ends when the next one takes over.
    writer.begin_transaction().unwrap();
    send(&writer, &changes, None, b"void");
    delivered(&writer);
    let successor = producer(&kafka, &id);
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        Some(event)
    );
    drop(successor);
    // A trimmed topic whose last event is still there.
    kafka
        .delete_records(&changes, 0, event.offset)
        .await
        .unwrap();
    assert_eq!(
        last_change(&kafka, &registry, &topics, SLUG).await.unwrap(),
        Some(event)
    );
    let names = [changes.as_str(), &positions, &topics.schemas()];
    kafka.delete_topics(&names).await.unwrap();
    let error = last_change(&kafka, &registry, &topics, SLUG)
        .await
        .unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

/// A broker of this test's own, which it may kill.
struct OwnBroker {
    directory: PathBuf,
}

impl OwnBroker {
    fn start() -> OwnBroker {
        let name = format!("bunny-broker-{}", Uuid::new_v4().simple());
        let broker = OwnBroker {
            directory: std::env::temp_dir().join(name),
        };
        std::fs::create_dir_all(&broker.directory).expect("a directory");
        broker.services(&["start", "kafka"]);
        broker
    }

    /// `scripts/services`: action, and server if it is about one.
    fn services(&self, words: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services");
        let status = Command::new(script)
            .arg(words[0])
            .arg(&self.directory)
            .args(&words[1..])
            .status()
            .expect("run scripts/services");
        assert!(status.success(), "{words:?}");
    }

    fn address(&self) -> String {
        let env = std::fs::read_to_string(self.directory.join("env")).expect("env");
        let line = env
            .lines()
            .find_map(|line| line.strip_prefix("export BUNNY_KAFKA_BROKERS="))
            .expect("BUNNY_KAFKA_BROKERS");
        line.trim_matches(['\'', '"']).to_owned()
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        self.services(&["destroy"]);
    }
}

/// What is older than a moment may be deleted, so a broker that is only just back must not
/// make a young log look old.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a broker"]
async fn a_broker_that_returns_makes_nothing_look_old() {
    const ASKED_AFTER: usize = 200;
    let broker = OwnBroker::start();
    let kafka = KafkaConfig::new(broker.address());
    let topic = topics().changes(SLUG);
    kafka
        .ensure_topic(&topic, TopicKind::Changes)
        .await
        .expect("create");
    let producer = producer(&kafka, "returns");
    for _ in 0..50 {
        producer.begin_transaction().expect("begin");
        for _ in 0..100 {
            send(&producer, &topic, None, &[7; 1000]);
        }
        commit_transaction(&*producer, TIMEOUT).expect("commit");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let an_hour_ago = i64::try_from(now.as_millis()).expect("a time") - 3_600_000;
    assert_eq!(kafka.offset_at(&topic, 0, an_hour_ago).await.ok(), Some(0));
    // The hundred records of a transaction, its end, and the next one.
    for before in [1, 100, 101, 102] {
        let last = kafka.time_before(&topic, 0, before).await.expect("asked");
        assert!(last.is_some_and(|last| last > an_hour_ago), "{before}");
    }
    assert_eq!(kafka.time_before(&topic, 0, 0).await.ok(), Some(None));
    for _ in 0..4 {
        broker.services(&["kill", "kafka"]);
        let answered = Arc::new(AtomicUsize::new(0));
        let is_back = Arc::new(AtomicBool::new(false));
        let askers: Vec<_> = (0..4)
            .map(|_| {
                let (kafka, topic) = (kafka.clone(), topic.clone());
                let (answered, is_back) = (answered.clone(), is_back.clone());
                tokio::spawn(async move {
                    while !is_back.load(Ordering::Relaxed)
                        || answered.load(Ordering::Relaxed) < ASKED_AFTER
                    {
                        match kafka.offset_at(&topic, 0, an_hour_ago).await {
                            Ok(offset) => {
                                assert_eq!(offset, 0);
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => println!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let broker = &broker;
        tokio::task::block_in_place(|| broker.services(&["start", "kafka"]));
        is_back.store(true, Ordering::Relaxed);
        for asker in askers {
            asker.await.expect("every answer is true");
        }
    }
}
