//! Rows that change at the source without a word in the stream, where what looks like a
//! proof that they did not is none.

use anyhow::Result;
use bunny_tests::content::TablePair;
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
