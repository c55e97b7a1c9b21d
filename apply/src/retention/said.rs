//! What the log says when copies go.

use std::collections::BTreeMap;

use bunny_catalog::{LogLevel, MirrorTable, TopicBytes};
use bunny_schemas::control::SyncRecord;
use bunny_schemas::retained::Retained;
use chrono::DateTime;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bookkeeping::TableState;

/// What is to be said of the tables whose earliest copy is another one `after` than `before`, or
/// none, now that the floor has risen from `former`. That counts and not only where the topic begins:
/// a mirror that is attached trims nothing, so its topics go on holding what it has let go. Pure.
pub(super) fn what_goes(
    (tables, generation): (&[MirrorTable], Uuid),
    (before, former): (&Retained, i64),
    after: &Retained,
) -> Vec<(LogLevel, String, Value)> {
    let mut known = before.clone();
    known.changes.0 = known.changes.0.max(former);
    let mut said = Vec::new();
    let mut from_later = BTreeMap::new();
    for table in tables {
        let earliest = |retained: &Retained| {
            let since = table.copies_since();
            let found = retained.earliest(&table.source, generation, &since);
            found.cloned()
        };
        let source = table.source.to_string();
        match (earliest(&known), earliest(after)) {
            (Some(_), None) => {
                let message = format!(
                    "table {source} cannot be rebuilt from the topics any more: what its last copy needs is older than topic_retention_hours, or topic_max_bytes left no room for it. POST …/checkpoint makes a new one"
                );
                said.push((LogLevel::Warn, message, json!({"table": source})));
            }
            (Some(was), Some(is)) if was.request_id != is.request_id => {
                from_later.insert(source, taken_at(&is));
            }
            _ => {}
        }
    }
    if !from_later.is_empty() {
        let names: Vec<&str> = from_later.keys().map(String::as_str).collect();
        let message = format!(
            "what the earliest copies need is older than topic_retention_hours, or topic_max_bytes left no room for it: replays begin with a later copy now, of {}",
            names.join(", ")
        );
        said.push((LogLevel::Info, message, json!({"taken_at": from_later})));
    }
    said
}

/// Whether a table has no copy that will be there once `topic_max_bytes` makes the window shrink, now
/// that this is near, in words. Pure.
pub(super) fn what_has_no_room(
    (tables, generation): (&[MirrorTable], Uuid),
    retained: &Retained,
    room: &Room,
) -> Vec<String> {
    let goes = |table: &&MirrorTable| {
        let newest = retained.newest(&table.source, generation, &table.copies_since(), |_| true);
        newest.is_ok_and(|newest| {
            let offset = newest.changes_offset;
            room.counted.is_about_to_lose(room.low, room.max, offset)
        })
    };
    let names: Vec<String> = tables
        .iter()
        .filter(goes)
        .map(|table| table.source.to_string())
        .collect();
    if names.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the change topic holds {} bytes and topic_max_bytes is {}: when it has grown a little more, what is applied is \
         trimmed before topic_retention_hours are over, and these tables cannot be rebuilt any more: {}. POST …/checkpoint, or \
         raise topic_max_bytes",
        room.counted.held(room.low),
        room.max,
        names.join(", ")
    )]
}

/// A change topic that may not grow for ever.
pub(super) struct Room {
    pub(super) counted: TopicBytes,
    /// Where it begins.
    pub(super) low: i64,
    /// `topic_max_bytes`.
    pub(super) max: u64,
}

impl Room {
    /// Where the window has to begin so that there is room for what comes; none while there is
    /// enough. Pure.
    pub(super) fn full(&self) -> Option<Full> {
        let (bytes, max) = (self.counted.held(self.low), self.max);
        let from = self.counted.window(self.low, max);
        from.map(|from| Full { from, bytes, max })
    }
}

/// A change topic that is near `topic_max_bytes`.
pub(super) struct Full {
    /// Where the window has to begin so that there is room.
    pub(super) from: i64,
    pub(super) bytes: u64,
    pub(super) max: u64,
}

impl Full {
    /// The same in words, with who needs what could make room: the log stays from `floor` on, for
    /// an attached `mirror` or a `table` of this one, if either is known. Pure.
    pub(super) fn said(
        &self,
        floor: i64,
        mirror: Option<&str>,
        table: Option<&TableState>,
    ) -> String {
        let Full { from, bytes, max } = self;
        let who = match (mirror, table) {
            (Some(mirror), _) => Some(format!("mirror \"{mirror}\"")),
            (None, Some(table)) => {
                Some(format!("table {} ({})", table.source, table.state.as_str()))
            }
            (None, None) => None,
        };
        let held = who.filter(|_| floor < *from);
        let held = held.map_or_else(String::new, |who| {
            format!("; {who} needs it from offset {floor} on, or it could be trimmed up to offset {from}")
        });
        format!(
            "the change topic holds {bytes} bytes and topic_max_bytes is {max}: what is applied is trimmed before \
             topic_retention_hours are over; when it is full of what is not applied, capture stops{held}"
        )
    }
}

