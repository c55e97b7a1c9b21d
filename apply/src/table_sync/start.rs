//! Makes the start of a sync true at the destination, in one fenced transaction.

use bunny_catalog::{MirrorTable, OnExistingRows, SchemaChanges};
use bunny_postgres::{Session, TableDefinition, TableName, quote_ident};
use bunny_schemas::control::TableSyncStarted;

use super::destination_table::{self, Ensured, Wanted};
use super::{chunk_copy, columns};
use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::parked;
use crate::replay;
use crate::schema::foundations;
use crate::schema_change::labels;
use crate::swap;

/// How long the start of a sync waits for others' locks on the destination table.
const LOCK_TIMEOUT_SECONDS: u32 = 30;

/// Creates or empties the destination table, forgets what lower attempts left, and
/// stores the table as SYNCING. The session must be idle, and is so again afterwards,
/// unless the error is a lost connection.
///
/// Rows are ours if an earlier attempt got as far as this: from then on the table was
/// empty or emptied. Rows of others are refused, emptied or kept, as `on_existing_rows`
/// says. Whether there were any to keep (`upsert`) is stored with the first attempt, so that
/// the next one empties a table that was empty. Where there were some, rows that a void
/// attempt loaded are kept as well: they can't be told apart, and the next attempt
/// overwrites them key by key.
pub(super) async fn make_true(
    session: &Session,
    run: &MirrorRun,
    sync: &TableSyncStarted,
) -> Result<Ensured> {
    let client: &tokio_postgres::Client = session;
    lay_foundations(client, run, sync).await?;
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{}s'",
            LOCK_TIMEOUT_SECONDS.min(parked::patience_seconds())
        ))
        .await
        .map_err(Error::sql("beginning a table sync"))?;
    let result = write(client, run, sync).await;
    let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = client.batch_execute(end).await.map_err(Error::sql(
        "ending the transaction that begins a table sync",
    ));
    // Why it had to be rolled back says more than that the rollback failed too.
    let ensured = result?;
    ended?;
    Ok(ensured)
}

/// Creates what a table stands on that is not there yet or was filled by us. In a
/// transaction of its own: a label that an enum gets can only be used by a later one. Dying after it leaves types
/// that nothing uses yet, and that are found again.
async fn lay_foundations(
    client: &tokio_postgres::Client,
    run: &MirrorRun,
    sync: &TableSyncStarted,
) -> Result<()> {
    let source = sync.table_name();
    let definition = sync.table_definition()?;
    let Some(objects) = &definition.objects else {
        return Ok(());
    };
    if !run.mirror.config.create_destination_tables {
        return Ok(());
    }
    let mapping = mapping(run, &source)?;
    let destination = &mapping.destination;
    let found = client
        .query_one(
            "SELECT to_regclass($1) IS NOT NULL",
            &[&destination.quoted()],
        )
        .await
        .map_err(Error::sql(format!(
            "looking for destination table {destination}"
        )))?;
    // A table of somebody else's has its types; ours follow the source's as the rows do.
    let table = bookkeeping::table(client, run.mirror_id(), &source).await?;
    let is_ours = table.as_ref().is_some_and(|table| table.attempt > 0);
    if found.get(0) && !is_ours {
        return Ok(());
    }
    // One that ends at a moment may end before the rename.
    let goes_on = mapping
        .replay
        .as_ref()
        .is_some_and(|replay| replay.until.is_none());
    let is_older = |table: &TableState| table.lsn.is_some_and(|lsn| sync.lsn <= lsn);
    if let Some(table) = table.filter(|table| goes_on && is_ours && is_older(table)) {
        labels::refuse_renamed(client, run.mirror_id(), &table, objects).await?;
    }
    foundations::lay(client, run, &source, objects).await
}

