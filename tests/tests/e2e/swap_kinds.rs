//! Resync by swap of every kind of table, while the source changes one of them, and what is
//! left when a swap under way is not wanted any more.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

const AT_SOURCE: &str = "
CREATE TABLE late (id int PRIMARY KEY, v text);
CREATE TABLE parts (id int PRIMARY KEY, v text);
CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int,
    twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE codes (id int PRIMARY KEY, code int UNIQUE, label text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE);
CREATE TABLE bag (a int, b text);
CREATE TABLE secret (id int PRIMARY KEY, v text, hidden text);
INSERT INTO late SELECT g, 'v' || g FROM generate_series(1, 300) g;
INSERT INTO parts SELECT g, 'v' || g FROM generate_series(1, 300) g;
INSERT INTO numbered (n) SELECT g FROM generate_series(1, 300) g;
INSERT INTO codes SELECT g, g, 'c' || g FROM generate_series(1, 300) g;
INSERT INTO parent SELECT g, 'v' FROM generate_series(1, 300) g;
INSERT INTO child SELECT g, g FROM generate_series(1, 300) g;
INSERT INTO bag SELECT g % 7, nullif('b' || g % 3, 'b0') FROM generate_series(1, 300) g;
INSERT INTO secret SELECT g, 'v' || g, 'of the source' FROM generate_series(1, 300) g;";

/// There before the mirror: a partitioned table, one with a column of its own, and rows
/// that the source has not.
const AT_DESTINATION: &str = "
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (100);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (MAXVALUE);
CREATE TABLE secret (id int PRIMARY KEY, v text, hidden text NOT NULL DEFAULT 'filled in');
INSERT INTO parts VALUES (-7, 'of the destination'), (700, 'of the destination');";

const SPOIL: &str = "
SET session_replication_role = replica;
UPDATE late SET v = 'wrong' WHERE id % 5 = 0;
UPDATE parts SET v = 'wrong' WHERE id % 9 = 0;
DELETE FROM parts WHERE id % 10 = 0;
UPDATE numbered SET n = -1 WHERE id % 6 = 0;
DELETE FROM numbered WHERE id % 7 = 0;
UPDATE codes SET code = code + 1000;
UPDATE codes SET code = 301 - id, label = 'c' || 301 - id;
UPDATE parent SET v = 'wrong' WHERE id % 2 = 0;
DELETE FROM child WHERE id % 3 = 0;
DELETE FROM bag WHERE a = 3 AND b IS NULL;
INSERT INTO bag SELECT * FROM bag WHERE a = 4;
UPDATE bag SET b = '' WHERE a = 5 AND b IS NULL;
UPDATE secret SET hidden = 'kept' WHERE id < 100;
UPDATE secret SET v = 'wrong' WHERE id = 200;";

/// While tables are being filled: a new column, and changes after its coming.
const MEANWHILE: [&str; 3] = [
    "UPDATE late SET v = v || '+' WHERE id <= 50; INSERT INTO late VALUES (1000, 'before');",
    "ALTER TABLE late ADD COLUMN extra text DEFAULT 'constant';
     UPDATE late SET extra = 'set' WHERE id % 2 = 0; INSERT INTO late VALUES (1001, 'after', NULL);",
    "BEGIN; UPDATE codes SET code = -id; UPDATE codes SET code = id + 1 WHERE id < 300; COMMIT;
     TRUNCATE bag; INSERT INTO bag VALUES (1, NULL), (1, NULL), (NULL, '');
     DELETE FROM parent WHERE id > 250; INSERT INTO numbered (n) VALUES (5); DELETE FROM parts WHERE id < 20;",
];

const TABLES: [&str; 8] = [
    "public.late",
    "public.parts",
    "public.numbered",
    "public.codes",
    "public.parent",
    "public.child",
    "public.bag",
    "public.secret",
];
const FILLING: &str = "apply::chunk_after_commit";
const CRASH_LIMIT: Duration = Duration::from_secs(60);

fn mappings(tables: &[&str]) -> Value {
    let mapping = |table: &&str| match *table {
        "public.secret" => json!({"source_table": table, "destination_table": table,
            "exclude_columns": ["hidden"]}),
        table => json!({"source_table": table, "destination_table": table}),
    };
    tables.iter().map(mapping).collect()
}

