//! Pause and resume, while the source is written to and processes die.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::load::{self, Load};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::crashes::{APPLY_PAUSE, CAPTURE_PAUSE};

struct Scene {
    capture: Bunny,
    apply: Bunny,
    api_process: Bunny,
    load: Load,
    mirror: Mirror,
    api: Api,
    stage: Stage,
}

async fn scene(test: &str, rows: u32) -> Result<Scene> {
    scene_with(test, rows, |_| Ok(())).await
}

/// `ready` has the apply process before there is a mirror.
async fn scene_with(
    test: &str,
    rows: u32,
    ready: impl FnOnce(&mut Bunny) -> Result<()>,
) -> Result<Scene> {
    let stage = Stage::new(test).await?;
    let [capture, mut apply, api_process] = stage.start_all()?;
    ready(&mut apply)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, rows).await?;
    let load = Load::start(&stage.source, 2, 40);
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &load::TABLES,
            json!({
                "max_batch_size": 100, "snapshot_num_rows_per_partition": 200,
                "snapshot_max_parallel_workers": 1, "snapshot_num_tables_in_parallel": 1,
            }),
        )
        .await?;
    Ok(Scene {
        capture,
        apply,
        api_process,
        load,
        mirror,
        api,
        stage,
    })
}

impl Scene {
    /// Asks for a control action; the command's id.
    async fn ask(&self, action: &str, body: Value) -> Result<String> {
        let answer = self
            .api
            .post(&format!("/v1/mirrors/mirror/{action}"), body)
            .await?
            .expect(202)?;
        let id = answer["command_id"].as_str().context("no command_id")?;
        Ok(id.to_owned())
    }

    async fn command(&self, id: &str) -> Result<Value> {
        self.api
            .get(&format!("/v1/mirrors/mirror/commands/{id}"))
            .await?
            .expect(200)
    }

    async fn wait_paused(&self) -> Result<()> {
        self.mirror
            .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
            .await
    }

