//! The initial load: chunks, keys to partition by, existing rows.

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::load::{self, Load};
use serde_json::json;

use crate::scene::Scene;

/// Partition keys of several types, skewed and with NULLs; empty and dead-row-ridden tables.
const CREATE: &str = "
CREATE TABLE by_int (id bigint PRIMARY KEY, v text);
CREATE TABLE by_text (k text COLLATE \"C\", v int); CREATE INDEX ON by_text (k);
CREATE TABLE skewed (id int PRIMARY KEY, tenant int, v text); CREATE INDEX ON skewed (tenant);
CREATE TABLE by_time (id int PRIMARY KEY, at timestamptz); CREATE INDEX ON by_time (at);
CREATE TABLE unindexed (id int PRIMARY KEY, k int);
CREATE TABLE empty (id int PRIMARY KEY, v text);
CREATE TABLE sparse (id int PRIMARY KEY, v text);
INSERT INTO by_int SELECT g * 1000003::bigint, md5(g::text) FROM generate_series(-2500, 2500) g;
INSERT INTO by_text SELECT CASE WHEN g % 10 = 0 THEN NULL ELSE md5(g::text) END, g FROM generate_series(1, 5000) g;
INSERT INTO skewed SELECT g, CASE WHEN g % 10 = 0 THEN g END, 'v' FROM generate_series(1, 2000) g;
UPDATE skewed SET tenant = 7 WHERE id > 500;
INSERT INTO by_time SELECT g, CASE g % 3 WHEN 0 THEN '-infinity' WHEN 1 THEN 'infinity' ELSE now() - g * interval '1 hour' END FROM generate_series(1, 3000) g;
INSERT INTO unindexed SELECT g, g % 5 FROM generate_series(1, 3000) g;
INSERT INTO sparse SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g;
DELETE FROM sparse WHERE id % 50 <> 0;
ANALYZE;";

#[tokio::test(flavor = "multi_thread")]
async fn chunks_cover_every_row_once() -> Result<()> {
    let scene = Scene::new("chunks").await?;
    scene.source.run(CREATE).await?;
    let keys = [
        ("public.by_int", Some("id")),
        ("public.by_text", Some("k")),
        ("public.skewed", Some("tenant")),
        ("public.by_time", Some("at")),
        ("public.unindexed", Some("k")),
        ("public.empty", None),
        ("public.sparse", None),
    ];
    let mappings: Vec<_> = keys
        .iter()
        .map(|(table, key)| json!({"source_table": table, "destination_table": table, "partition_key": key}))
        .collect();
    let mirror = scene
        .stage
        .create_mapped_mirror(
            &scene.api,
            "chunks",
            json!(mappings),
            json!({"snapshot_num_rows_per_partition": 400, "snapshot_max_parallel_workers": 3, "snapshot_num_tables_in_parallel": 2}),
        )
        .await?;
    mirror.wait_running().await?;
    let tables: Vec<TablePair> = keys
        .iter()
        .map(|(table, _)| TablePair::same(table))
        .collect();
    scene.assert_holds(&mirror, &tables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_in_the_middle_of_writes() -> Result<()> {
    let scene = Scene::new("midload").await?;
    load::create_tables(&scene.source, 20_000).await?;
    let load = Load::start(&scene.stage.source, 3, 60);
    load.advance(20).await;
    let mirror = scene
        .running_mirror(
            &load::TABLES,
            json!({"snapshot_num_rows_per_partition": 1500}),
        )
        .await?;
    load.advance(300).await;
    load.stop().await;
    scene.assert_holds(&mirror, &load::pairs()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_only_changes_arrive() -> Result<()> {
    let scene = Scene::new("nosnapshot").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g;")
        .await?;
    let mirror = scene
        .running_mirror(&["public.t"], json!({"do_initial_snapshot": false}))
        .await?;
    scene
        .source
        .run("INSERT INTO t VALUES (100, 'new'); DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (101, 'new'); UPDATE t SET v = 'newer' WHERE id = 101;")
        .await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    let destination = scene.stage.destination.connect().await?;
    let rows = destination
        .text("SELECT string_agg(id || v, ',' ORDER BY id) FROM t")
        .await?;
    assert_eq!(rows, "100new,101newer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_there_already() -> Result<()> {
    let scene = Scene::new("existing").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'source' FROM generate_series(1, 100) g;")
        .await?;
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'before' FROM generate_series(50, 150) g;")
        .await?;

    // Refused, with the way out, and nothing created.
    let body = json!({
        "name": "refused", "source_peer": "source", "destination_peer": "destination",
        "table_mappings": [{"source_table": "public.t", "destination_table": "public.t"}],
    });
    let refusal = scene.api.post("/v1/mirrors", body).await?;
    assert!(matches!(refusal.status, 409 | 422), "{refusal:?}");
    assert!(
        refusal.body.to_string().contains("on_existing_rows"),
        "{refusal:?}"
    );
    assert_eq!(
        scene
            .source
            .number("SELECT count(*) FROM pg_publication")
            .await?,
        0
    );

    let mirror = scene
        .running_mirror(&["public.t"], json!({"on_existing_rows": "truncate"}))
        .await?;
    scene
        .assert_holds(&mirror, &[TablePair::same("public.t")])
        .await
}
