//! The loader on real servers, fed with a snapshot topic as capture writes it:
//!
//! ```text
//! DESTINATION_URL=… BUNNY_KAFKA_BROKERS=… cargo test -p bunny-apply --test table_sync -- --ignored
//! ```
//!
//! Each test uses a mirror, a schema and topics of its own.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::time::Duration;

use bunny_apply::bookkeeping::{self, State, TableState};
use bunny_apply::context::MirrorRun;
use bunny_apply::table_sync::{LoadProgress, load};
use bunny_catalog::{Mirror, MirrorConfig, MirrorTable, OnExistingRows};
use bunny_postgres::{
    ColumnDefinition, Lsn, ReplicaIdentity, Session, TableDefinition, TableKind, TableName,
    quote_ident,
};
use bunny_schemas::control::{
    SchemaKind, SnapshotChunk, SyncRecord, SyncState, TableSyncFinished, TableSyncStarted,
};
use bunny_schemas::kafka::{KafkaConfig, TopicKind};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;
use rdkafka::producer::{FutureProducer, FutureRecord};

#[path = "support/mirrors.rs"]
mod mirrors;
mod support;
use support::destination;

const PARTITIONS: i32 = 4;
const CHUNK_ROWS: i64 = 1_000;
const CHUNK_PARTS: i32 = 3;

/// A mirror with its topics, and a capture that writes what a test says.
struct Stage {
    mirror: Mirror,
    kafka: KafkaConfig,
    topics: Topics,
    registry: Registry,
    producer: FutureProducer,
    ids: [u32; 3],
    session: Session,
}

impl Stage {
    /// `tables` are the source's names without schema.
    async fn new(name: &str, tables: &[&str], config: MirrorConfig) -> Stage {
        let kafka = mirrors::kafka();
        let mut mirror = mirrors::mirror(name, config);
        let slug = mirror.slug.clone();
        let topics = Topics::new("sync-test");
        let snapshot = TopicKind::Snapshot {
            partitions: PARTITIONS,
        };
        kafka
            .ensure_topic(&topics.snapshot(&slug), snapshot)
            .await
            .unwrap();
        let registry = Registry::open(kafka.clone(), &topics).await.unwrap();
        let mut ids = [0; 3];
        let kinds = [
            SchemaKind::TableSyncStarted,
            SchemaKind::SnapshotChunk,
            SchemaKind::TableSyncFinished,
        ];
        for (slot, kind) in ids.iter_mut().zip(kinds) {
            *slot = registry.register_control(kind).await.unwrap();
        }
        let position = topics.position(&slug);
        kafka
            .ensure_topic(&position, TopicKind::Position)
            .await
            .unwrap();
        let session = Session::connect(&destination(), "bunny test")
            .await
            .unwrap();
        let schema = format!("Dest {slug}");
        let mapping = |table: &&str| MirrorTable {
            exclude_columns: vec!["secret".to_owned()],
            ..mirrors::mapping(
                TableName::new("public", *table),
                TableName::new(schema.as_str(), format!("to \"{table}")),
            )
        };
        mirror.tables = tables.iter().map(mapping).collect();
        bookkeeping::install(&session).await.unwrap();
        let stage = Stage {
            producer: kafka.idempotent_producer().create().unwrap(),
            mirror,
            kafka,
            topics,
            registry,
            ids,
            session,
        };
        for table in 0..stage.mirror.tables.len() {
            stage.begins_at(table, vec![0; PARTITIONS as usize]).await;
        }
        stage
    }

    /// Takes the destination over, as each start of apply does.
    async fn run(&self) -> MirrorRun {
        let run = mirrors::take_over(&self.mirror, &self.kafka, &self.topics, &self.registry).await;
        let known = bookkeeping::tables(&*self.session, self.mirror.id)
            .await
            .unwrap();
        for table in &self.mirror.tables {
            if !known.iter().any(|state| state.source == table.source) {
                let state = TableState::wanted(
                    table.source.clone(),
                    table.destination.clone(),
                    table.request_id,
                );
                bookkeeping::put_table(&*self.session, self.mirror.id, &state)
                    .await
                    .unwrap();
            }
        }
        run
    }

