//! Postgres servers and Kafka for a test run, by way of `scripts/services`.
//!
//! One set serves all tests of a process ([`Services::shared`]); tests that stop or
//! kill servers use a second set, one test at a time ([`Services::outage`]). Both
//! live in temporary directories. A small shell process per set waits for the end of
//! this process, however it comes, and then kills and removes everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail, ensure};
use tokio::sync::{Mutex, MutexGuard};

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
    /// Ends the servers once its standard input closes, which happens when we end.
    reaper: Child,
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

/// Kills the bunny processes registered in `$1/processes` (name: pid, content: the
/// program), then the servers, and removes the directory.
const REAPER: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
for file in "$1"/processes/*; do
  [ -e "$file" ] || continue
  pid=${file##*/}
  [ "$(readlink "/proc/$pid/exe")" = "$(cat "$file")" ] && kill -9 "$pid"
done
exec "$2" destroy "$1"
"#;

impl Services {
    /// The set all tests of this process share, started on first use.
    pub fn shared() -> anyhow::Result<Arc<Services>> {
        static SHARED: OnceLock<Result<Arc<Services>, String>> = OnceLock::new();
        once(&SHARED)
    }

    /// The set for tests that stop servers, and the right to be the only one using it.
    pub async fn outage() -> anyhow::Result<(Arc<Services>, MutexGuard<'static, ()>)> {
        static OUTAGE: OnceLock<Result<Arc<Services>, String>> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::const_new(());
        let guard = ALONE.lock().await;
        Ok((once(&OUTAGE)?, guard))
    }

    /// Starts a set in `directory`, made anew: whatever an earlier run left there goes.
    pub fn start_in(directory: PathBuf) -> anyhow::Result<Services> {
        run(Command::new(script("install-deps")).arg("--servers"))?;
        run(Command::new(script("services"))
            .arg("destroy")
            .arg(&directory))?;
        std::fs::create_dir_all(&directory)?;
        let reaper = Command::new("setsid")
            .args(["sh", "-c", REAPER, "reaper"])
            .arg(&directory)
            .arg(script("services"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the reaper")?;
        run(Command::new(script("services"))
            .arg("start")
            .arg(&directory))?;
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

    /// Where the set lives; removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends everything now and waits until it is gone.
    pub fn end(mut self) -> anyhow::Result<()> {
        drop(self.reaper.stdin.take());
        let status = self.reaper.wait()?;
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

fn once(cell: &OnceLock<Result<Arc<Services>, String>>) -> anyhow::Result<Arc<Services>> {
    cell.get_or_init(
        || match temporary_directory().and_then(Services::start_in) {
            Ok(services) => Ok(Arc::new(services)),
            Err(error) => Err(format!("{error:#}")),
        },
    )
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
