//! The text format of COPY (manual, "COPY", section "Text Format"): one row a line,
//! columns separated by tabs, NULL as `\N`, and a backslash before what would
//! otherwise be taken for structure.
//!
//! Writing is for sessions in UTF-8, which never hold structure bytes inside a
//! character. Reading gives back exactly what was written. Neither side panics.

use std::borrow::Cow;

/// What stands for SQL NULL.
pub const NULL: &[u8] = b"\\N";

/// Appends `value` so that COPY reads back the same bytes. Adds no separator.
pub fn escape_into(out: &mut Vec<u8>, value: &[u8]) {
    let mut rest = value;
    while let Some((plain, letter, after)) = split_at_structure(rest) {
        out.extend_from_slice(plain);
        out.extend_from_slice(&[b'\\', letter]);
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// What stands before the first byte that must be escaped, the letter that stands for that
/// byte behind a backslash, and what follows it. `None` if there is no such byte.
fn split_at_structure(value: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let mut clean = 0;
    let (words, tail) = value.as_chunks::<WORD_BYTES>();
    for word in words {
        if may_hold_structure(word) && word.iter().any(|&byte| escape_letter(byte).is_some()) {
            break;
        }
        clean += WORD_BYTES;
    }
    // The last whole word overlaps what was looked at, so that a clean tail is one look too.
    let is_tail = value.len() - clean == tail.len();
    if is_tail
        && value
            .last_chunk()
            .is_some_and(|word| !may_hold_structure(word))
    {
        return None;
    }
    let (at, letter) = value[clean..]
        .iter()
        .enumerate()
        .find_map(|(at, &byte)| Some((at, escape_letter(byte)?)))?;
    let (plain, rest) = value.split_at(clean + at);
    Some((plain, letter, &rest[1..]))
}

/// What stands for a byte behind a backslash; `None` for one that stands for itself.
fn escape_letter(byte: u8) -> Option<u8> {
    Some(match byte {
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0b => b'v',
        0x0c => b'f',
        _ => return None,
    })
}

/// Bytes that are looked at together.
const WORD_BYTES: usize = 8;

/// False only if no byte of the word must be escaped: none is below 0x0e, and none is a
/// backslash. All eight are compared at once, each in its own eighth of a number: a byte that
/// is less than `bound` (at most 128) borrows, which sets its highest bit.
fn may_hold_structure(word: &[u8; WORD_BYTES]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; WORD_BYTES]);
    let any_below = |bytes: u64, bound: u8| {
        bytes.wrapping_sub(ONES * u64::from(bound)) & !bytes & (ONES * 0x80) != 0
    };
    let bytes = u64::from_ne_bytes(*word);
    any_below(bytes, b'\r' + 1) || any_below(bytes ^ (ONES * u64::from(b'\\')), 1)
}

/// Appends one column: escaped, or `\N` for `None`.
pub fn write_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => escape_into(out, value),
        None => out.extend_from_slice(NULL),
    }
}

/// Appends one row with its line end. A row of no columns is an empty line.
pub fn write_row<'v>(out: &mut Vec<u8>, values: impl IntoIterator<Item = Option<&'v [u8]>>) {
    for (index, value) in values.into_iter().enumerate() {
        if index > 0 {
            out.push(b'\t');
        }
        write_value(out, value);
    }
    out.push(b'\n');
}

/// The rows of `data`, each a line without its line end. A last line without one
/// counts as a row; the end marker `\.` of COPY files is not looked for, because the
/// protocol does not send it.
pub fn rows(data: &[u8]) -> Rows<'_> {
    Rows { rest: data }
}

/// How many rows `data` holds: its line ends, plus an unfinished last line.
pub fn count_rows(data: &[u8]) -> u64 {
    let ends = memchr::memchr_iter(b'\n', data).count() as u64;
    let unfinished = matches!(data.last(), Some(&byte) if byte != b'\n');
    ends + u64::from(unfinished)
}

/// The rows of COPY text; see [`rows`].
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', self.rest);
        let line = match end {
            Some(end) => {
                let line = &self.rest[..end];
                self.rest = &self.rest[end + 1..];
                line
            }
            None => std::mem::take(&mut self.rest),
        };
        Some(Row { line })
    }
}

/// One row of COPY text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The line as it stands, still escaped, without its line end.
    pub line: &'a [u8],
}

impl<'a> Row<'a> {
    /// The columns, unescaped; `None` is NULL. An empty line gives one empty column:
    /// the format cannot tell it from a row of no columns.
    pub fn columns(&self) -> impl Iterator<Item = Option<Cow<'a, [u8]>>> + use<'a> {
        self.cells().map(|cell| match cell {
            NULL => None,
            cell => Some(unescape(cell)),
        })
    }

    /// The columns as they stand, still escaped.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let line = self.line;
        let mut start = 0;
        // A raw tab always separates: inside a value it is written as `\t`.
        memchr::memchr_iter(b'\t', line)
            .chain(std::iter::once(line.len()))
            .map(move |end| {
                let cell = &line[start..end];
                start = end + 1;
                cell
            })
    }
}

/// Undoes [`escape_into`] for one column, and whatever else COPY accepts: octal and
/// hexadecimal escapes, and a backslash before any other character.
pub fn unescape(field: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', field).is_none() {
        return Cow::Borrowed(field);
    }
    let mut out = Vec::with_capacity(field.len());
    unescape_into(&mut out, field);
    Cow::Owned(out)
}

