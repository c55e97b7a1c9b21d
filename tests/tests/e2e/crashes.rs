//! Deaths at named points of capture and apply, while the source is written to.
//!
//! Each test asserts that the process died at that very point and in which phase of the
//! mirror, starts it again, and ends with both oracles: contents equal, and topics that are the source's history once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::load::{self, Load};
use bunny_tests::services::{Services, repository};
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

const CRASH_LIMIT: Duration = Duration::from_secs(60);

/// Reached on the way of every start of a mirror, in this order.
const CAPTURE_SETUP_AND_SNAPSHOT: [(&str, u32); 9] = [
    ("capture::publications_created", 1),
    ("capture::slot_created", 1),
    ("capture::generation_recorded", 1),
    ("capture::sync_slot_created", 1),
    // One table alone has chunks of several parts: while it is to be copied for certain.
    ("capture::chunk_mid_copy", 1),
    ("capture::sync_started", 1),
    ("capture::chunk_delivered", 5),
    ("capture::before_sync_finished", 1),
    // Others may be finished by now: the point before leaves one table for certain.
    ("capture::after_sync_finished", 1),
];
const CAPTURE_STREAMING: [(&str, u32); 14] = [
    ("capture::before_kafka_commit", 1),
    ("capture::after_kafka_commit", 1),
    ("capture::after_confirm", 1),
    ("capture::mid_transaction", 1),
    ("capture::after_kafka_commit", 4),
    ("capture::read_on", 1),
    ("capture::before_kafka_commit", 3),
    ("capture::mid_transaction", 2),
    ("capture::after_confirm", 5),
    ("capture::before_kafka_commit", 7),
    ("capture::mid_transaction", 3),
    ("capture::after_kafka_commit", 9),
    ("capture::after_confirm", 2),
    ("capture::read_on", 500),
];
/// Passed when a table at the source changes hands, see `source_changes`.
pub const CAPTURE_WATCH: [(&str, u32); 1] = [("capture::table_moved", 1)];
const APPLY_SNAPSHOT: [(&str, u32); 11] = [
    ("apply::after_take_over", 1),
    ("apply::sync_started", 2),
    ("apply::chunk_mid_copy", 1),
    ("apply::chunk_before_commit", 3),
    ("apply::chunk_after_commit", 2),
    ("apply::chunk_mid_copy", 4),
    ("apply::chunk_before_commit", 1),
    ("apply::chunks_loaded", 1),
    ("apply::object_built", 1),
    ("apply::table_loaded", 1),
    ("apply::tables_loaded", 1),
];
const APPLY_STREAMING: [(&str, u32); 14] = [
    ("apply::before_begin", 1),
    ("apply::after_begin", 1),
    ("apply::after_write", 1),
    ("apply::before_commit", 1),
    ("apply::after_commit", 1),
    ("apply::after_group_commit", 1),
    ("apply::mid_large_transaction", 1),
    ("apply::after_commit", 3),
    ("apply::before_commit", 4),
    ("apply::after_write", 5),
    ("apply::mid_large_transaction", 3),
    ("apply::after_take_over", 1),
    ("apply::after_begin", 6),
    ("apply::after_group_commit", 4),
];

/// Passed when main is behind; the passes after the first are of the other session.
const APPLY_AHEAD: [(&str, u32); 6] = [
    ("apply::prepared_ahead", 1),
    ("apply::before_merge", 1),
    ("apply::prepared_ahead", 4),
    ("apply::before_merge", 3),
    ("apply::prepared_ahead", 3),
    ("apply::before_merge", 4),
];

/// Reached by pausing; `pausing.rs` walks through them.
pub const APPLY_PAUSE: [(&str, u32); 2] =
    [("apply::pause_fenced", 1), ("apply::pause_recorded", 1)];
pub const CAPTURE_PAUSE: [(&str, u32); 2] = [
    ("capture::pause_stopped", 1),
    ("capture::pause_recorded", 1),
];

