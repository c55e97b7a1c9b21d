//! Options of a mirror that leave something out, and what creating one would cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use serde_json::json;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wanted_is_left_out() -> Result<()> {
    let scene = Scene::new("options").await?;
    let (api, stage) = (&scene.api, &scene.stage);
    let destination = stage.destination.connect().await?;
    for name in ["bare", "whole", "made"] {
        scene
            .source
            .run(&format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, v text);
                 CREATE TABLE {name}_child (id int PRIMARY KEY, parent int REFERENCES {name});
                 CREATE INDEX ON {name} (v);
                 INSERT INTO {name} SELECT g, 'v' FROM generate_series(1, 100) g;
                 INSERT INTO {name}_child SELECT g, g FROM generate_series(1, 50) g;"
            ))
            .await?;
    }
    let tables = |name: &str| [format!("public.{name}"), format!("public.{name}_child")];
    let create = async |name: &str, options| {
        let tables = tables(name);
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        stage.create_mirror(api, name, &tables, options).await
    };
    let bare = json!({"replicate_indexes": false, "replicate_foreign_keys": false});
    let bare = create("bare", bare).await?;
    bare.wait_running().await?;
    let whole = create("whole", json!({})).await?;
    whole.wait_running().await?;

    // Foreign keys come a moment after the tables are LIVE: those of the later mirror are there.
    let foreign_keys = |name: &str| {
        format!(
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confrelid = '{name}'::regclass"
        )
    };
    let indexes =
        |name: &str| format!("SELECT count(*) FROM pg_index WHERE indrelid = '{name}'::regclass");
    let deadline = Instant::now() + CONVERGE;
    while destination.number(&foreign_keys("whole")).await? == 0 {
        assert!(Instant::now() < deadline, "{}", stage.logs_tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(destination.number(&indexes("whole")).await?, 2);
    assert_eq!(destination.number(&foreign_keys("bare")).await?, 0);
    assert_eq!(
        destination.number(&indexes("bare")).await?,
        1,
        "its key only"
    );

    // Tables that are not to be created have to be there.
    let own = json!({"create_destination_tables": false});
    let refused = create("made", own.clone()).await.err().context("refused")?;
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("422") && refused.contains("create_destination_tables"),
        "{refused}"
    );
    destination
        .run("CREATE TABLE made (id int PRIMARY KEY, v text); CREATE TABLE made_child (id int PRIMARY KEY, parent int)")
        .await?;
    let made = create("made", own).await?;
    made.wait_running().await?;

    for (name, mirror) in [("bare", &bare), ("whole", &whole), ("made", &made)] {
        scene
            .source
            .run(&format!(
                "UPDATE {name} SET v = 'w' WHERE id < 20; DELETE FROM {name}_child WHERE id > 40"
            ))
            .await?;
        let pairs = tables(name).map(|table| TablePair::same(&table));
        stage.assert_converges(mirror, &pairs).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_room_is_needed() -> Result<()> {
    let scene = Scene::new("dry_run").await?;
    scene
        .source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, v text, b bytea, left_out text);
             INSERT INTO t SELECT g, repeat('v', 1 + g % 30), sha256(g::text::bytea), repeat('o', 100)
             FROM generate_series(1, 3000) g;
             CREATE INDEX ON t (v); ANALYZE t;
             CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
             CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (500);
             CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (500) TO (1000);
             INSERT INTO parts SELECT g, 'part' FROM generate_series(0, 999) g; ANALYZE parts;
             CREATE TABLE unknown (id int PRIMARY KEY) WITH (autovacuum_enabled = false);
             INSERT INTO unknown SELECT generate_series(1, 100)",
        )
        .await?;
    let dry_run = async |options: serde_json::Value| {
        let mut body = json!({"name": "dry", "source_peer": "source", "destination_peer": "destination", "dry_run": true,
            "snapshot_num_rows_per_partition": 1000,
            "table_mappings": [
                {"source_table": "public.t", "destination_table": "public.t", "exclude_columns": ["left_out"]},
                {"source_table": "public.parts", "destination_table": "public.parts"},
                {"source_table": "public.unknown", "destination_table": "public.unknown"}]});
        for (name, value) in options.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        scene.api.post("/v1/mirrors", body).await?.expect(200)
    };
    let answer = dry_run(json!({})).await?;
    let number = |sql: &'static str| scene.source.number(sql);
    let (t, parts) = (&answer["tables"][0], &answer["tables"][1]);
    assert_eq!(
        (&t["row_estimate"], &t["chunks"]),
        (&json!(3000), &json!(3))
    );
    assert_eq!(
        t["index_bytes"],
        number("SELECT pg_indexes_size('t')").await?
    );
    // As COPY writes them: not less, and of the same order.
    let copied =
        number("SELECT sum(octet_length(concat_ws(E'\\t', id, v, b)) + 2)::bigint FROM t").await?;
    let estimated = t["copy_bytes"].as_i64().context("copy_bytes")?;
    assert!(
        (copied..copied * 2).contains(&estimated),
        "{estimated}, copied {copied}"
    );
    let copied =
        number("SELECT sum(octet_length(concat_ws(E'\\t', id, v)) + 1)::bigint FROM parts").await?;
    let estimated = parts["copy_bytes"].as_i64().context("copy_bytes")?;
    assert!(
        (copied..copied * 3).contains(&estimated),
        "{estimated}, copied {copied}"
    );
    let unknown = number("SELECT 2 * pg_table_size('unknown')").await?;
    assert_eq!(answer["tables"][2]["copy_bytes"], unknown);

    let estimate = &answer["estimate"];
    let (copy, indexes) = (
        estimate["copy_bytes"].as_i64(),
        estimate["index_bytes"].as_i64(),
    );
    let (copy, indexes) = (copy.context("copy_bytes")?, indexes.context("index_bytes")?);
    let replicas = estimate["kafka_replication_factor"]
        .as_i64()
        .context("factor")?;
    assert_eq!(estimate["kafka_bytes"], copy * replicas);
    let sizes = number("SELECT pg_table_size('t') + pg_table_size('part_1') + pg_table_size('part_2') + pg_table_size('unknown')").await?;
    assert_eq!(estimate["bytes"], sizes);
    assert_eq!(estimate["destination_bytes"], sizes + indexes);

    let without = dry_run(json!({"replicate_indexes": false})).await?;
    let keys =
        number("SELECT pg_relation_size('t_pkey') + pg_relation_size('unknown_pkey')").await?;
    assert_eq!(without["estimate"]["index_bytes"], keys);
    let nothing = dry_run(json!({"do_initial_snapshot": false})).await?;
    assert_eq!(nothing["estimate"]["kafka_bytes"], 0);
    scene.api.get("/v1/mirrors/dry").await?.expect(404)?;
    Ok(())
}