async fn write(
    client: &tokio_postgres::Client,
    run: &MirrorRun,
    sync: &TableSyncStarted,
) -> Result<Ensured> {
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    let ledger = run.ledger;
    let source = sync.table_name();
    let table = bookkeeping::table(client, ledger, &source)
        .await?
        .filter(|table| table.request_id == Some(sync.request_id))
        .ok_or_else(|| changed_meanwhile(&source))?;
    let mapping = mapping(run, &source)?;
    let config = &run.mirror.config;
    let definition = sync.table_definition()?;
    let excluded = excluded(mapping, sync, &definition);
    let excluded_now = |column: &&String| mapping.exclude_columns.contains(column);
    if mapping.replay.is_some()
        && let Some(column) = sync.columns.iter().find(excluded_now)
    {
        return Err(Error::Refused(format!(
            "its copy carries column {column:?}, which is excluded by now; resync the table"
        )));
    }
    if run.is_beside() {
        return write_beside(client, run, sync, table, (&definition, &excluded)).await;
    }
    let is_ours = table.attempt > 0;
    let has_key = !definition.row_key().is_empty();
    let may_keep = config.on_existing_rows == OnExistingRows::Upsert && has_key;
    let kept = is_ours && bookkeeping::keeps_rows(client, ledger, &source).await?;
    if kept && !has_key && config.on_existing_rows == OnExistingRows::Upsert {
        return Err(Error::Refused(format!(
            "rows that were in destination table {} are to stay (\"on_existing_rows\": \"upsert\"), and no key of the source's \
             tells them from copied ones any more; give it a key that is not DEFERRABLE, or set \"on_existing_rows\" to \
             \"truncate\", which empties the table",
            table.destination
        )));
    }
    let kept_rows = kept && may_keep;
    let is_replay = mapping.replay.is_some() && is_ours && !kept_rows;
    let key = if is_replay && config.schema_changes != SchemaChanges::Manual {
        // The columns go quickly once the rows are gone.
        make_room(client, &table, is_ours, config.on_existing_rows).await?;
        replay::take_back(client, ledger, &table, &table.destination, &definition).await?
    } else {
        Vec::new()
    };
    let former = definition_of(&table);
    let wanted = Wanted {
        definition: &definition,
        destination: &table.destination,
        excluded: &excluded,
        columns: &sync.columns,
        may_create: config.create_destination_tables,
        may_extend: is_ours && config.schema_changes != SchemaChanges::Manual,
        keeps_rows: kept_rows,
        former: former.as_ref(),
    };
    let ensured = destination_table::ensure(client, wanted).await?;
    let mut notes = ensured.left_out.clone();
    if let Some(objects) = &definition.objects {
        notes.extend(foundations::compare(client, &table.destination, objects).await?);
    }
    bookkeeping::put_notes(client, ledger, &source, &notes).await?;
    let keeps_rows = if is_ours {
        kept_rows
    } else {
        may_keep
            && !ensured.created
            && destination_table::has_rows(client, &table.destination).await?
    };
    if keeps_rows {
        let fixed = chunk_copy::fixed_columns(client, &table.destination).await?;
        refuse_fixed(&table.destination, &definition, &sync.columns, &fixed)?;
    }
    if !ensured.created && !keeps_rows {
        make_room(client, &table, is_ours, config.on_existing_rows).await?;
        replay::make_key(client, &table.destination, &key).await?;
        if wanted.may_extend && mapping.replay.is_none() {
            let may_tighten = config.schema_changes == SchemaChanges::All;
            columns::follow_not_null(client, wanted, may_tighten).await?;
        }
    }
    bookkeeping::forget_chunks(client, ledger, sync.request_id).await?;
    let started = started(table, sync)?;
    bookkeeping::put_table(client, ledger, &started).await?;
    bookkeeping::set_keeps_rows(client, ledger, &source, keeps_rows).await?;
    Ok(ensured)
}

/// No UPDATE gives a present row the source's value of a GENERATED ALWAYS identity outside the key.
fn refuse_fixed(
    destination: &TableName,
    definition: &TableDefinition,
    columns: &[String],
    fixed: &[String],
) -> Result<()> {
    let key = definition.row_key();
    let mut fixed = columns
        .iter()
        .filter(|column| fixed.contains(&quote_ident(column)) && !key.contains(column));
    fixed.next().map_or(Ok(()), |column| {
        Err(Error::Refused(format!(
            "column {} of destination table {destination} is GENERATED ALWAYS AS IDENTITY and not in the key, so rows that are there cannot be given the source's values by \"on_existing_rows\": \"upsert\"; empty the table and sync it again, or put the column into exclude_columns",
            quote_ident(column)
        )))
    })
}

/// The same for a sync that is loaded beside its table: the table itself is only looked at.
async fn write_beside(
    client: &tokio_postgres::Client,
    run: &MirrorRun,
    sync: &TableSyncStarted,
    table: TableState,
    (definition, excluded): (&TableDefinition, &[String]),
) -> Result<Ensured> {
    let mapping = mapping(run, &table.source)?;
    let destination = &mapping.destination;
    let is_older = mapping.replay.is_some();
    // A copy that is older says nothing of what the table is to be like.
    let former = if is_older {
        None
    } else {
        let itself = bookkeeping::table(client, run.mirror_id(), &table.source).await?;
        itself.and_then(|itself| definition_of(&itself))
    };
    let wanted = Wanted {
        definition,
        destination,
        excluded,
        columns: &sync.columns,
        may_create: false,
        may_extend: false,
        keeps_rows: true,
        former: former.as_ref(),
    };
    let ensured = if is_older && run.mirror.config.schema_changes != SchemaChanges::Manual {
        swap::create(client, destination, &table.destination).await?;
        as_it_was(client, run, wanted, &table).await?
    } else {
        let ensured = destination_table::ensure(client, wanted)
            .await
            .map_err(with_truncate)?;
        swap::create(client, destination, &table.destination).await?;
        ensured
    };
    bookkeeping::forget_chunks(client, run.ledger, sync.request_id).await?;
    bookkeeping::put_table(client, run.ledger, &started(table, sync)?).await?;
    Ok(ensured)
}

