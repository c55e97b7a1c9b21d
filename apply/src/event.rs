//! What the reader hands on: change events, decoded and owned.
//!
//! A row is kept as the COPY text it will be written as, so that writing copies bytes
//! and comparing keys compares bytes.

use std::sync::Arc;

use bunny_postgres::{TableName, copy_text};
use bunny_schemas::Position;
use bunny_schemas::envelope::{self, BeforeKind, ColumnSchema, Datum};

/// One version of a source table: the columns its events carry, in order.
#[derive(Debug, PartialEq)]
pub struct TableVersion {
    /// Id of the value schema; one per version.
    pub schema_id: u32,
    /// The table at the source.
    pub source: TableName,
    pub columns: Vec<ColumnSchema>,
}

/// One row as COPY text: the cells escaped and separated by tabs, without a line end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    text: Vec<u8>,
    /// Where each cell ends in `text`; the next begins one byte (the tab) later.
    ends: Vec<u32>,
}

impl Row {
    /// From values as Postgres prints them; `None` is NULL.
    pub fn from_values<'v>(values: impl IntoIterator<Item = Option<&'v [u8]>>) -> Row {
        let mut row = Row::default();
        for value in values {
            row.begin_cell();
            copy_text::write_value(&mut row.text, value);
            row.end_cell();
        }
        row
    }

    /// From decoded data; `scratch` is reused between calls.
    pub fn from_data(data: &[Datum<'_>], scratch: &mut Vec<u8>) -> Row {
        let mut row = Row {
            text: Vec::with_capacity(data.len() * 12),
            ends: Vec::with_capacity(data.len()),
        };
        for datum in data {
            row.begin_cell();
            match datum {
                Datum::Null => row.text.extend_from_slice(copy_text::NULL),
                Datum::Text(text) => copy_text::escape_into(&mut row.text, text.as_bytes()),
                Datum::Bytes(_) => {
                    scratch.clear();
                    datum.write_postgres_text(scratch);
                    copy_text::escape_into(&mut row.text, scratch);
                }
                // Numbers and booleans hold nothing that COPY would take for structure.
                plain => plain.write_postgres_text(&mut row.text),
            }
            row.end_cell();
        }
        row.text.shrink_to_fit();
        row
    }

    /// How many cells it has.
    pub fn width(&self) -> usize {
        self.ends.len()
    }

    /// The whole row as COPY text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// One cell, escaped; `\N` is NULL.
    pub fn cell(&self, index: usize) -> &[u8] {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize + 1
        };
        &self.text[start..self.ends[index] as usize]
    }

    pub fn is_null(&self, index: usize) -> bool {
        self.cell(index) == copy_text::NULL
    }

    /// This row with the cells that `unchanged` (one flag a cell) marks taken from `former`.
    pub fn filled_from(&self, former: &Row, unchanged: &[bool]) -> Row {
        let mut row = Row {
            text: Vec::with_capacity(self.text.len() + former.text.len()),
            ends: Vec::with_capacity(self.ends.len()),
        };
        for (index, &is_unchanged) in unchanged.iter().enumerate() {
            row.begin_cell();
            let from = if is_unchanged { former } else { self };
            row.text.extend_from_slice(from.cell(index));
            row.end_cell();
        }
        row
    }

    /// Bytes of memory this row takes, about.
    pub fn memory(&self) -> usize {
        size_of::<Row>() + self.text.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    fn begin_cell(&mut self) {
        if !self.ends.is_empty() {
            self.text.push(b'\t');
        }
    }

    fn end_cell(&mut self) {
        // A row is one Kafka record of at most 80 MiB; escaped, less than four times that.
        self.ends.push(self.text.len() as u32);
    }
}

/// What a delete, or an update that needs it, knows of the old row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// The identity's columns; the other cells are NULL without meaning it.
    Key(Row),
    /// All of it (REPLICA IDENTITY FULL).
    Row(Row),
}

impl Before {
    pub fn row(&self) -> &Row {
        match self {
            Before::Key(row) | Before::Row(row) => row,
        }
    }
}

/// One changed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Insert(Row),
    Update {
        before: Option<Before>,
        after: Row,
        /// Columns Postgres did not send because they stayed as they were (their cells
        /// mean nothing). Empty when all were sent.
        unchanged: Vec<bool>,
    },
    Delete(Before),
}

