//! What tables lack that do not follow the log with the others: for the status, whose lag would
//! be main's only, and 0 while a table is set aside for hours.
//!
//! Each keeps the offset from which its changes are missing; how old they are, the log says.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bunny_catalog::{ApplyReport, Behind};
use bunny_postgres::{Lsn, TableName};
use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::Uuid;

use crate::bookkeeping::TableState;
use crate::context::MirrorRun;
use crate::error::Result;
use crate::reader::{self, PARTITION};

/// How often the log is asked, while there are such tables; for one of them each time.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// A report waits no longer for the answer.
const ASK_MAX: Duration = Duration::from_secs(2);

/// The first event from an offset on: its commit LSN and time.
type First = (Lsn, DateTime<Utc>);

/// What the log last said of a table.
#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    /// It was asked for what is there from this offset on; none if it did not answer.
    offset: Option<i64>,
    /// Where the log ended then.
    end: i64,
    first: Option<First>,
}

/// What the log has said of the tables that are out of main.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: HashMap<TableName, Answer>,
    asked_at: Option<Instant>,
    end: i64,
}

impl Answers {
    /// Adds to a report what its tables lack.
    pub(crate) async fn show(
        &mut self,
        run: &MirrorRun,
        tables: &[TableState],
        report: &mut ApplyReport,
    ) {
        let waiting = waiting(tables, run.mirror.generation);
        self.known.retain(|table, _| waiting.contains_key(table));
        let is_due = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY);
        if is_due && !waiting.is_empty() {
            self.asked_at = Some(Instant::now());
            match tokio::time::timeout(ASK_MAX, self.ask(run, &waiting, &report.topic)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(mirror = %run.mirror.name, %error, "how far tables are behind is not known");
                }
                Err(_) => {
                    tracing::debug!(mirror = %run.mirror.name, "how far tables are behind is not known yet");
                }
            }
        }
        for shown in &mut report.tables {
            let offset = waiting.get(&shown.source);
            shown.behind = offset.and_then(|offset| self.behind(&shown.source, *offset));
        }
    }

    async fn ask(
        &mut self,
        run: &MirrorRun,
        waiting: &BTreeMap<TableName, i64>,
        topic: &str,
    ) -> Result<()> {
        (_, self.end) = run.kafka.watermarks(topic, PARTITION).await?;
        let (now, end) = (Instant::now(), self.end);
        let Some(offset) = self.due(waiting) else {
            return Ok(());
        };
        // Whatever comes of it, others have their turn first.
        self.note(waiting, offset, |former| Answer {
            at: now,
            offset: None,
            end,
            first: former.and_then(|former| former.first),
        });
        let first = reader::first_waiting(run, offset).await?;
        let first = first.and_then(|(position, commit_ts_us)| {
            let committed = DateTime::from_timestamp_micros(commit_ts_us)?;
            Some((position.commit_lsn, committed))
        });
        self.note(waiting, offset, |_| Answer {
            at: now,
            offset: Some(offset),
            end,
            first,
        });
        Ok(())
    }

    /// The offset that is asked for next: of the table that waits longest for an answer, first of
    /// the one that is furthest behind.
    fn due(&self, waiting: &BTreeMap<TableName, i64>) -> Option<i64> {
        let is_due = |known: &Answer, offset: i64| {
            known.offset != Some(offset) || (known.first.is_none() && known.end < self.end)
        };
        let due = waiting.iter().filter_map(|(table, offset)| {
            let known = self.known.get(table);
            let is_due = known.is_none_or(|known| is_due(known, *offset));
            is_due.then(|| (known.map(|known| known.at), *offset))
        });
        due.min().map(|(_, offset)| offset)
    }

    /// An answer for every table that goes on from that offset.
    fn note(
        &mut self,
        waiting: &BTreeMap<TableName, i64>,
        offset: i64,
        answer: impl Fn(Option<&Answer>) -> Answer,
    ) {
        for (table, _) in waiting.iter().filter(|(_, of)| **of == offset) {
            let answer = answer(self.known.get(table));
            self.known.insert(table.clone(), answer);
        }
    }

    /// By the last answer, which of a table that moves is a moment old.
    fn behind(&self, table: &TableName, offset: i64) -> Option<Behind> {
        let (lsn, since) = self.known.get(table)?.first?;
        Some(Behind {
            lsn,
            since,
            events: (self.end - offset).max(1),
        })
    }
}

/// The tables that do not follow the log with the others, and the offsets they go on from.
/// Those of another generation may be another topic's. Pure.
fn waiting(tables: &[TableState], generation: Uuid) -> BTreeMap<TableName, i64> {
    tables
        .iter()
        .filter(|table| !table.in_main && table.generation == Some(generation))
        .filter_map(|table| Some((table.source.clone(), table.restart_offset?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bookkeeping::State;

    fn name(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn table(source: &str, state: State, restart_offset: Option<i64>) -> TableState {
        TableState {
            state,
            restart_offset,
            generation: Some(Uuid::from_u128(7)),
            ..TableState::wanted(name(source), name(source), None)
        }
    }

    fn answered(offset: i64, first: Option<First>) -> Answer {
        Answer {
            at: Instant::now(),
            offset: Some(offset),
            end: 100,
            first,
        }
    }

    #[test]
    fn only_what_is_out_of_main_waits() {
        let in_main = TableState {
            in_main: true,
            ..table("live", State::Live, None)
        };
        let of_before = TableState {
            generation: Some(Uuid::from_u128(6)),
            ..table("before", State::Errored, Some(5))
        };
        let tables = [
            in_main,
            of_before,
            table("parked", State::Parked, Some(20)),
            table("behind", State::CatchingUp, Some(10)),
            table("new", State::Pending, None),
        ];
        let waiting = waiting(&tables, Uuid::from_u128(7));
        let expected = [(name("behind"), 10), (name("parked"), 20)];
        assert_eq!(waiting.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_log_is_asked_once_for_each_offset() {
        let since = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let mut answers = Answers {
            end: 100,
            ..Answers::default()
        };
        let mut waiting = BTreeMap::from([(name("a"), 20), (name("b"), 10), (name("c"), 10)]);
        assert_eq!(answers.due(&waiting), Some(10));
        assert_eq!(answers.behind(&name("b"), 10), None);
        answers.note(&waiting, 10, |_| answered(10, Some((Lsn(5), since))));
        assert_eq!(answers.due(&waiting), Some(20));
        answers.note(&waiting, 20, |_| answered(20, None));
        assert_eq!(answers.due(&waiting), None);
        let expected = Behind {
            lsn: Lsn(5),
            since,
            events: 90,
        };
        assert_eq!(answers.behind(&name("c"), 10), Some(expected));
        assert_eq!(answers.behind(&name("a"), 20), None);
        // Nothing was behind that offset; since then the log has grown.
        answers.end = 101;
        assert_eq!(answers.due(&waiting), Some(20));
        answers.end = 100;
        // A table that has moved shows what is known until there is an answer.
        waiting.insert(name("b"), 15);
        assert_eq!(answers.due(&waiting), Some(15));
        assert_eq!(answers.behind(&name("b"), 15).map(|b| b.events), Some(85));
    }
}
