//! Servers, processes and databases that all contestants share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::database::{Session, Url, quote};
use bunny_tests::services::Services;
use bunny_tests::stage::Stage;
use serde_json::{Value, json};

use crate::cpu::{Cpu, Processes};
use crate::settings::Settings;

/// Nothing that is measured takes as long.
const LIMIT: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(2);

/// Everything that is there before the first contestant comes.
pub struct Ground {
    pub stage: Stage,
    pub api: Api,
    pub source: Session,
    pub processes: Processes,
    /// Dropped last of the processes: they end with it.
    _roles: [Bunny; 3],
    /// Destination databases made here; removed at the end.
    databases: Vec<String>,
    settings: Settings,
}

impl Ground {
    /// Starts the roles on running servers.
    pub async fn new(services: Arc<Services>, name: &str, settings: Settings) -> Result<Ground> {
        let stage = Stage::on(services, name).await?;
        let roles = stage.start_all()?;
        let api = stage.api().await?;
        let pid = |role: usize| roles[role].pid().context("a role has ended");
        let processes = Processes::of(&stage.services, pid(0)?, pid(1)?)?;
        peer(&api, "source", &stage.source).await?;
        Ok(Ground {
            source: stage.source.connect().await?,
            api,
            processes,
            _roles: roles,
            databases: Vec::new(),
            settings,
            stage,
        })
    }

    /// A new destination database, and a peer of the same name.
    pub async fn destination(&mut self, name: &str) -> Result<Url> {
        let database = format!("{}_{name}", self.stage.name);
        let server = &self.stage.services.destination;
        let session = server.connect().await?;
        let quoted = quote(&database);
        session.run(&format!("CREATE DATABASE {quoted}")).await?;
        if let Some(sql) = self.settings.of_database(&quoted) {
            session.run(&sql).await?;
        }
        let url = server.with_database(&database);
        peer(&self.api, name, &url).await?;
        self.databases.push(database);
        Ok(url)
    }

    /// The end of a CREATE SUBSCRIPTION.
    pub fn subscription_options(&self) -> String {
        self.settings.of_subscription()
    }

    /// Removes the destination databases.
    pub async fn clear(&mut self) -> Result<()> {
        let server = self.stage.services.destination.connect().await?;
        for database in self.databases.drain(..) {
            server
                .run(&format!("DROP DATABASE {} WITH (FORCE)", quote(&database)))
                .await?;
        }
        Ok(())
    }

    /// CPU seconds so far, with the walsenders of `slots` told apart while they run.
    pub async fn cpu(&self, slots: &[&str]) -> Result<(Cpu, f64)> {
        let sql = "SELECT active_pid FROM pg_replication_slots
                   WHERE slot_name = ANY($1::text[]) AND active_pid IS NOT NULL";
        let rows = self.source.query(sql, &[&slots]).await?;
        let pids = rows.iter().map(|row| row.get::<_, i32>(0));
        let walsenders = pids
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(crate::cpu::process_seconds)
            .sum();
        Ok((self.processes.cpu()?, walsenders))
    }

    /// Asks for a command and waits until it has been carried out.
    pub async fn command(&self, path: &str, body: Value) -> Result<()> {
        let answer = self.api.post(path, body).await?.expect(202)?;
        let id = answer["command_id"].as_str().context("no command_id")?;
        let mirror = path.rsplit_once('/').map_or(path, |(mirror, _)| mirror);
        let command = format!("{mirror}/commands/{id}");
        let deadline = Instant::now() + LIMIT;
        loop {
            let command = self.api.get(&command).await?.expect(200)?;
            match command["state"].as_str() {
                Some("done") => return Ok(()),
                Some("failed") => bail!("{command}"),
                _ if Instant::now() > deadline => bail!("{command} after {LIMIT:?}"),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Waits until `mirror` is in `status` and `phase`, and every table as `table` says.
    pub async fn wait_mirror(&self, mirror: &str, status: &str, table: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let path = format!("/v1/mirrors/{mirror}");
            let seen = self.api.get(&path).await?.expect(200)?;
            let tables = seen["tables"].as_array().into_iter().flatten();
            let mut states = tables.map(|one| one["status"].as_str());
            if seen["status"] == status && states.all(|state| state == Some(table)) {
                return Ok(());
            }
            if seen["status"] == "FAILED" || Instant::now() > deadline {
                bail!("{seen:#}\n{}", self.stage.logs_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Polls `sql`, which asks for a boolean, until it is true.
pub async fn wait_true(session: &Session, sql: &str) -> Result<()> {
    let statement = session.prepare(sql).await?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let row = session.query_opt(&statement, &[]).await?;
        if row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("still not true after {LIMIT:?}: {sql}");
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn peer(api: &Api, name: &str, url: &Url) -> Result<()> {
    let peer = json!({
        "name": name, "host": url.host, "port": url.port, "user": url.user,
        "password": url.password, "database": url.database, "ssl_mode": "disable",
    });
    api.post("/v1/peers", peer).await?.expect(201)?;
    Ok(())
}
