//! Schema ids given by a registry outside: Apicurio's, asked as Confluent's would be, and read by
//! Confluent's own Python client.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::clients::{self, output_of};
use bunny_tests::content::TablePair;
use bunny_tests::proxy::Proxy;
use bunny_tests::registry::{PATH, SchemaRegistry};
use bunny_tests::services::repository;
use bunny_tests::stage::{Mirror, Stage};
use serde_json::json;

use crate::crashes::{BEFORE_CDC, SCHEMA_REGISTRY, crash_in_turn};
use crate::subscribers::{source_rows, sqlite_rows};

const LIMIT: Duration = Duration::from_secs(120);
const VALUE_SUBJECT: &str = "mirror.public.orders.Envelope";

struct Scene {
    stage: Stage,
    api: Api,
    registry: SchemaRegistry,
    mirror: Mirror,
    python: PathBuf,
}

impl Scene {
    async fn run(&self, sql: &str) -> Result<()> {
        self.stage.source.connect().await?.run(sql).await
    }

    /// Until the mirror says all of `words`.
    async fn wait_said(&self, status: &str, words: &[&str]) -> Result<()> {
        let what = format!("{status} {words:?}");
        let said = |mirror: &serde_json::Value, _: &serde_json::Value| {
            let said = format!("{} {}", mirror["error_message"], mirror["messages"]);
            mirror["status"] == status && words.iter().all(|word| said.contains(word))
        };
        self.mirror.wait_until(&what, LIMIT, said).await
    }

    async fn ask(&self, action: &str) -> Result<String> {
        let path = format!("/v1/mirrors/mirror/{action}");
        let asked = self.api.post(&path, json!({})).await?.expect(202)?;
        let id = asked["command_id"].as_str().context("no command_id")?;
        Ok(format!("/v1/mirrors/mirror/commands/{id}"))
    }

