//! Events as lines. Pure.

use std::fmt::Write as _;

use bunny_schemas::envelope::{BeforeKind, Change, Datum, Op, Row, Source, TableSchema};
use bunny_schemas::follow::Event;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value as Json, json};

use super::options::Format;

/// The longest value shown whole in a line for people, in characters.
const VALUE_CHARS_MAX: usize = 200;

/// Makes lines; keeps its buffer from one to the next.
pub(super) struct Printer {
    format: Format,
    line: String,
}

impl Printer {
    pub(super) fn new(format: Format) -> Printer {
        Printer {
            format,
            line: String::new(),
        }
    }

    /// The line of an event, its end included. No value brings a line's end of its own.
    pub(super) fn line(&mut self, offset: i64, event: &Event<'_>) -> &[u8] {
        self.line.clear();
        match self.format {
            Format::Json => self.line.push_str(&object(offset, event).to_string()),
            Format::Text => text(&mut self.line, event),
        }
        self.line.push('\n');
        self.line.as_bytes()
    }
}

/// `time  position  xid  what  table  columns`.
fn text(line: &mut String, event: &Event<'_>) {
    match event {
        Event::Generation(started) => {
            let _ = write!(
                line,
                "NEW HISTORY {} of mirror {} from {} (system {}, timeline {})",
                started.generation,
                started.mirror,
                started.start_lsn,
                started.system_id,
                started.timeline
            );
        }
        Event::Gap(gap) => {
            head(line, &gap.source, "GAP");
            line.push_str("  ");
            quote(line, gap.reason);
        }
        Event::Change(change, schema) => {
            let what = match change.op {
                Op::Create => "INSERT",
                Op::Update => "UPDATE",
                Op::Delete => "DELETE",
                Op::Truncate => "TRUNCATE",
            };
            head(line, &change.source, what);
            columns(line, change, schema);
        }
    }
}

fn head(line: &mut String, source: &Source<'_>, what: &str) {
    let _ = write!(
        line,
        "{}  {}  xid {}  {what:<8}",
        time(source.commit_ts_us),
        source.position(),
        source.xid,
    );
    if what != "TRUNCATE" {
        let _ = write!(line, "  {}.{}", plain(source.schema), plain(source.table));
    }
}

fn columns(line: &mut String, change: &Change<'_>, schema: &TableSchema) {
    if let Some(truncate) = &change.truncate {
        for (index, table) in truncate.tables.iter().enumerate() {
            let before = if index == 0 { "  " } else { ", " };
            let _ = write!(
                line,
                "{before}{}.{}",
                plain(&table.schema),
                plain(&table.name)
            );
        }
        for (set, words) in [
            (truncate.cascade, " CASCADE"),
            (truncate.restart_identity, " RESTART IDENTITY"),
        ] {
            if set {
                line.push_str(words);
            }
        }
        return;
    }
    line.push(' ');
    if let Some(after) = &change.after {
        for (index, (column, datum)) in schema.columns.iter().zip(after).enumerate() {
            let _ = write!(line, " {}=", plain(&column.name));
            if change.is_unchanged(index) {
                line.push_str("(unchanged)");
            } else {
                value(line, datum);
            }
        }
        if change.before.is_some() {
            line.push_str("  WAS");
        }
    }
    for (name, datum) in change.before.iter().flat_map(|row| {
        let old = old_columns(change.before_kind, schema, row);
        old.collect::<Vec<_>>()
    }) {
        let _ = write!(line, " {}=", plain(name));
        value(line, datum);
    }
}

/// The columns of an old row that say something.
fn old_columns<'r, 'd>(
    kind: BeforeKind,
    schema: &'r TableSchema,
    row: &'r Row<'d>,
) -> impl Iterator<Item = (&'r str, &'r Datum<'d>)> {
    let pairs = schema.columns.iter().zip(row);
    pairs
        .filter(move |(column, _)| kind == BeforeKind::Row || column.key)
        .map(|(column, datum)| (column.name.as_str(), datum))
}

fn value(line: &mut String, datum: &Datum<'_>) {
    match datum {
        Datum::Null => line.push_str("NULL"),
        Datum::Bool(true) => line.push_str("true"),
        Datum::Bool(false) => line.push_str("false"),
        Datum::Text(text) => quote(line, text),
        // Only so much of a large value is turned into text.
        Datum::Bytes(bytes) => {
            let shown = &bytes[..bytes.len().min(VALUE_CHARS_MAX / 2)];
            line.push_str(&postgres_text(&Datum::Bytes(shown)));
            if shown.len() < bytes.len() {
                let _ = write!(line, "…(+{} bytes)", bytes.len() - shown.len());
            }
        }
        number => line.push_str(&postgres_text(number)),
    }
}

