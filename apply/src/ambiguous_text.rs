//! Values whose text a destination would read as something else, without a word.
//!
//! `"char"` holds one byte. PostgreSQL 15 and later print one above 127 as `\ooo` and read that
//! back; before, the byte itself was printed, and of any text only the first byte was read.
//! A source in a one-byte encoding that is older than 15 prints a character, which is two
//! bytes in UTF8. So what is not one ASCII byte may arrive changed, and is refused.
//!
//! `regclass` and its like print the name of what they point to, and the bare oid where that is gone.
//! A name of digits is printed in quotes. The destination would take the number for the oid
//! of whatever it has under that number, so it is refused. `0` stands for nothing everywhere.
//!
//! `name` holds 63 bytes, and what is longer is cut without a word. A source in another encoding
//! may hold more characters in them than UTF8 does.

use bunny_postgres::TableName;
use bunny_postgres::copy_text;
use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::event::{Change, Row};

/// Columns of a table in which there is a `"char"`, a name of an object or a `name`, by itself, in a
/// domain or array, or deeper. Beside a `name` in a composite there may be any text, which would be
/// taken for it, so those are not looked at.
const COLUMNS_SQL: &str = "
WITH RECURSIVE part(name, typid, is_deep, is_array) AS (
    SELECT attname::text, atttypid, false, false FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
  UNION
    SELECT p.name, x.typid, p.is_deep OR x.is_deep, p.is_array OR x.is_array
    FROM part p
    JOIN pg_type t ON t.oid = p.typid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype, false, false WHERE t.typtype = 'd'
        UNION ALL
        SELECT t.typelem, false, true WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL
        SELECT a.atttypid, true, false FROM pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) x(typid, is_deep, is_array)
)
SELECT p.name, bool_or(p.is_deep), current_setting('server_version_num')::int >= 150000,
       CASE WHEN t.typname IN ('char', 'name') THEN t.typname::text END AS kind, bool_or(p.is_array)
FROM part p JOIN pg_type t ON t.oid = p.typid
WHERE t.typnamespace = 'pg_catalog'::regnamespace
  AND t.typname IN ('char', 'name', 'regclass', 'regtype', 'regproc', 'regprocedure', 'regoper', 'regoperator',
                    'regnamespace', 'regrole', 'regcollation', 'regconfig', 'regdictionary', 'regdatabase')
  AND (t.typname <> 'name' OR (NOT p.is_deep AND getdatabaseencoding() = 'UTF8'))
GROUP BY p.name, kind";

/// One column that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    /// Its place in the row.
    index: usize,
    name: String,
    kind: Kind,
    /// It is part of a composite.
    is_deep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ByteChar,
    /// Of an object: it is looked up.
    Name,
    /// A `name`, whatever it stands for.
    Identifier {
        is_array: bool,
    },
}

/// The columns of one row shape that are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AmbiguousText {
    columns: Vec<Watched>,
    reads_octal: bool,
}

