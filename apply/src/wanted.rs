//! From the catalog's mappings to the destination's table states, and from loaded
//! tables into main.

use std::collections::{HashMap, HashSet};

use bunny_catalog::MirrorTable;
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use uuid::Uuid;

use crate::bookkeeping::{self, Progress, State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::{reader, replay, swap};

/// What the state rows lack to be what the catalog wants. Pure.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    put: Vec<TableState>,
    remove: Vec<TableName>,
    /// Requests that are replaced by others: what was loaded for them counts no more.
    replaced: Vec<(TableName, Uuid)>,
    /// To be loaded beside their tables.
    put_beside: Vec<TableState>,
    /// Not to be loaded beside their tables any more.
    remove_beside: Vec<TableState>,
}

/// What is there: table states, those of what is loaded beside, and which destination
/// tables, by source name, something can be loaded beside.
#[derive(Clone, Copy)]
struct Present<'a> {
    tables: &'a [TableState],
    beside: &'a [TableState],
    oids: &'a HashMap<TableName, u32>,
}

/// The table's sync so far.
fn former(table: &TableState) -> Option<(TableName, Uuid)> {
    let request_id = table.request_id?;
    Some((table.source.clone(), request_id))
}

/// A table that is set aside, as it goes on: what the log holds of it is applied again
/// from its own offset on, or its sync loaded again. Others stay as they are. Pure.
fn brought_back(table: &TableState, generation: Uuid) -> TableState {
    if !matches!(table.state, State::Errored | State::Parked) {
        return table.clone();
    }
    // The log of another generation says nothing about this one.
    if table.generation.is_some_and(|of| of != generation) {
        return TableState {
            error: Some("the log begins anew after the table's last sync; resync it".to_owned()),
            ..table.clone()
        };
    }
    let is_loaded = table.live.is_some() || table.request_id.is_none();
    let state = match table.attempt {
        _ if is_loaded && table.restart_offset.is_some() => State::CatchingUp,
        // No start of a sync was ever met.
        0 => State::Pending,
        _ if table.request_id.is_some() => State::Syncing,
        _ => State::Pending,
    };
    TableState {
        state,
        error: None,
        ..table.clone()
    }
}

/// A table of which no other sync is wanted, if it does not stay as it is: it is retried, or
/// a former run has left it out of main for an exchange that came to nothing. Pure.
fn goes_on(mapping: &MirrorTable, table: &TableState, generation: Uuid) -> Option<TableState> {
    let is_retried = table.retry_id != mapping.retry_id;
    (is_retried || table.state == State::Parked).then(|| TableState {
        retry_id: mapping.retry_id,
        ..brought_back(table, generation)
    })
}

/// What is to be loaded beside the table, if that is how its sync is wanted. Pure.
fn loaded_beside(
    mapping: &MirrorTable,
    table: &TableState,
    oids: &HashMap<TableName, u32>,
    generation: Uuid,
) -> Option<TableState> {
    let is_other = table.request_id != mapping.request_id;
    let is_wanted = mapping.loads_beside() && is_other && swap::stands(table, generation);
    let oid = oids.get(&mapping.source).filter(|_| is_wanted)?;
    let beside = swap::beside(&mapping.destination, *oid);
    let source = mapping.source.clone();
    Some(TableState {
        // What a replay reads is kept from here on.
        restart_offset: replay::changes_offset(mapping),
        ..TableState::wanted(source, beside, mapping.request_id)
    })
}

