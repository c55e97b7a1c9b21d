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
    (SELECT string_agg(concat_ws(' ', id, desired, version, capture_version, apply_version), ',') FROM bunny.mirrors),
    (SELECT string_agg(concat_ws(' ', source_table, request_id), ',' ORDER BY source_table) FROM bunny.mirror_tables))";
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
        let again = self.ask(request).await?;
        ensure!(
            self.written().await?.1 == all.1,
            "{}: asked again, it is another command",
            request.kind
        );
        Ok(again)
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
        for worker in &self.workers {
            worker.signal("STOP")?;
        }
        let delete = Request {
            method: Method::DELETE,
            path: MIRROR,
            body: json!({}),
            kind: "delete",
        };
        let again = self.all_or_nothing(&delete).await;
        for worker in &self.workers {
            worker.signal("CONT")?;
        }
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
