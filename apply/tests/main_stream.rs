//! Main on a real broker and a real destination, fed with a change topic as capture
//! writes it:
//!
//! ```text
//! DESTINATION_URL=… BUNNY_KAFKA_BROKERS=… cargo test -p bunny-apply --test main_stream -- --ignored
//! ```
//!
//! Each test uses a mirror, a schema and topics of its own.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bunny_apply::bookkeeping::{self, Progress, State, TableState};
use bunny_apply::context::MirrorRun;
use bunny_apply::crossing::crossing;
use bunny_apply::main_stream::{Ended, follow};
use bunny_apply::stats::Stats;
use bunny_apply::{Error, Result};
use bunny_catalog::{Mirror, MirrorConfig};
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use bunny_schemas::control::{GenerationStarted, SchemaKind, TableGap};
use bunny_schemas::envelope::{
    BeforeKind, ColumnSchema, Encoder, Op, Source, TableSchema, Value, set_last,
};
use bunny_schemas::kafka::{KafkaConfig, TopicKind};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use uuid::Uuid;

#[path = "support/mirrors.rs"]
mod mirrors;
mod support;
use support::destination;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(20);

/// A mirror of one key-less table `log (id int8, note text)`, where a row applied twice
/// shows, and a capture that writes what a test says.
struct Stage {
    mirror: Mirror,
    kafka: KafkaConfig,
    topics: Topics,
    registry: Registry,
    producer: FutureProducer,
    encoder: Encoder,
    session: Session,
    schema: String,
    generation: Uuid,
    commit_lsn: u64,
}

impl Stage {
    async fn new(config: MirrorConfig) -> Stage {
        let kafka = mirrors::kafka();
        let mut mirror = mirrors::mirror("main", config);
        let (id, slug, generation) = (mirror.id, mirror.slug.clone(), mirror.generation);
        let topics = Topics::new("main-test");
        kafka
            .ensure_topic(&topics.changes(&slug), TopicKind::Changes)
            .await
            .unwrap();
        let registry = Registry::open(kafka.clone(), &topics).await.unwrap();
        let column = |name: &str, attnum, type_oid, type_name: &str| ColumnSchema {
            name: name.to_owned(),
            attnum,
            type_oid,
            type_name: type_name.to_owned(),
            typmod: -1,
            not_null: false,
            key: false,
            facts: None,
        };
        let table = TableSchema {
            mirror: slug.clone(),
            schema: "public".to_owned(),
            table: "log".to_owned(),
            columns: vec![column("id", 1, 20, "bigint"), column("note", 2, 25, "text")],
        };
        let (value_id, key_id) = registry.register_table(&table).await.unwrap();
        let session = Session::connect(&destination(), "bunny test")
            .await
            .unwrap();
        let schema = format!("dest {slug}");
        session
            .batch_execute(&format!(
                "CREATE SCHEMA \"{schema}\"; CREATE TABLE \"{schema}\".log (id int8, note text)"
            ))
            .await
            .unwrap();
        let producer: FutureProducer = kafka
            .transactional_producer(&topics.capture_transactional_id(&slug))
            // rdkafka's own commit, which is used here, has nothing sent before its time.
            .set("linger.ms", "2")
            .create()
            .unwrap();
        producer.init_transactions(KAFKA_TIMEOUT).unwrap();
        mirror.tables = vec![mirrors::mapping(
            TableName::new("public", "log"),
            TableName::new(schema.as_str(), "log"),
        )];
        bookkeeping::install(&session).await.unwrap();
        let stage = Stage {
            mirror,
            kafka,
            topics,
            registry,
            producer,
            encoder: Encoder::new(&table, value_id, key_id),
            session,
            schema,
            generation,
            commit_lsn: 100,
        };
        stage.start_generation(generation).await;
        let mapping = &stage.mirror.tables[0];
        let table = TableState {
            state: State::CatchingUp,
            generation: Some(generation),
            lsn: Some(Lsn(102)),
            in_main: true,
            ..TableState::wanted(
                mapping.source.clone(),
                mapping.destination.clone(),
                mapping.request_id,
            )
        };
        bookkeeping::put_table(&*stage.session, id, &table)
            .await
            .unwrap();
        let progress = Progress {
            generation,
            position: Position::default(),
            next_offset: 0,
        };
        bookkeeping::set_progress(&*stage.session, id, &progress)
            .await
            .unwrap();
        stage
    }