fn changes(mappings: &[MirrorTable], present: Present<'_>, generation: Uuid) -> Changes {
    let mut changes = Changes::default();
    let Present {
        tables: present,
        beside,
        oids,
    } = present;
    let mut stay_beside = HashSet::new();
    for mapping in mappings {
        let wanted = TableState {
            retry_id: mapping.retry_id,
            ..TableState::wanted(
                mapping.source.clone(),
                mapping.destination.clone(),
                mapping.request_id,
            )
        };
        match present.iter().find(|table| table.source == mapping.source) {
            None => changes.put.push(wanted),
            Some(table) if table.destination != mapping.destination => {
                changes.replaced.extend(former(table));
                changes.put.push(wanted);
            }
            Some(table) if let Some(loaded) = loaded_beside(mapping, table, oids, generation) => {
                let has_begun = |found: &&TableState| {
                    found.source == loaded.source && found.request_id == loaded.request_id
                };
                stay_beside.insert(loaded.request_id);
                if !beside.iter().any(|found| has_begun(&found)) {
                    changes.put_beside.push(loaded);
                }
                changes.put.extend(goes_on(mapping, table, generation));
            }
            Some(table) if table.request_id != mapping.request_id => {
                changes.replaced.extend(former(table));
                changes.put.push(TableState {
                    state: State::Pending,
                    request_id: mapping.request_id,
                    retry_id: mapping.retry_id,
                    // Filled by us, also where it only followed changes so far.
                    attempt: table.attempt.max(i32::from(table.generation.is_some())),
                    live: None,
                    in_main: false,
                    // What a replay reads is kept from here on.
                    restart_offset: replay::changes_offset(mapping).or(table.restart_offset),
                    // No start of this request was met.
                    generation: None,
                    error: None,
                    ..table.clone()
                });
            }
            Some(table) => changes.put.extend(goes_on(mapping, table, generation)),
        }
    }
    let left = beside.iter();
    changes.remove_beside = left
        .filter(|found| found.state != State::Removing)
        .filter(|found| !stay_beside.contains(&found.request_id))
        .cloned()
        .collect();
    let mapped: HashSet<&TableName> = mappings.iter().map(|mapping| &mapping.source).collect();
    changes.remove = present
        .iter()
        .filter(|table| !mapped.contains(&table.source))
        .map(|table| table.source.clone())
        .collect();
    changes
}

/// Brings the state rows in line with the catalog.
pub(crate) async fn reconcile(run: &MirrorRun, session: &Session) -> Result<()> {
    let client: &tokio_postgres::Client = session;
    let mirror_id = run.mirror_id();
    begin(client).await?;
    bookkeeping::fence(client, mirror_id, run.epoch).await?;
    let tables = bookkeeping::tables(client, mirror_id).await?;
    let beside = bookkeeping::tables(client, swap::ledger_of(mirror_id)).await?;
    let mut oids = HashMap::new();
    let mappings = run.mirror.tables.iter();
    for mapping in mappings.filter(|mapping| mapping.loads_beside()) {
        if let Some(oid) = swap::oid_of(client, &mapping.destination).await? {
            oids.insert(mapping.source.clone(), oid);
        }
    }
    let present = Present {
        tables: &tables,
        beside: &beside,
        oids: &oids,
    };
    let changes = changes(&run.mirror.tables, present, run.mirror.generation);
    for table in &changes.remove_beside {
        swap::let_go(client, mirror_id, table).await?;
    }
    for table in &changes.put_beside {
        swap::put(client, mirror_id, table).await?;
    }
    for table in &changes.put {
        bookkeeping::put_table(client, mirror_id, table).await?;
    }
    for (source, request_id) in &changes.replaced {
        bookkeeping::forget_chunks(client, mirror_id, *request_id).await?;
        // What was deleted at the source meanwhile is not told apart from rows of others.
        bookkeeping::set_keeps_rows(client, mirror_id, source, false).await?;
    }
    for source in &changes.remove {
        bookkeeping::remove_table(client, mirror_id, source).await?;
    }
    commit(client).await?;
    if changes != Changes::default() {
        reached(crash_points::TABLES_RECONCILED);
    }
    Ok(())
}

/// Whether nothing of the generation has been applied: then main waits until every table
/// is loaded, and all enter it together.
pub(crate) async fn main_has_not_begun(run: &MirrorRun, session: &Session) -> Result<bool> {
    let client: &tokio_postgres::Client = session;
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    let progress = bookkeeping::progress(client, run.mirror_id()).await?;
    Ok(is_before_main(&tables, progress.as_ref()))
}

fn is_before_main(tables: &[TableState], progress: Option<&Progress>) -> bool {
    progress.is_none_or(|progress| {
        progress.position == Position::default() && !tables.iter().any(|table| table.in_main)
    })
}

