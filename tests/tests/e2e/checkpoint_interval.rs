//! Checkpoints that nobody asks for, and what they are of use for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::lsn::Lsn;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use bunny_tests::topic;
use reqwest::Method;
use serde_json::{Value, json};

use crate::lifecycle::ended;
use crate::replay::REPLAY;

const TABLES: [&str; 2] = ["public.t", "public.u"];
const INTERVAL: Duration = Duration::from_secs(3 * 3600);
/// Whether one is due is looked at every minute.
const DUE: Duration = Duration::from_secs(150);
/// The copies that the tables were last loaded with, one position.
const LOADED: &str = "SELECT min(lsn)::text FROM _bunny.tables";

struct Scene {
    stage: Stage,
    api: Api,
    mirror: Mirror,
    source: Session,
    destination: Session,
}

impl Scene {
    /// Replays, lets the destination be read where the replay ends, and says which copy it
    /// began with.
    async fn replayed(&self, body: Value) -> Result<Lsn> {
        let spoil = "UPDATE t SET v = 'wrong'; DELETE FROM u";
        self.destination.run(spoil).await?;
        let accepted = self.api.post(REPLAY, body).await?.expect(202)?;
        let command = ended(&self.api, &self.mirror, &self.stage, &accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        self.destination.text(LOADED).await?.parse()
    }

    async fn resume(&self) -> Result<()> {
        let resumed = self.api.post("/v1/mirrors/mirror/resume", json!({}));
        resumed.await?.expect(202)?;
        self.mirror.wait_running().await
    }

    async fn keep_hours(&self, hours: u32) -> Result<()> {
        let change = Some(json!({ "topic_retention_hours": hours }));
        let path = "/v1/mirrors/mirror";
        let answer = self.api.request(Method::PATCH, path, change).await?;
        answer.expect(202).map(drop)
    }

    /// Waits until every table can be rebuilt from a copy that will do; gives the earlier one.
    async fn wait_replayable(&self, will_do: impl Fn(Lsn) -> bool) -> Result<Lsn> {
        let from = |mirror: &Value| -> Option<Lsn> {
            let tables = mirror["tables"].as_array()?.iter();
            let lsn = |table: &Value| table["replayable_from"]["lsn"].as_str()?.parse().ok();
            tables
                .map(lsn)
                .collect::<Option<Vec<Lsn>>>()?
                .into_iter()
                .min()
        };
        let done = |mirror: &Value, _: &Value| from(mirror).is_some_and(&will_do);
        self.mirror.wait_until("replayable", CONVERGE, done).await?;
        from(&self.mirror.get().await?).context("not replayable any more")
    }

    /// The records of copies that are gone, in all partitions.
    async fn chunks_begin(&self) -> Result<i64> {
        let topics = self.stage.watermarks_of(&self.mirror).await?;
        let snapshot = &topics[&format!("{}.mirror.snapshot", self.stage.name)];
        Ok(snapshot.iter().map(|(begin, _)| begin).sum())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_come_by_themselves_and_old_copies_go() -> Result<()> {
    let stage = Stage::new("interval").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
              INSERT INTO t SELECT g, 'first' FROM generate_series(1, 2000) g; INSERT INTO u SELECT * FROM t;")
        .await?;
    let options = json!({
        "checkpoint_interval_hours": INTERVAL.as_secs() / 3600, "snapshot_num_rows_per_partition": 500,
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &TABLES, options)
        .await?;
    mirror.wait_running().await?;
    let destination = stage.destination.connect().await?;
    let scene = Scene {
        stage,
        api,
        mirror,
        source,
        destination,
    };
    let pairs = TablePair::all(&TABLES);
    let change = "UPDATE t SET v = v || '.' WHERE id % 2 = 0; DELETE FROM u WHERE id % 10 = 0; INSERT INTO u SELECT max(id) + 1, 'n' FROM u";
    scene.source.run(change).await?;
    scene.stage.assert_converges(&scene.mirror, &pairs).await?;
    let early = scene.source.current_lsn().await?;
    let rows = "SELECT md5(string_agg(x, ',' ORDER BY x)) FROM (SELECT t::text FROM t UNION ALL SELECT u::text FROM u) AS r(x)";
    let then = scene.source.text(rows).await?;
    scene.source.run(change).await?;
    let first = scene.wait_replayable(|_| true).await?;

    // Three hours on, and more than one would be due if one did not count, also for who comes back.
    let copied = "capture::checkpoint_copied";
    capture.restart_to_crash(copied, 1)?;
    let (brokers, prefix) = (&scene.stage.services.brokers, &scene.stage.name);
    topic::age_copies(
        brokers,
        prefix,
        "mirror",
        INTERVAL + Duration::from_secs(60),
    )
    .await?;
    let done = "SELECT count(*) FROM bunny.commands WHERE kind = 'checkpoint' AND state = 'done'
        AND requested_by = 'checkpoint_interval_hours'";
    capture.wait_crash_point(copied, DUE).await?;
    assert_eq!(scene.stage.catalog_text(done).await?, "0");
    capture.restart()?;
    let deadline = Instant::now() + DUE;
    while scene.stage.catalog_text(done).await? != "1" {
        ensure!(Instant::now() < deadline, "no checkpoint comes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // For a moment before it, the first copies are the newest that fit, also when apply dies with them.
    let by_lsn = json!({"until": {"lsn": early.to_string()}});
    let loading = "apply::chunk_before_commit";
    apply.restart_to_crash(loading, 2)?;
    let dies = async {
        apply.wait_crash_point(loading, CONVERGE).await?;
        apply.restart()
    };
    let (from, died) = tokio::join!(scene.replayed(by_lsn.clone()), dies);
    died?;
    assert_eq!(from?, first);
    assert_eq!(scene.destination.text(rows).await?, then);
    scene.resume().await?;
    scene.stage.assert_converges(&scene.mirror, &pairs).await?;

    // Without a window all goes that is not of the checkpoint, behind which nothing has changed.
    assert_eq!(scene.chunks_begin().await?, 0);
    let decided = "apply::retention_raised";
    apply.restart_to_crash(decided, 1)?;
    scene.keep_hours(0).await?;
    apply.wait_crash_point(decided, CONVERGE).await?;
    apply.restart()?;
    let kept = scene.wait_replayable(|from| from > early).await?;
    let deadline = Instant::now() + CONVERGE;
    while scene.chunks_begin().await? == 0 {
        ensure!(Instant::now() < deadline, "the first copies stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.keep_hours(168).await?;
    scene
        .source
        .run("UPDATE u SET v = v || '!'; DELETE FROM t WHERE id < 9")
        .await?;
    scene.stage.assert_converges(&scene.mirror, &pairs).await?;
    let refused = scene.api.post(REPLAY, by_lsn).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(scene.replayed(json!({})).await?, kept);
    scene.stage.assert_converges(&scene.mirror, &pairs).await?;
    // It was one checkpoint all the time.
    assert_eq!(scene.stage.catalog_text(done).await?, "1");
    Ok(())
}
