//! Backups of a database or a whole server, by Postgres's own programs.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::database::{Url, quote};

/// Dumps a database into a file.
pub async fn dump(database: &Url, file: &Path) -> anyhow::Result<()> {
    let file = file.display().to_string();
    run(
        database,
        "pg_dump",
        &["-Fc", "-f", &file, &database.database],
    )
    .await
}

/// Makes the database what a dump holds, all at once: whatever it is now is gone.
pub async fn restore(database: &Url, file: &Path) -> anyhow::Result<()> {
    lose(database).await?;
    let file = file.display().to_string();
    let name = &database.database;
    let arguments = ["--exit-on-error", "--single-transaction", "-d", name, &file];
    run(database, "pg_restore", &arguments).await
}

/// Copies all that a running server has into a directory that is not there yet, with the WAL that
/// makes the copy whole.
pub async fn copy_server(server: &Url, directory: &Path) -> anyhow::Result<()> {
    let directory = directory.display().to_string();
    let arguments = ["-D", &directory, "--checkpoint=fast", "--wal-method=stream"];
    run(server, "pg_basebackup", &arguments).await
}

/// Makes the database an empty one.
pub async fn lose(database: &Url) -> anyhow::Result<()> {
    let name = quote(&database.database);
    let server = database.with_database("postgres").connect().await?;
    for statement in [
        format!("DROP DATABASE {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name} TEMPLATE template0"),
    ] {
        server.run(&statement).await?;
    }
    Ok(())
}

async fn run(database: &Url, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(path_of(program))
        .args(arguments)
        .env("PGHOST", &database.host)
        .env("PGPORT", database.port.to_string())
        .env("PGUSER", &database.user)
        .env("PGPASSWORD", &database.password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Of the same Postgres as the destination, or on the PATH.
fn path_of(program: &str) -> PathBuf {
    let bin = ["DESTINATION_PG_BIN", "BUNNY_PG_BIN"]
        .iter()
        .find_map(|name| std::env::var_os(name).filter(|bin| !bin.is_empty()));
    bin.map_or_else(|| program.into(), |bin| PathBuf::from(bin).join(program))
}
