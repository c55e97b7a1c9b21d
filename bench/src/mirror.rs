//! A mirror as a contestant.

use anyhow::{Context, Result};
use bunny_tests::database::{Session, Url};
use bunny_tests::lsn::Lsn;
use serde_json::{Value, json};

use crate::ground::{Ground, wait_true};

/// A mirror of its own slot and topics.
pub struct Mirror {
    pub name: String,
    pub slot: String,
    pub destination: Session,
}

impl Mirror {
    /// Creates it; `peer` names the destination.
    pub async fn create(
        ground: &Ground,
        name: &str,
        tables: &[&str],
        (peer, destination): (&str, &Url),
        options: Value,
    ) -> Result<Mirror> {
        let mut options = options;
        options["destination_peer"] = json!(peer);
        ground
            .stage
            .create_mirror(&ground.api, name, tables, options)
            .await?;
        let path = format!("/v1/mirrors/{name}");
        let seen = ground.api.get(&path).await?.expect(200)?;
        Ok(Mirror {
            name: name.to_owned(),
            slot: seen["slot_name"]
                .as_str()
                .context("a mirror has a slot")?
                .to_owned(),
            destination: destination.connect().await?,
        })
    }

    /// Waits until the stream flows and every table is live.
    pub async fn wait_live(&self, ground: &Ground) -> Result<()> {
        ground.wait_mirror(&self.name, "RUNNING", "LIVE").await
    }

    /// Stops capture and apply.
    pub async fn stop(&self, ground: &Ground) -> Result<()> {
        self.pause(ground, "all").await
    }

    /// Lets capture go and apply wait.
    pub async fn capture_only(&self, ground: &Ground) -> Result<()> {
        self.pause(ground, "apply").await
    }

    async fn pause(&self, ground: &Ground, scope: &str) -> Result<()> {
        let path = format!("/v1/mirrors/{}/pause", self.name);
        ground.command(&path, json!({ "scope": scope })).await
    }

    /// Lets both go; does not wait for them.
    pub async fn go(&self, ground: &Ground) -> Result<()> {
        let path = format!("/v1/mirrors/{}/resume", self.name);
        ground.api.post(&path, json!({})).await?.expect(202)?;
        Ok(())
    }

    /// Waits until capture has published everything before `end`.
    pub async fn wait_captured(&self, ground: &Ground, end: Lsn) -> Result<()> {
        let sql = format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        wait_true(&ground.source, &sql).await
    }

    /// Removes it, and waits until it is gone.
    pub async fn remove(self, ground: &Ground) -> Result<()> {
        let path = format!("/v1/mirrors/{}", self.name);
        ground.api.delete(&path).await?.expect(202)?;
        while ground.api.get(&path).await?.status != 404 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
