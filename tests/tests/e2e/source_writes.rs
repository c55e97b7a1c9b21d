//! What an application writes at the source is neither refused nor kept waiting because of a mirror.

use std::time::Duration;

use anyhow::{Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;

use crate::scene::Scene;

/// A child inherits no key: published with its parent, its updates would be refused.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_inherit_from_a_mirrored_one_are_left_alone() -> Result<()> {
    let scene = Scene::new("inherits").await?;
    scene
        .source
        .run(
            "CREATE TABLE parent (id int PRIMARY KEY, v text);
              CREATE TABLE child () INHERITS (parent);
              CREATE TABLE other (id int PRIMARY KEY, v text);
              INSERT INTO parent VALUES (1, 'parent'); INSERT INTO child VALUES (2, 'child');",
        )
        .await?;
    let mirror = scene
        .running_mirror(&["public.parent", "public.other"], json!({}))
        .await?;
    scene
        .source
        .run("UPDATE parent SET v = 'all of them'; UPDATE child SET v = 'child alone'; DELETE FROM child WHERE id = 2;
              CREATE TABLE later () INHERITS (parent); INSERT INTO other VALUES (1, 'x');")
        .await?;
    let other = TablePair::all(&["public.other"]);
    scene.stage.assert_converges(&mirror, &other).await?;
    // The destination has the parent's own rows.
    let destination = scene.stage.destination.connect().await?;
    let rows = "SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM parent";
    assert_eq!(destination.text(rows).await?, "1 all of them");

    // A child that is in no publication does not keep its parent there.
    let mappings = json!([{"source_table": "public.other", "destination_table": "public.other"}]);
    let put = scene
        .api
        .put(
            "/v1/mirrors/mirror/tables",
            json!({ "table_mappings": mappings }),
        )
        .await?;
    put.expect(202)?;
    scene
        .source
        .run("INSERT INTO other VALUES (2, 'after'); UPDATE later SET v = 'later';")
        .await?;
    scene.stage.assert_converges(&mirror, &other).await?;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename <> 'other'";
    assert_eq!(scene.source.number(published).await?, 0);
    Ok(())
}

const EVERYONE: &str = "synchronous_standby_names = '*'";

/// Whoever streams is a standby then. Capture confirms what it has published; what it publishes
/// after a change of a table's definition has to be visible first.
#[tokio::test(flavor = "multi_thread")]
async fn commits_do_not_wait_for_capture_as_their_standby() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services, "standby").await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
        .await?;
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &["public.t"],
            json!({"schema_changes": "all"}),
        )
        .await?;
    mirror.wait_running().await?;

    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    ] {
        source.run(sql).await?;
    }
    let outcome = refuses_and_goes_on(&stage, &api, &mirror).await;
    // Others use these servers after us.
    for sql in [
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    ] {
        source.run(sql).await?;
    }
    outcome?;
    mirror.wait_running().await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&["public.t"]))
        .await
}

async fn refuses_and_goes_on(
    stage: &Stage,
    api: &bunny_tests::api::Api,
    mirror: &bunny_tests::stage::Mirror,
) -> Result<()> {
    let says = |text: &str| text.contains(EVERYONE) && text.contains("instead of *");
    mirror
        .wait_until("refuses to be a standby", CONVERGE, |mirror, _| {
            mirror["health"] != "OK" && says(&mirror["error_message"].to_string())
        })
        .await?;
    let source = stage.source.connect().await?;
    // Nobody is a standby now: the commit would wait for one to come.
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE sync_priority > 0";
    for _ in 0..20 {
        ensure!(source.number(streams).await? == 0, "capture is a standby");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    source
        .run("SET synchronous_commit = local; ALTER TABLE t ADD w text; UPDATE t SET w = 'w'")
        .await?;
    let refused = api
        .post(
            "/v1/mirrors",
            json!({
                "name": "another", "source_peer": "source", "destination_peer": "destination",
                "table_mappings": [{"source_table": "public.t", "destination_table": "public.another"}],
            }),
        )
        .await?;
    ensure!(
        refused.status == 422 && says(&refused.body.to_string()),
        "{refused:?}"
    );
    let tested = api
        .post("/v1/peers/source/test", json!({}))
        .await?
        .expect(200)?;
    let checks = tested["source"]["checks"].as_array();
    let mut checks = checks.into_iter().flatten();
    let check = checks.find(|check| check["name"] == "synchronous_standby_names");
    ensure!(
        check.is_some_and(|check| check["ok"] == false && check["fix"].is_string()),
        "{tested}"
    );
    Ok(())
}
