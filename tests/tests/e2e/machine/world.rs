//! What the state machine works on: tables that are written to without a pause and change
//! their definitions, and what may not be left when everything has settled.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::database::{Session, Url};
use bunny_tests::stage::Stage;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

/// Tables the mirror always has.
pub const ALWAYS: [&str; 2] = ["public.accounts", "public.documents"];
/// A table with a column that is sometimes excluded, under another name at the destination.
pub const PEOPLE: &str = "public.people";
/// A table that is dropped at the source now and then.
pub const SPARE: &str = "public.spare";
/// Tables that come and go.
pub const OPTIONAL: [&str; 4] = ["public.measurements", "public.journal", PEOPLE, SPARE];

const CREATE_SPARE: &str = "
CREATE TABLE IF NOT EXISTS spare (id int PRIMARY KEY, v text);
INSERT INTO spare SELECT g, 'spare ' || g FROM generate_series(1, 700) g ON CONFLICT DO NOTHING;";
const CREATE: &str = "
CREATE TABLE never (id int PRIMARY KEY);
CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, secret text, n int NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX people_n ON people (n) WHERE n < 0;
INSERT INTO people SELECT g, 'name ' || g, 'secret ' || g, g FROM generate_series(1, 2500) g;";

/// Creates what [`bunny_tests::load::create_tables`] does not.
pub async fn create_tables(source: &Session) -> Result<()> {
    source.run(CREATE).await?;
    bring_spare_back(source).await
}

/// Creates the table that may have been dropped.
pub async fn bring_spare_back(source: &Session) -> Result<()> {
    source.run(CREATE_SPARE).await
}

