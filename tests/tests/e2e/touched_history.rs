//! Slots and topics that someone else has touched.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use rdkafka::admin::AdminOptions;
use serde_json::json;

use crate::failures::{admin, counts, post, wait_failed};
use crate::scene::Scene;

/// What someone else did to the slot or the topics while nobody looked: refused, and a resync
/// begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_others_have_touched_is_refused() -> Result<()> {
    let mut scene = Scene::new("touched").await?;
    let names = ["advanced", "recreated", "unrecorded"];
    let mut mirrors = Vec::new();
    for name in names {
        scene
            .source
            .run(&format!(
                "CREATE TABLE t_{name} (id int PRIMARY KEY, v text); INSERT INTO t_{name} SELECT g, 'v' FROM generate_series(1, 50) g;"
            ))
            .await?;
        let table = format!("public.t_{name}");
        let mirror = scene
            .stage
            .create_mirror(&scene.api, name, &[&table], json!({}))
            .await?;
        mirrors.push((mirror, TablePair::all(&[&table])));
    }
    for (mirror, pairs) in &mirrors {
        mirror.wait_running().await?;
        scene.stage.assert_converges(mirror, pairs).await?;
    }
    let slot_of = async |index: usize| -> Result<String> {
        let (mirror, _) = &mirrors[index];
        let slot = mirror.get().await?["slot_name"].clone();
        Ok(slot.as_str().context("a slot")?.to_owned())
    };
    let (advanced, recreated) = (slot_of(0).await?, slot_of(1).await?);
    scene.bunny.sigterm(Duration::from_secs(10)).await?;
    for name in names {
        scene
            .source
            .run(&format!(
                "UPDATE t_{name} SET v = 'unseen' WHERE id < 20; DELETE FROM t_{name} WHERE id > 40;"
            ))
            .await?;
    }
    for sql in [
        format!("SELECT pg_replication_slot_advance('{advanced}', pg_current_wal_lsn())"),
        format!("SELECT pg_drop_replication_slot('{recreated}')"),
        format!("SELECT pg_create_logical_replication_slot('{recreated}', 'pgoutput')"),
    ] {
        scene.source.run(&sql).await?;
    }
    let position = format!("{}.unrecorded.position", scene.stage.name);
    let deleted = admin(&scene.stage)?
        .delete_topics(&[&position], &AdminOptions::new())
        .await?;
    assert!(deleted.iter().all(|topic| topic.is_ok()), "{deleted:?}");
    for name in names {
        scene
            .source
            .run(&format!("INSERT INTO t_{name} VALUES (100, 'unseen')"))
            .await?;
    }
    scene.bunny = scene.stage.start(Role::Up)?;
    scene.api = scene.stage.api().await?;
    let causes = [
        "someone else has advanced it",
        "someone else has advanced it",
        "the position topic has no record",
    ];
    for ((mirror, _), cause) in mirrors.iter().zip(causes) {
        wait_failed(mirror, &[cause, "resync the mirror"]).await?;
    }
    let destination = scene.stage.destination.connect().await?;
    for name in names {
        let unseen = format!("SELECT count(*) FROM t_{name} WHERE v = 'unseen'");
        counts(&destination, &unseen, 0).await?;
        let resync = format!("/v1/mirrors/{name}/resync");
        post(&scene.api, &resync, json!({})).await?;
    }
    for (mirror, pairs) in &mirrors {
        mirror.wait_running().await?;
        scene.stage.assert_converges(mirror, pairs).await?;
        scene.stage.assert_topics_hold(mirror, pairs).await?;
    }
    Ok(())
}