    async fn run(&self) -> MirrorRun {
        mirrors::take_over(&self.mirror, &self.kafka, &self.topics, &self.registry).await
    }

    /// Takes over and follows for at most `limit`, or until the log is applied to its end.
    async fn follow(&self, limit: Duration) -> Option<Result<Ended>> {
        let run = self.run().await;
        let stats = Arc::new(Stats::default());
        let budget = run.memory.join();
        let (mut main_end, _crossing) = crossing(Progress {
            generation: self.mirror.generation,
            position: Position::default(),
            next_offset: 0,
        });
        let caught_up = async {
            let started = Instant::now();
            while started.elapsed() < limit && !stats.moment().is_caught_up() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // What catching up leads to is committed next.
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        tokio::select! {
            ended = follow(&run, &stats, budget, &mut main_end, None) => Some(ended),
            () = caught_up => None,
        }
    }

    fn begin(&self) {
        self.producer.begin_transaction().unwrap();
    }

    fn commit(&self) {
        self.producer.commit_transaction(KAFKA_TIMEOUT).unwrap();
    }

    async fn send(&self, payload: &[u8]) {
        let topic = self.topics.changes(&self.mirror.slug);
        let record = FutureRecord::<(), [u8]>::to(&topic)
            .partition(0)
            .payload(payload);
        self.producer.send(record, KAFKA_TIMEOUT).await.unwrap();
    }

    async fn start_generation(&self, generation: Uuid) {
        let id = self
            .registry
            .register_control(SchemaKind::GenerationStarted)
            .await
            .unwrap();
        let started = GenerationStarted {
            generation,
            mirror: self.mirror.name.clone(),
            system_id: "1".into(),
            timeline: 1,
            start_lsn: Lsn(100),
        };
        self.begin();
        self.send(&started.encode(id)).await;
        self.commit();
    }

    fn source(&self, seq: u64) -> Source<'_> {
        Source {
            generation: self.generation,
            mirror: &self.mirror.name,
            schema: "public",
            table: "log",
            xid: 1,
            lsn: Lsn(self.commit_lsn),
            commit_lsn: Lsn(self.commit_lsn),
            commit_ts_us: 1_000_000,
            seq,
        }
    }

    fn insert(&self, id: u64, seq: u64, last: bool) -> Vec<u8> {
        self.insert_of(&self.source(seq), id, last)
    }

    fn insert_of(&self, source: &Source<'_>, id: u64, last: bool) -> Vec<u8> {
        let text = id.to_string();
        let values = [
            Value::Text(text.as_bytes()),
            Value::Text(b"a note\twith a tab"),
        ];
        let mut event = Vec::new();
        self.encoder
            .change(
                &mut event,
                Op::Create,
                None::<(BeforeKind, &[Value])>,
                Some(&values),
                source,
            )
            .unwrap();
        if last {
            set_last(&mut event);
        }
        event
    }

    /// Inserts `ids` as rows seq.. of the transaction at hand.
    async fn inserts(&self, ids: std::ops::Range<u64>, seq: u64, ends: bool) {
        let end = ids.end;
        for (seq, id) in (seq..).zip(ids) {
            self.send(&self.insert(id, seq, ends && id + 1 == end))
                .await;
        }
    }

    async fn transaction(&mut self, ids: std::ops::Range<u64>) {
        self.commit_lsn += 1;
        self.begin();
        self.inserts(ids, 1, true).await;
        self.commit();
    }

