//! Deleting mirrors whose servers are away, while the workers die, and of what is another's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::broker;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::proxy::Proxy;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

use crate::crashes::{APPLY_REMOVAL, CAPTURE_REMOVAL};
use crate::scene::Scene;

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";

async fn wait_for(what: &str, api: &Api, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    while !done().await? {
        let mirror = api.get("/v1/mirrors/mirror").await;
        assert!(Instant::now() < deadline, "not {what}: {mirror:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub async fn wait_gone(api: &Api) -> Result<()> {
    wait_for("gone", api, async || {
        Ok(matches!(api.get("/v1/mirrors/mirror").await, Ok(answer) if answer.status == 404))
    })
    .await
}

fn steps(command: &Value) -> Vec<&str> {
    command["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_is_cleaned_when_it_is_back_or_left_by_force() -> Result<()> {
    let stage = Stage::new("delete_away").await?;
    let address = |url: &bunny_tests::database::Url| format!("{}:{}", url.host, url.port);
    let to_source = Proxy::start(&address(&stage.source)).await?;
    let to_destination = Proxy::start(&address(&stage.destination)).await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage
        .create_peers_at(&api, to_source.port(), to_destination.port())
        .await?;
    let source = stage.source.connect().await?;
    source.run("CREATE TABLE t (id int PRIMARY KEY)").await?;
    let create = || {
        stage.create_mirror(
            &api,
            "mirror",
            &["public.t"],
            json!({"on_existing_rows": "truncate"}),
        )
    };
    let path = "/v1/mirrors/mirror";
    let command = async |id: &Value| -> Result<Value> {
        let id = id.as_str().context("no command id")?;
        api.get(&format!("{path}/commands/{id}")).await?.expect(200)
    };

    // Both away: the mirror says what is left, and at which side.
    create().await?.wait_running().await?;
    to_source.refuse();
    to_destination.refuse();
    let id = api.delete(path).await?.expect(202)?["command_id"].clone();
    for role in ["capture", "apply"] {
        wait_for("told what is left", &api, async || {
            let mirror = api.get(path).await?.expect(200)?;
            let message = mirror["failures"][role]["message"]
                .as_str()
                .unwrap_or_default();
            Ok(mirror["status"] == "TERMINATING"
                && message.contains("cannot be cleaned yet")
                && message.contains("force=true")
                && mirror["failures"][role]["next_try"].is_string())
        })
        .await?;
    }
    api.post(&format!("{path}/pause"), json!({}))
        .await?
        .expect(409)?;
    // One comes back: its side is cleaned and the topics go, the mirror stays.
    to_destination.heal();
    assert_eq!(api.delete(path).await?.expect(202)?["command_id"], id);
    wait_for("half gone", &api, async || {
        let command = command(&id).await?;
        Ok(steps(&command).contains(&"destination_clean")
            && steps(&command).contains(&"topics_clean"))
    })
    .await?;
    assert_eq!(api.get(path).await?.expect(200)?["status"], "TERMINATING");
    assert_eq!(source.number(SLOTS).await?, 1);
    to_source.heal();
    api.delete(path).await?.expect(202)?;
    wait_gone(&api).await?;
    assert_eq!(source.number(SLOTS).await?, 0);
    assert_eq!(
        source.number("SELECT count(*) FROM pg_publication").await?,
        0
    );
    assert_eq!(command(&id).await?["state"], "done");

    // By force: the mirror goes now, and what is left can be removed as the command says.
    create().await?.wait_running().await?;
    to_source.refuse();
    to_destination.refuse();
    let id = api.delete(path).await?.expect(202)?["command_id"].clone();
    assert_eq!(
        api.delete(&format!("{path}?force=true"))
            .await?
            .expect(202)?["command_id"],
        id
    );
    wait_gone(&api).await?;
    let done = command(&id).await?;
    assert_eq!(
        (&done["state"], &done["args"]["force"]),
        (&json!("done"), &json!(true))
    );
    assert!(
        steps(&done).contains(&"source_left") && steps(&done).contains(&"destination_left"),
        "{done}"
    );
    let outcome = done["outcome"].as_str().context("no outcome")?;
    assert_eq!(source.number(SLOTS).await?, 1);
    let destination = stage.destination.connect().await?;
    assert_eq!(
        destination
            .number("SELECT count(*) FROM _bunny.owner")
            .await?,
        1
    );
    for (session, start) in [
        (&source, "SELECT pg_drop"),
        (&destination, "DELETE FROM _bunny.owner"),
    ] {
        // The walsender notices its client's end in its own time.
        let statements = outcome
            .get(outcome.find(start).context("no statements")?..)
            .unwrap_or_default();
        let statements = statements.split("; until").next().unwrap_or_default();
        let statements = statements
            .rsplit_once(';')
            .map_or(statements, |(all, _)| all);
        for statement in statements
            .split("; ")
            .filter(|text| !text.starts_with("left at"))
        {
            wait_for(statement, &api, async || {
                Ok(session.run(statement).await.is_ok())
            })
            .await?;
        }
    }
    assert_eq!(source.number(SLOTS).await?, 0);
    assert_eq!(
        destination
            .number("SELECT count(*) FROM _bunny.owner")
            .await?,
        0
    );
    let kept = "SELECT relname::text FROM pg_class WHERE relnamespace = '_bunny'::regnamespace AND relkind = 'r'";
    for table in destination.texts(kept.to_owned()).await? {
        let rows = format!("SELECT count(*) FROM _bunny.{table}");
        assert_eq!(destination.number(&rows).await?, 0, "_bunny.{table}");
    }
    for peer in ["source", "destination"] {
        api.delete(&format!("/v1/peers/{peer}"))
            .await?
            .expect(200)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_outlives_the_death_of_everyone_who_acts_on_it() -> Result<()> {
    let stage = Stage::new("delete_kills").await?;
    let [mut capture, mut apply, mut rest] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await?;
    let create = || {
        stage.create_mirror(
            &api,
            "mirror",
            &["public.t"],
            json!({"on_existing_rows": "truncate"}),
        )
    };
    create().await?.wait_running().await?;
    apply.restart_to_crash(APPLY_REMOVAL[0].0, 1)?;
    capture.restart_to_crash(CAPTURE_REMOVAL[0].0, 1)?;
    api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    apply.wait_crash_point(APPLY_REMOVAL[0].0, CONVERGE).await?;
    capture
        .wait_crash_point(CAPTURE_REMOVAL[0].0, CONVERGE)
        .await?;
    apply.restart()?;
    capture.restart_to_crash(CAPTURE_REMOVAL[1].0, 1)?;
    capture
        .wait_crash_point(CAPTURE_REMOVAL[1].0, CONVERGE)
        .await?;
    api.get("/v1/mirrors/mirror").await?.expect(200)?;
    capture.restart()?;
    wait_gone(&api).await?;
    assert_eq!(source.number(SLOTS).await?, 0);
    let destination = stage.destination.connect().await?;
    let left = destination
        .number("SELECT (SELECT count(*) FROM _bunny.owner) + (SELECT count(*) FROM _bunny.tables) + (SELECT count(*) FROM _bunny.chunks)")
        .await?;
    assert_eq!(left, 0);
    create().await?.wait_running().await?;
    // Each role alone ends well when it is asked to.
    for process in [&mut capture, &mut apply, &mut rest] {
        let status = process.sigterm(Duration::from_secs(20)).await?;
        assert!(status.success(), "{status}\n{}", stage.logs_tail());
    }
    Ok(())
}

/// Topics of mirrors under the test's prefix; those of schema ids are everyone's.
async fn topics_of_mirrors(stage: &Stage) -> Result<Vec<String>> {
    let mut topics = broker::topics(&stage.services.brokers, &stage.name).await?;
    topics.retain(|name| !name.ends_with(".schemas"));
    Ok(topics)
}

async fn wait_for_broker(stage: &Stage, api: &Api, topics: usize, groups: usize) -> Result<()> {
    wait_for(
        &format!("{topics} topics, {groups} groups"),
        api,
        async || {
            let found = broker::groups(&stage.services.brokers, &stage.name).await?;
            Ok(topics_of_mirrors(stage).await?.len() == topics && found.len() == groups)
        },
    )
    .await
}

/// Topics that were kept are the past of the next mirror of that name: a former generation.
#[tokio::test(flavor = "multi_thread")]
async fn topics_are_kept_when_asked_and_gone_otherwise() -> Result<()> {
    let scene = Scene::new("delete_topics").await?;
    let (stage, api, source) = (&scene.stage, &scene.api, &scene.source);
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g; CREATE TABLE keyless (n int)")
        .await?;
    let tables = ["public.t", "public.keyless"];
    let pairs = TablePair::all(&tables);
    let mirror = scene.running_mirror(&tables, json!({})).await?;
    source
        .run("UPDATE t SET v = 'w' WHERE id <= 100; INSERT INTO keyless SELECT generate_series(1, 50)")
        .await?;
    scene.assert_holds(&mirror, &pairs).await?;
    wait_for_broker(stage, api, 3, 1).await?;
    let kept = topics_of_mirrors(stage).await?;

    api.delete("/v1/mirrors/mirror?keep_topics=true")
        .await?
        .expect(202)?;
    wait_gone(api).await?;
    wait_for_broker(stage, api, 3, 0).await?;
    assert_eq!(topics_of_mirrors(stage).await?, kept);

    // What changes meanwhile is in no log; keys of events that are may come again.
    source
        .run("DELETE FROM t WHERE id <= 50; INSERT INTO t SELECT g, 'x' FROM generate_series(301, 400) g; TRUNCATE keyless; INSERT INTO keyless VALUES (1)")
        .await?;
    let mirror = scene
        .running_mirror(&tables, json!({"on_existing_rows": "truncate"}))
        .await?;
    source
        .run("UPDATE t SET v = 'y' WHERE id > 350; INSERT INTO t VALUES (1, 'again'); INSERT INTO keyless VALUES (1), (2)")
        .await?;
    scene.assert_holds(&mirror, &pairs).await?;

    // It can be rebuilt from its own copies, and not from those of its predecessor.
    let answer = api
        .post("/v1/mirrors/mirror/replay", json!({}))
        .await?
        .expect(202)?;
    let command = answer["command_id"]
        .as_str()
        .context("command_id")?
        .to_owned();
    wait_for("replayed", api, async || {
        let path = format!("/v1/mirrors/mirror/commands/{command}");
        let command = api.get(&path).await?.expect(200)?;
        assert_ne!(command["state"], "failed", "{command}");
        Ok(command["state"] == "done")
    })
    .await?;
    scene.assert_holds(&mirror, &pairs).await?;

    api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    wait_gone(api).await?;
    wait_for_broker(stage, api, 0, 0).await
}

/// With Kafka away the mirror stays, until its topics are left behind by force. Asking a broker
/// that is away takes half a minute each time.
#[cfg(feature = "full")]
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn topics_are_left_by_force_while_kafka_is_away() -> Result<()> {
    use bunny_tests::services::{Server, Services};

    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "delete_kafka").await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await?;
    let create = || {
        stage.create_mirror(
            &api,
            "mirror",
            &["public.t"],
            json!({"on_existing_rows": "truncate"}),
        )
    };
    create().await?.wait_running().await?;
    let kept = topics_of_mirrors(&stage).await?;
    assert_eq!(kept.len(), 3);
    services.kill(Server::Kafka).await?;
    let path = "/v1/mirrors/mirror";
    let id = api.delete(path).await?.expect(202)?["command_id"].clone();
    wait_for("told what is left", &api, async || {
        let mirror = api.get(path).await?.expect(200)?;
        let message = mirror["failures"]["capture"]["message"]
            .as_str()
            .unwrap_or_default();
        Ok(mirror["status"] == "TERMINATING"
            && message.contains("Kafka cannot be cleaned yet")
            && message.contains("force=true"))
    })
    .await?;
    // Nothing is taken away before the log has told that this catalog knows what it would delete.
    assert_eq!(source.number(SLOTS).await?, 1);
    api.delete(&format!("{path}?force=true"))
        .await?
        .expect(202)?;
    wait_gone(&api).await?;
    assert_eq!(source.number(SLOTS).await?, 0, "the source is clean");
    let id = id.as_str().context("no command id")?;
    let done = api
        .get(&format!("{path}/commands/{id}"))
        .await?
        .expect(200)?;
    assert_eq!(done["state"], "done");
    assert!(steps(&done).contains(&"topics_left"), "{done}");
    let outcome = done["outcome"].as_str().context("no outcome")?;
    assert!(
        kept.iter().all(|topic| outcome.contains(topic.as_str())),
        "{outcome}"
    );

    // What was left is no harm to the next of the name, and goes with it.
    services.start_again(Server::Kafka).await?;
    assert_eq!(topics_of_mirrors(&stage).await?, kept);
    let mirror = create().await?;
    mirror.wait_running().await?;
    source.run("INSERT INTO t VALUES (2)").await?;
    stage
        .assert_converges(&mirror, &[TablePair::same("public.t")])
        .await?;
    api.delete(path).await?.expect(202)?;
    wait_gone(&api).await?;
    wait_for_broker(&stage, &api, 0, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_is_not_dropped() -> Result<()> {
    let scene = Scene::new("delete_foreign").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY)")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    let slot = mirror.get().await?["slot_name"]
        .as_str()
        .context("slot_name")?
        .to_owned();
    scene.api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    wait_gone(&scene.api).await?;
    // As another installation, or an older one, would have it.
    scene
        .source
        .run(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
        .await?;
    let tables = ["public.t"];
    scene
        .stage
        .create_mirror(&scene.api, "mirror", &tables, json!({}))
        .await?;
    wait_for("FAILED", &scene.api, async || {
        let mirror = scene.api.get("/v1/mirrors/mirror").await?.expect(200)?;
        Ok(mirror["status"] == "FAILED")
    })
    .await?;
    scene.api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    wait_gone(&scene.api).await?;
    assert_eq!(
        scene.source.number(SLOTS).await?,
        1,
        "another's slot was dropped"
    );
    Ok(())
}
