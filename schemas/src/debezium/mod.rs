//! Records of table topics: the same changes once more, as Debezium's connector for Postgres
//! would write them, for tools that expect that.
//!
//! A [`RowEncoder`] belongs to one version of a table, as [`crate::envelope::Encoder`] does, and
//! takes the same values. `docs/events.md` lists the fields, and where they differ from Debezium's.

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

/// Encodes the records of one version of a table.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    table: TableName,
    columns: Vec<Column>,
    plan: json::Plan,
}

impl RowEncoder {
    /// As JSON, each record with its schema: what Kafka Connect's `JsonConverter` reads.
    pub fn json(schema: &TableSchema, origin: &Origin) -> RowEncoder {
        let columns: Vec<Column> = schema.columns.iter().map(Column::of).collect();
        RowEncoder {
            table: schema.table_name(),
            plan: json::Plan::new(schema, &columns, origin),
            columns,
        }
    }

    /// Appends the record key, taken from a full-width row. A table without a key has none: then
    /// nothing is appended.
    ///
    /// # Errors
    /// A row of another width, or a text that is no value of its type.
    pub fn key(&self, out: &mut Vec<u8>, row: &[Value<'_>]) -> Result<()> {
        self.check_width(row)?;
        if self.columns.iter().any(|column| column.key) {
            self.plan.write_key(out, &self.columns, row)?;
        }
        Ok(())
    }

    /// Appends the record value.
    ///
    /// # Errors
    /// A row of another width, or a text that is no value of its type.
    pub fn value(&self, out: &mut Vec<u8>, event: &RowEvent<'_>) -> Result<()> {
        for row in [event.before, event.after].into_iter().flatten() {
            self.check_width(row)?;
        }
        self.plan.write_event(out, &self.columns, event)
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
