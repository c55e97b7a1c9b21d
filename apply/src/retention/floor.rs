//! The floor: what is decided, on values that were read, and where it is stored.

use bunny_catalog::MirrorTable;
use bunny_schemas::Position;
use bunny_schemas::control::SyncRecord;
use bunny_schemas::retained::Retained;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::bookkeeping::{Progress, State, TableState};
use crate::error::{Error, Result};

/// Whether the destination knows of every table sync that is wanted. Pure.
pub(super) fn knows_all(
    wanted: &[MirrorTable],
    tables: &[TableState],
    beside: &[TableState],
) -> bool {
    wanted.iter().all(|mapping| {
        let mut found = tables.iter().chain(beside);
        mapping.wanted_request().is_none_or(|wanted| {
            found.any(|table| table.source == mapping.source && table.request_id == Some(wanted))
        })
    })
}

/// The first offset of the change topic that is needed; none: that cannot be told now. Pure.
pub(super) fn lowest_needed(
    tables: &[TableState],
    beside: &[TableState],
    progress: &Progress,
    in_window: i64,
) -> Option<i64> {
    if progress.position == Position::default() {
        // The begin of the generation may be the last event there is, and main has not said
        // where it is.
        return None;
    }
    let out_of_main = tables.iter().filter(|table| !table.in_main);
    // What is done with needs nothing: its table goes on without it.
    let is_done = |table: &TableState| matches!(table.state, State::Errored | State::Removing);
    let beside = beside.iter().filter(|table| !is_done(table));
    let mut lowest = (progress.next_offset - 1).min(in_window);
    for table in out_of_main.chain(beside) {
        // The offset may still be that of a former sync, and this one's changes begin earlier.
        let is_met = table.request_id.is_none() || table.generation == Some(progress.generation);
        lowest = lowest.min(table.restart_offset.filter(|_| is_met)?);
    }
    Some(lowest.max(0))
}

/// The table that needs the log from exactly `floor` on. Pure.
pub(super) fn holding(tables: &[TableState], floor: i64) -> Option<&TableState> {
    let mut out_of_main = tables.iter().filter(|table| !table.in_main);
    out_of_main.find(|table| table.restart_offset == Some(floor))
}

/// Whether the records of all syncs that are loaded, or are to be, are among what was read. If
/// the position topic is lost, or belongs to another history, nothing is known of the chunks.
/// `published_as`: under which request capture has published what is loaded for one. Pure.
pub(super) fn chunks_are_known(
    retained: &Retained,
    progress: &Progress,
    tables: &[TableState],
    published_as: impl Fn(Uuid) -> Uuid,
) -> bool {
    let recorded = retained.position.as_ref();
    let is_loaded = |table: &&TableState| {
        !table.in_main
            && matches!(
                table.state,
                State::Pending | State::Syncing | State::Errored
            )
    };
    let mut requests = tables
        .iter()
        .filter(is_loaded)
        .filter_map(|table| table.request_id);
    recorded.is_some_and(|position| position.generation == progress.generation)
        && requests.all(|request| {
            let published = published_as(request);
            retained
                .syncs
                .iter()
                .any(|sync| sync.request_id == published)
        })
}

/// For each partition of the snapshot topic, the first offset that a sync needs whose changes
/// begin at the floor or above, finished or not. `ends`: what came later is not known. Pure.
pub(super) fn first_needed(retained: &Retained, floor: i64, ends: &[i64]) -> Vec<i64> {
    let counts = |sync: &&SyncRecord| sync.generation.is_nil() || sync.changes_offset >= floor;
    let needed: Vec<&SyncRecord> = retained.syncs.iter().filter(counts).collect();
    let first = |(partition, end): (usize, &i64)| {
        let starts = needed
            .iter()
            .map(|sync| sync.start_offsets.get(partition).copied().unwrap_or(0));
        starts.min().unwrap_or(*end).min(*end)
    };
    ends.iter().enumerate().map(first).collect()
}

