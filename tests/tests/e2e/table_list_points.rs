//! Deaths at every point of a changed list of tables; `command_crashes` has some for every change.

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;

use crate::command_crashes::{ADDED, KEPT, TABLES, TITLES, pairs_without_titles, without_titles};
use crate::crashes::scene_of;
use crate::lifecycle::mappings;

/// Every point of capture on the way of a table that is added.
const CAPTURE_WAY: [(&str, u32); 8] = [
    ("capture::wish_remembered", 1),
    ("capture::table_moved", 1),
    ("capture::sync_slot_created", 1),
    ("capture::sync_started", 1),
    ("capture::chunk_mid_copy", 1),
    ("capture::chunk_delivered", 1),
    ("capture::before_sync_finished", 1),
    ("capture::after_sync_finished", 1),
];
const APPLY_WAY: [(&str, u32); 15] = [
    ("apply::wish_remembered", 1),
    ("apply::tables_reconciled", 1),
    ("apply::sync_started", 1),
    ("apply::chunk_mid_copy", 1),
    ("apply::chunk_before_commit", 1),
    ("apply::chunk_after_commit", 1),
    ("apply::chunks_loaded", 1),
    ("apply::object_built", 1),
    ("apply::table_loaded", 1),
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_after_commit", 1),
    ("apply::catch_up_held", 1),
    ("apply::catch_up_before_join", 1),
    ("apply::catch_up_joined", 1),
    ("apply::tables_settled", 1),
];

/// Every point of a table that is added, and of one that is written without a column from then on.
/// One at a time: of two, either may be the first to pass a point.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tables_outlives_deaths_at_every_point() -> Result<()> {
    let mut scene = scene_of("list_points", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    let [documents, measurements] = ADDED;
    let more = [&KEPT[..], &[measurements]].concat();
    let added = scene
        .asks_nobody(Method::PUT, "/tables", mappings(&more))
        .await?;
    scene
        .workers_die_and_go_on(&CAPTURE_WAY, &APPLY_WAY)
        .await?;
    scene.is_done(&added).await?;
    scene.assert_nothing_is_left_but(&more).await?;

    let all = [&more[..], &[documents]].concat();
    let added = scene.api.put(TABLES, mappings(&all)).await?.expect(202)?;
    scene.is_done(&added).await?;
    let changed = scene
        .asks_nobody(Method::PUT, "/tables", without_titles(&all))
        .await?;
    // It is published, and has its indexes.
    let passed = ["capture::table_moved", "apply::object_built"];
    let left = |way: &[(&'static str, u32)]| -> Vec<(&'static str, u32)> {
        let points = way.iter().filter(|(point, _)| !passed.contains(point));
        points.copied().collect()
    };
    scene
        .workers_die_and_go_on(&left(&CAPTURE_WAY), &left(&APPLY_WAY))
        .await?;
    scene.is_done(&changed).await?;
    scene.assert_nothing_is_left_but(&all).await?;
    assert_eq!(destination.number(TITLES).await?, 0);
    scene.converge(&pairs_without_titles(&all)).await
}

/// A table that is added is called off while a worker is dead at each of the points in between.
#[tokio::test(flavor = "multi_thread")]
async fn an_added_table_is_called_off_at_every_point() -> Result<()> {
    let mut scene = scene_of("call_off", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    let more = [&KEPT[..], &[ADDED[1]]].concat();
    let points = CAPTURE_WAY.iter().skip(1).map(|point| (point, true));
    // One that has settled has come.
    let of_apply = APPLY_WAY.iter().take(APPLY_WAY.len() - 1);
    for ((point, pass), is_capture) in points.chain(of_apply.map(|point| (point, false))) {
        let called_off = scene
            .asks_nobody(Method::PUT, "/tables", mappings(&more))
            .await?;
        let (dies, lives) = match is_capture {
            true => (&mut scene.capture, &mut scene.apply),
            false => (&mut scene.apply, &mut scene.capture),
        };
        lives.restart()?;
        dies.restart_to_crash(point, *pass)?;
        dies.wait_crash_point(point, CONVERGE).await?;
        let without = scene.api.put(TABLES, mappings(&KEPT)).await?.expect(202)?;
        scene.restart_workers()?;
        scene.is_done(&without).await?;
        scene.ended(&called_off).await?;
        scene.assert_nothing_is_left_but(&KEPT).await?;
        destination.run("DROP TABLE IF EXISTS measurements").await?;
    }
    scene.converge(&TablePair::all(&KEPT)).await
}