    async fn produce(&self, partition: i32, payload: &[u8]) {
        let topic = self.topics.snapshot(&self.mirror.slug);
        let record = FutureRecord::<(), [u8]>::to(&topic)
            .partition(partition)
            .payload(payload);
        self.producer
            .send(record, Duration::from_secs(30))
            .await
            .unwrap();
    }

    /// Records, as capture does before it writes anything of a sync, where it begins.
    async fn begins_at(&self, table: usize, start_offsets: Vec<i64>) {
        let mapping = &self.mirror.tables[table];
        let id = self
            .registry
            .register_control(SchemaKind::Sync)
            .await
            .unwrap();
        let record = SyncRecord {
            request_id: mapping.request_id.unwrap(),
            attempt: 1,
            schema: mapping.source.schema.clone(),
            table: mapping.source.name.clone(),
            state: SyncState::Started,
            lsn: Lsn(100),
            start_offsets,
            generation: self.mirror.generation,
            changes_offset: 7,
            taken_at_us: 0,
            rows: 0,
            bytes: 0,
        };
        let (topic, value) = (self.topics.position(&self.mirror.slug), record.encode(id));
        let (key, partition) = (record.key(), 0);
        let record = FutureRecord::to(&topic)
            .partition(partition)
            .key(&key)
            .payload(&value);
        self.producer
            .send(record, Duration::from_secs(30))
            .await
            .unwrap();
    }

    async fn start(&self, table: usize, attempt: i32) {
        let mapping = &self.mirror.tables[table];
        let started = TableSyncStarted {
            request_id: mapping.request_id.unwrap(),
            attempt,
            schema: mapping.source.schema.clone(),
            table: mapping.source.name.clone(),
            generation: self.mirror.generation,
            lsn: Lsn(100),
            changes_offset: 7,
            columns: names(),
            definition: serde_json::to_string(&definition(&mapping.source)).unwrap(),
            start_offsets: vec![0; PARTITIONS as usize],
        };
        self.produce(0, &started.encode(self.ids[0])).await;
    }

    /// [`CHUNK_ROWS`] rows from `first` on, in [`CHUNK_PARTS`] parts of which the first
    /// `parts_sent` are sent.
    async fn chunk(&self, table: usize, attempt: i32, chunk: i32, first: i64, parts_sent: i32) {
        let columns = names();
        let partition = (chunk + table as i32) % PARTITIONS;
        for part in 0..parts_sent {
            let from = first + CHUNK_ROWS * i64::from(part) / i64::from(CHUNK_PARTS);
            let to = first + CHUNK_ROWS * i64::from(part + 1) / i64::from(CHUNK_PARTS);
            let mut data = String::new();
            for row in from..to {
                writeln!(data, "{row}\tvalue {row} of {attempt} \\\\ ü\t\\N").unwrap();
            }
            let last = part + 1 == CHUNK_PARTS;
            let record = SnapshotChunk {
                request_id: self.mirror.tables[table].request_id.unwrap(),
                attempt,
                chunk,
                part,
                last,
                rows: to - from,
                chunk_rows: if last { CHUNK_ROWS } else { 0 },
                columns: match part {
                    0 => columns.iter().map(String::as_str).collect(),
                    _ => Vec::new(),
                },
                data: data.as_bytes(),
            };
            self.produce(partition, &record.encode(self.ids[1])).await;
        }
    }

    async fn finish(&self, table: usize, attempt: i32, chunks: i32, rows: i64) {
        let mapping = &self.mirror.tables[table];
        let finished = TableSyncFinished {
            request_id: mapping.request_id.unwrap(),
            attempt,
            schema: mapping.source.schema.clone(),
            table: mapping.source.name.clone(),
            chunks,
            rows,
            live_offset: 20,
            live_commit_lsn: Lsn(200),
            live_seq: 3,
        };
        self.produce(0, &finished.encode(self.ids[2])).await;
    }

