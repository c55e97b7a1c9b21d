//! Records of table topics: the same changes once more, as Debezium's connector for Postgres
//! would write them, for tools that expect that.
//!
//! A [`RowEncoder`] belongs to one version of a table, as [`crate::envelope::Encoder`] does, and
//! takes the same values, as JSON or as Avro. `docs/events.md` lists the fields, and where they differ from Debezium's.

mod avro;
mod connect;
mod fields;
mod json;
#[cfg(test)]
mod tests;
mod times;

use std::sync::Arc;

use bunny_postgres::TableName;

use crate::envelope::{Op, Source, TableSchema, Value};
use crate::{Error, Result};

use self::fields::Column;

/// What stands for an out-of-line value that an update left alone and Postgres did not send.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// Header of a delete that a change of key is made of: the row's new key.
pub const NEW_KEY_HEADER: &str = "__debezium.newkey";
/// Header of the create that follows it: the row's old key.
pub const OLD_KEY_HEADER: &str = "__debezium.oldkey";

/// Where the records of a mirror say that they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What the names of the mirror's table topics begin with, Debezium's `topic.prefix`.
    pub name: Arc<str>,
    /// Database at the source.
    pub database: Arc<str>,
}

/// One change of a row, or the truncate of a table.
#[derive(Debug, Clone, Copy)]
pub struct RowEvent<'e> {
    pub op: Op,
    pub before: Option<&'e [Value<'e>]>,
    pub after: Option<&'e [Value<'e>]>,
    pub source: &'e Source<'e>,
    /// When the change was read, in microseconds since the Unix epoch.
    pub read_us: i64,
}

/// The Avro schemas of a table's records, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvroSchemas {
    /// Of keys; `None` for a table without one.
    pub key: Option<String>,
    /// Of values: the envelope.
    pub value: String,
}

/// The ids under which they are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvroIds {
    /// Of keys; `None` for a table without one.
    pub key: Option<u32>,
    /// Of values.
    pub value: u32,
}

impl AvroSchemas {
    /// Those of the records that [`RowEncoder::avro`] writes of this version of a table.
    pub fn of(schema: &TableSchema, origin: &Origin) -> AvroSchemas {
        avro::schemas(schema, &columns_of(schema), origin)
    }
}

/// Encodes the records of one version of a table.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    table: TableName,
    columns: Vec<Column>,
    format: Format,
}

#[derive(Debug, Clone)]
enum Format {
    Json(json::Plan),
    Avro(avro::Plan),
}

impl RowEncoder {
    /// As JSON, each record with its schema: what Kafka Connect's `JsonConverter` reads.
    pub fn json(schema: &TableSchema, origin: &Origin) -> RowEncoder {
        let columns = columns_of(schema);
        let format = Format::Json(json::Plan::new(schema, &columns, origin));
        RowEncoder::new(schema, columns, format)
    }

    /// As Avro, framed with the ids of [`AvroSchemas::of`] this version: what Confluent's
    /// `AvroConverter` reads.
    pub fn avro(schema: &TableSchema, origin: &Origin, ids: AvroIds) -> RowEncoder {
        let columns = columns_of(schema);
        let format = Format::Avro(avro::Plan::new(schema, &columns, origin, ids));
        RowEncoder::new(schema, columns, format)
    }

    fn new(schema: &TableSchema, columns: Vec<Column>, format: Format) -> RowEncoder {
        RowEncoder {
            table: schema.table_name(),
            columns,
            format,
        }
    }

    /// Appends the record key, taken from a full-width row. A table without a key has none, nor, in
    /// Avro, has a row whose key is NULL, which it may be if it is older than the key: then nothing is
    /// appended.
    ///
    /// # Errors
    /// A row of another width, or a text that is no value of its type.
    pub fn key(&self, out: &mut Vec<u8>, row: &[Value<'_>]) -> Result<()> {
        self.check_width(row)?;
        if !self.columns.iter().any(|column| column.key) {
            return Ok(());
        }
        match &self.format {
            Format::Json(plan) => plan.write_key(out, &self.columns, row),
            Format::Avro(plan) => plan.write_key(out, &self.columns, row),
        }
    }

    /// Appends a key as a header has it, whatever the format of records: JSON without a schema,
    /// as Kafka Connect's default converter for headers writes it and reads it back. The names of
    /// the columns are those of the key.
    ///
    /// # Errors
    /// A row of another width, or a text that is no value of its type.
    pub fn key_header(&self, out: &mut Vec<u8>, row: &[Value<'_>]) -> Result<()> {
        self.check_width(row)?;
        let names = match &self.format {
            Format::Json(plan) => plan.names(),
            Format::Avro(plan) => plan.names(),
        };
        names.write_key(out, &self.columns, row)
    }

    /// Appends the record value.
    ///
    /// # Errors
    /// A row of another width, or a text that is no value of its type.
    pub fn value(&self, out: &mut Vec<u8>, event: &RowEvent<'_>) -> Result<()> {
        for row in [event.before, event.after].into_iter().flatten() {
            self.check_width(row)?;
        }
        match &self.format {
            Format::Json(plan) => plan.write_event(out, &self.columns, event),
            Format::Avro(plan) => plan.write_event(out, &self.columns, event),
        }
    }

    /// Whether two full-width rows have the same key.
    pub fn is_same_key(&self, one: &[Value<'_>], other: &[Value<'_>]) -> bool {
        let pairs = one.iter().zip(other).zip(&self.columns);
        pairs
            .filter(|(_, column)| column.key)
            .all(|((one, other), _)| one == other)
    }

    fn check_width(&self, row: &[Value<'_>]) -> Result<()> {
        if row.len() == self.columns.len() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "encode a record of {}: a row of {} values for {} columns",
            self.table,
            row.len(),
            self.columns.len()
        )))
    }
}

fn columns_of(schema: &TableSchema) -> Vec<Column> {
    schema.columns.iter().map(Column::of).collect()
}

/// The change's place, which strictly increases, as a list of two texts.
fn sequence(source: &Source<'_>) -> String {
    format!("[\"{}\",\"{}\"]", source.commit_lsn.0, source.seq)
}

/// A moment in the three units that Debezium gives: `ts_ms`, `ts_us`, `ts_ns`.
fn times_of(us: i64) -> [i64; 3] {
    [us.div_euclid(1000), us, us.saturating_mul(1000)]
}
