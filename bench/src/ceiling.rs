//! The ceiling of any drain: the walsender's own rate, read by a program that throws
//! everything away.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use bunny_tests::database::{Session, Url};
use bunny_tests::lsn::Lsn;
use tokio::process::Command;

/// Creates a slot to drain.
pub async fn create_slot(source: &Session, slot: &str) -> Result<()> {
    let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    source.text(&sql).await.map(drop)
}

/// Reads the slot up to `end`.
pub async fn drain(source: &Url, slot: &str, publication: &str, end: Lsn) -> Result<()> {
    let output = Command::new(program()?)
        .args([
            "--start",
            "--no-loop",
            "--slot",
            slot,
            "--file",
            "/dev/null",
        ])
        .args(["-o", "proto_version=1", "-o"])
        .arg(format!("publication_names={publication}"))
        .args(["--endpos", &end.to_string(), "--dbname", &source.database])
        .env("PGHOST", &source.host)
        .env("PGPORT", source.port.to_string())
        .env("PGUSER", &source.user)
        .env("PGPASSWORD", &source.password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running pg_recvlogical")?;
    ensure!(
        output.status.success(),
        "pg_recvlogical ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// That of the newest Postgres that Debian installed: older clients read newer servers.
fn program() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("looking for pg_recvlogical")?
        .flatten()
        .map(|entry| entry.path().join("bin/pg_recvlogical"))
        .filter(|program| program.is_file())
        .collect();
    found.sort();
    found.pop().context("no pg_recvlogical is installed")
}
