//! Table topics, read by Debezium's own JDBC sink on Kafka Connect.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::connect::{self, Sink};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::quote;
use bunny_tests::load::{self, Load};
use bunny_tests::stage::Stage;
use serde_json::json;

use crate::table_topics::{KINDS, KINDS_FOR_ALL};

/// A Java program that starts on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Keyed tables as upserts and deletes, one without a key as inserts. The sink would write the
/// placeholder of what was not sent into the table, so the table of large values sends its whole rows.
#[tokio::test(flavor = "multi_thread")]
async fn debeziums_jdbc_sink_makes_the_same_tables() -> Result<()> {
    let stage = Stage::new("jdbc_sink").await?;
    stage.migrate()?;
    let _others = [stage.start(Role::Apply)?, stage.start(Role::Api)?];
    let mut capture = stage.start(Role::Capture)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let name = format!("{}_sink", stage.name);
    stage
        .services
        .destination
        .connect()
        .await?
        .run(&format!("CREATE DATABASE {}", quote(&name)))
        .await?;
    let sink_url = stage.services.destination.with_database(&name);
    let (source, sink) = (stage.source.connect().await?, sink_url.connect().await?);
    for side in [&source, &sink] {
        load::create_tables(side, 0).await?;
        side.run(KINDS).await?;
    }
    source
        .run("ALTER TABLE documents REPLICA IDENTITY FULL")
        .await?;
    let keyed = ["public.accounts", "public.documents", "public.kinds"];
    let tables: Vec<&str> = keyed.into_iter().chain(["public.journal"]).collect();
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({"table_topics": "debezium"}))
        .await?;
    mirror.wait_running().await?;

    let topics = |tables: &[&str]| -> Vec<String> {
        let topic = |table: &&str| format!("{}.mirror.{table}", stage.name);
        tables.iter().map(topic).collect()
    };
    let sinks = [
        Sink {
            name: "keyed",
            topics: topics(&keyed),
            settings: &[
                ("insert.mode", "upsert"),
                ("primary.key.mode", "record_key"),
                ("delete.enabled", "true"),
                ("truncate.enabled", "true"),
            ],
        },
        Sink {
            name: "keyless",
            topics: topics(&["public.journal"]),
            settings: &[("insert.mode", "insert"), ("primary.key.mode", "none")],
        },
    ];
    let mut connect = connect::start(&stage.services, stage.directory(), &sink_url, &sinks).await?;

    source
        .run("INSERT INTO documents SELECT g, 'title', repeat(md5(g::text), 100) FROM generate_series(1, 220) g")
        .await?;
    source
        .run("INSERT INTO kinds (id) VALUES (99); TRUNCATE kinds")
        .await?;
    source.run(KINDS_FOR_ALL).await?;
    let load = Load::start(&stage.source, 2, 20);
    load.advance(50).await;
    capture.restart()?;
    load.advance(50).await;
    load.stop().await;

    let pairs = TablePair::all(&tables);
    stage.assert_converges(&mirror, &pairs).await?;
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = content::assert_same(&source, &sink, &pairs).await {
        let runs = connect.is_running()? && !connect.output()?.contains("unrecoverable");
        ensure!(
            runs && Instant::now() < deadline,
            "{error:#}\n{}{}",
            connect.output()?,
            connect.errors()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    connect.kill9();
    let drop = format!("DROP DATABASE {} WITH (FORCE)", quote(&name));
    let server = stage.services.destination.connect().await?;
    server
        .run(&drop)
        .await
        .context("removing the sink's database")
}
