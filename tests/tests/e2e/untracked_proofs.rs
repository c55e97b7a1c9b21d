//! Rows that change at the source without a word in the stream, where what looks like a
//! proof that they did not is none.

use anyhow::{Context, Result};
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Mirror};
use serde_json::json;

use crate::scene::Scene;
use crate::untracked::{asked, wait_synced};

const CREATE: &str = "
    CREATE TABLE parts (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE late (LIKE parts INCLUDING ALL);
    CREATE TABLE middle (LIKE parts) PARTITION BY RANGE (at);
    CREATE TABLE lone (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE lone_1 PARTITION OF lone FOR VALUES FROM (0) TO (1000);
    INSERT INTO parts SELECT g, g, 'v' FROM generate_series(1, 99) g;
    INSERT INTO lone SELECT g, 'v' FROM generate_series(1, 99) g;";
const TABLES: [&str; 2] = ["public.parts", "public.lone"];

/// What the tests below do besides, for docs/fidelity.md.
pub const OTHERS: [&str; 3] = [
    "ATTACH of a partition that others still write to while it waits for them",
    "labels of an enum that change hands (ALTER TYPE … RENAME VALUE), at once or long after, in columns of it, of its arrays, domains and composites",
    "labels that change hands while chunks are copied: the copy begins anew",
];

/// Each leaves rows behind, or away, that the stream does not tell of.
pub const UNPROVED: [(&str, &str, &str); 5] = [
    (
        "rows of a subtransaction, from before its transaction attached the partition",
        "parts",
        "BEGIN; CREATE TABLE sub (LIKE parts); SAVEPOINT s; INSERT INTO sub SELECT g, g, 'sub' FROM generate_series(200, 220) g;
         RELEASE s; ALTER TABLE parts ATTACH PARTITION sub FOR VALUES FROM (200) TO (300); COMMIT;",
    ),
    (
        "a partition that comes and goes",
        "parts",
        "BEGIN; CREATE TABLE brief PARTITION OF parts FOR VALUES FROM (300) TO (400);
         INSERT INTO parts SELECT g, g, 'brief' FROM generate_series(300, 320) g; COMMIT; DROP TABLE brief;",
    ),
    (
        "a new partition truncated by itself",
        "parts",
        "BEGIN; CREATE TABLE emptied PARTITION OF parts FOR VALUES FROM (400) TO (500);
         INSERT INTO parts SELECT g, g, 'emptied' FROM generate_series(400, 420) g; COMMIT; TRUNCATE emptied;",
    ),
    (
        "a sub-tree attached with what it got as a root of its own",
        "parts",
        "BEGIN; CREATE TABLE middle_1 PARTITION OF middle FOR VALUES FROM (500) TO (600); COMMIT;
         INSERT INTO middle SELECT g, g, 'middle' FROM generate_series(500, 520) g;
         ALTER TABLE parts ATTACH PARTITION middle FOR VALUES FROM (500) TO (600);",
    ),
    (
        "the only partition truncated by itself after its root",
        "lone",
        "BEGIN; TRUNCATE lone; COMMIT; BEGIN; INSERT INTO lone SELECT g, 'again' FROM generate_series(1, 50) g; COMMIT;
         TRUNCATE lone_1;",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_proves_nothing_is_not_taken_for_proof() -> Result<()> {
    let scene = Scene::new("unproved").await?;
    scene.source.run(CREATE).await?;
    let mirror = scene.running_mirror(&TABLES, json!({})).await?;
    attach_behind_a_writer(&scene).await?;
    wait_synced(&scene.stage, &mirror, "parts", 1).await?;
    let pairs = TablePair::all(&TABLES);
    scene.stage.assert_converges(&mirror, &pairs).await?;
    for (name, table, sql) in UNPROVED {
        let before = asked(&scene.stage, table, "true").await?;
        scene.source.run(sql).await?;
        let synced = wait_synced(&scene.stage, &mirror, table, before + 1).await;
        synced.map_err(|error| error.context(name))?;
        scene.stage.assert_converges(&mirror, &pairs).await?;
        assert_eq!(
            asked(&scene.stage, table, "true").await?,
            before + 1,
            "{name}"
        );
    }
    Ok(())
}

/// The numbers of transactions are not in the order of their commits: who attaches has one
/// before the writer that it waits for.
async fn attach_behind_a_writer(scene: &Scene) -> Result<()> {
    let writer = scene.stage.source.connect().await?;
    writer.run("BEGIN; SELECT count(*) FROM late").await?;
    let owner = scene.stage.source.connect().await?;
    let attaching = tokio::spawn(async move {
        owner
            .run("ALTER TABLE parts ATTACH PARTITION late FOR VALUES FROM (100) TO (200)")
            .await
    });
    scene
        .source
        .run(
            "DO $$ BEGIN
                WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'ALTER TABLE parts ATTACH%'
                                  AND wait_event_type = 'Lock' AND backend_xid IS NOT NULL) LOOP
                    PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
                END LOOP;
            END $$",
        )
        .await?;
    writer
        .run("INSERT INTO late SELECT g, g, 'late' FROM generate_series(100, 120) g; COMMIT")
        .await?;
    attaching.await?
}

const ENUMS: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad', 'odd');
    CREATE DOMAIN temper AS mood;
    CREATE TYPE pair AS (first mood, second int);
    CREATE TABLE moods (id int PRIMARY KEY, m mood);
    CREATE TABLE deep (id int PRIMARY KEY, many mood[], t temper);
    CREATE TABLE deeper (id int PRIMARY KEY, b pair);
    INSERT INTO moods SELECT g, (ARRAY['sad', 'glad', 'odd'])[1 + g % 3]::mood FROM generate_series(1, 90) g;
    INSERT INTO deep SELECT id, ARRAY[m, 'sad'], m FROM moods;
    INSERT INTO deeper SELECT id, (m, id)::pair FROM moods;";
const WITH_ENUMS: [&str; 3] = ["public.moods", "public.deep", "public.deeper"];

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_change_hands_are_noticed() -> Result<()> {
    let scene = Scene::new("label_hands").await?;
    scene.source.run(ENUMS).await?;
    let options = json!({"schema_changes": "all"});
    let mirror = scene.running_mirror(&WITH_ENUMS, options).await?;
    let changes = [
        "BEGIN; ALTER TYPE mood RENAME VALUE 'sad' TO 'other'; ALTER TYPE mood RENAME VALUE 'glad' TO 'sad';
         ALTER TYPE mood RENAME VALUE 'other' TO 'glad'; COMMIT",
        "BEGIN; ALTER TYPE mood RENAME VALUE 'odd' TO 'even'; ALTER TYPE mood ADD VALUE 'odd'; COMMIT",
    ];
    for (times, change) in (1..).zip(changes) {
        scene.source.run(change).await?;
        scene
            .source
            .run("INSERT INTO moods VALUES (1000, 'odd') ON CONFLICT (id) DO UPDATE SET m = 'odd'")
            .await?;
        for table in ["moods", "deep", "deeper"] {
            wait_synced(&scene.stage, &mirror, table, times).await?;
        }
        let pairs = TablePair::all(&WITH_ENUMS);
        scene.stage.assert_converges(&mirror, &pairs).await?;
    }
    hand_on_in_two_steps(&scene, &mirror).await?;
    for table in ["moods", "deep", "deeper"] {
        wait_synced(&scene.stage, &mirror, table, 3).await?;
    }
    let pairs = TablePair::all(&WITH_ENUMS);
    scene.stage.assert_converges(&mirror, &pairs).await?;
    // A label that is only renamed comes with its first row, as before.
    scene
        .source
        .run("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
        .await?;
    for table in ["moods", "deep", "deeper"] {
        scene
            .source
            .run(&format!("ALTER TABLE {table} ADD r float DEFAULT random()"))
            .await?;
        wait_synced(&scene.stage, &mirror, table, 4).await?;
        assert_eq!(asked(&scene.stage, table, "true").await?, 4);
    }
    let said = scene
        .stage
        .catalog_text("SELECT count(*)::text FROM bunny.logs WHERE message LIKE '%changed hands%'")
        .await?;
    assert_eq!(said, "9");
    Ok(())
}

/// A label is renamed, that is seen, and later another value gets the text it had. A stranger in
/// the publication tells which look has seen it.
async fn hand_on_in_two_steps(scene: &Scene, mirror: &Mirror) -> Result<()> {
    let shown = mirror.get().await?;
    let publication = shown["publication_name"].as_str();
    let publication = publication.context("a publication")?;
    scene
        .source
        .run("ALTER TYPE mood RENAME VALUE 'even' TO 'former'")
        .await?;
    scene
        .source
        .run(&format!(
            "CREATE TABLE stranger (id int); ALTER PUBLICATION \"{publication}\" ADD TABLE stranger"
        ))
        .await?;
    mirror
        .wait_until("the stranger is seen", CONVERGE, |mirror, _| {
            mirror["messages"].to_string().contains("public.stranger")
        })
        .await?;
    scene
        .source
        .run("DROP TABLE stranger; ALTER TYPE mood ADD VALUE 'even'")
        .await?;
    scene
        .source
        .run("INSERT INTO moods VALUES (1001, 'even')")
        .await
}

/// Labels change hands while chunks are read: some hold the former text, some the new one.
const SWAP_UNDER_THE_COPY: &str = "
    DO $$ DECLARE chunks text[] := '{}'; BEGIN
        WHILE cardinality(chunks) < 3 LOOP
            chunks := chunks || ARRAY(SELECT query FROM pg_stat_activity WHERE datname = current_database()
                                      AND query LIKE 'COPY (SELECT %' AND query <> ALL (chunks));
            PERFORM pg_sleep(0.001), pg_stat_clear_snapshot();
        END LOOP;
    END $$;
    BEGIN; ALTER TYPE mood RENAME VALUE 'sad' TO 'other'; ALTER TYPE mood RENAME VALUE 'glad' TO 'sad';
    ALTER TYPE mood RENAME VALUE 'other' TO 'glad'; COMMIT;";

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_change_hands_under_a_copy_begin_it_anew() -> Result<()> {
    let scene = Scene::new("label_copy").await?;
    scene
        .source
        .run(
            "CREATE TYPE mood AS ENUM ('sad', 'glad');
              CREATE TABLE moods (id int PRIMARY KEY, m mood);
              INSERT INTO moods SELECT g, 'sad' FROM generate_series(1, 8000) g; ANALYZE;",
        )
        .await?;
    let one_by_one = json!({
        "snapshot_num_rows_per_partition": 50, "snapshot_max_parallel_workers": 1, "snapshot_num_tables_in_parallel": 1,
    });
    let mirror = scene
        .stage
        .create_mirror(&scene.api, "mirror", &["public.moods"], one_by_one)
        .await?;
    scene.source.run(SWAP_UNDER_THE_COPY).await?;
    mirror.wait_running().await?;
    scene
        .stage
        .assert_converges(&mirror, &TablePair::all(&["public.moods"]))
        .await?;
    let said = scene
        .stage
        .catalog_text("SELECT string_agg(message, E'\\n') FROM bunny.logs")
        .await?;
    assert!(
        said.contains("label sad of type public.mood was renamed since the snapshot"),
        "{said}"
    );
    Ok(())
}
