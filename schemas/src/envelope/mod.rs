//! The change event of a table.
//!
//! One Avro record per table version, `<mirror>.<schema>.<table>.Envelope`, framed
//! as Confluent does. [`TableSchema`] writes and reads the schema text, [`Encoder`]
//! and [`Decoder`] turn Postgres text into a datum and back by a plan made once
//! per schema, without a tree of values in between.
//!
//! Field order on the wire is `op, before_kind, before, after, unchanged,
//! truncate, source`; `source.last` is the very last byte, so that the producer
//! can mark an encoded event as its transaction's last with [`set_last`].

mod decoder;
mod encoder;
mod facts;
mod names;
pub(crate) mod numbers;
mod schema;
mod shortest;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bunny_postgres::{Lsn, TableName};
use uuid::Uuid;

use crate::{Position, Result, wire};

pub use decoder::{Decoder, Scratch};
pub use encoder::{Encoder, set_last};
pub use facts::{ColumnFacts, EnumLabels, Label, OldRows};
pub use names::{escape, unescape};
pub use schema::{ColumnSchema, TableSchema, WireType};

/// A column's value as Postgres sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// An out-of-line value the update left alone; Postgres did not send it.
    Unchanged,
    /// Postgres text, in UTF-8, as printed under the pinned session settings.
    Text(&'a [u8]),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `c`: a row was inserted.
    Create,
    /// `u`: a row was updated.
    Update,
    /// `d`: a row was deleted.
    Delete,
    /// `t`: tables were truncated.
    Truncate,
}

impl Op {
    /// Symbols on the wire, in this order.
    pub(crate) const SYMBOLS: [&'static str; 4] = ["c", "u", "d", "t"];
    pub(crate) const ALL: [Op; 4] = [Op::Create, Op::Update, Op::Delete, Op::Truncate];

    /// `c`, `u`, `d` or `t`.
    pub fn symbol(self) -> &'static str {
        Op::SYMBOLS[self as usize]
    }
}

/// How much of the old row `before` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BeforeKind {
    /// Nothing.
    None,
    /// The identity's columns; all others are null without being NULL.
    Key,
    /// The whole row (REPLICA IDENTITY FULL).
    Row,
}

impl BeforeKind {
    /// Symbols on the wire, in this order.
    pub(crate) const SYMBOLS: [&'static str; 3] = ["none", "key", "row"];
    pub(crate) const ALL: [BeforeKind; 3] = [BeforeKind::None, BeforeKind::Key, BeforeKind::Row];
}

/// Where an event comes from. `last` is kept apart, see [`set_last`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// The unbroken slot and topic history the event belongs to.
    pub generation: Uuid,
    /// Mirror name.
    pub mirror: &'a str,
    /// Schema of the table at the source, true name.
    pub schema: &'a str,
    /// Table at the source, true name.
    pub table: &'a str,
    /// Source transaction id.
    pub xid: u32,
    /// LSN of the change itself.
    pub lsn: Lsn,
    /// LSN of the transaction's commit record.
    pub commit_lsn: Lsn,
    /// Commit time in microseconds since the Unix epoch.
    pub commit_ts_us: i64,
    /// Number of the change in its transaction.
    pub seq: u64,
}

impl Source<'_> {
    /// The event's place in its generation.
    pub fn position(&self) -> Position {
        Position {
            commit_lsn: self.commit_lsn,
            seq: self.seq,
        }
    }

    /// Appends the record, `last` (false) included.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        wire::write_uuid(out, self.generation);
        wire::write_str(out, self.mirror);
        wire::write_str(out, self.schema);
        wire::write_str(out, self.table);
        wire::write_long(out, i64::from(self.xid));
        wire::write_u64(out, self.lsn.0);
        wire::write_u64(out, self.commit_lsn.0);
        wire::write_long(out, self.commit_ts_us);
        wire::write_u64(out, self.seq);
        wire::write_bool(out, false);
    }
}

impl<'a> Source<'a> {
    /// Reads the record and `last`.
    pub(crate) fn read(reader: &mut wire::Reader<'a>) -> Result<(Source<'a>, bool)> {
        let source = Source {
            generation: reader.uuid()?,
            mirror: reader.str()?,
            schema: reader.str()?,
            table: reader.str()?,
            xid: u32::try_from(reader.long()?)
                .map_err(|_| reader.malformed("a transaction id of 32 bits"))?,
            lsn: Lsn(reader.u64()?),
            commit_lsn: Lsn(reader.u64()?),
            commit_ts_us: reader.long()?,
            seq: reader.u64()?,
        };
        let last = reader.bool()?;
        Ok((source, last))
    }
}

/// A decoded change, borrowing texts and bytes from the message.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<'a> {
    /// What happened.
    pub op: Op,
    /// What `before` holds.
    pub before_kind: BeforeKind,
    /// Old key or row, full column width.
    pub before: Option<Row<'a>>,
    /// New row, full column width.
    pub after: Option<Row<'a>>,
    /// Per column: whether Postgres did not send it. Empty when all were sent.
    pub unchanged: Vec<bool>,
    /// Set for [`Op::Truncate`] only.
    pub truncate: Option<Truncate>,
    /// Where the event comes from.
    pub source: Source<'a>,
    /// Whether this is the transaction's last event.
    pub last: bool,
}

impl Change<'_> {
    /// Whether `column` of `after` was left alone and not sent.
    pub fn is_unchanged(&self, column: usize) -> bool {
        self.unchanged.get(column).copied().unwrap_or(false)
    }
}

/// A decoded row: one datum per column of the schema.
pub type Row<'a> = Vec<Datum<'a>>;

/// The tables one TRUNCATE emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// Mapped tables of the statement, as named at the source.
    pub tables: Vec<TableName>,
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
}

/// A decoded value.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum<'a> {
    /// NULL, or not present (see `before_kind` and `unchanged`).
    Null,
    /// `boolean`.
    Bool(bool),
    /// `smallint`, `integer`, `bigint`.
    Int(i64),
    /// `real`.
    Float(f32),
    /// `double precision`.
    Double(f64),
    /// `bytea`.
    Bytes(&'a [u8]),
    /// Everything else, as Postgres prints it.
    Text(&'a str),
}

impl Datum<'_> {
    /// Whether the value is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// Appends the value as Postgres prints it, so that reading it gives the very
    /// value back; a NULL appends nothing.
    pub fn write_postgres_text(&self, out: &mut Vec<u8>) {
        match self {
            Datum::Null => {}
            Datum::Bool(value) => out.push(if *value { b't' } else { b'f' }),
            Datum::Int(value) => numbers::print_int(out, *value),
            Datum::Float(value) => numbers::print_float(out, *value),
            Datum::Double(value) => numbers::print_double(out, *value),
            Datum::Bytes(bytes) => numbers::print_bytea(out, bytes),
            Datum::Text(text) => out.extend_from_slice(text.as_bytes()),
        }
    }

    /// Postgres text of the value, borrowed where it is text already; `None` for NULL.
    pub fn postgres_text(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Datum::Null => None,
            Datum::Text(text) => Some(Cow::Borrowed(text.as_bytes())),
            other => {
                let mut out = Vec::new();
                other.write_postgres_text(&mut out);
                Some(Cow::Owned(out))
            }
        }
    }
}
