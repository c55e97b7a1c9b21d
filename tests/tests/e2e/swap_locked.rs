//! Somebody reads what is beside a table, as a dump of the destination does: nobody waits for
//! them but what is beside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::deletion::wait_gone;
use crate::lifecycle::wait_status;
use crate::swap::assert_nothing_beside;

const AT_SOURCE: &str = "
CREATE TABLE kept (id int PRIMARY KEY, v text);
CREATE TABLE late (id int PRIMARY KEY, v text);
INSERT INTO kept SELECT g, 'v' || g FROM generate_series(1, 300) g;
INSERT INTO late SELECT g, 'v' || g FROM generate_series(1, 300) g;";

const SPOIL: &str = "
SET session_replication_role = replica;
UPDATE late SET v = 'wrong' WHERE id % 5 = 0;";

const BOTH: [&str; 2] = ["public.kept", "public.late"];
const MIRROR: &str = "/v1/mirrors/mirror";
const FILLING: &str = "apply::chunk_after_commit";
const TAKEN_OUT: &str = "apply::swap_taken_out";
const CRASH_LIMIT: Duration = Duration::from_secs(60);

fn mappings(tables: &[&str]) -> Value {
    let mapping = |table: &&str| json!({"source_table": table, "destination_table": table});
    tables.iter().map(mapping).collect()
}

/// Both tables mirrored, one process per role.
struct Setting {
    // They end before the stage takes their databases away.
    apply: Bunny,
    _others: [Bunny; 2],
    mirror: Mirror,
    source: Session,
    destination: Session,
    api: Api,
    stage: Stage,
}

impl Setting {
    async fn new(test: &str) -> Result<Setting> {
        let stage = Stage::new(test).await?;
        let [capture, apply, api_process] = stage.start_all()?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        let source = stage.source.connect().await?;
        source.run(AT_SOURCE).await?;
        let setting = Setting {
            apply,
            _others: [capture, api_process],
            mirror: stage.mirror(&api, "mirror"),
            source,
            destination: stage.destination.connect().await?,
            api,
            stage,
        };
        setting.create().await?;
        Ok(setting)
    }

    async fn create(&self) -> Result<()> {
        let options = json!({"resync_strategy": "swap", "on_existing_rows": "upsert",
            "snapshot_num_rows_per_partition": 100});
        self.stage
            .create_mirror(&self.api, "mirror", &BOTH, options)
            .await?;
        self.mirror.wait_running().await
    }

    /// Apply dies on the way of a resync of `late`, and somebody reads the table beside it from
    /// then on. Gives the command and the reader.
    async fn die_and_read(&mut self, at: &str) -> Result<(Value, Session)> {
        self.apply.restart_to_crash(at, 1)?;
        let path = format!("{MIRROR}/resync/public.late");
        let accepted = self.api.post(&path, json!({})).await?.expect(202)?;
        self.apply.wait_crash_point(at, CRASH_LIMIT).await?;
        let beside = self.beside().await?;
        let reader = self.stage.destination.connect().await?;
        reader
            .run(&format!("BEGIN; LOCK TABLE {beside} IN ACCESS SHARE MODE"))
            .await?;
        Ok((accepted, reader))
    }

    async fn beside(&self) -> Result<String> {
        let beside = "SELECT oid::regclass::text FROM pg_class
            WHERE relkind = 'r' AND starts_with(relname, '_bunny_resync_')";
        self.destination.text(beside).await
    }

    async fn wait_message(&self, words: &str) -> Result<()> {
        let says = |mirror: &Value, _: &Value| mirror["messages"].to_string().contains(words);
        self.mirror.wait_until(words, CONVERGE, says).await
    }

