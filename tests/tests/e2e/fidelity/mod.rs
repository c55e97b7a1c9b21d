//! The fidelity suite: whatever Postgres can hold arrives exactly as it was, or is refused
//! by name. Every case is a named row of a table:
//! - [`values`]: types and their edges, taken through every way a value can take
//!   ([`value_tables`]);
//! - [`packaged`]: the same of extensions that packages bring, where they are installed;
//! - [`rows`]: kinds of tables, columns, keys, transactions;
//! - [`refusals`]: what is refused when a mirror is created;
//! - [`older`]: what an older destination cannot hold;
//! - [`document`]: docs/fidelity.md is written from these tables and compared with them.
//!
//! Checked after every step: source and destination hold the same rows, in columns of the
//! same types; at the end, that the topics, decoded by `apache-avro`, add up to the source.

mod document;
mod generated;
mod older;
mod packaged;
mod refusals;
mod row_cases;
mod rows;
mod servers;
mod value_tables;
mod values;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::Session;
use bunny_tests::stage::Stage;
use bunny_tests::topic::Summary;
use serde_json::{Value, json};

use crate::scene::Scene;
use generated::Generated;
use value_tables::{SCHEMA, ValueTables};

/// Settings that would change how values are printed, were sessions not pinned.
const SOURCE_SETTINGS: &[&str] = &[
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "xmloption = 'document'",
    "search_path = 'elsewhere'",
];
const DESTINATION_SETTINGS: &[&str] = &[
    "datestyle = 'German, DMY'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'America/St_Johns'",
    "xmloption = 'document'",
    "default_transaction_isolation = 'repeatable read'",
];

async fn set_for_database(session: &Session, settings: &[&str]) -> Result<()> {
    let database = session
        .text("SELECT quote_ident(current_database())")
        .await?;
    for setting in settings {
        session
            .run(&format!("ALTER DATABASE {database} SET {setting}"))
            .await?;
    }
    Ok(())
}

/// Major version of a server.
pub async fn major(session: &Session) -> Result<u32> {
    Ok(u32::try_from(
        session
            .number("SELECT current_setting('server_version_num')::int / 10000")
            .await?,
    )?)
}

