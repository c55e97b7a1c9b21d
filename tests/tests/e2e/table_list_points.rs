//! Deaths at every point of a changed list of tables; `command_crashes` has some for every change.

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;
use serde_json::json;

use crate::command_crashes::{
    ADDED, APPLY_LEAVING, KEPT, TABLES, TITLES, pairs_without_titles, without_titles,
};
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

/// One table, whose rows fill more than one part of a chunk and which has an index: of two, either
/// may be the first to pass a point.
const MORE: [&str; 3] = [KEPT[0], KEPT[1], ADDED[0]];
const INDEX: &str = "CREATE INDEX documents_revision ON documents (revision)";

/// Every point of a table that is added, and of one that is written without a column from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tables_outlives_deaths_at_every_point() -> Result<()> {
    let mut scene = scene_of("list_points", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    scene.stage.source.connect().await?.run(INDEX).await?;
    let (mut capture, mut apply) = (CAPTURE_WAY.to_vec(), APPLY_WAY.to_vec());
    for list in [mappings(&MORE), without_titles(&MORE)] {
        let asked = scene.asks_nobody(Method::PUT, "/tables", list).await?;
        scene.workers_die_and_go_on(&capture, &apply).await?;
        scene.is_done(&asked).await?;
        scene.assert_nothing_is_left_but(&MORE).await?;
        // It is published from then on, and has its index.
        capture.retain(|(point, _)| *point != "capture::table_moved");
        apply.retain(|(point, _)| *point != "apply::object_built");
    }
    let destination = scene.stage.destination.connect().await?;
    assert_eq!(destination.number(TITLES).await?, 0);
    scene.converge(&pairs_without_titles(&MORE)).await
}

/// A table that is added is called off while a worker is dead at each of the points in between.
#[tokio::test(flavor = "multi_thread")]
async fn an_added_table_is_called_off_at_every_point() -> Result<()> {
    let mut scene = scene_of("call_off", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    scene.stage.source.connect().await?.run(INDEX).await?;
    let points = CAPTURE_WAY.iter().skip(1).map(|point| (point, true));
    // One that has settled has come.
    let of_apply = APPLY_WAY.iter().take(APPLY_WAY.len() - 1);
    for ((point, pass), is_capture) in points.chain(of_apply.map(|point| (point, false))) {
        let called_off = scene
            .asks_nobody(Method::PUT, "/tables", mappings(&MORE))
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
        destination.run("DROP TABLE IF EXISTS documents").await?;
    }
    scene.converge(&TablePair::all(&KEPT)).await
}

/// A table leaves while it is loaded beside itself, and apply dies between saying that what is beside goes and its being
/// gone: the one does not stay without the other, and neither stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_table_had_beside_it_goes_with_it() -> Result<()> {
    const ROWS: &str = "SELECT count(*) FROM _bunny.tables WHERE state = 'REMOVING'";
    const BESIDE: &str =
        "SELECT count(*) FROM pg_class WHERE relname LIKE '%bunny_resync%' AND relkind = 'r'";
    let mut scene = scene_of("leaves_beside", &MORE, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    let loaded = "apply::table_loaded";
    scene.apply.restart_to_crash(loaded, 1)?;
    let swap = scene
        .api
        .post(
            "/v1/mirrors/mirror/resync/public.documents",
            json!({"strategy": "swap"}),
        )
        .await?
        .expect(202)?;
    scene.apply.wait_crash_point(loaded, CONVERGE).await?;
    let without = scene.api.put(TABLES, mappings(&KEPT)).await?.expect(202)?;
    for (point, pass) in APPLY_LEAVING {
        scene.apply.restart_to_crash(point, pass)?;
        scene.apply.wait_crash_point(point, CONVERGE).await?;
        let (rows, beside) = (
            destination.number(ROWS).await?,
            destination.number(BESIDE).await?,
        );
        ensure!(
            (rows, beside) == (1, 1),
            "{point}: {rows} rows, {beside} tables"
        );
    }
    scene.apply.restart()?;
    scene.is_done(&without).await?;
    scene.ended(&swap).await?;
    scene.assert_nothing_is_left_but(&KEPT).await?;
    let rows = destination.number("SELECT count(*) FROM documents").await?;
    ensure!(rows > 0, "the table itself stays, with its rows");
    scene.converge(&TablePair::all(&KEPT)).await
}
