//! Postgres servers and Kafka for a test run, by way of `scripts/services`.
//!
//! One set serves all tests ([`Services::shared`]); tests that stop or kill servers use
//! a second set, one test at a time ([`Services::outage`]). Both live in temporary
//! directories. A small process per set waits for the end of the one that started it,
//! however it comes, and then kills and removes everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail, ensure};
use tokio::sync::{Mutex, MutexGuard};

use crate::backup;
use crate::database::Url;

/// A running set of servers.
pub struct Services {
    directory: PathBuf,
    /// Superuser URL of the source's `postgres` database.
    pub source: Url,
    /// Superuser URL of the destination's `postgres` database.
    pub destination: Url,
    /// Superuser URL of the catalog's `postgres` database.
    pub catalog: Url,
    /// `host:port` of the broker.
    pub brokers: String,
    /// `scripts/services reap`: ends the servers once its standard input closes, which
    /// happens when we end.
    reaper: Option<Child>,
}

/// One of the servers of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Source,
    Destination,
    Catalog,
    Kafka,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Server::Source => "source",
            Server::Destination => "destination",
            Server::Catalog => "catalog",
            Server::Kafka => "kafka",
        }
    }
}

impl Services {
    /// The set all tests share: that of `scripts/with-services` if it runs us, else one
    /// started on first use by this process.
    pub fn shared() -> anyhow::Result<Arc<Services>> {
        static SHARED: OnceLock<Result<Arc<Services>, String>> = OnceLock::new();
        once(&SHARED, || match std::env::var_os("BUNNY_TEST_SERVICES") {
            Some(directory) => Services::running(directory.into(), None),
            None => Services::start_in(temporary_directory()?),
        })
    }

    /// The set for tests that stop servers, and the right to be the only one using it.
    pub async fn outage() -> anyhow::Result<(Arc<Services>, MutexGuard<'static, ()>)> {
        static OUTAGE: OnceLock<Result<Arc<Services>, String>> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::const_new(());
        let guard = ALONE.lock().await;
        let services = once(&OUTAGE, || Services::start_in(temporary_directory()?))?;
        Ok((services, guard))
    }

    /// Starts a set in `directory`, made anew: whatever an earlier run left there goes.
    pub fn start_in(directory: PathBuf) -> anyhow::Result<Services> {
        run(Command::new(script("install-deps")).arg("--servers"))?;
        run(Command::new(script("services"))
            .arg("destroy")
            .arg(&directory))?;
        std::fs::create_dir_all(&directory)?;
        let reaper = Command::new("setsid")
            .arg(script("services"))
            .arg("reap")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the reaper")?;
        run(Command::new(script("services"))
            .arg("start")
            .arg(&directory))?;
        Services::running(directory, Some(reaper))
    }

    /// A set that runs; somebody else ends it if there is no reaper.
    fn running(directory: PathBuf, reaper: Option<Child>) -> anyhow::Result<Services> {
        let env = read_env(&directory.join("env"))?;
        let url = |name: &str| -> anyhow::Result<Url> { env_value(&env, name)?.parse() };
        Ok(Services {
            source: url("SOURCE_URL")?,
            destination: url("DESTINATION_URL")?,
            catalog: url("BUNNY_CATALOG_URL")?,
            brokers: env_value(&env, "BUNNY_KAFKA_BROKERS")?.to_owned(),
            directory,
            reaper,
        })
    }

    /// The same Postgres servers beside another Kafka.
    pub fn beside(&self, brokers: String) -> Services {
        Services {
            directory: self.directory.clone(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            catalog: self.catalog.clone(),
            brokers,
            reaper: None,
        }
    }

    /// Where the set lives; removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends everything now and waits until it is gone.
    pub fn end(mut self) -> anyhow::Result<()> {
        let mut reaper = self.reaper.take().context("these servers are not ours")?;
        drop(reaper.stdin.take());
        let status = reaper.wait()?;
        ensure!(status.success(), "the servers' reaper ended with {status}");
        Ok(())
    }

    /// Kills all processes of one server at once, as `kill -9` or a machine's end would.
    pub async fn kill(&self, server: Server) -> anyhow::Result<()> {
        self.command("kill", server).await
    }

    /// Stops one server as an operator would.
    pub async fn stop(&self, server: Server) -> anyhow::Result<()> {
        self.command("stop", server).await
    }

    /// Starts one server again, where it was, and waits until it is ready.
    pub async fn start_again(&self, server: Server) -> anyhow::Result<()> {
        self.command("start", server).await
    }

    /// Keeps a copy of all that a stopped Postgres server has, its slots included.
    pub async fn keep_copy(&self, server: Server) -> anyhow::Result<()> {
        let data = self.data(server)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&data).arg(data.with_extension("kept"));
        tokio::task::spawn_blocking(move || run(&mut copy)).await?
    }

