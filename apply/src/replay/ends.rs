//! Where in the log the replays up to a moment end: for the status.

use std::collections::HashMap;
use std::time::Duration;

use bunny_catalog::{Mirror, Until};
use bunny_schemas::follow::{Start, start_offset};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bookkeeping::TableState;
use crate::context::MirrorRun;
use crate::error::Result;

/// Between two attempts.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// The offset of the first event that a replay leaves out, by request. The moment was published when
/// it was asked for, so it does not change any more.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    known: HashMap<Uuid, i64>,
    asked_at: Option<Instant>,
    /// Searching the log takes a while, which no report waits for.
    asking: JoinSet<Result<Vec<(Uuid, i64)>>>,
}

impl Ends {
    /// Takes what was found, and looks up those of the tables that are being rebuilt and are not
    /// known yet.
    pub(crate) fn learn(&mut self, run: &MirrorRun, tables: &[TableState]) {
        while let Some(answer) = self.asking.try_join_next() {
            match answer {
                Ok(Ok(found)) => self.known.extend(found),
                failed => {
                    tracing::debug!(mirror = %run.mirror.name, ?failed, "where a replay ends is not known yet");
                }
            }
        }
        let is_due = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY);
        if !is_due || !self.asking.is_empty() {
            return;
        }
        let mut wanted = under_way(&run.mirror, tables);
        self.known
            .retain(|known, _| wanted.iter().any(|(request, _)| request == known));
        wanted.retain(|(request, _)| !self.known.contains_key(request));
        if !wanted.is_empty() {
            self.asked_at = Some(Instant::now());
            self.asking.spawn(ask(run.clone(), wanted));
        }
    }

    /// Of a replay up to a moment.
    pub(super) fn of(&self, request: Uuid) -> Option<i64> {
        self.known.get(&request).copied()
    }
}

async fn ask(run: MirrorRun, wanted: Vec<(Uuid, Until)>) -> Result<Vec<(Uuid, i64)>> {
    let slug = run.mirror.topics_slug();
    let mut by_moment: Vec<(Until, i64)> = Vec::new();
    let mut found = Vec::new();
    for (request, until) in wanted {
        let asked = by_moment.iter().find(|(moment, _)| *moment == until);
        let end = match asked {
            Some((_, end)) => *end,
            None => {
                let first_out = first_out(until);
                start_offset(&run.kafka, &run.registry, &run.topics, slug, first_out).await?
            }
        };
        by_moment.push((until, end));
        found.push((request, end));
    }
    Ok(found)
}

/// The first event that is left out: as `Bound` has it. Pure.
fn first_out(until: Until) -> Start {
    match until {
        Until::Lsn(lsn) => Start::Lsn(lsn),
        Until::Timestamp(time) => Start::Time(time.timestamp_micros() + 1),
    }
}

/// The replays up to a moment that are under way. Pure.
fn under_way(mirror: &Mirror, tables: &[TableState]) -> Vec<(Uuid, Until)> {
    let replays = mirror
        .tables
        .iter()
        .filter_map(|table| table.replay.as_ref());
    let bounded = replays.filter_map(|replay| Some((replay.request_id, replay.until?)));
    bounded
        .filter(|(request, _)| {
            let mut states = tables.iter();
            states.any(|table| table.request_id == Some(*request) && !table.in_main)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;
    use chrono::DateTime;

    use super::*;

    #[test]
    fn an_lsn_is_left_out_and_a_time_is_not() {
        assert_eq!(first_out(Until::Lsn(Lsn(20))), Start::Lsn(Lsn(20)));
        let time = DateTime::from_timestamp_micros(7).expect("a time");
        assert_eq!(first_out(Until::Timestamp(time)), Start::Time(8));
    }
}