impl Change {
    /// From a decoded event that is not a truncate; None if its parts don't fit together.
    pub fn from_decoded(change: &envelope::Change<'_>, scratch: &mut Vec<u8>) -> Option<Change> {
        let before = match (change.before_kind, &change.before) {
            (BeforeKind::None, _) | (_, None) => None,
            (BeforeKind::Key, Some(data)) => Some(Before::Key(Row::from_data(data, scratch))),
            (BeforeKind::Row, Some(data)) => Some(Before::Row(Row::from_data(data, scratch))),
        };
        let after = change
            .after
            .as_ref()
            .map(|data| Row::from_data(data, scratch));
        match change.op {
            envelope::Op::Create => Some(Change::Insert(after?)),
            envelope::Op::Update => Some(Change::update(before, after?, change.unchanged.clone())),
            envelope::Op::Delete => Some(Change::Delete(before?)),
            envelope::Op::Truncate => None,
        }
    }

    /// An update; columns not sent are taken from the old row where that holds them.
    pub fn update(before: Option<Before>, after: Row, mut unchanged: Vec<bool>) -> Change {
        if !unchanged.contains(&true) {
            unchanged = Vec::new();
        }
        let Some(old) = before.as_ref().filter(|_| !unchanged.is_empty()) else {
            return Change::Update {
                before,
                after,
                unchanged,
            };
        };
        // Of an old key only the identity's cells mean anything; they are never NULL.
        // Postgres sends it with an unchanged key too, when the key itself is out of line.
        let from_old: Vec<bool> = (0..after.width())
            .map(|index| {
                unchanged[index] && (matches!(old, Before::Row(_)) || !old.row().is_null(index))
            })
            .collect();
        let after = after.filled_from(old.row(), &from_old);
        for (unchanged, filled) in unchanged.iter_mut().zip(&from_old) {
            *unchanged &= !filled;
        }
        if !unchanged.contains(&true) {
            unchanged = Vec::new();
        }
        Change::Update {
            before,
            after,
            unchanged,
        }
    }

    /// Bytes of memory this change takes, about.
    pub fn memory(&self) -> usize {
        let rows = match self {
            Change::Insert(row) => row.memory(),
            Change::Update {
                before,
                after,
                unchanged,
            } => {
                before.as_ref().map_or(0, |before| before.row().memory())
                    + after.memory()
                    + unchanged.capacity()
            }
            Change::Delete(before) => before.row().memory(),
        };
        size_of::<Change>() + rows
    }
}

/// What an event does here.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Change {
        version: Arc<TableVersion>,
        change: Change,
    },
    /// Source names of the tables that main applies, never empty.
    Truncate {
        tables: Vec<TableName>,
        restart_identity: bool,
    },
    /// A change too large for the log: the table cannot go on without a new sync.
    Gap { table: TableName, reason: String },
    /// Of a table that main does not apply: only the position moves on.
    Skip,
}

/// One event of the change topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub offset: i64,
    pub position: Position,
    /// Commit time at the source in microseconds since the Unix epoch.
    pub commit_ts_us: i64,
    /// The last event of its source transaction.
    pub last: bool,
    pub body: Body,
}

impl Event {
    /// Bytes of memory this event takes, about.
    pub fn memory(&self) -> usize {
        let body = match &self.body {
            Body::Change { change, .. } => change.memory(),
            Body::Truncate { tables, .. } => tables.len() * 100,
            Body::Gap { reason, .. } => reason.len() + 100,
            Body::Skip => 0,
        };
        size_of::<Event>() + body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[Option<&str>]) -> Row {
        Row::from_values(cells.iter().map(|cell| cell.map(str::as_bytes)))
    }

    #[test]
    fn cells_are_found_again() {
        let row = row(&[Some("1"), None, Some("a\tb"), Some(""), Some("\\N")]);
        assert_eq!(row.width(), 5);
        assert_eq!(row.text(), b"1\t\\N\ta\\tb\t\t\\\\N");
        assert_eq!(row.cell(0), b"1");
        assert!(row.is_null(1));
        assert_eq!(row.cell(2), b"a\\tb");
        assert_eq!(row.cell(3), b"");
        assert!(!row.is_null(4), "a text that looks like NULL is none");
    }

    #[test]
    fn unchanged_cells_come_from_a_whole_old_row() {
        let update = Change::update(
            Some(Before::Row(row(&[Some("1"), Some("old"), Some("x")]))),
            row(&[Some("1"), None, None]),
            vec![false, true, false],
        );
        let Change::Update {
            after, unchanged, ..
        } = update
        else {
            panic!("an update");
        };
        assert_eq!(after, row(&[Some("1"), Some("old"), None]));
        assert!(unchanged.is_empty());
    }

    #[test]
    fn an_old_key_fills_nothing() {
        let update = Change::update(
            Some(Before::Key(row(&[Some("1"), None]))),
            row(&[Some("2"), None]),
            vec![false, true],
        );
        let Change::Update { unchanged, .. } = update else {
            panic!("an update");
        };
        assert_eq!(unchanged, vec![false, true]);
    }
}
