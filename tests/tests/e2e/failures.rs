//! Failures show themselves: with cause and cure, without touching what they do not concern,
//! and the documented way back works.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{Mirror, Stage};
#[cfg(feature = "full")]
use chrono::{DateTime, Utc};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};

use crate::lifecycle::ended;
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
    let words = [
        "permission denied",
        "POST /v1/mirrors/mirror/retry",
        "goes on from offset",
    ];
    wait_table(&mirror, "public.denied", "ERRORED", &words).await?;
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
    assert_log_says_where(&api).await?;
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

/// Which batch it was, where it stands in the log and at the source, and how far apply was.
async fn assert_log_says_where(api: &Api) -> Result<()> {
    let logs = async |search: &str| {
        let path = format!("/v1/mirrors/mirror/logs?search={search}");
        api.get(&path).await?.expect(200)
    };
    let undone = logs("a%20batch%20was%20undone").await?;
    let entry = &undone["logs"][0];
    let message = entry["message"].as_str().context("no batch was undone")?;
    assert!(
        message.contains("100 changes of public.good") && message.contains("No space left"),
        "{message}"
    );
    let details = &entry["details"];
    assert_eq!(details["tables"][0]["table"], "public.good", "{details}");
    let offsets = (&details["first_offset"], &details["next_offset"]);
    assert!(offsets.0.as_i64() < offsets.1.as_i64(), "{details}");
    assert!(
        details["first_lsn"].is_string() && details["duration_ms"].is_u64(),
        "{details}"
    );
    let failed = logs("No%20space%20left").await?;
    let mut entries = failed["logs"].as_array().into_iter().flatten();
    let failure = entries
        .find(|entry| entry["details"]["role"] == "apply")
        .with_context(|| format!("no failure of apply: {failed}"))?;
    let place = &failure["details"]["last_report"];
    assert!(
        place["phase"].is_string() && place["lsn"].is_string() && place["offset"].is_i64(),
        "{failure}"
    );
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

/// Counts of rows at the destination.
async fn counts(destination: &Session, sql: &str, expected: i64) -> Result<()> {
    assert_eq!(destination.number(sql).await?, expected, "{sql}");
    Ok(())
}

/// `"on_table_error": "stop"`: nothing of the mirror goes on past what one table cannot take, and
/// what the message says leads on from there.
#[cfg(feature = "full")]
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

/// What someone else did to the slot or the topics while nobody looked: refused, and a resync
/// begins anew.
#[cfg(feature = "full")]
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

/// Both sides fail for so long that the next try is far away. Whoever removes the cause and says so does not wait for it.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_acts_before_the_next_try() -> Result<()> {
    /// After so many failures in a row the next try is half a minute away.
    const FAILURES: i64 = 6;
    let scene = Scene::new("retry_at_once").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    let stage = &scene.stage;
    let allow = async |allowed: bool| -> Result<()> {
        for url in [&stage.source, &stage.destination] {
            let database = &url.database;
            let beside = url.with_database("postgres").connect().await?;
            beside
                .run(&format!(
                    "ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS {allowed}"
                ))
                .await?;
            if !allowed {
                beside
                    .run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))
                    .await?;
            }
        }
        Ok(())
    };
    let next_try = |mirror: &Value, role: &str| -> Option<DateTime<Utc>> {
        mirror["failures"][role]["next_try"].as_str()?.parse().ok()
    };
    allow(false).await?;
    mirror
        .wait_until("both wait long", LIMIT, |mirror, _| {
            ["capture", "apply"].iter().all(|role| {
                mirror["failures"][role]["count"].as_i64() >= Some(FAILURES)
                    && next_try(mirror, role) > Some(Utc::now() + Duration::from_secs(10))
            })
        })
        .await?;
    let waiting = mirror.get().await?;
    assert_eq!(
        (&waiting["status"], &waiting["health"]),
        (&json!("RUNNING"), &json!("DEGRADED")),
        "{waiting}"
    );
    let announced = ["capture", "apply"].map(|role| next_try(&waiting, role));
    allow(true).await?;
    post(&scene.api, "/v1/mirrors/mirror/retry", json!({})).await?;
    mirror
        .wait_until("nobody fails", LIMIT, |mirror, _| {
            ["capture", "apply"]
                .iter()
                .all(|role| mirror["failures"][role].is_null())
        })
        .await?;
    let recovered = Utc::now();
    assert!(
        announced.iter().all(|next_try| Some(recovered) < *next_try),
        "both went on by {recovered}, not before {announced:?}"
    );
    // And what they say is so. The scene's own session at the source was ended, too.
    let source = stage.source.connect().await?;
    source.run("UPDATE t SET v = 'after'").await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&["public.t"]))
        .await
}
