//! Deaths at every point of a resync of one table, by either strategy.

use std::time::Instant;

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;
use serde_json::json;

use crate::command_crashes::{ADDED, KEPT};
use crate::crashes::scene_of;

const CAPTURE_WAY: [(&str, u32); 7] = [
    ("capture::wish_remembered", 1),
    ("capture::sync_slot_created", 1),
    ("capture::sync_started", 1),
    ("capture::chunk_mid_copy", 1),
    ("capture::chunk_delivered", 1),
    ("capture::before_sync_finished", 1),
    ("capture::after_sync_finished", 1),
];

/// Until the table is loaded, and has caught up with main.
const APPLY_LOADING: [(&str, u32); 12] = [
    ("apply::wish_remembered", 1),
    ("apply::tables_reconciled", 1),
    ("apply::after_take_over", 1),
    ("apply::sync_started", 1),
    ("apply::chunk_mid_copy", 1),
    ("apply::chunk_before_commit", 1),
    ("apply::chunk_after_commit", 1),
    ("apply::chunks_loaded", 1),
    ("apply::table_loaded", 1),
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_after_commit", 1),
    ("apply::catch_up_held", 1),
];
/// The rows of a table that was loaded beside itself take their place.
const APPLY_EXCHANGING: [(&str, u32); 3] = [
    ("apply::swap_taken_out", 1),
    ("apply::swap_before_commit", 1),
    ("apply::swap_done", 1),
];
const APPLY_JOINING: [(&str, u32); 3] = [
    ("apply::catch_up_before_join", 1),
    ("apply::catch_up_joined", 1),
    ("apply::tables_settled", 1),
];

/// One table, whose rows fill more than one part of a chunk: of two, either may be the first to pass
/// a point.
const TABLES: [&str; 3] = [KEPT[0], KEPT[1], ADDED[0]];

/// Rows missing, changed, and of nobody.
const SPOIL: &str = "
    DELETE FROM documents WHERE id % 10 = 7;
    UPDATE documents SET title = 'wrong' WHERE id % 10 = 5;
    INSERT INTO documents (id, title) SELECT -g, 'wrong' FROM generate_series(1, 50) g;";
const WRONG: &str = "SELECT count(*) FROM documents WHERE title = 'wrong'";

/// While apply writes, the two may lock each other out.
async fn spoil(destination: &Session) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    while let Err(error) = destination.run(SPOIL).await {
        ensure!(Instant::now() < deadline, "{error:#}");
    }
    ensure!(destination.number(WRONG).await? > 50, "nothing is wrong");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_outlives_deaths_at_every_point() -> Result<()> {
    let mut scene = scene_of("resync_points", &TABLES, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    let of_swap = [&APPLY_LOADING[..], &APPLY_EXCHANGING, &APPLY_JOINING].concat();
    let of_truncate = [&APPLY_LOADING[..], &APPLY_JOINING].concat();
    for (strategy, apply) in [("truncate", of_truncate), ("swap", of_swap)] {
        spoil(&destination).await?;
        let asked = scene
            .asks_nobody(
                Method::POST,
                "/resync/public.documents",
                json!({ "strategy": strategy }),
            )
            .await?;
        scene.workers_die_and_go_on(&CAPTURE_WAY, &apply).await?;
        scene.is_done(&asked).await?;
        assert_eq!(destination.number(WRONG).await?, 0, "{strategy}");
        scene.assert_nothing_is_left_but(&TABLES).await?;
    }
    scene.converge(&TablePair::all(&TABLES)).await
}
