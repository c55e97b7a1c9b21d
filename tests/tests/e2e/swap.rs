//! Resync by swap: readers look all the time, processes die at each step, and what hangs on
//! the tables stays as it is.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::database::Url;
use bunny_tests::load::run_beside;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::crashes::{Scene, crash_in_turn, scene};
use crate::lifecycle::wait_status;

/// In the order of a swap.
pub const APPLY_SWAP: [(&str, u32); 3] = [
    ("apply::swap_taken_out", 1),
    ("apply::swap_before_commit", 1),
    ("apply::swap_done", 1),
];

/// Everything that can hang on a table.
const DECORATE: &str = "
ALTER TABLE accounts ADD COLUMN remark text DEFAULT 'none';
UPDATE accounts SET remark = 'kept' WHERE id = 1;
CREATE INDEX accounts_by_owner ON accounts (lower(owner)) WHERE balance > 0;
ALTER TABLE accounts ADD CONSTRAINT has_owner CHECK (owner <> '');
CREATE SEQUENCE accounts_own OWNED BY accounts.id;
CREATE STATISTICS accounts_stat ON owner, balance FROM accounts;
CREATE VIEW rich AS SELECT * FROM accounts WHERE balance > 10;
CREATE VIEW richer AS SELECT * FROM rich WHERE balance > 100;
CREATE MATERIALIZED VIEW owners AS SELECT owner FROM accounts;
CREATE TABLE watchers (account bigint REFERENCES accounts, doc int REFERENCES documents);
CREATE TABLE banks (id int PRIMARY KEY);
INSERT INTO watchers SELECT 1, 1 FROM generate_series(1, 3);
INSERT INTO banks VALUES (1);
ALTER TABLE accounts ADD COLUMN bank int DEFAULT 1 REFERENCES banks;
CREATE FUNCTION noticed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER notice AFTER UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION noticed();
CREATE FUNCTION of_account(accounts) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT ($1).owner; END;
CREATE POLICY everyone ON accounts FOR SELECT USING (true);
COMMENT ON TABLE accounts IS 'of people';
COMMENT ON COLUMN accounts.balance IS 'in cents';
GRANT SELECT ON accounts, rich TO PUBLIC;
";

/// All of it as one text.
const DECORATION: &str = "
SELECT string_agg(what, E'\n' ORDER BY what) FROM (
  SELECT format('relation %s %s %s %s', oid, relname, relkind, relacl) FROM pg_class WHERE relnamespace = 'public'::regnamespace
  UNION ALL SELECT format('constraint %s %s', oid, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
  UNION ALL SELECT format('column %s %s %s', attrelid::regclass, attname, attacl) FROM pg_attribute
    WHERE attrelid::regclass::text IN ('accounts', 'documents', 'journal', 'measurements') AND attnum > 0
  UNION ALL SELECT format('comment %s %s %s', objoid, objsubid, description) FROM pg_description WHERE classoid = 'pg_class'::regclass
    AND objoid = 'accounts'::regclass
  UNION ALL SELECT format('trigger %s %s', oid, tgenabled) FROM pg_trigger
  UNION ALL SELECT format('policy %s %s', oid, polname) FROM pg_policy
  UNION ALL SELECT format('owned %s %s', objid, refobjid) FROM pg_depend WHERE deptype = 'a' AND refobjid = 'accounts'::regclass
) t (what)";

/// What a swap that is refused leaves as it was.
const OF_MEASUREMENTS: &str =
    "SELECT concat_ws(' ', relfilenode, (SELECT count(*) FROM measurements WHERE sensor = 3))
    FROM pg_class WHERE oid = 'measurements'::regclass";

/// What a wrong destination is: rows missing, changed, of nobody, and twice.
const SPOIL: &str = "
SET session_replication_role = replica;
DELETE FROM accounts WHERE id BETWEEN 100 AND 200;
UPDATE accounts SET owner = 'wrong' WHERE id BETWEEN 300 AND 320;
INSERT INTO accounts (id, owner) SELECT -g, 'nobody' FROM generate_series(1, 50) g;
UPDATE documents SET title = 'wrong' WHERE id % 10 = 5;
DELETE FROM journal WHERE writer = 0 AND n % 7 = 0;
INSERT INTO journal SELECT * FROM journal WHERE writer = 0 AND n % 5 = 0;
DELETE FROM measurements WHERE sensor = 3;
";

/// Reads the tables without a pause: never an error, never nothing, never less than before.
pub fn watch_rows(destination: &Url, tables: &'static [&'static str]) -> JoinHandle<Result<()>> {
    let destination = destination.clone();
    tokio::spawn(async move {
        let session = destination.connect().await?;
        let mut before = 0;
        loop {
            for table in tables {
                let rows = session
                    .number(&format!("SELECT count(*) FROM {table}"))
                    .await?;
                ensure!(rows > 0, "{table} is empty");
            }
            // Journal entries of a writer only ever come.
            let now = session
                .number("SELECT coalesce(max(n), 0) FROM journal WHERE writer = 1")
                .await?;
            ensure!(
                now >= before,
                "the journal went from {before} back to {now}"
            );
            before = now;
        }
    })
}

