//! Postgres's own benchmark, as a source of rows and of load.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::database::Url;

/// The tables `pgbench -i` creates. `pgbench_history` has no key.
pub const TABLES: [&str; 4] = [
    "public.pgbench_accounts",
    "public.pgbench_branches",
    "public.pgbench_history",
    "public.pgbench_tellers",
];

/// Fills a database: 100,000 accounts per unit of `scale`.
pub async fn initialise(database: &Url, scale: u32) -> anyhow::Result<()> {
    run(database, &["-i", "-q", "-s", &scale.to_string()])
        .await
        .map(drop)
}

/// Runs the TPC-B-like load; returns pgbench's report. `rate` is transactions a second
/// over all clients, as fast as possible if `None`.
pub async fn run_load(
    database: &Url,
    clients: u32,
    seconds: u32,
    rate: Option<u32>,
) -> anyhow::Result<String> {
    let (clients, seconds) = (clients.to_string(), seconds.to_string());
    let rate = rate.map(|rate| rate.to_string());
    let mut arguments = vec!["-c", &clients, "-j", "2", "-T", &seconds];
    if let Some(rate) = &rate {
        arguments.extend(["-R", rate]);
    }
    run(database, &arguments).await
}

/// Creates the tables and their keys, without rows.
pub async fn create_tables(database: &Url) -> anyhow::Result<()> {
    run(database, &["-i", "-q", "-I", "dtp"]).await.map(drop)
}

/// Runs `transactions` of the simple-update load over all clients: one update of an
/// account and one line of history each.
pub async fn simple_updates(database: &Url, clients: u32, transactions: u64) -> anyhow::Result<()> {
    let (clients, each) = (
        clients.to_string(),
        (transactions / u64::from(clients)).to_string(),
    );
    let arguments = ["-n", "-N", "-c", &clients, "-j", "2", "-t", &each];
    run(database, &arguments).await.map(drop)
}

async fn run(database: &Url, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program()?)
        .args(arguments)
        .arg(&database.database)
        .env("PGHOST", &database.host)
        .env("PGPORT", database.port.to_string())
        .env("PGUSER", &database.user)
        .env("PGPASSWORD", &database.password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "pgbench {arguments:?} ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Transactions that the report of [`run_load`] says were processed.
pub fn transactions(report: &str) -> Option<u64> {
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "))?;
    line.split('/').next()?.trim().parse().ok()
}

/// pgbench of the newest Postgres installed, or on the PATH.
fn program() -> anyhow::Result<PathBuf> {
    if let Some(bin) = std::env::var_os("BUNNY_PG_BIN") {
        return Ok(PathBuf::from(bin).join("pgbench"));
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let program = entry.path().join("bin/pgbench");
            program.is_file().then_some((version, program))
        })
        .collect();
    versions.sort();
    Ok(versions
        .pop()
        .map_or_else(|| "pgbench".into(), |(_, program)| program))
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_report() {
        let report =
            "scaling factor: 1\nnumber of transactions actually processed: 1234\nlatency ...";
        assert_eq!(super::transactions(report), Some(1234));
        assert_eq!(super::transactions(""), None);
    }
}
