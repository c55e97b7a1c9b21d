//! Topics of single tables in Avro, read by Confluent's Python client, which knows nothing but
//! Kafka and the registry.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::clients::{self, output_of};
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

use crate::scene::Scene;

const READER: &str = include_str!("avro_topics.py");

const TABLES: &str = r#"
    CREATE TABLE "Odd items" (id int PRIMARY KEY, small smallint, "the note" text, amount numeric,
        seen timestamptz, raw bytea, d double precision, secret text);
    CREATE TABLE noise (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    INSERT INTO "Odd items" (id) VALUES (1);"#;
const FIRST: [&str; 2] = [
    r#"INSERT INTO "Odd items" VALUES (2, -3, 'it''s', 12.50, '2026-01-24 10:30:00+00', '\x00ff', 'NaN', 'hidden')"#,
    r#"UPDATE "Odd items" SET small = 4 WHERE id = 2"#,
];
/// While capture dies.
const MOVED: &str = r#"UPDATE "Odd items" SET id = 3 WHERE id = 2"#;
const LATER: [&str; 6] = [
    r#"ALTER TABLE "Odd items" ADD COLUMN extra date"#,
    r#"INSERT INTO "Odd items" (id, extra) VALUES (4, '1970-01-11')"#,
    r#"DELETE FROM "Odd items" WHERE id = 4"#,
    r#"ALTER TABLE "Odd items" DROP COLUMN extra"#,
    r#"INSERT INTO "Odd items" (id) VALUES (5)"#,
    r#"TRUNCATE "Odd items""#,
];

fn read(python: &Path, stage: &Stage, registry: &str, topic: &str) -> Result<Vec<Value>> {
    let printed = output_of(
        Command::new(python)
            .args(["-c", READER, &stage.services.brokers, registry, topic])
            .env("REGISTRY_PASSWORD", stage.password()),
    )?;
    let records = printed.lines().map(|line| Ok(serde_json::from_str(line)?));
    records.collect()
}

/// Of a record: key, op, before, after, headers.
fn shape(record: &Value) -> Value {
    let value = &record["value"];
    let parts = [&value["op"], &value["before"], &value["after"]];
    json!([
        record["key"],
        parts[0],
        parts[1],
        parts[2],
        record["headers"]
    ])
}

/// A row of the table's first columns.
fn row(id: i64, rest: &Value) -> Value {
    let mut row = json!({
        "id": id, "small": null, "the_x20note": null, "amount": null, "seen": null, "raw": null,
        "d": null,
    });
    for (name, value) in rest.as_object().into_iter().flatten() {
        row[name] = value.clone();
    }
    row
}

fn expected() -> Vec<Value> {
    let mut whole = json!({
        "small": -3, "the_x20note": "it's", "amount": "12.50", "seen": "2026-01-24T10:30:00Z",
        "raw": "AP8=", "d": "nan",
    });
    let inserted = row(2, &whole);
    whole["small"] = json!(4);
    let key = |id: i64| json!({ "id": id });
    let wide = |id: i64, extra: Value| row(id, &json!({ "extra": extra }));
    let (none, to, from) = (
        json!({}),
        json!({"__debezium.newkey": {"id": 3}}),
        json!({"__debezium.oldkey": {"id": 2}}),
    );
    vec![
        json!([key(2), "c", null, inserted, none]),
        json!([key(2), "u", null, row(2, &whole), none]),
        json!([key(2), "d", row(2, &none), null, to]),
        json!([key(2), null, null, null, to]),
        json!([key(3), "c", null, row(3, &whole), from]),
        json!([key(4), "c", null, wide(4, json!(10)), none]),
        json!([key(4), "d", wide(4, Value::Null), null, none]),
        json!([key(4), null, null, null, none]),
        json!([key(5), "c", null, row(5, &none), none]),
        json!([null, "t", null, null, none]),
    ]
}

/// Capture dies with a change of key in an open Kafka transaction.
async fn dies_within(scene: &mut Scene, change: &str) -> Result<()> {
    let point = "capture::before_kafka_commit";
    scene.bunny.restart_to_crash(point, 3)?;
    scene.source.run(change).await?;
    while scene.bunny.is_running() {
        scene.source.run("INSERT INTO noise DEFAULT VALUES").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.bunny.wait_crash_point(point, CONVERGE).await?;
    scene.bunny.restart()
}

#[tokio::test(flavor = "multi_thread")]
async fn confluents_deserializer_reads_table_topics_in_avro() -> Result<()> {
    let python = tokio::task::spawn_blocking(clients::install).await??;
    let mut scene = Scene::new("avro_topics").await?;
    scene.source.run(TABLES).await?;
    let mappings = json!([
        {
            "source_table": r#"public."Odd items""#, "destination_table": "public.odd",
            "exclude_columns": ["secret"],
        },
        {"source_table": "public.noise", "destination_table": "public.noise"},
    ]);
    let options = json!({"table_topics": "debezium_avro", "schema_changes": "all"});
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, "mirror", mappings, options)
        .await?;
    mirror.wait_running().await?;
    for change in FIRST {
        scene.source.run(change).await?;
    }
    dies_within(&mut scene, MOVED).await?;
    for change in LATER {
        scene.source.run(change).await?;
    }
    scene.api = scene.stage.api().await?;
    let mirror = scene.stage.mirror(&scene.api, "mirror");
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;

    let prefix = format!("{}.mirror", scene.stage.name);
    let topic = format!("{prefix}.public.Odd_x20items");
    let registry = format!("{}/registry", scene.api.base());
    let records = read(&python, &scene.stage, &registry, &topic)?;
    let shapes: Vec<Value> = records.iter().map(shape).collect();
    assert_eq!(shapes, expected());

    // Where a change stands, and from where it is.
    let source = &records[0]["value"]["source"];
    assert_eq!(source["name"], json!(prefix));
    assert_eq!(
        (&source["table"], &source["snapshot"]),
        (&json!("Odd items"), &json!("false"))
    );
    let sequence = |at: usize| records[at]["value"]["source"]["sequence"].clone();
    assert_eq!(sequence(2), sequence(4));
    assert_ne!(sequence(1), sequence(2));

    // An id for each schema: the one of before comes back with its columns.
    let ids = |name: &str, at: &[usize]| -> Vec<Value> {
        at.iter().map(|at| records[*at][name].clone()).collect()
    };
    let key_id = &records[0]["key_id"];
    assert!(
        records[..9]
            .iter()
            .all(|record| record["key_id"] == *key_id)
    );
    let [narrow, wide] = [0, 5].map(|at| records[at]["value_id"].clone());
    let of_changes = ids("value_id", &[0, 1, 2, 4, 5, 6, 8, 9]);
    let versions = [
        &narrow, &narrow, &narrow, &narrow, &wide, &wide, &narrow, &narrow,
    ];
    assert_eq!(of_changes, versions.map(Value::clone));
    ensure!(narrow != wide && *key_id != narrow && *key_id != wide);
    for (part, versions) in [("key", json!([1])), ("value", json!([1, 2]))] {
        let path = format!("/registry/subjects/{topic}-{part}/versions");
        assert_eq!(scene.api.get(&path).await?.expect(200)?, versions);
    }
    let path = format!("/registry/subjects/{topic}-value/versions/2");
    let version = scene.api.get(&path).await?.expect(200)?;
    assert_eq!(version["id"], wide);
    let schema = version["schema"].as_str().context("no schema")?;
    ensure!(
        schema.contains(r#""connect.name":"io.debezium.time.Date""#),
        "{schema}"
    );
    ensure!(!schema.contains("secret"), "{schema}");
    Ok(())
}
