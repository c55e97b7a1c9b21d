//! `bunny` processes under test.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::services::Services;

const POLL: Duration = Duration::from_millis(20);

/// What a process is told to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Capture,
    Apply,
    Api,
    /// All three in one process.
    Up,
}

impl Role {
    /// The subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Role::Capture => "capture",
            Role::Apply => "apply",
            Role::Api => "api",
            Role::Up => "up",
        }
    }
}

/// A process that runs one role; killed when dropped. It can be started again and
/// again: its log file goes on.
pub struct Bunny {
    role: Role,
    program: PathBuf,
    env: Vec<(String, String)>,
    log: PathBuf,
    /// Where in the log the present run began.
    run_offset: u64,
    child: Option<Child>,
    services: Arc<Services>,
}

impl Bunny {
    /// Starts `role` with exactly these BUNNY_* variables; its output goes to `log`.
    pub fn start(
        services: &Arc<Services>,
        role: Role,
        env: Vec<(String, String)>,
        log: PathBuf,
    ) -> anyhow::Result<Bunny> {
        let mut bunny = Bunny {
            role,
            program: program()?,
            env,
            log,
            run_offset: 0,
            child: None,
            services: services.clone(),
        };
        bunny.spawn(&[])?;
        Ok(bunny)
    }

    fn spawn(&mut self, more_env: &[(&str, &str)]) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "{:?} runs already", self.role);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        self.run_offset = log.metadata()?.len();
        let mut command = clean_command(&self.program);
        command
            .arg(self.role.name())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(more_env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.services.adopt(child.id(), &self.program)?;
        self.child = Some(child);
        Ok(())
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it again, killing a running one first.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9();
        self.spawn(&[])
    }

    /// Starts it again so that it dies when it passes the crash point `name` for the
    /// `pass`-th time (1 is the first).
    pub fn restart_to_crash(&mut self, name: &str, pass: u32) -> anyhow::Result<()> {
        self.kill9();
        let failpoints = match pass {
            0 | 1 => format!("{name}=return"),
            _ => format!("{name}={}*off->return", pass - 1),
        };
        self.spawn(&[("FAILPOINTS", &failpoints)])
    }

    /// Starts it again so that it takes `each` longer whenever it passes the crash point `name`.
    pub fn restart_slowed(&mut self, name: &str, each: Duration) -> anyhow::Result<()> {
        self.kill9();
        let failpoints = format!("{name}=sleep({})", each.as_millis());
        self.spawn(&[("FAILPOINTS", &failpoints)])
    }

    /// The same for the first `passes` of it only.
    pub fn restart_slowed_at_first(
        &mut self,
        name: &str,
        passes: u32,
        each: Duration,
    ) -> anyhow::Result<()> {
        self.kill9();
        let failpoints = format!("{name}={passes}*sleep({})->off", each.as_millis());
        self.spawn(&[("FAILPOINTS", &failpoints)])
    }

    /// `kill -9`; nothing if it does not run.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself meanwhile; either way it is gone after wait.
            let _ = child.kill();
            let _ = child.wait();
            self.services.disown(child.id());
        }
    }

    /// Sends a signal by name, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid().context("no process to signal")?;
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {pid}")])
            .status()?;
        ensure!(status.success(), "kill -{name} {pid} failed");
        Ok(())
    }

    /// Asks it to end and waits for that.
    pub async fn sigterm(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait_exit(limit).await
    }

    /// Waits until the process ends by itself.
    pub async fn wait_exit(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let child = self.child.as_mut().context("the process is gone already")?;
            if let Some(status) = child.try_wait()? {
                self.services.disown(child.id());
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} still runs after {limit:?}; its log ends:\n{}",
                    self.role.name(),
                    self.log_tail(40)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the process dies at the crash point `name`, and checks that it was there.
    pub async fn wait_crash_point(&mut self, name: &str, limit: Duration) -> anyhow::Result<()> {
        let status = self
            .wait_exit(limit)
            .await
            .with_context(|| format!("waiting for crash point {name}"))?;
        let log = self.log_of_this_run()?;
        ensure!(
            log.lines()
                .any(|line| line.trim_end() == format!("crash point {name}")),
            "{} ended with {status}, not at crash point {name}; its log ends:\n{}",
            self.role.name(),
            tail(&log, 40)
        );
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What Prometheus would scrape.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let mut env = self.env.iter();
        let (_, address) = env
            .find(|(name, _)| name == "BUNNY_METRICS_LISTEN")
            .context("the process serves no metrics")?;
        let answer = reqwest::get(format!("http://{address}/metrics")).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Peak resident memory of the running process, in bytes.
    pub fn peak_memory_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.pid().context("the process is gone")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("no VmHWM in /proc")?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }

    /// Everything written since the last start.
    pub fn log_of_this_run(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.run_offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn log_tail(&self, lines: usize) -> String {
        file_tail(&self.log, lines)
    }
}

impl Drop for Bunny {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Runs a subcommand to its end; fails with its output if it does.
pub fn run(arguments: &[&str], env: &[(String, String)]) -> anyhow::Result<String> {
    let output = clean_command(&program()?)
        .args(arguments)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.success(),
        "bunny {} ended with {}: {text}",
        arguments.join(" "),
        output.status
    );
    Ok(text)
}

/// A command that sees no setting of whoever runs the tests.
pub(crate) fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"BUNNY_") || bytes == b"FAILPOINTS" {
            command.env_remove(&name);
        }
    }
    command
}

/// The binary built next to this test: `target/<profile>/bunny`.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BUNNY_BINARY") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let candidates = own.ancestors().skip(1).take(2).map(|dir| dir.join("bunny"));
    for candidate in candidates {
        if candidate.is_file() {
            return Ok(candidate.canonicalize()?);
        }
    }
    bail!(
        "no bunny binary near {}: build it with \
         `cargo build --workspace --features bunny/failpoints`, or run `make test`",
        own.display()
    )
}

/// The last lines of a file; empty if it cannot be read.
pub fn file_tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    tail(&String::from_utf8_lossy(&bytes), lines)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
