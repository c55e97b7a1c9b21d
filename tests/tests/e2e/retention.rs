//! Topics are trimmed of what nobody needs, and of nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::backup;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::load::{self, Load};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fan_out::wait_number;
use crate::lifecycle::{ended, wait_status};

/// Passed when something is about to be trimmed.
pub const APPLY_RETENTION: [(&str, u32); 1] = [("apply::retention_raised", 1)];

const REPLAY: &str = "/v1/mirrors/mirror/replay";
const CHECKPOINT: &str = "/v1/mirrors/mirror/checkpoint";
const TWO: [&str; 2] = ["public.t", "public.u"];
const FLOOR: &str = "SELECT coalesce(max(floor_offset), 0) FROM _bunny.retention";

async fn patch(api: &Api, change: Value) -> Result<()> {
    let path = "/v1/mirrors/mirror";
    api.request(Method::PATCH, path, Some(change))
        .await?
        .expect(202)?;
    Ok(())
}

fn replayable(mirror: &Value, table: &str) -> Option<Lsn> {
    let mut tables = mirror["tables"].as_array().into_iter().flatten();
    let found = tables.find(|found| found["source_table"] == table)?;
    found["replayable_from"]["lsn"].as_str()?.parse().ok()
}

/// First offset and end of the change topic.
async fn watermarks(stage: &Stage, mirror: &Mirror) -> Result<(i64, i64)> {
    let topic = changes_of(stage, mirror);
    let brokers = stage.services.brokers.clone();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .create()?;
        Ok(consumer.fetch_watermarks(&topic, 0, Duration::from_secs(10))?)
    })
    .await?
}

fn changes_of(stage: &Stage, mirror: &Mirror) -> String {
    format!("{}.{}.changes", stage.name, mirror.slug())
}

