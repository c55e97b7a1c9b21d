//! Everything one test owns: a database on each server, a topic prefix, processes,
//! peers and mirrors; removed when the test ends, however it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::api::Api;
use crate::bunny::{self, Bunny, Role};
use crate::content::{self, TablePair};
use crate::database::{Session, Url, quote};
use crate::lsn::Lsn;
use crate::ports::free_port;
use crate::services::{Services, repository};
use crate::topic;

/// After a comparison that has failed, when it is tried once more.
const LATER: Duration = Duration::from_secs(10);

/// How long a test waits for anything to converge.
pub const CONVERGE: Duration = Duration::from_secs(300);
/// A mirror that is FAILED that long waits for a person.
const FAILED_FOR_GOOD: Duration = Duration::from_secs(10);
/// Short, so that a killed worker's mirrors are soon taken over.
const LEASE_TTL_SECONDS: u32 = 2;
const ADMIN_PASSWORD: &str = "correct horse battery staple";
/// Any 32 bytes do.
const ENCRYPTION_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A test's own corner of the servers.
pub struct Stage {
    pub services: Arc<Services>,
    /// Name of the test with a random end; names its databases and topics.
    pub name: String,
    pub source: Url,
    pub destination: Url,
    pub catalog: Url,
    api_port: u16,
    logs: PathBuf,
}

impl Stage {
    /// On the servers all tests share.
    pub async fn new(test: &str) -> anyhow::Result<Stage> {
        Stage::on(Services::shared()?, test).await
    }

    /// On given servers.
    pub async fn on(services: Arc<Services>, test: &str) -> anyhow::Result<Stage> {
        Stage::with_source(services, test, "").await
    }