/// Reads the rows of [`raise_rows`] without a pause: they never fall.
fn watch_rising(destination: &Url) -> JoinHandle<Result<()>> {
    let destination = destination.clone();
    tokio::spawn(async move {
        let session = destination.connect().await?;
        let mut rising = (0, 0);
        loop {
            let now = (
                session
                    .number("SELECT coalesce(max(balance), 0)::int8 FROM accounts WHERE id = 7")
                    .await?,
                session
                    .number("SELECT coalesce(max(revision), 0)::int8 FROM documents WHERE id = 9")
                    .await?,
            );
            ensure!(
                now.0 >= rising.0 && now.1 >= rising.1,
                "rows went from {rising:?} back to {now:?}"
            );
            rising = now;
        }
    })
}

/// Changes the rows that [`watch_rising`] looks at. The load writes no accounts of these ids,
/// and documents of ids that end with the number of a writer.
fn raise_rows(source: &Url) -> JoinHandle<Result<()>> {
    let source = source.clone();
    tokio::spawn(async move {
        let session = source.connect().await?;
        loop {
            let sql = "UPDATE accounts SET balance = balance + 1 WHERE id = 7;
                 UPDATE documents SET revision = revision + 1 WHERE id = 9;";
            run_beside(&session, sql).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// Fails with what the reader met, if anything.
pub async fn assert_undisturbed(watching: &mut JoinHandle<Result<()>>) -> Result<()> {
    if watching.is_finished() {
        watching.await??;
    }
    Ok(())
}

impl Scene {
    async fn assert_nothing_beside(&self) -> Result<()> {
        assert_nothing_beside(&self.stage).await
    }
}

/// What was loaded beside tables goes away by itself.
pub async fn assert_nothing_beside(stage: &Stage) -> Result<()> {
    let destination = stage.destination.connect().await?;
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE '%bunny_resync%'";
    let deadline = Instant::now() + CONVERGE;
    while destination.number(left).await? > 0 {
        ensure!(Instant::now() < deadline, "a table is left beside another");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_exchanged_under_readers() -> Result<()> {
    let mut scene = scene("swap", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    for change in [DECORATE, SPOIL] {
        // All or nothing, while apply writes: the two may lock each other out.
        let deadline = Instant::now() + CONVERGE;
        while let Err(error) = destination.run(change).await {
            ensure!(Instant::now() < deadline, "{error:#}");
        }
    }
    let decoration = destination.text(DECORATION).await?;
    let watched = &["accounts", "documents", "measurements", "richer"];
    let mut watching = watch_rows(&scene.stage.destination, watched);
    let mut raising = raise_rows(&scene.stage.source);
    let mut rising = watch_rising(&scene.stage.destination);
    let old_view = scene.stage.destination.connect().await?;
    old_view
        .run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await?;
    let wrong = "SELECT count(*) FROM accounts WHERE owner IN ('wrong', 'nobody')";
    assert_eq!(old_view.number(wrong).await?, 71);

    // One table, with apply dying at every step.
    let swap = json!({"strategy": "swap"});
    scene
        .apply
        .restart_to_crash(APPLY_SWAP[0].0, APPLY_SWAP[0].1)?;
    let accounts = "/v1/mirrors/mirror/resync/public.accounts";
    let command = scene.api.post(accounts, swap.clone()).await?.expect(202)?;
    let same = scene.api.post(accounts, swap.clone()).await?.expect(202)?;
    assert_eq!(command["command_id"], same["command_id"]);
    let other = scene
        .api
        .post(accounts, json!({"strategy": "truncate"}))
        .await?;
    assert_eq!(other.status, 409, "{}", other.body);
    crash_in_turn(
        &mut scene.apply,
        &scene.mirror,
        &APPLY_SWAP,
        true,
        &["SWAP"],
    )
    .await?;
    scene.apply.restart()?;
    let ended = scene.ended(&command).await?;
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(destination.number(wrong).await?, 0);
    assert_eq!(old_view.number(wrong).await?, 71, "a snapshot stays one");
    old_view.run("COMMIT").await?;
    let remark = "SELECT remark FROM accounts WHERE id = 1";
    assert_eq!(destination.text(remark).await?, "kept");
    scene.assert_nothing_beside().await?;
    assert_undisturbed(&mut watching).await?;

    // Someone holds a row that is to go: the table follows its source until they let it.
    let locking = scene.stage.destination.connect().await?;
    locking
        .run("BEGIN; SELECT FROM documents WHERE id = 5 FOR UPDATE")
        .await?;
    let documents = "/v1/mirrors/mirror/resync/public.documents";
    let command = scene.api.post(documents, swap.clone()).await?.expect(202)?;
    let deadline = Instant::now() + CONVERGE;
    while !scene.apply.log_of_this_run()?.contains("exchanged later") {
        ensure!(Instant::now() < deadline, "the lock was not met");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_status(&scene.mirror, "public.documents", "LIVE").await?;
    locking.run("COMMIT").await?;
    assert_eq!(scene.ended(&command).await?["state"], "done");

    // What the table refuses leaves it as it was.
    destination
        .run("ALTER TABLE measurements ADD CONSTRAINT refused CHECK (sensor <> 3)")
        .await?;
    let measurements = "/v1/mirrors/mirror/resync/public.measurements";
    let before = destination.text(OF_MEASUREMENTS).await?;
    let command = scene
        .api
        .post(measurements, swap.clone())
        .await?
        .expect(202)?;
    let refused = scene.ended(&command).await?;
    assert_eq!(refused["state"], "failed", "{refused}");
    let why = refused["error"].as_str().unwrap_or_default();
    assert!(why.contains("refused"), "{refused}");
    wait_status(&scene.mirror, "public.measurements", "LIVE").await?;
    scene.assert_nothing_beside().await?;
    assert_eq!(destination.text(OF_MEASUREMENTS).await?, before);
    destination
        .run("ALTER TABLE measurements DROP CONSTRAINT refused")
        .await?;

    // The whole mirror, with both processes dying on the way.
    scene
        .capture
        .restart_to_crash("capture::chunk_delivered", 3)?;
    scene
        .apply
        .restart_to_crash("apply::chunk_after_commit", 2)?;
    let whole = "/v1/mirrors/mirror/resync";
    let command = scene.api.post(whole, swap).await?.expect(202)?;
    for (process, point) in [
        (&mut scene.capture, "capture::chunk_delivered"),
        (&mut scene.apply, "apply::chunk_after_commit"),
    ] {
        process.wait_crash_point(point, CONVERGE).await?;
        process.restart()?;
    }
    let ended = scene.ended(&command).await?;
    assert_eq!(ended["state"], "done", "{ended}");
    scene.mirror.wait_running().await?;
    scene.assert_nothing_beside().await?;
    let ledgers = "SELECT count(*) FROM _bunny.tables WHERE mirror_id NOT IN (SELECT mirror_id FROM _bunny.owner)";
    assert_eq!(destination.number(ledgers).await?, 0);

    assert_undisturbed(&mut watching).await?;
    assert_undisturbed(&mut raising).await?;
    assert_undisturbed(&mut rising).await?;
    watching.abort();
    rising.abort();
    raising.abort();
    let _ = raising.await;
    // Rows of a table that is not mirrored, which refer to those that were exchanged.
    let watchers = "SELECT count(*) FROM watchers WHERE account = 1 AND doc = 1";
    assert_eq!(destination.number(watchers).await?, 3);
    assert_eq!(destination.text(DECORATION).await?, decoration);
    scene.settle().await
}