async fn wait_trimmed(stage: &Stage, mirror: &Mirror, floor: i64) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    while watermarks(stage, mirror).await?.0 < floor {
        ensure!(
            Instant::now() < deadline,
            "nothing is trimmed below {floor}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_nobody_needs_is_trimmed() -> Result<()> {
    let stage = Stage::new("retention").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
              INSERT INTO t SELECT g, 'first' FROM generate_series(1, 500) g; INSERT INTO u SELECT * FROM t;")
        .await?;
    let options = json!({"topic_retention_hours": 0});
    let mirror = stage.create_mirror(&api, "mirror", &TWO, options).await?;
    mirror.wait_running().await?;
    let destination = stage.destination.connect().await?;
    // Nothing has changed since the generation began, so its begin is the last there is, by
    // which capture finds its place.
    let looked = "SELECT count(*) FROM _bunny.retention";
    wait_number(&destination, looked, |count| count == 1).await?;
    assert_eq!(destination.number(FLOOR).await?, 0);
    patch(&api, json!({"topic_retention_hours": 168})).await?;
    capture.kill9();
    capture.restart()?;
    let change = "UPDATE t SET v = v || '.'; UPDATE u SET v = v || '.'";
    source.run(change).await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    // Young: everything stays, and says what it can be rebuilt from.
    let both =
        |mirror: &Value, _: &Value| TWO.iter().all(|table| replayable(mirror, table).is_some());
    mirror.wait_until("replayable", CONVERGE, both).await?;
    assert_eq!(destination.number(FLOOR).await?, 0);

    // A table that is set aside keeps what it misses, however short the window.
    destination
        .run("ALTER TABLE u ADD CONSTRAINT refused CHECK (v NOT LIKE '%..') NOT VALID")
        .await?;
    source.run(change).await?;
    wait_status(&mirror, "public.u", "ERRORED").await?;
    let (point, pass) = APPLY_RETENTION[0];
    apply.restart_to_crash(point, pass)?;
    patch(&api, json!({"topic_retention_hours": 0})).await?;
    apply.wait_crash_point(point, CONVERGE).await?;
    apply.restart()?;
    let gone =
        |mirror: &Value, _: &Value| TWO.iter().all(|table| replayable(mirror, table).is_none());
    mirror.wait_until("not replayable", CONVERGE, gone).await?;
    // What main has still to write of the same transaction may keep more at first.
    let kept = "SELECT restart_offset FROM _bunny.tables WHERE source_table = 'u'";
    let kept = destination.number(kept).await?;
    assert!(destination.number(FLOOR).await? <= kept);
    wait_number(&destination, FLOOR, |floor| floor == kept).await?;
    // At once by who asks, or, while it is not deleted yet, by who would do it.
    let refused = api.post(REPLAY, json!({})).await?;
    if refused.status == 202 {
        let command = ended(&api, &mirror, &stage, &refused.body).await?;
        assert_eq!(command["state"], "failed", "{command}");
    } else {
        assert_eq!(refused.status, 409, "{}", refused.body);
    }
    for _ in 0..3 {
        source.run(change).await?;
    }
    destination
        .run("ALTER TABLE u DROP CONSTRAINT refused")
        .await?;
    api.post(
        "/v1/mirrors/mirror/retry",
        json!({"table_name": "public.u"}),
    )
    .await?
    .expect(202)?;
    wait_status(&mirror, "public.u", "LIVE").await?;
    let pairs = TablePair::all(&TWO);
    stage.assert_converges(&mirror, &pairs).await?;

    // A checkpoint makes a table replayable as long as the window is wide enough.
    patch(&api, json!({"topic_retention_hours": 1})).await?;
    let checkpoint = api
        .post(CHECKPOINT, json!({"tables": ["public.t"]}))
        .await?
        .expect(202)?;
    assert_eq!(
        ended(&api, &mirror, &stage, &checkpoint).await?["state"],
        "done"
    );
    mirror
        .wait_until("t replayable", CONVERGE, |mirror, _| {
            replayable(mirror, "public.t").is_some()
        })
        .await?;
    assert!(replayable(&mirror.get().await?, "public.u").is_none());
    source.run(change).await?;
    let replay = api
        .post(REPLAY, json!({"tables": ["public.t"]}))
        .await?
        .expect(202)?;
    assert_eq!(
        ended(&api, &mirror, &stage, &replay).await?["state"],
        "done"
    );
    // A new start finds its place in topics that begin late.
    source.run(change).await?;
    stage.assert_converges(&mirror, &pairs).await?;

    // Of a checkpoint that is trimmed, and not the last, not even the record stays.
    let named = "SELECT string_agg(id::text, ',') FROM (
             SELECT unnest(ARRAY[request_id, since_request, checkpoint_id]) AS id FROM bunny.mirror_tables) AS n";
    let former =
        "SELECT checkpoint_id::text FROM bunny.mirror_tables WHERE checkpoint_id IS NOT NULL";
    let former = stage.catalog_text(former).await?;
    let recorded = async || {
        let brokers = &stage.services.brokers;
        bunny_tests::topic::recorded_copies(brokers, &stage.name, &mirror.name).await
    };
    assert!(recorded().await?.contains(&former));
    for path in [CHECKPOINT, REPLAY] {
        let command = api.post(path, json!({"tables": ["public.t"]})).await?;
        let command = ended(&api, &mirror, &stage, &command.expect(202)?).await?;
        assert_eq!(command["state"], "done", "{command}");
    }
    assert!(recorded().await?.contains(&former), "it can be loaded");
    patch(&api, json!({"topic_retention_hours": 0})).await?;
    source.run(change).await?;
    mirror.wait_until("trimmed", CONVERGE, gone).await?;
    wait_trimmed(&stage, &mirror, destination.number(FLOOR).await?).await?;
    capture.restart()?;
    let deadline = Instant::now() + CONVERGE;
    while recorded().await?.contains(&former) {
        ensure!(Instant::now() < deadline, "the record of {former} stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let named = stage.catalog_text(named).await?;
    let named: BTreeSet<String> = named.split(',').map(str::to_owned).collect();
    assert_eq!(recorded().await?, named);
    source.run(change).await?;
    stage.assert_converges(&mirror, &pairs).await
}

/// With no window at all, every sync and replay begins while everything behind it goes.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn syncs_begin_while_the_topics_are_trimmed() -> Result<()> {
    let stage = Stage::new("trimming").await?;
    let [_capture, apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 3000).await?;
    let load = Load::start(&stage.source, 2, 40);
    let options = json!({"topic_retention_hours": 0, "snapshot_num_rows_per_partition": 700});
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, options)
        .await?;
    mirror.wait_running().await?;
    let destination = stage.destination.connect().await?;
    let mut floor = wait_number(&destination, FLOOR, |floor| floor > 0).await?;
    for (table, strategy) in [
        ("accounts", "truncate"),
        ("documents", "swap"),
        ("measurements", "truncate"),
        ("journal", "truncate"),
    ] {
        let path = format!("/v1/mirrors/mirror/resync/public.{table}");
        let body = json!({ "strategy": strategy });
        let accepted = api.post(&path, body).await?.expect(202)?;
        let command = ended(&api, &mirror, &stage, &accepted).await?;
        assert_eq!(command["state"], "done", "{command}");
        floor = wait_number(&destination, FLOOR, |found| found > floor).await?;
    }
    wait_trimmed(&stage, &mirror, floor).await?;

    // Frozen between deciding and trimming, while another takes over.
    let times_trimmed = |log: String, offset: i64| {
        let word = format!("offset={offset}");
        let lines = log
            .lines()
            .filter(|line| line.contains("the change topic is trimmed"));
        lines
            .filter(|line| line.split_whitespace().any(|found| found == word))
            .count()
    };
    let decided = loop {
        load.advance(20).await;
        floor = wait_number(&destination, FLOOR, |found| found > floor).await?;
        apply.signal("STOP")?;
        if times_trimmed(apply.log_of_this_run()?, floor) == 0 {
            break floor;
        }
        apply.signal("CONT")?;
    };
    let _second = stage.start(Role::Apply)?;
    wait_trimmed(&stage, &mirror, decided).await?;
    apply.signal("CONT")?;
    assert!(load.stop().await > 50);
    stage.assert_converges(&mirror, &load::pairs()).await?;
    // The two share a log, and who took over trimmed what was decided.
    let times = times_trimmed(apply.log_of_this_run()?, decided);
    assert!(times <= 1, "it trimmed when it thawed, too");
    Ok(())
}

