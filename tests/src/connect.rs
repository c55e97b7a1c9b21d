//! Kafka Connect with Debezium's JDBC sink, which no one here wrote.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};

use crate::clients::{Program, output_of};
use crate::database::Url;
use crate::ports::free_port;
use crate::services::{Services, repository};

/// What one sink does.
pub struct Sink<'s> {
    pub name: &'s str,
    pub topics: Vec<String>,
    /// Settings of the connector beside those that say where to.
    pub settings: &'s [(&'s str, &'s str)],
}

/// Starts a standalone worker with some sinks, installed if it is not there. It reads what is
/// committed only, as JSON with schemas, and writes into tables that are there already. Its log,
/// offsets and settings go to `directory`; it is killed when it is dropped.
pub async fn start(
    services: &Arc<Services>,
    directory: &Path,
    destination: &Url,
    sinks: &[Sink<'_>],
) -> anyhow::Result<Program> {
    let jars = tokio::task::spawn_blocking(install).await??;
    let offsets = directory.join("connect.offsets");
    let worker = [
        ("bootstrap.servers", services.brokers.clone()),
        (
            "key.converter",
            "org.apache.kafka.connect.json.JsonConverter".into(),
        ),
        (
            "value.converter",
            "org.apache.kafka.connect.json.JsonConverter".into(),
        ),
        ("key.converter.schemas.enable", "true".into()),
        ("value.converter.schemas.enable", "true".into()),
        ("plugin.discovery", "service_load".into()),
        ("consumer.isolation.level", "read_committed".into()),
        (
            "offset.storage.file.filename",
            offsets.display().to_string(),
        ),
        ("listeners", format!("http://127.0.0.1:{}", free_port())),
    ];
    let mut files = vec![directory.join("connect-worker.properties")];
    write_properties(&files[0], &worker)?;
    for sink in sinks {
        let url = format!(
            // Texts are of whatever type the column is.
            "jdbc:postgresql://{}:{}/{}?stringtype=unspecified",
            destination.host, destination.port, destination.database
        );
        let mut settings = vec![
            ("name", sink.name.to_owned()),
            (
                "connector.class",
                "io.debezium.connector.jdbc.JdbcSinkConnector".into(),
            ),
            ("tasks.max", "1".into()),
            ("topics", sink.topics.join(",")),
            ("connection.url", url),
            ("connection.username", destination.user.clone()),
            ("connection.password", destination.password.clone()),
            (
                "collection.name.format",
                "${source.schema}.${source.table}".into(),
            ),
            ("schema.evolution", "none".into()),
            ("quote.identifiers", "true".into()),
        ];
        let own = sink.settings.iter();
        settings.extend(own.map(|(name, value)| (*name, (*value).to_owned())));
        let file = directory.join(format!("connect-{}.properties", sink.name));
        write_properties(&file, &settings)?;
        files.push(file);
    }
    // The program itself and not a link to it: by that the servers' reaper knows it.
    let java = output_of(Command::new("sh").args(["-c", "readlink -f \"$(command -v java)\""]))?;
    let mut command = Command::new(java.trim());
    command
        .args([
            "-Xmx384m",
            "-XX:TieredStopAtLevel=1",
            "-Dlog4j2.level=WARN",
            "-cp",
        ])
        .arg(jars.join("*"))
        .arg("org.apache.kafka.connect.cli.ConnectStandalone")
        .args(files);
    Program::start(services, command, directory, "connect")
}

fn write_properties(file: &Path, settings: &[(&str, String)]) -> anyhow::Result<()> {
    let lines = settings
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"));
    Ok(std::fs::write(file, lines.collect::<String>())?)
}

fn install() -> anyhow::Result<PathBuf> {
    output_of(
        Command::new(repository().join("scripts/install-deps")).args(["--servers", "--connect"]),
    )?;
    let pom = std::fs::read_to_string(repository().join("scripts/connect-pom.xml"))?;
    let version = pom
        .split_once("<debezium.version>")
        .and_then(|(_, rest)| rest.split_once('<'))
        .context("no version in connect-pom.xml")?
        .0;
    let directory = repository()
        .join(".local")
        .join(format!("connect-{version}"));
    ensure!(directory.is_dir(), "no {}", directory.display());
    Ok(directory)
}
