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
///
/// One piece of memory: where each cell ends in the text (4 bytes, little-endian; the next
/// begins one byte, the tab, later), then the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    bytes: Box<[u8]>,
    width: u32,
}

/// Bytes of a cell's end.
const END_BYTES: usize = 4;

/// Memory that a builder keeps after a large row is at most this much.
const BUILDER_BYTES_MAX: usize = 1 << 20;

/// Makes rows, each one allocation of the size it needs.
#[derive(Debug, Default)]
pub struct RowBuilder {
    ends: Vec<u8>,
    text: Vec<u8>,
}

impl RowBuilder {
    /// From decoded data.
    pub fn row(&mut self, data: &[Datum<'_>]) -> Row {
        for datum in data {
            self.cell(|text| match datum {
                Datum::Null => text.extend_from_slice(copy_text::NULL),
                Datum::Text(value) => copy_text::escape_into(text, value.as_bytes()),
                Datum::Bytes(_) => {
                    // Of `\x` and its digits only the backslash is structure.
                    text.push(b'\\');
                    datum.write_postgres_text(text);
                }
                // Numbers and booleans hold nothing that COPY would take for structure.
                plain => plain.write_postgres_text(text),
            });
        }
        self.finish()
    }

    /// Appends a cell; `write` appends its escaped text.
    fn cell(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.ends.is_empty() {
            self.text.push(b'\t');
        }
        write(&mut self.text);
        // A row is one Kafka record of at most 80 MiB; escaped, less than four times that.
        let end = self.text.len() as u32;
        self.ends.extend_from_slice(&end.to_le_bytes());
    }

    fn finish(&mut self) -> Row {
        let mut bytes = Vec::with_capacity(self.ends.len() + self.text.len());
        bytes.extend_from_slice(&self.ends);
        bytes.extend_from_slice(&self.text);
        let row = Row {
            bytes: bytes.into_boxed_slice(),
            width: (self.ends.len() / END_BYTES) as u32,
        };
        self.ends.clear();
        self.text.clear();
        self.text.shrink_to(BUILDER_BYTES_MAX);
        row
    }
}

impl Row {
    /// From values as Postgres prints them; `None` is NULL.
    pub fn from_values<'v>(values: impl IntoIterator<Item = Option<&'v [u8]>>) -> Row {
        let mut builder = RowBuilder::default();
        for value in values {
            builder.cell(|text| copy_text::write_value(text, value));
        }
        builder.finish()
    }

    /// How many cells it has.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// The whole row as COPY text.
    pub fn text(&self) -> &[u8] {
        self.parts().1
    }

    /// One cell, escaped; `\N` is NULL.
    pub fn cell(&self, index: usize) -> &[u8] {
        let (ends, text) = self.parts();
        let (ends, _) = ends.as_chunks::<END_BYTES>();
        let end = |index: usize| u32::from_le_bytes(ends[index]) as usize;
        let start = if index == 0 { 0 } else { end(index - 1) + 1 };
        &text[start..end(index)]
    }