/// Waits until a command has ended; gives it.
async fn ended(api: &Api, accepted: &Value) -> Result<Value> {
    let id = accepted["command_id"].as_str().unwrap_or_default();
    let deadline = Instant::now() + CONVERGE;
    loop {
        let path = format!("/v1/mirrors/mirror/commands/{id}");
        let command = api.get(&path).await?.expect(200)?;
        if command["state"] == "done" || command["state"] == "failed" {
            return Ok(command);
        }
        ensure!(
            Instant::now() < deadline,
            "still open: {command}\nmirror: {}",
            api.get("/v1/mirrors/mirror").await?.body
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const BESIDE: &str = "SELECT count(*) FROM pg_class WHERE relname LIKE '\\_bunny\\_resync%'";

async fn assert_nothing_beside(destination: &Session) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    while destination.number(BESIDE).await? > 0 {
        ensure!(Instant::now() < deadline, "a table is left beside another");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Apply dies with a table half filled beside `table`; gives what was accepted.
async fn die_filling(
    api: &Api,
    apply: &mut Bunny,
    destination: &Session,
    table: &str,
) -> Result<Value> {
    apply.restart_to_crash(FILLING, 1)?;
    let path = format!("/v1/mirrors/mirror/resync{table}");
    let accepted = api.post(&path, json!({})).await?.expect(202)?;
    apply.wait_crash_point(FILLING, CRASH_LIMIT).await?;
    ensure!(destination.number(BESIDE).await? > 0, "nothing is beside");
    Ok(accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_kind_of_table_are_exchanged() -> Result<()> {
    let stage = Stage::new("swap_kinds").await?;
    let [_capture, mut apply, _api_process] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    source.run(AT_SOURCE).await?;
    destination.run(AT_DESTINATION).await?;
    let options = json!({"resync_strategy": "swap", "on_existing_rows": "upsert",
        "snapshot_num_rows_per_partition": 100});
    let mirror = stage
        .create_mapped_mirror(&api, "mirror", mappings(&TABLES), options)
        .await?;
    mirror.wait_running().await?;
    let own = "SELECT count(*) FROM parts WHERE v = 'of the destination'";
    assert_eq!(destination.number(own).await?, 2);
    destination.run(SPOIL).await?;

    // As the mirror's options say, by swap. Somebody reads all the time in one transaction,
    // but for the table that is truncated.
    let reader = stage.destination.connect().await?;
    reader
        .run("BEGIN; SELECT count(*) FROM parts, codes, numbered, parent WHERE false")
        .await?;
    let whole = die_filling(&api, &mut apply, &destination, "").await?;
    for change in MEANWHILE {
        source.run(change).await?;
    }
    apply.restart()?;
    let command = ended(&api, &whole).await?;
    assert_eq!(command["state"], "done", "{command}{}", stage.logs_tail());
    reader.run("COMMIT").await?;
    let mut pairs = TablePair::all(&TABLES);
    pairs[7] = TablePair::same("public.secret").without(&["hidden"]);
    stage.assert_converges(&mirror, &pairs).await?;
    assert_eq!(destination.number(own).await?, 0);
    let hidden = "SELECT string_agg(hidden || ' ' || n, ', ' ORDER BY hidden)
        FROM (SELECT hidden, count(*) AS n FROM secret GROUP BY 1) t";
    assert_eq!(destination.text(hidden).await?, "filled in 201, kept 99");
    assert_nothing_beside(&destination).await?;

    // A column of before the resync that no row has brought: said, and nothing has begun.
    source
        .run("ALTER TABLE parent ADD COLUMN quiet text")
        .await?;
    let path = "/v1/mirrors/mirror/resync/public.parent";
    let accepted = api.post(path, json!({})).await?.expect(202)?;
    let refused = ended(&api, &accepted).await?;
    let why = refused["error"].as_str().unwrap_or_default();
    assert!(
        why.contains("quiet") && why.contains("truncate"),
        "{refused}"
    );
    source
        .run("UPDATE parent SET quiet = 'said' WHERE id = 1")
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;
    let accepted = api.post(path, json!({})).await?.expect(202)?;
    assert_eq!(ended(&api, &accepted).await?["state"], "done");

    // A table leaves the mirror, then the mirror goes, each with a swap half done.
    let first = die_filling(&api, &mut apply, &destination, "/public.late").await?;
    let fewer = json!({"table_mappings": mappings(&TABLES[1..])});
    let put = api.put("/v1/mirrors/mirror/tables", fewer).await?;
    put.expect(202)?;
    apply.restart()?;
    ended(&api, &first).await?;
    assert_nothing_beside(&destination).await?;
    stage.assert_converges(&mirror, &pairs[1..]).await?;

    die_filling(&api, &mut apply, &destination, "/public.parts").await?;
    api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    apply.restart()?;
    assert_nothing_beside(&destination).await?;
    let deadline = Instant::now() + CONVERGE;
    while api.get("/v1/mirrors/mirror").await?.status != 404 {
        ensure!(Instant::now() < deadline, "the mirror is not gone");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let known = "SELECT count(*) FROM _bunny.tables";
    assert_eq!(destination.number(known).await?, 0);
    Ok(())
}
