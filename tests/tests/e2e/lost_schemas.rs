//! What a mirror needs besides its slot and its change topic is taken away under it: the topic of
//! the schemas, and the publication of its insert-only tables.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use rdkafka::admin::AdminOptions;
use serde_json::{Value, json};

use crate::failures::{admin, wait_failed};
use crate::lifecycle::ended;
use crate::scene::Scene;

const RESYNC: &str = "/v1/mirrors/mirror/resync";

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_comes_back_without_its_schemas_or_a_publication() -> Result<()> {
    let mut scene = Scene::new("lost_schemas").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 200) g;
              CREATE TABLE logged (n int); INSERT INTO logged SELECT generate_series(1, 50)")
        .await?;
    let tables = ["public.t", "public.logged"];
    let pairs = TablePair::all(&tables);
    let mirror = scene.running_mirror(&tables, json!({})).await?;
    scene
        .source
        .run("UPDATE t SET v = 'w' WHERE id < 50")
        .await?;
    scene.assert_holds(&mirror, &pairs).await?;
    let comes_back = async |scene: &Scene| -> Result<()> {
        let body = json!({"strategy": "truncate"});
        let accepted = scene.api.post(RESYNC, body).await?.expect(202)?;
        let command = ended(&scene.api, &mirror, &scene.stage, &accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        mirror.wait_running().await?;
        scene
            .source
            .run("UPDATE t SET v = v || 'z' WHERE id % 2 = 0; INSERT INTO logged VALUES (100)")
            .await?;
        // The topics are not asked: what was written before has lost its meaning for everybody.
        scene.stage.assert_converges(&mirror, &pairs).await
    };

    // The schemas, and with them what the log's events mean.
    let schemas = format!("{}.schemas", scene.stage.name);
    let deleted = admin(&scene.stage)?;
    let deleted = deleted.delete_topics(&[&schemas], &AdminOptions::new());
    for topic in deleted.await? {
        topic.map_err(|(topic, error)| anyhow::anyhow!("deleting {topic}: {error}"))?;
    }
    scene
        .source
        .run("UPDATE t SET v = 'x' WHERE id < 20; ALTER TABLE t ADD COLUMN more int; UPDATE t SET more = 1 WHERE id < 30")
        .await?;
    // A process that knows them from before goes on with what it knows; none does that begins.
    scene.bunny.sigterm(Duration::from_secs(20)).await?;
    scene
        .source
        .run("UPDATE t SET v = 'unseen' WHERE id > 150")
        .await?;
    scene.bunny.restart()?;
    wait_failed(&mirror, &["schema", "resync"]).await?;
    comes_back(&scene).await?;

    // The publication of what has no key.
    let shown = mirror.get().await?;
    let own = shown["publication_name"]
        .as_str()
        .context("publication_name")?;
    scene
        .source
        .run(&format!(
            "DROP PUBLICATION \"{own}_ins\"; INSERT INTO logged VALUES (77); UPDATE t SET more = 2"
        ))
        .await?;
    let is_failed = |mirror: &Value, _: &Value| {
        let said = mirror["error_message"].as_str().unwrap_or_default();
        mirror["status"] == "FAILED"
            && said.contains(&format!("{own}_ins"))
            && said.contains("resync the mirror")
    };
    mirror
        .wait_until("FAILED for its publication", CONVERGE, is_failed)
        .await?;
    scene.source.run("INSERT INTO logged VALUES (78)").await?;
    comes_back(&scene).await
}