/// Changes rows of the further tables until it is aborted. A transaction that fails, because
/// its table is gone or locked for too long, is none.
pub fn write(source: &Url) -> JoinHandle<Result<()>> {
    let source = source.clone();
    tokio::spawn(async move {
        let session = source.connect().await?;
        session.run("SET lock_timeout = '2s'").await?;
        for n in 0.. {
            let id = n % 2500;
            for sql in [
                format!(
                    "UPDATE people SET n = n + 1, secret = 'secret {n}' WHERE id % 250 = {}",
                    n % 250
                ),
                format!("DELETE FROM people WHERE id = {id}"),
                format!("INSERT INTO people VALUES ({id}, 'again {n}', NULL, {id})"),
                format!("UPDATE spare SET v = 'v {n}' WHERE id = {}", n % 700),
            ] {
                let _ = session.run(&sql).await;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(())
    })
}

/// Changes a definition at the source, and a row after it, which brings the change along.
/// Gives what it did, or why it did not. `n` makes names differ.
pub async fn change_definition(
    source: &Session,
    random: &mut StdRng,
    n: usize,
) -> Result<String, String> {
    let (table, touch) = [
        (
            "accounts",
            "UPDATE accounts SET balance = balance WHERE id = 1",
        ),
        (
            "documents",
            "UPDATE documents SET revision = revision + 1 WHERE id = 1",
        ),
        ("people", "UPDATE people SET n = n + 1 WHERE id = 5"),
        (
            "journal",
            "INSERT INTO journal VALUES (0, -1, 'after a change')",
        ),
    ][random.random_range(0..4)];
    let newest = format!(
        "SELECT coalesce(max(attname), '') FROM pg_attribute WHERE attrelid = '{table}'::regclass
         AND NOT attisdropped AND attname LIKE 'more\\_%'"
    );
    let told = |error: anyhow::Error| format!("{error:#}");
    let newest = source.text(&newest).await.map_err(told)?;
    let change = match (random.random_range(0..6), newest.as_str()) {
        (0, _) if random.random_ratio(1, 3) => "DROP TABLE IF EXISTS spare".to_owned(),
        (0..3, _) | (_, "") => {
            let kind = ["text", "int DEFAULT 7", "text DEFAULT 'filled'"];
            let kind = kind[random.random_range(0..kind.len())];
            format!("ALTER TABLE {table} ADD COLUMN more_{n:03} {kind}")
        }
        (3, newest) => format!("ALTER TABLE {table} DROP COLUMN {newest}"),
        (4, newest) => format!("ALTER TABLE {table} RENAME COLUMN {newest} TO more_{n:03}"),
        (_, newest) => format!("ALTER TABLE {table} ALTER COLUMN {newest} TYPE text"),
    };
    source
        .run(&format!(
            "SET lock_timeout = '3s'; {change}; RESET lock_timeout; {touch}"
        ))
        .await
        .map_err(told)?;
    Ok(change)
}

/// Takes away what tables that left the mirror left at the destination: whose definition has
/// changed since could not come back to what stands there.
pub async fn forget(destination: &Session, mapped: &[String]) -> Result<()> {
    let gone = OPTIONAL
        .iter()
        .filter(|table| !mapped.iter().any(|kept| kept == *table));
    for table in gone {
        let there = match *table {
            PEOPLE => "public.humans",
            other => other,
        };
        destination
            .run(&format!("DROP TABLE IF EXISTS {there}"))
            .await?;
    }
    Ok(())
}

/// Nothing of what was begun and ended is left: neither at the source nor at the destination
/// nor in the catalog. What is cleaned up a moment later may take that moment.
pub async fn assert_nothing_left(stage: &Stage, mapped: &[String], limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = left(stage, mapped).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "left behind:\n{}\n{}",
            left.join("\n"),
            stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn left(stage: &Stage, mapped: &[String]) -> Result<Vec<String>> {
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    let mapped: Vec<String> = mapped.iter().map(|table| format!("'{table}'")).collect();
    let mapped = mapped.join(", ");
    let of_source = format!(
        "SELECT 'temporary slot ' || slot_name FROM pg_replication_slots WHERE database = current_database() AND temporary
         UNION ALL SELECT 'slots: ' || count(*) FROM pg_replication_slots WHERE database = current_database() HAVING count(*) <> 1
         UNION ALL SELECT format('published but not mirrored: %I.%I', schemaname, tablename) FROM pg_publication_tables
             WHERE schemaname || '.' || tablename NOT IN ({mapped})
         UNION ALL SELECT 'mirrored but not published: ' || t FROM unnest(ARRAY[{mapped}]) AS t
             WHERE t NOT IN (SELECT schemaname || '.' || tablename FROM pg_publication_tables)
         UNION ALL SELECT format('session %s in a transaction since %s: %s', application_name, xact_start, query) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name LIKE 'bunny %' AND state LIKE 'idle in transaction%'
               AND clock_timestamp() - state_change > '2 s'"
    );
    let of_destination = format!(
        "SELECT 'relation ' || oid::regclass FROM pg_class WHERE relname LIKE '%bunny\\_resync%' OR (relname LIKE '\\_bunny%' AND relpersistence <> 't')
         UNION ALL SELECT format('column %s of %s', attname, attrelid::regclass) FROM pg_attribute WHERE attname LIKE '\\_bunny%'
         UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE '\\_bunny\\_%' OR nspname LIKE 'bunny%'
         UNION ALL SELECT format('bookkeeping of %s.%s: %s', source_schema, source_table, state) FROM _bunny.tables
             WHERE source_schema || '.' || source_table NOT IN ({mapped})
         UNION ALL SELECT format('shape of %s.%s', source_schema, source_table) FROM _bunny.shapes
             WHERE source_schema || '.' || source_table NOT IN ({mapped})
         UNION ALL SELECT format('chunk %s of request %s', chunk, request_id) FROM _bunny.chunks
             WHERE request_id NOT IN (SELECT request_id FROM _bunny.tables WHERE request_id IS NOT NULL)
         UNION ALL SELECT 'report of a schema sync ' || command_id FROM _bunny.schema_syncs"
    );
    let of_catalog = "SELECT string_agg(what, E'\\n') FROM (
             SELECT format('command %s %s %s', kind, state, id) FROM bunny.commands WHERE state IN ('pending', 'running')
             UNION ALL SELECT 'definitions of ' || command_id FROM bunny.source_definitions) AS l (what)";
    let mut left = Vec::new();
    for (session, sql) in [(&source, &of_source), (&destination, &of_destination)] {
        for row in session.query(sql.as_str(), &[]).await? {
            left.push(row.get(0));
        }
    }
    let of_catalog = stage.catalog_text(of_catalog).await?;
    if of_catalog != "NULL" {
        left.push(of_catalog);
    }
    Ok(left)
}