    /// With `options` of CREATE DATABASE for the source's.
    pub async fn with_source(
        services: Arc<Services>,
        test: &str,
        options: &str,
    ) -> anyhow::Result<Stage> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{test}_{}", &random[..8]);
        for (server, options) in [
            (&services.source, options),
            (&services.destination, ""),
            (&services.catalog, ""),
        ] {
            let session = server.connect().await?;
            session
                .run(&format!("CREATE DATABASE {} {options}", quote(&name)))
                .await?;
        }
        let logs = repository().join("target/test-logs").join(&name);
        std::fs::create_dir_all(&logs)?;
        let stage = Stage {
            source: services.source.with_database(&name),
            destination: services.destination.with_database(&name),
            catalog: services.catalog.with_database(&name),
            services,
            name,
            api_port: free_port(),
            logs,
        };
        Ok(stage)
    }

    /// The settings of this test's processes.
    fn env(&self, role: Role) -> Vec<(String, String)> {
        let mut env = vec![
            ("BUNNY_CATALOG_URL", self.catalog.to_string()),
            ("BUNNY_KAFKA_BROKERS", self.services.brokers.clone()),
            ("BUNNY_TOPIC_PREFIX", self.name.clone()),
            ("BUNNY_ENCRYPTION_KEY", ENCRYPTION_KEY.to_owned()),
            ("BUNNY_LEASE_TTL_SECONDS", LEASE_TTL_SECONDS.to_string()),
            ("BUNNY_ADMIN_USER", "admin".to_owned()),
            ("BUNNY_ADMIN_PASSWORD", ADMIN_PASSWORD.to_owned()),
            ("BUNNY_METRICS_LISTEN", format!("127.0.0.1:{}", free_port())),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        if matches!(role, Role::Api | Role::Up) {
            env.push(("BUNNY_LISTEN", format!("127.0.0.1:{}", self.api_port)));
        }
        env.into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Starts a process; its log goes to `target/test-logs/<test>/<role>.log`.
    pub fn start(&self, role: Role) -> anyhow::Result<Bunny> {
        self.start_with(role, &[])
    }

    /// Starts a process with some settings of its own.
    pub fn start_with(&self, role: Role, settings: &[(&str, &str)]) -> anyhow::Result<Bunny> {
        let log = self.log_path(role);
        Bunny::start(&self.services, role, self.env_with(role, settings), log)
    }

    /// Runs a subcommand of one shot, with some settings of its own.
    pub fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<String> {
        bunny::run(arguments, &self.env_with(Role::Api, settings))
    }

    /// A subcommand with this test's settings and some of its own, not started: for one that is
    /// to end by itself. A setting of no text counts as not set.
    pub fn command(
        &self,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Command> {
        let mut command = bunny::clean_command(&bunny::program()?);
        command
            .args(arguments)
            .envs(self.env_with(Role::Up, settings))
            .current_dir(&self.logs);
        Ok(command)
    }

    /// A subcommand that is told of Kafka and the topics' prefix only.
    pub fn reader(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = bunny::clean_command(&bunny::program()?);
        command
            .args(arguments)
            .env("BUNNY_KAFKA_BROKERS", &self.services.brokers)
            .env("BUNNY_TOPIC_PREFIX", &self.name)
            .current_dir(&self.logs);
        Ok(command)
    }

    /// Where this test's logs are, for those of other programs; gone when the test has passed.
    pub fn directory(&self) -> &Path {
        &self.logs
    }

    /// The password of `admin`.
    pub fn password(&self) -> &'static str {
        ADMIN_PASSWORD
    }

    /// What seals secrets in the catalog.
    pub fn encryption_key(&self) -> &'static str {
        ENCRYPTION_KEY
    }

    /// Where the API listens.
    pub fn api_port(&self) -> u16 {
        self.api_port
    }

    fn env_with(&self, role: Role, settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = self.env(role);
        env.retain(|(name, _)| !settings.iter().any(|(own, _)| own == name));
        let own = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        env.extend(own);
        env
    }

    fn log_path(&self, role: Role) -> PathBuf {
        self.logs.join(format!("{}.log", role.name()))
    }

    /// All that the processes of a role have written.
    pub fn log_of(&self, role: Role) -> anyhow::Result<String> {
        let bytes = std::fs::read(self.log_path(role))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What the catalog's database answers.
    pub async fn catalog_text(&self, sql: &str) -> anyhow::Result<String> {
        self.catalog.connect().await?.text(sql).await
    }

    /// Starts the three roles as three processes.
    pub fn start_all(&self) -> anyhow::Result<[Bunny; 3]> {
        self.migrate()?;
        Ok([
            self.start(Role::Capture)?,
            self.start(Role::Apply)?,
            self.start(Role::Api)?,
        ])
    }

    /// Brings the catalog up to date.
    pub fn migrate(&self) -> anyhow::Result<()> {
        bunny::run(&["migrate"], &self.env(Role::Api))?;
        Ok(())
    }

    /// A client logged in as administrator, once the API is up.
    pub async fn api(&self) -> anyhow::Result<Api> {
        let mut api = Api::new(&format!("http://127.0.0.1:{}", self.api_port))?;
        api.wait_ready(Duration::from_secs(60))
            .await
            .with_context(|| self.logs_tail())?;
        api.login("admin", ADMIN_PASSWORD).await?;
        Ok(api)
    }

    /// Creates the peers `source` and `destination`.
    pub async fn create_peers(&self, api: &Api) -> anyhow::Result<()> {
        self.create_peers_at(api, self.source.port, self.destination.port)
            .await
    }

    /// Creates the peers, reached by other ports than their own (a proxy's).
    pub async fn create_peers_at(
        &self,
        api: &Api,
        source_port: u16,
        destination_port: u16,
    ) -> anyhow::Result<()> {
        for (name, url, port) in [
            ("source", &self.source, source_port),
            ("destination", &self.destination, destination_port),
        ] {
            let peer = json!({
                "name": name, "host": url.host, "port": port, "user": url.user,
                "password": url.password, "database": url.database, "ssl_mode": "disable",
            });
            api.post("/v1/peers", peer).await?.expect(201)?;
        }
        Ok(())
    }

    /// A further database on the destination's server, and the peer `name` that leads to it.
    pub async fn another_destination(&self, api: &Api, name: &str) -> anyhow::Result<Url> {
        let database = format!("{}_{name}", self.name);
        let session = self.services.destination.connect().await?;
        session
            .run(&format!("CREATE DATABASE {}", quote(&database)))
            .await?;
        let url = self.services.destination.with_database(&database);
        let peer = json!({
            "name": name, "host": url.host, "port": url.port, "user": url.user,
            "password": url.password, "database": url.database, "ssl_mode": "disable",
        });
        api.post("/v1/peers", peer).await?.expect(201)?;
        Ok(url)
    }

    /// A mirror that exists.
    pub fn mirror(&self, api: &Api, name: &str) -> Mirror {
        Mirror {
            api: api.clone(),
            name: name.to_owned(),
            logs: self.logs.clone(),
        }
    }

    /// Creates a mirror of `tables` (`"schema.table"`, mapped to the same names) with
    /// the given options over the defaults.
    pub async fn create_mirror(
        &self,
        api: &Api,
        name: &str,
        tables: &[&str],
        options: Value,
    ) -> anyhow::Result<Mirror> {
        let mappings: Vec<Value> = tables
            .iter()
            .map(|table| json!({"source_table": table, "destination_table": table}))
            .collect();
        self.create_mapped_mirror(api, name, json!(mappings), options)
            .await
    }

    /// Creates a mirror with full table mappings.
    pub async fn create_mapped_mirror(
        &self,
        api: &Api,
        name: &str,
        mappings: Value,
        options: Value,
    ) -> anyhow::Result<Mirror> {
        let mut body = json!({
            "name": name, "source_peer": "source", "destination_peer": "destination",
            "table_mappings": mappings,
        });
        for (option, value) in options.as_object().into_iter().flatten() {
            body[option] = value.clone();
        }
        api.post("/v1/mirrors", body)
            .await?
            .expect(201)
            .with_context(|| format!("creating mirror {name}"))?;
        Ok(self.mirror(api, name))
    }

    /// Waits until all that the source has committed by now is applied, and none of the
    /// tables is being loaded or is about to be; then compares full contents. A sync that
    /// nobody but Bunny asked for may begin at any moment: then both are done again.
    pub async fn assert_converges(
        &self,
        mirror: &Mirror,
        tables: &[TablePair],
    ) -> anyhow::Result<()> {
        self.assert_converges_at(mirror, &self.destination, tables)
            .await
    }

    /// The same of a mirror that writes elsewhere.
    pub async fn assert_converges_at(
        &self,
        mirror: &Mirror,
        destination: &Url,
        tables: &[TablePair],
    ) -> anyhow::Result<()> {
        let source = self.source.connect().await?;
        let lsn = source.current_lsn().await?;
        mirror.wait_for_lsn(lsn).await?;
        let destination = destination.connect().await?;
        let catalog = self.catalog.connect().await?;
        let started = Instant::now();
        loop {
            let before = own_syncs(&catalog, mirror).await?;
            mirror.wait_loaded(lsn, tables).await?;
            let same = content::assert_same(&source, &destination, tables).await;
            let after = own_syncs(&catalog, mirror).await?;
            let is_disturbed = after.unfinished > 0 || after != before;
            if same.is_ok() || !is_disturbed || started.elapsed() > CONVERGE {
                let Err(error) = same else {
                    return Ok(());
                };
                // Whether rows are missing for good, or were said to be there too early.
                let shown = (mirror.get().await, mirror.metrics().await);
                tokio::time::sleep(LATER).await;
                let later = content::assert_same(&source, &destination, tables).await;
                let later = later.map_or("different still", |()| "the same then");
                let context = format!("{later}, {LATER:?} later\n{shown:#?}\n{}", self.logs_tail());
                return Err(error.context(context));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads the mirror's topics with the other Avro implementation and compares what
    /// they add up to with the source.
    pub async fn assert_topics_hold(
        &self,
        mirror: &Mirror,
        tables: &[TablePair],
    ) -> anyhow::Result<topic::Summary> {
        let summary = self.assert_topics_hold_known(mirror, tables).await?;
        ensure!(summary.unknown.is_empty(), "{:?}", summary.unknown);
        Ok(summary)
    }

    /// The same where the log alone may not tell of every table what it holds: the summary
    /// names those it does not.
    pub async fn assert_topics_hold_known(
        &self,
        mirror: &Mirror,
        tables: &[TablePair],
    ) -> anyhow::Result<topic::Summary> {
        let source = self.source.connect().await?;
        topic::assert_history(
            &self.services.brokers,
            &self.name,
            &mirror.slug(),
            &source,
            tables,
        )
        .await
    }

    /// First offset and end of the partitions of the mirror's topics, and of that of the schemas.
    pub async fn watermarks_of(
        &self,
        mirror: &Mirror,
    ) -> anyhow::Result<BTreeMap<String, Vec<(i64, i64)>>> {
        topic::watermarks(&self.services.brokers, &self.name, &mirror.slug()).await
    }

    /// The ends of all logs of this test's processes.
    pub fn logs_tail(&self) -> String {
        logs_tail(&self.logs)
    }
}

fn logs_tail(logs: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        let path = entry.path();
        text.push_str(&format!("\n--- {} ends:\n", path.display()));
        text.push_str(&bunny::file_tail(&path, 25));
    }
    text
}

impl Drop for Stage {
    /// Slots and databases go, so that neither WAL nor slots run out in a long run. Logs stay of a test
    /// that panicked; of one that returned an error only with `BUNNY_KEEP_TEST_LOGS`.
    fn drop(&mut self) {
        let name = self.name.clone();
        let services = self.services.clone();
        let cleaner = std::thread::spawn(move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                runtime.block_on(remove_databases(&services, &name));
            }
        });
        let _ = cleaner.join();
        if !std::thread::panicking() && std::env::var_os("BUNNY_KEEP_TEST_LOGS").is_none() {
            let _ = std::fs::remove_dir_all(&self.logs);
        }
    }
}

/// Syncs that a mirror asked for by itself.
#[derive(Debug, PartialEq, Eq)]
struct OwnSyncs {
    all: i64,
    unfinished: i64,
}

async fn own_syncs(catalog: &Session, mirror: &Mirror) -> anyhow::Result<OwnSyncs> {
    let rows = catalog
        .query(
            "SELECT count(*), count(*) FILTER (WHERE state IN ('pending', 'running')) FROM bunny.commands
             WHERE kind = 'resync' AND requested_by = 'untracked_changes' AND mirror_name = $1",
            &[&mirror.name],
        )
        .await?;
    let row = rows.first().context("a count")?;
    Ok(OwnSyncs {
        all: row.get(0),
        unfinished: row.get(1),
    })
}

/// Best effort: the servers are about to go anyway.
async fn remove_databases(services: &Services, name: &str) {
    let drop_slots = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
         WHERE database = '{name}' AND active_pid IS NOT NULL;
         SELECT pg_sleep(0.1);
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE database = '{name}' AND active_pid IS NULL;"
    );
    roll_back_prepared(&services.source.with_database(name)).await;
    let drop_database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(name));
    for server in [&services.source, &services.destination, &services.catalog] {
        let Ok(session) = server.connect().await else {
            continue;
        };
        let _ = session.run(&drop_slots).await;
        let _ = session.run(&drop_database).await;
        let further = "SELECT datname::text FROM pg_database WHERE starts_with(datname, $1 || '_')";
        for row in session.query(further, &[&name]).await.unwrap_or_default() {
            let database: String = row.get(0);
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(&database));
            let _ = session.run(&drop).await;
        }
    }
}

