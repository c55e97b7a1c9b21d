//! Sources whose history ends, goes on elsewhere or forks: a slot that has lost its WAL, a
//! standby promoted with everything, and one promoted without the last changes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::database::Session;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::CONVERGE;
use serde_json::json;

use crate::crashes::{Scene, scene_on};

/// A server comes back, is found, and is looked at.
const LIMIT: Duration = Duration::from_secs(120);

const WAL_STATUS: &str = "SELECT string_agg(wal_status, ',') FROM pg_replication_slots WHERE database = current_database() AND NOT temporary";

/// Writes WAL until the server has thrown away what the slot needs.
async fn outrun_the_slot(source: &Session) -> Result<()> {
    source
        .run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        .await?;
    source.run("SELECT pg_reload_conf()").await?;
    let deadline = Instant::now() + LIMIT;
    while source.text(WAL_STATUS).await? != "lost" {
        ensure!(Instant::now() < deadline, "the slot keeps its WAL");
        for statement in [
            "INSERT INTO journal SELECT 60, g, repeat('wal', 100), now() FROM generate_series(1, 5000) g",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ] {
            source.run(statement).await?;
        }
    }
    source
        .run("ALTER SYSTEM RESET max_slot_wal_keep_size")
        .await?;
    source.run("SELECT pg_reload_conf()").await
}

async fn timeline(source: &Session) -> Result<i64> {
    source.run("CHECKPOINT").await?;
    source
        .number("SELECT timeline_id FROM pg_control_checkpoint()")
        .await
}

impl Scene {
    async fn says(&self, status: &str, words: &[&str]) -> Result<()> {
        self.mirror
            .wait_until(&format!("{status} {words:?}"), LIMIT, |mirror, _| {
                let error = mirror["error_message"].as_str().unwrap_or_default();
                mirror["status"] == status && words.iter().all(|word| error.contains(word))
            })
            .await
    }

    async fn begins_anew(&self) -> Result<()> {
        let resync = self
            .api
            .post("/v1/mirrors/mirror/resync", json!({}))
            .await?
            .expect(202)?;
        let ended = self.ended(&resync).await?;
        ensure!(ended["state"] == "done", "{ended}");
        self.mirror.wait_running().await?;
        self.load.advance(20).await;
        let source = self.stage.source.connect().await?;
        self.mirror.wait_for_lsn(source.current_lsn().await?).await
    }
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_loses_its_wal_moves_or_forks() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let scene = scene_on(services.clone(), "history").await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;

    // WAL that a paused mirror needs is thrown away: that shows before anyone resumes it.
    let pause = json!({"scope": "all"});
    let path = "/v1/mirrors/mirror/pause";
    scene.api.post(path, pause).await?.expect(202)?;
    let is_paused = |mirror: &serde_json::Value| mirror["status"] == "PAUSED";
    scene
        .mirror
        .wait_until("PAUSED", CONVERGE, |mirror, metrics| {
            is_paused(mirror) && metrics["source"]["slot_active"] == false
        })
        .await?;
    outrun_the_slot(&source).await?;
    scene.says("PAUSED", &["lost WAL"]).await?;
    let path = "/v1/mirrors/mirror/resume";
    scene.api.post(path, json!({})).await?.expect(202)?;
    scene
        .says("FAILED", &["invalidated", "resync the mirror"])
        .await?;
    scene.begins_anew().await?;

    // The source moves to a standby that has everything, its slot too: nothing is lost.
    let before = timeline(&source).await?;
    drop(source);
    services.stop(Server::Source).await?;
    services.start_promoted(Server::Source).await?;
    let source = scene.stage.source.connect().await?;
    assert_eq!(timeline(&source).await?, before + 1);
    let generations = "SELECT string_agg(generation::text, ',') FROM bunny.mirrors";
    let generation = scene.stage.catalog_text(generations).await?;
    scene.load.advance(30).await;
    let now = source.current_lsn().await?;
    scene.mirror.wait_for_lsn_within(now, LIMIT).await?;
    assert_eq!(scene.stage.catalog_text(generations).await?, generation);

    // It moves to one that lacks what the log holds already: the two histories are not one.
    drop(source);
    services.stop(Server::Source).await?;
    services.keep_copy(Server::Source).await?;
    services.start_again(Server::Source).await?;
    let source = scene.stage.source.connect().await?;
    source
        .run("INSERT INTO journal SELECT 61, g, 'on the branch that ends', now() FROM generate_series(1, 500) g")
        .await?;
    scene.load.advance(30).await;
    let ahead = source.current_lsn().await?;
    scene.mirror.wait_for_lsn_within(ahead, LIMIT).await?;
    drop(source);
    services.stop(Server::Source).await?;
    services.put_copy_back(Server::Source).await?;
    services.start_promoted(Server::Source).await?;
    scene
        .says("FAILED", &["timeline", "resync the mirror"])
        .await?;
    scene.begins_anew().await?;
    let destination = scene.stage.destination.connect().await?;
    let of_the_branch = "SELECT count(*) FROM journal WHERE writer = 61";
    assert_eq!(destination.number(of_the_branch).await?, 0);
    scene.settle().await
}
