//! From a row message to the bytes of an event.

use bunny_postgres::TableName;
use bunny_postgres::pgoutput::{OldTuple, Tuple};
use bunny_schemas::control::TableGap;
use bunny_schemas::envelope::{self, BeforeKind, Op, Source, Value};
use bunny_schemas::kafka::EVENT_BYTES_MAX;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::publisher::Published;
use crate::slot::Place;
use crate::table_topics::Records;

/// Memory that an event leaves to the next ones is at most this much.
const RECYCLED_BYTES_MAX: usize = 1 << 20;

/// An event as it goes to Kafka.
#[derive(Default)]
pub(crate) struct Encoded {
    /// Empty for none: a key has a frame at least.
    key: Vec<u8>,
    value: Vec<u8>,
    /// What goes to table topics with it.
    records: Records,
}

impl Encoded {
    fn without_key(value: Vec<u8>) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        (!self.key.is_empty()).then_some(&self.key)
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.value
    }

    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    /// Marks the event as its transaction's last.
    pub(crate) fn set_last(&mut self) {
        envelope::set_last(&mut self.value);
    }
}

/// A row message: what was there before, as far as the source sent it, and what is now.
pub(crate) enum RowChange<'m, 'a> {
    Insert(&'m Tuple<'a>),
    Update(Option<&'m OldTuple<'a>>, &'m Tuple<'a>),
    Delete(&'m OldTuple<'a>),
}

/// Encodes the events of one mirror and generation.
pub(crate) struct EventEncoder {
    mirror: String,
    generation: Uuid,
    gap_schema_id: u32,
    /// The memory of the event sent last.
    spare: Encoded,
    /// The memory of the rows encoded last.
    before: Vec<Value<'static>>,
    after: Vec<Value<'static>>,
}

impl EventEncoder {
    pub(crate) fn new(mirror: String, generation: Uuid, gap_schema_id: u32) -> Self {
        Self {
            mirror,
            generation,
            gap_schema_id,
            spare: Encoded::default(),
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Takes back what has been sent, for its memory.
    pub(crate) fn recycle(&mut self, sent: Encoded) {
        let capacity = sent.value.capacity() + sent.key.capacity() + sent.records.capacity();
        if capacity <= RECYCLED_BYTES_MAX {
            self.spare = sent;
        }
    }

    pub(crate) fn row<'a>(
        &mut self,
        table: &Published,
        place: &Place,
        change: &RowChange<'_, 'a>,
    ) -> Result<Encoded> {
        let mut before: Vec<Value<'a>> = std::mem::take(&mut self.before);
        let mut after: Vec<Value<'a>> = std::mem::take(&mut self.after);
        let encoded = self.row_in(table, place, change, &mut before, &mut after);
        self.before = emptied(before);
        self.after = emptied(after);
        encoded
    }

    /// The same, in the memory given.
    fn row_in<'a>(
        &mut self,
        table: &Published,
        place: &Place,
        change: &RowChange<'_, 'a>,
        before: &mut Vec<Value<'a>>,
        after: &mut Vec<Value<'a>>,
    ) -> Result<Encoded> {
        let (op, old, new) = match *change {
            RowChange::Insert(new) => (Op::Create, None, Some(new)),
            RowChange::Update(old, new) => (Op::Update, old, Some(new)),
            RowChange::Delete(old) => (Op::Delete, Some(old), None),
        };
        let before_kind = match old {
            None => BeforeKind::None,
            Some(OldTuple::Key(tuple)) => {
                table.keep(tuple, before)?;
                BeforeKind::Key
            }
            Some(OldTuple::Row(tuple)) => {
                table.keep(tuple, before)?;
                BeforeKind::Row
            }
        };
        if let Some(tuple) = new {
            table.keep(tuple, after)?;
            take_over_unchanged(before, after);
        }
        let has_before = before_kind != BeforeKind::None;
        let mut event = std::mem::take(&mut self.spare);
        event.key.clear();
        event.value.clear();
        event.records.clear();
        let source = self.source(&table.table, place);
        table.encoder.change(
            &mut event.value,
            op,
            has_before.then_some((before_kind, before.as_slice())),
            new.is_some().then_some(after.as_slice()),
            &source,
        )?;
        if event.value.len() > EVENT_BYTES_MAX {
            // What cannot travel leaves a visible hole, and the stream goes on.
            let reason = format!(
                "a change of {} bytes is over the limit of {EVENT_BYTES_MAX} bytes an event may have; make that row smaller and sync the table again",
                event.value.len()
            );
            return Ok(self.gap(&table.table, place, &reason));
        }
        if table.has_key() {
            let values = if new.is_some() { &*after } else { &*before };
            table.encoder.key(&mut event.key, values)?;
        }
        if let Some(topic) = &table.topic {
            let before = has_before.then_some(before.as_slice());
            let after = new.is_some().then_some(after.as_slice());
            topic.row(&mut event.records, op, before, after, &source)?;
            if let Some(bytes) = event.records.over(EVENT_BYTES_MAX) {
                let reason = format!(
                    "a change takes {bytes} bytes in the table topic {topic}, over the limit of {EVENT_BYTES_MAX} bytes a record may have, and is missing there; make that row smaller and sync the table again"
                );
                return Ok(self.gap(&table.table, place, &reason));
            }
        }
        Ok(event)
    }

    /// One event for all of `tables`, in the schema of the first.
    pub(crate) fn truncate(
        &self,
        tables: &[&Published],
        cascade: bool,
        restart_identity: bool,
        place: &Place,
    ) -> Result<Encoded> {
        let first = tables
            .first()
            .ok_or_else(|| Error::transient("a truncate of no table"))?;
        let names: Vec<TableName> = tables.iter().map(|table| table.table.clone()).collect();
        let mut value = Vec::new();
        let source = self.source(&first.table, place);
        first
            .encoder
            .truncate(&mut value, &names, cascade, restart_identity, &source)?;
        let mut event = Encoded::without_key(value);
        for table in tables {
            if let Some(topic) = &table.topic {
                let source = self.source(&table.table, place);
                topic.truncate(&mut event.records, &source)?;
            }
        }
        Ok(event)
    }

    /// The visible hole of a table that must not go on.
    pub(crate) fn gap(&self, table: &TableName, place: &Place, reason: &str) -> Encoded {
        let gap = TableGap {
            reason,
            source: self.source(table, place),
            last: false,
        };
        Encoded::without_key(gap.encode(self.gap_schema_id))
    }

    fn source<'a>(&'a self, table: &'a TableName, place: &Place) -> Source<'a> {
        Source {
            generation: self.generation,
            mirror: &self.mirror,
            schema: &table.schema,
            table: &table.name,
            xid: place.xid,
            lsn: place.lsn,
            commit_lsn: place.commit_lsn,
            commit_ts_us: place.commit_ts_us,
            seq: place.seq,
        }
    }
}

/// An empty row with the memory of one that is done with: collecting values of the same size
/// takes over the allocation.
fn emptied(mut row: Vec<Value<'_>>) -> Vec<Value<'static>> {
    row.clear();
    row.into_iter().map(|_| Value::Null).collect()
}

/// A column that the source did not send again because the update left it alone, but whose
/// old value came along (identity FULL, or a TOASTed part of the key), is known after all.
fn take_over_unchanged<'a>(before: &[Value<'a>], after: &mut [Value<'a>]) {
    for (old, new) in before.iter().zip(after) {
        if matches!(new, Value::Unchanged)
            && let Value::Text(text) = old
        {
            *new = Value::Text(text);
        }
    }
}