/// Reached by deleting; `deletion.rs` walks through them.
pub const APPLY_REMOVAL: [(&str, u32); 1] = [("apply::removal_clean", 1)];
pub const CAPTURE_REMOVAL: [(&str, u32); 2] = [
    ("capture::removal_source_clean", 1),
    ("capture::removal_topics_clean", 1),
];

/// Reached beside main, when tables with foreign keys are live; see `objects.rs`.
pub const APPLY_OBJECTS: [(&str, u32); 1] = [("apply::foreign_key_step", 1)];

/// Reached with a schema registry outside; `schema_registry.rs` walks through them.
pub const SCHEMA_REGISTRY: [(&str, u32); 3] = [
    ("schemas::schema_registered", 1),
    ("schemas::schema_registered", 2),
    ("schemas::schema_registered", 3),
];

/// While tables that were set aside are brought back; see `lifecycle`.
pub const APPLY_CATCH_UP: [(&str, u32); 5] = [
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_after_commit", 1),
    ("apply::catch_up_held", 1),
    ("apply::catch_up_before_join", 1),
    ("apply::catch_up_joined", 1),
];

pub struct Scene {
    pub capture: Bunny,
    pub apply: Bunny,
    pub api_process: Bunny,
    pub load: Load,
    pub mirror: Mirror,
    pub stage: Stage,
    pub api: Api,
}

/// Small chunks and batches, so that every point is passed often.
fn options() -> Value {
    json!({
        "snapshot_num_rows_per_partition": 700, "snapshot_max_parallel_workers": 2,
        "snapshot_num_tables_in_parallel": 2, "max_batch_size": 100,
    })
}

/// `before_mirror` is called when the processes run and nothing is created yet.
pub async fn scene(
    test: &str,
    before_mirror: impl FnOnce(&mut Bunny, &mut Bunny) -> Result<()>,
) -> Result<Scene> {
    scene_of(test, &load::TABLES, before_mirror).await
}

/// The same with a mirror of these tables only.
pub async fn scene_of(
    test: &str,
    tables: &[&str],
    before_mirror: impl FnOnce(&mut Bunny, &mut Bunny) -> Result<()>,
) -> Result<Scene> {
    let stage = Stage::new(test).await?;
    scene_with(stage, tables, before_mirror).await
}

/// The same on given servers.
pub async fn scene_on(services: Arc<Services>, test: &str) -> Result<Scene> {
    let stage = Stage::on(services, test).await?;
    scene_with(stage, &load::TABLES, |_, _| Ok(())).await
}

async fn scene_with(
    stage: Stage,
    tables: &[&str],
    before_mirror: impl FnOnce(&mut Bunny, &mut Bunny) -> Result<()>,
) -> Result<Scene> {
    let [mut capture, mut apply, api_process] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 6000).await?;
    let load = Load::start(&stage.source, 2, 40);
    before_mirror(&mut capture, &mut apply)?;
    let mirror = stage
        .create_mirror(&api, "mirror", tables, options())
        .await?;
    Ok(Scene {
        capture,
        apply,
        api_process,
        load,
        mirror,
        stage,
        api,
    })
}

/// A transaction of many rows every moment, for the points within one.
async fn large_transactions(stage: &Stage) -> Result<tokio::task::JoinHandle<()>> {
    let source = stage.source.connect().await?;
    source.run("CREATE SEQUENCE IF NOT EXISTS large_n").await?;
    Ok(tokio::spawn(async move {
        let sql = "INSERT INTO journal SELECT 99, nextval('large_n'), repeat('large ', 30), now() FROM generate_series(1, 4000)";
        while source.run(sql).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }))
}

