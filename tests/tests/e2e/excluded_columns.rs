//! Excluded columns never reach Kafka, whatever becomes of them at the source.

use anyhow::Result;
use bunny_tests::api::Api;
use bunny_tests::content::TablePair;
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use bunny_tests::topic;
use serde_json::{Value, json};

/// What every excluded value holds.
const SECRET: &str = "top-secret";

async fn assert_hidden(stage: &Stage, mirror: &Mirror) -> Result<()> {
    let services = Services::shared()?;
    let slug = mirror.slug();
    topic::assert_nowhere(&services.brokers, &stage.name, &slug, SECRET).await
}

async fn create_mirror(stage: &Stage, api: &Api) -> Result<Mirror> {
    let excluding = |table: &str| json!({"source_table": table, "destination_table": table, "exclude_columns": ["secret"]});
    let tables = json!([
        excluding("public.users"),
        excluding("public.open"),
        {"source_table": "public.parts", "destination_table": "public.parts"},
    ]);
    stage
        .create_mapped_mirror(api, "mirror", tables, json!({}))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn stay_excluded_under_other_names() -> Result<()> {
    let stage = Stage::new("excluded").await?;
    let [mut capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("
            CREATE TABLE users (id int PRIMARY KEY, gone text, name text, secret text, big text);
            ALTER TABLE users DROP gone, ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE open (id int PRIMARY KEY, a text, secret text);
            CREATE TABLE parts (a int, half int GENERATED ALWAYS AS (a / 2) STORED, c int, v text, PRIMARY KEY (half, c));
            ALTER TABLE parts REPLICA IDENTITY FULL;
            INSERT INTO users SELECT g, 'name', 'top-secret', repeat('x', 5000) FROM generate_series(1, 20) g;
            INSERT INTO open SELECT g, 'a', 'top-secret' FROM generate_series(1, 20) g;
            INSERT INTO parts (a, c, v) SELECT g * 2, 7, 'v' || g FROM generate_series(1, 20) g;")
        .await?;
    // The renames come after the consistent snapshot's place in the log is taken, and before
    // the rows are copied: what is known of the columns has to outlive the process.
    capture.restart_to_crash("capture::sync_slot_created", 1)?;
    let mirror = create_mirror(&stage, &api).await?;
    capture
        .wait_crash_point("capture::sync_slot_created", CONVERGE)
        .await?;
    source
        .run("ALTER TABLE users RENAME secret TO plain; UPDATE users SET plain = 'top-secret 1' WHERE id < 3;")
        .await?;
    capture.restart()?;
    mirror.wait_running().await?;
    let users = |excluded: &[&str]| [TablePair::same("public.users").without(excluded)];

    // Streaming: renamed once more, dropped, and added again under the excluded name, which it
    // then loses.
    source
        .run("ALTER TABLE users RENAME plain TO bare; UPDATE users SET bare = 'top-secret 2', name = 'new' WHERE id < 5;
              BEGIN; ALTER TABLE users DROP bare; ALTER TABLE users ADD secret text; UPDATE users SET secret = 'top-secret 3'; COMMIT;
              ALTER TABLE users RENAME secret TO naked; INSERT INTO users VALUES (30, 'n', 'big', 'top-secret 4');")
        .await?;
    stage.assert_converges(&mirror, &users(&["naked"])).await?;

    // A part of the key does not name a row.
    source
        .run("UPDATE parts SET v = 'w' WHERE a = 8; DELETE FROM parts WHERE a = 10; UPDATE parts SET a = 100 WHERE a = 12; INSERT INTO parts VALUES (200, DEFAULT, 7, 'new');")
        .await?;
    let parts = [TablePair::same("public.parts")];
    stage.assert_converges(&mirror, &parts).await?;

    // While no capture runs; another column takes the place of one.
    capture.kill9();
    source
        .run("ALTER TABLE users RENAME naked TO nude; UPDATE users SET nude = 'top-secret 5';
              ALTER TABLE users ADD extra text; INSERT INTO users VALUES (31, 'n', 'big', 'top-secret 6', 'extra');
              ALTER TABLE open RENAME secret TO known; ALTER TABLE open DROP a, ADD x text;
              INSERT INTO open VALUES (30, 'top-secret 7', 'x'); ALTER TABLE open DROP x;")
        .await?;
    capture.restart()?;
    stage.assert_converges(&mirror, &users(&["nude"])).await?;
    // Which of its columns was the excluded one, the catalog does not tell any more.
    mirror
        .wait_until("open ERRORED", CONVERGE, |mirror, _| {
            let tables = mirror["tables"].as_array().into_iter().flatten();
            let mut open = tables.filter(|table| table["source_table"] == "public.open");
            open.any(|table| {
                let says = |text: &Value| {
                    text.as_str()
                        .is_some_and(|text| text.contains("leaves open"))
                };
                table["status"] == "ERRORED" && says(&table["error_message"])
            })
        })
        .await?;
    source.run("UPDATE open SET known = 'top-secret 8'").await?;
    stage.assert_converges(&mirror, &parts).await?;
    assert_hidden(&stage, &mirror).await?;
    let destination = stage.destination.connect().await?;
    let hidden = "SELECT count(*) FROM information_schema.columns
        WHERE table_schema = 'public' AND column_name IN ('secret', 'plain', 'bare', 'naked', 'nude', 'known')";
    assert_eq!(destination.number(hidden).await?, 0);
    Ok(())
}

/// Names go to other columns while chunks are read: of a table that is being copied, and of one
/// whose turn comes later in the same snapshot.
const RENAME_UNDER_THE_COPY: &str = "
    DO $$ BEGIN
        WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (SELECT %') LOOP
            PERFORM pg_sleep(0.001), pg_stat_clear_snapshot();
        END LOOP;
    END $$;
    ALTER TABLE notes RENAME note TO old_note; ALTER TABLE notes RENAME secret TO note;
    ALTER TABLE notes RENAME a TO c; ALTER TABLE notes RENAME b TO a; ALTER TABLE notes RENAME c TO b;
    ALTER TABLE later RENAME note TO old_note; ALTER TABLE later RENAME secret TO note;";

#[tokio::test(flavor = "multi_thread")]
async fn stay_excluded_when_names_change_under_a_copy() -> Result<()> {
    let stage = Stage::new("names").await?;
    let [_capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("
            CREATE TABLE notes (id int PRIMARY KEY, note text, secret text, a text, b text);
            CREATE TABLE later (gone int, id int, note text, secret text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
            ALTER TABLE later DROP gone;
            CREATE TABLE later_1 PARTITION OF later FOR VALUES FROM (0) TO (500);
            CREATE TABLE later_2 PARTITION OF later FOR VALUES FROM (500) TO (2000);
            INSERT INTO notes SELECT g, 'note', 'top-secret', 'a' || g, 'b' || g FROM generate_series(1, 8000) g;
            INSERT INTO later SELECT g, 'note', 'top-secret' FROM generate_series(1, 1000) g;
            ANALYZE;")
        .await?;
    let excluding = |table: &str| json!({"source_table": table, "destination_table": table, "exclude_columns": ["secret"]});
    let one_by_one = json!({
        "snapshot_num_rows_per_partition": 50, "snapshot_max_parallel_workers": 1, "snapshot_num_tables_in_parallel": 1,
    });
    let tables = json!([excluding("public.notes"), excluding("public.later")]);
    let mirror = stage
        .create_mapped_mirror(&api, "mirror", tables, one_by_one)
        .await?;
    source.run(RENAME_UNDER_THE_COPY).await?;
    mirror.wait_running().await?;
    assert_hidden(&stage, &mirror).await?;
    let tables =
        ["public.notes", "public.later"].map(|name| TablePair::same(name).without(&["note"]));
    stage.assert_converges(&mirror, &tables).await?;
    stage.assert_topics_hold(&mirror, &tables).await?;
    // Both were found out, or the renames came too late to show anything.
    let said = stage
        .catalog_text("SELECT string_agg(message, E'\n') FROM bunny.logs")
        .await?;
    for table in ["public.notes", "public.later_1"] {
        let begins_anew =
            format!("column note of {table} was renamed or dropped since the snapshot");
        assert!(said.contains(&begins_anew), "{said}");
    }
    Ok(())
}
