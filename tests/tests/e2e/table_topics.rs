//! Topics of single tables, with Debezium's records, while capture dies.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use bunny_tests::topic::tables;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::json;

use crate::deletion::wait_gone;

/// A table of many types, some of them at their ends; a column that must not leave the source.
pub const KINDS: &str = r#"
CREATE TABLE kinds (id int PRIMARY KEY, b boolean, s smallint, i int, l bigint, f real, d double precision,
    n numeric, t text, v varchar(20), y bytea, u uuid, j jsonb, da date, ti time, ts timestamp, tz timestamptz,
    iv interval, ar int[], "Odd Name" text, secret text)"#;
/// Rows of it that any consumer can be asked to take.
pub const KINDS_FOR_ALL: &str = r#"
INSERT INTO kinds VALUES (1, true, 32767, -2147483648, 9223372036854775807, 1.5, -0.1, 12345678901234567890.10,
    'a "quoted" \ text' || chr(10) || 'ü', 'v', '\x00ff', '01234567-89ab-cdef-0123-456789abcdef', '{"a": [1, null]}',
    '2026-02-28', '23:59:59.999999', '1999-12-31 23:59:59.000001', '2026-01-24 10:30:00.5+02', '1 mon 2 days', '{1,NULL,3}', 'odd', 'hidden');
INSERT INTO kinds (id, y, t) VALUES (3, '', ''), (4, NULL, NULL), (5, NULL, 'five');
UPDATE kinds SET t = 'changed', n = 'NaN', secret = 'hidden too' WHERE id = 5;
UPDATE kinds SET id = 30 WHERE id = 3;
DELETE FROM kinds WHERE id = 4;"#;
/// Rows before Christ, which Java's calendar knows otherwise.
const KINDS_OF_OLD: &str = r#"
INSERT INTO kinds (id, da, ts, tz, secret)
VALUES (2, '0044-03-15 BC', '0001-01-01 00:00:00', '0044-03-15 12:00:00+00 BC', 'hidden')"#;

struct Scene {
    // End before the stage takes its databases away.
    processes: [Bunny; 3],
    mirror: Mirror,
    source: Session,
    stage: Stage,
}

const TABLES: [&str; 5] = [
    "public.accounts",
    "public.documents",
    "public.measurements",
    "public.journal",
    "public.kinds",
];

impl Scene {
    async fn new(test: &str) -> Result<Scene> {
        let stage = Stage::new(test).await?;
        let processes = stage.start_all()?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        let source = stage.source.connect().await?;
        load::create_tables(&source, 0).await?;
        source.run(KINDS).await?;
        let mappings: Vec<_> = TABLES
            .iter()
            .map(|table| json!({"source_table": table, "destination_table": table}))
            .collect();
        let mut mappings = json!(mappings);
        mappings[4]["exclude_columns"] = json!(["secret"]);
        let options = json!({"table_topics": "debezium"});
        let mirror = stage
            .create_mapped_mirror(&api, "mirror", mappings, options)
            .await?;
        mirror.wait_running().await?;
        Ok(Scene {
            processes,
            mirror,
            source,
            stage,
        })
    }

    fn prefix(&self) -> String {
        format!("{}.mirror", self.stage.name)
    }

    fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.prefix())
    }

    /// All that the tables have come to is in the destination, in the change topic, and in the
    /// topics of the tables.
    async fn assert_holds(&self) -> Result<tables::Summary> {
        let pairs = pairs();
        self.stage.assert_converges(&self.mirror, &pairs).await?;
        self.stage.assert_topics_hold(&self.mirror, &pairs).await?;
        self.assert_table_topics_hold().await
    }

    async fn assert_table_topics_hold(&self) -> Result<tables::Summary> {
        let pairs = pairs();
        self.stage.assert_converges(&self.mirror, &pairs).await?;
        let scratch = self.stage.destination.connect().await?;
        let brokers = &self.stage.services.brokers;
        tables::assert_tables(brokers, &self.prefix(), &self.source, &scratch, &pairs).await
    }
}

fn pairs() -> Vec<TablePair> {
    let mut pairs = TablePair::all(&TABLES);
    pairs[4] = pairs[4].clone().without(&["secret"]);
    pairs
}