    /// The same of one that runs, by a base backup.
    pub async fn keep_base_backup(&self, server: Server) -> anyhow::Result<()> {
        let data = self.data(server)?;
        let copy = data.with_extension("kept");
        backup::copy_server(self.url(server)?, &copy).await?;
        // Whoever runs the server is to own it, and it was written by us.
        let mut own = Command::new("chown");
        own.arg("-R")
            .arg(format!("--reference={}", data.display()))
            .arg(copy);
        tokio::task::spawn_blocking(move || run(&mut own)).await?
    }

    /// Puts the copy kept last in the place of what a stopped server has.
    pub async fn put_copy_back(&self, server: Server) -> anyhow::Result<()> {
        let data = self.data(server)?;
        tokio::fs::remove_dir_all(&data).await?;
        Ok(tokio::fs::rename(data.with_extension("kept"), &data).await?)
    }

    /// Takes away all that a stopped Kafka has: started again it is a new, empty cluster.
    pub async fn lose_kafka(&self) -> anyhow::Result<()> {
        let home = self.directory.join("kafka");
        Ok(tokio::fs::remove_dir_all(home).await?)
    }

    /// Starts a stopped Postgres server as a standby that is promoted at once: it goes on where
    /// its WAL ends, on a new timeline.
    pub async fn start_promoted(&self, server: Server) -> anyhow::Result<()> {
        let signal = self.data(server)?.join("standby.signal");
        tokio::fs::write(&signal, "").await?;
        self.start_again(server).await?;
        let session = self.url(server)?.connect().await?;
        let promoted = session.text("SELECT pg_promote()").await?;
        ensure!(
            promoted == "t",
            "{server:?} was not promoted within a minute"
        );
        Ok(())
    }

    /// A file system of so many MiB that a Postgres server may have a tablespace on; it goes with
    /// the set.
    ///
    /// # Errors
    /// Only root may mount one.
    pub fn small_volume(&self, server: Server, mebibytes: u32) -> anyhow::Result<PathBuf> {
        let volume = self.directory.join("volume");
        std::fs::create_dir_all(&volume)?;
        let size = format!("size={mebibytes}m");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&volume))
        .context("mounting a small file system, which takes root")?;
        let place = volume.join(server.name());
        std::fs::create_dir(&place)?;
        let like = format!("--reference={}", self.data(server)?.display());
        run(Command::new("chown").arg(like).arg(&place))?;
        Ok(place)
    }

    fn url(&self, server: Server) -> anyhow::Result<&Url> {
        match server {
            Server::Source => Ok(&self.source),
            Server::Destination => Ok(&self.destination),
            Server::Catalog => Ok(&self.catalog),
            Server::Kafka => bail!("Kafka is no Postgres server"),
        }
    }

    /// The data directory of a Postgres server, by the file that says where they are.
    fn data(&self, server: Server) -> anyhow::Result<PathBuf> {
        let home = std::fs::read_to_string(self.directory.join("home"))?;
        Ok(Path::new(home.trim()).join(server.name()))
    }

    async fn command(&self, action: &'static str, server: Server) -> anyhow::Result<()> {
        let mut command = Command::new(script("services"));
        command.arg(action).arg(&self.directory).arg(server.name());
        tokio::task::spawn_blocking(move || run(&mut command)).await?
    }

    /// Makes the reaper kill process `pid`, an instance of `program`, at our end.
    pub(crate) fn adopt(&self, pid: u32, program: &Path) -> anyhow::Result<()> {
        let processes = self.directory.join("processes");
        std::fs::create_dir_all(&processes)?;
        std::fs::write(
            processes.join(pid.to_string()),
            program.as_os_str().as_encoded_bytes(),
        )?;
        Ok(())
    }

    /// Undoes [`Services::adopt`].
    pub(crate) fn disown(&self, pid: u32) {
        // Only a leftover of a directory that is being removed anyway.
        let _ = std::fs::remove_file(self.directory.join("processes").join(pid.to_string()));
    }
}

fn once(
    cell: &OnceLock<Result<Arc<Services>, String>>,
    start: impl FnOnce() -> anyhow::Result<Services>,
) -> anyhow::Result<Arc<Services>> {
    cell.get_or_init(|| match start() {
        Ok(services) => Ok(Arc::new(services)),
        Err(error) => Err(format!("{error:#}")),
    })
    .clone()
    .map_err(anyhow::Error::msg)
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn script(name: &str) -> PathBuf {
    repository().join("scripts").join(name)
}

/// A new directory that other users may enter: the servers may run as user postgres.
fn temporary_directory() -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let directory =
        std::env::temp_dir().join(format!("bunny-test-{}", uuid::Uuid::new_v4().simple()));
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Reads a file of `export NAME='value'` lines.
pub fn read_env(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let entries = text.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    });
    Ok(entries.collect())
}

fn env_value<'a>(env: &'a BTreeMap<String, String>, name: &str) -> anyhow::Result<&'a str> {
    env.get(name)
        .map(String::as_str)
        .with_context(|| format!("scripts/services wrote no {name}"))
}
