//! Fixed records of the change topic.

use bunny_postgres::Lsn;
use uuid::Uuid;

use crate::Result;
use crate::envelope::Source;
use crate::wire::{self, Reader};

/// An unbroken slot and topic history begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationStarted {
    /// Names the history.
    pub generation: Uuid,
    /// Mirror name.
    pub mirror: String,
    /// Source system identifier, as text.
    pub system_id: String,
    /// Source timeline.
    pub timeline: u32,
    /// Consistent point of the slot.
    pub start_lsn: Lsn,
}

impl GenerationStarted {
    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        wire::write_frame(&mut out, schema_id);
        wire::write_uuid(&mut out, self.generation);
        wire::write_str(&mut out, &self.mirror);
        wire::write_str(&mut out, &self.system_id);
        wire::write_timeline(&mut out, self.timeline);
        wire::write_u64(&mut out, self.start_lsn.0);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &[u8]) -> Result<GenerationStarted> {
        let mut reader = Reader::new(datum);
        let record = GenerationStarted {
            generation: reader.uuid()?,
            mirror: reader.str()?.to_owned(),
            system_id: reader.str()?.to_owned(),
            timeline: reader.timeline()?,
            start_lsn: Lsn(reader.u64()?),
        };
        reader.end()?;
        Ok(record)
    }
}

/// A change that could not be published stands here; its table needs a sync.
/// [`crate::envelope::set_last`] applies to it as to a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableGap<'a> {
    /// Why.
    pub reason: &'a str,
    /// The change that is missing.
    pub source: Source<'a>,
    /// Whether this is the transaction's last event; `encode` writes false.
    pub last: bool,
}

impl<'a> TableGap<'a> {
    /// The framed record.
    pub fn encode(&self, schema_id: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        wire::write_frame(&mut out, schema_id);
        wire::write_str(&mut out, self.reason);
        self.source.write(&mut out);
        out
    }

    /// Reads the datum after the frame.
    pub fn decode(datum: &'a [u8]) -> Result<TableGap<'a>> {
        let mut reader = Reader::new(datum);
        let reason = reader.str()?;
        let (source, last) = Source::read(&mut reader)?;
        reader.end()?;
        Ok(TableGap {
            reason,
            source,
            last,
        })
    }
}