/// A restored database is another one by its oid. With the progress of its mirror it is taken
/// under another password; one without is not, however fresh.
#[cfg(feature = "full")]
async fn described_anew(stage: &Stage, api: &Api) -> Result<()> {
    let url = &stage.destination;
    let user = format!("{}_new", stage.name);
    let server = url.connect().await?;
    server
        .run(&format!(
            "CREATE ROLE \"{user}\" SUPERUSER LOGIN PASSWORD 'n3w secret'"
        ))
        .await?;
    let put = async |database: &str| {
        let described = json!({"host": url.host, "port": url.port, "user": user,
            "password": "n3w secret", "database": database, "ssl_mode": "disable"});
        api.request(Method::PUT, "/v1/peers/destination", Some(described))
            .await
    };
    let refused = put("postgres").await?.expect(422)?;
    let said = refused["error"].as_str().unwrap_or_default();
    ensure!(
        said.contains("_bunny does not hold the progress of mirror \"mirror\""),
        "{said}"
    );
    let taken = put(&url.database).await?.expect(200)?;
    let said = taken["message"].as_str().unwrap_or_default();
    ensure!(said.contains("go on from the progress"), "{said}");
    // From now on it is the known one.
    let again = put(&url.database).await?.expect(200)?;
    let said = again["message"].as_str().unwrap_or_default();
    ensure!(said.contains("connect anew"), "{said}");
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}' AND application_name LIKE 'bunny %'"
    );
    wait_number(&server, &sessions, |count| count > 0)
        .await
        .map(drop)
}

