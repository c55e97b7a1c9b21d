//! A pgbench database, copied and followed while it is written to.

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::pgbench;
use serde_json::json;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_is_copied_and_followed_under_load() -> Result<()> {
    let scene = Scene::new("pgbench").await?;
    let source = scene.stage.source.clone();
    pgbench::initialise(&source, 1).await?;
    let load = tokio::spawn(async move { pgbench::run_load(&source, 4, 8, Some(300)).await });

    // Several chunks and workers per table, started while the load runs.
    let mirror = scene
        .running_mirror(
            &pgbench::TABLES,
            json!({"snapshot_num_rows_per_partition": 9000, "snapshot_max_parallel_workers": 3}),
        )
        .await?;
    let transactions = pgbench::transactions(&load.await??);
    assert!(transactions.is_some_and(|count| count > 500));

    let tables = TablePair::all(&pgbench::TABLES);
    scene.stage.assert_converges(&mirror, &tables).await?;
    let summary = scene.stage.assert_topics_hold(&mirror, &tables).await?;
    assert!(
        summary.events > 0 && summary.snapshot_rows >= 100_000,
        "{summary:?}"
    );

    mirror
        .wait_until(
            "no lag",
            std::time::Duration::from_secs(30),
            |_, metrics| metrics["lag_bytes"] == 0 && metrics["lag_seconds"].as_f64() == Some(0.0),
        )
        .await
}
