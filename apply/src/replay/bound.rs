//! Where tables stand still that are rebuilt up to a moment.

use bunny_catalog::{Mirror, Until};
use bunny_schemas::Position;

use crate::bookkeeping::{State, TableState};

/// What ends the part of the log that a replay applies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound(pub(crate) Until);

impl Bound {
    /// Whether the event is the first that is not applied, coming after events that all
    /// are. Events of one source transaction have the same answer. Pure.
    pub fn excludes(&self, position: Position, commit_ts_us: i64) -> bool {
        match self.0 {
            Until::Lsn(lsn) => position.commit_lsn >= lsn,
            Until::Timestamp(time) => commit_ts_us > time.timestamp_micros(),
        }
    }

    /// Whether what is asked for may be complete where the log ends. It was published whole
    /// when it was asked for; only after a time there has to be an event that says so.
    pub(crate) fn may_end_with_log(&self) -> bool {
        matches!(self.0, Until::Lsn(_))
    }
}

/// Where a table is to stand still; none: it goes on with the others. Pure.
fn bound_of(mirror: &Mirror, table: &TableState) -> Option<Bound> {
    let mut replays = mirror
        .tables
        .iter()
        .filter_map(|mapping| mapping.replay.as_ref());
    let replay = replays.find(|replay| table.request_id == Some(replay.request_id))?;
    replay.until.map(Bound)
}

/// Of the tables that are behind, those that one round serves, and where it ends. First come
/// those that go on with the others. Tables that are to stand still at one moment are
/// served together, once all of them are loaded; those in `standing` are there already. Pure.
pub(crate) fn next_round(
    mirror: &Mirror,
    behind: Vec<TableState>,
    all: &[TableState],
    standing: &[uuid::Uuid],
) -> (Vec<TableState>, Option<Bound>) {
    let (bounded, free): (Vec<_>, Vec<_>) = behind
        .into_iter()
        .partition(|table| bound_of(mirror, table).is_some());
    if !free.is_empty() {
        return (free, None);
    }
    let is_loading = |bound: Bound| {
        let mut of_bound = all
            .iter()
            .filter(|table| bound_of(mirror, table) == Some(bound));
        // One that somebody locks comes back by itself, and the others wait for it.
        of_bound.any(|table| matches!(table.state, State::Pending | State::Syncing | State::Parked))
    };
    let is_standing = |table: &TableState| {
        table
            .request_id
            .is_some_and(|request| standing.contains(&request))
    };
    let moving = bounded.iter().filter(|table| !is_standing(table));
    let mut bounds = moving.filter_map(|table| bound_of(mirror, table));
    let Some(bound) = bounds.find(|bound| !is_loading(*bound)) else {
        return (Vec::new(), None);
    };
    let mut served = bounded;
    served.retain(|table| bound_of(mirror, table) == Some(bound));
    (served, Some(bound))
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use chrono::DateTime;

    use super::*;

    fn at(commit_lsn: u64) -> Position {
        Position {
            commit_lsn: Lsn(commit_lsn),
            seq: 1,
        }
    }

    #[test]
    fn an_lsn_is_excluded_a_time_is_included() {
        let lsn = Bound(Until::Lsn(Lsn(20)));
        assert!(!lsn.excludes(at(19), 99));
        assert!(lsn.excludes(at(20), 0));
        let time = Bound(Until::Timestamp(
            DateTime::from_timestamp_micros(7).unwrap(),
        ));
        assert!(!time.excludes(at(99), 7));
        assert!(time.excludes(at(1), 8));
    }
}
