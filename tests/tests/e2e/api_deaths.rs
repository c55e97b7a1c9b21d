//! Deaths of the API while it writes down what was asked for: before the commit nothing is there,
//! after it everything, and whoever had no answer and asks again is answered rightly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::api::{Answer, Api};
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::stage::{CONVERGE, Stage};
use reqwest::Method;
use serde_json::{Value, json};

use crate::lifecycle::mappings;

const LIMIT: Duration = Duration::from_secs(60);
const MIRROR: &str = "/v1/mirrors/mirror";

/// On the way of every command.
pub const API_COMMANDS: [(&str, u32); 2] =
    [("catalog::wish_written", 1), ("catalog::wish_committed", 1)];

/// All that somebody wished, without what workers say of it.
const WISHES: &str = "SELECT concat_ws(' | ',
    (SELECT string_agg(concat_ws(' ', id, desired, generation, version, capture_version, apply_version, config), ',') FROM bunny.mirrors),
    (SELECT string_agg(concat_ws(' ', source_table, request_id, retry_id, checkpoint_id, replay), ',' ORDER BY source_table) FROM bunny.mirror_tables))";
const COMMANDS: &str =
    "SELECT coalesce(string_agg(kind, ' ' ORDER BY created_at), '') FROM bunny.commands";

struct Scene {
    api_process: Bunny,
    workers: [Bunny; 2],
    api: Api,
    catalog: Session,
    deaths: u32,
    stage: Stage,
}

/// What is asked for.
struct Request<'a> {
    method: Method,
    path: &'a str,
    body: Value,
    /// The command that it is.
    kind: &'a str,
}