/// Table mappings under their own names, spelled so that any name is taken as it is.
fn mappings(pairs: &[TablePair]) -> Value {
    let quoted = bunny_tests::database::quote;
    let all: Vec<Value> = pairs
        .iter()
        .map(|pair| {
            json!({
                "source_schema": quoted(&pair.source.0), "source_table": quoted(&pair.source.1),
                "destination_schema": quoted(&pair.destination.0), "destination_table": quoted(&pair.destination.1),
                "exclude_columns": pair.excluded,
            })
        })
        .collect();
    json!(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_exactly_as_it_was() -> Result<()> {
    let scene = Scene::new("fidelity_values").await?;
    set_for_database(&scene.source, SOURCE_SETTINGS).await?;
    set_for_database(
        &scene.stage.destination.connect().await?,
        DESTINATION_SETTINGS,
    )
    .await?;
    let (source, destination) = (
        scene.stage.source.connect().await?,
        scene.stage.destination.connect().await?,
    );
    source
        .run("SET xmloption = content; SET search_path = public")
        .await?;
    let oldest = major(&source).await?.min(major(&destination).await?);
    let cases: Vec<ValueTables> = values::GROUPS
        .iter()
        .flat_map(|group| group.cases)
        .filter(|case| case.since <= oldest)
        .map(ValueTables::new)
        .collect();
    for session in [&source, &destination] {
        session
            .run(&format!("CREATE SCHEMA objects; CREATE SCHEMA {SCHEMA}"))
            .await?;
        for case in &cases {
            if !case.case.extension.is_empty() {
                session
                    .run(&format!(
                        "CREATE EXTENSION IF NOT EXISTS {} SCHEMA public",
                        case.case.extension
                    ))
                    .await?;
            }
            session.run(case.case.setup).await?;
        }
    }
    for case in &cases {
        source
            .run(&case.create())
            .await
            .with_context(|| format!("creating {}", case.case.type_name))?;
    }
    let mut generated = Generated::new();
    source.run(&generated.create()).await?;
    let mut named: Vec<(&str, Vec<TablePair>)> = cases
        .iter()
        .map(|case| (case.case.type_name, case.pairs()))
        .collect();
    named.push(("generated values", Generated::pairs()));
    let pairs: Vec<TablePair> = named.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
    let mirror = scene
        .stage
        .create_mapped_mirror(&scene.api, "values", mappings(&pairs), json!({}))
        .await?;
    mirror.wait_running().await?;
    let check = async |when: &str| -> Result<()> {
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
        assert_same(&scene.stage, &source, &destination, &named, &[])
            .await
            .context(when.to_owned())
    };
    check("after the snapshot").await?;
    change(&source, &cases).await?;
    for change in generated.changes() {
        source.run(&change).await?;
    }
    // Every value has come by every way and is still there.
    check("after the changes").await?;
    let summary = scene.stage.assert_topics_hold(&mirror, &pairs).await?;
    assert_avro_types(&summary, &cases)
}

/// Runs the changes of every case, one step of all after the other.
async fn change(source: &Session, cases: &[ValueTables]) -> Result<()> {
    let changes: Vec<Vec<String>> = cases.iter().map(ValueTables::changes).collect();
    let steps = changes.iter().map(Vec::len).max().unwrap_or_default();
    for step in 0..steps {
        for (case, changes) in cases.iter().zip(&changes) {
            let Some(change) = changes.get(step) else {
                continue;
            };
            source
                .run(change)
                .await
                .with_context(|| format!("changing {}", case.case.type_name))?;
        }
    }
    Ok(())
}

/// Events hold each case's values as the Avro type that it names.
fn assert_avro_types(summary: &Summary, cases: &[ValueTables]) -> Result<()> {
    for case in cases {
        let found = summary.avro_types.get(&(
            SCHEMA.to_owned(),
            case.table("").replace(&format!("{SCHEMA}."), ""),
        ));
        let found = found
            .and_then(|columns| columns.get("v"))
            .map(String::as_str);
        ensure!(
            found == Some(case.case.avro),
            "{} stands in events as {found:?}, not as {}",
            case.case.type_name,
            case.case.avro
        );
    }
    Ok(())
}

/// Of a case that differs.
const SHOWN_CHARS: usize = 1500;

/// Compares each case's tables, content and types (but for cases that are `wider` at the
/// destination); names every case that differs.
async fn assert_same(
    stage: &Stage,
    source: &Session,
    destination: &Session,
    cases: &[(&str, Vec<TablePair>)],
    wider: &[&str],
) -> Result<()> {
    let (here, there) = tokio::try_join!(column_types(source), column_types(destination))?;
    let all: Vec<TablePair> = cases.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
    let names = cases
        .iter()
        .flat_map(|(case, pairs)| pairs.iter().map(move |_| *case));
    let names: Vec<&str> = names.collect();
    let mut differing: Vec<String> = content::differing(source, destination, &all)
        .await?
        .into_iter()
        .map(|(index, text)| {
            let shown: String = text.chars().take(SHOWN_CHARS).collect();
            format!("{}: {shown}", names[index])
        })
        .collect();
    for (case, pairs) in cases {
        for pair in pairs {
            let columns: Vec<_> = here
                .get(&pair.source)
                .into_iter()
                .flatten()
                .filter(|(name, _)| !pair.excluded.contains(name))
                .collect();
            // The destination may have columns of its own.
            let theirs: Vec<_> = there
                .get(&pair.destination)
                .into_iter()
                .flatten()
                .filter(|(name, _)| columns.iter().any(|(ours, _)| ours == name))
                .collect();
            if columns != theirs && !wider.contains(case) {
                differing.push(format!("{case}: {pair:?} has columns {columns:?} at the source, {theirs:?} at the destination"));
            }
        }
    }
    if !differing.is_empty() {
        bail!(
            "{} cases differ:\n{}\n{}",
            differing.len(),
            differing.join("\n"),
            stage.logs_tail()
        );
    }
    Ok(())
}

/// Per table, in order: each column's name, and its type with modifier and collation.
type ColumnTypes = BTreeMap<(String, String), Vec<(String, String)>>;

async fn column_types(session: &Session) -> Result<ColumnTypes> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text, a.attname::text,
                    format_type(a.atttypid, a.atttypmod) || coalesce(' COLLATE ' || l.collname, '')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             LEFT JOIN pg_collation l ON l.oid = a.attcollation
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', '_bunny')
             ORDER BY 1, 2, a.attnum",
            &[],
        )
        .await?;
    let mut tables = ColumnTypes::new();
    for row in rows {
        tables
            .entry((row.get(0), row.get(1)))
            .or_default()
            .push((row.get(2), row.get(3)));
    }
    Ok(tables)
}
