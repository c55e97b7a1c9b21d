//! Tables rebuilt from the topics: the source is not asked, and need not be there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::Bunny;
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::lsn::Lsn;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use bunny_tests::topic;
use serde_json::{Value, json};

use crate::crashes::{crash_in_turn, scene};
use crate::fan_out::wait_number;
use crate::lifecycle::{ended, status, wait_status};

pub const REPLAY: &str = "/v1/mirrors/mirror/replay";
const CHECKPOINT: &str = "/v1/mirrors/mirror/checkpoint";
pub const IN_REPLAY: [&str; 1] = ["REPLAY"];

/// Passed by a replay as by any sync of a table.
const POINTS: [(&str, u32); 11] = [
    ("apply::after_take_over", 1),
    ("apply::sync_started", 1),
    ("apply::chunk_mid_copy", 1),
    ("apply::chunk_before_commit", 2),
    ("apply::chunk_after_commit", 1),
    ("apply::chunks_loaded", 1),
    ("apply::table_loaded", 1),
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_after_commit", 1),
    ("apply::catch_up_held", 1),
    ("apply::catch_up_before_join", 1),
];

/// Passed by a replay up to a moment.
pub const APPLY_REPLAY: [(&str, u32); 1] = [("apply::replay_stands", 1)];

/// A table whose definition has changed in every way since it was first copied.
pub const CHANGING: &str = "
    CREATE TABLE changing (id int PRIMARY KEY, renamed text, dropped int, widened int, loosened text);
    INSERT INTO changing SELECT g, 'v' || g, g, g, CASE WHEN g % 3 > 0 THEN 'l' || g END FROM generate_series(1, 3000) g;";
pub const CHANGES: [&str; 6] = [
    "UPDATE changing SET loosened = 'was null' WHERE loosened IS NULL; INSERT INTO changing VALUES (4000, 'new', 1, 1, 'l');",
    "ALTER TABLE changing RENAME COLUMN renamed TO named; UPDATE changing SET named = named || '!' WHERE id % 5 = 0;",
    "ALTER TABLE changing DROP COLUMN dropped; DELETE FROM changing WHERE id % 7 = 0;",
    "ALTER TABLE changing ALTER COLUMN widened TYPE bigint; INSERT INTO changing VALUES (4001, 'wide', 1234567890123, 'l');",
    "ALTER TABLE changing ADD COLUMN added text DEFAULT 'filled'; UPDATE changing SET added = 'set' WHERE id < 50;",
    "ALTER TABLE changing ALTER COLUMN loosened SET NOT NULL; INSERT INTO changing VALUES (4002, 'last', 2, 'l', 'a');",
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_rebuilt_while_the_source_is_down() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "replay_down").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 6000).await?;
    source.run(CHANGING).await?;
    let load = Load::start(&stage.source, 2, 40);
    let tables = [&load::TABLES[..], &["public.changing"]].concat();
    let pairs = TablePair::all(&tables);
    let options = json!({
        "snapshot_num_rows_per_partition": 700, "max_batch_size": 100, "schema_changes": "all",
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, options)
        .await?;
    mirror.wait_running().await?;
    for change in CHANGES {
        source.run(change).await?;
        load.advance(10).await;
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
    }
    assert!(load.stop().await > 50);
    stage.assert_converges(&mirror, &pairs).await?;

    // The destination is spoilt, so that what is right afterwards was rebuilt.
    let destination = stage.destination.connect().await?;
    let spoil = "DELETE FROM accounts; UPDATE documents SET title = 'wrong'; DELETE FROM changing WHERE id % 2 = 0;
                 INSERT INTO journal SELECT 0, -1, 'not of the source', now();";
    destination.run(spoil).await?;
    drop(source);
    services.stop(Server::Source).await?;

    // What is in the topics stays all there is, whatever is replayed. Capture has noticed first.
    let down = |mirror: &Value, _: &Value| !mirror["failures"]["capture"].is_null();
    mirror.wait_until("capture down", CONVERGE, down).await?;
    let published = stage.watermarks_of(&mirror).await?;
    // Some tables, apply dying at every point of the way.
    let some = json!({"tables": ["public.changing", "public.accounts"]});
    apply.restart_to_crash(POINTS[0].0, POINTS[0].1)?;
    let command = api.post(REPLAY, some).await?.expect(202)?;
    crash_in_turn(&mut apply, &mirror, &POINTS, true, &IN_REPLAY).await?;
    let seen = mirror.get().await?;
    assert_eq!(status(&seen, "public.documents"), "LIVE");
    apply.restart()?;
    let command = ended(&api, &mirror, &stage, &command).await?;
    assert_eq!(command["state"], "done", "{command}");
    let marked = "SELECT count(*) FROM documents WHERE title <> 'wrong'";
    assert_eq!(
        destination.number(marked).await?,
        0,
        "a table was rebuilt that was not named"
    );

    // And all of them.
    let whole = api.post(REPLAY, json!({})).await?.expect(202)?;
    let whole = ended(&api, &mirror, &stage, &whole).await?;
    assert_eq!(whole["state"], "done", "{whole}");
    assert_eq!(stage.watermarks_of(&mirror).await?, published);
    services.start_again(Server::Source).await?;
    stage.assert_converges(&mirror, &pairs).await
}

