//! Values of the type `"char"` that a destination would cut without a word.
//!
//! `"char"` holds one byte. PostgreSQL 16 and later print one above 127 as `\ooo` and read that
//! back; before, the byte itself was printed, and of any text only the first byte was read.
//! A source in a one-byte encoding that is older than 16 prints a character, which is two
//! bytes in UTF8. So what is not one ASCII byte may arrive changed, and is refused.

use bunny_postgres::TableName;
use bunny_postgres::copy_text;
use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::event::{Change, Row};

/// Columns of a table in which there is a `"char"`, by itself, in a domain or array, or deeper.
const COLUMNS_SQL: &str = "
WITH RECURSIVE part(name, typid, is_deep) AS (
    SELECT attname::text, atttypid, false FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
  UNION
    SELECT p.name, x.typid, p.is_deep OR x.is_deep
    FROM part p
    JOIN pg_type t ON t.oid = p.typid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype, false WHERE t.typtype = 'd'
        UNION ALL
        SELECT t.typelem, false WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL
        SELECT a.atttypid, true FROM pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) x(typid, is_deep)
)
SELECT name, bool_or(is_deep), current_setting('server_version_num')::int >= 160000
FROM part WHERE typid = '\"char\"'::regtype GROUP BY name";

/// The columns of one row shape that are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ByteChars {
    /// Place in the row, the column's name, whether the `\"char\"` is part of a composite.
    columns: Vec<(usize, String, bool)>,
    reads_octal: bool,
}

impl ByteChars {
    /// Of rows whose columns go `into` these columns of `table`, in this order.
    pub(crate) async fn find<'c>(
        client: &Client,
        table: &TableName,
        into: impl Iterator<Item = Option<&'c str>>,
    ) -> Result<ByteChars> {
        let rows = client
            .query(COLUMNS_SQL, &[&table.quoted()])
            .await
            .map_err(Error::sql(format!("looking at the types of {table}")))?;
        let mut found = ByteChars::default();
        if rows.is_empty() {
            return Ok(found);
        }
        for (index, name) in into.enumerate() {
            let row = rows.iter().find(|row| Some(row.get(0)) == name);
            if let (Some(row), Some(name)) = (row, name) {
                found.columns.push((index, name.to_owned(), row.get(1)));
                found.reads_octal = row.get(2);
            }
        }
        Ok(found)
    }

    /// The reason why a change cannot be written, if there is one.
    pub(crate) fn refuse(&self, change: &Change) -> Option<String> {
        if self.columns.is_empty() {
            return None;
        }
        let row = |row: &Row| self.refuse_cells(|index| row.cell(index));
        match change {
            Change::Insert(new) => row(new),
            Change::Update { before, after, .. } => {
                let before = before.as_ref().and_then(|before| row(before.row()));
                before.or_else(|| row(after))
            }
            Change::Delete(before) => row(before.row()),
        }
    }

    /// The same for whole lines of COPY text.
    pub(crate) fn refuse_lines(&self, lines: &[u8]) -> Option<String> {
        if self.columns.is_empty() {
            return None;
        }
        lines
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .find_map(|line| {
                let cells: Vec<&[u8]> = line.split(|&byte| byte == b'\t').collect();
                self.refuse_cells(|index| cells.get(index).copied().unwrap_or_default())
            })
    }

    fn refuse_cells<'r>(&self, cell: impl Fn(usize) -> &'r [u8]) -> Option<String> {
        let (_, name, _) = self
            .columns
            .iter()
            .find(|(index, _, is_deep)| is_cut(cell(*index), *is_deep, self.reads_octal))?;
        Some(format!(
            "column {name} holds a byte above 127 in a \"char\", which this destination would read as another; \
             PostgreSQL 16 and later at both ends, or a UTF8 source, keep it: put the column into exclude_columns, or \
             make it an int or a bytea"
        ))
    }
}

/// Whether a cell of COPY text would be read as something else. Beside a `"char"` deep in a
/// composite there may be any text, which is taken for an octal number if it looks like one.
fn is_cut(cell: &[u8], is_deep: bool, reads_octal: bool) -> bool {
    if cell == copy_text::NULL {
        return false;
    }
    let is_octal = |four: &[u8]| matches!(four, [b'\\', b'0'..=b'3', rest @ ..] if rest.iter().all(|byte| matches!(byte, b'0'..=b'7')));
    (!reads_octal && cell.windows(4).any(is_octal)) || (!is_deep && !cell.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ascii_byte_is_kept() {
        for cell in [
            "",
            "a",
            "\\N",
            "\\\\",
            "\\t",
            "{a,b,NULL,\"\\\\\\\\\"}",
            "{\"\"}",
        ] {
            for reads_octal in [false, true] {
                assert!(!is_cut(cell.as_bytes(), false, reads_octal), "{cell}");
            }
        }
    }

    #[test]
    fn what_would_be_cut_is_seen() {
        for cell in ["\\\\200", "{a,\"\\\\\\\\377\"}", "(1,\"\\\\\\\\201\")"] {
            assert!(is_cut(cell.as_bytes(), false, false), "{cell}");
            assert!(!is_cut(cell.as_bytes(), false, true), "{cell}");
        }
        assert!(is_cut("é".as_bytes(), false, true));
        assert!(is_cut(b"\xe9", false, false));
        assert!(!is_cut("(é,a)".as_bytes(), true, false));
    }

    #[test]
    fn lines_of_a_chunk_are_gone_through() {
        let watched = ByteChars {
            columns: vec![(1, "c".into(), false)],
            reads_octal: false,
        };
        assert_eq!(watched.refuse_lines(b"\\\\200\ta\n2\t\\N\n"), None);
        let refused = watched.refuse_lines(b"1\ta\n2\t\\\\200\n").unwrap();
        assert!(refused.contains("column c"));
    }
}