impl Scene {
    /// Ends the load, lets everything settle, asks both oracles.
    pub async fn settle(self) -> Result<()> {
        let committed = self.load.stop().await;
        self.stage
            .assert_converges(&self.mirror, &load::pairs())
            .await?;
        let summary = self
            .stage
            .assert_topics_hold(&self.mirror, &load::pairs())
            .await
            .with_context(|| self.stage.logs_tail())?;
        println!("{committed} transactions of load; topics: {summary:?}");
        // The load was what it is meant to be: every kind of change went through.
        let kinds = [
            summary.inserts,
            summary.updates,
            summary.deletes,
            summary.with_before,
            summary.with_unchanged,
        ];
        assert!(
            committed > 50 && kinds.iter().all(|&count| count > 0),
            "{summary:?}"
        );
        Ok(())
    }
}

/// Where in its life the mirror is to be at every death.
pub const IN_SETUP: [&str; 1] = ["SETUP"];
pub const IN_SNAPSHOT: [&str; 1] = ["SNAPSHOT"];
pub const BEFORE_CDC: [&str; 2] = ["SETUP", "SNAPSHOT"];
pub const IN_CDC: [&str; 1] = ["CDC"];

/// Lets the process die at each point in turn, started again for the next one. Each time
/// it is checked that it died there and in which phase. It is dead at the end.
pub async fn crash_in_turn(
    process: &mut Bunny,
    mirror: &Mirror,
    points: &[(&str, u32)],
    armed_first: bool,
    phases: &[&str],
) -> Result<()> {
    for (index, &(point, pass)) in points.iter().enumerate() {
        if index > 0 || !armed_first {
            process.restart_to_crash(point, pass)?;
        }
        let crash = format!(
            "crash {} of {}: {point}, pass {pass}",
            index + 1,
            points.len()
        );
        process
            .wait_crash_point(point, CRASH_LIMIT)
            .await
            .with_context(|| crash.clone())?;
        let phase = mirror.get().await?["current_phase"].clone();
        assert!(
            phases.iter().any(|&expected| phase == expected),
            "{crash}: in phase {phase}, not in {phases:?}"
        );
    }
    Ok(())
}

/// Where a mirror that has never followed changes may be at `point`: what the API shows is what
/// the dead process has told the catalog, which lags about half a second behind it.
fn phases_of(point: &str) -> &'static [&'static str] {
    match point {
        "capture::publications_created"
        | "capture::slot_created"
        | "capture::generation_recorded" => &IN_SETUP,
        // Nobody has told of a copy yet, unless one died before.
        "capture::sync_slot_created"
        | "capture::chunk_mid_copy"
        | "capture::sync_started"
        | "apply::after_take_over"
        | "apply::sync_started" => &BEFORE_CDC,
        _ => &IN_SNAPSHOT,
    }
}

/// The same on the way to CDC, each death in the phase that its point is of.
async fn crash_before_cdc(
    process: &mut Bunny,
    mirror: &Mirror,
    points: &[(&str, u32)],
) -> Result<()> {
    for (index, point) in points.iter().enumerate() {
        let in_turn = std::slice::from_ref(point);
        crash_in_turn(process, mirror, in_turn, index == 0, phases_of(point.0)).await?;
    }
    Ok(())
}