/// A destination that is put back to an older backup goes on from its own progress, as long
/// as the log reaches back to it; else it says so, and what cures it.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_restored_from_a_backup_goes_on() -> Result<()> {
    let stage = Stage::new("restored").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 2000).await?;
    let load = Load::start(&stage.source, 2, 40);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;
    load.advance(30).await;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let file = std::env::temp_dir().join(format!("{}.dump", stage.name));
    // While changes are applied: a dump is one snapshot, with the progress of its rows.
    backup::dump(&stage.destination, &file).await?;
    load.advance(60).await;
    let resync = "/v1/mirrors/mirror/resync/public.documents";
    let accepted = api.post(resync, json!({})).await?.expect(202)?;
    ended(&api, &mirror, &stage, &accepted).await?;
    load.advance(30).await;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let copy = "SELECT request_id::text FROM _bunny.tables WHERE source_table = 'documents'";
    let copy = stage.destination.connect().await?.text(copy).await?;
    apply.kill9();
    backup::restore(&stage.destination, &file).await?;
    apply.restart()?;
    load.advance(30).await;
    assert!(load.stop().await > 100);
    // The resync that came after the backup is loaded again, from the topics.
    let has_copy = format!(
        "SELECT count(*) FROM _bunny.tables WHERE request_id = '{copy}' AND state = 'LIVE' AND in_main"
    );
    let restored = stage.destination.connect().await?;
    wait_number(&restored, &has_copy, |count| count == 1).await?;
    drop(restored);
    let pairs = load::pairs();
    stage.assert_converges(&mirror, &pairs).await?;
    described_anew(&stage, &api).await?;
    source
        .run("UPDATE accounts SET balance = balance + 1")
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;

    // What it would need is gone, and so is the topic, later on.
    patch(&api, json!({"topic_retention_hours": 0})).await?;
    let destination = stage.destination.connect().await?;
    let floor = wait_number(&destination, FLOOR, |floor| floor > 0).await?;
    wait_trimmed(&stage, &mirror, floor).await?;
    drop(destination);
    apply.kill9();
    backup::restore(&stage.destination, &file).await?;
    let restored = stage.destination.connect().await?;
    let rows = "SELECT count(*) FROM journal";
    let rows_restored = restored.number(rows).await?;
    apply.restart()?;
    mirror
        .wait_until("FAILED, with the cure", CONVERGE, |mirror, _| {
            let said = mirror["error_message"].as_str().unwrap_or_default();
            let words = ["backup", "topic_retention_hours", "resync the mirror"];
            mirror["status"] == "FAILED" && words.iter().all(|word| said.contains(word))
        })
        .await?;
    assert_eq!(restored.number(rows).await?, rows_restored);

    // The next generation is of a new topic, where the former floor means nothing.
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &stage.services.brokers)
        .create()?;
    let changes = changes_of(&stage, &mirror);
    admin
        .delete_topics(&[&changes], &AdminOptions::new())
        .await?;
    restored
        .run(
            "INSERT INTO _bunny.retention AS kept (mirror_id, generation, floor_offset)
                 SELECT mirror_id, generation, 1000000 FROM _bunny.progress
             ON CONFLICT (mirror_id) DO UPDATE SET floor_offset = excluded.floor_offset",
        )
        .await?;
    let resync = "/v1/mirrors/mirror/resync";
    let accepted = api.post(resync, json!({})).await?.expect(202)?;
    let command = ended(&api, &mirror, &stage, &accepted).await?;
    assert_eq!(command["state"], "done", "{command}");
    source
        .run("UPDATE accounts SET balance = balance + 1")
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;
    let floor = wait_number(&restored, FLOOR, |floor| floor > 0 && floor < 1_000_000).await?;
    wait_trimmed(&stage, &mirror, floor).await?;
    std::fs::remove_file(&file).context("removing the backup")
}

/// Shown, limited: what is applied goes first, then capture waits, and nothing is dropped.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_topic_stops_capture_until_there_is_room() -> Result<()> {
    let stage = Stage::new("full_topic").await?;
    let [mut capture, _apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'first')")
        .await?;
    let options = json!({"topic_max_bytes": 256 << 20, "topic_retention_hours": 168});
    let tables = ["public.t"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, options)
        .await?;
    mirror.wait_running().await?;
    // Applied: the window shrinks, and capture goes on.
    let fill = |from: i32, to: i32| {
        format!(
            "INSERT INTO t SELECT g, repeat(md5(g::text), 65536) FROM generate_series({from}, {to}) g"
        )
    };
    for from in (1..=200).step_by(20) {
        source.run(&fill(from, from + 19)).await?;
    }
    source.run("UPDATE t SET v = 'small'").await?;
    let pairs = TablePair::all(&tables);
    stage.assert_converges(&mirror, &pairs).await?;
    let destination = stage.destination.connect().await?;
    let floor = wait_number(&destination, FLOOR, |floor| floor > 0).await?;
    wait_trimmed(&stage, &mirror, floor).await?;
    let bytes = |mirror: &Value| mirror["topic_bytes"]["changes"].as_u64();
    mirror
        .wait_until("room", CONVERGE, |mirror, _| {
            bytes(mirror).is_some_and(|bytes| bytes < 215 << 20)
        })
        .await?;

    // Not applied: capture stands still and says so.
    api.post("/v1/mirrors/mirror/pause", json!({}))
        .await?
        .expect(202)?;
    mirror
        .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    for from in (1001..=1140).step_by(20) {
        source.run(&fill(from, from + 19)).await?;
    }
    mirror
        .wait_until("full", CONVERGE, |mirror, _| {
            let said = mirror["failures"]["capture"]["message"].as_str();
            said.is_some_and(|said| said.contains("raise topic_max_bytes"))
        })
        .await?;
    // Killed there, it stands still where it stood, and says so anew.
    capture.kill9();
    let published = watermarks(&stage, &mirror).await?;
    source.run(&fill(2001, 2010)).await?;
    capture.restart()?;
    let deadline = Instant::now() + CONVERGE;
    while !capture.log_of_this_run()?.contains("raise topic_max_bytes") {
        ensure!(Instant::now() < deadline, "{}", stage.logs_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(watermarks(&stage, &mirror).await?, published);
    api.post("/v1/mirrors/mirror/resume", json!({}))
        .await?
        .expect(202)?;
    source.run("UPDATE t SET v = 'small'").await?;
    stage.assert_converges(&mirror, &pairs).await
}
