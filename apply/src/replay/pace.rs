//! How far the replays of a run are, and how fast: for the status.

use std::collections::HashMap;

use bunny_catalog::{ApplyReport, Mirror, Replay, ReplayProgress};
use tokio::time::Instant;
use uuid::Uuid;

use super::ends::Ends;
use crate::bookkeeping::{State, TableState};
use crate::table_sync::TableProgress;

/// What is being done of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Loading,
    Following,
}

/// Where each replay was when this run first saw it at its present stage.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    since: HashMap<(Uuid, Stage), (Instant, i64)>,
}

impl Pace {
    /// Adds to a report how far the replays are. `tables`: the mirror's, and what is loaded
    /// beside them; `loading`: what the loaders know better.
    pub(crate) fn show(
        &mut self,
        mirror: &Mirror,
        tables: &[TableState],
        loading: &[TableProgress],
        ends: &Ends,
        report: &mut ApplyReport,
        now: Instant,
    ) {
        let replays = mirror
            .tables
            .iter()
            .filter_map(|table| table.replay.as_ref());
        for replay in replays {
            let mut states = tables.iter();
            let found = states.find(|table| table.request_id == Some(replay.request_id));
            let Some(table) = found.filter(|table| is_under_way(table)) else {
                continue;
            };
            let mut shown = report.tables.iter_mut();
            let Some(shown) = shown.find(|shown| shown.source == table.source) else {
                continue;
            };
            // One up to a moment ends there, any other where main is.
            let end = match replay.until {
                Some(_) => ends.of(replay.request_id),
                None => Some(report.offset),
            };
            let mut loading = loading.iter();
            let rows_loaded = loading
                .find(|of| of.request_id == replay.request_id)
                .map_or(table.rows_synced, |of| of.rows_done);
            let progress = progress(replay, table, rows_loaded, end);
            let rated = self.with_rate(replay, table, progress, rows_loaded, now);
            shown.replay = Some(match (end, table.state) {
                // How much is left is not known.
                (None, State::CatchingUp) => ReplayProgress {
                    seconds_left: None,
                    ..rated
                },
                _ => rated,
            });
        }
    }

    fn with_rate(
        &mut self,
        replay: &Replay,
        table: &TableState,
        progress: ReplayProgress,
        rows_loaded: i64,
        now: Instant,
    ) -> ReplayProgress {
        let (stage, done, total) = match table.state {
            State::CatchingUp => (
                Stage::Following,
                progress.events_done,
                progress.events_total,
            ),
            _ => (Stage::Loading, rows_loaded, replay.of.rows),
        };
        let key = (replay.request_id, stage);
        let (since, done_then) = *self.since.entry(key).or_insert((now, done));
        let seconds = now.duration_since(since).as_secs_f64();
        let moved = (done - done_then).max(0) as f64;
        let per_second = if seconds > 0.0 { moved / seconds } else { 0.0 };
        ReplayProgress {
            per_second,
            seconds_left: (per_second > 0.0).then(|| (total - done).max(0) as f64 / per_second),
            ..progress
        }
    }
}

fn is_under_way(table: &TableState) -> bool {
    !table.in_main
        && matches!(
            table.state,
            State::Pending | State::Syncing | State::CatchingUp
        )
}

/// Rows are loaded first; the log is followed from then on, up to `end` if that is known. Pure.
fn progress(
    replay: &Replay,
    table: &TableState,
    rows_loaded: i64,
    end: Option<i64>,
) -> ReplayProgress {
    let of = &replay.of;
    let is_loaded = table.state == State::CatchingUp;
    let from = of.changes_offset;
    let reached = table.restart_offset.filter(|_| is_loaded).unwrap_or(from);
    let share =
        |rows: i64| (i128::from(of.bytes) * i128::from(rows) / i128::from(of.rows.max(1))) as i64;
    ReplayProgress {
        bytes_done: match is_loaded {
            true => of.bytes,
            false => share(rows_loaded.clamp(0, of.rows)),
        },
        bytes_total: of.bytes,
        events_done: (reached - from).max(0),
        // Behind what it was to reach there may be ends of transactions, which are nothing to be done.
        events_total: end.map_or(reached, |end| end.max(reached)).max(from) - from,
        ..ReplayProgress::default()
    }
}

#[cfg(test)]
mod tests {
    use bunny_catalog::RetainedSync;
    use bunny_postgres::{Lsn, TableName};

    use super::*;

    #[test]
    fn rows_first_and_then_events() {
        let replay = Replay {
            request_id: Uuid::from_u128(5),
            of: RetainedSync {
                sync: Uuid::from_u128(1),
                attempt: 1,
                lsn: Lsn(10),
                changes_offset: 100,
                rows: 10,
                bytes: 1000,
            },
            until: None,
            beside: false,
            former: None,
        };
        let name = TableName::new("public", "t");
        let loading = TableState {
            state: State::Syncing,
            restart_offset: Some(100),
            ..TableState::wanted(name.clone(), name, Some(replay.request_id))
        };
        let found = progress(&replay, &loading, 3, Some(150));
        assert_eq!((found.bytes_done, found.bytes_total), (300, 1000));
        assert_eq!((found.events_done, found.events_total), (0, 50));
        let mut pace = Pace::default();
        let began = Instant::now();
        pace.with_rate(&replay, &loading, found, 3, began);
        let later = began + std::time::Duration::from_secs(2);
        let rated = pace.with_rate(&replay, &loading, found, 7, later);
        assert_eq!((rated.per_second, rated.seconds_left), (2.0, Some(1.5)));
        let following = TableState {
            state: State::CatchingUp,
            restart_offset: Some(120),
            ..loading
        };
        let found = progress(&replay, &following, 10, Some(150));
        assert_eq!((found.bytes_done, found.events_done), (1000, 20));
        let totals = [Some(130), Some(110), Some(90), None]
            .map(|end| progress(&replay, &following, 10, end).events_total);
        assert_eq!(totals, [30, 20, 20, 20], "never less than is done");
    }
}
