//! The snapshot topic deleted by somebody else: before a copy is loaded, and while one is made.

use std::time::Duration;

use anyhow::{Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::stage::Stage;
use rdkafka::admin::AdminOptions;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::failures::{LIMIT, admin, wait_table};

const TABLE: &str = "public.t";

async fn delete_copies(stage: &Stage) -> Result<()> {
    let topic = format!("{}.mirror.snapshot", stage.name);
    let deleted = admin(stage)?
        .delete_topics(&[&topic], &AdminOptions::new())
        .await?;
    ensure!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    Ok(())
}

/// What capture's report says of the copy that is wanted now.
async fn copy(stage: &Stage, of: &str) -> Result<String> {
    let of_report = format!(
        "SELECT coalesce(max(s ->> '{of}'), '') FROM bunny.reports, jsonb_array_elements(report -> 'syncs') AS s
         WHERE role = 'capture' AND s ->> 'request_id' = (SELECT request_id::text FROM bunny.mirror_tables)"
    );
    stage.catalog_text(&of_report).await
}

async fn fill(stage: &Stage, rows: u32) -> Result<()> {
    let fill = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 10);
         INSERT INTO t SELECT g, repeat(md5(g::text), 250) FROM generate_series(1, {rows}) g; ANALYZE t"
    );
    stage.source.connect().await?.run(&fill).await
}

/// Whoever waits for rows that will not come is told so, whether the topic is there again or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_gone_before_it_is_loaded_is_said() -> Result<()> {
    let stage = Stage::new("lost_copy").await?;
    stage.migrate()?;
    let mut capture = stage.start(Role::Capture)?;
    let mut apply = stage.start(Role::Apply)?;
    let _api = stage.start(Role::Api)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    fill(&stage, 600).await?;
    apply.kill9();
    let destination = stage.destination.connect().await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &[TABLE], json!({}))
        .await?;
    for is_made_anew in [false, true] {
        let deadline = Instant::now() + LIMIT;
        while copy(&stage, "finished").await? != "true" {
            ensure!(
                Instant::now() < deadline,
                "no copy is made\n{}",
                stage.logs_tail()
            );
            sleep(Duration::from_millis(50)).await;
        }
        delete_copies(&stage).await?;
        if is_made_anew {
            capture.restart()?;
        }
        apply.restart()?;
        let wanted = "SELECT request_id::text FROM bunny.mirror_tables";
        let failed = format!(
            "SELECT count(*) FROM _bunny.tables WHERE state = 'ERRORED' AND request_id = '{}'",
            stage.catalog_text(wanted).await?
        );
        // The bookkeeping may not be there before the first start.
        let deadline = Instant::now() + LIMIT;
        while destination.number(&failed).await.unwrap_or_default() == 0 {
            ensure!(Instant::now() < deadline, "not said\n{}", stage.logs_tail());
            sleep(Duration::from_millis(50)).await;
        }
        wait_table(&mirror, TABLE, "ERRORED", &["its copy", "resync the table"]).await?;
        apply.kill9();
        api.post("/v1/mirrors/mirror/resync/public.t", json!({}))
            .await?
            .expect(202)?;
    }
    apply.restart()?;
    mirror.wait_running().await?;
    wait_table(&mirror, TABLE, "LIVE", &[]).await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&[TABLE]))
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
    fill(&stage, 2000).await?;
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
    assert_ne!(copy(&stage, "attempt").await?, "1");
    stage
        .assert_converges(&mirror, &TablePair::all(&[TABLE]))
        .await
}