/// In quotes, control characters escaped, a long text cut.
fn quote(line: &mut String, text: &str) {
    line.push('\'');
    let mut rest = text.chars();
    for c in rest.by_ref().take(VALUE_CHARS_MAX) {
        match c {
            '\'' => line.push_str("''"),
            '\\' => line.push_str("\\\\"),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line.push('\'');
    let left = rest.as_str();
    if !left.is_empty() {
        let _ = write!(line, "…(+{} bytes)", left.len());
    }
}

/// A name on one line.
fn plain(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The event in the field names of the contract; log positions and times as text, columns that
/// Postgres did not send left out of their row.
fn object(offset: i64, event: &Event<'_>) -> Json {
    match event {
        Event::Generation(started) => json!({
            "offset": offset,
            "event": "GenerationStarted",
            "generation": started.generation,
            "mirror": started.mirror,
            "system_id": started.system_id,
            "timeline": started.timeline,
            "start_lsn": started.start_lsn.to_string(),
        }),
        Event::Gap(gap) => json!({
            "offset": offset,
            "event": "TableGap",
            "reason": gap.reason,
            "source": source_object(&gap.source, gap.last),
        }),
        Event::Change(change, schema) => {
            let before = change.before.as_ref().map(|row| {
                let old = old_columns(change.before_kind, schema, row);
                let pairs = old.map(|(name, datum)| (name.to_owned(), json_value(datum)));
                pairs.collect::<Map<String, Json>>()
            });
            let after = change.after.as_ref().map(|row| {
                let sent = schema.columns.iter().zip(row).enumerate();
                sent.filter(|(index, _)| !change.is_unchanged(*index))
                    .map(|(_, (column, datum))| (column.name.clone(), json_value(datum)))
                    .collect::<Map<String, Json>>()
            });
            let unchanged: Vec<&str> = schema
                .columns
                .iter()
                .enumerate()
                .filter(|(index, _)| change.is_unchanged(*index))
                .map(|(_, column)| column.name.as_str())
                .collect();
            let truncate = change.truncate.as_ref().map(|truncate| {
                let tables = truncate.tables.iter();
                let tables: Vec<Json> = tables
                    .map(|table| json!({"schema": table.schema, "table": table.name}))
                    .collect();
                json!({
                    "tables": tables,
                    "cascade": truncate.cascade,
                    "restart_identity": truncate.restart_identity,
                })
            });
            json!({
                "offset": offset,
                "event": "Change",
                "op": change.op.symbol(),
                "before_kind": match change.before_kind {
                    BeforeKind::None => "none",
                    BeforeKind::Key => "key",
                    BeforeKind::Row => "row",
                },
                "before": before,
                "after": after,
                "unchanged": unchanged,
                "truncate": truncate,
                "source": source_object(&change.source, change.last),
            })
        }
    }
}

fn source_object(source: &Source<'_>, last: bool) -> Json {
    json!({
        "generation": source.generation,
        "mirror": source.mirror,
        "schema": source.schema,
        "table": source.table,
        "xid": source.xid,
        "lsn": source.lsn.to_string(),
        "commit_lsn": source.commit_lsn.to_string(),
        "commit_ts": time(source.commit_ts_us),
        "seq": source.seq,
        "last": last,
    })
}

/// Numbers as JSON numbers where JSON has them, everything else as Postgres prints it.
fn json_value(datum: &Datum<'_>) -> Json {
    match datum {
        Datum::Null => Json::Null,
        Datum::Bool(value) => json!(value),
        Datum::Int(value) => json!(value),
        Datum::Text(text) => json!(text),
        Datum::Double(value) if value.is_finite() => json!(value),
        other => json!(postgres_text(other)),
    }
}

fn postgres_text(datum: &Datum<'_>) -> String {
    let bytes = datum.postgres_text().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Microseconds since the Unix epoch, in UTC.
fn time(time_us: i64) -> String {
    match DateTime::from_timestamp_micros(time_us) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Micros, true),
        None => format!("{time_us} us"),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