/// Below which offset of the change topic nothing of the generation is needed; 0 before
/// anything was decided. Offsets of another generation may be those of another topic.
pub(crate) async fn floor<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    generation: Uuid,
) -> Result<i64> {
    let row = client
        .query_opt(
            "SELECT floor_offset FROM _bunny.retention WHERE mirror_id = $1 AND generation = $2",
            &[&mirror_id, &generation],
        )
        .await
        .map_err(Error::sql("reading what the topics are kept for"))?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// Stores the floor, in the caller's fenced transaction; within a generation it only rises.
pub(super) async fn store<C: GenericClient + Sync>(
    client: &C,
    mirror_id: Uuid,
    generation: Uuid,
    floor: i64,
) -> Result<()> {
    client
        .execute(
            "INSERT INTO _bunny.retention AS kept (mirror_id, generation, floor_offset) VALUES ($1, $2, $3)
             ON CONFLICT (mirror_id) DO UPDATE
             SET generation = excluded.generation, floor_offset = excluded.floor_offset, updated_at = now()
             WHERE kept.generation <> excluded.generation OR kept.floor_offset < excluded.floor_offset",
            &[&mirror_id, &generation, &floor],
        )
        .await
        .map(|_| ())
        .map_err(Error::sql("raising the retention floor"))
}

#[cfg(test)]
mod tests {
    use bunny_postgres::{Lsn, TableName};
    use bunny_schemas::control::{PositionRecord, SyncState};

    use super::*;

    const GENERATION: Uuid = Uuid::from_u128(7);
    const REQUEST: Uuid = Uuid::from_u128(1);

    fn name() -> TableName {
        TableName::new("public", "t")
    }

    fn table(state: State, in_main: bool, restart_offset: Option<i64>) -> TableState {
        TableState {
            state,
            in_main,
            restart_offset,
            generation: Some(GENERATION),
            ..TableState::wanted(name(), name(), Some(REQUEST))
        }
    }

    fn progress() -> Progress {
        Progress {
            generation: GENERATION,
            position: Position {
                commit_lsn: Lsn(5),
                seq: 1,
            },
            next_offset: 100,
        }
    }

    fn lowest(tables: &[TableState], in_window: i64) -> Option<i64> {
        lowest_needed(tables, &[], &progress(), in_window)
    }

    #[test]
    fn the_lowest_of_all_that_need_the_log() {
        let live = table(State::Live, true, None);
        let alone = std::slice::from_ref(&live);
        assert_eq!(lowest(alone, 500), Some(99), "the last event stays");
        assert_eq!(lowest(alone, 50), Some(50), "the window");
        for state in [
            State::Errored,
            State::Parked,
            State::CatchingUp,
            State::Syncing,
        ] {
            let behind = table(state, false, Some(20));
            assert_eq!(lowest(&[live.clone(), behind], 500), Some(20), "{state:?}");
        }
    }

    #[test]
    fn nothing_goes_while_a_sync_may_need_what_nobody_knows() {
        let waiting = table(State::Pending, false, None);
        assert_eq!(lowest(&[waiting], 500), None);
        // It was set aside further on than the sync begins that is wanted by now.
        for generation in [None, Some(Uuid::from_u128(8))] {
            let of_former = TableState {
                generation,
                ..table(State::Pending, false, Some(90))
            };
            assert_eq!(lowest(&[of_former], 500), None, "{generation:?}");
        }
    }

    #[test]
    fn the_begin_of_a_generation_stays_until_something_came_after_it() {
        let live = table(State::Live, true, None);
        let begun = Progress {
            position: Position::default(),
            ..progress()
        };
        assert_eq!(lowest_needed(&[live], &[], &begun, 500), None);
    }

    #[test]
    fn what_is_loaded_beside_counts_until_it_is_done_with() {
        let live = table(State::Live, true, None);
        let with = |beside: TableState| {
            lowest_needed(std::slice::from_ref(&live), &[beside], &progress(), 500)
        };
        assert_eq!(with(table(State::Syncing, false, Some(20))), Some(20));
        assert_eq!(with(table(State::Pending, false, None)), None);
        assert_eq!(with(table(State::Errored, false, None)), Some(99));
        assert_eq!(with(table(State::Removing, false, None)), Some(99));
    }

    #[test]
    fn what_is_wanted_must_be_known_here() {
        let mapping = |request| MirrorTable {
            source: name(),
            destination: name(),
            partition_key: None,
            exclude_columns: Vec::new(),
            identity: None,
            request_id: Some(request),
            retry_id: None,
            replay: None,
            since_request: None,
            checkpoint_id: None,
            beside: false,
        };
        let live = table(State::Live, true, None);
        let knows = |request, beside: &[TableState]| {
            knows_all(&[mapping(request)], std::slice::from_ref(&live), beside)
        };
        assert!(knows(REQUEST, &[]));
        let newer = Uuid::from_u128(2);
        assert!(!knows(newer, &[]), "capture may have begun it");
        let beside = TableState {
            request_id: Some(newer),
            ..live.clone()
        };
        assert!(knows(newer, &[beside]));
    }

    fn sync(changes_offset: i64, start_offsets: [i64; 2], state: SyncState) -> SyncRecord {
        SyncRecord {
            request_id: REQUEST,
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state,
            lsn: Lsn(1),
            start_offsets: start_offsets.to_vec(),
            generation: GENERATION,
            changes_offset,
            taken_at_us: 0,
            rows: 0,
            bytes: 0,
        }
    }

    #[test]
    fn chunks_stay_when_their_records_are_lost() {
        let position = |generation| {
            Some(PositionRecord {
                generation,
                system_id: String::new(),
                timeline: 1,
                commit_lsn: Lsn(1),
                seq: 0,
                confirm_lsn: Lsn(1),
            })
        };
        let known = |position, syncs, tables: &[TableState]| {
            let retained = Retained {
                position,
                syncs,
                ..Retained::default()
            };
            chunks_are_known(&retained, &progress(), tables, |request| request)
        };
        let live = [table(State::Live, true, None)];
        let loading = [table(State::Syncing, false, Some(20))];
        let recorded = vec![sync(20, [0, 0], SyncState::Started)];
        assert!(known(position(GENERATION), vec![], &live));
        assert!(known(position(GENERATION), recorded, &loading));
        assert!(!known(position(GENERATION), vec![], &loading));
        assert!(!known(None, vec![], &live));
        assert!(!known(position(Uuid::from_u128(8)), vec![], &live));
    }

    #[test]
    fn chunks_go_with_their_changes() {
        let retained = Retained {
            syncs: vec![
                sync(10, [0, 0], SyncState::Finished),
                sync(20, [5, 7], SyncState::Finished),
                sync(30, [9, 8], SyncState::Started),
            ],
            ..Retained::default()
        };
        assert_eq!(first_needed(&retained, 10, &[50, 50]), [0, 0]);
        assert_eq!(first_needed(&retained, 11, &[50, 50]), [5, 7]);
        assert_eq!(
            first_needed(&retained, 21, &[50, 6]),
            [9, 6],
            "not past what was there"
        );
        assert_eq!(first_needed(&retained, 31, &[50, 60]), [50, 60]);
    }
}
