//! Records of the compacted position topic.

use bunny_postgres::{Lsn, TableName};
use uuid::Uuid;

use crate::wire::{self, Reader};
use crate::{Position, Result};

/// What a committed Kafka transaction of capture has published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionRecord {
    /// Generation in which the LSNs count.
    pub generation: Uuid,
    /// Source system identifier, as text.
    pub system_id: String,
    /// Source timeline.
    pub timeline: u32,
    /// Commit LSN of the last event published.
    pub commit_lsn: Lsn,
    /// Number of that event in its transaction.
    pub seq: u64,
    /// The slot may be confirmed up to here.
    pub confirm_lsn: Lsn,
}

impl PositionRecord {
    /// Key of the record in its topic (plain bytes, no frame).
    pub const KEY: &'static [u8] = b"position";

    /// The last event published.
    pub fn position(&self) -> Position {
        Position {
            commit_lsn: self.commit_lsn,
            seq: self.seq,
        }
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.generation);
        wire::write_str(&mut out, &self.system_id);
        wire::write_timeline(&mut out, self.timeline);
        wire::write_u64(&mut out, self.commit_lsn.0);
        wire::write_u64(&mut out, self.seq);
        wire::write_u64(&mut out, self.confirm_lsn.0);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<PositionRecord> {
        let mut reader = Reader::new(datum);
        let record = PositionRecord {
            generation: reader.uuid()?,
            system_id: reader.str()?.to_owned(),
            timeline: reader.timeline()?,
            commit_lsn: Lsn(reader.u64()?),
            seq: reader.u64()?,
            confirm_lsn: Lsn(reader.u64()?),
        };
        reader.end()?;
        Ok(record)
    }
}

/// State of a table sync's attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncState {
    /// Its snapshot is being read.
    Started,
    /// Its `TableSyncFinished` is written.
    Finished,
}

impl SyncState {
    const ALL: [SyncState; 2] = [SyncState::Started, SyncState::Finished];
}

/// How far a table sync has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRecord {
    /// The sync asked for.
    pub request_id: Uuid,
    /// Run of the request, from 1.
    pub attempt: i32,
    /// Schema at the source.
    pub schema: String,
    /// Table at the source.
    pub table: String,
    /// State of the attempt.
    pub state: SyncState,
    /// Consistent point of the attempt.
    pub lsn: Lsn,
    /// Per partition of the snapshot topic: all that the attempt writes stands at or after
    /// this offset. Empty if it is not known.
    pub start_offsets: Vec<i64>,
    /// In which `lsn` counts. Nil in records of earlier versions, whose syncs cannot be
    /// loaded again.
    pub generation: Uuid,
    /// Offset of the change topic from which all changes since `lsn` are found.
    pub changes_offset: i64,
    /// Time at the source when the snapshot had been taken, microseconds since the Unix
    /// epoch: every commit in it is as old or older.
    pub taken_at_us: i64,
    /// Rows of all chunks, once finished.
    pub rows: i64,
    /// Bytes of COPY text of all chunks, once finished.
    pub bytes: i64,
}

impl SyncRecord {
    /// What every key of a sync starts with.
    pub const KEY_PREFIX: &'static str = "sync/";

    /// Key of the record in its topic (plain UTF-8, no frame).
    pub fn key(&self) -> String {
        SyncRecord::key_of(self.request_id)
    }

    /// Key under which a request's record stands; a null value removes it.
    pub fn key_of(request_id: Uuid) -> String {
        format!("{}{request_id}", SyncRecord::KEY_PREFIX)
    }

    /// The table at the source.
    pub fn table_name(&self) -> TableName {
        TableName {
            schema: self.schema.clone(),
            name: self.table.clone(),
        }
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.request_id);
        wire::write_long(&mut out, i64::from(self.attempt));
        wire::write_str(&mut out, &self.schema);
        wire::write_str(&mut out, &self.table);
        wire::write_long(&mut out, self.state as i64);
        wire::write_u64(&mut out, self.lsn.0);
        wire::write_array(&mut out, &self.start_offsets, |out, offset| {
            wire::write_long(out, *offset);
        });
        wire::write_uuid(&mut out, self.generation);
        for number in [self.changes_offset, self.taken_at_us, self.rows, self.bytes] {
            wire::write_long(&mut out, number);
        }
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<SyncRecord> {
        let mut reader = Reader::new(datum);
        let mut record = SyncRecord {
            request_id: reader.uuid()?,
            attempt: reader.int()?,
            schema: reader.str()?.to_owned(),
            table: reader.str()?.to_owned(),
            state: SyncState::ALL[reader.branch(2, "a sync state")?],
            lsn: Lsn(reader.u64()?),
            // Records of earlier versions end here.
            start_offsets: match reader.end() {
                Ok(()) => Vec::new(),
                Err(_) => reader.list(Reader::long)?,
            },
            generation: Uuid::nil(),
            changes_offset: 0,
            taken_at_us: 0,
            rows: 0,
            bytes: 0,
        };
        // And those of later ones here.
        if reader.end().is_ok() {
            return Ok(record);
        }
        record.generation = reader.uuid()?;
        record.changes_offset = reader.long()?;
        record.taken_at_us = reader.long()?;
        record.rows = reader.long()?;
        record.bytes = reader.long()?;
        reader.end()?;
        Ok(record)
    }
}

/// What capture last knew of a mapped table at the source, to notice what changed while
/// nobody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRecord {
    /// Generation it belongs to.
    pub generation: Uuid,
    /// The table at the source.
    pub table: TableName,
    /// Capture's own matter, as JSON.
    pub facts: String,
}

impl TableRecord {
    /// What every key of a table starts with.
    pub const KEY_PREFIX: &'static str = "table/";

    /// Key under which a table's record stands (plain UTF-8, no frame); a null value
    /// removes it.
    pub fn key_of(table: &TableName) -> String {
        format!("{}{}", TableRecord::KEY_PREFIX, table.quoted())
    }

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.generation);
        wire::write_str(&mut out, &self.table.schema);
        wire::write_str(&mut out, &self.table.name);
        wire::write_str(&mut out, &self.facts);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<TableRecord> {
        let mut reader = Reader::new(datum);
        let record = TableRecord {
            generation: reader.uuid()?,
            table: TableName {
                schema: reader.str()?.to_owned(),
                name: reader.str()?.to_owned(),
            },
            facts: reader.str()?.to_owned(),
        };
        reader.end()?;
        Ok(record)
    }
}

/// The last command that decided what is copied, as capture began to act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WishRecord {
    /// The command's id in the catalog that asked for it.
    pub command_id: Uuid,
}

impl WishRecord {
    /// Key of the record in its topic (plain bytes, no frame).
    pub const KEY: &'static [u8] = b"wish";

    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.command_id);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<WishRecord> {
        let mut reader = Reader::new(datum);
        let command_id = reader.uuid()?;
        reader.end()?;
        Ok(WishRecord { command_id })
    }
}