/// A crash point that is added has to be added here, too.
#[test]
fn every_crash_point_is_in_a_suite() -> Result<()> {
    let suites = [
        &CAPTURE_SETUP_AND_SNAPSHOT[..],
        &CAPTURE_STREAMING,
        &CAPTURE_WATCH,
        &APPLY_SNAPSHOT,
        &APPLY_STREAMING,
        &APPLY_AHEAD,
        &APPLY_PAUSE,
        &CAPTURE_PAUSE,
        &APPLY_REMOVAL,
        &APPLY_OBJECTS,
        &CAPTURE_REMOVAL,
        &crate::schema_changes::APPLY_SCHEMA_CHANGES,
        &crate::schema_sync::CAPTURE_SCHEMA_SYNC,
        &crate::schema_sync::APPLY_SCHEMA_SYNC,
        &APPLY_CATCH_UP,
        &crate::replay::APPLY_REPLAY,
        &crate::retention::APPLY_RETENTION,
        &crate::lost_copies::CAPTURE_LOST,
        &crate::fan_out_deaths::APPLY_GRANTED,
        &crate::swap::APPLY_SWAP,
        &crate::generations::APPLY_GENERATION,
        &crate::parked::APPLY_PARKED,
        &crate::untracked::CAPTURE_UNTRACKED,
        &SCHEMA_REGISTRY,
        &crate::command_crashes::CAPTURE_ADDING,
        &crate::command_crashes::APPLY_ADDING,
        &crate::command_crashes::APPLY_LEAVING,
        &crate::command_crashes::CAPTURE_CHECKPOINT,
        &crate::command_crashes::STARTED,
        &crate::recovery::ADOPTION,
        &crate::api_deaths::API_COMMANDS,
    ];
    let covered: BTreeSet<&str> = suites
        .concat()
        .into_iter()
        .map(|(point, _)| point)
        .collect();
    let mut defined = BTreeSet::new();
    for role in ["capture", "apply", "schemas", "catalog"] {
        let path = repository().join(role).join("src/crash_points.rs");
        let text = std::fs::read_to_string(path)?;
        let quoted = text.split('"').filter(|part| {
            part.strip_prefix(role)
                .and_then(|rest| rest.strip_prefix("::"))
                .is_some_and(|name| name.chars().all(|c| c == '_' || c.is_ascii_lowercase()))
        });
        defined.extend(quoted.map(str::to_owned));
    }
    let defined: BTreeSet<&str> = defined.iter().map(String::as_str).collect();
    assert_eq!(covered, defined);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_dies_at_every_point_of_setup_and_snapshot() -> Result<()> {
    let points = CAPTURE_SETUP_AND_SNAPSHOT;
    let mut scene = scene("cap_snap", |capture, _| {
        capture.restart_to_crash(points[0].0, points[0].1)
    })
    .await?;
    crash_before_cdc(&mut scene.capture, &scene.mirror, &points).await?;
    scene.capture.restart()?;
    scene.mirror.wait_running().await?;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_dies_at_every_point_of_streaming() -> Result<()> {
    let mut scene = scene("cap_stream", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let large = large_transactions(&scene.stage).await?;
    crash_in_turn(
        &mut scene.capture,
        &scene.mirror,
        &CAPTURE_STREAMING,
        false,
        &IN_CDC,
    )
    .await?;
    large.abort();
    let _ = large.await;
    scene.capture.restart()?;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_dies_at_every_point_of_snapshot() -> Result<()> {
    let points = APPLY_SNAPSHOT;
    let mut scene = scene("app_snap", |_, apply| {
        apply.restart_to_crash(points[0].0, points[0].1)
    })
    .await?;
    crash_before_cdc(&mut scene.apply, &scene.mirror, &points).await?;
    scene.apply.restart()?;
    scene.mirror.wait_running().await?;
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_dies_at_every_point_of_streaming() -> Result<()> {
    let mut scene = scene("app_stream", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let large = large_transactions(&scene.stage).await?;
    crash_in_turn(
        &mut scene.apply,
        &scene.mirror,
        &APPLY_STREAMING,
        false,
        &IN_CDC,
    )
    .await?;
    large.abort();
    let _ = large.await;
    scene.apply.restart()?;
    scene.settle().await
}

/// Each time it is dead a backlog grows, of which batches are waiting while one is written.
#[tokio::test(flavor = "multi_thread")]
async fn apply_dies_with_a_batch_prepared_ahead() -> Result<()> {
    const BACKLOG: &str = "DO $$ BEGIN FOR n IN 1..1200 LOOP
        UPDATE accounts SET balance = balance + 1, owner = owner || n % 7 WHERE id = n; COMMIT;
    END LOOP; END $$";
    let mut scene = scene("app_ahead", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    for point in &APPLY_AHEAD {
        scene.apply.kill9();
        source.run(BACKLOG).await?;
        let in_turn = std::slice::from_ref(point);
        crash_in_turn(&mut scene.apply, &scene.mirror, in_turn, false, &IN_CDC).await?;
    }
    scene.apply.restart()?;
    scene.settle().await
}