impl Scene {
    async fn new(test: &str) -> Result<Scene> {
        let stage = Stage::new(test).await?;
        let [capture, apply, api_process] = stage.start_all()?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        let source = stage.source.connect().await?;
        for table in ["a", "b"] {
            source
                .run(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} SELECT generate_series(1, 100)"))
                .await?;
        }
        Ok(Scene {
            api_process,
            workers: [capture, apply],
            api,
            catalog: stage.catalog.connect().await?,
            deaths: 0,
            stage,
        })
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Answer> {
        let body = Some(request.body.clone());
        self.api
            .request(request.method.clone(), request.path, body)
            .await
    }

    /// The API dies at `point` of what is asked for; whoever asked is told nothing.
    async fn dies_at(&mut self, point: &str, request: &Request<'_>) -> Result<()> {
        self.api_process.restart_to_crash(point, 1)?;
        self.api.wait_ready(LIMIT).await?;
        let answer = self.ask(request).await;
        ensure!(answer.is_err(), "{point} of {}: {answer:?}", request.kind);
        self.api_process.wait_crash_point(point, LIMIT).await?;
        self.deaths += 1;
        Ok(())
    }

    /// It dies at both points. Gives what the same request is answered then, which is no other
    /// command. (Of a deletion workers are told again, and try it at once.)
    async fn all_or_nothing(&mut self, request: &Request<'_>) -> Result<Answer> {
        let all = self.nothing_then_all(request).await?;
        let again = self.ask(request).await?;
        ensure!(
            self.written().await?.1 == all,
            "{}: asked again, it is another command",
            request.kind
        );
        Ok(again)
    }

    /// It dies at both points, and lives again. Gives the commands there are.
    async fn nothing_then_all(&mut self, request: &Request<'_>) -> Result<String> {
        let [(written, _), (committed, _)] = API_COMMANDS;
        let (wishes, commands) = self.written().await?;
        self.dies_at(written, request).await?;
        ensure!(
            self.written().await? == (wishes.clone(), commands.clone()),
            "{}: something is there without a commit",
            request.kind
        );
        self.dies_at(committed, request).await?;
        let all = self.written().await?;
        let expected = format!("{commands} {}", request.kind);
        ensure!(
            all.0 != wishes && all.1 == expected.trim(),
            "{}: not all of it is there: {all:?}",
            request.kind
        );
        self.api_process.restart()?;
        self.api.wait_ready(LIMIT).await?;
        Ok(all.1)
    }

    /// The same while no worker acts on it, so that whoever asks again finds it open. Gives the
    /// command when it has ended.
    async fn stays_open(&mut self, path: &str, kind: &str) -> Result<Value> {
        let request = Request {
            method: Method::POST,
            path: &format!("{MIRROR}{path}"),
            body: json!({}),
            kind,
        };
        self.workers_get("STOP")?;
        let again = self.all_or_nothing(&request).await;
        self.workers_get("CONT")?;
        let again = again?.expect(202)?;
        self.ended(&again, kind).await
    }

    fn workers_get(&self, signal: &str) -> Result<()> {
        self.workers
            .iter()
            .try_for_each(|worker| worker.signal(signal))
    }

    async fn ended(&self, answer: &Value, kind: &str) -> Result<Value> {
        let id = answer["command_id"].as_str().context("a command")?;
        let path = format!("{MIRROR}/commands/{id}");
        let deadline = std::time::Instant::now() + CONVERGE;
        loop {
            let command = self.api.get(&path).await?.expect(200)?;
            ensure!(command["kind"] == kind, "{command}");
            if command["state"] == "done" {
                return Ok(command);
            }
            ensure!(
                command["state"] != "failed" && std::time::Instant::now() < deadline,
                "{command}{}",
                self.stage.logs_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is asked of a mirror that runs.
    async fn is_asked_for_more(&mut self) -> Result<()> {
        let body = json!({"name": "mirror", "source_peer": "source", "destination_peer": "destination",
            "table_mappings": mappings(&["public.a", "public.b"])["table_mappings"]});
        self.api.post("/v1/mirrors", body).await?.expect(201)?;
        let mirror = self.stage.mirror(&self.api, "mirror");
        mirror.wait_running().await?;
        // What is kept no longer is removed by each process that begins.
        self.catalog
            .run("INSERT INTO bunny.logs (mirror_id, level, message) SELECT id, 'info', 'old' FROM bunny.mirrors, generate_series(1, 12000);
                  INSERT INTO bunny.audit (username, action, subject, created_at) VALUES ('x', 'create user', 'old', now() - interval '401 days')")
            .await?;

        let patch = Request {
            method: Method::PATCH,
            path: MIRROR,
            body: json!({"max_batch_size": 7}),
            kind: "update",
        };
        self.nothing_then_all(&patch).await?;
        ensure!(mirror.get().await?["config"]["max_batch_size"] == 7);
        // Asked again it is another command, which changes nothing.
        let again = self.ask(&patch).await?.expect(202)?;
        self.ended(&again, "update").await?;

        for (path, kind) in [
            ("/retry", "retry"),
            ("/checkpoint", "checkpoint"),
            ("/sync-schema", "sync_schema"),
            ("/replay", "replay"),
        ] {
            if kind == "retry" {
                // Nobody has said for a while that all is well, so that there is something to do.
                self.workers_get("STOP")?;
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
            self.stays_open(path, kind).await?;
        }
        let pause = self.api.post(&format!("{MIRROR}/pause"), json!({})).await?;
        self.ended(&pause.expect(202)?, "pause").await?;
        self.stays_open("/resume", "resume").await?;

        // As a catalog that was restored from a backup notes it.
        self.catalog
            .run("INSERT INTO bunny.unknown_wishes (command_id, mirror_id) SELECT gen_random_uuid(), id FROM bunny.mirrors")
            .await?;
        self.stays_open("/adopt", "adopt").await?;
        mirror.wait_running().await?;

        // Of a lost history it is another generation.
        let source = self.stage.source.connect().await?;
        source
            .run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active;
                  DO $$ DECLARE slot text; BEGIN LOOP
                      SELECT slot_name INTO slot FROM pg_replication_slots WHERE database = current_database();
                      EXIT WHEN slot IS NULL;
                      BEGIN PERFORM pg_drop_replication_slot(slot); EXCEPTION WHEN object_in_use THEN
                          PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = slot; END;
                  END LOOP; END $$")
            .await?;
        mirror
            .wait_until("FAILED for its slot", CONVERGE, |mirror, _| {
                let said = mirror["error_message"].as_str().unwrap_or_default();
                mirror["status"] == "FAILED" && said.contains("resync the mirror")
            })
            .await?;
        self.stays_open("/resync", "resync").await?;
        let old = "SELECT (SELECT count(*) FROM bunny.audit WHERE subject = 'old')
            + (SELECT count(*) FROM bunny.logs WHERE message = 'old') / 10000";
        ensure!(self.catalog.number(old).await? == 0, "old entries stay");
        mirror.wait_running().await?;
        source
            .run("INSERT INTO a SELECT generate_series(101, 150); DELETE FROM b WHERE id < 20")
            .await?;
        let pairs = TablePair::all(&["public.a", "public.b"]);
        self.stage.assert_converges(&mirror, &pairs).await
    }

    async fn written(&self) -> Result<(String, String)> {
        let wishes = self.catalog.text(WISHES).await?;
        Ok((wishes, self.catalog.text(COMMANDS).await?))
    }

    /// The command that is meant by whoever asked again.
    async fn command(&self, answer: Answer, kind: &str) -> Result<()> {
        let answer = answer.expect(202)?;
        let id = answer["command_id"].as_str().context("a command")?;
        let command = self.api.get(&format!("{MIRROR}/commands/{id}")).await?;
        let command = command.expect(200)?;
        ensure!(command["kind"] == kind, "{command}");
        Ok(())
    }

    /// A mirror's whole life; the API dies twice in every request of it.
    async fn lives(&mut self) -> Result<()> {
        let mut body = mappings(&["public.a"]);
        for (name, value) in [
            ("name", "mirror"),
            ("source_peer", "source"),
            ("destination_peer", "destination"),
            ("on_existing_rows", "truncate"),
        ] {
            body[name] = json!(value);
        }
        let create = Request {
            method: Method::POST,
            path: "/v1/mirrors",
            body,
            kind: "create",
        };
        self.all_or_nothing(&create).await?.expect(409)?;
        let mirror = self.stage.mirror(&self.api, "mirror");
        mirror.wait_running().await?;

        let tables = Request {
            method: Method::PUT,
            path: &format!("{MIRROR}/tables"),
            body: mappings(&["public.a", "public.b"]),
            kind: "tables",
        };
        let same = self.all_or_nothing(&tables).await?.expect(200)?;
        ensure!(same["added"] == json!([]), "{same}");
        let is_live = |mirror: &Value| {
            let tables = mirror["tables"].as_array();
            let is_live = |table: &Value| table["status"] == "LIVE";
            tables.is_some_and(|tables| tables.len() == 2 && tables.iter().all(is_live))
        };
        mirror
            .wait_until("both LIVE", CONVERGE, |mirror, _| is_live(mirror))
            .await?;

        let pause = Request {
            method: Method::POST,
            path: &format!("{MIRROR}/pause"),
            body: json!({}),
            kind: "pause",
        };
        let again = self.all_or_nothing(&pause).await?;
        self.command(again, "pause").await?;
        mirror
            .wait_until("PAUSED", CONVERGE, |mirror, _| mirror["status"] == "PAUSED")
            .await?;

        // Of a paused mirror it stays open, so that it is the same when asked again.
        let resync = Request {
            method: Method::POST,
            path: &format!("{MIRROR}/resync/public.b"),
            body: json!({"strategy": "truncate"}),
            kind: "resync",
        };
        let again = self.all_or_nothing(&resync).await?;
        self.command(again, "resync").await?;
        self.api
            .post(&format!("{MIRROR}/resume"), json!({}))
            .await?
            .expect(202)?;
        mirror
            .wait_until("RUNNING again", CONVERGE, |mirror, _| {
                mirror["status"] == "RUNNING" && is_live(mirror)
            })
            .await?;
        let pairs = TablePair::all(&["public.a", "public.b"]);
        self.stage.assert_converges(&mirror, &pairs).await?;

        // Without its workers it is not gone before it is asked for again.
        self.workers_get("STOP")?;
        let delete = Request {
            method: Method::DELETE,
            path: MIRROR,
            body: json!({}),
            kind: "delete",
        };
        let again = self.all_or_nothing(&delete).await;
        self.workers_get("CONT")?;
        self.command(again?, "delete").await?;
        let deadline = std::time::Instant::now() + CONVERGE;
        while self.api.get(MIRROR).await?.status != 404 {
            ensure!(
                std::time::Instant::now() < deadline,
                "{}",
                self.stage.logs_tail()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

async fn the_api_dies_in_every_request(test: &str, lives: u32) -> Result<()> {
    let mut scene = Scene::new(test).await?;
    let pids = scene.workers.each_ref().map(Bunny::pid);
    for _ in 0..lives {
        scene.catalog.run("DELETE FROM bunny.commands").await?;
        scene.lives().await?;
    }
    ensure!(scene.deaths == 10 * lives, "{} deaths", scene.deaths);
    ensure!(
        scene.workers.each_ref().map(Bunny::pid) == pids
            && scene.workers.iter_mut().all(Bunny::is_running),
        "a worker ended with the API"
    );
    Ok(())
}

#[cfg(not(feature = "full"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_which_the_api_dies_is_done_or_not() -> Result<()> {
    the_api_dies_in_every_request("api_deaths", 1).await
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_which_the_api_dies_is_done_or_not() -> Result<()> {
    the_api_dies_in_every_request("api_deaths", 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_a_running_mirror_is_done_or_not() -> Result<()> {
    let mut scene = Scene::new("api_deaths_more").await?;
    scene.is_asked_for_more().await?;
    ensure!(scene.deaths == 16, "{} deaths", scene.deaths);
    Ok(())
}
