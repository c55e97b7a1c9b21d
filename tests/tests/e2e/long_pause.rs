//! A destination that takes nothing for minutes costs the source nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::scene::Scene;

const PAUSE: Duration = Duration::from_secs(300);
const WAL_WRITTEN_MIN: u64 = 1 << 30;
const RETAINED_MAX: i64 = 64 << 20;

const RETAINED: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
     FROM pg_replication_slots WHERE NOT temporary AND database = current_database()";

/// What the slot keeps is asked of the source itself, each second, while a gigabyte of WAL is
/// written in five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_minutes_under_load_keeps_no_wal_at_the_source() -> Result<()> {
    // A server of its own: what a slot keeps counts everybody's WAL.
    let (services, _alone) = Services::outage().await?;
    let scene = Scene::on(Stage::on(services, "long_pause").await?).await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
              INSERT INTO t SELECT g, '' FROM generate_series(1, 4000) g")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    let asked = Instant::now();
    scene
        .api
        .post("/v1/mirrors/mirror/pause", json!({}))
        .await?
        .expect(202)?;
    mirror
        .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    println!("PAUSED {:?} after it was asked for", asked.elapsed());

    let begun = scene.source.current_lsn().await?;
    let started = Instant::now();
    let mut samples = Vec::new();
    let mut written = 0;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while started.elapsed() < PAUSE || written < WAL_WRITTEN_MIN {
        second.tick().await;
        let update = "UPDATE t SET v = repeat(md5(random()::text), 24)";
        scene.source.run(update).await?;
        samples.push(scene.source.number(RETAINED).await?);
        written = scene.source.current_lsn().await?.0 - begun.0;
    }
    let most = samples.iter().copied().max().unwrap_or_default();
    println!(
        "{} MiB of WAL in {:?}, {} samples: at most {} MiB retained",
        written >> 20,
        started.elapsed(),
        samples.len(),
        most >> 20
    );
    ensure!(most <= RETAINED_MAX, "{most} bytes retained: {samples:?}");
    ensure!(mirror.get().await?["status"] == "PAUSED");

    let resume = scene.api.post("/v1/mirrors/mirror/resume", json!({}));
    resume.await?.expect(202)?;
    let resumed = Instant::now();
    let lsn = scene.source.current_lsn().await?;
    mirror.wait_for_lsn_within(lsn, PAUSE).await?;
    println!("caught up {:?} after it was resumed", resumed.elapsed());
    scene
        .assert_holds(&mirror, &TablePair::all(&["public.t"]))
        .await
}
