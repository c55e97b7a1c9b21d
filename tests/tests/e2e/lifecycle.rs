//! Tables that leave and join a running mirror: set aside and brought back, added and
//! removed, synced anew. The others go on meanwhile, and processes die on the way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::content::TablePair;
use bunny_tests::load;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::crashes::{APPLY_CATCH_UP, IN_CDC, Scene, crash_in_turn, scene, scene_of};

/// The status of a table of the mirror.
pub fn status<'a>(mirror: &'a Value, table: &str) -> &'a str {
    let tables = mirror["tables"].as_array();
    let found = tables
        .into_iter()
        .flatten()
        .find(|found| found["source_table"] == table);
    found
        .and_then(|found| found["status"].as_str())
        .unwrap_or("absent")
}

pub async fn wait_status(mirror: &Mirror, table: &str, wanted: &str) -> Result<()> {
    let what = format!("{table} {wanted}");
    mirror
        .wait_until(&what, CONVERGE, |mirror, _| status(mirror, table) == wanted)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_set_aside_come_back_from_the_log() -> Result<()> {
    let mut scene = scene("come_back", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    // Two tables refuse what the load writes. One statement each: a transaction that locks
    // both would deadlock with main.
    for statement in [
        "ALTER TABLE accounts ADD CONSTRAINT refused CHECK (owner <> 'new') NOT VALID",
        "ALTER TABLE measurements ADD CONSTRAINT refused CHECK (sensor < 100) NOT VALID",
    ] {
        destination.run(statement).await?;
    }
    wait_status(&scene.mirror, "public.accounts", "ERRORED").await?;
    wait_status(&scene.mirror, "public.measurements", "ERRORED").await?;
    scene.load.advance(100).await;
    // The others go on, and say so.
    let mirror = scene.mirror.get().await?;
    assert_eq!(
        (&mirror["status"], &mirror["health"]),
        (&json!("RUNNING"), &json!("DEGRADED"))
    );
    assert_eq!(status(&mirror, "public.documents"), "LIVE");
    wait_behind(&scene, &["public.accounts", "public.measurements"]).await?;

    // One is brought back while its cause is still there, and is set aside again.
    let retry = |table: &str| {
        let body = json!({ "table_name": table });
        let api = scene.api.clone();
        async move {
            api.post("/v1/mirrors/mirror/retry", body)
                .await?
                .expect(202)
        }
    };
    retry("public.accounts").await?;
    scene.load.advance(20).await;
    wait_status(&scene.mirror, "public.accounts", "ERRORED").await?;
    let unknown = scene
        .api
        .post(
            "/v1/mirrors/mirror/retry",
            json!({ "table_name": "public.unknown" }),
        )
        .await?;
    assert_eq!(unknown.status, 404, "{}", unknown.body);

    destination
        .run("ALTER TABLE accounts DROP CONSTRAINT refused; ALTER TABLE measurements DROP CONSTRAINT refused;")
        .await?;
    // Apply dies at every point of the way back.
    scene
        .apply
        .restart_to_crash(APPLY_CATCH_UP[0].0, APPLY_CATCH_UP[0].1)?;
    let command = retry("public.accounts").await?;
    retry("public.measurements").await?;
    crash_in_turn(
        &mut scene.apply,
        &scene.mirror,
        &APPLY_CATCH_UP,
        true,
        &IN_CDC,
    )
    .await?;
    scene.apply.restart()?;
    wait_status(&scene.mirror, "public.accounts", "LIVE").await?;
    wait_status(&scene.mirror, "public.measurements", "LIVE").await?;
    assert_eq!(scene.ended(&command).await?["state"], "done");
    wait_behind(&scene, &[]).await?;
    scene.settle().await
}

/// Waits until the list of tables shows that these lack changes, and no others.
async fn wait_behind(scene: &Scene, wanted: &[&str]) -> Result<()> {
    let lacks = |behind: &Value| {
        ["lag_events", "lag_bytes", "lag_seconds"]
            .iter()
            .all(|lag| behind[*lag].as_f64() > Some(0.0))
    };
    let deadline = Instant::now() + CONVERGE;
    loop {
        let tables = scene.api.get(TABLES).await?.expect(200)?;
        let tables = tables.as_array().context("tables are a list")?;
        ensure!(tables.len() >= wanted.len(), "tables are missing");
        let is_so = tables.iter().all(|table| {
            let behind = &table["behind"];
            match wanted.iter().any(|name| table["source_table"] == *name) {
                true => lacks(behind),
                false => behind.is_null(),
            }
        });
        if is_so {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "not {wanted:?} lack changes: {tables:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const TABLES: &str = "/v1/mirrors/mirror/tables";
const ADDED: [&str; 2] = ["public.documents", "public.measurements"];
const KEPT: [&str; 2] = ["public.accounts", "public.journal"];
const CRASH_LIMIT: Duration = Duration::from_secs(60);

pub fn mappings(tables: &[&str]) -> Value {
    let mapping = |table: &&str| json!({"source_table": table, "destination_table": table});
    json!({ "table_mappings": tables.iter().map(mapping).collect::<Vec<Value>>() })
}

impl Scene {
    /// Waits until a command has ended; gives it.
    pub async fn ended(&self, accepted: &Value) -> Result<Value> {
        ended(&self.api, &self.mirror, &self.stage, accepted).await
    }

    /// Ends the load and compares contents.
    pub async fn converge(self, pairs: &[TablePair]) -> Result<()> {
        assert!(self.load.stop().await > 50);
        self.stage.assert_converges(&self.mirror, pairs).await
    }
}

/// Waits until a command of the mirror has ended; gives it.
pub async fn ended(api: &Api, mirror: &Mirror, stage: &Stage, accepted: &Value) -> Result<Value> {
    let id = accepted["command_id"].as_str().unwrap_or_default();
    let path = format!("/v1/mirrors/{}/commands/{id}", mirror.name);
    let deadline = Instant::now() + CONVERGE;
    loop {
        let command = api.get(&path).await?.expect(200)?;
        if ["done", "failed"]
            .iter()
            .any(|state| command["state"] == *state)
        {
            return Ok(command);
        }
        ensure!(
            Instant::now() < deadline,
            "still open: {command}\nmirror: {}{}",
            mirror.get().await?,
            stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Looks at the mirror all the time: every status it had, each once.
fn watch_status(mirror: &Mirror) -> tokio::task::JoinHandle<()> {
    let mirror = mirror.clone();
    tokio::spawn(async move {
        loop {
            if let Ok(seen) = mirror.get().await {
                let status = seen["status"].as_str().unwrap_or_default().to_owned();
                assert!(
                    status == "RUNNING",
                    "a mirror whose tables change is {status}: {seen}"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_and_go_while_the_mirror_runs() -> Result<()> {
    let mut scene = scene_of("come_and_go", &KEPT, |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    let destination = scene.stage.destination.connect().await?;
    let all = [KEPT, ADDED].concat();

    // What cannot be added is refused, and nothing changes.
    let missing = [&all[..], &["public.missing"]].concat();
    let refused = scene.api.put(TABLES, mappings(&missing)).await?;
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert!(
        refused.body["error"]
            .as_str()
            .unwrap_or_default()
            .contains("public.missing")
    );
    let unchanged = scene.api.put(TABLES, mappings(&KEPT)).await?;
    assert_eq!(unchanged.status, 200, "{}", unchanged.body);

    // Two tables are added; apply dies while it loads them, capture while it copies them.
    let watching = watch_status(&scene.mirror);
    scene.apply.restart_to_crash("apply::chunk_mid_copy", 1)?;
    scene
        .capture
        .restart_to_crash("capture::chunk_delivered", 2)?;
    let added = scene.api.put(TABLES, mappings(&all)).await?.expect(202)?;
    assert_eq!(added["added"], json!(ADDED));
    scene
        .capture
        .wait_crash_point("capture::chunk_delivered", CRASH_LIMIT)
        .await?;
    scene.capture.restart()?;
    scene
        .apply
        .wait_crash_point("apply::chunk_mid_copy", CRASH_LIMIT)
        .await?;
    scene.apply.restart_to_crash("apply::catch_up_joined", 1)?;
    scene
        .apply
        .wait_crash_point("apply::catch_up_joined", CRASH_LIMIT)
        .await?;
    scene.apply.restart()?;
    assert_eq!(scene.ended(&added).await?["state"], "done");
    for table in &all {
        wait_status(&scene.mirror, table, "LIVE").await?;
    }

    // One leaves, one is written without a column from now on.
    let mut fewer = mappings(&[&KEPT[..], &["public.documents"]].concat());
    fewer["table_mappings"][2]["exclude_columns"] = json!(["title"]);
    let changed = scene.api.put(TABLES, fewer.clone()).await?.expect(202)?;
    assert_eq!(changed["removed"], json!(["public.measurements"]));
    assert_eq!(changed["changed"], json!(["public.documents"]));
    scene.apply.kill9();
    scene.apply.restart()?;
    assert_eq!(scene.ended(&changed).await?["state"], "done");
    wait_status(&scene.mirror, "public.measurements", "absent").await?;
    let titles = "SELECT count(*) FROM documents WHERE title IS NOT NULL";
    assert_eq!(destination.number(titles).await?, 0);
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'measurements'";
    assert_eq!(source.number(published).await?, 0);
    let known = "SELECT count(*) FROM _bunny.tables WHERE source_table = 'measurements'";
    assert_eq!(destination.number(known).await?, 0);

    // Its rows stay, so it does not come back unasked; and an add under way is called off.
    let again = [&KEPT[..], &["public.documents", "public.measurements"]].concat();
    let refused = scene.api.put(TABLES, mappings(&again)).await?;
    assert_eq!(refused.status, 422, "{}", refused.body);
    destination.run("TRUNCATE measurements").await?;
    let called_off = scene.api.put(TABLES, mappings(&again)).await?.expect(202)?;
    let without = scene.api.put(TABLES, fewer).await?.expect(202)?;
    assert_eq!(scene.ended(&without).await?["state"], "done");
    let called_off = scene.ended(&called_off).await?;
    assert!(
        called_off["error"]
            .as_str()
            .unwrap_or_default()
            .contains("replaced"),
        "{called_off}"
    );
    destination.run("TRUNCATE measurements").await?;
    let added = scene.api.put(TABLES, mappings(&again)).await?.expect(202)?;
    assert_eq!(scene.ended(&added).await?["state"], "done");
    ensure!(
        !watching.is_finished(),
        "the status was not RUNNING: {:?}",
        watching.await
    );
    watching.abort();
    scene.converge(&TablePair::all(&all)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_emptied_and_loaded_again() -> Result<()> {
    let mut scene = scene("resync", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    let destination = scene.stage.destination.connect().await?;
    // A table that no mirror knows points at one of ours, which so cannot be truncated.
    destination
        .run(
            "CREATE TABLE watchers (doc int REFERENCES documents);
              INSERT INTO watchers SELECT min(id) FROM documents;
              DELETE FROM accounts; UPDATE documents SET title = 'wrong';
              INSERT INTO journal SELECT 0, -1, 'not of the source', now();",
        )
        .await?;
    let slots = "SELECT slot_name::text FROM pg_replication_slots WHERE NOT temporary AND database = current_database()";
    let slots_before = source.texts(slots.to_owned()).await?;

    let resync = "/v1/mirrors/mirror/resync/public.documents";
    scene.apply.restart_to_crash("apply::sync_started", 1)?;
    let one = scene.api.post(resync, json!({})).await?.expect(202)?;
    let same = scene.api.post(resync, json!({})).await?.expect(202)?;
    assert_eq!(one["command_id"], same["command_id"]);
    scene
        .apply
        .wait_crash_point("apply::sync_started", CRASH_LIMIT)
        .await?;
    let mirror = scene.mirror.get().await?;
    assert_eq!(
        (&mirror["status"], &mirror["current_phase"]),
        (&json!("RESYNCING"), &json!("CDC"))
    );
    assert_eq!(status(&mirror, "public.accounts"), "LIVE");
    scene.apply.restart()?;
    assert_eq!(scene.ended(&one).await?["state"], "done");
    assert_eq!(
        destination.number("SELECT count(*) FROM watchers").await?,
        1
    );

    // The whole mirror, with capture dead on the way.
    scene
        .capture
        .restart_to_crash("capture::before_sync_finished", 2)?;
    let whole = scene
        .api
        .post("/v1/mirrors/mirror/resync", json!({"strategy": "truncate"}))
        .await?
        .expect(202)?;
    scene
        .capture
        .wait_crash_point("capture::before_sync_finished", CRASH_LIMIT)
        .await?;
    scene.apply.kill9();
    scene.capture.restart()?;
    scene.apply.restart()?;
    assert_eq!(scene.ended(&whole).await?["state"], "done");
    scene.mirror.wait_running().await?;
    let slots_after = source.texts(slots.to_owned()).await?;
    assert_eq!(slots_before, slots_after);
    scene.converge(&load::pairs()).await
}

/// Capture dies when a table is published and nothing is recorded of it yet; before it is back,
/// the table has left the mirror.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_before_it_was_known_is_not_published() -> Result<()> {
    let mut scene = scene_of("left_early", &["public.accounts"], |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    let put = async |tables: &[&str]| -> Result<()> {
        let mapping = |table: &&str| json!({"source_table": table, "destination_table": table});
        let list: Vec<Value> = tables.iter().map(mapping).collect();
        let (path, list) = (
            "/v1/mirrors/mirror/tables",
            json!({ "table_mappings": list }),
        );
        let answer = scene.api.request(reqwest::Method::PUT, path, Some(list));
        answer.await?.expect(202).map(drop)
    };
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'documents'";
    let point = "capture::table_moved";
    scene.capture.restart_to_crash(point, 1)?;
    put(&["public.accounts", "public.documents"]).await?;
    scene.capture.wait_crash_point(point, CRASH_LIMIT).await?;
    assert_eq!(source.number(published).await?, 1);
    put(&["public.accounts"]).await?;
    scene.capture.restart()?;
    let deadline = Instant::now() + CONVERGE;
    while source.number(published).await? > 0 {
        ensure!(Instant::now() < deadline, "the table is still published");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.load.stop().await;
    let pairs = TablePair::all(&["public.accounts"]);
    scene.stage.assert_converges(&scene.mirror, &pairs).await
}