    async fn wait_done(&self, id: &str) -> Result<Value> {
        let deadline = Instant::now() + CONVERGE;
        loop {
            let command = self.command(id).await;
            if let Ok(command) = &command
                && command["state"] == "done"
            {
                return Ok(command.clone());
            }
            ensure!(Instant::now() < deadline, "not done: {command:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the destination says of how far it is, and how much it holds.
    async fn standing(&self) -> Result<(String, i64)> {
        let destination = self.stage.destination.connect().await?;
        let progress = destination
            .text("SELECT coalesce((SELECT p::text FROM _bunny.progress p), 'none')")
            .await?;
        let rows = destination.number("SELECT count(*) FROM journal").await?;
        Ok((progress, rows))
    }

    async fn settle(self) -> Result<()> {
        self.load.stop().await;
        self.stage
            .assert_converges(&self.mirror, &load::pairs())
            .await?;
        self.stage
            .assert_topics_hold(&self.mirror, &load::pairs())
            .await?;
        Ok(())
    }
}

fn lsn(metrics: &Value, pointer: &str) -> Lsn {
    let text = metrics.pointer(pointer).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_mirror_captures_on_and_resumes_where_it_was() -> Result<()> {
    let mut scene = scene("pause", 2000).await?;
    scene.mirror.wait_running().await?;
    let refused = scene
        .api
        .post("/v1/mirrors/mirror/resume", json!({}))
        .await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(
        refused.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("RUNNING"))
    );

    let pause = scene.ask("pause", json!({})).await?;
    assert_eq!(pause, scene.ask("pause", json!({"scope": "apply"})).await?);
    scene.wait_paused().await?;
    let done = scene.command(&pause).await?;
    assert_eq!(
        (
            &done["state"],
            &done["steps"],
            &done["requested_by"],
            &done["kind"]
        ),
        (
            &json!("done"),
            &json!(["apply paused"]),
            &json!("admin"),
            &json!("pause")
        )
    );
    let before = scene.standing().await?;

    // The source writes some tens of MB of WAL; capture confirms it all.
    let source = scene.stage.source.connect().await?;
    for _ in 0..8 {
        source
            .run("INSERT INTO journal SELECT 77, g, repeat(md5(g::text), 8), now() FROM generate_series(1, 6000) g")
            .await?;
    }
    let written = source.current_lsn().await?;
    scene
        .mirror
        .wait_until("captured on", CONVERGE, |_, metrics| {
            lsn(metrics, "/source/confirmed_flush_lsn") >= written
                && metrics["source"]["retained_wal_bytes"]
                    .as_i64()
                    .is_some_and(|bytes| bytes < 8 << 20)
                && metrics["lag_seconds"]
                    .as_f64()
                    .is_some_and(|seconds| seconds > 0.0)
                && metrics["apply"]["lag_events"]
                    .as_i64()
                    .is_some_and(|events| events >= 48_000)
                && metrics["apply"]["lag_bytes"]
                    .as_i64()
                    .is_some_and(|bytes| bytes > 10 << 20)
                && metrics["capture"]["lag_seconds"]
                    .as_f64()
                    .is_some_and(|seconds| seconds < 5.0)
        })
        .await?;
    assert_eq!(
        scene.standing().await?,
        before,
        "something was applied while paused"
    );
    let mirror = scene.mirror.get().await?;
    assert_eq!(
        (&mirror["status"], &mirror["health"]),
        (&json!("PAUSED"), &json!("OK"))
    );
    assert!(
        mirror["tables"]
            .as_array()
            .is_some_and(|tables| tables.iter().all(|table| table["status"] == "LIVE"))
    );

    // Dead and back, the mirror is paused still.
    scene.apply.kill9();
    scene.api_process.kill9();
    scene.apply.restart()?;
    scene.api_process.restart()?;
    scene.api.wait_ready(CONVERGE).await?;
    scene.load.advance(20).await;
    scene.wait_paused().await?;
    assert_eq!(scene.standing().await?, before);

    // What only apply can do is taken, and waits.
    let resync = "/v1/mirrors/mirror/resync/public.accounts";
    let accepted = scene.api.post(resync, json!({})).await?.expect(202)?;
    let said = accepted["message"].as_str().unwrap_or_default();
    assert!(
        said.contains("will be emptied") && said.contains("is resumed"),
        "{said}"
    );
    let shown = scene.mirror.get().await?;
    let id = accepted["command_id"].as_str().unwrap_or("no id");
    assert!(shown["messages"].to_string().contains(id), "{shown}");

    let resume = scene.ask("resume", json!({})).await?;
    assert_eq!(resume, scene.ask("resume", json!({})).await?);
    let done = scene.wait_done(&resume).await?;
    assert_eq!(done["steps"], json!(["apply running"]));
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_death_of_everyone_who_acts_on_it() -> Result<()> {
    let mut scene = scene("pause_kills", 1000).await?;
    scene.mirror.wait_running().await?;
    for (index, ((apply_point, _), (capture_point, _))) in
        APPLY_PAUSE.into_iter().zip(CAPTURE_PAUSE).enumerate()
    {
        scene.apply.restart_to_crash(apply_point, 1)?;
        scene.capture.restart_to_crash(capture_point, 1)?;
        let pause = scene.ask("pause", json!({"scope": "all"})).await?;
        scene.api_process.kill9();
        scene.apply.wait_crash_point(apply_point, CONVERGE).await?;
        scene
            .capture
            .wait_crash_point(capture_point, CONVERGE)
            .await?;
        scene.api_process.restart()?;
        scene.api.wait_ready(CONVERGE).await?;
        if index == 0 {
            let mirror = scene.mirror.get().await?;
            assert_eq!(mirror["status"], "PAUSING", "{mirror}");
        }
        scene.apply.restart()?;
        scene.capture.restart()?;
        let done = scene.wait_done(&pause).await?;
        assert_eq!(done["steps"].as_array().map(Vec::len), Some(2), "{done}");

        // Both have stopped: nothing moves but the source.
        let before = scene.standing().await?;
        scene
            .mirror
            .wait_until("stopped", CONVERGE, |mirror, metrics| {
                mirror["status"] == "PAUSED" && metrics["source"]["slot_active"] == false
            })
            .await?;
        let published = lsn(&scene.mirror.metrics().await?, "/capture/published_lsn");
        scene.load.advance(40).await;
        let source_now = scene.stage.source.connect().await?.current_lsn().await?;
        scene
            .mirror
            .wait_until("lag shows", CONVERGE, |_, metrics| {
                lsn(metrics, "/source/current_lsn") >= source_now
                    && metrics["capture"]["lag_bytes"]
                        .as_i64()
                        .is_some_and(|bytes| bytes > 0)
                    && metrics["lag_seconds"]
                        .as_f64()
                        .is_some_and(|seconds| seconds > 0.0)
            })
            .await?;
        let metrics = scene.mirror.metrics().await?;
        assert_eq!(
            lsn(&metrics, "/capture/published_lsn"),
            published,
            "{metrics}"
        );
        assert_eq!(scene.standing().await?, before);

        // Less is stopped than before, then nothing.
        let narrower = scene.ask("pause", json!({"scope": "apply"})).await?;
        scene.wait_done(&narrower).await?;
        scene
            .mirror
            .wait_until("captures again", CONVERGE, |mirror, metrics| {
                mirror["status"] == "PAUSED" && lsn(metrics, "/capture/published_lsn") >= source_now
            })
            .await?;
        assert_eq!(scene.standing().await?, before);
        let resume = scene.ask("resume", json!({})).await?;
        scene.wait_done(&resume).await?;
        scene.mirror.wait_running().await?;
    }
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_during_the_first_copy_keeps_what_is_loaded() -> Result<()> {
    // Some forty chunks: no machine is fast enough to load them before the pause comes.
    let mut scene = scene_with("pause_snapshot", 4000, |apply| {
        apply.restart_slowed("apply::chunk_after_commit", Duration::from_millis(300))
    })
    .await?;
    scene
        .mirror
        .wait_until("some chunks are loaded", CONVERGE, |mirror, _| {
            chunks_done(mirror) > 2
        })
        .await?;
    let pause = scene.ask("pause", json!({})).await?;
    scene.wait_done(&pause).await?;
    let destination = scene.stage.destination.connect().await?;
    let chunks = "SELECT count(*) FROM _bunny.chunks";
    let loaded = destination.number(chunks).await?;
    let unfinished = "SELECT count(*) FROM _bunny.tables WHERE state IN ('PENDING', 'SYNCING')";
    assert!(
        destination.number(unfinished).await? > 0,
        "everything was loaded before the pause came"
    );
    // Capture copies on to the end of every table.
    scene
        .mirror
        .wait_until("all is copied into the log", CONVERGE, |mirror, _| {
            let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
            mirror["status"] == "PAUSED"
                && tables.iter().all(|table| {
                    let snapshot = &table["snapshot"];
                    snapshot["chunks_captured"]
                        .as_i64()
                        .is_some_and(|chunks| chunks > 0)
                })
        })
        .await?;
    assert_eq!(
        destination.number(chunks).await?,
        loaded,
        "chunks were loaded while paused"
    );
    scene.apply.restart()?;
    scene.ask("resume", json!({})).await?;
    scene.mirror.wait_running().await?;
    let attempts = destination
        .number("SELECT max(attempt) FROM _bunny.tables")
        .await?;
    assert_eq!(attempts, 1, "a pause made a copy start over");
    scene.settle().await
}

fn chunks_done(mirror: &Value) -> i64 {
    let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
    tables
        .iter()
        .filter_map(|table| table["snapshot"]["chunks_done"].as_i64())
        .sum()
}

/// Capture begins with what has gathered during a pause and is told to begin anew while it does, again and
/// again: nothing of it is passed over, and nothing is said to be there that is not.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn capture_is_stopped_as_it_begins() -> Result<()> {
    let mut scene = scene("pause_often", 2000).await?;
    scene.mirror.wait_running().await?;
    for round in 0..40 {
        let pause = scene.ask("pause", json!({"scope": "all"})).await?;
        scene.wait_done(&pause).await?;
        scene.load.advance(30).await;
        scene.ask("resume", json!({})).await?;
        tokio::time::sleep(Duration::from_millis(round * 17 % 400)).await;
        scene.ask("retry", json!({})).await?;
        scene
            .mirror
            .wait_until("RUNNING", CONVERGE, |mirror, _| {
                let tables = mirror["tables"].as_array();
                mirror["status"] == "RUNNING"
                    && tables
                        .into_iter()
                        .flatten()
                        .all(|table| table["status"] == "LIVE")
            })
            .await?;
        scene.load.stop().await;
        let same = scene
            .stage
            .assert_converges(&scene.mirror, &load::pairs())
            .await;
        same.with_context(|| format!("round {round}"))?;
        scene.load = Load::start(&scene.stage.source, 2, 40);
    }
    scene.settle().await
}
