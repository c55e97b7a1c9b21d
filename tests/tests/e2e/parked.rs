//! Tables that somebody keeps locked are parked, the others go on, and they come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::lifecycle::wait_status;

/// While a table is parked.
pub const APPLY_PARKED: [(&str, u32); 1] = [("apply::table_parked", 1)];

/// Apply's patience with locks, which is a minute otherwise.
const PATIENCE: &str = "apply_lock_patience_seconds=return(1)";
const CRASH_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_is_parked_and_comes_back() -> Result<()> {
    let stage = Stage::new("parked").await?;
    stage.migrate()?;
    let _capture = stage.start(Role::Capture)?;
    let mut apply = stage.start_with(Role::Apply, &[("FAILPOINTS", PATIENCE)])?;
    let _api_process = stage.start(Role::Api)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 2000).await?;
    let load = Load::start(&stage.source, 2, 40);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;

    // Apply dies just when it has parked the table, and parks it again.
    let locking = stage.destination.connect().await?;
    locking
        .run("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        .await?;
    let crash = APPLY_PARKED[0].0;
    apply.restart_to_crash(&format!("{PATIENCE};{crash}"), 1)?;
    apply.wait_crash_point(crash, CRASH_LIMIT).await?;
    apply.restart()?;
    wait_status(&mirror, "public.accounts", "PARKED").await?;
    // A reader is enough to hold off a TRUNCATE.
    let reader = stage.destination.connect().await?;
    reader
        .run("BEGIN; SELECT count(*) FROM measurements")
        .await?;
    source.run("TRUNCATE measurements").await?;
    wait_status(&mirror, "public.measurements", "PARKED").await?;
    // The others go on.
    load.advance(60).await;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let seen = mirror.get().await?;
    assert_eq!(
        (&seen["status"], &seen["health"]),
        (&json!("RUNNING"), &json!("DEGRADED")),
        "{seen}"
    );
    let message = seen["error_message"].as_str().unwrap_or_default();
    assert!(message.contains("PARKED: pid "), "{message}");
    wait_status(&mirror, "public.documents", "LIVE").await?;

    locking.run("COMMIT").await?;
    wait_status(&mirror, "public.accounts", "LIVE").await?;
    reader.run("COMMIT").await?;
    wait_status(&mirror, "public.measurements", "LIVE").await?;
    assert!(load.stop().await > 50);
    let alone = |mirror: &serde_json::Value, _: &serde_json::Value| mirror["health"] == "OK";
    mirror.wait_until("OK", CONVERGE, alone).await?;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}

/// A stage with one process per role, apply with failpoints.
struct Setting {
    // They end before the stage takes their databases away.
    _processes: [Bunny; 3],
    source: Session,
    destination: Session,
    api: Api,
    stage: Stage,
}

impl Setting {
    async fn new(test: &str, failpoints: &str) -> Result<Setting> {
        let stage = Stage::new(test).await?;
        stage.migrate()?;
        let processes = [
            stage.start(Role::Capture)?,
            stage.start_with(Role::Apply, &[("FAILPOINTS", failpoints)])?,
            stage.start(Role::Api)?,
        ];
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        Ok(Setting {
            _processes: processes,
            source: stage.source.connect().await?,
            destination: stage.destination.connect().await?,
            api,
            stage,
        })
    }

    /// Each run of the mirror raises it.
    async fn epoch(&self) -> Result<i64> {
        let session = &self.destination;
        session.number("SELECT epoch FROM _bunny.owner").await
    }

    /// Lines of the mirror's log that hold all the words.
    async fn said(&self, words: &[&str]) -> Result<usize> {
        let path = "/v1/mirrors/mirror/logs?limit=500";
        let log = self.api.get(path).await?.expect(200)?;
        let lines = log["logs"].as_array().cloned().unwrap_or_default();
        let holds = |line: &&Value| words.iter().all(|word| line.to_string().contains(word));
        Ok(lines.iter().filter(holds).count())
    }

    async fn resync(&self, table: &str, strategy: &str) -> Result<()> {
        let path = format!("/v1/mirrors/mirror/resync/{table}");
        let accepted = self.api.post(&path, json!({"strategy": strategy})).await?;
        accepted.expect(202).map(drop)
    }

    /// A change of `public.other`, which nobody locks, arrives.
    async fn others_go_on(&self, mirror: &Mirror) -> Result<()> {
        self.source.run("UPDATE other SET v = v + 1").await?;
        let lsn = self.source.current_lsn().await?;
        // Whatever the status: it may say that a resync is under way.
        mirror
            .wait_until("other tables go on", CONVERGE, |_, metrics| {
                let applied = metrics["apply"]["applied_lsn"].as_str();
                let applied = applied.and_then(|text| text.parse::<Lsn>().ok());
                applied.is_some_and(|applied| applied >= lsn)
            })
            .await?;
        let other = [TablePair::same("public.other")];
        content::assert_same(&self.source, &self.destination, &other).await
    }
}

const TWO_TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY, v int);
    INSERT INTO t SELECT g, g FROM generate_series(1, 100) g;
    INSERT INTO other SELECT g, g FROM generate_series(1, 100) g;";
const NAMES: [&str; 2] = ["public.t", "public.other"];

async fn wait_message(mirror: &Mirror, words: &[&str]) -> Result<()> {
    let what = format!("a message with {words:?}");
    let holds = |message: &Value| words.iter().all(|word| message.to_string().contains(word));
    mirror
        .wait_until(&what, CONVERGE, |mirror, _| {
            let messages = mirror["messages"].as_array();
            messages.into_iter().flatten().any(holds)
        })
        .await
}