/// Puts tables into main that need not catch up, and gives main's progress. Before main
/// has begun these are all that are loaded, together with the progress row that main
/// starts from: before their changes begin. Later, those of which no snapshot is wanted.
pub(crate) async fn enter_main(run: &MirrorRun, session: &Session) -> Result<Progress> {
    let client: &tokio_postgres::Client = session;
    let mirror_id = run.mirror_id();
    let tables = bookkeeping::tables(client, mirror_id).await?;
    let known = bookkeeping::progress(client, mirror_id).await?;
    let (entering, progress) = match known {
        Some(progress) if is_before_main(&tables, known.as_ref()) => {
            let loaded = joining(&tables, &progress);
            let bare = bare(&tables, progress.generation, None);
            (loaded.into_iter().chain(bare).collect(), progress)
        }
        Some(progress) => (bare(&tables, progress.generation, None), progress),
        None => first_entry(run, tables).await?,
    };
    if entering.is_empty() && known.is_some() {
        return Ok(progress);
    }
    begin(client).await?;
    bookkeeping::fence(client, mirror_id, run.epoch).await?;
    for table in &entering {
        bookkeeping::put_table(client, mirror_id, table).await?;
    }
    if known.is_none() {
        bookkeeping::set_progress(client, mirror_id, &progress).await?;
    }
    commit(client).await?;
    Ok(progress)
}

/// Tables that can join main as it stands: it has not passed the begin of their changes.
fn joining(tables: &[TableState], progress: &Progress) -> Vec<TableState> {
    let can_join = |table: &&TableState| {
        table.state == State::CatchingUp
            && !table.in_main
            && table.generation == Some(progress.generation)
            && table
                .restart_offset
                .is_some_and(|offset| offset >= progress.next_offset)
    };
    tables.iter().filter(can_join).map(enter).collect()
}

/// Tables of which no snapshot is wanted, as they follow the stream: from `lsn` on, or
/// from where main is.
fn bare(tables: &[TableState], generation: Uuid, lsn: Option<Lsn>) -> Vec<TableState> {
    let is_bare = |table: &&TableState| table.request_id.is_none() && table.state == State::Pending;
    let bare = tables.iter().filter(is_bare);
    bare.map(|table| TableState {
        state: State::Live,
        generation: Some(generation),
        lsn,
        ..enter(table)
    })
    .collect()
}

async fn first_entry(
    run: &MirrorRun,
    tables: Vec<TableState>,
) -> Result<(Vec<TableState>, Progress)> {
    let generation = run.mirror.generation;
    let is_loaded = |table: &&TableState| {
        table.state == State::CatchingUp && table.generation == Some(generation)
    };
    let mut entering: Vec<TableState> = tables.iter().filter(is_loaded).map(enter).collect();
    let mut next_offset = tables
        .iter()
        .filter(is_loaded)
        .filter_map(|table| table.restart_offset)
        .min();
    // Tables of which no snapshot is wanted follow the stream from its beginning.
    let has_bare = !bare(&tables, generation, None).is_empty();
    if next_offset.is_none() || has_bare {
        let (offset, start_lsn) = reader::generation_start(run).await?;
        next_offset = Some(next_offset.map_or(offset, |known| known.min(offset)));
        entering.extend(bare(&tables, generation, Some(start_lsn)));
    }
    let progress = Progress {
        generation,
        position: Position::default(),
        next_offset: next_offset.unwrap_or_default(),
    };
    Ok((entering, progress))
}

fn enter(table: &TableState) -> TableState {
    TableState {
        in_main: true,
        restart_offset: None,
        ..table.clone()
    }
}

/// Nobody is waited for without end: somebody's lock on the bookkeeping is a failure that shows.
async fn begin(client: &tokio_postgres::Client) -> Result<()> {
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{}'",
            swap::LOCK_TIMEOUT
        ))
        .await
        .map_err(Error::sql("beginning to change table states"))
}

async fn commit(client: &tokio_postgres::Client) -> Result<()> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing table states"))
}

#[cfg(test)]
mod tests;
