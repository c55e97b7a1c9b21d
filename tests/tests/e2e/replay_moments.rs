//! Where exactly a replay up to a moment ends while many write, what it keeps of the log on its way, and
//! how far it says it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::clients::output_of;
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, Url};
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fan_out::{FLOOR, wait_number};
use crate::lifecycle::ended;
use crate::replay::{REPLAY, replay_of};

const TABLES: [&str; 2] = ["public.journal", "public.counters"];
const WRITERS: i64 = 4;

/// What each transaction adds, without a key, and what it makes of the row of its writer.
const CREATE: &str = "
    CREATE TABLE journal (writer bigint, n bigint);
    CREATE TABLE counters (writer bigint PRIMARY KEY, n bigint);
    INSERT INTO journal SELECT 0, g FROM generate_series(1, 400) g;
    INSERT INTO counters SELECT g, 0 FROM generate_series(1, 4) g;";

/// From where on the log is needed by what is not in main.
const PINNED: &str = "SELECT min(restart_offset) FROM _bunny.tables WHERE NOT in_main";

/// So many sessions at once, a transaction for each of `numbers`.
async fn write(source: &Url, numbers: Range<i64>) -> Result<()> {
    let mut writers = JoinSet::new();
    for writer in 1..=WRITERS {
        let (source, numbers) = (source.clone(), numbers.clone());
        writers.spawn(async move {
            let session = source.connect().await?;
            for n in numbers {
                session
                    .run(&format!(
                        "BEGIN; INSERT INTO journal VALUES ({writer}, {n}); UPDATE counters SET n = {n} WHERE writer = {writer}; COMMIT"
                    ))
                    .await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

/// A row of the journal; each transaction but the first has its own.
type Entry = (i64, i64);

/// A transaction as the log has it.
struct Transaction {
    lsn: Lsn,
    time: DateTime<Utc>,
    entry: Entry,
}

/// The transactions in the log, in its order.
fn transactions(stage: &Stage) -> Result<Vec<Transaction>> {
    let mut tail = stage.reader(&["tail", "mirror", "--json", "--no-follow"])?;
    let printed = output_of(tail.args(["--from", "earliest", "--table", "public.journal"]))?;
    let mut found = Vec::new();
    for line in printed.lines() {
        let event: Value = serde_json::from_str(line)?;
        let (source, row) = (&event["source"], &event["after"]);
        if event["op"] == "c" {
            let number = |name: &str| row[name].as_i64().context("no number");
            let text = |name: &str| source[name].as_str().context("no text");
            found.push(Transaction {
                lsn: text("commit_lsn")?.parse()?,
                time: text("commit_ts")?.parse()?,
                entry: (number("writer")?, number("n")?),
            });
        }
    }
    Ok(found)
}

async fn entries(session: &Session, table: &str) -> Result<Vec<Entry>> {
    let sql = format!("SELECT writer, n FROM {table} ORDER BY 1, 2");
    let rows = session.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The destination holds the first copy and these transactions, each once and whole.
async fn holds(destination: &Session, applied: &[Transaction]) -> Result<()> {
    let mut journal: Vec<Entry> = (1..=400).map(|n| (0, n)).collect();
    let mut counters: BTreeMap<i64, i64> = (1..=WRITERS).map(|writer| (writer, 0)).collect();
    for Transaction { entry, .. } in applied {
        journal.push(*entry);
        counters.insert(entry.0, entry.1);
    }
    journal.sort_unstable();
    let found = entries(destination, "journal").await?;
    ensure!(
        found == journal,
        "{} rows, not {}: {:?}",
        found.len(),
        journal.len(),
        BTreeSet::from_iter(&found).symmetric_difference(&BTreeSet::from_iter(&journal))
    );
    let counters: Vec<Entry> = counters.into_iter().collect();
    let found = entries(destination, "counters").await?;
    ensure!(found == counters, "{found:?}, not {counters:?}");
    Ok(())
}

async fn keep_hours(api: &Api, hours: u32) -> Result<()> {
    let change = Some(json!({ "topic_retention_hours": hours }));
    let answer = api.request(Method::PATCH, "/v1/mirrors/mirror", change);
    answer.await?.expect(202).map(drop)
}

/// Keeps rows of the journal from being written.
async fn lock(destination: &Url) -> Result<Session> {
    let session = destination.connect().await?;
    session
        .run("BEGIN; LOCK TABLE journal IN SHARE MODE")
        .await?;
    Ok(session)
}

async fn stands(mirror: &Mirror) -> Result<()> {
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    mirror.wait_until("PAUSED", CONVERGE, paused).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_lies_between_two_transactions_of_many_writers() -> Result<()> {
    let stage = Stage::new("boundary").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source.run(CREATE).await?;
    let options = json!({"snapshot_num_rows_per_partition": 100, "max_batch_size": 20});
    let mirror = stage
        .create_mirror(&api, "mirror", &TABLES, options)
        .await?;
    mirror.wait_running().await?;
    mirror
        .wait_until("a copy to rebuild from", CONVERGE, |mirror, _| {
            mirror["tables"][0]["replayable_from"]["lsn"].is_string()
        })
        .await?;
    let copied = mirror.get().await?["tables"][0]["replayable_from"]["lsn"].clone();
    write(&stage.source, 1..60).await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let log = transactions(&stage)?;
    // The log tells the source's history: what of it a moment must show is known from here on.
    let history = entries(&source, "journal").await?;
    let of_log: BTreeSet<Entry> = log.iter().map(|one| one.entry).collect();
    let later: BTreeSet<Entry> = history.into_iter().filter(|entry| entry.0 > 0).collect();
    assert_eq!(of_log, later);
    assert!(log.windows(2).all(|two| two[0].lsn < two[1].lsn));

    // While many more are written, and stay in the log.
    let more = tokio::spawn({
        let source = stage.source.clone();
        async move { write(&source, 60..200).await }
    });
    let destination = stage.destination.connect().await?;
    let chosen = log.len() / 2;
    let (lsn, time) = (log[chosen].lsn, log[chosen].time);
    let up_to_time = log.iter().position(|one| one.time > time);
    let up_to_time = up_to_time.context("nothing is later")?;
    let lsn_of = |lsn: Lsn| json!({"lsn": lsn.to_string()});
    let timestamp = time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    for (until, applied) in [
        (json!({ "lsn": copied }), 0),
        (lsn_of(Lsn(lsn.0 + 1)), chosen + 1),
        (json!({ "timestamp": timestamp }), up_to_time),
        (lsn_of(lsn), chosen),
    ] {
        let asked = json!({ "until": until });
        let command = api.post(REPLAY, asked).await?.expect(202)?;
        let command = ended(&api, &mirror, &stage, &command).await?;
        assert_eq!(command["state"], "done", "{command}");
        stands(&mirror).await?;
        holds(&destination, &log[..applied])
            .await
            .with_context(|| format!("until {until}"))?;
    }
    more.await??;

    // On the way from there to the present all that it needs stays, however short the window.
    let pinned = destination.number(PINNED).await?;
    let held = lock(&stage.destination).await?;
    keep_hours(&api, 0).await?;
    api.post("/v1/mirrors/mirror/resume", json!({}))
        .await?
        .expect(202)?;
    assert_eq!(
        wait_number(&destination, FLOOR, |floor| floor > 0).await?,
        pinned
    );
    apply.kill9();
    apply.restart()?;
    drop(held);
    mirror.wait_running().await?;
    let pairs = TablePair::all(&TABLES);
    stage.assert_converges(&mirror, &pairs).await?;

    // And so it is with what a replay needs that has begun, though it is not what goes first.
    keep_hours(&api, 168).await?;
    write(&stage.source, 200..205).await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let checkpoint = api.post("/v1/mirrors/mirror/checkpoint", json!({})).await?;
    let checkpoint = ended(&api, &mirror, &stage, &checkpoint.expect(202)?).await?;
    assert_eq!(checkpoint["state"], "done", "{checkpoint}");
    write(&stage.source, 205..230).await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let floor = destination.number(FLOOR).await?;
    apply.restart_to_crash("apply::chunk_after_commit", 2)?;
    let journal = json!({"tables": ["public.journal"]});
    let replay = api.post(REPLAY, journal).await?.expect(202)?;
    apply
        .wait_crash_point("apply::chunk_after_commit", CONVERGE)
        .await?;
    let pinned = destination.number(PINNED).await?;
    let held = lock(&stage.destination).await?;
    keep_hours(&api, 0).await?;
    write(&stage.source, 230..260).await?;
    apply.restart()?;
    assert_eq!(
        wait_number(&destination, FLOOR, |found| found > floor).await?,
        pinned
    );
    drop(held);
    let replay = ended(&api, &mirror, &stage, &replay).await?;
    assert_eq!(replay["state"], "done", "{replay}");
    stage.assert_converges(&mirror, &pairs).await
}

/// What the mirror says of the replay of its table, until its command has ended.
async fn told(api: &Api, mirror: &Mirror, until: Value) -> Result<Vec<Value>> {
    let none = |mirror: &Value, _: &Value| replay_of(mirror, "public.t").is_null();
    mirror.wait_until("no replay", CONVERGE, none).await?;
    let command = api.post(REPLAY, until).await?.expect(202)?;
    let id = command["command_id"].as_str().context("no command_id")?;
    let path = format!("/v1/mirrors/mirror/commands/{id}");
    let mut told = Vec::new();
    while api.get(&path).await?.expect(200)?["state"] != "done" {
        let seen = replay_of(&mirror.get().await?, "public.t").clone();
        if !seen.is_null() && told.last() != Some(&seen) {
            told.push(seen);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(told)
}

/// The events that it was to pass, after looking that what was told of them makes sense.
fn total_of(told: &[Value]) -> Result<i64> {
    let number = |one: &Value, name: &str| one[name].as_i64().unwrap_or(-1);
    let mut before = 0;
    let mut moved = BTreeSet::new();
    for one in told {
        let (done, total) = (number(one, "events_done"), number(one, "events_total"));
        ensure!(before <= done && done <= total, "{told:?}");
        before = done;
        moved.insert(done);
    }
    ensure!(moved.len() > 1, "it does not move: {told:?}");
    let under_way = told.iter().find(|one| {
        let (rate, left) = (one["per_second"].as_f64(), one["seconds_left"].as_f64());
        let left_is_so = rate.zip(left).is_some_and(|(rate, left)| {
            let events = number(one, "events_total") - number(one, "events_done");
            rate > 0.0 && (left * rate - events as f64).abs() < 1.0
        });
        number(one, "events_done") > 0 && left_is_so
    });
    let under_way = under_way.with_context(|| format!("no rate and time left: {told:?}"))?;
    Ok(number(under_way, "events_total"))
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_says_how_far_it_is() -> Result<()> {
    const EVENTS: i64 = 6_000;
    let stage = Stage::new("replay_progress").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (0)")
        .await?;
    let options = json!({"max_batch_size": 50});
    let tables = ["public.t"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, options)
        .await?;
    mirror.wait_running().await?;
    let mut half = Lsn(0);
    for part in 0..8 {
        let (from, to) = (part * EVENTS + 1, (part + 1) * EVENTS);
        source
            .run(&format!(
                "INSERT INTO t SELECT generate_series({from}, {to})"
            ))
            .await?;
        if part == 3 {
            half = source.current_lsn().await?;
        }
    }
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    apply.restart_slowed("apply::catch_up_after_commit", Duration::from_millis(1000))?;
    let whole = total_of(&told(&api, &mirror, json!({})).await?)?;
    assert!((8 * EVENTS..8 * EVENTS + 500).contains(&whole), "{whole}");
    // One up to a moment has only so far to go.
    let until = json!({"until": {"lsn": half.to_string()}});
    let part = total_of(&told(&api, &mirror, until).await?)?;
    assert!((4 * EVENTS..4 * EVENTS + 500).contains(&part), "{part}");
    Ok(())
}