/// The same, appended.
pub fn unescape_into(out: &mut Vec<u8>, field: &[u8]) {
    let mut rest = field;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let Some((&letter, after)) = rest[at + 1..].split_first() else {
            // Postgres takes a lone backslash at the end as itself.
            out.push(b'\\');
            return;
        };
        rest = after;
        match letter {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'b' => out.push(0x08),
            b'v' => out.push(0x0b),
            b'f' => out.push(0x0c),
            b'0'..=b'7' => {
                let (value, used) = digits(rest, 2, 8, u32::from(letter - b'0'));
                rest = &rest[used..];
                out.push(value);
            }
            b'x' => match digits(rest, 2, 16, 0) {
                (_, 0) => out.push(b'x'),
                (value, used) => {
                    rest = &rest[used..];
                    out.push(value);
                }
            },
            other => out.push(other),
        }
    }
    out.extend_from_slice(rest);
}

/// Up to `max` digits of `radix` at the front of `text`, after the value `so_far`:
/// the low byte of the number (as Postgres cuts it), and how many were used.
fn digits(text: &[u8], max: usize, radix: u32, so_far: u32) -> (u8, usize) {
    let mut value = so_far;
    let mut used = 0;
    for &byte in text.iter().take(max) {
        let Some(digit) = char::from(byte).to_digit(radix) else {
            break;
        };
        value = value * radix + digit;
        used += 1;
    }
    ((value & 0xFF) as u8, used)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn escaped(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        escape_into(&mut out, value);
        out
    }

    #[test]
    fn structure_is_escaped() {
        assert_eq!(escaped(b"plain"), b"plain");
        assert_eq!(escaped(b"a\tb\nc\rd\\e"), b"a\\tb\\nc\\rd\\\\e");
        assert_eq!(escaped(b"\x08\x0b\x0c"), b"\\b\\v\\f");
        // The text \N is not NULL.
        assert_eq!(escaped(b"\\N"), b"\\\\N");
        assert_eq!(escaped("süß".as_bytes()), "süß".as_bytes());
    }

    #[test]
    fn rows_are_lines_and_columns_lie_between_tabs() {
        let mut out = Vec::new();
        write_row(&mut out, [Some(&b"1"[..]), None, Some(b"")]);
        write_row(&mut out, [Some(&b"\\."[..])]);
        write_row(&mut out, []);
        assert_eq!(out, b"1\t\\N\t\n\\\\.\n\n");
        assert_eq!(count_rows(&out), 3);

        let read: Vec<Vec<_>> = rows(&out).map(|row| row.columns().collect()).collect();
        assert_eq!(
            read[0],
            [
                Some(Cow::Borrowed(&b"1"[..])),
                None,
                Some(Cow::Borrowed(&b""[..]))
            ]
        );
        assert_eq!(read[1], [Some(Cow::Borrowed(&b"\\."[..]))]);
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn an_unfinished_last_line_is_a_row() {
        assert_eq!(count_rows(b""), 0);
        assert_eq!(count_rows(b"a\nb"), 2);
        assert_eq!(rows(b"a\nb").count(), 2);
        assert_eq!(rows(b"").count(), 0);
    }

    #[test]
    fn the_other_escapes_of_copy_are_read() {
        for (field, value) in [
            (&b"\\101\\x42\\x4"[..], &b"AB\x04"[..]),
            (b"\\1018", b"A8"),
            (b"\\777", b"\xFF"),
            (b"\\8", b"8"),
            (b"\\xg", b"xg"),
            (b"\\q\\\\", b"q\\"),
            (b"end\\", b"end\\"),
        ] {
            assert_eq!(unescape(field), value, "{field:?}");
        }
    }

    /// Byte by byte, as [`escape_into`] is defined.
    fn escaped_one_by_one(value: &[u8]) -> Vec<u8> {
        let escape = |&byte: &u8| match escape_letter(byte) {
            Some(letter) => vec![b'\\', letter],
            None => vec![byte],
        };
        value.iter().flat_map(escape).collect()
    }

    #[test]
    fn every_byte_is_found_at_every_place() {
        for byte in 0..=u8::MAX {
            for length in 1..=20 {
                for at in 0..length {
                    for plain in [b'a', 0x00, 0xff, 0x0e, b'\\' + 1] {
                        let mut value = vec![plain; length];
                        value[at] = byte;
                        assert_eq!(escaped(&value), escaped_one_by_one(&value), "{value:?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn structure_is_found_wherever_it_is(value in "[ -~\\\\\t\n\r\u{8}\u{b}\u{c}\u{0}\u{e4}]{0,60}") {
            prop_assert_eq!(escaped(value.as_bytes()), escaped_one_by_one(value.as_bytes()));
        }

        #[test]
        fn what_was_written_is_what_is_read(
            written in vec(vec(proptest::option::of(vec(any::<u8>(), 0..12)), 1..5), 0..5)
        ) {
            let mut out = Vec::new();
            for row in &written {
                write_row(&mut out, row.iter().map(Option::as_deref));
            }
            prop_assert_eq!(count_rows(&out), written.len() as u64);
            let read: Vec<Vec<Option<Vec<u8>>>> = rows(&out)
                .map(|row| row.columns().map(|value| value.map(Cow::into_owned)).collect())
                .collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_bytes_are_read(bytes in vec(any::<u8>(), 0..60)) {
            let lines = rows(&bytes).count() as u64;
            prop_assert_eq!(lines, count_rows(&bytes));
            for row in rows(&bytes) {
                let _ = row.columns().count();
            }
        }

        #[test]
        fn escapes_of_every_sort_are_read(text in "[\\\\x0-9a-fNt ]{0,30}") {
            let _ = unescape(text.as_bytes());
        }
    }
}
