//! The oracles themselves: each has to fail when it should.

use anyhow::Result;
use bunny_tests::content::{self, TablePair};
use bunny_tests::stage::Stage;
use bunny_tests::topic;
use serde_json::json;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn the_content_oracle_sees_every_difference() -> Result<()> {
    let stage = Stage::new("content").await?;
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    let create =
        "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, NULL);";
    source.run(create).await?;
    destination.run(create).await?;
    let pairs = [TablePair::same("public.t")];
    content::assert_same(&source, &destination, &pairs).await?;

    for (change, seen) in [
        (
            "INSERT INTO t VALUES (1, 'x')",
            "only at the destination: (1,x)",
        ),
        (
            "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1)",
            "only at the source:      (1,x)",
        ),
        (
            "UPDATE t SET b = '' WHERE a = 2",
            "only at the destination: (2,\"\")",
        ),
        (
            "UPDATE t SET b = 'X' WHERE a = 1",
            "only at the destination: (1,X)",
        ),
    ] {
        destination.run(&format!("BEGIN; {change};")).await?;
        let found = content::assert_same(&source, &destination, &pairs).await;
        destination.run("ROLLBACK").await?;
        let message = found.expect_err(change).to_string();
        assert!(message.contains(seen), "{change}: {message}");
    }
    content::assert_same(&source, &destination, &pairs).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topic_oracle_sees_a_doubled_event() -> Result<()> {
    let scene = Scene::new("doubled").await?;
    scene
        .source
        .run("CREATE TABLE t (a int); INSERT INTO t VALUES (1);")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    scene.source.run("INSERT INTO t VALUES (2)").await?;
    let pairs = [TablePair::same("public.t")];
    scene.assert_holds(&mirror, &pairs).await?;

    let brokers = &scene.stage.services.brokers;
    topic::repeat_last_event(brokers, &scene.stage.name, &mirror.slug()).await?;
    let found = scene.stage.assert_topics_hold(&mirror, &pairs).await;
    let message = format!("{:#}", found.expect_err("a doubled event"));
    assert!(message.contains("doubled or out of order"), "{message}");
    Ok(())
}
