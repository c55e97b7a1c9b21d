//! From an Avro datum to borrowed values.

use bunny_postgres::TableName;

use super::{Change, ColumnSchema, Row, TableSchema};
use crate::Result;

/// Decodes the events of one table version.
#[derive(Debug, Clone)]
pub struct Decoder {
    schema: TableSchema,
    table: TableName,
}

/// Row buffers to decode into again, see [`Decoder::decode_with`].
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Row<'static>>,
}

impl Scratch {
    /// Takes the buffers of a change that is done with.
    pub fn recycle(&mut self, change: Change<'_>) {
        let _ = (change, &self.rows);
    }
}

impl Decoder {
    /// Plans the decoding of events written with this schema.
    pub fn new(schema_json: &str) -> Result<Decoder> {
        let schema = TableSchema::from_avro_json(schema_json)?;
        let table = schema.table_name();
        Ok(Decoder { schema, table })
    }

    /// The table version.
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// The table at the source.
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Columns, in the order of rows.
    pub fn columns(&self) -> &[ColumnSchema] {
        &self.schema.columns
    }

    /// Decodes a datum (the message after its frame).
    pub fn decode<'a>(&self, datum: &'a [u8]) -> Result<Change<'a>> {
        self.decode_with(&mut Scratch::default(), datum)
    }

    /// Like [`Decoder::decode`], with row buffers from `scratch`.
    pub fn decode_with<'a>(&self, _scratch: &mut Scratch, _datum: &'a [u8]) -> Result<Change<'a>> {
        Err(crate::Error::Malformed {
            what: "an envelope",
            at: 0,
        })
    }
}
