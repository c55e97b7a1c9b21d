//! Failures show themselves: with cause and cure, without touching what they do not concern,
//! and the documented way back works.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{Mirror, Stage};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};

use crate::scene::Scene;

pub const LIMIT: Duration = Duration::from_secs(90);

/// Waits until a table has that status, and says `words` about it.
pub async fn wait_table(mirror: &Mirror, table: &str, status: &str, words: &[&str]) -> Result<()> {
    let what = format!("{table} {status} {words:?}");
    mirror
        .wait_until(&what, LIMIT, |mirror, _| {
            let tables = mirror["tables"].as_array().into_iter().flatten();
            let mut found = tables.filter(|found| found["source_table"] == table);
            found.any(|found| {
                let error = found["error_message"].as_str().unwrap_or_default();
                found["status"] == status && words.iter().all(|word| error.contains(word))
            })
        })
        .await
}

/// The same of the mirror.
pub async fn wait_failed(mirror: &Mirror, words: &[&str]) -> Result<()> {
    mirror
        .wait_until(&format!("FAILED {words:?}"), LIMIT, |mirror, _| {
            let error = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "FAILED"
                && mirror["health"] == "DOWN"
                && words.iter().all(|word| error.contains(word))
        })
        .await
}

pub async fn post(api: &Api, path: &str, body: Value) -> Result<()> {
    api.post(path, body).await?.expect(202)?;
    Ok(())
}

/// Counts of rows at the destination.
pub async fn counts(destination: &Session, sql: &str, expected: i64) -> Result<()> {
    assert_eq!(destination.number(sql).await?, expected, "{sql}");
    Ok(())
}

pub fn admin(stage: &Stage) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", &stage.services.brokers)
        .create()?)
}

/// What a mirror cannot go on without makes it FAILED; it is taken down and made anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_cannot_do_without_makes_it_failed() -> Result<()> {
    let scene = Scene::new("mirror_failures").await?;
    let mut mirrors = Vec::new();
    for name in ["slot", "publication", "trimmed", "deleted", "idle"] {
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
        mirrors.push((mirror, table));
    }
    for (mirror, table) in &mirrors {
        mirror.wait_running().await?;
        scene
            .source
            .run(&format!("UPDATE {table} SET v = 'w'"))
            .await?;
        scene
            .stage
            .assert_converges(mirror, &TablePair::all(&[table]))
            .await?;
    }
    let [
        (slot, _),
        (publication, _),
        (trimmed, _),
        (deleted, _),
        (idle, _),
    ] = &mirrors[..]
    else {
        anyhow::bail!("five mirrors");
    };
    let topic = |mirror: &Mirror| format!("{}.{}.changes", scene.stage.name, mirror.slug());

    // The slot, while nobody used it.
    post(
        &scene.api,
        "/v1/mirrors/slot/pause",
        json!({"scope": "all"}),
    )
    .await?;
    slot.wait_until("PAUSED", LIMIT, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    let slot_name = slot.get().await?["slot_name"].clone();
    let slot_name = slot_name.as_str().context("a slot")?;
    scene
        .source
        .run(&format!("SELECT pg_drop_replication_slot('{slot_name}')"))
        .await?;
    post(&scene.api, "/v1/mirrors/slot/resume", json!({})).await?;
    wait_failed(slot, &["slot"]).await?;

    let publication_name = publication.get().await?["publication_name"].clone();
    let publication_name = publication_name.as_str().context("a publication")?;
    scene
        .source
        .run(&format!(
            "DROP PUBLICATION \"{publication_name}\"; UPDATE t_publication SET v = 'x'"
        ))
        .await?;
    wait_failed(publication, &["publication"]).await?;

    // What is not applied is taken out of the topic by somebody else.
    post(&scene.api, "/v1/mirrors/trimmed/pause", json!({})).await?;
    trimmed
        .wait_until("PAUSED", LIMIT, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    scene.source.run("UPDATE t_trimmed SET v = 'x'").await?;
    let lsn = scene.source.current_lsn().await?;
    trimmed
        .wait_until("published", LIMIT, |_, metrics| {
            let published = metrics["capture"]["published_lsn"].as_str();
            let published = published.and_then(|text| text.parse::<Lsn>().ok());
            published.is_some_and(|published| published >= lsn)
        })
        .await?;
    let mut to = TopicPartitionList::new();
    to.add_partition_offset(&topic(trimmed), 0, rdkafka::Offset::End)?;
    admin(&scene.stage)?
        .delete_records(&to, &AdminOptions::new())
        .await?;
    post(&scene.api, "/v1/mirrors/trimmed/resume", json!({})).await?;
    wait_failed(trimmed, &["trimmed", "esync"]).await?;

    // The whole topic, under both roles' feet, whether there is a change to come or not.
    admin(&scene.stage)?
        .delete_topics(&[&topic(deleted), &topic(idle)], &AdminOptions::new())
        .await?;
    scene.source.run("UPDATE t_deleted SET v = 'x'").await?;
    wait_failed(deleted, &["topic"]).await?;
    wait_failed(idle, &["topic"]).await?;

    // The way back: what is left of a FAILED mirror can be taken down, and made anew.
    for (mirror, table) in &mirrors {
        let path = format!("/v1/mirrors/{}", mirror.name);
        scene.api.delete(&path).await?.expect(202)?;
        let gone = tokio::time::Instant::now() + LIMIT;
        while scene.api.get(&path).await?.expect(404).is_err() {
            anyhow::ensure!(
                tokio::time::Instant::now() < gone,
                "{} stays\n{}",
                mirror.name,
                scene.stage.logs_tail()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let again = scene
            .stage
            .create_mirror(
                &scene.api,
                &mirror.name,
                &[table],
                json!({"on_existing_rows": "truncate"}),
            )
            .await?;
        again.wait_running().await?;
        scene
            .source
            .run(&format!("UPDATE {table} SET v = 'anew'"))
            .await?;
        scene
            .stage
            .assert_converges(&again, &TablePair::all(&[table]))
            .await?;
    }
    Ok(())
}

/// A status is DOWN as long as nobody does what a role is for, and says which.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_dead_is_named() -> Result<()> {
    let stage = Stage::new("dead_roles").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')")
        .await?;
    let tables = ["public.t"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    let is_well = |mirror: &Value| mirror["health"] == "OK" && mirror["status"] == "RUNNING";
    capture.kill9();
    apply.kill9();
    source.run("UPDATE t SET v = 'w'").await?;
    // The worst is said first, and of two that are as bad the one that comes first on the way.
    for (dead, words) in [
        (&mut capture, "no capture worker"),
        (&mut apply, "no apply worker"),
    ] {
        mirror
            .wait_until(words, LIMIT, |mirror, _| {
                let error = mirror["error_message"].as_str().unwrap_or_default();
                mirror["health"] == "DOWN" && error.contains(words)
            })
            .await?;
        dead.restart()?;
    }
    mirror
        .wait_until("well again", LIMIT, |mirror, _| is_well(mirror))
        .await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await
}
