//! Records of the snapshot topic.

use bunny_postgres::{Lsn, TableDefinition, TableName};
use uuid::Uuid;

use crate::wire::{self, Reader};
use crate::{Error, Position, Result};

/// A table is being read at one consistent point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSyncStarted {
    /// The sync asked for.
    pub request_id: Uuid,
    /// Run of the request, from 1; a higher one voids the lower.
    pub attempt: i32,
    /// Schema at the source.
    pub schema: String,
    /// Table at the source.
    pub table: String,
    /// Generation in which `lsn` counts.
    pub generation: Uuid,
    /// Consistent point L.
    pub lsn: Lsn,
    /// Offset of the change topic from which all changes since L are found.
    pub changes_offset: i64,
    /// Columns of the chunks, in order.
    pub columns: Vec<String>,
    /// Definition of the table at L, a [`TableDefinition`] as JSON.
    pub definition: String,
    /// Per partition: offset from which this sync's parts are found.
    pub start_offsets: Vec<i64>,
}

impl TableSyncStarted {
    /// The table at the source.
    pub fn table_name(&self) -> TableName {
        TableName {
            schema: self.schema.clone(),
            name: self.table.clone(),
        }
    }

    /// Parses `definition`.
    pub fn table_definition(&self) -> Result<TableDefinition> {
        serde_json::from_str(&self.definition).map_err(|error| {
            Error::Corrupt(format!(
                "definition of {} in sync {} attempt {}: {error}",
                self.table_name(),
                self.request_id,
                self.attempt
            ))
        })
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.definition.len());
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.request_id);
        wire::write_long(&mut out, i64::from(self.attempt));
        wire::write_str(&mut out, &self.schema);
        wire::write_str(&mut out, &self.table);
        wire::write_uuid(&mut out, self.generation);
        wire::write_u64(&mut out, self.lsn.0);
        wire::write_long(&mut out, self.changes_offset);
        wire::write_array(&mut out, &self.columns, |out, name| {
            wire::write_str(out, name);
        });
        wire::write_str(&mut out, &self.definition);
        wire::write_array(&mut out, &self.start_offsets, |out, offset| {
            wire::write_long(out, *offset);
        });
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<TableSyncStarted> {
        let mut reader = Reader::new(datum);
        let record = TableSyncStarted {
            request_id: reader.uuid()?,
            attempt: reader.int()?,
            schema: reader.str()?.to_owned(),
            table: reader.str()?.to_owned(),
            generation: reader.uuid()?,
            lsn: Lsn(reader.u64()?),
            changes_offset: reader.long()?,
            columns: reader.list(|item| item.str().map(str::to_owned))?,
            definition: reader.str()?.to_owned(),
            start_offsets: reader.list(Reader::long)?,
        };
        reader.end()?;
        Ok(record)
    }
}

/// One part of a chunk of rows, `data` being whole lines of COPY text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotChunk<'a> {
    /// The sync asked for.
    pub request_id: Uuid,
    /// Run of the request.
    pub attempt: i32,
    /// Number of the chunk, from 0.
    pub chunk: i32,
    /// Number of the part in the chunk, from 0.
    pub part: i32,
    /// Whether this is the chunk's last part.
    pub last: bool,
    /// Rows in this part.
    pub rows: i64,
    /// Rows in the whole chunk, on the last part; else 0.
    pub chunk_rows: i64,
    /// Columns in order, on part 0; else empty.
    pub columns: Vec<&'a str>,
    /// COPY text.
    pub data: &'a [u8],
}

impl<'a> SnapshotChunk<'a> {
    /// Appends the framed record; `data` is copied once.
    pub fn encode_into(&self, out: &mut Vec<u8>, schema_id: u32) {
        // Frame, UUID, numbers and the length of `data` stay below 128 bytes.
        let names: usize = self.columns.iter().map(|name| name.len() + 5).sum();
        out.reserve(128 + names + self.data.len());
        self.encode_header(out, schema_id, self.data.len());
        out.extend_from_slice(self.data);
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out, schema_id);
        out
    }

    /// Appends everything up to `data`; the caller must append exactly `data_len`
    /// bytes of COPY text (the field `data` is ignored).
    pub fn encode_header(&self, out: &mut Vec<u8>, schema_id: u32, data_len: usize) {
        wire::write_frame(out, schema_id);
        wire::write_uuid(out, self.request_id);
        wire::write_long(out, i64::from(self.attempt));
        wire::write_long(out, i64::from(self.chunk));
        wire::write_long(out, i64::from(self.part));
        wire::write_bool(out, self.last);
        wire::write_long(out, self.rows);
        wire::write_long(out, self.chunk_rows);
        wire::write_array(out, &self.columns, |out, name| wire::write_str(out, name));
        wire::write_long(out, data_len as i64);
    }

    /// Reads the datum after the frame, borrowing from it.
    pub fn decode(datum: &'a [u8]) -> Result<SnapshotChunk<'a>> {
        let mut reader = Reader::new(datum);
        let record = SnapshotChunk {
            request_id: reader.uuid()?,
            attempt: reader.int()?,
            chunk: reader.int()?,
            part: reader.int()?,
            last: reader.bool()?,
            rows: reader.long()?,
            chunk_rows: reader.long()?,
            columns: reader.list(Reader::str)?,
            data: reader.bytes()?,
        };
        reader.end()?;
        Ok(record)
    }
}

/// All chunks of a sync are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSyncFinished {
    /// The sync asked for.
    pub request_id: Uuid,
    /// Run of the request.
    pub attempt: i32,
    /// Schema at the source.
    pub schema: String,
    /// Table at the source.
    pub table: String,
    /// Number of chunks.
    pub chunks: i32,
    /// Number of rows.
    pub rows: i64,
    /// End of the change topic when capture had passed L.
    pub live_offset: i64,
    /// Commit LSN of the last event published then.
    pub live_commit_lsn: Lsn,
    /// Number of that event in its transaction.
    pub live_seq: u64,
}

impl TableSyncFinished {
    /// A table applied up to here is live.
    pub fn live_position(&self) -> Position {
        Position {
            commit_lsn: self.live_commit_lsn,
            seq: self.live_seq,
        }
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.request_id);
        wire::write_long(&mut out, i64::from(self.attempt));
        wire::write_str(&mut out, &self.schema);
        wire::write_str(&mut out, &self.table);
        wire::write_long(&mut out, i64::from(self.chunks));
        wire::write_long(&mut out, self.rows);
        wire::write_long(&mut out, self.live_offset);
        wire::write_u64(&mut out, self.live_commit_lsn.0);
        wire::write_u64(&mut out, self.live_seq);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<TableSyncFinished> {
        let mut reader = Reader::new(datum);
        let record = TableSyncFinished {
            request_id: reader.uuid()?,
            attempt: reader.int()?,
            schema: reader.str()?.to_owned(),
            table: reader.str()?.to_owned(),
            chunks: reader.int()?,
            rows: reader.long()?,
            live_offset: reader.long()?,
            live_commit_lsn: Lsn(reader.u64()?),
            live_seq: reader.u64()?,
        };
        reader.end()?;
        Ok(record)
    }
}
