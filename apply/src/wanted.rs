//! From the catalog's mappings to the destination's table states, and from loaded
//! tables into main.

use std::collections::{HashMap, HashSet};

use bunny_catalog::MirrorTable;
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use uuid::Uuid;

use crate::bookkeeping::{self, Progress, State, TableState};
use crate::context::MirrorRun;
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
    let ledger = swap::ledger_of(mirror_id);
    let beside = bookkeeping::tables(client, ledger).await?;
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
        swap::forget(client, mirror_id, table).await?;
    }
    for table in &changes.put_beside {
        bookkeeping::put_table(client, ledger, table).await?;
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
    commit(client).await
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

async fn begin(client: &tokio_postgres::Client) -> Result<()> {
    client
        .batch_execute("BEGIN")
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
mod tests {
    use super::*;

    fn name(name: &str) -> TableName {
        TableName {
            schema: "public".into(),
            name: name.into(),
        }
    }

    /// In the generation of no table.
    fn changes(mappings: &[MirrorTable], present: &[TableState]) -> Changes {
        let present = Present {
            tables: present,
            beside: &[],
            oids: &HashMap::new(),
        };
        super::changes(mappings, present, Uuid::from_u128(7))
    }

    fn mapping(source: &str, destination: &str, request: u128) -> MirrorTable {
        MirrorTable {
            source: name(source),
            destination: name(destination),
            partition_key: None,
            exclude_columns: Vec::new(),
            identity: None,
            request_id: Some(Uuid::from_u128(request)),
            retry_id: None,
            replay: None,
            since_request: None,
            checkpoint_id: None,
            beside: false,
        }
    }

    fn live(source: &str, destination: &str, request: u128) -> TableState {
        TableState {
            state: State::Live,
            attempt: 1,
            in_main: true,
            ..TableState::wanted(
                name(source),
                name(destination),
                Some(Uuid::from_u128(request)),
            )
        }
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        assert_eq!(
            changes(&[mapping("a", "x", 1)], &[live("a", "x", 1)]),
            Changes::default()
        );
    }

    #[test]
    fn new_tables_come_and_unmapped_ones_go() {
        let found = changes(
            &[mapping("a", "x", 1), mapping("b", "y", 2)],
            &[live("a", "x", 1), live("c", "z", 3)],
        );
        assert_eq!(
            found.put,
            [TableState::wanted(
                name("b"),
                name("y"),
                Some(Uuid::from_u128(2))
            )]
        );
        assert_eq!(found.remove, [name("c")]);
    }

    #[test]
    fn another_request_takes_the_table_out_of_main() {
        let found = changes(&[mapping("a", "x", 2)], &[live("a", "x", 1)]);
        assert_eq!(
            (found.put[0].state, found.put[0].in_main),
            (State::Pending, false)
        );
        assert_eq!(found.put[0].attempt, 1, "its rows are known as ours");
    }

    #[test]
    fn a_retry_brings_back_what_is_set_aside_and_is_carried_out_once() {
        let retried = MirrorTable {
            retry_id: Some(Uuid::from_u128(5)),
            ..mapping("a", "x", 1)
        };
        let brought = |table: &TableState| {
            let found = changes(std::slice::from_ref(&retried), std::slice::from_ref(table));
            assert_eq!(found.put.len(), 1);
            let again = changes(std::slice::from_ref(&retried), &found.put);
            assert_eq!(again, Changes::default());
            found.put[0].clone()
        };
        let errored = TableState {
            state: State::Errored,
            in_main: false,
            live: Some(Position::default()),
            restart_offset: Some(7),
            error: Some("why".into()),
            ..live("a", "x", 1)
        };
        let back = brought(&errored);
        assert_eq!((back.state, back.error), (State::CatchingUp, None));
        assert_eq!(back.restart_offset, Some(7));

        // It failed while it was loaded: the sync goes on.
        let loading = TableState {
            live: None,
            ..errored.clone()
        };
        assert_eq!(brought(&loading).state, State::Syncing);
        let not_begun = TableState {
            attempt: 0,
            restart_offset: None,
            ..loading
        };
        assert_eq!(brought(&not_begun).state, State::Pending);
        assert_eq!(brought(&live("a", "x", 1)).state, State::Live);
    }

    #[test]
    fn a_table_that_stands_is_loaded_beside_itself() {
        let generation = Uuid::from_u128(7);
        let mapping = MirrorTable {
            beside: true,
            ..mapping("a", "x", 2)
        };
        let table = TableState {
            generation: Some(generation),
            live: Some(Position::default()),
            ..live("a", "x", 1)
        };
        let oids = HashMap::from([(name("a"), 9)]);
        let none = HashMap::new();
        let with = |table: &TableState, beside: &[TableState], oids| {
            let present = Present {
                tables: std::slice::from_ref(table),
                beside,
                oids,
            };
            super::changes(std::slice::from_ref(&mapping), present, generation)
        };
        let found = with(&table, &[], &oids);
        assert!(found.put.is_empty(), "the table goes on");
        let beside = found.put_beside;
        assert_eq!(beside[0].destination, name("_bunny_resync_9"));
        assert_eq!(beside[0].request_id, mapping.request_id);
        assert_eq!(with(&table, &beside, &oids), Changes::default());
        // A run ended while the table was out of main.
        let parked = TableState {
            state: State::Parked,
            in_main: false,
            restart_offset: Some(3),
            ..table.clone()
        };
        let back = with(&parked, &beside, &oids).put;
        assert_eq!(back[0].state, State::CatchingUp);
        // Something else is wanted by now, or the swap is done.
        let former = TableState {
            request_id: Some(Uuid::from_u128(5)),
            ..beside[0].clone()
        };
        let other = with(&table, std::slice::from_ref(&former), &oids);
        assert_eq!(
            (&other.remove_beside[0], &other.put_beside),
            (&former, &beside)
        );
        let done = TableState {
            request_id: mapping.request_id,
            ..table.clone()
        };
        assert_eq!(with(&done, &beside, &oids).remove_beside, beside);
        // Nothing can be beside what is not there, or not loaded.
        let gone = with(&table, &[], &none);
        assert_eq!(
            (gone.put[0].state, gone.put_beside.len()),
            (State::Pending, 0)
        );
        let loading = TableState {
            state: State::Syncing,
            ..table
        };
        assert!(with(&loading, &[], &oids).put_beside.is_empty());
    }

    #[test]
    fn a_replay_says_for_itself_whether_it_is_loaded_beside() {
        let generation = Uuid::from_u128(7);
        let of = bunny_catalog::RetainedSync {
            sync: Uuid::from_u128(1),
            attempt: 1,
            lsn: Lsn(10),
            changes_offset: 40,
            rows: 0,
            bytes: 0,
        };
        // As the run sees it: the mapping's request is the one that is wanted.
        let asked = |beside: bool| MirrorTable {
            beside: !beside,
            replay: Some(bunny_catalog::Replay {
                request_id: Uuid::from_u128(2),
                of: of.clone(),
                until: None,
                beside,
            }),
            ..mapping("a", "x", 2)
        };
        let table = TableState {
            generation: Some(generation),
            live: Some(Position::default()),
            ..live("a", "x", 1)
        };
        let oids = HashMap::from([(name("a"), 9)]);
        let with = |mapping: MirrorTable| {
            let present = Present {
                tables: std::slice::from_ref(&table),
                beside: &[],
                oids: &oids,
            };
            super::changes(&[mapping], present, generation)
        };
        let by_swap = with(asked(true));
        assert!(by_swap.put.is_empty(), "the table goes on");
        // What the copy needs of the log is kept from here on.
        assert_eq!(by_swap.put_beside[0].restart_offset, Some(40));
        let in_place = with(asked(false));
        assert!(in_place.put_beside.is_empty());
        assert_eq!(in_place.put[0].state, State::Pending);
    }

    #[test]
    fn a_table_joins_main_only_before_its_changes_begin() {
        let generation = Uuid::from_u128(7);
        let loaded = |offset| TableState {
            state: State::CatchingUp,
            generation: Some(generation),
            in_main: false,
            restart_offset: Some(offset),
            ..live("a", "x", 1)
        };
        let progress = Progress {
            generation,
            position: Position::default(),
            next_offset: 10,
        };
        assert!(joining(&[loaded(10)], &progress)[0].in_main);
        assert!(joining(&[loaded(9)], &progress).is_empty());
        let other = TableState {
            generation: None,
            ..loaded(10)
        };
        assert!(joining(&[other], &progress).is_empty());
    }
}
