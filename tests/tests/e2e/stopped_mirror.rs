//! `"on_table_error": "stop"`.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::content::TablePair;
use serde_json::{Value, json};

use crate::failures::{LIMIT, counts, post, wait_failed, wait_table};
use crate::lifecycle::ended;
use crate::scene::Scene;

/// `"on_table_error": "stop"`: nothing of the mirror goes on past what one table cannot take, and
/// what the message says leads on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_stops_its_mirror_is_brought_back() -> Result<()> {
    let scene = Scene::new("stop").await?;
    scene
        .source
        .run("CREATE TABLE strict (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text);
              INSERT INTO strict SELECT g, 'v' FROM generate_series(1, 50) g; INSERT INTO other SELECT g, 'v' FROM generate_series(1, 50) g;")
        .await?;
    let tables = ["public.strict", "public.other"];
    let mirror = scene
        .running_mirror(&tables, json!({"on_table_error": "stop"}))
        .await?;
    let destination = scene.stage.destination.connect().await?;
    let refuses = "ALTER TABLE strict ADD CONSTRAINT refused CHECK (v <> 'w') NOT VALID";
    let takes = "ALTER TABLE strict DROP CONSTRAINT refused";
    let words = ["public.strict", "refused", "\"stop\"", "retry"];
    let resync = "/v1/mirrors/mirror/resync/public.strict";
    let retry = "/v1/mirrors/mirror/retry";
    // Until the roles have started anew, the mirror is FAILED still.
    let ask = async |path: &str, body: Value| {
        let accepted = scene.api.post(path, body).await?.expect(202)?;
        ended(&scene.api, &mirror, &scene.stage, &accepted).await
    };
    let converge = async || {
        mirror.wait_running().await?;
        let pairs = TablePair::all(&tables);
        scene.stage.assert_converges(&mirror, &pairs).await
    };

    // In the stream.
    destination.run(refuses).await?;
    scene
        .source
        .run("UPDATE strict SET v = 'w' WHERE id < 10")
        .await?;
    scene.source.run("UPDATE other SET v = 'later'").await?;
    wait_failed(&mirror, &words).await?;
    ask(retry, json!({})).await?;
    wait_failed(&mirror, &words).await?;
    counts(
        &destination,
        "SELECT count(*) FROM strict WHERE v = 'v'",
        50,
    )
    .await?;
    counts(&destination, "SELECT count(*) FROM other WHERE v = 'v'", 50).await?;
    destination.run(takes).await?;
    ask(retry, json!({})).await?;
    converge().await?;

    // Synced again instead, where the log has what the destination must not get.
    destination.run(refuses).await?;
    scene
        .source
        .run("UPDATE strict SET v = 'w' WHERE id > 40")
        .await?;
    wait_failed(&mirror, &words).await?;
    scene.source.run("UPDATE strict SET v = 'x'").await?;
    let command = ask(resync, json!({})).await?;
    assert_eq!(command["state"], "done", "{command}");
    converge().await?;

    // Set aside before the option was changed: it stops the mirror then.
    let patch = async |policy: &str| -> Result<()> {
        let body = Some(json!({"on_table_error": policy}));
        let path = "/v1/mirrors/mirror";
        let patched = scene.api.request(reqwest::Method::PATCH, path, body);
        patched.await?.expect(202).map(drop)
    };
    patch("quarantine").await?;
    scene
        .source
        .run("UPDATE strict SET v = 'w' WHERE id = 7; UPDATE other SET v = 'goes on';")
        .await?;
    wait_table(&mirror, "public.strict", "ERRORED", &["refused"]).await?;
    let other = TablePair::all(&["public.other"]);
    scene.stage.assert_converges(&mirror, &other).await?;
    patch("stop").await?;
    wait_failed(&mirror, &words).await?;
    scene.source.run("DELETE FROM other WHERE id < 5").await?;
    destination.run(takes).await?;
    ask(retry, json!({"table_name": "public.strict"})).await?;
    converge().await?;

    // While it is copied.
    destination.run(refuses).await?;
    scene
        .source
        .run("UPDATE strict SET v = 'w' WHERE id = 8")
        .await?;
    wait_failed(&mirror, &words).await?;
    post(&scene.api, resync, json!({})).await?;
    let state = "SELECT state FROM _bunny.tables WHERE source_table = 'strict'";
    let deadline = tokio::time::Instant::now() + LIMIT;
    while destination.text(state).await? != "ERRORED" {
        anyhow::ensure!(
            tokio::time::Instant::now() < deadline,
            "the copy has not failed"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    wait_failed(&mirror, &words).await?;
    destination.run(takes).await?;
    ask(retry, json!({})).await?;
    converge().await
}