    /// A copy of the table, which a subscriber waits for when a column has become of another type.
    async fn checkpoint(&self) -> Result<()> {
        let command = self.ask("checkpoint").await?;
        let deadline = Instant::now() + LIMIT;
        while self.api.get(&command).await?.expect(200)?["state"] != "done" {
            ensure!(Instant::now() < deadline, "the checkpoint is not done");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Destination, registry and a subscriber who knows nothing but Kafka and the registry have
    /// what the source has.
    async fn assert_all_agree(&self, columns: &str) -> Result<()> {
        let pairs = [TablePair::same("public.orders")];
        self.stage.assert_converges(&self.mirror, &pairs).await?;
        self.assert_ids_agree().await?;
        let state = self.stage.directory().join("orders.sqlite");
        output_of(
            Command::new(&self.python)
                .arg(repository().join("examples/python/subscriber.py"))
                .args(["--registry", &self.registry.url()])
                .args(["--brokers", &self.stage.services.brokers])
                .args(["--topics", &format!("{}.mirror", self.stage.name)])
                .args(["--table", "public.orders", "--stop-at-end", "--state"])
                .arg(&state)
                .env("PYTHONDONTWRITEBYTECODE", "1"),
        )?;
        let source = self.stage.source.connect().await?;
        let wanted = source_rows(&source, "public.orders", columns).await?;
        ensure!(!wanted.is_empty(), "nothing to compare");
        assert_eq!(
            sqlite_rows(&self.python, &state, "public.orders", columns)?,
            wanted
        );
        Ok(())
    }

    /// Every id of an event is the same schema there and in the schemas topic.
    async fn assert_ids_agree(&self) -> Result<()> {
        let topic = format!("{}.{}.changes", self.stage.name, self.mirror.slug());
        let records = clients::kcat_records(&self.stage.services.brokers, &topic)?;
        for (_, id) in records {
            let path = format!("/schemas/ids/{id}");
            let ours = self
                .api
                .get(&format!("/registry{path}"))
                .await?
                .expect(200)?;
            let theirs = self.registry.get(&path).await?;
            let text = |answer: &serde_json::Value| answer["schema"].as_str().map(str::to_owned);
            let ours = text(&ours).context("no schema")?;
            assert_eq!(Some(ours), text(&theirs), "schema {id}");
        }
        let subjects = self.registry.get("/subjects").await?;
        let subjects = subjects.as_array().context("no subjects")?;
        for subject in [
            VALUE_SUBJECT,
            "mirror.public.orders.Key",
            "bunny.event.Position",
        ] {
            ensure!(
                subjects.contains(&json!(subject)),
                "{subject} of {subjects:?}"
            );
        }
        Ok(())
    }
}

/// Capture dies between being given ids and recording them; the registry goes away and comes
/// back; it refuses a version until it is told not to; and capture is started without it.
#[tokio::test(flavor = "multi_thread")]
async fn ids_come_from_apicurio_and_confluents_client_reads_with_them() -> Result<()> {
    let python = tokio::task::spawn_blocking(clients::install).await??;
    let stage = Stage::new("schema_registry").await?;
    let registry = SchemaRegistry::start(&stage.services, stage.directory()).await?;
    let proxy = Proxy::start(&registry.address()).await?;
    let url = format!("http://127.0.0.1:{}{PATH}", proxy.port());
    stage.migrate()?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let settings = [("BUNNY_SCHEMA_REGISTRY_URL", url.as_str())];
    let mut capture: Bunny = stage.start_with(Role::Capture, &settings)?;
    let points = SCHEMA_REGISTRY;
    capture.restart_to_crash(points[0].0, points[0].1)?;

    stage
        .source
        .connect()
        .await?
        .run(
            "CREATE TABLE orders (id int PRIMARY KEY, note text, amount int);
              INSERT INTO orders SELECT g, 'copied', g FROM generate_series(1, 50) g",
        )
        .await?;
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &["public.orders"],
            json!({"schema_changes": "all"}),
        )
        .await?;
    crash_in_turn(&mut capture, &mirror, &points, true, &BEFORE_CDC).await?;
    capture.restart()?;
    mirror.wait_running().await?;
    let scene = Scene {
        stage,
        api,
        registry,
        mirror,
        python,
    };
    scene
        .run(
            "INSERT INTO orders VALUES (101, 'streamed', 1);
              UPDATE orders SET amount = 0 WHERE id < 10; DELETE FROM orders WHERE id = 20",
        )
        .await?;
    scene.assert_all_agree("id, note, amount").await?;

    // Away when a new version wants an id.
    proxy.refuse();
    proxy.cut();
    scene
        .run("ALTER TABLE orders ADD COLUMN tier int; INSERT INTO orders VALUES (102, 'tiered', 1, 2)")
        .await?;
    let words = ["schema registry", "tries again", "the source keeps WAL"];
    scene.wait_said("RUNNING", &words).await?;
    proxy.heal();
    scene.assert_all_agree("id, note, amount, tier").await?;

    // A version that readers of the one before could not read.
    scene
        .registry
        .set_compatibility(VALUE_SUBJECT, "BACKWARD")
        .await?;
    scene
        .run(
            "ALTER TABLE orders ALTER COLUMN amount TYPE text;
              INSERT INTO orders VALUES (103, 'retyped', 'one', 2)",
        )
        .await?;
    scene
        .wait_said(
            "FAILED",
            &[VALUE_SUBJECT, "compatibility", "NONE", "keeps WAL"],
        )
        .await?;
    scene
        .registry
        .set_compatibility(VALUE_SUBJECT, "NONE")
        .await?;
    scene.ask("retry").await?;
    scene.mirror.wait_running().await?;
    scene.checkpoint().await?;
    scene.assert_all_agree("id, note, amount, tier").await?;

    // Without the setting its ids could be given a second time.
    capture.kill9();
    let mut astray = scene.stage.start(Role::Capture)?;
    scene
        .run("INSERT INTO orders VALUES (104, 'late', 'two', 3)")
        .await?;
    scene
        .wait_said("FAILED", &["BUNNY_SCHEMA_REGISTRY_URL", "built-in"])
        .await?;
    astray.kill9();
    capture.restart()?;
    scene.mirror.wait_running().await?;
    scene.assert_all_agree("id, note, amount, tier").await
}
