//! Readers of the destination see only states that the source had (invariant I4).

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use bunny_tests::transfers::{self, Reader, Transfers};
use serde_json::json;

use crate::lifecycle::{ended, wait_status};
use crate::scene::Scene;

/// Small, so that most source transactions share a batch and the large ones take dozens.
const BATCH: u32 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_sees_part_of_a_transaction() -> Result<()> {
    let scene = Scene::new("readers").await?;
    transfers::create_tables(&scene.source).await?;
    scene
        .source
        .run("CREATE TABLE third (id int PRIMARY KEY, v text); INSERT INTO third SELECT g, 'v' FROM generate_series(1, 500) g;")
        .await?;
    let [purses, vaults] = transfers::TABLES;
    let tables = [purses, vaults, "public.third"];
    let mirror = scene
        .running_mirror(&tables, json!({ "max_batch_size": BATCH }))
        .await?;
    let reader = Reader::start(&scene.stage.destination).await?;
    let transfers = Transfers::start(&scene.stage.source, 200);
    transfers.advance(300).await?;
    for _ in 0..3 {
        transfers::move_everywhere(&scene.source).await?;
        transfers.advance(50).await?;
    }

    // Paused and resumed while a large transaction is under way: before it or after it.
    for _ in 0..3 {
        transfers::move_everywhere(&scene.source).await?;
        let asked = std::time::Instant::now();
        for (action, status) in [("pause", "PAUSED"), ("resume", "RUNNING")] {
            let path = format!("/v1/mirrors/mirror/{action}");
            scene.api.post(&path, json!({})).await?.expect(202)?;
            mirror
                .wait_until(status, CONVERGE, |mirror, _| mirror["status"] == status)
                .await?;
            println!(
                "{status} {:?} after the pause was asked for",
                asked.elapsed()
            );
        }
        transfers.advance(20).await?;
    }

    // A third table leaves main and joins it again, once anew and once from the log.
    let resync = "/v1/mirrors/mirror/resync/public.third";
    let resync = scene.api.post(resync, json!({})).await?.expect(202)?;
    transfers::move_everywhere(&scene.source).await?;
    transfers.advance(50).await?;
    let command = ended(&scene.api, &mirror, &scene.stage, &resync).await?;
    assert_eq!(command["state"], "done", "{command}");
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("ALTER TABLE third ADD CONSTRAINT refused CHECK (v <> 'w')")
        .await?;
    scene.source.run("UPDATE third SET v = 'w'").await?;
    wait_status(&mirror, "public.third", "ERRORED").await?;
    transfers::move_everywhere(&scene.source).await?;
    destination
        .run("ALTER TABLE third DROP CONSTRAINT refused")
        .await?;
    let retry = scene
        .api
        .post("/v1/mirrors/mirror/retry", json!({}))
        .await?;
    retry.expect(202)?;
    transfers::move_everywhere(&scene.source).await?;
    wait_status(&mirror, "public.third", "LIVE").await?;
    transfers.stop().await?;

    let pairs = TablePair::all(&tables);
    let converged = scene.stage.assert_converges(&mirror, &pairs).await;
    let seen = reader.stop().await?;
    converged?;
    println!("{seen:?}");
    assert!(seen.states > 20, "the reader has not seen much: {seen:?}");
    Ok(())
}
