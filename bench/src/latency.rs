//! Commit to visible: from the moment the writer's COMMIT has returned to the moment a
//! reader at the destination sees the row. All clocks are this process's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::{Session, Url};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::ground::Ground;
use crate::mirror::Mirror;
use crate::native::Subscription;
use crate::report::{Latency, NATIVE, percentile};

const CREATE: &str =
    "CREATE TABLE ticks (writer int, n bigint, note text, PRIMARY KEY (writer, n))";
const TABLE: &str = "public.ticks";
const WRITERS: usize = 8;
/// How often the reader looks.
const LOOK: Duration = Duration::from_millis(1);
/// Rows that have not arrived by then never will.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures each rate (transactions a second) for `seconds`, native and mirror in turn.
pub async fn run(
    ground: &mut Ground,
    rates: &[u32],
    seconds: u32,
    rounds: u32,
) -> Result<Vec<Latency>> {
    let url = ground.stage.source.clone();
    ground
        .source
        .run(&format!(
            "{CREATE}; CREATE PUBLICATION ticks FOR TABLE ticks"
        ))
        .await?;
    let native = ground.destination("ticks_native").await?;
    native.connect().await?.run(CREATE).await?;
    let subscription = Subscription::create(ground, "bench_ticks", "ticks", &native).await?;
    subscription.wait_copied().await?;
    subscription.disable().await?;
    let peer = ground.destination("ticks_mirror").await?;
    let at = ("ticks_mirror", &peer);
    let mirror = Mirror::create(ground, "ticks", &[TABLE], at, json!({})).await?;
    mirror.wait_live(ground).await?;
    mirror.stop(ground).await?;
    let mut found = Vec::new();
    for _ in 0..rounds {
        for &rate in rates {
            subscription.enable().await?;
            found.push(measure(&url, &subscription.destination, NATIVE, rate, seconds).await?);
            subscription.disable().await?;
            ground.source.run("TRUNCATE ticks").await?;
            mirror.go(ground).await?;
            mirror.wait_live(ground).await?;
            found.push(measure(&url, &mirror.destination, "mirror", rate, seconds).await?);
            content::assert_same(
                &ground.source,
                &mirror.destination,
                &TablePair::all(&[TABLE]),
            )
            .await?;
            mirror.stop(ground).await?;
            ground.source.run("TRUNCATE ticks").await?;
        }
    }
    subscription.remove().await?;
    mirror.remove(ground).await?;
    ground.clear().await?;
    Ok(found)
}

/// Commits that the reader has not seen yet, by writer.
type Outstanding = Arc<[Mutex<VecDeque<(i64, Instant)>>; WRITERS]>;

async fn measure(
    source: &Url,
    destination: &Session,
    contestant: &str,
    rate: u32,
    seconds: u32,
) -> Result<Latency> {
    // What was written before is there, and the stream flows.
    let source_session = source.connect().await?;
    source_session
        .run("INSERT INTO ticks VALUES (-1, 1, 'first'); TRUNCATE ticks; INSERT INTO ticks VALUES (-1, 2, 'ready')")
        .await?;
    let sql = "SELECT count(*) = 1 AND min(n) = 2 FROM ticks";
    crate::ground::wait_true(destination, sql).await?;
    let outstanding = Outstanding::default();
    let mut writers = JoinSet::new();
    let pause = Duration::from_secs_f64(1.0 / f64::from(rate));
    let mut sessions = Vec::new();
    for _ in 0..WRITERS {
        sessions.push(source.connect().await?);
    }
    // They take turns, so that transactions come one after the other and not eight at a time.
    let mut first = tokio::time::Instant::now();
    for (writer, session) in sessions.into_iter().enumerate() {
        let ticks = tokio::time::interval_at(first, pause * WRITERS as u32);
        let count = u64::from(rate) * u64::from(seconds) / WRITERS as u64;
        writers.spawn(write(session, writer, ticks, count, outstanding.clone()));
        first += pause;
    }
    let statement = destination
        .prepare(
            "SELECT coalesce((SELECT max(n) FROM ticks WHERE writer = w), 0)
             FROM generate_series(0, $1::int - 1) w ORDER BY w",
        )
        .await?;
    let mut milliseconds = Vec::new();
    let mut writing = true;
    let mut quiet_since = Instant::now();
    loop {
        let rows = destination.query(&statement, &[&(WRITERS as i32)]).await?;
        let now = Instant::now();
        let mut left = false;
        for (row, commits) in rows.iter().zip(outstanding.iter()) {
            let seen: i64 = row.get(0);
            let Ok(mut commits) = commits.lock() else {
                bail!("a writer failed");
            };
            while let Some((_, committed)) = commits.pop_front_if(|(n, _)| *n <= seen) {
                milliseconds.push(now.duration_since(committed).as_secs_f64() * 1e3);
                quiet_since = now;
            }
            left |= !commits.is_empty();
        }
        while let Some(ended) = writers.try_join_next() {
            ended.context("a writer failed")??;
        }
        if writing && writers.is_empty() {
            writing = false;
            continue;
        }
        if !writing && !left {
            break;
        }
        if quiet_since.elapsed() > LIMIT {
            bail!("nothing has arrived at {contestant} for {LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    milliseconds.sort_by(f64::total_cmp);
    let latency = Latency {
        contestant: contestant.to_owned(),
        transactions_per_second: rate,
        transactions: milliseconds.len(),
        p50_ms: percentile(&milliseconds, 0.50),
        p95_ms: percentile(&milliseconds, 0.95),
        p99_ms: percentile(&milliseconds, 0.99),
        max_ms: percentile(&milliseconds, 1.0),
    };
    eprintln!(
        "latency {contestant} at {rate}/s: p50 {:.1} p99 {:.1} ms",
        latency.p50_ms, latency.p99_ms
    );
    Ok(latency)
}

async fn write(
    session: Session,
    writer: usize,
    mut ticks: tokio::time::Interval,
    count: u64,
    outstanding: Outstanding,
) -> Result<()> {
    let insert = session
        .prepare("INSERT INTO ticks VALUES ($1, $2, 'a note of some length')")
        .await?;
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let number = writer as i32;
    for n in 1..=count as i64 {
        ticks.tick().await;
        session.execute(&insert, &[&number, &n]).await?;
        let committed = Instant::now();
        if let Ok(mut commits) = outstanding[writer].lock() {
            commits.push_back((n, committed));
        }
    }
    Ok(())
}
