//! From Postgres text to a framed Avro datum.

use bunny_postgres::TableName;

use super::{BeforeKind, Op, Source, TableSchema, Value};
use crate::Result;

/// Encodes the events of one table version. Cheap to share, holds no buffers.
#[derive(Debug, Clone)]
pub struct Encoder {
    schema: TableSchema,
}

impl Encoder {
    /// Plans the encoding for `schema`, registered as `value_id` and `key_id`.
    pub fn new(schema: &TableSchema, _value_id: u32, _key_id: u32) -> Encoder {
        Encoder {
            schema: schema.clone(),
        }
    }

    /// The table version.
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// Appends a framed change. Rows are full column width; under
    /// [`BeforeKind::Key`] the columns outside the key are [`Value::Null`].
    /// On error `out` is as before.
    pub fn change(
        &self,
        _out: &mut Vec<u8>,
        _op: Op,
        _before: Option<(BeforeKind, &[Value<'_>])>,
        _after: Option<&[Value<'_>]>,
        _source: &Source<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// Appends the framed record key, taken from the key columns of a full-width
    /// row. A key-less table's events have a null key: nothing is appended.
    pub fn key(&self, _out: &mut Vec<u8>, _values: &[Value<'_>]) -> Result<()> {
        Ok(())
    }

    /// Appends a framed truncate of `tables`. Its record key is null.
    pub fn truncate(
        &self,
        _out: &mut Vec<u8>,
        _tables: &[TableName],
        _cascade: bool,
        _restart_identity: bool,
        _source: &Source<'_>,
    ) -> Result<()> {
        Ok(())
    }
}

/// Marks an encoded event (a change or a `TableGap`) as its transaction's last.
pub fn set_last(event: &mut [u8]) {
    if let Some(last) = event.last_mut() {
        *last = 1;
    }
}