impl AmbiguousText {
    /// Of rows whose columns go `into` these columns of `table`, in this order.
    pub(crate) async fn find<'c>(
        client: &Client,
        table: &TableName,
        into: impl Iterator<Item = Option<&'c str>>,
    ) -> Result<AmbiguousText> {
        let rows = client
            .query(COLUMNS_SQL, &[&table.quoted()])
            .await
            .map_err(Error::sql(format!("looking at the types of {table}")))?;
        let mut found = AmbiguousText::default();
        if rows.is_empty() {
            return Ok(found);
        }
        for (index, name) in into.enumerate() {
            for row in rows.iter().filter(|row| Some(row.get(0)) == name) {
                found.columns.push(Watched {
                    index,
                    name: row.get(0),
                    kind: match row.get(3) {
                        Some("char") => Kind::ByteChar,
                        Some(_) => Kind::Identifier {
                            is_array: row.get(4),
                        },
                        None => Kind::Name,
                    },
                    is_deep: row.get(1),
                });
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
        let is_ambiguous = |watched: &&Watched| {
            let cell = cell(watched.index);
            match watched.kind {
                Kind::ByteChar => is_cut(cell, watched.is_deep, self.reads_octal),
                Kind::Name => holds_oid(cell, watched.is_deep),
                Kind::Identifier { is_array } => holds_long_name(cell, is_array),
            }
        };
        let Watched {
            name,
            kind,
            is_deep,
            ..
        } = self.columns.iter().find(is_ambiguous)?;
        Some(match kind {
            Kind::ByteChar => format!(
                "column {name} holds a byte above 127 in a \"char\", which this destination would read as another; \
                 PostgreSQL 15 and later at both ends, or a UTF8 source, keep it: put the column into exclude_columns, or \
                 make it an int or a bytea"
            ),
            Kind::Identifier { .. } => format!(
                "column {name} holds a name of more than {NAME_BYTES_MAX} bytes in UTF8, which a column of type name would cut: put the \
                 column into exclude_columns, or make it a text here"
            ),
            Kind::Name => format!(
                "column {name} holds a number where the name of a table, type, role or the like is expected{}: it names nothing at \
                 the source any more, and may name something else here; correct the row at the source and sync the table \
                 again, put the column into exclude_columns, or make it a text here",
                if *is_deep {
                    " or stands beside one"
                } else {
                    ""
                }
            ),
        })
    }
}

/// Whether a cell of COPY text is an oid where a name is expected, or an array or composite with
/// such an element. Which part of a composite is the name is not looked at, nor how deep it is: there any
/// number may be one.
fn holds_oid(cell: &[u8], is_deep: bool) -> bool {
    let is_oid =
        |word: &[u8]| !word.is_empty() && word != b"0" && word.iter().all(u8::is_ascii_digit);
    // COPY text writes some characters as a backslash and another one.
    let width = |at: usize| if cell.get(at) == Some(&b'\\') { 2 } else { 1 };
    let mut in_quotes = false;
    let mut word_begins = 0;
    let mut at = 0;
    while let Some(&byte) = cell.get(at) {
        if cell[at..].starts_with(br"\\") {
            // A backslash of the value itself: the character after it means nothing.
            at += 2;
        } else if byte == b'"' {
            in_quotes = !in_quotes && !is_deep;
            word_begins = if is_deep { at + 1 } else { word_begins };
        } else if !in_quotes && matches!(byte, b'{' | b'}' | b',' | b'(' | b')') {
            if is_oid(&cell[word_begins..at]) {
                return true;
            }
            word_begins = at + 1;
        }
        at += width(at);
    }
    !in_quotes && is_oid(cell.get(word_begins..).unwrap_or_default())
}

/// Bytes that a `name` keeps.
const NAME_BYTES_MAX: usize = 63;

/// Whether a cell of COPY text is a name too long for UTF8, or an array with such an element. One of
/// ASCII takes as many bytes at the source.
fn holds_long_name(cell: &[u8], is_array: bool) -> bool {
    if cell.len() <= NAME_BYTES_MAX || cell.is_ascii() {
        return false;
    }
    let value = copy_text::unescape(cell);
    if !is_array {
        return value.len() > NAME_BYTES_MAX;
    }
    let mut in_quotes = false;
    let mut element_bytes = 0;
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match byte {
            b'\\' => {
                at += 1;
                element_bytes += 1;
            }
            b'"' => in_quotes = !in_quotes,
            b'{' | b'}' | b',' if !in_quotes => element_bytes = 0,
            _ => element_bytes += 1,
        }
        if element_bytes > NAME_BYTES_MAX {
            return true;
        }
        at += 1;
    }
    false
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
    fn oids_are_seen_among_names() {
        for cell in [
            "1259",
            "{pg_class,16384}",
            "{{16384,-}}",
            "[0:1]={-,16384}",
            "(16384,a)",
        ] {
            assert!(holds_oid(cell.as_bytes(), false), "{cell}");
        }
        for cell in [
            "",
            "\\N",
            "-",
            "0",
            "pg_class",
            "\"123\"",
            "public.\"12\"",
            "now()",
            "{-,pg_class,NULL,0}",
            r#"{"\\"123\\"","\\"a,12,b\\"","\\"a\\\\,7,\\""}"#,
            r"{\t12}",
        ] {
            assert!(!holds_oid(cell.as_bytes(), false), "{cell}");
        }
        assert!(holds_oid(br#"(a,"{16384,-}")"#, true));
        assert!(!holds_oid(b"(a,b,)", true));
    }

    #[test]
    fn names_that_would_be_cut_are_seen() {
        let (kept, cut) = ("é".repeat(31), "é".repeat(32));
        for (cell, is_array) in [
            (kept.clone(), false),
            (format!("\\t\\\\{}", "é".repeat(30)), false),
            ("a".repeat(70), false),
            (format!("{{{kept},\"{kept}\",NULL}}"), true),
            (format!("{{\"\\\\\"{kept}\",{kept}}}"), true),
        ] {
            assert!(!holds_long_name(cell.as_bytes(), is_array), "{cell}");
        }
        for (cell, is_array) in [
            (cut.clone(), false),
            (format!("{{{},{}}}", "é".repeat(20), "é".repeat(20)), false),
            (format!("{{a,{cut}}}"), true),
            (format!("{{a,\"{kept},,{kept}\"}}"), true),
        ] {
            assert!(holds_long_name(cell.as_bytes(), is_array), "{cell}");
        }
    }

    #[test]
    fn lines_of_a_chunk_are_gone_through() {
        let watched = AmbiguousText {
            columns: vec![Watched {
                index: 1,
                name: "c".into(),
                kind: Kind::ByteChar,
                is_deep: false,
            }],
            reads_octal: false,
        };
        assert_eq!(watched.refuse_lines(b"\\\\200\ta\n2\t\\N\n"), None);
        let refused = watched.refuse_lines(b"1\ta\n2\t\\\\200\n").unwrap();
        assert!(refused.contains("column c"));
    }
}