/// Prepared transactions keep a database from being dropped, and slots from being created.
async fn roll_back_prepared(database: &Url) {
    let Ok(session) = database.connect().await else {
        return;
    };
    let left = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    for row in session.query(left, &[]).await.unwrap_or_default() {
        let gid: String = row.get(0);
        let _ = session
            .run(&format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")))
            .await;
    }
}

/// The mirror runs and has applied what was committed before `lsn`.
fn has_applied(metrics: &Value, lsn: Lsn) -> bool {
    let applied = metrics["apply"]["applied_lsn"].as_str();
    let applied = applied.and_then(|text| text.parse::<Lsn>().ok());
    metrics["status"] == "RUNNING" && applied.is_some_and(|applied| applied >= lsn)
}

/// A mirror, seen through the API.
#[derive(Clone)]
pub struct Mirror {
    api: Api,
    pub name: String,
    logs: PathBuf,
}

impl Mirror {
    /// The part of its name in topics and slots.
    pub fn slug(&self) -> String {
        self.name.to_lowercase().replace('-', "_")
    }

    /// `GET /v1/mirrors/{name}`.
    pub async fn get(&self) -> anyhow::Result<Value> {
        self.api
            .get(&format!("/v1/mirrors/{}", self.name))
            .await?
            .expect(200)
    }

    /// `GET /v1/mirrors/{name}/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<Value> {
        self.api
            .get(&format!("/v1/mirrors/{}/metrics", self.name))
            .await?
            .expect(200)
    }

    /// Waits for status RUNNING and phase CDC.
    pub async fn wait_running(&self) -> anyhow::Result<()> {
        self.wait_until("RUNNING/CDC", CONVERGE, |mirror, _| {
            mirror["status"] == "RUNNING" && mirror["current_phase"] == "CDC"
        })
        .await
    }

    /// Waits until the destination holds everything committed at the source before `lsn`.
    pub async fn wait_for_lsn(&self, lsn: Lsn) -> anyhow::Result<()> {
        self.wait_for_lsn_within(lsn, CONVERGE).await
    }

    /// As [`Mirror::wait_for_lsn`], with none of the tables waiting for rows of a copy.
    async fn wait_loaded(&self, lsn: Lsn, tables: &[TablePair]) -> anyhow::Result<()> {
        let compared: Vec<String> = tables
            .iter()
            .map(|pair| format!("{}.{}", pair.source.0, pair.source.1))
            .collect();
        let is_loading = |table: &Value| {
            let name = table["source_table"].as_str().unwrap_or_default();
            let status = table["status"].as_str().unwrap_or_default();
            compared.iter().any(|compared| compared == name)
                && ["PENDING", "SYNCING", "CATCHING_UP"].contains(&status)
        };
        let what = format!("applied {lsn}, tables loaded");
        self.wait_until(&what, CONVERGE, |mirror, metrics| {
            let tables = mirror["tables"].as_array();
            has_applied(metrics, lsn) && !tables.into_iter().flatten().any(is_loading)
        })
        .await
    }

    /// As [`Mirror::wait_for_lsn`], with another limit.
    pub async fn wait_for_lsn_within(&self, lsn: Lsn, limit: Duration) -> anyhow::Result<()> {
        self.wait_until(&format!("applied {lsn}"), limit, |_, metrics| {
            has_applied(metrics, lsn)
        })
        .await
    }

    /// Waits until mirror and metrics satisfy `done`. A request that fails counts as not
    /// yet: the API may be restarting. Says everything it knows when time is up.
    pub async fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Value, &Value) -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut failed_since: Option<Instant> = None;
        loop {
            let seen = (self.get().await, self.metrics().await);
            if let (Ok(mirror), Ok(metrics)) = &seen
                && done(mirror, metrics)
            {
                return Ok(());
            }
            failed_since = match &seen.0 {
                Ok(mirror) if mirror["status"] == "FAILED" => {
                    Some(failed_since.unwrap_or_else(Instant::now))
                }
                Ok(_) => None,
                Err(_) => failed_since,
            };
            let given_up = failed_since.is_some_and(|since| since.elapsed() > FAILED_FOR_GOOD);
            if given_up || started.elapsed() > limit {
                let (mirror, metrics) = seen;
                let show = |answer: anyhow::Result<Value>| match answer {
                    Ok(value) => serde_json::to_string_pretty(&value).unwrap_or_default(),
                    Err(error) => format!("{error:#}"),
                };
                bail!(
                    "mirror {} is not '{what}' after {:?}\nmirror: {}\nmetrics: {}\nlogs: {}{}",
                    self.name,
                    started.elapsed(),
                    show(mirror),
                    show(metrics),
                    show(self.mirror_log().await),
                    logs_tail(&self.logs)
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn mirror_log(&self) -> anyhow::Result<Value> {
        self.api
            .get(&format!("/v1/mirrors/{}/logs?limit=20", self.name))
            .await?
            .expect(200)
    }
}
