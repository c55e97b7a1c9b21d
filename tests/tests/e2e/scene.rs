//! The setting most tests start from.

use anyhow::Result;
use bunny_tests::api::Api;
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::services::Services;
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

/// One process with all roles, two peers, a session at the source.
pub struct Scene {
    // Ends before the stage takes its databases away.
    pub bunny: Bunny,
    pub source: Session,
    pub api: Api,
    pub stage: Stage,
}

impl Scene {
    pub async fn new(test: &str) -> Result<Scene> {
        Scene::on(Stage::new(test).await?).await
    }

    /// With a source database of another kind: `options` as in CREATE DATABASE.
    pub async fn with_source(test: &str, options: &str) -> Result<Scene> {
        let services = Services::shared()?;
        Scene::on(Stage::with_source(services, test, options).await?).await
    }

    /// On a stage that is there.
    pub async fn on(stage: Stage) -> Result<Scene> {
        stage.migrate()?;
        let bunny = stage.start(Role::Up)?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        Ok(Scene {
            bunny,
            source: stage.source.connect().await?,
            api,
            stage,
        })
    }

    /// A mirror of tables under their own names that has reached CDC.
    pub async fn running_mirror(&self, tables: &[&str], options: Value) -> Result<Mirror> {
        let mirror = self
            .stage
            .create_mirror(&self.api, "mirror", tables, options)
            .await?;
        mirror.wait_running().await?;
        Ok(mirror)
    }

    /// Both oracles: destination against source, topics against source.
    pub async fn assert_holds(&self, mirror: &Mirror, tables: &[TablePair]) -> Result<()> {
        self.stage.assert_converges(mirror, tables).await?;
        self.stage.assert_topics_hold(mirror, tables).await?;
        Ok(())
    }

    /// Creates tables and rows, mirrors them, changes them, and asks both oracles before
    /// and after the change.
    pub async fn mirror_and_change(
        &self,
        create: &str,
        tables: &[&str],
        changes: &[&str],
    ) -> Result<()> {
        self.source.run(create).await?;
        let mirror = self.running_mirror(tables, json!({})).await?;
        let pairs = TablePair::all(tables);
        self.assert_holds(&mirror, &pairs).await?;
        for change in changes {
            self.source.run(change).await?;
            self.stage.assert_converges(&mirror, &pairs).await?;
        }
        self.assert_holds(&mirror, &pairs).await
    }
}