    /// A whole sync of `chunks` chunks with 1,000 rows each.
    async fn sync(&self, table: usize, attempt: i32, chunks: i32) {
        self.start(table, attempt).await;
        for chunk in 0..chunks {
            self.chunk(table, attempt, chunk, i64::from(chunk) * 1_000, 3)
                .await;
        }
        self.finish(table, attempt, chunks, i64::from(chunks) * 1_000)
            .await;
    }

    async fn state(&self, table: usize) -> TableState {
        let source = &self.mirror.tables[table].source;
        let state = bookkeeping::table(&*self.session, self.mirror.id, source)
            .await
            .unwrap();
        state.unwrap()
    }

    /// Rows, distinct ids, and rows of the given attempt.
    async fn counts(&self, table: usize, attempt: i32) -> (i64, i64, i64) {
        let name = self.mirror.tables[table].destination.quoted();
        let row = self
            .session
            .query_one(
                &format!(
                    "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE \"Va.l\" = format('value %s of %s \\ ü', id, $1::int)) FROM {name}"
                ),
                &[&attempt],
            )
            .await
            .unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    async fn assert_loaded(&self, table: usize, attempt: i32, rows: i64) {
        let state = self.state(table).await;
        assert_eq!(state.state, State::CatchingUp, "{:?}", state.error);
        assert_eq!(
            (state.attempt, state.rows_synced, state.rows_total),
            (attempt, rows, Some(rows))
        );
        assert_eq!(state.live.unwrap().commit_lsn, Lsn(200));
        assert_eq!(self.counts(table, attempt).await, (rows, rows, rows));
    }

    async fn clean_up(self) {
        let schema = quote_ident(&self.mirror.tables[0].destination.schema);
        self.session
            .batch(&format!(
                "SET client_min_messages = warning; DROP SCHEMA IF EXISTS {schema} CASCADE"
            ))
            .await
            .unwrap();
        bookkeeping::forget_mirror(&*self.session, self.mirror.id)
            .await
            .unwrap();
        let topic = self.topics.snapshot(&self.mirror.slug);
        self.kafka.delete_topics(&[&topic]).await.unwrap();
    }
}

fn names() -> Vec<String> {
    ["id", "Va.l", "empty"].map(str::to_owned).to_vec()
}

fn column(name: &str, type_name: &str) -> ColumnDefinition {
    ColumnDefinition {
        name: name.into(),
        attnum: 1,
        type_oid: 0,
        type_name: type_name.into(),
        typmod: -1,
        type_schema: "pg_catalog".into(),
        not_null: name == "id",
        default: None,
        identity: None,
        generated: None,
        collation: None,
    }
}

fn definition(name: &TableName) -> TableDefinition {
    let mut doubled = column("doubled", "bigint");
    doubled.generated = Some("(id * 2)".into());
    let mut collated = column("empty", "text");
    collated.collation = Some("pg_catalog.\"C\"".into());
    TableDefinition {
        oid: 1,
        name: name.clone(),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns: vec![
            column("id", "bigint"),
            column("secret", "text"),
            column("Va.l", "text"),
            collated,
            doubled,
        ],
        primary_key: vec!["id".into()],
        primary_key_name: Some("the key".into()),
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: vec!["id".into()],
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: None,
    }
}

async fn load_within(run: &MirrorRun, seconds: u64) -> bunny_apply::Result<()> {
    let progress = LoadProgress::default();
    tokio::time::timeout(Duration::from_secs(seconds), load(run, &progress))
        .await
        .expect("the load ends in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn tables_are_created_and_loaded() {
    let stage = Stage::new("plain", &["a", "b", "nothing"], MirrorConfig::default()).await;
    let run = stage.run().await;
    let writing = async {
        stage.sync(0, 1, 9).await;
        stage.sync(2, 1, 0).await;
        stage.sync(1, 1, 2).await;
    };
    let progress = LoadProgress::default();
    let (loaded, ()) = tokio::join!(load(&run, &progress), writing);
    loaded.unwrap();
    stage.assert_loaded(0, 1, 9_000).await;
    stage.assert_loaded(1, 1, 2_000).await;
    stage.assert_loaded(2, 1, 0).await;
    let shown: i64 = progress.tables().iter().map(|table| table.rows_done).sum();
    assert_eq!(shown, 11_000);
    assert!(
        progress
            .tables()
            .iter()
            .all(|table| table.outcome.is_some())
    );
    let name = stage.mirror.tables[0].destination.quoted();
    let doubled: i64 = stage
        .session
        .query_one(&format!("SELECT doubled FROM {name} WHERE id = 21"), &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(doubled, 42);
    // Nothing is left to do.
    load_within(&stage.run().await, 10).await.unwrap();
    stage.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn what_stands_before_a_sync_is_not_read() {
    let stage = Stage::new("before", &["a"], MirrorConfig::default()).await;
    for partition in 0..PARTITIONS {
        stage.produce(partition, b"nothing that can be read").await;
    }
    stage.begins_at(0, vec![1; PARTITIONS as usize]).await;
    stage.sync(0, 1, 5).await;
    load_within(&stage.run().await, 30).await.unwrap();
    assert_eq!(stage.state(0).await.state, State::CatchingUp);
    stage.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn a_load_cut_off_anywhere_goes_on() {
    let stage = Stage::new("cut", &["a", "b"], MirrorConfig::default()).await;
    // An attempt whose capture died in the middle, with chunks left open.
    stage.start(0, 1).await;
    stage.chunk(0, 1, 0, 0, 3).await;
    stage.chunk(0, 1, 1, 1_000, 2).await;
    stage.chunk(0, 1, 2, 2_000, 1).await;
    let run = stage.run().await;
    let cut =
        tokio::time::timeout(Duration::from_secs(3), load(&run, &LoadProgress::default())).await;
    assert!(cut.is_err(), "nothing is complete yet");
    assert_eq!(stage.state(0).await.state, State::Syncing);

    // The next life sees the former attempt's open chunks first, then the new attempt.
    let writing = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        stage.sync(1, 1, 30).await;
        stage.sync(0, 2, 40).await;
    };
    let cutting = async {
        let mut lives = 0;
        loop {
            lives += 1;
            let run = stage.run().await;
            let limit = Duration::from_millis(1_200 + 37 * lives);
            match tokio::time::timeout(limit, load(&run, &LoadProgress::default())).await {
                Ok(loaded) => break loaded.map(|()| lives),
                Err(_) if lives > 60 => panic!("the load does not come to an end"),
                Err(_) => {}
            }
        }
    };
    let (loaded, ()) = tokio::join!(cutting, writing);
    let lives = loaded.unwrap();
    assert!(lives > 1, "the load was never cut off");
    stage.assert_loaded(0, 2, 40_000).await;
    stage.assert_loaded(1, 1, 30_000).await;
    let left: i64 = stage
        .session
        .query_one(
            "SELECT count(*) FROM _bunny.chunks WHERE mirror_id = $1",
            &[&stage.mirror.id],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    stage.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn a_higher_attempt_takes_over_from_open_chunks() {
    let stage = Stage::new("higher", &["a"], MirrorConfig::default()).await;
    let run = stage.run().await;
    let writing = async {
        stage.start(0, 1).await;
        for chunk in 0..PARTITIONS {
            let first = i64::from(chunk) * 1_000;
            stage.chunk(0, 1, chunk, first, 2).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        stage.sync(0, 2, 8).await;
    };
    let progress = LoadProgress::default();
    let (loaded, ()) = tokio::join!(load(&run, &progress), writing);
    loaded.unwrap();
    stage.assert_loaded(0, 2, 8_000).await;
    stage.clean_up().await;
}

/// `upsert` keeps rows of others, never those of an attempt that is void: what the source
/// deleted in between would stay for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn a_table_that_was_empty_keeps_nothing_of_a_void_attempt() {
    let config = MirrorConfig {
        on_existing_rows: OnExistingRows::Upsert,
        ..MirrorConfig::default()
    };
    let stage = Stage::new("ghosts", &["a"], config).await;
    let run = stage.run().await;
    let writing = async {
        stage.start(0, 1).await;
        stage.chunk(0, 1, 0, 0, 3).await;
        let request_id = stage.mirror.tables[0].request_id.unwrap();
        let loaded = || bookkeeping::loaded_chunks(&*stage.session, stage.mirror.id, request_id, 1);
        while loaded().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stage.start(0, 2).await;
        stage.chunk(0, 2, 0, 5_000, 3).await;
        stage.finish(0, 2, 1, 1_000).await;
    };
    let progress = LoadProgress::default();
    let (loaded, ()) = tokio::join!(load(&run, &progress), writing);
    loaded.unwrap();
    stage.assert_loaded(0, 2, 1_000).await;
    stage.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn a_refused_table_does_not_stop_the_others() {
    let stage = Stage::new(
        "refused",
        &["good", "twice", "full", "typed"],
        MirrorConfig::default(),
    )
    .await;
    let quoted: Vec<String> = stage
        .mirror
        .tables
        .iter()
        .map(|table| table.destination.quoted())
        .collect();
    let schema = quote_ident(&stage.mirror.tables[0].destination.schema);
    stage
        .session
        .batch(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {} (id bigint, \"Va.l\" text, empty text); INSERT INTO {} VALUES (1);
             CREATE TABLE {} (id bigint, \"Va.l\" integer, empty text)",
            quoted[2], quoted[2], quoted[3]
        ))
        .await
        .unwrap();
    stage.start(1, 1).await;
    // The same rows in two chunks: the primary key refuses the second.
    stage.chunk(1, 1, 0, 0, 3).await;
    stage.chunk(1, 1, 1, 0, 3).await;
    stage.finish(1, 1, 2, 2_000).await;
    stage.sync(2, 1, 2).await;
    stage.sync(3, 1, 2).await;
    stage.sync(0, 1, 5).await;
    load_within(&stage.run().await, 30).await.unwrap();
    stage.assert_loaded(0, 1, 5_000).await;
    for (table, word) in [
        (1, "duplicate key"),
        (2, "on_existing_rows"),
        (3, "integer"),
    ] {
        let state = stage.state(table).await;
        assert_eq!(state.state, State::Errored);
        let reason = state.error.unwrap();
        assert!(reason.contains(word), "{reason}");
    }
    stage.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers"]
async fn rows_that_are_there_are_emptied_or_kept() {
    for (policy, rows, kept) in [
        (OnExistingRows::Truncate, 2_000, 0),
        (OnExistingRows::Upsert, 2_001, 1),
    ] {
        let config = MirrorConfig {
            on_existing_rows: policy,
            ..MirrorConfig::default()
        };
        let stage = Stage::new("existing", &["a"], config).await;
        let table = stage.mirror.tables[0].destination.quoted();
        let schema = quote_ident(&stage.mirror.tables[0].destination.schema);
        stage
            .session
            .batch(&format!(
                "CREATE SCHEMA {schema};
                 CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \"Va.l\" text, empty text,
                     own text NOT NULL DEFAULT 'own');
                 CREATE TABLE {schema}.child (id bigint REFERENCES {table});
                 INSERT INTO {table} OVERRIDING SYSTEM VALUE VALUES (5, 'old'), (5000000, 'other')"
            ))
            .await
            .unwrap();
        stage.sync(0, 1, 2).await;
        load_within(&stage.run().await, 30).await.unwrap();
        assert_eq!(stage.state(0).await.state, State::CatchingUp);
        assert_eq!(stage.counts(0, 1).await, (rows, rows, 2_000));
        let others: i64 = stage
            .session
            .query_one(
                &format!("SELECT count(*) FROM {table} WHERE \"Va.l\" = 'other'"),
                &[],
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!(others, kept);
        stage.clean_up().await;
    }
}