pub fn replay_of<'a>(mirror: &'a Value, table: &str) -> &'a Value {
    let mut tables = mirror["tables"].as_array().into_iter().flatten();
    tables
        .find(|found| found["source_table"] == table)
        .map_or(&Value::Null, |found| &found["replay"])
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_rebuilt_while_capture_goes_on() -> Result<()> {
    let mut scene = scene("replay_on", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let (api, mirror) = (scene.api.clone(), scene.mirror.clone());
    let unknown = api.post(REPLAY, json!({"tables": ["public.no"]})).await?;
    assert_eq!(unknown.status, 404, "{}", unknown.body);

    // It shows how far it is, and nobody else loads the table meanwhile.
    scene
        .apply
        .restart_to_crash("apply::chunk_after_commit", 2)?;
    let journal = json!({"tables": ["public.journal"]});
    let command = api.post(REPLAY, journal.clone()).await?.expect(202)?;
    let same = api.post(REPLAY, journal).await?.expect(202)?;
    assert_eq!(command["command_id"], same["command_id"]);
    let resync = api
        .post(
            "/v1/mirrors/mirror/resync/public.journal",
            json!({"strategy": "truncate"}),
        )
        .await?;
    assert_eq!(resync.status, 409, "{}", resync.body);
    scene
        .apply
        .wait_crash_point("apply::chunk_after_commit", CONVERGE)
        .await?;
    let seen = mirror.get().await?;
    let phase = (&seen["status"], &seen["current_phase"]);
    assert_eq!(phase, (&json!("RESYNCING"), &json!("REPLAY")));
    scene.apply.restart()?;
    mirror
        .wait_until("progress of the replay", CONVERGE, |mirror, _| {
            replay_of(mirror, "public.journal")["bytes_total"].as_i64() > Some(0)
        })
        .await?;
    assert_eq!(scene.ended(&command).await?["state"], "done");
    mirror
        .wait_until("no progress of a replay", CONVERGE, |mirror, _| {
            replay_of(mirror, "public.journal").is_null()
        })
        .await?;

    // A resync makes a newer copy, and takes the place of what was replayed.
    let resync = api
        .post(
            "/v1/mirrors/mirror/resync/public.journal",
            json!({"strategy": "truncate"}),
        )
        .await?
        .expect(202)?;
    assert_eq!(scene.ended(&resync).await?["state"], "done");
    // The whole mirror, capture and apply killed on the way.
    let whole = api.post(REPLAY, json!({})).await?.expect(202)?;
    scene.capture.kill9();
    scene.capture.restart()?;
    scene.load.advance(30).await;
    scene.apply.kill9();
    scene.apply.restart()?;
    assert_eq!(scene.ended(&whole).await?["state"], "done");
    for table in load::TABLES {
        wait_status(&mirror, table, "LIVE").await?;
    }
    scene.settle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_topics_do_not_hold_is_refused() -> Result<()> {
    let scene = crate::scene::Scene::new("replay_none").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY)")
        .await?;
    let mirror = scene
        .running_mirror(&["public.t"], json!({"do_initial_snapshot": false}))
        .await?;
    let refused = scene.api.post(REPLAY, json!({})).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let why = refused.body["error"]
        .as_str()
        .context("no error")?
        .to_owned();
    assert!(why.contains("table public.t: no copy of it"), "{why}");
    assert_eq!(status(&mirror.get().await?, "public.t"), "LIVE");

    // A checkpoint makes it possible, without touching the destination.
    scene
        .source
        .run("INSERT INTO t SELECT generate_series(1, 500)")
        .await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    let destination = scene.stage.destination.connect().await?;
    destination.run("DELETE FROM t").await?;
    let checkpoint = scene.api.post(CHECKPOINT, json!({})).await?.expect(202)?;
    let checkpoint = ended(&scene.api, &mirror, &scene.stage, &checkpoint).await?;
    assert_eq!(checkpoint["state"], "done", "{checkpoint}");
    assert_eq!(destination.number("SELECT count(*) FROM t").await?, 0);
    scene
        .source
        .run("DELETE FROM t WHERE id > 400; INSERT INTO t VALUES (1000)")
        .await?;
    let replay = scene.api.post(REPLAY, json!({})).await?.expect(202)?;
    let replay = ended(&scene.api, &mirror, &scene.stage, &replay).await?;
    assert_eq!(replay["state"], "done", "{replay}");
    let pairs = TablePair::all(&["public.t"]);
    scene.stage.assert_converges(&mirror, &pairs).await?;

    // The newest copy counts.
    let lsn = "SELECT lsn::text FROM _bunny.tables";
    let first = destination.text(lsn).await?;
    let checkpoint = scene
        .api
        .post(CHECKPOINT, json!({"tables": ["public.t"]}))
        .await?
        .expect(202)?;
    ended(&scene.api, &mirror, &scene.stage, &checkpoint).await?;
    let replay = scene.api.post(REPLAY, json!({})).await?.expect(202)?;
    ended(&scene.api, &mirror, &scene.stage, &replay).await?;
    let second = destination.text(lsn).await?;
    assert!(
        first.parse::<Lsn>()? < second.parse::<Lsn>()?,
        "{first}, {second}"
    );
    scene.stage.assert_converges(&mirror, &pairs).await?;

    // Before the newest copy is too old to be kept, message and gauge tell, and there is time.
    let week = Duration::from_secs(168 * 3600);
    let (brokers, prefix) = (&scene.stage.services.brokers, &scene.stage.name);
    topic::age_copies(brokers, prefix, "mirror", week * 95 / 100).await?;
    mirror
        .wait_until("a warning", CONVERGE, |mirror, _| {
            let said = mirror["messages"].to_string();
            said.contains("table public.t can be rebuilt from the topics until about")
        })
        .await?;
    let left = async || {
        let name = "bunny_mirror_replay_left_seconds{mirror=\"mirror\"} ";
        let metrics = scene.bunny.metrics().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        let value = value.with_context(|| metrics.clone())?;
        Ok::<f64, anyhow::Error>(value.parse()?)
    };
    let deadline = Instant::now() + CONVERGE;
    while left().await? > 0.05 * week.as_secs_f64() {
        ensure!(Instant::now() < deadline, "{} s are left", left().await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(left().await? > 0.04 * week.as_secs_f64());
    let replay = scene.api.post(REPLAY, json!({})).await?.expect(202)?;
    let replay = ended(&scene.api, &mirror, &scene.stage, &replay).await?;
    assert_eq!(replay["state"], "done", "{replay}");
    Ok(())
}

/// What the source held at a moment.
struct Moment {
    lsn: Lsn,
    time: String,
    contents: Vec<String>,
}

const TWO: [&str; 2] = ["public.t", "public.u"];

async fn contents(session: &Session) -> Result<Vec<String>> {
    let columns = ["id".to_owned(), "v".to_owned()];
    let t = content::fingerprint(session, "t", &columns).await?;
    Ok(vec![t, content::fingerprint(session, "u", &columns).await?])
}

async fn moment(source: &Session) -> Result<Moment> {
    let clock =
        r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
    Ok(Moment {
        lsn: source.current_lsn().await?,
        time: source.text(clock).await?,
        contents: contents(source).await?,
    })
}

/// Waits until one more change is published, and another apply has taken the paused mirror.
async fn stays(stage: &Stage, mirror: &Mirror, apply: &mut Bunny) -> Result<()> {
    let changes = format!("{}.mirror.changes", stage.name);
    let end = async || Ok::<i64, anyhow::Error>(stage.watermarks_of(mirror).await?[&changes][0].1);
    let (before, deadline) = (end().await?, Instant::now() + CONVERGE);
    let change = "INSERT INTO t SELECT max(id) + 1, 'published' FROM t";
    stage.source.connect().await?.run(change).await?;
    while end().await? <= before {
        ensure!(Instant::now() < deadline, "nothing is published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let destination = stage.destination.connect().await?;
    let epoch = "SELECT max(epoch) FROM _bunny.owner";
    let before = destination.number(epoch).await?;
    apply.restart()?;
    wait_number(&destination, epoch, |epoch| epoch > before).await?;
    // It tells what waits in the log, and lets it wait.
    mirror
        .wait_until("PAUSED behind the log", CONVERGE, |mirror, metrics| {
            mirror["status"] == "PAUSED" && metrics["apply"]["lag_events"].as_i64() > Some(0)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_as_it_was_at_a_moment() -> Result<()> {
    let stage = Stage::new("until").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
              INSERT INTO t SELECT g, 'first' FROM generate_series(1, 2000) g; INSERT INTO u SELECT * FROM t;")
        .await?;
    let options = json!({"snapshot_num_rows_per_partition": 300, "max_batch_size": 50});
    let mirror = stage.create_mirror(&api, "mirror", &TWO, options).await?;
    mirror.wait_running().await?;
    let mut moments = Vec::new();
    for change in [
        "UPDATE t SET v = 'one' WHERE id % 2 = 0; DELETE FROM u WHERE id < 100",
        "BEGIN; INSERT INTO t SELECT g, 'two' FROM generate_series(5000, 5200) g; UPDATE u SET v = 'two'; COMMIT",
        "TRUNCATE u",
        "INSERT INTO u SELECT * FROM t; DELETE FROM t WHERE id % 3 = 0",
    ] {
        source.run(change).await?;
        moments.push(moment(&source).await?);
    }
    source.run("UPDATE t SET v = 'last'").await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let destination = stage.destination.connect().await?;

    for (until, part) in [
        (json!({"lsn": "FFFF/0"}), "past what is published"),
        (
            json!({"timestamp": "2100-01-01T00:00:00Z"}),
            "past what is published",
        ),
        (json!({"lsn": "0/1"}), "public.u: the earliest point"),
        (
            json!({"timestamp": "2001-01-01T00:00:00Z"}),
            "public.t: the earliest point",
        ),
    ] {
        let refused = api.post(REPLAY, json!({ "until": until })).await?;
        assert_eq!(refused.status, 409, "{}", refused.body);
        let why = refused.body["error"].as_str().unwrap_or_default();
        assert!(why.contains(part), "{why}");
    }

    // From one moment to another, earlier or later, out of the pause; apply dies where the
    // first is reached.
    apply.restart_to_crash(APPLY_REPLAY[0].0, APPLY_REPLAY[0].1)?;
    let by_lsn = |at: &Moment| json!({"until": {"lsn": at.lsn.to_string()}});
    let by_time = |at: &Moment| json!({"until": {"timestamp": at.time}});
    for (index, (at, body)) in [
        (2, by_lsn(&moments[2])),
        (0, by_time(&moments[0])),
        (3, by_lsn(&moments[3])),
        (1, by_time(&moments[1])),
    ]
    .into_iter()
    .enumerate()
    {
        let command = api.post(REPLAY, body).await?.expect(202)?;
        if index == 0 {
            apply.wait_crash_point(APPLY_REPLAY[0].0, CONVERGE).await?;
            apply.restart()?;
        }
        let command = ended(&api, &mirror, &stage, &command).await?;
        assert_eq!(command["state"], "done", "{command}");
        mirror
            .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
            .await?;
        let shown = mirror.get().await?;
        let said = shown["messages"].to_string();
        assert!(
            said.contains("all tables stand where the replay was to end")
                && said.contains("resume"),
            "{shown}"
        );
        // Capture goes on, and changes nothing there; nor does another apply that begins anew.
        source
            .run("INSERT INTO t SELECT max(id) + 1, 'later' FROM t")
            .await?;
        if index == 1 {
            stays(&stage, &mirror, &mut apply).await?;
        }
        assert_eq!(
            contents(&destination).await?,
            moments[at].contents,
            "moment {at}"
        );
    }
    api.post("/v1/mirrors/mirror/resume", json!({}))
        .await?
        .expect(202)?;
    mirror.wait_running().await?;
    let pairs = TablePair::all(&TWO);
    stage.assert_converges(&mirror, &pairs).await?;

    // One table only: the other stays where main is. The log ends where it is to stop.
    let before = contents(&destination).await?;
    let now = moment(&source).await?;
    // An idle source is recorded as published every ten seconds.
    mirror
        .wait_until("published", CONVERGE, |_, metrics| {
            let confirmed = metrics["source"]["confirmed_flush_lsn"].as_str();
            confirmed.and_then(|text| text.parse::<Lsn>().ok()) >= Some(now.lsn)
        })
        .await?;
    for at in [&moments[1], &now] {
        let mut body = by_lsn(at);
        body["tables"] = json!(["public.t"]);
        let command = api.post(REPLAY, body).await?.expect(202)?;
        assert_eq!(
            ended(&api, &mirror, &stage, &command).await?["state"],
            "done"
        );
        mirror
            .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
            .await?;
        let found = contents(&destination).await?;
        assert_eq!((&found[0], &found[1]), (&at.contents[0], &before[1]));
        let said = mirror.get().await?["messages"].to_string();
        let words = format!(
            "table public.t stands where the replay was to end, before LSN {}",
            at.lsn
        );
        assert!(said.contains(&words), "{said}");
    }
    let log = api
        .get("/v1/mirrors/mirror/logs?search=replay%20has%20reached")
        .await?
        .expect(200)?;
    assert_eq!(log["total"], 6, "{log}");
    api.post("/v1/mirrors/mirror/resume", json!({}))
        .await?
        .expect(202)?;
    mirror.wait_running().await?;
    source
        .run("UPDATE u SET v = 'end'; UPDATE t SET v = 'end'")
        .await?;
    stage.assert_converges(&mirror, &pairs).await
}