/// Capture dies before, between and after its Kafka transactions, and at random, while every kind
/// of change comes to tables with a key, without one, and with out-of-line values.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn table_topics_hold_each_change_once_whatever_dies() -> Result<()> {
    let mut scene = Scene::new("table_topics").await?;
    scene
        .source
        .run("INSERT INTO documents SELECT g, 'title', repeat(md5(g::text), 100) FROM generate_series(1, 220) g")
        .await?;
    scene.source.run(KINDS_FOR_ALL).await?;
    scene.source.run(KINDS_OF_OLD).await?;
    let load = Load::start(&scene.stage.source, 2, 50);
    for (point, pass) in [
        ("capture::before_kafka_commit", 2),
        ("capture::mid_transaction", 1),
        ("capture::after_kafka_commit", 2),
    ] {
        scene.processes[0].restart_to_crash(point, pass)?;
        scene
            .source
            .run("INSERT INTO journal SELECT 9, g, 'one of many', now() FROM generate_series(1, 3000) g")
            .await?;
        scene.processes[0].wait_crash_point(point, CONVERGE).await?;
    }
    for _ in 0..3 {
        scene.processes[0].restart()?;
        load.advance(40).await;
    }
    load.stop().await;
    let emptied = scene.assert_holds().await?;
    scene
        .source
        .run("TRUNCATE journal, measurements; INSERT INTO journal VALUES (1, 1, 'after', now())")
        .await?;
    scene.assert_holds().await?;
    scene
        .source
        .run("ALTER TABLE accounts ADD COLUMN note text; INSERT INTO accounts (id, owner, note) VALUES (0, 'new', 'column')")
        .await?;
    let all = scene.assert_table_topics_hold().await?;
    ensure!(
        emptied.moves > 0 && emptied.unavailable > 0 && emptied.deletes > emptied.moves,
        "the load made too little: {emptied:?}"
    );
    assert_eq!((emptied.truncates, all.truncates), (0, 2));
    let topic = scene.topic("public.kinds");
    tables::assert_without(&scene.stage.services.brokers, &topic, "hidden").await
}

async fn delete(api: &Api) -> Result<()> {
    api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    wait_gone(api).await
}

fn topics_of(brokers: &str, prefix: &str) -> Result<Vec<String>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(30))?;
    let names = metadata
        .topics()
        .iter()
        .map(|topic| topic.name().to_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    Ok(names)
}

/// Topics come with their tables, stay when those leave the mirror, and go with it. A mirror that
/// was not asked for them has none.
#[tokio::test(flavor = "multi_thread")]
async fn table_topics_come_with_tables_and_go_with_the_mirror() -> Result<()> {
    let scene = crate::scene::Scene::new("table_topics_life").await?;
    scene
        .source
        .run(r#"CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE "t.w o" (id int PRIMARY KEY)"#)
        .await?;
    let brokers = scene.stage.services.brokers.clone();
    let prefix = format!("{}.mirror.", scene.stage.name);
    let one = format!("{prefix}public.one");
    let two = format!("{prefix}public.t_x2Ew_x20o");
    let of_tables = || -> Result<Vec<String>> {
        let mut names = topics_of(&brokers, &prefix)?;
        names.retain(|name| name.starts_with(&format!("{prefix}public.")));
        Ok(names)
    };

    let mirror = scene
        .running_mirror(&["public.one"], json!({"table_topics": null}))
        .await?;
    assert_eq!(mirror.get().await?["config"]["table_topics"], "off");
    assert_eq!(of_tables()?, Vec::<String>::new());
    delete(&scene.api).await?;

    let mirror = scene
        .running_mirror(&["public.one"], json!({"table_topics": "debezium"}))
        .await?;
    assert_eq!(of_tables()?, std::slice::from_ref(&one));
    let mapping = |table: &str| json!({"source_table": table, "destination_table": table});
    let mapped = json!({"table_mappings": [mapping(r#"public."t.w o""#)]});
    let path = format!("/v1/mirrors/{}/tables", mirror.name);
    scene.api.put(&path, mapped).await?.expect(202)?;
    mirror
        .wait_until("its topic is there", CONVERGE, |mirror, _| {
            mirror["status"] == "RUNNING" && of_tables().is_ok_and(|names| names.contains(&two))
        })
        .await?;
    assert_eq!(of_tables()?, [one, two]);
    delete(&scene.api).await?;
    // Brokers forget a topic a moment after it is gone.
    let deadline = Instant::now() + CONVERGE;
    while !topics_of(&brokers, &prefix)?.is_empty() {
        ensure!(Instant::now() < deadline, "topics are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