/// Makes the empty table `beside` what the sync has found. It may be older than the table
/// it was made like, which stays what it is.
async fn as_it_was(
    client: &tokio_postgres::Client,
    run: &MirrorRun,
    wanted: Wanted<'_>,
    beside: &TableState,
) -> Result<Ensured> {
    let (mirror_id, made) = (run.mirror_id(), &beside.destination);
    let table = bookkeeping::table(client, mirror_id, &beside.source)
        .await?
        .ok_or_else(|| changed_meanwhile(&beside.source))?;
    let key = replay::take_back(client, mirror_id, &table, made, wanted.definition).await?;
    let former = definition_of(&table);
    let ensured = destination_table::ensure(
        client,
        Wanted {
            destination: made,
            may_extend: true,
            keeps_rows: false,
            former: former.as_ref(),
            ..wanted
        },
    )
    .await?;
    replay::make_key(client, made, &key).await?;
    Ok(ensured)
}

/// The source's table at the point of the sync before.
fn definition_of(table: &TableState) -> Option<TableDefinition> {
    let definition = table.definition.clone()?;
    serde_json::from_value(definition).ok()
}

/// What only emptying the table would cure: nothing about it changes under its readers.
fn with_truncate(error: Error) -> Error {
    match error {
        Error::Refused(reason) => Error::Refused(format!(
            "{reason}; or resync the table with {{\"strategy\": \"truncate\"}}, which brings its columns in line"
        )),
        error => error,
    }
}

/// Names of the columns that are left behind: the excluded ones, and those that capture knows
/// to be one of them under another name.
fn excluded(
    mapping: &MirrorTable,
    sync: &TableSyncStarted,
    definition: &TableDefinition,
) -> Vec<String> {
    let mut excluded = mapping.exclude_columns.clone();
    let columns = definition.columns.iter();
    let left = columns.filter(|c| c.generated.is_none() && !sync.columns.contains(&c.name));
    excluded.extend(left.map(|column| column.name.clone()));
    excluded
}

async fn make_room(
    client: &tokio_postgres::Client,
    table: &TableState,
    is_ours: bool,
    policy: OnExistingRows,
) -> Result<()> {
    let destination = &table.destination;
    if is_ours || policy == OnExistingRows::Truncate {
        return destination_table::empty(client, destination).await;
    }
    if destination_table::has_rows(client, destination).await? {
        return Err(Error::Refused(format!(
            "destination table {destination} already holds rows that are not this mirror's; \
             empty it, or set \"on_existing_rows\": \"truncate\" (or \"upsert\", for a table with a key)"
        )));
    }
    Ok(())
}

fn started(table: TableState, sync: &TableSyncStarted) -> Result<TableState> {
    let definition = serde_json::from_str(&sync.definition).map_err(|error| {
        Error::Inconsistent(format!(
            "the definition of {} in the snapshot topic is no JSON: {error}",
            table.source
        ))
    })?;
    Ok(TableState {
        state: State::Syncing,
        attempt: sync.attempt,
        generation: Some(sync.generation),
        lsn: Some(sync.lsn),
        live: None,
        in_main: false,
        restart_offset: Some(sync.changes_offset),
        definition: Some(definition),
        columns: sync.columns.clone(),
        chunks_total: None,
        rows_total: None,
        rows_synced: 0,
        error: None,
        ..table
    })
}

/// The mapping of a source table.
pub(super) fn mapping<'a>(run: &'a MirrorRun, source: &TableName) -> Result<&'a MirrorTable> {
    run.mirror
        .tables
        .iter()
        .find(|table| table.source == *source)
        .ok_or_else(|| changed_meanwhile(source))
}

/// The state row and the mirror differ from what this run began with: begin again.
pub(super) fn changed_meanwhile(source: &TableName) -> Error {
    Error::NotYet(format!(
        "what is wanted of table {source} changed while it was being synced; starting again"
    ))
}
