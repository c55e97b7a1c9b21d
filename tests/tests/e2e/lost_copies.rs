//! The snapshot topic deleted by somebody else: before a copy is loaded, and while one is made.

use std::time::Duration;

use anyhow::{Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::Stage;
use rdkafka::admin::AdminOptions;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::failures::{LIMIT, admin, wait_table};
use crate::lifecycle::ended;

const TABLE: &str = "public.t";

/// Passed when there is no snapshot topic any more.
pub const CAPTURE_LOST: [(&str, u32); 1] = [("capture::copies_lost", 1)];

async fn delete_copies(stage: &Stage) -> Result<()> {
    let topic = format!("{}.mirror.snapshot", stage.name);
    let deleted = admin(stage)?
        .delete_topics(&[&topic], &AdminOptions::new())
        .await?;
    ensure!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    Ok(())
}

/// What capture's report says of the copy of a table that is wanted now.
async fn copy(stage: &Stage, table: &str, of: &str) -> Result<String> {
    let of_report = format!(
        "SELECT coalesce(max(s ->> '{of}'), '') FROM bunny.reports, jsonb_array_elements(report -> 'syncs') AS s
         WHERE role = 'capture' AND s ->> 'request_id' = ({})",
        wanted(table)
    );
    stage.catalog_text(&of_report).await
}

fn wanted(table: &str) -> String {
    format!("SELECT request_id::text FROM bunny.mirror_tables WHERE source_table = '{table}'")
}

async fn wait_copied(stage: &Stage, tables: &[&str]) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    for table in tables {
        while copy(stage, table, "finished").await? != "true" {
            ensure!(
                Instant::now() < deadline,
                "no copy of {table}\n{}",
                stage.logs_tail()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Waits until the destination has given up the copy that is wanted now.
async fn wait_given_up(stage: &Stage, destination: &Session, table: &str) -> Result<()> {
    let failed = format!(
        "SELECT count(*) FROM _bunny.tables WHERE state = 'ERRORED' AND request_id = '{}'",
        stage.catalog_text(&wanted(table)).await?
    );
    let deadline = Instant::now() + LIMIT;
    // The bookkeeping may not be there before the first start.
    while destination.number(&failed).await.unwrap_or_default() == 0 {
        ensure!(
            Instant::now() < deadline,
            "{table}: not said\n{}",
            stage.logs_tail()
        );
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn resync(api: &Api, table: &str) -> Result<()> {
    let path = format!("/v1/mirrors/mirror/resync/public.{table}");
    api.post(&path, json!({})).await?.expect(202)?;
    Ok(())
}

async fn fill(stage: &Stage, table: &str, rows: u32) -> Result<()> {
    let fill = format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, v text) WITH (fillfactor = 10);
         INSERT INTO {table} SELECT g, repeat(md5(g::text), 250) FROM generate_series(1, {rows}) g; ANALYZE {table}"
    );
    stage.source.connect().await?.run(&fill).await
}

/// Whoever waits for rows that will not come is told so: with the topic gone, and with another in its
/// place, which has grown since to where the copy began in the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_gone_before_it_is_loaded_is_said() -> Result<()> {
    let stage = Stage::new("lost_copy").await?;
    stage.migrate()?;
    let mut capture = stage.start(Role::Capture)?;
    let mut apply = stage.start(Role::Apply)?;
    let _api = stage.start(Role::Api)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    fill(&stage, "t", 600).await?;
    fill(&stage, "u", 300).await?;
    apply.kill9();
    let destination = stage.destination.connect().await?;
    let tables = ["public.t", "public.u"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    wait_copied(&stage, &["t", "u"]).await?;
    delete_copies(&stage).await?;
    apply.restart()?;
    for table in ["t", "u"] {
        wait_given_up(&stage, &destination, table).await?;
    }
    wait_table(
        &mirror,
        "public.t",
        "ERRORED",
        &["its copy", "Nothing was changed", "resync the table"],
    )
    .await?;
    apply.kill9();
    resync(&api, "t").await?;
    resync(&api, "u").await?;

    wait_copied(&stage, &["t", "u"]).await?;
    capture.kill9();
    delete_copies(&stage).await?;
    let (point, pass) = CAPTURE_LOST[0];
    capture.restart_to_crash(point, pass)?;
    capture.wait_crash_point(point, LIMIT).await?;
    capture.restart()?;
    let grows = json!({"tables": ["public.u"]});
    let grows = api.post("/v1/mirrors/mirror/checkpoint", grows).await?;
    let grows = ended(&api, &mirror, &stage, &grows.expect(202)?).await?;
    ensure!(grows["state"] == "done", "{grows}");
    apply.restart()?;
    for table in ["t", "u"] {
        wait_given_up(&stage, &destination, table).await?;
    }
    wait_table(
        &mirror,
        "public.t",
        "ERRORED",
        &["its copy", "resync the table"],
    )
    .await?;
    for table in ["t", "u"] {
        resync(&api, table).await?;
        let name = format!("public.{table}");
        wait_table(&mirror, &name, "LIVE", &[]).await?;
    }
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_topic_goes_meanwhile_is_made_once_more() -> Result<()> {
    let stage = Stage::new("lost_under_copy").await?;
    stage.migrate()?;
    let mut capture = stage.start(Role::Capture)?;
    capture.restart_slowed_at_first("capture::chunk_mid_copy", 3, Duration::from_secs(3))?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    fill(&stage, "t", 2000).await?;
    let options =
        json!({"snapshot_num_rows_per_partition": 200, "snapshot_max_parallel_workers": 2});
    let mirror = stage
        .create_mirror(&api, "mirror", &[TABLE], options)
        .await?;
    let source = stage.source.connect().await?;
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND starts_with(application_name, 'bunny capture ') AND state <> 'idle' AND starts_with(query, 'COPY')";
    let deadline = Instant::now() + LIMIT;
    while source.number(copying).await? == 0 {
        ensure!(
            Instant::now() < deadline,
            "nothing is copied\n{}",
            stage.logs_tail()
        );
        sleep(Duration::from_millis(20)).await;
    }
    delete_copies(&stage).await?;
    mirror.wait_running().await?;
    wait_table(&mirror, TABLE, "LIVE", &[]).await?;
    assert_ne!(copy(&stage, "t", "attempt").await?, "1");
    stage
        .assert_converges(&mirror, &TablePair::all(&[TABLE]))
        .await
}
