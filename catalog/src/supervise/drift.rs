//! Rows of a destination that were not as the stream implies, added up for the mirror's log:
//! a sentence a minute, however many there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bunny_postgres::TableName;
use serde_json::{Value, json};

/// At least so long between two sentences.
const EVERY: Duration = Duration::from_secs(60);
/// Tables and kinds that a sentence names; it counts the others.
const NAMED_MAX: usize = 20;

/// What has come since the last sentence.
#[derive(Debug, Default)]
pub(super) struct Drift {
    rows: BTreeMap<(String, &'static str), u64>,
    said_at: Option<Instant>,
}

impl Drift {
    pub(super) fn add(&mut self, table: &TableName, kind: &'static str, rows: u64) {
        *self.rows.entry((table.to_string(), kind)).or_default() += rows;
    }

    /// The sentence, when it is time for one.
    pub(super) fn due(&mut self, now: Instant) -> Option<(String, Value)> {
        let is_early = |said_at| now.duration_since(said_at) < EVERY;
        if self.said_at.is_some_and(is_early) {
            return None;
        }
        self.rest(now)
    }

    /// The sentence on what is left, if anything is.
    pub(super) fn rest(&mut self, now: Instant) -> Option<(String, Value)> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return None;
        }
        self.said_at = Some(now);
        let total: u64 = rows.values().sum();
        let mut named: Vec<String> = rows
            .iter()
            .take(NAMED_MAX)
            .map(|((table, kind), rows)| format!("{table} {kind} {rows}"))
            .collect();
        if let Some(others) = rows.len().checked_sub(NAMED_MAX).filter(|n| *n > 0) {
            named.push(format!("and {others} more"));
        }
        let message = format!(
            "{total} rows of the destination were not as the stream implies, resolved towards the source: {}",
            named.join(", ")
        );
        let drift: Vec<Value> = rows
            .iter()
            .take(NAMED_MAX)
            .map(|((table, kind), rows)| json!({ "table": table, "kind": kind, "rows": rows }))
            .collect();
        Some((message, json!({ "rows": total, "drift": drift })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    #[test]
    fn what_comes_within_a_minute_is_one_sentence() {
        let start = Instant::now();
        let mut drift = Drift::default();
        assert_eq!(drift.due(start), None);
        drift.add(&table("t"), "delete_missed", 2);
        let (message, details) = drift.due(start).expect("at once");
        assert!(message.starts_with("2 rows"), "{message}");
        assert_eq!(details["drift"][0]["table"], "public.t");
        for _ in 0..1000 {
            drift.add(&table("t"), "delete_missed", 1);
            drift.add(&table("u"), "insert_overwrote", 1);
            assert_eq!(drift.due(start + EVERY / 2), None);
        }
        let (message, _) = drift.due(start + EVERY).expect("after a minute");
        assert!(
            message.ends_with(": public.t delete_missed 1000, public.u insert_overwrote 1000"),
            "{message}"
        );
        assert_eq!(drift.due(start + EVERY * 2), None, "nothing new");
    }

    #[test]
    fn the_end_tells_what_is_left_and_no_sentence_grows_with_the_tables() {
        let start = Instant::now();
        let mut drift = Drift::default();
        for n in 0..500 {
            drift.add(&table(&format!("t{n}")), "update_inserted", 1);
        }
        let (message, details) = drift.rest(start).expect("what is left");
        assert!(message.ends_with("and 480 more"), "{message}");
        assert_eq!(details["rows"], 500);
        assert_eq!(details["drift"].as_array().map(Vec::len), Some(NAMED_MAX));
        assert_eq!(drift.rest(start), None);
    }
}
