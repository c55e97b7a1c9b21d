//! What happens to mirrored tables at the source besides changes of rows: each table says
//! what became of it, the others go on.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::crashes::CAPTURE_WATCH;
use crate::lifecycle::wait_status;
use crate::scene::Scene;

fn table<'m>(mirror: &'m Value, name: &str) -> &'m Value {
    let source = format!("public.{name}");
    mirror["tables"]
        .as_array()
        .and_then(|tables| tables.iter().find(|table| table["source_table"] == source))
        .unwrap_or(&Value::Null)
}

/// Waits until a table is ERRORED for a reason that says `cause`.
async fn wait_errored(mirror: &Mirror, name: &str, cause: &str) -> Result<()> {
    let what = format!("{name} ERRORED: {cause}");
    mirror
        .wait_until(&what, CONVERGE, |mirror, _| {
            let table = table(mirror, name);
            let says = |text: &Value| text.as_str().is_some_and(|text| text.contains(cause));
            table["status"] == "ERRORED" && says(&table["error_message"])
        })
        .await
}

async fn wait_message(mirror: &Mirror, part: &str) -> Result<()> {
    mirror
        .wait_until(part, CONVERGE, |mirror, _| {
            mirror["messages"].to_string().contains(part)
        })
        .await
}

const CREATE: &str = "
    CREATE TABLE sound (id int PRIMARY KEY, v text);
    CREATE TABLE log (v text);
    CREATE TABLE unkeyed (id int PRIMARY KEY, v text);
    CREATE TABLE renamed (id int PRIMARY KEY, v text);
    CREATE TABLE recreated (id int PRIMARY KEY, v text);
    CREATE TABLE put_back (id int PRIMARY KEY, v text);
    CREATE TABLE swapped_a (id int PRIMARY KEY, v text);
    CREATE TABLE swapped_b (id int PRIMARY KEY, v text);
    CREATE TABLE dropped (id int PRIMARY KEY, v text);
    CREATE TABLE unlogged (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE unlogged_1 PARTITION OF unlogged FOR VALUES FROM (0) TO (10);
    CREATE TABLE far (id int, v text) PARTITION BY RANGE (id);
    CREATE TABLE far_1 PARTITION OF far FOR VALUES FROM (0) TO (10);
    INSERT INTO sound SELECT g, 'v' FROM generate_series(1, 50) g;
    INSERT INTO log SELECT 'v' FROM generate_series(1, 50) g;
    INSERT INTO unkeyed SELECT g, 'v' FROM generate_series(1, 50) g;
    INSERT INTO renamed SELECT g, 'v' FROM generate_series(1, 50) g;";
const TABLES: [&str; 11] = [
    "public.sound",
    "public.log",
    "public.unkeyed",
    "public.renamed",
    "public.recreated",
    "public.put_back",
    "public.swapped_a",
    "public.swapped_b",
    "public.dropped",
    "public.unlogged",
    "public.far",
];
const STAY: [&str; 2] = ["public.sound", "public.log"];

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_hands_stop_by_themselves() -> Result<()> {
    let mut scene = Scene::new("hands").await?;
    scene.source.run(CREATE).await?;
    let mirror = scene.running_mirror(&TABLES, json!({})).await?;
    let stay = TablePair::all(&STAY);
    scene.assert_holds(&mirror, &stay).await?;

    // An identity lost: the source refuses updates only until the table is moved.
    scene
        .source
        .run("ALTER TABLE unkeyed DROP CONSTRAINT unkeyed_pkey")
        .await?;
    wait_errored(&mirror, "unkeyed", "lost its replica identity").await?;
    scene.source.run("UPDATE unkeyed SET v = 'w'").await?;
    mirror
        .wait_until("unkeyed insert-only", CONVERGE, |mirror, _| {
            table(mirror, "unkeyed")["mode"] == "insert_only"
        })
        .await?;

    // Renamed and back between two looks: its changes meanwhile are missed all the same.
    scene
        .source
        .run("ALTER TABLE renamed RENAME TO other; INSERT INTO other VALUES (100, 'missed'); ALTER TABLE other RENAME TO renamed; INSERT INTO renamed VALUES (101, 'after');")
        .await?;
    wait_errored(&mirror, "renamed", "renamed to public.other").await?;
    scene
        .source
        .run("BEGIN; ALTER TABLE swapped_a RENAME TO aside; ALTER TABLE swapped_b RENAME TO swapped_a; ALTER TABLE aside RENAME TO swapped_b; COMMIT; INSERT INTO swapped_a VALUES (1, 'of b');")
        .await?;
    wait_errored(&mirror, "swapped_a", "sync it again").await?;
    wait_errored(&mirror, "swapped_b", "sync it again").await?;
    let destination = scene.stage.destination.connect().await?;
    let wrong = "SELECT (SELECT count(*) FROM swapped_a) + (SELECT count(*) FROM swapped_b)";
    assert_eq!(destination.number(wrong).await?, 0);

    scene
        .source
        .run("DROP TABLE recreated; CREATE TABLE recreated (id int PRIMARY KEY, v text); INSERT INTO recreated VALUES (1, 'new');")
        .await?;
    wait_errored(&mirror, "recreated", "another one than before").await?;
    let publication = scene
        .source
        .text("SELECT pubname FROM pg_publication WHERE pubupdate")
        .await?;
    scene
        .source
        .run(&format!("ALTER PUBLICATION \"{publication}\" DROP TABLE put_back; INSERT INTO put_back VALUES (2, 'missed'); ALTER PUBLICATION \"{publication}\" ADD TABLE put_back;"))
        .await?;
    wait_errored(&mirror, "put_back", "put back").await?;

    scene
        .source
        .run("ALTER TABLE unlogged_1 SET UNLOGGED; INSERT INTO unlogged VALUES (1, 'missed');")
        .await?;
    wait_errored(&mirror, "unlogged", "public.unlogged_1").await?;
    scene
        .source
        .run("CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
              CREATE FOREIGN TABLE far_2 PARTITION OF far FOR VALUES FROM (10) TO (20) SERVER nowhere;")
        .await?;
    wait_errored(&mirror, "far", "public.far_2").await?;

    // Rows changed that nobody captures are counted.
    scene.source.run("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log); INSERT INTO log VALUES ('gone again'); DELETE FROM log WHERE v = 'gone again';").await?;
    wait_message(&mirror, "public.log is insert-only").await?;
    scene.source.run("INSERT INTO sound SELECT g, 'w' FROM generate_series(100, 150) g; UPDATE sound SET v = 'x' WHERE id < 20;").await?;
    scene
        .stage
        .assert_converges(&mirror, &TablePair::all(&["public.sound"]))
        .await?;

    // And while nobody looks.
    scene.bunny.sigterm(Duration::from_secs(10)).await?;
    scene
        .source
        .run("DROP TABLE dropped; DELETE FROM sound WHERE id < 5;")
        .await?;
    scene.bunny = scene.stage.start(Role::Up)?;
    scene.api = scene.stage.api().await?;
    wait_errored(&mirror, "dropped", "is gone").await?;
    wait_message(&mirror, "public.dropped is gone").await?;
    scene
        .stage
        .assert_converges(&mirror, &TablePair::all(&["public.sound"]))
        .await?;
    assert_eq!(mirror.get().await?["status"], "RUNNING");
    Ok(())
}

/// A TRUNCATE is one message for all its tables. Each of those that miss it says so, beside tables
/// that do not and without any.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_of_several_tables_that_miss_it() -> Result<()> {
    let scene = Scene::new("missed_truncate").await?;
    let names = ["sound", "renamed", "keyed", "one", "two"];
    for name in names {
        scene
            .source
            .run(&format!("CREATE TABLE {name} (id int PRIMARY KEY, secret int NOT NULL DEFAULT 0); INSERT INTO {name} SELECT generate_series(1, 20);"))
            .await?;
    }
    let mapped = names.map(|name| {
        let table = format!("public.{name}");
        json!({"source_table": table, "destination_table": table, "exclude_columns": ["secret"]})
    });
    let options = json!({"untracked_changes": "warn"});
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, "mirror", json!(mapped), options)
        .await?;
    mirror.wait_running().await?;
    let pair = |table: &str| TablePair::same(table).without(&["secret"]);

    // Everything is as before when someone looks.
    scene
        .source
        .run(
            "ALTER TABLE renamed RENAME TO other; ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (id, secret);
             TRUNCATE sound, other, keyed; INSERT INTO sound VALUES (7);
             ALTER TABLE other RENAME TO renamed; ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (id);
             BEGIN; ALTER TABLE one RENAME TO other_one; ALTER TABLE two RENAME TO other_two; TRUNCATE other_one, other_two;
             ALTER TABLE other_one RENAME TO one; ALTER TABLE other_two RENAME TO two; COMMIT;",
        )
        .await?;
    wait_errored(&mirror, "renamed", "renamed to public.other").await?;
    wait_errored(&mirror, "keyed", "excluded column secret").await?;
    wait_errored(&mirror, "one", "renamed to public.other_one").await?;
    wait_errored(&mirror, "two", "renamed to public.other_two").await?;
    scene
        .stage
        .assert_converges(&mirror, &[pair("public.sound")])
        .await?;

    let resync = scene.api.post("/v1/mirrors/mirror/resync", json!({}));
    resync.await?.expect(202)?;
    let tables = names.map(|name| format!("public.{name}"));
    for table in &tables {
        wait_status(&mirror, table, "LIVE").await?;
    }
    let pairs = tables.map(|table| pair(&table));
    scene.stage.assert_converges(&mirror, &pairs).await
}

/// The table is in the other publication, the log does not say so: the next run does.
#[tokio::test(flavor = "multi_thread")]
async fn capture_dies_after_it_moved_a_table() -> Result<()> {
    let stage = Stage::new("moved").await?;
    let [mut capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE sound (id int PRIMARY KEY); CREATE TABLE unkeyed (id int PRIMARY KEY); INSERT INTO unkeyed VALUES (1);")
        .await?;
    let tables = ["public.sound", "public.unkeyed"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    let [(point, pass)] = CAPTURE_WATCH;
    capture.restart_to_crash(point, pass)?;
    source
        .run("ALTER TABLE unkeyed DROP CONSTRAINT unkeyed_pkey")
        .await?;
    capture.wait_crash_point(point, CONVERGE).await?;
    source
        .run("DELETE FROM unkeyed; INSERT INTO sound VALUES (1);")
        .await?;
    capture.restart()?;
    wait_errored(&mirror, "unkeyed", "lost its replica identity").await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&["public.sound"]))
        .await
}
