//! What the API must not have left behind, or told, when it has been asked thousands of things.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::stage::Stage;
use serde_json::{Value, json};

/// How long what the API has opened may take to be closed.
const SETTLE: Duration = Duration::from_secs(60);

/// Stand nowhere but where they were put: no guess of the fuzzer's hits them.
pub const JWT_SECRET: &str = "plant3d-s3cret-that-signs-tokens";
pub const USER_PASSWORD: &str = "plant3d-passw0rd-of-ann";
const PEER_PASSWORD: &str = "plant3d-passw0rd-of-a-p33r";

/// The peers `source` and `destination`, each with a user of its own and a planted password.
pub async fn create_peers(stage: &Stage, api: &bunny_tests::api::Api) -> Result<()> {
    for (name, url) in [
        ("source", &stage.source),
        ("destination", &stage.destination),
    ] {
        let user = format!("{}_{name}", stage.name);
        let create = format!(
            "CREATE ROLE \"{user}\" SUPERUSER REPLICATION LOGIN PASSWORD '{PEER_PASSWORD}'"
        );
        url.connect().await?.run(&create).await?;
        let peer = json!({
            "name": name, "host": url.host, "port": url.port, "user": user,
            "password": PEER_PASSWORD, "database": url.database, "ssl_mode": "disable",
        });
        api.post("/v1/peers", peer).await?.expect(201)?;
    }
    Ok(())
}

/// What nobody may be told, whatever they ask: planted ones, the key, and what the catalog keeps of passwords.
pub async fn secrets(stage: &Stage) -> Result<Vec<String>> {
    let mut secrets: Vec<String> = [
        JWT_SECRET,
        USER_PASSWORD,
        PEER_PASSWORD,
        stage.encryption_key(),
        stage.password(),
    ]
    .map(str::to_owned)
    .into();
    let hashes = stage
        .catalog_text("SELECT string_agg(password_hash, E'\\n') FROM bunny.users WHERE username IN ('admin', 'ann')")
        .await?;
    ensure!(hashes.lines().count() == 2, "{hashes}");
    secrets.extend(hashes.lines().map(str::to_owned));
    Ok(secrets)
}

/// Fails if one of them stands in a text, as it is or as JSON within JSON would have it.
pub fn assert_untold(secrets: &[String], text: &str, what: &str) -> Result<()> {
    for secret in secrets {
        if let Some(at) = text.find(secret.as_str()) {
            let before: String = text[..at].chars().rev().take(300).collect();
            let before: String = before.chars().rev().collect();
            anyhow::bail!("a secret is in {what}, after {before}");
        }
    }
    Ok(())
}

/// The bodies and headers of all answers in a recording (HAR).
pub fn answers(recording: &str) -> Result<Vec<String>> {
    let recording: Value = serde_json::from_str(recording)?;
    let entries = recording["log"]["entries"]
        .as_array()
        .context("a recording without entries")?;
    let text = |entry: &Value| {
        let response = &entry["response"];
        let body = response["content"]["text"].as_str().unwrap_or_default();
        format!("{} {} {body}", entry["request"]["url"], response["headers"])
    };
    Ok(entries.iter().map(text).collect())
}

/// What a process of the API holds open.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Connections of those who ask it.
    asked_by: usize,
    /// All else but the connections to the catalog, of which a pool keeps some.
    others: usize,
    /// Sessions of it at the source and at the destination.
    sessions: i64,
}

impl Held {
    pub async fn by(stage: &Stage, pid: u32) -> Result<Held> {
        let connections = connections(pid)?;
        let (mut asked_by, mut others) = (0, 0);
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            // One may be closed meanwhile.
            let Ok(target) = std::fs::read_link(entry?.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            match inode.and_then(|inode| connections.get(inode)) {
                Some((_, remote)) if *remote == stage.catalog.port => {}
                Some((local, remote)) if *local == stage.api_port() && *remote != 0 => {
                    asked_by += 1
                }
                _ => others += 1,
            }
        }
        let mut sessions = 0;
        for url in [&stage.source, &stage.destination] {
            sessions += url
                .connect()
                .await?
                .number(
                    "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'bunny api'",
                )
                .await?;
        }
        Ok(Held {
            asked_by,
            others,
            sessions,
        })
    }

    /// Waits until it holds no session at a peer, and no more of anything else than this.
    pub async fn wait_no_more(self, stage: &Stage, pid: u32) -> Result<Held> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Held::by(stage, pid).await?;
            if now.sessions == 0 && now.asked_by <= self.asked_by && now.others <= self.others {
                return Ok(now);
            }
            ensure!(
                Instant::now() < deadline,
                "the API holds {now:?}, and held {self:?} before it was asked"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whatever it has opened for good the first time it was asked.
    pub fn with_any_others(self) -> Held {
        Held {
            others: usize::MAX,
            ..self
        }
    }
}

/// Local and remote port of a process's TCP connections, by inode.
fn connections(pid: u32) -> Result<HashMap<String, (u16, u16)>> {
    let mut connections = HashMap::new();
    for family in ["tcp", "tcp6"] {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{family}"))?;
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = |field: &str| {
                let (_, port) = field.rsplit_once(':')?;
                u16::from_str_radix(port, 16).ok()
            };
            if let (Some(local), Some(remote)) = (port(fields[1]), port(fields[2])) {
                connections.insert(fields[9].to_owned(), (local, remote));
            }
        }
    }
    Ok(connections)
}
