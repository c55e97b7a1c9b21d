//! `kill -9` and frozen processes at moments nobody chose.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{Mirror, Stage};
use rand::Rng;
use serde_json::json;

struct Scene {
    processes: [Bunny; 3],
    load: Load,
    mirror: Mirror,
    stage: Stage,
}

async fn scene(test: &str) -> Result<Scene> {
    let stage = Stage::new(test).await?;
    let processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 8000).await?;
    let load = Load::start(&stage.source, 2, 50);
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &load::TABLES,
            json!({"snapshot_num_rows_per_partition": 500, "max_batch_size": 100}),
        )
        .await?;
    Ok(Scene {
        processes,
        load,
        mirror,
        stage,
    })
}

impl Scene {
    async fn settle(self) -> Result<()> {
        self.load.stop().await;
        self.mirror.wait_running().await?;
        self.stage
            .assert_converges(&self.mirror, &load::pairs())
            .await?;
        self.stage
            .assert_topics_hold(&self.mirror, &load::pairs())
            .await?;
        Ok(())
    }

    /// Kills and restarts one process again and again, from the moment the mirror exists.
    async fn kill_at_random(&mut self, which: usize, kills: u32) -> Result<()> {
        for _ in 0..kills {
            let pause = rand::rng().random_range(30..1500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.processes[which].kill9();
            self.processes[which].restart()?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_is_killed_at_random() -> Result<()> {
    let mut scene = scene("kill_capture").await?;
    scene.kill_at_random(0, 12).await?;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_is_killed_at_random() -> Result<()> {
    let mut scene = scene("kill_apply").await?;
    scene.kill_at_random(1, 12).await?;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_killed_at_random_and_nobody_minds() -> Result<()> {
    let mut scene = scene("kill_api").await?;
    let workers = [scene.processes[0].pid(), scene.processes[1].pid()];
    scene.kill_at_random(2, 12).await?;
    let now = [scene.processes[0].pid(), scene.processes[1].pid()];
    assert_eq!(workers, now, "a worker ended with the API");
    assert!(scene.processes[0].is_running() && scene.processes[1].is_running());
    // Logins survive: the JWT secret is the catalog's.
    scene.settle().await
}

/// A frozen worker loses its lease; thawed, it must change nothing (invariant I7).
async fn frozen_while_another_takes_over(test: &str, which: usize, role: Role) -> Result<()> {
    let scene = scene(test).await?;
    scene.mirror.wait_running().await?;
    scene.processes[which].signal("STOP")?;
    // The lease runs out and the second worker carries on.
    let _second = scene.stage.start(role)?;
    scene.load.advance(100).await;
    let lsn = scene.stage.source.connect().await?.current_lsn().await?;
    scene.mirror.wait_for_lsn(lsn).await?;

    scene.processes[which].signal("CONT")?;
    scene.load.advance(200).await;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_capture_changes_nothing_when_thawed() -> Result<()> {
    frozen_while_another_takes_over("freeze_capture", 0, Role::Capture).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_apply_changes_nothing_when_thawed() -> Result<()> {
    frozen_while_another_takes_over("freeze_apply", 1, Role::Apply).await
}
