//! What the mirror's log says of a batch that took long or failed: which tables and how many
//! changes, where it stands in the log and at the source, how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

use bunny_catalog::LogLevel;
use bunny_postgres::TableName;
use bunny_schemas::Position;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::batch::Part;
use crate::context::MirrorRun;
use crate::error::Error;
use crate::event::Body;

/// A batch that takes longer is slow: someone will ask why.
const SLOW: Duration = Duration::from_secs(10);
/// Between two entries on slow batches.
const SLOW_EVERY: Duration = Duration::from_secs(60);
/// Tables that an entry names.
const TABLES_MAX: usize = 20;

/// The open batch: one transaction at the destination.
struct Open {
    begun: Instant,
    first_offset: i64,
    first: Position,
    /// Of the parts written, where there are several; by source table.
    changes: BTreeMap<TableName, u64>,
}

/// Follows the batches of one run of main.
#[derive(Default)]
pub(crate) struct BatchLog {
    open: Option<Open>,
    slow_said_at: Option<Instant>,
}

impl BatchLog {
    /// A part is about to be written.
    pub(crate) fn begins(&mut self, part: &Part) {
        self.open.get_or_insert_with(|| Open {
            begun: Instant::now(),
            first_offset: part.first_offset,
            first: part
                .events
                .first()
                .map_or(part.position, |event| event.position),
            changes: BTreeMap::new(),
        });
    }

    /// It is written, and with it, if it is complete, the batch is committed.
    pub(crate) fn written(&mut self, run: &MirrorRun, part: &Part) {
        if !part.complete {
            if let Some(open) = &mut self.open {
                open.add(part);
            }
            return;
        }
        let Some(mut open) = self.open.take() else {
            return;
        };
        let took = open.begun.elapsed();
        let is_early = |said_at: Instant| said_at.elapsed() < SLOW_EVERY;
        if took < SLOW || self.slow_said_at.is_some_and(is_early) {
            return;
        }
        self.slow_said_at = Some(Instant::now());
        open.add(part);
        let message = format!(
            "a batch took {:.1} s: {}",
            took.as_secs_f64(),
            open.tables()
        );
        tracing::warn!(mirror = %run.mirror.name, "{message}");
        let details = open.details(part, took);
        run.reporter.log(LogLevel::Warn, message, details);
    }

    /// It was not written, or not committed, and the batch is undone. What is only waited for
    /// is no failure.
    pub(crate) fn failed(&mut self, run: &MirrorRun, part: &Part, error: &Error) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        if is_waiting(error) {
            return;
        }
        open.add(part);
        let mut details = open.details(part, open.begun.elapsed());
        details["error"] = json!(error.to_string());
        let message = format!("a batch was undone: {} ({error})", open.tables());
        run.reporter.log(LogLevel::Warn, message, details);
    }
}

/// Whether main goes on by itself once someone else has done something. Pure.
fn is_waiting(error: &Error) -> bool {
    matches!(
        error,
        Error::Locked { .. }
            | Error::Labels { .. }
            | Error::Unfinished { .. }
            | Error::Fenced { .. }
            | Error::Cancelled
    )
}

impl Open {
    fn add(&mut self, part: &Part) {
        for event in &part.events {
            match &event.body {
                Body::Change { version, .. } => self.count(&version.source),
                Body::Truncate { tables, .. } => tables.iter().for_each(|table| self.count(table)),
                _ => {}
            }
        }
    }

    fn count(&mut self, table: &TableName) {
        match self.changes.get_mut(table) {
            Some(changes) => *changes += 1,
            None => {
                self.changes.insert(table.clone(), 1);
            }
        }
    }

    fn tables(&self) -> String {
        let mut named: Vec<String> = self
            .changes
            .iter()
            .take(TABLES_MAX)
            .map(|(table, changes)| format!("{changes} changes of {table}"))
            .collect();
        if let Some(others) = self
            .changes
            .len()
            .checked_sub(TABLES_MAX)
            .filter(|n| *n > 0)
        {
            named.push(format!("and {others} tables more"));
        }
        match named.is_empty() {
            true => "no changes of tables in main".to_owned(),
            false => named.join(", "),
        }
    }

    fn details(&self, part: &Part, took: Duration) -> Value {
        let tables: Vec<Value> = self
            .changes
            .iter()
            .take(TABLES_MAX)
            .map(|(table, changes)| json!({ "table": table.to_string(), "changes": changes }))
            .collect();
        json!({
            "phase": "following changes",
            "tables": tables,
            "first_lsn": self.first.commit_lsn,
            "last_lsn": part.position.commit_lsn,
            "first_offset": self.first_offset,
            "next_offset": part.next_offset,
            "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_no_failure() {
        assert!(is_waiting(&Error::Unfinished { end_offset: 1 }));
        assert!(!is_waiting(&Error::Inconsistent("no such column".into())));
    }

    #[test]
    fn a_batch_is_found_again_by_what_is_said_of_it() {
        let position = |lsn| Position {
            commit_lsn: bunny_postgres::Lsn(lsn),
            seq: 1,
        };
        let part = Part {
            events: Vec::new(),
            seen: 3,
            first_offset: 8,
            next_offset: 12,
            position: position(0x20),
            commit_ts_us: 0,
            complete: true,
            bytes: 0,
        };
        let mut open = Open {
            begun: Instant::now(),
            first_offset: 7,
            first: position(0x10),
            changes: BTreeMap::new(),
        };
        assert_eq!(open.tables(), "no changes of tables in main");
        for name in ["t", "t", "u"] {
            open.count(&TableName::new("public", name));
        }
        assert_eq!(
            open.tables(),
            "2 changes of public.t, 1 changes of public.u"
        );
        let expected = json!({
            "phase": "following changes",
            "tables": [{"table": "public.t", "changes": 2}, {"table": "public.u", "changes": 1}],
            "first_lsn": "0/10", "last_lsn": "0/20",
            "first_offset": 7, "next_offset": 12, "duration_ms": 1500,
        });
        assert_eq!(open.details(&part, Duration::from_millis(1500)), expected);
    }
}