/// Nothing is tried again any more.
async fn wait_all_well(mirror: &Mirror) -> Result<()> {
    mirror
        .wait_until("all well", CONVERGE, |mirror, _| {
            !mirror["messages"].to_string().contains("tried again")
        })
        .await
}

/// The catch-up reader meets a lock while main, which it has asked to hold, is still busy.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_met_by_who_catches_up_does_not_end_main() -> Result<()> {
    // Main takes its time before every commit.
    let failpoints = "apply_lock_patience_seconds=return(6);apply::before_commit=sleep(1500)";
    let setting = Setting::new("asked", failpoints).await?;
    load::create_tables(&setting.source, 200).await?;
    setting
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, g FROM generate_series(1, 10) g")
        .await?;
    let tables = [&load::TABLES[..], &["public.t"][..]].concat();
    let mirror = setting
        .stage
        .create_mirror(&setting.api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    let load = Load::start(&setting.stage.source, 1, 40);
    let epoch = setting.epoch().await?;

    // The table's lock can be had, a row's cannot: it is let go on, and meets it each time.
    let locking = setting.stage.destination.connect().await?;
    locking
        .run("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE")
        .await?;
    setting.source.run("UPDATE t SET v = v + 1").await?;
    let given_up = Instant::now() + CONVERGE;
    while setting.said(&["public.t is PARKED"]).await? < 3 {
        load.advance(10).await;
        assert_eq!(setting.epoch().await?, epoch, "another run");
        ensure!(
            Instant::now() < given_up,
            "not parked again\n{}",
            setting.stage.logs_tail()
        );
    }
    mirror
        .wait_for_lsn(setting.source.current_lsn().await?)
        .await?;
    assert_eq!(setting.epoch().await?, epoch, "another run");

    locking.run("COMMIT").await?;
    wait_status(&mirror, "public.t", "LIVE").await?;
    load.stop().await;
    let pairs = TablePair::all(&tables);
    setting.stage.assert_converges(&mirror, &pairs).await
}

/// A reader is enough to hold off what is altered at the end of a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_holds_off_a_constraint_stops_its_table_only() -> Result<()> {
    let setting = Setting::new("held_off", PATIENCE).await?;
    setting.source.run(TWO_TABLES).await?;
    let options = json!({"schema_changes": "all"});
    let mirror = setting
        .stage
        .create_mirror(&setting.api, "mirror", &NAMES, options)
        .await?;
    mirror.wait_running().await?;
    let epoch = setting.epoch().await?;
    let reader = setting.stage.destination.connect().await?;
    reader.run("BEGIN; SELECT count(*) FROM t").await?;
    setting
        .source
        .run("ALTER TABLE t ALTER v SET NOT NULL; UPDATE t SET v = v + 1")
        .await?;
    wait_status(&mirror, "public.t", "PARKED").await?;
    setting.others_go_on(&mirror).await?;
    assert_eq!(setting.epoch().await?, epoch, "another run");

    reader.run("COMMIT").await?;
    wait_status(&mirror, "public.t", "LIVE").await?;
    let pairs = TablePair::all(&NAMES);
    setting.stage.assert_converges(&mirror, &pairs).await?;
    let not_null =
        "SELECT attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'v'";
    let query = format!("SELECT count(*) FROM ({not_null}) a WHERE attnotnull");
    assert_eq!(setting.destination.number(&query).await?, 1);
    Ok(())
}

/// What is loaded and exchanged beside main may wait for long; main goes on, and it is said.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_again_beside_main_is_said() -> Result<()> {
    let failpoints = format!("{PATIENCE};apply::sync_started=1*panic(on purpose)->off");
    let setting = Setting::new("tried_again", &failpoints).await?;
    setting.source.run(TWO_TABLES).await?;
    let mirror = setting
        .stage
        .create_mirror(&setting.api, "mirror", &NAMES, json!({}))
        .await?;
    mirror.wait_running().await?;
    let died = ["ended by itself", "on purpose", "error"];
    assert_eq!(setting.said(&died).await?, 1);

    let reader = setting.stage.destination.connect().await?;
    reader.run("BEGIN; SELECT count(*) FROM t").await?;
    setting.resync("public.t", "truncate").await?;
    wait_message(&mirror, &["tried again", "lock timeout"]).await?;
    setting.others_go_on(&mirror).await?;
    reader.run("COMMIT").await?;
    wait_status(&mirror, "public.t", "LIVE").await?;
    wait_all_well(&mirror).await?;

    // An exchange needs room that nothing else does.
    let destination = &setting.destination;
    destination
        .run("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                  RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END$$;
              CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
              ALTER TABLE t ENABLE ALWAYS TRIGGER full_disk;")
        .await?;
    setting.resync("public.t", "swap").await?;
    wait_message(&mirror, &["tried again", "No space left on device"]).await?;
    let epoch = setting.epoch().await?;
    setting.others_go_on(&mirror).await?;
    wait_status(&mirror, "public.t", "LIVE").await?;
    assert_eq!(setting.epoch().await?, epoch, "another run");
    destination.run("DROP FUNCTION full_disk CASCADE").await?;
    wait_all_well(&mirror).await?;
    crate::swap::assert_nothing_beside(&setting.stage).await?;
    let pairs = TablePair::all(&NAMES);
    setting.stage.assert_converges(&mirror, &pairs).await
}
