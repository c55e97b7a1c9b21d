//! Programs that read a mirror's topics from outside: `bunny tail`, the examples, and clients
//! that no one here wrote.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::bunny;
use crate::services::{Services, repository};

const POLL: Duration = Duration::from_millis(50);

/// A program that runs beside the test; killed when it is dropped.
pub struct Program {
    name: String,
    child: Option<Child>,
    output: PathBuf,
    services: Arc<Services>,
}

impl Program {
    /// Starts `command`. Its output goes to `<directory>/<name>.out`, made anew, its errors to
    /// `<name>.err`.
    pub fn start(
        services: &Arc<Services>,
        mut command: Command,
        directory: &Path,
        name: &str,
    ) -> anyhow::Result<Program> {
        let output = directory.join(format!("{name}.out"));
        let errors = File::options()
            .create(true)
            .append(true)
            .open(directory.join(format!("{name}.err")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        services.adopt(child.id(), Path::new(command.get_program()))?;
        Ok(Program {
            name: name.to_owned(),
            child: Some(child),
            output,
            services: services.clone(),
        })
    }

    /// What it has printed so far.
    pub fn output(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        File::open(&self.output)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// What it and its earlier runs under this name have said on stderr.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.output.with_extension("err")).unwrap_or_default()
    }

    /// Waits until what it prints satisfies `is_enough`.
    pub async fn wait_output(
        &mut self,
        limit: Duration,
        is_enough: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        self.wait_for(limit, |program| {
            let output = program.output()?;
            Ok(is_enough(&output).then_some(output))
        })
        .await
    }

    /// Waits until what it says on stderr satisfies `is_enough`.
    pub async fn wait_errors(
        &mut self,
        limit: Duration,
        is_enough: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        self.wait_for(limit, |program| {
            Ok(is_enough(&program.errors()).then_some(()))
        })
        .await
    }

    async fn wait_for<T>(
        &mut self,
        limit: Duration,
        look: impl Fn(&Program) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => bail!("{} does not run", self.name),
            };
            // After it has ended nothing more comes, so that one more look is enough.
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if let Some(status) = ended {
                bail!("{} ended with {status}: {}", self.name, self.errors());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: not there after {limit:?}; it printed {:?} and said {}",
                self.name,
                self.output()?,
                self.errors()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone after wait.
            let _ = child.kill();
            let _ = child.wait();
            self.services.disown(child.id());
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("no process to signal")?;
        let pid = child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()?;
        ensure!(status.success(), "kill -{name} {pid} failed");
        Ok(())
    }

    /// Waits until it ends by itself.
    pub async fn wait_exit(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let child = self.child.as_mut().context("the process is gone already")?;
            if let Some(status) = child.try_wait()? {
                self.services.disown(child.id());
                self.child = None;
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} still runs after {limit:?}: {}",
                self.name,
                self.errors()
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The Python that the example runs in, and with it `kcat`; installed if they are not there.
pub fn install() -> anyhow::Result<PathBuf> {
    let output = Command::new(repository().join("scripts/install-deps"))
        .args(["--servers", "--clients"])
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "scripts/install-deps --clients ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let python = repository().join(".local/python/bin/python");
    ensure!(python.exists(), "no {}", python.display());
    Ok(python)
}

/// A program of the workspace, built where `bunny` is.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let path = bunny::program()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "no {}: build the workspace, or run `make test`",
        path.display()
    );
    Ok(path)
}

/// Runs a program to its end; what it printed, or its errors if it fails.
pub fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The class path of the Kafka that is installed.
pub(crate) fn kafka_libraries() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(repository().join(".local"))?
        .filter_map(|entry| Some(entry.ok()?.path().join("libs")))
        .filter(|libs| libs.is_dir())
        .collect();
    versions.sort();
    Ok(versions.pop().context("no Kafka in .local")?.join("*"))
}

/// Kafka's own console consumer on a topic of one partition: the offsets of the first `count`
/// records it sees. That many, so that it need not guess whether more will come.
pub fn console_consumer_offsets(
    brokers: &str,
    topic: &str,
    count: usize,
) -> anyhow::Result<Vec<i64>> {
    let mut command = Command::new("java");
    command
        .args(["-XX:TieredStopAtLevel=1", "-cp"])
        .arg(kafka_libraries()?)
        .arg("org.apache.kafka.tools.consumer.ConsoleConsumer")
        .args(["--bootstrap-server", brokers, "--topic", topic])
        .args(["--partition", "0", "--offset", "earliest"])
        .args(["--max-messages", &count.to_string()])
        .args(["--timeout-ms", "60000"])
        .args(["--isolation-level", "read_committed"])
        .args(["--formatter-property", "print.offset=true"])
        .args(["--formatter-property", "print.value=false"]);
    let printed = output_of(&mut command)?;
    let offsets = printed
        .lines()
        .filter_map(|line| line.strip_prefix("Offset:"));
    offsets.map(|offset| Ok(offset.trim().parse()?)).collect()
}

/// How many records `kcat` sees in a topic that are not committed: they may be some day, or are aborted.
pub fn kcat_not_committed(brokers: &str, topic: &str) -> anyhow::Result<usize> {
    // In this order: what is committed in between is not counted.
    let all = kcat(brokers, topic, "read_uncommitted")?.len();
    Ok(all.saturating_sub(kcat_records(brokers, topic)?.len()))
}

/// `kcat` on a topic, from its beginning to what is committed now: the offsets of the records it
/// sees, and the schema id in the frame of each.
pub fn kcat_records(brokers: &str, topic: &str) -> anyhow::Result<Vec<(i64, u32)>> {
    kcat(brokers, topic, "read_committed")
}

fn kcat(brokers: &str, topic: &str, isolation: &str) -> anyhow::Result<Vec<(i64, u32)>> {
    let mut command = Command::new("kcat");
    command
        .args([
            "-C",
            "-q",
            "-e",
            "-o",
            "beginning",
            "-b",
            brokers,
            "-t",
            topic,
        ])
        .args(["-X", &format!("isolation.level={isolation}")])
        .args(["-X", "check.crcs=true"])
        // kcat's own unpacking of the frame: a byte, a number of four bytes, and the rest.
        .args(["-s", "value=>bI", "-f", "%o %s\n"]);
    let printed = output_of(&mut command)?;
    printed
        .lines()
        .map(|line| {
            let frame = line.split_once(' ');
            // The unpacked values stand next to each other: the zero byte, then the id.
            let (offset, id) = frame
                .and_then(|(offset, frame)| Some((offset, frame.strip_prefix('0')?)))
                .with_context(|| format!("no Confluent frame: {line:?}"))?;
            Ok((offset.parse()?, id.parse()?))
        })
        .collect()
}
