//! The source's side of a schema sync: reads the definitions of all tables as they are at
//! one position of the stream, and hands them to apply by way of the catalog.
//!
//! What makes the position exact is a lock. ACCESS SHARE on every table keeps everything
//! out that changes columns or constraints, and a transaction that did so keeps its own
//! lock until other sessions see it, however early the walsender gives its commit away. So
//! whatever committed before the position, which is asked for under the locks, is in the
//! definitions, and nothing else is. Indexes and enum labels come under weaker locks, or
//! none: all is read twice, and again if it differs.
//!
//! The locks are asked for in short attempts, below any deadlock check, so that nobody is
//! ever cancelled on our account. What goes wrong here ends the command, never the stream.

use std::time::{Duration, Instant};

use bunny_catalog::{Command, HELD, READ, SYNC_SCHEMA, SourceDefinitions};
use bunny_postgres::{Lsn, Session, TableDefinition, TableName, introspect};
use bunny_schemas::source_tables::{SourceTable, SourceTables};
use tokio::sync::watch;

use crate::crash_points::{DEFINITIONS_HANDED_OVER, DEFINITIONS_READ, crash_point};
use crate::error::{Error, Result};
use crate::publisher;
use crate::run::Run;
use crate::snapshot::{self, Passed};
use crate::watch::Exclusions;