    async fn ids(&self) -> Vec<i64> {
        let select = format!("SELECT id FROM \"{}\".log ORDER BY id", self.schema);
        let rows = self.session.query(&select, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn table(&self) -> TableState {
        bookkeeping::table(
            &*self.session,
            self.mirror.id,
            &self.mirror.tables[0].source,
        )
        .await
        .unwrap()
        .unwrap()
    }

    async fn progress(&self) -> Progress {
        bookkeeping::progress(&*self.session, self.mirror.id)
            .await
            .unwrap()
            .unwrap()
    }
}

fn small_batches() -> MirrorConfig {
    MirrorConfig {
        max_batch_size: 10,
        ..MirrorConfig::default()
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn follows_from_where_it_stood_without_loss_or_repetition() {
    let mut stage = Stage::new(small_batches()).await;
    // Commits before L = 102: in the table already.
    stage.transaction(900..903).await;
    stage.transaction(0..3).await;
    stage.transaction(3..40).await;
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert_eq!(stage.ids().await, (0..40).collect::<Vec<i64>>());
    let table = stage.table().await;
    assert_eq!((table.state, table.rows_inserted), (State::Live, 40));

    for ids in [40..41, 41..80, 80..83] {
        stage.transaction(ids).await;
    }
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert_eq!(stage.ids().await, (0..83).collect::<Vec<i64>>());
    let commit_lsn = Lsn(stage.commit_lsn);
    assert_eq!(
        stage.progress().await.position,
        Position { commit_lsn, seq: 3 }
    );
}

#[tokio::test]
#[ignore = "needs servers"]
async fn half_a_large_transaction_is_never_committed() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..5).await;
    stage.commit_lsn += 1;
    stage.begin();
    stage.inserts(5..50, 1, false).await;
    stage.commit();
    let ended = stage.follow(Duration::from_secs(30)).await;
    assert!(
        matches!(ended, Some(Err(Error::Unfinished { .. }))),
        "{ended:?}"
    );
    assert_eq!(stage.ids().await, (0..5).collect::<Vec<i64>>());

    stage.begin();
    stage.inserts(50..64, 46, true).await;
    stage.commit();
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert_eq!(stage.ids().await, (0..64).collect::<Vec<i64>>());
}

#[tokio::test]
#[ignore = "needs servers"]
async fn an_interval_gathers_and_then_flushes() {
    let config = MirrorConfig {
        apply_mode: bunny_catalog::ApplyMode::Interval,
        idle_timeout_seconds: 2,
        ..MirrorConfig::default()
    };
    let mut stage = Stage::new(config).await;
    stage.commit_lsn = 200;
    stage.transaction(0..1).await;
    stage.transaction(1..2).await;
    let started = Instant::now();
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(stage.ids().await, [0, 1]);
}

#[tokio::test]
#[ignore = "needs servers"]
async fn another_generation_takes_every_table_out_of_main() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..3).await;
    stage.commit_lsn += 1;
    // A transaction that its generation leaves unfinished is void.
    stage.begin();
    stage.inserts(3..30, 1, false).await;
    stage.commit();
    let next = Uuid::new_v4();
    stage.start_generation(next).await;
    assert!(matches!(
        stage.follow(KAFKA_TIMEOUT).await,
        Some(Ok(Ended::Generation))
    ));
    assert_eq!(stage.ids().await, [0, 1, 2]);
    let table = stage.table().await;
    assert_eq!((table.state, table.in_main), (State::Pending, false));
    let progress = stage.progress().await;
    assert_eq!(
        (progress.generation, progress.position),
        (next, Position::default())
    );

