//! Failures show themselves: with cause and cure, without touching what they do not concern,
//! and the documented way back works.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{Mirror, Stage};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};

use crate::scene::Scene;

const LIMIT: Duration = Duration::from_secs(90);

/// Waits until a table has that status, and says `words` about it.
async fn wait_table(mirror: &Mirror, table: &str, status: &str, words: &[&str]) -> Result<()> {
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

async fn wait_failed(mirror: &Mirror, words: &[&str]) -> Result<()> {
    mirror
        .wait_until(&format!("FAILED {words:?}"), LIMIT, |mirror, _| {
            let error = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "FAILED"
                && mirror["health"] == "DOWN"
                && words.iter().all(|word| error.contains(word))
        })
        .await
}

async fn post(api: &Api, path: &str, body: Value) -> Result<()> {
    api.post(path, body).await?.expect(202)?;
    Ok(())
}

/// Peers whose users own their tables and may do no more than a mirror needs.
async fn limited_peers(stage: &Stage, api: &Api) -> Result<String> {
    let role = format!("{}_r", stage.name);
    for (name, url, more) in [
        ("source", &stage.source, "REPLICATION"),
        ("destination", &stage.destination, ""),
    ] {
        let role = format!("{role}_{name}");
        url.connect()
            .await?
            .run(&format!(
                "CREATE ROLE \"{role}\" LOGIN {more} PASSWORD 'limited';
                 GRANT CREATE ON DATABASE \"{}\" TO \"{role}\"; GRANT ALL ON SCHEMA public TO \"{role}\";
                 GRANT SET ON PARAMETER session_replication_role TO \"{role}\";",
                url.database
            ))
            .await?;
        let peer = json!({
            "name": name, "host": url.host, "port": url.port, "user": role,
            "password": "limited", "database": url.database, "ssl_mode": "disable",
        });
        api.post("/v1/peers", peer).await?.expect(201)?;
    }
    Ok(role)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_one_table_stays_with_it() -> Result<()> {
    let stage = Stage::new("table_failures").await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    let role = limited_peers(&stage, &api).await?;
    let (at_source, at_destination) = (format!("{role}_source"), format!("{role}_destination"));
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    let names = ["good", "closed", "denied", "dropped"];
    for name in names {
        source
            .run(&format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, v text); ALTER TABLE {name} OWNER TO \"{at_source}\";
                 INSERT INTO {name} SELECT g, 'v' FROM generate_series(1, 100) g;"
            ))
            .await?;
    }
    let tables = names.map(|name| format!("public.{name}"));
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    // A quiet mirror says how far it is before the first change comes.
    mirror
        .wait_until("an applied_lsn", LIMIT, |_, metrics| {
            metrics["apply"]["applied_lsn"].is_string()
        })
        .await?;
    let goes_on = async |value: &str| -> Result<()> {
        source
            .run(&format!("UPDATE good SET v = '{value}'"))
            .await?;
        stage
            .assert_converges(&mirror, &TablePair::all(&["public.good"]))
            .await
    };

    // The source does not let a table be copied any more.
    source
        .run(&format!("REVOKE SELECT ON closed FROM \"{at_source}\""))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/resync/public.closed",
        json!({"strategy": "truncate"}),
    )
    .await?;
    wait_table(
        &mirror,
        "public.closed",
        "ERRORED",
        &["permission denied", "retry"],
    )
    .await?;
    goes_on("one").await?;
    source
        .run(&format!("GRANT SELECT ON closed TO \"{at_source}\""))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/retry",
        json!({"table_name": "public.closed"}),
    )
    .await?;
    wait_table(&mirror, "public.closed", "LIVE", &[]).await?;

    // The destination does not let it be written.
    destination
        .run(&format!(
            "REVOKE INSERT, UPDATE ON denied FROM \"{at_destination}\""
        ))
        .await?;
    source
        .run("UPDATE denied SET v = 'w' WHERE id < 50")
        .await?;
    wait_table(&mirror, "public.denied", "ERRORED", &["permission denied"]).await?;
    goes_on("two").await?;
    destination
        .run(&format!(
            "GRANT INSERT, UPDATE ON denied TO \"{at_destination}\""
        ))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/retry",
        json!({"table_name": "public.denied"}),
    )
    .await?;
    wait_table(&mirror, "public.denied", "LIVE", &[]).await?;

    // It is gone there.
    destination.run("DROP TABLE dropped").await?;
    source
        .run("UPDATE dropped SET v = 'w' WHERE id < 50")
        .await?;
    wait_table(&mirror, "public.dropped", "ERRORED", &["does not exist"]).await?;
    goes_on("three").await?;
    post(
        &api,
        "/v1/mirrors/mirror/resync/public.dropped",
        json!({"strategy": "truncate"}),
    )
    .await?;
    wait_table(&mirror, "public.dropped", "LIVE", &[]).await?;

    // The disk is full there, as far as its answers go: nobody's fault, so all wait and say so.
    destination
        .run("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                  RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END$$;
              CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE OR DELETE ON good FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
              ALTER TABLE good ENABLE ALWAYS TRIGGER full_disk;")
        .await?;
    source.run("UPDATE good SET v = 'four'").await?;
    mirror
        .wait_until("waiting for room", LIMIT, |mirror, _| {
            let error = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "RUNNING"
                && mirror["health"] == "DEGRADED"
                && mirror["error_count"].as_i64() > Some(1)
                && error.contains("No space left on device")
        })
        .await?;
    destination.run("DROP FUNCTION full_disk CASCADE").await?;
    post(&api, "/v1/mirrors/mirror/retry", json!({})).await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await?;
    stage
        .assert_topics_hold(&mirror, &TablePair::all(&tables))
        .await
        .map(drop)
}

fn admin(stage: &Stage) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", &stage.services.brokers)
        .create()?)
}

/// What a mirror cannot go on without makes it FAILED; it is taken down and made anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_cannot_do_without_makes_it_failed() -> Result<()> {
    let scene = Scene::new("mirror_failures").await?;
    let mut mirrors = Vec::new();
    for name in ["slot", "publication", "trimmed", "deleted"] {
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
    let [(slot, _), (publication, _), (trimmed, _), (deleted, _)] = &mirrors[..] else {
        anyhow::bail!("four mirrors");
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

    // The whole topic, under both roles' feet.
    admin(&scene.stage)?
        .delete_topics(&[&topic(deleted)], &AdminOptions::new())
        .await?;
    scene.source.run("UPDATE t_deleted SET v = 'x'").await?;
    wait_failed(deleted, &["topic"]).await?;

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
