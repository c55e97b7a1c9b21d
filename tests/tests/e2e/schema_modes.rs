//! What `additive` and `manual` do with changes of table definitions, what they leave, and what they say.

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::stage::Mirror;
use serde_json::{Value, json};

use crate::enum_labels::{stopped, synced_again};
use crate::scene::Scene;
use crate::schema_changes::{CRASH_LIMIT, columns};
use crate::untracked;

/// Warnings of the mirror's log that hold every one of `words`.
async fn said(scene: &Scene, mirror: &Mirror, words: &[&str]) -> Result<usize> {
    let log = scene
        .api
        .get(&format!("/v1/mirrors/{}/logs?limit=500", mirror.name))
        .await?
        .expect(200)?;
    let lines = log["logs"].as_array().cloned().unwrap_or_default();
    let holds = |line: &&Value| {
        line["message"]
            .as_str()
            .is_some_and(|message| words.iter().all(|word| message.contains(word)))
    };
    Ok(lines.iter().filter(holds).count())
}

fn status(mirror: &Value, table: &str) -> Value {
    let tables = mirror["tables"].as_array();
    let mut tables = tables.into_iter().flatten();
    tables
        .find(|found| found["source_table"] == table)
        .map_or(Value::Null, |found| found["status"].clone())
}

/// `additive` and `manual` on two tables of one source: what they do, what they refuse,
/// and that it is said once.
#[tokio::test(flavor = "multi_thread")]
async fn additive_and_manual_do_no_more_than_they_say() -> Result<()> {
    let scene = Scene::new("schema_modes").await?;
    scene
        .source
        .run("CREATE TABLE grown (id int PRIMARY KEY, a text, b int, c varchar(3), d text NOT NULL, secret text);
              CREATE TABLE kept (id int PRIMARY KEY, a text, b int);
              CREATE TABLE odd (id int PRIMARY KEY, a text);
              CREATE TABLE again (id int PRIMARY KEY, a text);
              CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE taste AS ENUM ('sweet', 'sour');
              CREATE TABLE moods (id int PRIMARY KEY, m mood); INSERT INTO moods SELECT g, 'sad' FROM generate_series(1, 20) g;
              CREATE TABLE tastes (id int PRIMARY KEY, t taste[]); INSERT INTO tastes SELECT g, '{sweet}' FROM generate_series(1, 20) g;
              INSERT INTO grown SELECT g, 'a', g, 'c', 'd', 'hidden' FROM generate_series(1, 50) g;
              INSERT INTO kept SELECT g, 'a', g FROM generate_series(1, 50) g;
              INSERT INTO odd SELECT g, 'a' FROM generate_series(1, 50) g; INSERT INTO again SELECT * FROM odd;")
        .await?;
    let additive = scene
        .stage
        .create_mapped_mirror(
            &scene.api,
            "additive",
            json!([
                {"source_table": "public.grown", "destination_table": "other.wide", "exclude_columns": ["secret"]},
                {"source_table": "public.odd", "destination_table": "public.odd"},
                {"source_table": "public.again", "destination_table": "public.again"},
                {"source_table": "public.moods", "destination_table": "public.moods"},
            ]),
            json!({}),
        )
        .await?;
    let manual = scene
        .stage
        .create_mirror(
            &scene.api,
            "manual",
            &["public.kept", "public.tastes"],
            json!({"schema_changes": "manual"}),
        )
        .await?;
    additive.wait_running().await?;
    manual.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;

    // What additive follows.
    scene
        .source
        .run("ALTER TABLE grown ADD n int DEFAULT 4; ALTER TABLE grown ALTER c TYPE varchar(9);
              UPDATE grown SET c = 'longer' WHERE id < 5; INSERT INTO grown (id, d, secret) VALUES (60, 'd', 'hidden');")
        .await?;
    let wide = [TablePair::renamed("public.grown", "other.wide").without(&["secret"])];
    scene.stage.assert_converges(&additive, &wide).await?;
    // What it does not: the data flows on, in the places that are there.
    scene
        .source
        .run("ALTER TABLE grown DROP COLUMN d, ADD e text; ALTER TABLE grown RENAME a TO z; ALTER TABLE grown ALTER b TYPE bigint;
              UPDATE grown SET z = 'renamed', e = 'e' WHERE id < 9; INSERT INTO grown (id, z, b) VALUES (61, 'new', 5);")
        .await?;
    destination
        .run("CREATE VIEW seen AS SELECT id, a AS z, b, c, n FROM other.wide")
        .await?;
    let seen = [TablePair::renamed("public.grown", "public.seen").without(&["secret", "e"])];
    scene.stage.assert_converges(&additive, &seen).await?;
    // (A column may not be added to the table under the view's feet.)
    let there = columns(&destination, "other.wide").await?;
    assert_eq!(
        there,
        [
            "a text",
            "b integer",
            "c character varying(9)",
            "d text",
            "e text",
            "id integer not null key",
            "n integer default 4"
        ]
    );
    scene
        .source
        .run("UPDATE grown SET z = 'once more'; ALTER TABLE grown ALTER n SET DEFAULT 5; UPDATE grown SET z = 'and again';")
        .await?;
    scene.stage.assert_converges(&additive, &seen).await?;
    // Each once, with what to do.
    for words in [
        ["\"d\" was dropped", "Drop it there when nobody needs it"],
        [
            "\"a\" was renamed to \"z\"",
            "rename it there and sync the table again if you want the new name",
        ],
        [
            "\"b\" changed at the source from integer to bigint",
            "stays integer, and takes values as long as they fit: change its type there, then sync the table again",
        ],
    ] {
        assert_eq!(said(&scene, &additive, &words).await?, 1, "{words:?}");
    }

    // The watch has seen the rewrite too: it takes nothing away that works, and says what to do.
    additive
        .wait_until("said", CRASH_LIMIT, |mirror, _| {
            let messages = mirror["messages"].to_string();
            messages.contains("public.grown was rewritten by ALTER TABLE")
                && messages.contains("changed column b,")
                && messages.contains("then resync it")
        })
        .await?;
    assert_eq!(status(&additive.get().await?, "public.grown"), "LIVE");

    // What older rows hold in a new column is not in the stream: it comes by a sync. Of what
    // leaves no mark, the table stops, with the cure; no other does.
    scene
        .source
        .run("ALTER TABLE odd ADD r float8 DEFAULT random(); UPDATE odd SET a = 'b' WHERE id = 1;
              ALTER TABLE again DROP COLUMN a; ALTER TABLE again ADD a text; UPDATE again SET a = 'new' WHERE id = 1;")
        .await?;
    additive
        .wait_until("ERRORED", CRASH_LIMIT, |mirror, _| {
            let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
            tables.iter().any(|found| {
                found["source_table"] == "public.again"
                    && found["status"] == "ERRORED"
                    && found["error_message"]
                        .as_str()
                        .is_some_and(|error| error.contains("sync the table again"))
            })
        })
        .await?;
    untracked::wait_synced(&scene.stage, &additive, "odd", 1).await?;
    let odd = [TablePair::same("public.odd")];
    scene.stage.assert_converges(&additive, &odd).await?;
    assert_eq!(status(&additive.get().await?, "public.again"), "ERRORED");
    scene.source.run("UPDATE grown SET z = 'goes on'").await?;
    let lsn = scene.source.current_lsn().await?;
    additive.wait_for_lsn(lsn).await?;
    let current = destination
        .number("SELECT count(*) FROM seen WHERE z = 'goes on'")
        .await?;
    assert_eq!(current, 52);
    // The log tells more than the mirror follows: what its reader needs to be as the source.
    let grown = TablePair::same("public.grown").without(&["secret"]);
    let pairs = [
        grown,
        TablePair::same("public.odd"),
        TablePair::same("public.again"),
    ];
    let told = scene.stage.assert_topics_hold(&additive, &pairs).await?;
    assert!(told.versions[&pairs[0].source] >= 3, "{:?}", told.versions);

    // Manual alters nothing, says so once, and lets the rest flow.
    scene
        .source
        .run("ALTER TABLE kept ADD n int DEFAULT 1; UPDATE kept SET a = 'x' WHERE id < 9; ALTER TABLE kept RENAME b TO z;
              ALTER TABLE kept ADD y text; INSERT INTO kept (id, a, z) VALUES (60, 'new', 6); DELETE FROM kept WHERE id = 50;")
        .await?;
    destination
        .run("CREATE VIEW kept_seen AS SELECT id, a, b AS z FROM kept")
        .await?;
    let kept = [TablePair::renamed("public.kept", "public.kept_seen").without(&["n", "y"])];
    scene.stage.assert_converges(&manual, &kept).await?;
    assert_eq!(
        columns(&destination, "kept").await?,
        ["a text", "b integer", "id integer not null key"]
    );
    // A column put there by hand is not filled halfway.
    destination.run("ALTER TABLE kept ADD n int").await?;
    scene
        .source
        .run("UPDATE kept SET a = 'y', n = 2 WHERE id > 9; ALTER TABLE kept ALTER a TYPE varchar, ALTER z TYPE bigint; UPDATE kept SET a = 'z', n = 3 WHERE id > 20;")
        .await?;
    scene.stage.assert_converges(&manual, &kept).await?;
    assert_eq!(
        destination
            .number("SELECT count(*) FROM kept WHERE n IS NOT NULL")
            .await?,
        0
    );
    for words in [
        ["new column \"n\"", "manual"],
        [
            "\"b\" was renamed to \"z\"",
            "rename it there and sync the table again if you want the new name",
        ],
        [
            "\"z\" changed at the source from integer to bigint; column \"b\"",
            "stays integer, and takes values as long as they fit: change its type there, then sync the table again",
        ],
    ] {
        assert_eq!(said(&scene, &manual, &words).await?, 1, "{words:?}");
    }
    let kept = [TablePair::same("public.kept")];
    scene.stage.assert_topics_hold(&manual, &kept).await?;
    labels_are_added_or_said(&scene, &additive, &manual).await
}

/// A new label: `additive` adds it before the first row that has it, in its place; `manual` says what to run, and
/// stops where it was not run.
async fn labels_are_added_or_said(scene: &Scene, additive: &Mirror, manual: &Mirror) -> Result<()> {
    let destination = scene.stage.destination.connect().await?;
    let labels = |name: &str| {
        format!(
            "SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = '{name}'::regtype"
        )
    };
    scene
        .source
        .run("ALTER TYPE mood ADD VALUE 'so so' BEFORE 'glad'")
        .await?;
    scene
        .source
        .run("ALTER TYPE taste ADD VALUE 'bitter' AFTER 'sweet'")
        .await?;
    scene
        .source
        .run(
            "UPDATE moods SET m = 'so so' WHERE id < 9; INSERT INTO moods VALUES (30, 'so so');
              UPDATE tastes SET t = '{sour,NULL}' WHERE id < 5;",
        )
        .await?;
    let moods = [TablePair::same("public.moods")];
    scene.stage.assert_converges(additive, &moods).await?;
    assert_eq!(destination.text(&labels("mood")).await?, "sad,so so,glad");
    let tastes = [TablePair::same("public.tastes")];
    scene.stage.assert_converges(manual, &tastes).await?;
    assert_eq!(destination.text(&labels("taste")).await?, "sweet,sour");
    let add = "ALTER TYPE \"public\".\"taste\" ADD VALUE IF NOT EXISTS 'bitter' AFTER 'sweet'";
    let words = ["new label 'bitter'", add, "makes the table ERRORED"];
    assert_eq!(said(scene, manual, &words).await?, 1);
    scene
        .source
        .run("UPDATE tastes SET t = '{bitter}' WHERE id = 7")
        .await?;
    stopped(manual, "public.tastes", "bitter").await?;
    destination.run(add).await?;
    synced_again(scene, manual, "public.tastes").await?;
    scene.stage.assert_converges(manual, &tastes).await?;
    assert_eq!(said(scene, manual, &words).await?, 1);
    Ok(())
}