    // Events of the new one are passed over until a sync of it.
    (stage.generation, stage.commit_lsn) = (next, 1);
    stage.transaction(50..52).await;
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert_eq!(stage.ids().await, [0, 1, 2]);
    assert_eq!(
        stage.progress().await.position.seq,
        2,
        "the position moves on"
    );
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_gap_stops_its_table_at_the_batch_it_is_in() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..2).await;
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    let before = stage.progress().await;
    stage.commit_lsn += 1;
    let id = stage
        .registry
        .register_control(SchemaKind::TableGap)
        .await
        .unwrap();
    let gap = TableGap {
        reason: "a row of 70 MiB is too large for the log",
        source: stage.source(1),
        last: true,
    };
    let mut event = gap.encode(id);
    set_last(&mut event);
    stage.begin();
    stage.send(&event).await;
    stage.commit();
    let Some(Err(Error::Table {
        reason,
        restart_offset,
        ..
    })) = stage.follow(KAFKA_TIMEOUT).await
    else {
        panic!("the gap was passed over");
    };
    assert!(reason.contains("70 MiB"), "{reason}");
    assert!(restart_offset.unwrap() >= before.next_offset);
    assert_eq!(stage.progress().await, before);
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_log_that_is_not_the_one_it_knows_is_refused() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..2).await;
    stage.transaction(2..4).await;
    let whole = |progress: Progress| (stage.mirror.id, progress);
    let id = whole(stage.progress().await).0;
    let good = stage.progress().await;

    let beyond = Progress {
        next_offset: 1000,
        ..good
    };
    bookkeeping::set_progress(&*stage.session, id, &beyond)
        .await
        .unwrap();
    refused(&stage, "ends at offset").await;

    let other = Progress {
        generation: Uuid::new_v4(),
        next_offset: 2,
        ..good
    };
    bookkeeping::set_progress(&*stage.session, id, &other)
        .await
        .unwrap();
    refused(&stage, "of generation").await;

    let later = Progress {
        position: Position {
            commit_lsn: Lsn(9000),
            seq: 1,
        },
        next_offset: 2,
        ..good
    };
    bookkeeping::set_progress(&*stage.session, id, &later)
        .await
        .unwrap();
    refused(&stage, "does not follow").await;

    let topic = stage.topics.changes(&stage.mirror.slug);
    stage.kafka.delete_records(&topic, 0, 4).await.unwrap();
    bookkeeping::set_progress(&*stage.session, id, &good)
        .await
        .unwrap();
    refused(&stage, "begins at offset").await;
    assert!(stage.ids().await.is_empty());
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_log_that_ends_too_early_is_asked_about_again() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..2).await;
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    let before = stage.progress().await;
    stage.commit_lsn += 1;
    let beyond = Progress {
        position: Position {
            commit_lsn: Lsn(stage.commit_lsn),
            seq: 2,
        },
        // The end of the transaction before it has an offset of its own.
        next_offset: before.next_offset + 3,
        ..before
    };
    bookkeeping::set_progress(&*stage.session, stage.mirror.id, &beyond)
        .await
        .unwrap();
    // As a broker answers that does not know all of the log yet.
    let known_late = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        stage.begin();
        stage.inserts(2..4, 1, true).await;
        stage.commit();
    };
    let (ended, ()) = tokio::join!(stage.follow(KAFKA_TIMEOUT), known_late);
    assert!(ended.is_none(), "{ended:?}");
    stage.transaction(4..6).await;
    assert!(stage.follow(KAFKA_TIMEOUT).await.is_none());
    assert_eq!(stage.ids().await, [0, 1, 4, 5]);
}

/// As after the loss of the schemas topic, when its ids begin again.
#[tokio::test]
#[ignore = "needs servers"]
async fn an_event_with_the_schema_of_another_table_of_the_same_shape_is_refused() {
    let mut stage = Stage::new(small_batches()).await;
    stage.commit_lsn = 200;
    stage.transaction(0..2).await;
    stage.commit_lsn += 1;
    let source = Source {
        table: "other",
        ..stage.source(1)
    };
    let event = stage.insert_of(&source, 2, true);
    stage.begin();
    stage.send(&event).await;
    stage.commit();
    refused(&stage, "resync every mirror").await;
    assert!(!stage.ids().await.contains(&2));
}

async fn refused(stage: &Stage, because: &str) {
    let Some(Err(error)) = stage.follow(KAFKA_TIMEOUT).await else {
        panic!("not refused: {because}");
    };
    assert!(!error.is_transient(), "{error}");
    assert!(error.to_string().contains(because), "{error}");
}
