//! Further destinations of one capture: each loads, follows, stands still and dies for itself,
//! and all read one log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, Url};
use bunny_tests::load::{self, Load};
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use reqwest::Method;
use serde_json::{Value, json};

use crate::lifecycle::wait_status;

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
pub(crate) const FLOOR: &str = "SELECT coalesce(max(floor_offset), 0) FROM _bunny.retention";
pub(crate) const PROGRESS: &str = "SELECT max(next_offset) FROM _bunny.progress";

/// The owner `mirror` under a load, and what else a test of it needs.
pub(crate) struct FanOut {
    pub(crate) stage: Stage,
    pub(crate) api: Api,
    pub(crate) capture: Bunny,
    pub(crate) apply: Bunny,
    pub(crate) api_process: Bunny,
    pub(crate) source: Session,
    pub(crate) owner: Mirror,
    pub(crate) load: Option<Load>,
}

/// A mirror attached to it, and where it writes.
pub(crate) struct Attached {
    pub(crate) mirror: Mirror,
    pub(crate) destination: Url,
    pub(crate) pairs: Vec<TablePair>,
}

pub(crate) async fn fan_out(test: &str) -> Result<FanOut> {
    fan_out_at(Stage::new(test).await?).await
}

/// The same on given servers.
pub(crate) async fn fan_out_on(services: Arc<Services>, test: &str) -> Result<FanOut> {
    fan_out_at(Stage::on(services, test).await?).await
}

async fn fan_out_at(stage: Stage) -> Result<FanOut> {
    let [capture, apply, api_process] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 2000).await?;
    let load = Load::start(&stage.source, 2, 40);
    let options = json!({"snapshot_num_rows_per_partition": 700});
    let owner = stage
        .create_mirror(&api, "mirror", &load::TABLES, options)
        .await?;
    owner.wait_running().await?;
    Ok(FanOut {
        stage,
        api,
        capture,
        apply,
        api_process,
        source,
        owner,
        load: Some(load),
    })
}

pub(crate) fn mappings(pairs: &[TablePair]) -> Value {
    let mapping = |pair: &TablePair| {
        json!({
            "source_schema": pair.source.0, "source_table": pair.source.1,
            "destination_schema": pair.destination.0, "destination_table": pair.destination.1,
        })
    };
    pairs.iter().map(mapping).collect()
}

impl FanOut {
    pub(crate) fn request(&self, name: &str, pairs: &[TablePair], options: &Value) -> Value {
        let mut body = json!({
            "name": name, "source_mirror": "mirror", "destination_peer": name,
            "table_mappings": mappings(pairs),
        });
        for (option, value) in options.as_object().into_iter().flatten() {
            body[option] = value.clone();
        }
        body
    }

    /// Attaches a mirror that writes into a database of its own.
    pub(crate) async fn attach(
        &self,
        name: &str,
        pairs: Vec<TablePair>,
        options: Value,
    ) -> Result<Attached> {
        let destination = self.stage.another_destination(&self.api, name).await?;
        self.attach_to(name, destination, pairs, options).await
    }

    /// The same into a database that is there, and of which the peer `name` is known.
    pub(crate) async fn attach_to(
        &self,
        name: &str,
        destination: Url,
        pairs: Vec<TablePair>,
        options: Value,
    ) -> Result<Attached> {
        let body = self.request(name, &pairs, &options);
        self.api
            .post("/v1/mirrors", body)
            .await?
            .expect(201)
            .with_context(|| self.stage.logs_tail())?;
        Ok(Attached {
            mirror: self.stage.mirror(&self.api, name),
            destination,
            pairs,
        })
    }

    pub(crate) async fn advance(&self, transactions: u64) {
        if let Some(load) = &self.load {
            load.advance(transactions).await;
        }
    }