    /// `late` follows its source, whatever is asked for of it.
    async fn goes_on(&self) -> Result<()> {
        let change = "UPDATE late SET v = 'x' WHERE id = 5";
        self.source.run(change).await?;
        let five = "SELECT v FROM late WHERE id = 5";
        let deadline = Instant::now() + CONVERGE;
        while self.destination.text(five).await? != "x" {
            ensure!(Instant::now() < deadline, "the table does not go on");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until a command has ended, and ended well.
    async fn is_done(&self, accepted: &Value) -> Result<Value> {
        let id = accepted["command_id"].as_str().context("no command")?;
        let deadline = Instant::now() + CONVERGE;
        loop {
            let path = format!("{MIRROR}/commands/{id}");
            let command = self.api.get(&path).await?.expect(200)?;
            if command["state"] == "done" {
                return Ok(command);
            }
            ensure!(
                command["state"] != "failed" && Instant::now() < deadline,
                "{command}\nmirror: {}",
                self.api.get(MIRROR).await?.body
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn converges(&self, tables: &[&str]) -> Result<()> {
        self.stage
            .assert_converges(&self.mirror, &TablePair::all(tables))
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_what_a_resync_left_holds_nobody_up() -> Result<()> {
    let mut setting = Setting::new("swap_left").await?;
    let left = "SELECT count(*) FROM _bunny.tables WHERE state = 'REMOVING'";

    // The table leaves the mirror with its resync half done; the other one goes on, and says
    // what it could not drop.
    let (_, reader) = setting.die_and_read(FILLING).await?;
    let tables = format!("{MIRROR}/tables");
    let fewer = json!({"table_mappings": mappings(&BOTH[..1])});
    setting.api.put(&tables, fewer).await?.expect(202)?;
    setting.apply.restart()?;
    setting.source.run("UPDATE kept SET v = 'w'").await?;
    setting.converges(&BOTH[..1]).await?;
    setting.wait_message("could not be dropped").await?;
    assert_eq!(setting.destination.number(left).await?, 1);

    // It comes back, and is to be resynced with the same table in the way.
    let all = json!({"table_mappings": mappings(&BOTH)});
    setting.api.put(&tables, all).await?.expect(202)?;
    wait_status(&setting.mirror, "public.late", "LIVE").await?;
    let path = format!("{MIRROR}/resync/public.late");
    let again = setting.api.post(&path, json!({})).await?.expect(202)?;
    setting.goes_on().await?;
    reader.run("COMMIT").await?;
    setting.is_done(&again).await?;
    setting.converges(&BOTH).await?;
    assert_nothing_beside(&setting.stage).await?;
    let ledgers = "SELECT count(*) FROM _bunny.tables WHERE mirror_id NOT IN (SELECT mirror_id FROM _bunny.owner)";
    assert_eq!(setting.destination.number(ledgers).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_deleted_as_far_as_a_reader_lets_it() -> Result<()> {
    let mut setting = Setting::new("swap_deleted").await?;
    let known = "SELECT count(*) FROM _bunny.tables";
    for by_force in [false, true] {
        let (_, reader) = setting.die_and_read(FILLING).await?;
        let accepted = setting.api.delete(MIRROR).await?.expect(202)?;
        setting.apply.restart()?;
        let says_why = |mirror: &Value, _: &Value| {
            let message = mirror["failures"]["apply"]["message"]
                .as_str()
                .unwrap_or_default();
            mirror["status"] == "TERMINATING"
                && message.contains("cannot be cleaned yet (dropping public._bunny_resync_")
        };
        let mirror = &setting.mirror;
        mirror
            .wait_until("told what is in the way", CONVERGE, says_why)
            .await?;
        if by_force {
            let path = format!("{MIRROR}?force=true");
            setting.api.delete(&path).await?.expect(202)?;
            wait_gone(&setting.api).await?;
            let id = accepted["command_id"].as_str().context("no command")?;
            let path = format!("{MIRROR}/commands/{id}");
            let command = setting.api.get(&path).await?.expect(200)?;
            let outcome = command["outcome"].as_str().context("no outcome")?;
            let by_hand = outcome.find("DO $$").context("no statements")?;
            reader.run("COMMIT").await?;
            setting.destination.run(&outcome[by_hand..]).await?;
        } else {
            reader.run("COMMIT").await?;
            wait_gone(&setting.api).await?;
        }
        assert_nothing_beside(&setting.stage).await?;
        assert_eq!(setting.destination.number(known).await?, 0);
        if !by_force {
            setting.create().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_waits_for_a_reader_before_anyone_waits_for_it() -> Result<()> {
    let mut setting = Setting::new("swap_read").await?;
    setting.destination.run(SPOIL).await?;
    let (resync, reader) = setting.die_and_read(TAKEN_OUT).await?;
    let beside = setting.beside().await?;
    setting.apply.restart()?;
    let waiting = format!(
        "SELECT coalesce(string_agg(DISTINCT concat(held.relation::regclass, ' ', held.mode), ', '), 'nobody')
         FROM pg_locks waiting LEFT JOIN pg_locks held ON held.pid = waiting.pid AND held.granted
           AND held.relation = 'public.late'::regclass
         WHERE NOT waiting.granted AND waiting.relation = '{beside}'::regclass
           AND waiting.mode = 'AccessExclusiveLock'"
    );
    let deadline = Instant::now() + CONVERGE;
    let held = loop {
        let held = setting.destination.text(&waiting).await?;
        if held != "nobody" {
            break held;
        }
        ensure!(Instant::now() < deadline, "nobody waits for the reader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(held, " ", "what the exchange holds of the table meanwhile");
    // The table follows its source until it is let exchange. Nobody waits for longer than the 5 s
    // that are allowed, and a second for the look.
    let longest = format!(
        "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - a.query_start) * 1000), 0)::int8
         FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE NOT l.granted AND l.relation IN ('{beside}'::regclass, 'public.late'::regclass)"
    );
    let says = "rows could not be exchanged";
    let told = setting.wait_message(says);
    let mut told = std::pin::pin!(told);
    let looking = setting.stage.destination.connect().await?;
    let mut most = 0;
    loop {
        tokio::select! {
            told = &mut told => { told?; break }
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                most = most.max(looking.number(&longest).await?);
            }
        }
    }
    assert!(most <= 6000, "somebody waited for {most} ms");
    setting.goes_on().await?;
    reader.run("COMMIT").await?;
    setting.is_done(&resync).await?;
    setting.converges(&BOTH).await?;
    assert_nothing_beside(&setting.stage).await
}
