//! Histories that are lost: slot, publications or topics gone. The mirror fails with the
//! cause, and a resync of it starts another generation, also when processes die on the way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::database::Session;
use bunny_tests::stage::CONVERGE;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};

use crate::crashes::{Scene, scene};
use crate::lifecycle::wait_status;

/// When apply turns to another generation.
pub const APPLY_GENERATION: [(&str, u32); 1] = [("apply::generation_entered", 1)];

const RESYNC: &str = "/v1/mirrors/mirror/resync";
const CRASH_LIMIT: Duration = Duration::from_secs(60);

/// Drops the mirror's slot, as someone who does not know better might.
pub async fn lose_slot(source: &Session) -> Result<()> {
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND NOT temporary";
    let deadline = Instant::now() + CONVERGE;
    while source.number(slots).await? > 0 {
        ensure!(Instant::now() < deadline, "the slot is still there");
        let drop = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
            WHERE database = current_database() AND active_pid IS NOT NULL;
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
            WHERE database = current_database() AND NOT temporary";
        let _ = source.run(drop).await;
    }
    Ok(())
}

impl Scene {
    pub async fn lose_slot(&self, source: &Session) -> Result<()> {
        lose_slot(source).await
    }

    /// Waits until the mirror is FAILED and says the cure; gives its error_message.
    async fn failed(&self) -> Result<String> {
        let message = |mirror: &Value| mirror["error_message"].as_str().map(str::to_owned);
        let is_failed = |mirror: &Value, _: &Value| {
            let says = message(mirror).is_some_and(|said| said.contains("resync the mirror"));
            mirror["status"] == "FAILED" && says
        };
        self.mirror
            .wait_until("FAILED, with the cure", CONVERGE, is_failed)
            .await?;
        Ok(message(&self.mirror.get().await?).unwrap_or_default())
    }

    async fn resync(&self) -> Result<Value> {
        self.api.post(RESYNC, json!({})).await?.expect(202)
    }

    async fn is_well_again(&self, accepted: &Value) -> Result<()> {
        let command = self.ended(accepted).await?;
        ensure!(command["state"] == "done", "{command}");
        self.mirror.wait_running().await
    }

    async fn delete_changes(&self) -> Result<()> {
        let brokers = &self.stage.services.brokers;
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()?;
        let topic = format!("{}.{}.changes", self.stage.name, self.mirror.slug());
        let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await?;
        for topic in deleted {
            topic.map_err(|(topic, error)| anyhow::anyhow!("deleting {topic}: {error}"))?;
        }
        Ok(())
    }
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_history_begins_anew() -> Result<()> {
    let mut scene = scene("generations", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let source = scene.stage.source.connect().await?;
    let destination = scene.stage.destination.connect().await?;

    // Someone drops the slot, and capture finds it gone.
    scene.lose_slot(&source).await?;
    let cause = scene.failed().await?;
    assert!(cause.contains("slot is gone"), "{cause}");
    // What is done now is in no log.
    source
        .run(
            "DELETE FROM accounts WHERE id <= 40; UPDATE documents SET title = 'unseen' WHERE id % 3 = 0;
             INSERT INTO journal SELECT 50, g, 'unseen', now() FROM generate_series(1, 100) g;",
        )
        .await?;
    scene.load.advance(30).await;
    for (path, body) in [
        (format!("{RESYNC}/public.accounts"), json!({})),
        (RESYNC.to_owned(), json!({"strategy": "swap"})),
    ] {
        let refused = scene.api.post(&path, body).await?;
        assert_eq!(refused.status, 409, "{}", refused.body);
    }
    scene.apply.restart_to_crash(APPLY_GENERATION[0].0, 1)?;
    scene.capture.kill9();
    let accepted = scene.resync().await?;
    // What is cured by it is over once it is accepted, whoever is there to act on it.
    let shown = scene.mirror.get().await?;
    let status = (&shown["status"], &shown["failures"]);
    assert_eq!(status, (&json!("SETUP"), &json!({})), "{shown}");
    assert_eq!(accepted["command_id"], scene.resync().await?["command_id"]);
    for point in ["capture::slot_created", "capture::generation_recorded"] {
        scene.capture.restart_to_crash(point, 1)?;
        scene.capture.wait_crash_point(point, CRASH_LIMIT).await?;
    }
    scene.capture.restart()?;
    for point in [APPLY_GENERATION[0].0, "apply::tables_loaded"] {
        let died = scene.apply.wait_crash_point(point, CRASH_LIMIT).await;
        died.with_context(|| scene.stage.logs_tail())?;
        if point == APPLY_GENERATION[0].0 {
            scene.apply.restart_to_crash("apply::tables_loaded", 1)?;
        }
    }
    scene.apply.restart()?;
    scene.is_well_again(&accepted).await?;
    let unseen = "SELECT count(*) FROM journal WHERE writer = 50";
    assert_eq!(destination.number(unseen).await?, 100);

    // A publication is dropped.
    let publications = "SELECT quote_ident(pubname) FROM pg_publication ORDER BY 1 LIMIT 1";
    let publication = source.text(publications).await?;
    source
        .run(&format!("DROP PUBLICATION {publication}"))
        .await?;
    let cause = scene.failed().await?;
    assert!(cause.contains("publication"), "{cause}");
    source
        .run("DELETE FROM journal WHERE writer = 0 AND n % 2 = 0")
        .await?;
    let accepted = scene.resync().await?;
    scene.is_well_again(&accepted).await?;

    // Someone deletes the change topic: neither role has where to go on.
    scene.capture.kill9();
    scene.apply.kill9();
    scene.delete_changes().await?;
    scene.load.advance(30).await;
    scene.apply.restart()?;
    scene.capture.restart()?;
    scene.failed().await?;
    let accepted = scene.resync().await?;
    scene.is_well_again(&accepted).await?;
    wait_status(&scene.mirror, "public.accounts", "LIVE").await?;
    scene.settle().await
}
