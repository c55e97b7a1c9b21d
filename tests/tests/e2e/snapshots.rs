//! The initial load: chunks, keys to partition by, existing rows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Stage};
use reqwest::Method;
use serde_json::json;

use crate::scene::Scene;

/// Partition keys of several types, skewed and with NULLs; empty and dead-row-ridden tables.
const CREATE: &str = "
CREATE TABLE by_int (id bigint PRIMARY KEY, v text);
CREATE TABLE by_text (k text COLLATE \"C\", v int); CREATE INDEX ON by_text (k);
CREATE TABLE skewed (id int PRIMARY KEY, tenant int, v text); CREATE INDEX ON skewed (tenant);
CREATE TABLE by_time (id int PRIMARY KEY, at timestamptz); CREATE INDEX ON by_time (at);
CREATE TABLE unindexed (id int PRIMARY KEY, k int);
CREATE TABLE empty (id int PRIMARY KEY, v text);
CREATE TABLE sparse (id int PRIMARY KEY, v text);
INSERT INTO by_int SELECT g * 1000003::bigint, md5(g::text) FROM generate_series(-2500, 2500) g;
INSERT INTO by_text SELECT CASE WHEN g % 10 = 0 THEN NULL ELSE md5(g::text) END, g FROM generate_series(1, 5000) g;
INSERT INTO skewed SELECT g, CASE WHEN g % 10 = 0 THEN g END, 'v' FROM generate_series(1, 2000) g;
UPDATE skewed SET tenant = 7 WHERE id > 500;
INSERT INTO by_time SELECT g, CASE g % 3 WHEN 0 THEN '-infinity' WHEN 1 THEN 'infinity' ELSE now() - g * interval '1 hour' END FROM generate_series(1, 3000) g;
INSERT INTO unindexed SELECT g, g % 5 FROM generate_series(1, 3000) g;
INSERT INTO sparse SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g;
DELETE FROM sparse WHERE id % 50 <> 0;
ANALYZE;";

#[tokio::test(flavor = "multi_thread")]
async fn chunks_cover_every_row_once() -> Result<()> {
    let scene = Scene::new("chunks").await?;
    scene.source.run(CREATE).await?;
    let keys = [
        ("public.by_int", Some("id")),
        ("public.by_text", Some("k")),
        ("public.skewed", Some("tenant")),
        ("public.by_time", Some("at")),
        ("public.unindexed", Some("k")),
        ("public.empty", None),
        ("public.sparse", None),
    ];
    let mappings: Vec<_> = keys
        .iter()
        .map(|(table, key)| json!({"source_table": table, "destination_table": table, "partition_key": key}))
        .collect();
    let mirror = scene
        .stage
        .create_mapped_mirror(
            &scene.api,
            "chunks",
            json!(mappings),
            json!({"snapshot_num_rows_per_partition": 400, "snapshot_max_parallel_workers": 3, "snapshot_num_tables_in_parallel": 2}),
        )
        .await?;
    mirror.wait_running().await?;
    let tables: Vec<TablePair> = keys
        .iter()
        .map(|(table, _)| TablePair::same(table))
        .collect();
    scene.assert_holds(&mirror, &tables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_in_the_middle_of_writes() -> Result<()> {
    let scene = Scene::new("midload").await?;
    load::create_tables(&scene.source, 20_000).await?;
    let load = Load::start(&scene.stage.source, 3, 60);
    load.advance(20).await;
    let mirror = scene
        .running_mirror(
            &load::TABLES,
            json!({"snapshot_num_rows_per_partition": 1500}),
        )
        .await?;
    load.advance(300).await;
    load.stop().await;
    scene.assert_holds(&mirror, &load::pairs()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_only_changes_arrive() -> Result<()> {
    let scene = Scene::new("nosnapshot").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g;")
        .await?;
    let mirror = scene
        .running_mirror(&["public.t"], json!({"do_initial_snapshot": false}))
        .await?;
    scene
        .source
        .run("INSERT INTO t VALUES (100, 'new'); DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (101, 'new'); UPDATE t SET v = 'newer' WHERE id = 101;")
        .await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    let destination = scene.stage.destination.connect().await?;
    let rows = destination
        .text("SELECT string_agg(id || v, ',' ORDER BY id) FROM t")
        .await?;
    assert_eq!(rows, "100new,101newer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_there_already() -> Result<()> {
    let scene = Scene::new("existing").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'source' FROM generate_series(1, 100) g;")
        .await?;
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'before' FROM generate_series(50, 150) g;")
        .await?;

    // Refused, with the way out, and nothing created.
    let body = json!({
        "name": "refused", "source_peer": "source", "destination_peer": "destination",
        "table_mappings": [{"source_table": "public.t", "destination_table": "public.t"}],
    });
    let refusal = scene.api.post("/v1/mirrors", body).await?;
    assert!(matches!(refusal.status, 409 | 422), "{refusal:?}");
    assert!(
        refusal.body.to_string().contains("on_existing_rows"),
        "{refusal:?}"
    );
    assert_eq!(
        scene
            .source
            .number("SELECT count(*) FROM pg_publication")
            .await?,
        0
    );

    let mirror = scene
        .running_mirror(&["public.t"], json!({"on_existing_rows": "truncate"}))
        .await?;
    scene
        .assert_holds(&mirror, &[TablePair::same("public.t")])
        .await
}

/// It has no session that could be seen: unnamed, a mirror would be in SETUP for ever. Every slot
/// of the server waits for it, so the server is one that no other test uses now.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_holds_up_the_slot_is_named() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let scene = Scene::on(Stage::on(services, "prepared").await?).await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        .await?;
    scene
        .source
        .run("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'left ''behind'")
        .await?;
    let mirror = scene
        .stage
        .create_mirror(&scene.api, "mirror", &["public.t"], json!({}))
        .await?;
    mirror
        .wait_until("held up", CONVERGE, |mirror, _| {
            let messages = mirror["messages"].to_string();
            ["'left ''behind'", &scene.stage.name, "ROLLBACK PREPARED"]
                .iter()
                .all(|part| messages.contains(part))
        })
        .await?;
    assert_eq!(mirror.get().await?["status"], "SETUP");
    scene
        .source
        .run("ROLLBACK PREPARED 'left ''behind'")
        .await?;
    mirror.wait_running().await?;
    scene
        .assert_holds(&mirror, &[TablePair::same("public.t")])
        .await
}

/// What copies now at the source: the table of each session that has a COPY in its transaction.
const COPYING: &str = "SELECT substring(query FROM 'ONLY \"public\".\"(\\w+)\"') AS copied
    FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(application_name, 'bunny capture ')
      AND state <> 'idle' AND starts_with(query, 'COPY')";

/// A table of fifteen chunks of 200 rows. A chunk is more than one part, and passes the crash point
/// between them. A page has few rows, so that chunks, which end with pages, have the rows asked for.
async fn create_wide(source: &Session, table: &str) -> Result<()> {
    source
        .run(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text) WITH (fillfactor = 10);
             INSERT INTO {table} SELECT g, repeat(md5(g::text), 250) FROM generate_series(1, 2900) g;
             ANALYZE {table}"
        ))
        .await
}

async fn copying(source: &Session) -> Result<Vec<String>> {
    let rows = source.query(COPYING, &[]).await?;
    let copied = rows.iter().map(|row| row.get::<_, Option<String>>(0));
    let copied: Option<Vec<String>> = copied.collect();
    copied.context("a COPY of no known table")
}

/// The most seen at any moment, of sessions altogether, of sessions of one table, and of tables.
#[derive(Debug, Default, PartialEq)]
struct Most {
    sessions: usize,
    of_a_table: usize,
    tables: usize,
}

impl Most {
    fn see(&mut self, copied: &[String]) {
        let mut of_table = BTreeMap::<&str, usize>::new();
        for table in copied {
            *of_table.entry(table).or_default() += 1;
        }
        self.sessions = self.sessions.max(copied.len());
        self.tables = self.tables.max(of_table.len());
        let most = of_table.into_values().max().unwrap_or_default();
        self.of_a_table = self.of_a_table.max(most);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_as_parallel_and_as_finely_cut_as_asked() -> Result<()> {
    const TABLES: [&str; 4] = ["public.a", "public.b", "public.c", "public.d"];
    let stage = Stage::new("parallel").await?;
    stage.migrate()?;
    // Threads for all that a sleep at a crash point may hold.
    let threads = [("TOKIO_WORKER_THREADS", "16")];
    let mut capture = stage.start_with(Role::Capture, &threads)?;
    // The first table alone has enough chunks to wait for the second, which begins when its own
    // session has a snapshot.
    capture.restart_slowed_at_first("capture::chunk_mid_copy", 24, Duration::from_secs(3))?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    for table in TABLES {
        create_wide(&source, table).await?;
    }
    let options = json!({
        "snapshot_num_rows_per_partition": 200, "snapshot_max_parallel_workers": 3,
        "snapshot_num_tables_in_parallel": 2,
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &TABLES, options)
        .await?;
    let mut most = Most::default();
    let deadline = Instant::now() + CONVERGE;
    for look in 1_u32.. {
        most.see(&copying(&source).await?);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if !look.is_multiple_of(10) {
            continue;
        }
        let now = mirror.get().await?;
        if now["status"] == "RUNNING" {
            break;
        }
        ensure!(Instant::now() < deadline, "{now}{}", stage.logs_tail());
    }
    let asked = Most {
        sessions: 6,
        of_a_table: 3,
        tables: 2,
    };
    assert_eq!(most, asked);
    let now = mirror.get().await?;
    for table in now["tables"].as_array().context("tables")? {
        let copy = &table["snapshot"];
        let chunks = (&copy["chunks_done"], &copy["chunks_total"]);
        assert_eq!(chunks, (&json!(15), &json!(15)), "{table}");
    }
    stage
        .assert_converges(&mirror, &TablePair::all(&TABLES))
        .await
}

/// The chunks that are under way and those that are loaded stay what they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_under_way_becomes_as_parallel_as_is_asked_meanwhile() -> Result<()> {
    let stage = Stage::new("more_parallel").await?;
    stage.migrate()?;
    // Threads for all that a sleep at a crash point may hold.
    let threads = [("TOKIO_WORKER_THREADS", "16")];
    let mut capture = stage.start_with(Role::Capture, &threads)?;
    capture.restart_slowed_at_first("capture::chunk_mid_copy", 12, Duration::from_secs(3))?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    create_wide(&source, "public.a").await?;
    let options = json!({
        "snapshot_num_rows_per_partition": 200, "snapshot_max_parallel_workers": 1,
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &["public.a"], options)
        .await?;
    let deadline = Instant::now() + CONVERGE;
    let mut before = Most::default();
    let mut after = Most::default();
    while after.sessions < 3 {
        let copied = copying(&source).await?;
        if before.sessions == 0 {
            before.see(&copied);
            if before.sessions > 0 {
                let more = json!({"snapshot_max_parallel_workers": 3});
                let path = "/v1/mirrors/mirror";
                let answer = api.request(Method::PATCH, path, Some(more)).await?;
                answer.expect(202)?;
            }
        } else {
            after.see(&copied);
        }
        let now = mirror.get().await?;
        ensure!(now["status"] != "RUNNING", "copied with {after:?} sessions");
        ensure!(Instant::now() < deadline, "{now}{}", stage.logs_tail());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((before.sessions, after.sessions), (1, 3));
    source
        .run("UPDATE a SET v = 'changed' WHERE id % 3 = 0; DELETE FROM a WHERE id % 7 = 0")
        .await?;
    mirror.wait_running().await?;
    let destination = stage.destination.connect().await?;
    let attempts = "SELECT max(attempt) FROM _bunny.tables";
    assert_eq!(destination.number(attempts).await?, 1, "it started over");
    let pairs = TablePair::all(&["public.a"]);
    stage.assert_converges(&mirror, &pairs).await?;
    stage.assert_topics_hold(&mirror, &pairs).await?;
    Ok(())
}