    /// Lets the load end and compares what the owner and these have, without any lag; then it
    /// goes on.
    pub(crate) async fn settle(&mut self, attached: &[&Attached]) -> Result<()> {
        if let Some(load) = self.load.take() {
            // It may have begun only just now.
            load.advance(1).await;
            load.stop().await;
        }
        self.stage
            .assert_converges(&self.owner, &load::pairs())
            .await?;
        for attached in attached {
            let (mirror, at) = (&attached.mirror, &attached.destination);
            self.stage
                .assert_converges_at(mirror, at, &attached.pairs)
                .await
                .with_context(|| format!("mirror {}", mirror.name))?;
        }
        let no_lag = |_: &Value, metrics: &Value| metrics["lag_bytes"] == 0;
        for mirror in attached.iter().map(|one| &one.mirror).chain([&self.owner]) {
            mirror.wait_until("no lag", CONVERGE, no_lag).await?;
        }
        self.load = Some(Load::start(&self.stage.source, 2, 40));
        Ok(())
    }

    /// Beginning and end of a partition of one of the owner's topics.
    pub(crate) async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let topic = format!("{}.mirror.{topic}", self.stage.name);
        let brokers = self.stage.services.brokers.clone();
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &brokers)
                .create()?;
            let limit = Duration::from_secs(10);
            Ok(consumer.fetch_watermarks(&topic, partition, limit)?)
        })
        .await?
    }

    /// Records of copies so far.
    async fn copied(&self) -> Result<i64> {
        let mut ends = 0;
        for partition in 0..16 {
            ends += self.watermarks("snapshot", partition).await?.1;
        }
        Ok(ends)
    }

    pub(crate) async fn patch(&self, name: &str, change: Value) -> Result<()> {
        let path = format!("/v1/mirrors/{name}");
        let answer = self.api.request(Method::PATCH, &path, Some(change));
        answer.await?.expect(202)?;
        Ok(())
    }

    /// What an attached mirror is known to need of the log, once it will do.
    pub(crate) async fn wait_need(&self, name: &str, will_do: impl Fn(i64) -> bool) -> Result<i64> {
        let sql = format!(
            "SELECT n.floor_offset FROM bunny.log_needs n JOIN bunny.mirrors m ON m.id = n.mirror_id
             WHERE m.name = '{name}'"
        );
        let deadline = Instant::now() + CONVERGE;
        loop {
            let need = self.stage.catalog_text(&sql).await?.parse()?;
            if will_do(need) {
                return Ok(need);
            }
            ensure!(
                Instant::now() < deadline,
                "{name} needs the log from {need} on"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn ask(&self, path: &str, body: Value) -> Result<Value> {
        self.api.post(path, body).await?.expect(202)
    }
}

pub(crate) async fn wait_number(
    session: &Session,
    sql: &str,
    will_do: impl Fn(i64) -> bool,
) -> Result<i64> {
    let deadline = Instant::now() + CONVERGE;
    loop {
        let found = session.number(sql).await?;
        if will_do(found) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{sql} stays {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn is_gone(api: &Api, name: &str) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    let path = format!("/v1/mirrors/{name}");
    while api.get(&path).await?.status != 404 {
        ensure!(Instant::now() < deadline, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One stands still for long; the others go on, and the log is kept for it.
#[tokio::test(flavor = "multi_thread")]
async fn three_destinations_of_one_capture() -> Result<()> {
    let mut fan = fan_out("fan_out").await?;
    let copied = fan.copied().await?;
    // Apply dies while it loads.
    fan.apply
        .restart_to_crash("apply::chunk_before_commit", 2)?;
    let mut renamed = load::pairs();
    renamed[0] = TablePair::renamed("public.accounts", "copy.people");
    let second = fan.attach("second", renamed, json!({})).await?;
    fan.apply
        .wait_crash_point("apply::chunk_before_commit", CONVERGE)
        .await?;
    fan.apply.restart()?;
    let two = TablePair::all(&["public.accounts", "public.journal"]);
    let third = fan.attach("third", two, json!({})).await?;
    for attached in [&second, &third] {
        attached.mirror.wait_running().await?;
    }
    fan.advance(50).await;
    fan.settle(&[&second, &third]).await?;
    assert_eq!(
        fan.copied().await?,
        copied,
        "the source was asked for a copy"
    );
    assert_eq!(fan.source.number(SLOTS).await?, 1);
    let shown = fan.owner.get().await?;
    assert_eq!(shown["attached_mirrors"], json!(["second", "third"]));
    assert_eq!(second.mirror.get().await?["source_mirror"], "mirror");

    // Nobody keeps more than is needed, and one stands still.
    for name in ["mirror", "second", "third"] {
        fan.patch(name, json!({"topic_retention_hours": 0})).await?;
    }
    fan.wait_need("third", |need| need > 0).await?;
    fan.ask("/v1/mirrors/third/pause", json!({})).await?;
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    third.mirror.wait_until("PAUSED", CONVERGE, paused).await?;
    let need = fan.wait_need("third", |_| true).await?;
    let there = third.destination.connect().await?;
    let stood_at = there.number(PROGRESS).await?;
    fan.advance(150).await;
    fan.settle(&[&second]).await?;
    ensure!(
        there.number(PROGRESS).await? == stood_at,
        "it did not stand still"
    );
    // What the others need is far above by now, and still the log is kept.
    fan.wait_need("second", |need| need > stood_at).await?;
    let own = fan.stage.destination.connect().await?;
    wait_number(&own, FLOOR, |floor| floor == need).await?;
    fan.advance(50).await;
    fan.wait_need("second", |need| need > stood_at + 50).await?;
    assert_eq!(own.number(FLOOR).await?, need);
    assert!(need <= stood_at && fan.watermarks("changes", 0).await?.0 <= need);
    // Its copy is there for the third only: the second has given it up, and is told so at once.
    let refused = fan.api.post("/v1/mirrors/second/replay", json!({})).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);

    // It comes back, and then the log goes.
    fan.ask("/v1/mirrors/third/resume", json!({})).await?;
    fan.settle(&[&second, &third]).await?;
    wait_number(&own, FLOOR, |floor| floor > stood_at).await?;
    let deadline = Instant::now() + CONVERGE;
    while fan.watermarks("changes", 0).await?.0 <= stood_at {
        ensure!(Instant::now() < deadline, "nothing is trimmed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Its copies are gone: who comes now is told so, and what to do.
    fan.stage.another_destination(&fan.api, "fourth").await?;
    let pairs = TablePair::all(&["public.documents"]);
    let body = fan.request("fourth", &pairs, &json!({}));
    let refused = fan.api.post("/v1/mirrors", body).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let said = refused.body["error"].as_str().unwrap_or_default();
    assert!(said.contains("\"initial_load\": \"fresh\""), "{said}");

    fan.settle(&[&second, &third]).await
}

/// What is asked for one destination is done for that one.
#[tokio::test(flavor = "multi_thread")]
async fn each_destination_has_its_own_wishes() -> Result<()> {
    let mut fan = fan_out("fan_wishes").await?;
    let two = TablePair::all(&["public.accounts", "public.journal"]);
    let fresh = json!({"initial_load": "fresh", "schema_changes": "all"});
    let copied = fan.copied().await?;
    let second = fan.attach("second", two, fresh).await?;
    second.mirror.wait_running().await?;
    let after = fan.copied().await?;
    ensure!(after > copied, "no fresh copy was made");
    fan.settle(&[&second]).await?;

    // A resync and a replay of a table there are nothing here.
    let here = fan.stage.destination.connect().await?;
    let there = second.destination.connect().await?;
    let requests =
        "SELECT string_agg(request_id::text, ',' ORDER BY source_table) FROM _bunny.tables";
    let before = (here.text(requests).await?, there.text(requests).await?);
    for (path, body) in [
        ("resync/public.accounts", json!({})),
        ("replay", json!({"tables": ["public.journal"]})),
        ("resync/public.accounts", json!({"strategy": "swap"})),
    ] {
        let accepted = fan.ask(&format!("/v1/mirrors/second/{path}"), body).await?;
        ended(&fan, "second", &accepted).await?;
    }
    fan.settle(&[&second]).await?;
    assert_eq!(here.text(requests).await?, before.0);
    assert_ne!(there.text(requests).await?, before.1);

    // What only the owner can do, and what must not be done to who is attached.
    for (path, body) in [
        ("/v1/mirrors/second/pause", json!({"scope": "all"})),
        ("/v1/mirrors/second/checkpoint", json!({})),
        ("/v1/mirrors/second/sync-schema", json!({})),
    ] {
        let refused = fan.api.post(path, body).await?;
        assert_eq!(refused.status, 409, "{path}: {}", refused.body);
    }
    let fewer = TablePair::all(&["public.accounts", "public.documents", "public.measurements"]);
    let body = json!({ "table_mappings": mappings(&fewer) });
    let refused = fan.api.put("/v1/mirrors/mirror/tables", body).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let said = refused.body["error"].as_str().unwrap_or_default();
    assert!(
        said.contains("public.journal by mirror \"second\""),
        "{said}"
    );
    let refused = fan.api.delete("/v1/mirrors/mirror").await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let said = refused.body["error"].as_str().unwrap_or_default();
    assert!(said.contains("feeds second"), "{said}");

    // Capture stands still for all.
    fan.ask("/v1/mirrors/mirror/pause", json!({"scope": "all"}))
        .await?;
    let said = |mirror: &Value, _: &Value| mirror["error_message"] == "capture paused by mirror";
    second
        .mirror
        .wait_until("capture paused", CONVERGE, said)
        .await?;
    fan.ask("/v1/mirrors/mirror/resume", json!({})).await?;
    fan.settle(&[&second]).await?;

    // Rows that no event carries reach every destination.
    fan.source
        .run("ALTER TABLE accounts ALTER owner TYPE text USING upper(owner)")
        .await?;
    let resync = "SELECT count(*) FROM bunny.commands WHERE kind = 'resync' AND requested_by = 'untracked_changes'";
    let deadline = Instant::now() + CONVERGE;
    while fan.stage.catalog_text(resync).await? != "2" {
        ensure!(Instant::now() < deadline, "not noticed for both");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fan.settle(&[&second]).await?;

    // It leaves, and takes nothing along.
    fan.api.delete("/v1/mirrors/second").await?.expect(202)?;
    is_gone(&fan.api, "second").await?;
    assert_eq!(there.number("SELECT count(*) FROM _bunny.tables").await?, 0);
    assert!(there.number("SELECT count(*) FROM accounts").await? > 0);
    fan.advance(20).await;
    fan.settle(&[]).await?;
    fan.api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    is_gone(&fan.api, "mirror").await
}

/// The destination has given the copies up and died before it could say so: replays are taken, and
/// refused when they are to begin. The tables stay what they are, one of them by an earlier replay,
/// and a mirror that was paused is so again.
#[tokio::test(flavor = "multi_thread")]
async fn replays_that_come_too_late_change_nothing() -> Result<()> {
    let mut fan = fan_out("fan_late").await?;
    let two = TablePair::all(&["public.accounts", "public.journal"]);
    let second = fan.attach("second", two, json!({})).await?;
    second.mirror.wait_running().await?;
    let replay = "/v1/mirrors/second/replay";
    let accepted = fan
        .ask(replay, json!({"tables": ["public.journal"]}))
        .await?;
    ended(&fan, "second", &accepted).await?;
    fan.advance(20).await;
    fan.settle(&[&second]).await?;
    let there = second.destination.connect().await?;
    let requests = "SELECT string_agg(concat_ws(' ', request_id, attempt), ',' ORDER BY source_table) FROM _bunny.tables";
    let held = there.text(requests).await?;

    fan.apply.kill9();
    fan.patch("second", json!({"topic_retention_hours": 0}))
        .await?;
    fan.apply.restart_to_crash("apply::retention_raised", 1)?;
    fan.apply
        .wait_crash_point("apply::retention_raised", CONVERGE)
        .await?;
    assert_eq!(fan.wait_need("second", |_| true).await?, 0);
    let applied = there
        .text("SELECT commit_lsn::text FROM _bunny.progress")
        .await?;
    let mut late = vec![
        fan.ask(replay, json!({"tables": ["public.journal"]}))
            .await?,
    ];
    fan.ask("/v1/mirrors/second/pause", json!({})).await?;
    let body = json!({"tables": ["public.accounts"], "until": {"lsn": applied}});
    late.push(fan.ask(replay, body).await?);
    fan.apply.restart()?;
    for accepted in &late {
        let id = accepted["command_id"].as_str().unwrap_or_default();
        let path = format!("/v1/mirrors/second/commands/{id}");
        let deadline = Instant::now() + CONVERGE;
        let command = loop {
            let command = fan.api.get(&path).await?.expect(200)?;
            if !["pending", "running"].contains(&command["state"].as_str().unwrap_or_default()) {
                break command;
            }
            ensure!(Instant::now() < deadline, "{command}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(command["state"], "failed", "{command}");
        let said = command["error"].as_str().unwrap_or_default();
        assert!(said.contains("nothing was changed"), "{said}");
    }
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    second.mirror.wait_until("PAUSED", CONVERGE, paused).await?;
    assert_eq!(there.text(requests).await?, held);
    fan.ask("/v1/mirrors/second/resume", json!({})).await?;
    fan.settle(&[&second]).await?;
    assert_eq!(there.text(requests).await?, held);
    Ok(())
}

/// The owner's history is lost, and all begin another one.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn every_destination_follows_another_generation() -> Result<()> {
    let mut fan = fan_out("fan_generation").await?;
    let two = TablePair::all(&["public.accounts", "public.measurements"]);
    let second = fan.attach("second", two, json!({})).await?;
    second.mirror.wait_running().await?;
    let deadline = Instant::now() + CONVERGE;
    while fan.source.number(SLOTS).await? > 0 {
        ensure!(Instant::now() < deadline, "the slot is still there");
        let drop = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                WHERE database = current_database() AND active_pid IS NOT NULL;
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                WHERE database = current_database() AND NOT temporary";
        let _ = fan.source.run(drop).await;
    }
    let failed = |mirror: &Value, _: &Value| mirror["status"] == "FAILED";
    fan.owner.wait_until("FAILED", CONVERGE, failed).await?;
    let down = |mirror: &Value, _: &Value| {
        let said = mirror["error_message"].as_str().unwrap_or_default();
        mirror["health"] == "DOWN" && said.contains("capture of mirror \"mirror\"")
    };
    second.mirror.wait_until("DOWN", CONVERGE, down).await?;
    fan.source
        .run("DELETE FROM accounts WHERE id <= 40")
        .await?;
    fan.apply.restart_to_crash("apply::generation_entered", 1)?;
    fan.ask("/v1/mirrors/mirror/resync", json!({})).await?;
    fan.apply
        .wait_crash_point("apply::generation_entered", CONVERGE)
        .await?;
    fan.apply.restart()?;
    fan.owner.wait_running().await?;
    wait_status(&second.mirror, "public.accounts", "LIVE").await?;
    fan.advance(20).await;
    fan.settle(&[&second]).await?;
    assert_eq!(fan.source.number(SLOTS).await?, 1);
    Ok(())
}

/// Waits until a command has ended well.
pub(crate) async fn ended(fan: &FanOut, name: &str, accepted: &Value) -> Result<()> {
    let id = accepted["command_id"].as_str().unwrap_or_default();
    let path = format!("/v1/mirrors/{name}/commands/{id}");
    let deadline = Instant::now() + CONVERGE;
    loop {
        let command = fan.api.get(&path).await?.expect(200)?;
        if command["state"] == "done" {
            return Ok(());
        }
        let is_open = command["state"] != "failed" && Instant::now() < deadline;
        ensure!(is_open, "{command}{}", fan.stage.logs_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