    /// Where the cells end, and the text.
    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.width() * END_BYTES)
    }

    pub fn is_null(&self, index: usize) -> bool {
        self.cell(index) == copy_text::NULL
    }

    /// This row with the cells that `unchanged` (one flag a cell) marks taken from `former`.
    pub fn filled_from(&self, former: &Row, unchanged: &[bool]) -> Row {
        let cells = || {
            unchanged.iter().enumerate().map(|(index, &is_unchanged)| {
                let from = if is_unchanged { former } else { self };
                from.cell(index)
            })
        };
        let text_bytes = cells().map(|cell| cell.len() + 1).sum::<usize>();
        let start = unchanged.len() * END_BYTES;
        let mut bytes = Vec::with_capacity(start + text_bytes.saturating_sub(1));
        bytes.resize(start, 0);
        for (index, cell) in cells().enumerate() {
            if index > 0 {
                bytes.push(b'\t');
            }
            bytes.extend_from_slice(cell);
            let end = (bytes.len() - start) as u32;
            let at = index * END_BYTES;
            bytes[at..at + END_BYTES].copy_from_slice(&end.to_le_bytes());
        }
        Row {
            bytes: bytes.into_boxed_slice(),
            width: unchanged.len() as u32,
        }
    }

    /// Bytes of memory this row takes, about.
    pub fn memory(&self) -> usize {
        size_of::<Row>() + self.bytes.len()
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
    pub fn from_decoded(change: &envelope::Change<'_>, rows: &mut RowBuilder) -> Option<Change> {
        let before = match (change.before_kind, &change.before) {
            (BeforeKind::None, _) | (_, None) => None,
            (BeforeKind::Key, Some(data)) => Some(Before::Key(rows.row(data))),
            (BeforeKind::Row, Some(data)) => Some(Before::Row(rows.row(data))),
        };
        let after = change.after.as_ref().map(|data| rows.row(data));
        match change.op {
            envelope::Op::Create => Some(Change::Insert(after?)),
            envelope::Op::Update => Some(Change::update(before, after?, change.unchanged.clone())),
            envelope::Op::Delete => Some(Change::Delete(before?)),
            envelope::Op::Truncate => None,
        }
    }

    /// Bytes of the row that it leaves, or of the one that it takes away, as COPY text.
    pub fn text_bytes(&self) -> usize {
        match self {
            Change::Insert(row) | Change::Update { after: row, .. } => row.text().len(),
            Change::Delete(before) => before.row().text().len(),
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
    use proptest::prelude::*;

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
    #[should_panic]
    fn there_is_no_cell_after_the_last() {
        row(&[Some("1"), Some("a text that is no end of a cell")]).cell(2);
    }

    #[test]
    fn a_large_row_leaves_little_behind() {
        let mut rows = RowBuilder::default();
        let large = "x".repeat(3 * BUILDER_BYTES_MAX);
        let large = rows.row(&[Datum::Text(&large)]);
        assert_eq!(large.cell(0).len(), 3 * BUILDER_BYTES_MAX);
        assert!(rows.text.capacity() <= BUILDER_BYTES_MAX);
        assert_eq!(rows.row(&[Datum::Int(7)]), row(&[Some("7")]));
        assert_eq!(rows.row(&[]), Row::default());
    }

    /// A datum of each kind, of one number and one text.
    fn datum(kind: u8, number: i64, text: &str) -> Datum<'_> {
        match kind {
            0 => Datum::Null,
            1 => Datum::Bool(number % 2 == 0),
            2 => Datum::Int(number),
            3 => Datum::Float(f32::from_bits(number as u32)),
            4 => Datum::Double(f64::from_bits(number as u64)),
            5 => Datum::Bytes(text.as_bytes()),
            _ => Datum::Text(text),
        }
    }

    proptest! {
        /// One builder makes them all: nothing of a row is left for the next.
        #[test]
        fn data_make_the_row_that_their_texts_make(
            all in prop::collection::vec(
                prop::collection::vec((0..7_u8, any::<i64>(), "[a\\\\\t\n\r\u{8}N\u{e4}]{0,20}"), 0..6),
                1..4,
            )
        ) {
            let mut rows = RowBuilder::default();
            for parts in &all {
                let data: Vec<Datum<'_>> =
                    parts.iter().map(|(kind, number, text)| datum(*kind, *number, text)).collect();
                let texts: Vec<_> = data.iter().map(Datum::postgres_text).collect();
                let expected = Row::from_values(texts.iter().map(|text| text.as_deref()));
                let made = rows.row(&data);
                prop_assert_eq!(&made, &expected);
                prop_assert_eq!(made.width(), data.len());
                for (index, text) in texts.iter().enumerate() {
                    let cell = copy_text::Row { line: made.cell(index) };
                    let read = cell.columns().next().flatten();
                    prop_assert_eq!(read.as_deref(), text.as_deref());
                }
                let all = vec![true; data.len()];
                prop_assert_eq!(Row::default().filled_from(&made, &all), made);
            }
        }
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