/// How often a command that is under way is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often a command is looked for that nothing told of.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Below `deadlock_timeout` (1 s): we always step back first.
const LOCK_TIMEOUT_MS: u32 = 400;
/// Between two attempts, for those who were behind us.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// How long everything may take: apply holds the mirror meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves schema syncs for as long as it is polled.
pub(crate) async fn run(
    run: &Run,
    exclusions: watch::Receiver<Exclusions>,
    passed: watch::Receiver<Passed>,
) -> Result<()> {
    let mut updates = run.context.updates();
    loop {
        let found = look_for_command(run).await;
        let pause = match found {
            Ok(Some(command)) => {
                if waits_for_definitions(&command) {
                    serve(run, &command, &exclusions, &passed).await;
                }
                POLL
            }
            Ok(None) => LOOK_EVERY,
            Err(error) => {
                tracing::debug!(mirror = %run.mirror.name, %error, "commands are looked for later");
                LOOK_EVERY
            }
        };
        tokio::select! {
            changed = updates.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn look_for_command(run: &Run) -> Result<Option<Command>> {
    let catalog = &run.options.catalog;
    Ok(catalog.open_command(run.mirror.id, SYNC_SCHEMA).await?)
}

fn waits_for_definitions(command: &Command) -> bool {
    let has = |step: &str| command.steps.iter().any(|done| done == step);
    has(HELD) && !has(READ)
}

async fn serve(
    run: &Run,
    command: &Command,
    exclusions: &watch::Receiver<Exclusions>,
    passed: &watch::Receiver<Passed>,
) {
    let give_up_at = Instant::now() + PATIENCE;
    let work = async {
        let (lsn, tables) = read_all(run, exclusions, give_up_at).await?;
        crash_point(DEFINITIONS_READ);
        let mut passed = passed.clone();
        let reached = tokio::time::timeout(PATIENCE, snapshot::passed(&mut passed, lsn))
            .await
            .map_err(|_| {
                Error::transient(format!(
                    "the stream has not come to {lsn}, where the definitions are true, within {} s; ask again when it has caught up",
                    PATIENCE.as_secs()
                ))
            })??;
        let tables = serde_json::to_value(&tables)
            .map_err(|error| Error::transient(format!("the definitions are no JSON: {error}")))?;
        let definitions = SourceDefinitions {
            generation: run.mirror.generation,
            lsn,
            published: (reached.published.commit_lsn, reached.published.seq),
            tables,
        };
        let catalog = &run.options.catalog;
        catalog
            .hand_over_definitions(command.id, &definitions)
            .await?;
        tracing::info!(mirror = %run.mirror.name, %lsn, "definitions are handed over");
        crash_point(DEFINITIONS_HANDED_OVER);
        Ok::<(), Error>(())
    };
    let Err(error) = work.await else {
        return;
    };
    tracing::warn!(mirror = %run.mirror.name, %error, "definitions could not be read");
    let why = format!("the source's definitions could not be read: {error}");
    // If even this is not possible, apply gives up by itself.
    if let Err(error) = run.options.catalog.fail_command(command.id, &why).await {
        tracing::warn!(mirror = %run.mirror.name, %error, "a schema sync could not be ended");
    }
}

async fn read_all(
    run: &Run,
    exclusions: &watch::Receiver<Exclusions>,
    give_up_at: Instant,
) -> Result<(Lsn, SourceTables)> {
    let session = Session::connect(&run.peer()?, &run.application_name).await?;
    loop {
        let error = match read_once(run, exclusions, &session).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => Error::transient("the source's definitions change all the time"),
            Err(error) if is_in_the_way(&error) => error,
            Err(error) => return Err(error),
        };
        if Instant::now() >= give_up_at {
            return Err(error);
        }
        session.batch("ROLLBACK").await?;
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// Lock not available, deadlock detected (PostgreSQL manual, appendix A).
fn is_in_the_way(error: &Error) -> bool {
    matches!(error, Error::Source(error) if matches!(error.sqlstate(), Some("55P03" | "40P01")))
}

/// None: something changed between two looks.
async fn read_once(
    run: &Run,
    exclusions: &watch::Receiver<Exclusions>,
    session: &Session,
) -> Result<Option<(Lsn, SourceTables)>> {
    session
        .batch(&format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
        ))
        .await?;
    let mut found = SourceTables::default();
    let mut locked = Vec::new();
    for table in &run.mirror.tables {
        match lock(session, &table.source).await? {
            None => locked.push(table),
            Some(reason) => found.unreadable.push((table.source.clone(), reason)),
        }
    }
    let first = read(run, exclusions, session, &locked).await?;
    let lsn = introspect::end_of_wal(session).await?;
    let second = read(run, exclusions, session, &locked).await?;
    if first != second {
        return Ok(None);
    }
    session.batch("COMMIT").await?;
    for (table, read) in locked.iter().zip(second) {
        match read {
            Ok(read) => found.tables.push(read),
            Err(reason) => found.unreadable.push((table.source.clone(), reason)),
        }
    }
    Ok(Some((lsn, found)))
}

/// None: it is locked. Otherwise why it cannot be, which is this table's own trouble.
async fn lock(session: &Session, table: &TableName) -> Result<Option<String>> {
    let sql = format!(
        "SAVEPOINT one; LOCK TABLE {} IN ACCESS SHARE MODE; RELEASE SAVEPOINT one",
        table.quoted()
    );
    let Err(error) = session.batch(&sql).await else {
        return Ok(None);
    };
    if error.is_transient() || error.sqlstate().is_none() {
        return Err(error.into());
    }
    session.batch("ROLLBACK TO SAVEPOINT one").await?;
    Ok(Some(error.to_string()))
}

type Read = std::result::Result<SourceTable, String>;

async fn read(
    run: &Run,
    exclusions: &watch::Receiver<Exclusions>,
    session: &Session,
    tables: &[&bunny_catalog::MirrorTable],
) -> Result<Vec<Read>> {
    let mut found = Vec::with_capacity(tables.len());
    for table in tables {
        let excluded = &table.exclude_columns;
        let Some(definition) = introspect::table_definition(session, &table.source).await? else {
            found.push(Err("it is no table any more".to_owned()));
            continue;
        };
        let published = {
            let known = exclusions.borrow();
            snapshot::published_columns(&definition, excluded, &known)
        };
        let columns = match published {
            Ok(columns) => columns,
            Err(cause) => {
                found.push(Err(cause.to_string()));
                continue;
            }
        };
        let slot = &run.mirror.slot_name;
        let published = publisher::describe(&definition, &columns, slot, session).await?;
        let objects = introspect::table_objects(session, definition.oid, excluded).await?;
        let definition = TableDefinition {
            objects: Some(objects),
            ..definition
        };
        found.push(Ok(SourceTable {
            definition: without_states(definition, &columns),
            published,
        }));
    }
    Ok(found)
}

/// Without what changes by itself, and without the defaults of columns that stay here.
fn without_states(mut definition: TableDefinition, columns: &[String]) -> TableDefinition {
    definition.row_estimate = 0;
    definition.size_bytes = 0;
    definition.pages = 0;
    for column in &mut definition.columns {
        if column.generated.is_none() && !columns.contains(&column.name) {
            column.default = None;
        }
    }
    for sequence in definition
        .objects
        .iter_mut()
        .flat_map(|all| &mut all.sequences)
    {
        sequence.last_value = None;
        sequence.is_called = false;
    }
    definition
}
