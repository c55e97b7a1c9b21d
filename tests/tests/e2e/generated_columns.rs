//! Generated columns that are made anew, or made plain, at the source: the destination computes them
//! itself, so what is computed there has to follow.

use anyhow::Result;
use bunny_tests::content::TablePair;
use serde_json::json;

use crate::enum_labels::{stopped, synced_again};
use crate::lifecycle::{ended, wait_status};
use crate::scene::Scene;

const CREATE: &str = "
    CREATE TABLE made (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
    CREATE TABLE total (id int PRIMARY KEY, n int, total int);
    CREATE TABLE typed (id int PRIMARY KEY, n numeric, g numeric(8, 1) GENERATED ALWAYS AS (n / 3) STORED);
    CREATE TABLE freed (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
    INSERT INTO made (id, n) SELECT g, g FROM generate_series(1, 20) g;
    INSERT INTO total SELECT g, g, 0 FROM generate_series(1, 20) g;
    INSERT INTO typed (id, n) SELECT g, g FROM generate_series(1, 20) g;
    INSERT INTO freed (id, n) SELECT g, g FROM generate_series(1, 20) g;";

const TABLES: [&str; 4] = [
    "public.made",
    "public.total",
    "public.typed",
    "public.freed",
];

/// Under its name of before, from a plain column, of another type, and made plain: a sync that empties
/// the table follows all of it; one that keeps what readers see says that it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_follows_what_is_generated_now() -> Result<()> {
    let scene = Scene::new("generated").await?;
    scene.source.run(CREATE).await?;
    let mirror = scene
        .running_mirror(&TABLES, json!({"untracked_changes": "warn"}))
        .await?;
    let pairs = TablePair::all(&TABLES);
    scene.stage.assert_converges(&mirror, &pairs).await?;
    scene
        .source
        .run("ALTER TABLE made DROP g, ADD g int GENERATED ALWAYS AS (n * 3) STORED;
              ALTER TABLE total DROP total, ADD total int GENERATED ALWAYS AS (n + 100) STORED;
              ALTER TABLE typed ALTER g TYPE numeric(8, 4); UPDATE typed SET n = n; ALTER TABLE freed ALTER g DROP EXPRESSION;")
        .await?;
    // The table stays what it is until its rows are exchanged, and so does what it computes.
    let resync = "/v1/mirrors/mirror/resync/public.made";
    let swap = json!({"strategy": "swap"});
    let accepted = scene.api.post(resync, swap).await?.expect(202)?;
    let refused = ended(&scene.api, &mirror, &scene.stage, &accepted).await?;
    let why = refused["error"].as_str().unwrap_or_default();
    assert!(
        why.contains("is generated otherwise at the source now") && why.contains("truncate"),
        "{refused}"
    );
    for table in TABLES {
        synced_again(&scene, &mirror, table).await?;
    }
    scene.stage.assert_converges(&mirror, &pairs).await?;
    for table in ["made", "total", "typed"] {
        let change = format!("UPDATE {table} SET n = n + 7 WHERE id < 9");
        scene.source.run(&change).await?;
    }
    scene.source.run("UPDATE freed SET g = 42").await?;
    scene.stage.assert_converges(&mirror, &pairs).await
}

/// What the source computed until now comes as a value: the destination takes it, or says that it
/// cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_generated_no_more_takes_values() -> Result<()> {
    let scene = Scene::new("freed").await?;
    scene
        .source
        .run("CREATE TABLE followed (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED, later int);
              INSERT INTO followed (id, n) SELECT g, g FROM generate_series(1, 20) g;
              CREATE TABLE kept (LIKE followed INCLUDING ALL); INSERT INTO kept (id, n) SELECT id, n FROM followed;")
        .await?;
    let (api, stage) = (&scene.api, &scene.stage);
    let all = json!({"schema_changes": "all"});
    let all = stage
        .create_mirror(api, "all", &["public.followed"], all)
        .await?;
    let additive = stage
        .create_mirror(api, "additive", &["public.kept"], json!({}))
        .await?;
    all.wait_running().await?;
    additive.wait_running().await?;
    for table in ["followed", "kept"] {
        scene
            .source
            .run(&format!(
                "UPDATE {table} SET n = 5 WHERE id = 1; ALTER TABLE {table} ALTER g DROP EXPRESSION; UPDATE {table} SET g = 42 WHERE id < 4"
            ))
            .await?;
    }
    let followed = [TablePair::same("public.followed")];
    stage.assert_converges(&all, &followed).await?;

    stopped(
        &additive,
        "public.kept",
        "ALTER COLUMN \"g\" DROP EXPRESSION",
    )
    .await?;
    let destination = stage.destination.connect().await?;
    destination
        .run("ALTER TABLE kept ALTER g DROP EXPRESSION")
        .await?;
    let kept = json!({"table_name": "public.kept"});
    api.post("/v1/mirrors/additive/retry", kept)
        .await?
        .expect(202)?;
    wait_status(&additive, "public.kept", "LIVE").await?;
    let kept = [TablePair::same("public.kept")];
    stage.assert_converges(&additive, &kept).await
}
