//! Runs the cases of [`super::row_cases`] in one mirror.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, quote};
use bunny_tests::topic;
use serde_json::json;

use super::row_cases::{self, RowCase, SECRET};
use super::{assert_same, major, mappings};
use crate::scene::Scene;

/// Of the interleaved load: connections, how many transactions each begins, and which of them end in ROLLBACK.
pub const CONNECTIONS: usize = 64;
const TURNS: usize = 38;
const ROLLED_BACK_EVERY: usize = 7;
/// Those that are there in the end.
pub const COMMITTED: usize = CONNECTIONS * (TURNS - TURNS.div_ceil(ROLLED_BACK_EVERY));
const _: () = assert!(COMMITTED >= 2000);

fn pairs(case: &RowCase) -> Vec<TablePair> {
    let schema = case.schema_name();
    let tables = case.tables.iter().map(|&table| {
        let excluded = case.excluded.iter().filter(|(of, _)| *of == table);
        TablePair {
            source: (schema.clone(), table.to_owned()),
            destination: (schema.clone(), table.to_owned()),
            excluded: excluded.map(|&(_, column)| column.to_owned()).collect(),
        }
    });
    tables.collect()
}

/// Runs SQL of a case with its schema first on the search path.
async fn run(session: &Session, case: &RowCase, sql: &str) -> Result<()> {
    let path = format!("SET search_path = {}, public", quote(&case.schema_name()));
    session.run(&path).await?;
    session.run(sql).await.with_context(|| case.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_row_arrives_exactly_as_it_was() -> Result<()> {
    let scene = Scene::new("fidelity_rows").await?;
    let (source, destination) = (
        scene.stage.source.connect().await?,
        scene.stage.destination.connect().await?,
    );
    // What capture asks for is in the server's log.
    source
        .run("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET log_statement = ''all''', current_database()); END $$")
        .await?;
    let source_major = major(&source).await?;
    let oldest = source_major.min(major(&destination).await?);
    let cases: Vec<&RowCase> = row_cases::GROUPS
        .iter()
        .flat_map(|group| group.cases)
        .filter(|case| case.since <= oldest && source_major <= case.until)
        .collect();
    for case in &cases {
        let schema = quote(&case.schema_name());
        for session in [&source, &destination] {
            session.run(&format!("CREATE SCHEMA {schema}")).await?;
            run(session, case, case.both).await?;
        }
        run(&destination, case, case.destination).await?;
        run(&source, case, case.create).await?;
    }
    source
        .run("CREATE TABLE public.busy (id bigint PRIMARY KEY, writer int, v text); CREATE TABLE public.busy_log (writer int, v text)")
        .await?;
    let mut named: Vec<(&str, Vec<TablePair>)> =
        cases.iter().map(|case| (case.name, pairs(case))).collect();
    let wider: Vec<&str> = cases
        .iter()
        .filter(|case| case.is_wider)
        .map(|case| case.name)
        .collect();
    named.push((
        "interleaved transactions",
        TablePair::all(&["public.busy", "public.busy_log"]),
    ));
    let all: Vec<TablePair> = named.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, "rows", mappings(&all), json!({}))
        .await?;
    mirror.wait_running().await?;
    let check = async |when: &str| -> Result<()> {
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
        assert_same(&scene.stage, &source, &destination, &named, &wider)
            .await
            .context(when.to_owned())
    };
    check("after the snapshot").await?;
    let steps = cases
        .iter()
        .map(|case| case.changes.len())
        .max()
        .unwrap_or_default();
    for step in 0..steps {
        for case in &cases {
            if let Some(change) = case.changes.get(step) {
                run(&source, case, change).await?;
            }
        }
        check(&format!("after step {step}")).await?;
    }
    interleaved(&scene).await?;
    check("after the interleaved transactions").await?;
    // Each has left one row there.
    let committed = "SELECT count(*) FROM public.busy_log";
    ensure!(destination.number(committed).await? == COMMITTED as i64);
    scene.stage.assert_topics_hold(&mirror, &all).await?;
    excluded_columns_were_never_read(&scene, &mirror.slug()).await
}

/// Many transactions, open at the same time, ended in any order.
async fn interleaved(scene: &Scene) -> Result<()> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..CONNECTIONS {
        let session = scene.stage.source.connect().await?;
        writers.spawn(async move {
            for turn in 0..TURNS {
                let id = turn * CONNECTIONS + writer;
                let end = if turn % ROLLED_BACK_EVERY == 0 { "ROLLBACK" } else { "COMMIT" };
                session.run(&format!("BEGIN; INSERT INTO public.busy VALUES ({id}, {writer}, 'new')")).await?;
                session
                    .run(&format!("INSERT INTO public.busy_log VALUES ({writer}, 'same'); UPDATE public.busy SET v = 'by ' || {turn} WHERE writer = {writer}"))
                    .await?;
                session.run(&format!("DELETE FROM public.busy WHERE writer = {writer} AND id % 5 = 0; {end}")).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

/// Neither by a COPY nor in a topic.
async fn excluded_columns_were_never_read(scene: &Scene, slug: &str) -> Result<()> {
    let services = &scene.stage.services;
    topic::assert_nowhere(&services.brokers, &scene.stage.name, slug, SECRET).await?;
    let log = std::fs::read(services.directory().join("source.log"))?;
    let log = String::from_utf8_lossy(&log);
    let copies: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("COPY") && line.contains("\"excluded_columns\"."))
        .collect();
    ensure!(
        !copies.is_empty(),
        "the server's log shows no COPY of the tables with excluded columns"
    );
    let read = copies.iter().find(|line| line.contains("secret"));
    ensure!(read.is_none(), "a COPY reads an excluded column: {read:?}");
    Ok(())
}