fn taken_at(sync: &SyncRecord) -> String {
    let taken = DateTime::from_timestamp_micros(sync.taken_at_us).unwrap_or_default();
    taken.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
pub(super) mod testing {
    use bunny_postgres::{Lsn, TableName};
    use bunny_schemas::control::SyncState;

    use super::*;

    pub(in super::super) const GENERATION: Uuid = Uuid::from_u128(7);

    /// The table that the copies are of.
    pub(in super::super) fn mapping() -> MirrorTable {
        let name = TableName::new("public", "t");
        MirrorTable {
            source: name.clone(),
            destination: name,
            partition_key: None,
            exclude_columns: Vec::new(),
            identity: None,
            request_id: None,
            retry_id: None,
            replay: None,
            since_request: None,
            checkpoint_id: None,
            beside: false,
        }
    }

    pub(in super::super) fn copy(request: u128, changes_offset: i64) -> SyncRecord {
        SyncRecord {
            request_id: Uuid::from_u128(request),
            attempt: 1,
            schema: "public".into(),
            table: "t".into(),
            state: SyncState::Finished,
            lsn: Lsn(changes_offset.unsigned_abs()),
            start_offsets: vec![0],
            generation: GENERATION,
            changes_offset,
            taken_at_us: 0,
            rows: 1,
            bytes: 1,
        }
    }

    /// Two copies, of a change topic that begins at `low`.
    pub(in super::super) fn retained(low: i64) -> Retained {
        Retained {
            syncs: vec![copy(1, 10), copy(2, 20)],
            changes: (low, 100),
            snapshot: vec![(0, 100)],
            ..Retained::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::TableName;

    use super::testing::{GENERATION, mapping, retained};
    use super::*;
    use crate::bookkeeping::State;

    #[test]
    fn tables_that_topic_max_bytes_leaves_no_copy_are_named_before() {
        let mut counted = TopicBytes::default();
        for (end, bytes) in [(0, 0), (15, 150), (30, 100), (90, 440)] {
            counted.grew(end, bytes);
        }
        let said = |counted: &TopicBytes, held: &Retained| {
            let room = Room {
                counted: counted.clone(),
                low: 0,
                max: 1000,
            };
            assert!(room.full().is_none());
            what_has_no_room((&[mapping()], GENERATION), held, &room)
        };
        assert!(said(&counted, &retained(0)).is_empty(), "there is time");
        counted.grew(95, 20);
        // The newest copy begins behind 150 bytes of 710: it would be 650 of 800.
        let near = said(&counted, &retained(0));
        assert!(
            near[0].contains("cannot be rebuilt any more: public.t. POST"),
            "{near:?}"
        );
        let later = Retained {
            syncs: vec![super::testing::copy(3, 30)],
            ..retained(0)
        };
        assert!(said(&counted, &later).is_empty());
        assert!(said(&counted, &retained(21)).is_empty(), "it has gone");
    }

    #[test]
    fn who_keeps_a_full_log_from_being_trimmed_is_named() {
        let full = Full {
            from: 50,
            bytes: 90,
            max: 100,
        };
        let name = TableName::new("public", "t");
        let table = TableState {
            state: State::Errored,
            restart_offset: Some(20),
            ..TableState::wanted(name.clone(), name, None)
        };
        let said = full.said(20, Some("second"), Some(&table));
        assert!(said.ends_with("; mirror \"second\" needs it from offset 20 on, or it could be trimmed up to offset 50"), "{said}");
        let said = full.said(20, None, Some(&table));
        assert!(
            said.contains("; table public.t (ERRORED) needs it"),
            "{said}"
        );
        for said in [
            full.said(20, None, None),
            full.said(50, Some("second"), None),
        ] {
            assert!(said.ends_with("capture stops"), "{said}");
        }
    }

    #[test]
    fn each_copy_that_goes_is_said_once() {
        let levels = |former: i64, after: i64| {
            let said = what_goes(
                (&[mapping()], GENERATION),
                (&retained(0), former),
                &retained(after),
            );
            said.iter().map(|said| said.0).collect::<Vec<_>>()
        };
        assert_eq!(levels(0, 10), []);
        assert_eq!(levels(0, 11), [LogLevel::Info]);
        assert_eq!(levels(11, 20), [], "the same copy as before");
        assert_eq!(levels(11, 21), [LogLevel::Warn]);
        assert_eq!(levels(21, 30), [], "there was none before");
    }
}
