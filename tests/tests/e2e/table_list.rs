//! The list of tables changes at awkward moments: the tables that stay are not to notice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

use crate::lifecycle::wait_status;
use crate::scene::Scene;

const TABLES: &str = "/v1/mirrors/mirror/tables";

fn mappings(tables: &[&str]) -> Value {
    let mapping = |table: &&str| json!({"source_table": table, "destination_table": table});
    json!({ "table_mappings": tables.iter().map(mapping).collect::<Vec<Value>>() })
}

/// A table that is to come and one that is to go are locked, as CREATE INDEX CONCURRENTLY or
/// VACUUM lock them.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_keeps_no_other_waiting() -> Result<()> {
    let scene = Scene::new("locked").await?;
    scene
        .source
        .run("CREATE TABLE kept (id int PRIMARY KEY, v text); CREATE TABLE coming (id int PRIMARY KEY, v text);
              CREATE TABLE also_coming (id int PRIMARY KEY, v text); CREATE TABLE going (id int PRIMARY KEY, v text);
              INSERT INTO coming SELECT g, 'v' FROM generate_series(1, 100) g;
              INSERT INTO also_coming SELECT g, 'v' FROM generate_series(1, 100) g;")
        .await?;
    let mirror = scene
        .running_mirror(&["public.kept", "public.going"], json!({}))
        .await?;
    let holder = scene.stage.source.connect().await?;
    holder
        .run("BEGIN; LOCK TABLE coming, going IN SHARE UPDATE EXCLUSIVE MODE")
        .await?;
    let tables = ["public.kept", "public.coming", "public.also_coming"];
    scene
        .api
        .put(TABLES, mappings(&tables))
        .await?
        .expect(202)?;
    scene
        .source
        .run("INSERT INTO kept SELECT g, 'v' FROM generate_series(1, 100) g; INSERT INTO coming VALUES (101, 'w');")
        .await?;
    wait_status(&mirror, "public.also_coming", "LIVE").await?;
    let others = TablePair::all(&["public.kept", "public.also_coming"]);
    scene.stage.assert_converges(&mirror, &others).await?;
    mirror
        .wait_until("said to wait for a lock", CONVERGE, |mirror, _| {
            let said = mirror["messages"].to_string();
            said.contains("public.coming") && said.contains("lock")
        })
        .await?;

    holder.run("ROLLBACK").await?;
    wait_status(&mirror, "public.coming", "LIVE").await?;
    scene
        .source
        .run("UPDATE coming SET v = 'x' WHERE id < 10; DELETE FROM coming WHERE id > 95; DELETE FROM kept WHERE id > 95;")
        .await?;
    scene
        .assert_holds(&mirror, &TablePair::all(&tables))
        .await?;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'going'";
    let deadline = Instant::now() + CONVERGE;
    while scene.source.number(published).await? > 0 {
        ensure!(Instant::now() < deadline, "the table is still published");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Capture dies when a part of a transaction is in the log; all that is left of it is about a
/// table that has left the mirror before capture is back, and of which nothing was recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_rest_has_left_the_mirror_ends() -> Result<()> {
    let stage = Stage::new("rest_left").await?;
    let [mut capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE stays (id int PRIMARY KEY, v text); CREATE TABLE floods (id int PRIMARY KEY, v text);")
        .await?;
    let tables = ["public.stays", "public.floods"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables[..1], json!({}))
        .await?;
    mirror.wait_running().await?;
    capture.restart_to_crash("capture::table_moved", 1)?;
    api.put(TABLES, mappings(&tables)).await?.expect(202)?;
    capture
        .wait_crash_point("capture::table_moved", CONVERGE)
        .await?;
    source
        .run("BEGIN; INSERT INTO stays VALUES (1, 'v'); INSERT INTO floods SELECT g, 'v' FROM generate_series(1, 5000) g; COMMIT;")
        .await?;
    capture.restart_to_crash("capture::mid_transaction", 1)?;
    capture
        .wait_crash_point("capture::mid_transaction", CONVERGE)
        .await?;
    api.put(TABLES, mappings(&tables[..1])).await?.expect(202)?;
    capture.restart()?;
    // Nothing is to come after it.
    let destination = stage.destination.connect().await?;
    let deadline = Instant::now() + CONVERGE;
    while destination.number("SELECT count(*) FROM stays").await? == 0 {
        ensure!(
            Instant::now() < deadline,
            "half a transaction waits for its end{}",
            stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stage
        .assert_converges(&mirror, &TablePair::all(&tables[..1]))
        .await
}
