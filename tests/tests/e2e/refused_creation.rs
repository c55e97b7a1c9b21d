//! Mirrors that real servers cannot carry: refused with the reason, and nothing of them is left.

use anyhow::{Context, Result, ensure};
use bunny_tests::broker;
use bunny_tests::services::Services;
use bunny_tests::stage::Stage;
use serde_json::{Value, json};

use crate::lifecycle::mappings;
use crate::scene::Scene;

/// Whatever creating a mirror could make, on either server, in Kafka and in the catalog.
pub async fn all_there_is(stage: &Stage) -> Result<Vec<String>> {
    const SERVER: &str = "SELECT concat_ws(' | ',
        (SELECT string_agg(pubname, ',' ORDER BY pubname) FROM pg_publication),
        (SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots
         WHERE database = current_database() AND NOT temporary),
        (SELECT string_agg(oid::regclass::text, ',' ORDER BY oid) FROM pg_class
         WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace))";
    const CATALOG: &str = "SELECT concat_ws(' | ',
        (SELECT string_agg(concat_ws(' ', id, version), ',') FROM bunny.mirrors),
        (SELECT string_agg(concat_ws(' ', mirror_id, source_table), ',' ORDER BY mirror_id, source_table) FROM bunny.mirror_tables),
        (SELECT string_agg(id::text, ',' ORDER BY id) FROM bunny.commands),
        (SELECT string_agg(concat_ws(' ', mirror_id, role), ',' ORDER BY mirror_id, role) FROM bunny.leases))";
    let mut all = broker::topics(&stage.services.brokers, &stage.name).await?;
    for (place, question) in [
        (&stage.source, SERVER),
        (&stage.destination, SERVER),
        (&stage.catalog, CATALOG),
    ] {
        all.push(place.connect().await?.text(question).await?);
    }
    Ok(all)
}

/// Refused with all of `reasons` in the answer, and with what there was before.
async fn is_refused(scene: &Scene, peers: [&str; 2], reasons: &[&str]) -> Result<()> {
    let before = all_there_is(&scene.stage).await?;
    let mut body = mappings(&["public.t"]);
    body["name"] = json!("refused");
    body["source_peer"] = json!(peers[0]);
    body["destination_peer"] = json!(peers[1]);
    body["on_existing_rows"] = json!("truncate");
    let answer = scene.api.post("/v1/mirrors", body).await?;
    let said = answer.body["error"].as_str().unwrap_or_default();
    ensure!(
        (409..=422).contains(&answer.status) && reasons.iter().all(|reason| said.contains(reason)),
        "not refused because of {reasons:?}: {answer:?}"
    );
    scene.api.get("/v1/mirrors/refused").await?.expect(404)?;
    let after = all_there_is(&scene.stage).await?;
    ensure!(before == after, "{reasons:?} left {after:?} of {before:?}");
    Ok(())
}

/// A peer at the source's database as another user.
fn as_user(stage: &Stage, name: &str, user: &str) -> Value {
    json!({
        "name": name, "host": stage.source.host, "port": stage.source.port, "user": user,
        "password": "plain", "database": stage.source.database, "ssl_mode": "disable",
    })
}

/// All slots of the server are taken for a moment, which no other test could bear.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_servers_cannot_carry_is_refused_and_leaves_nothing() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let scene = Scene::on(Stage::on(services, "unfit").await?).await?;
    let stage = &scene.stage;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await?;

    let taken = scene
        .source
        .run(
            "SELECT pg_create_physical_replication_slot('taken_' || n)
             FROM generate_series(1, current_setting('max_replication_slots')::int
                                     - (SELECT count(*) FROM pg_replication_slots)) n",
        )
        .await;
    let full = match taken {
        Ok(()) => {
            is_refused(
                &scene,
                ["source", "destination"],
                &["0 free replication slots", "max_replication_slots"],
            )
            .await
        }
        Err(error) => Err(error),
    };
    scene
        .source
        .run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
             WHERE starts_with(slot_name, 'taken_')",
        )
        .await?;
    full?;

    let user = format!("{}_plain", stage.name);
    scene
        .source
        .run(&format!(
            "CREATE ROLE \"{user}\" LOGIN PASSWORD 'plain';
             GRANT ALL ON DATABASE \"{}\" TO \"{user}\"; GRANT ALL ON SCHEMA public TO \"{user}\";
             ALTER TABLE t OWNER TO \"{user}\"",
            stage.source.database
        ))
        .await?;
    let peer = as_user(stage, "plain", &user);
    scene.api.post("/v1/peers", peer).await?.expect(201)?;
    let reasons = ["REPLICATION", user.as_str()];
    let without = is_refused(&scene, ["plain", "destination"], &reasons).await;
    scene
        .source
        .run(&format!(
            "ALTER TABLE t OWNER TO postgres; DROP OWNED BY \"{user}\"; DROP ROLE \"{user}\""
        ))
        .await?;
    without?;

    is_refused(&scene, ["source", "source"], &["mapped to itself"]).await?;
    let there = scene.running_mirror(&["public.t"], json!({})).await?;
    is_refused(
        &scene,
        ["destination", "source"],
        &["its own changes back", &there.name],
    )
    .await
    .context("a loop of two mirrors")
}
