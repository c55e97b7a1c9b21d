//! Reads back what has been published: where capture stands, from the topics.

use std::collections::HashMap;

use uuid::Uuid;

use crate::control::{
    GenerationStarted, PositionRecord, SchemaKind, SyncRecord, TableGap, TableRecord, WishRecord,
};
use crate::envelope::{Decoder, Source};
use crate::kafka::KafkaConfig;
use crate::registry::{LOST_PATIENCE, Registry};
use crate::tail::{Record, Tail, blocking};
use crate::topics::Topics;
use crate::{Error, Position, Result, wire};

/// What the position topic of a mirror holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    /// Last committed position record.
    pub position: Option<PositionRecord>,
    /// Table syncs by request.
    pub syncs: HashMap<Uuid, SyncRecord>,
    /// What is known of tables at the source, by [`TableRecord::key_of`].
    pub tables: HashMap<String, TableRecord>,
    /// The last command that decided what is copied and that capture has begun to act on.
    pub wish: Option<Uuid>,
}

/// The last committed event of a change topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEvent {
    /// Offset in the change topic.
    pub offset: i64,
    /// Generation of the event.
    pub generation: Uuid,
    /// Its place; `None` for `GenerationStarted`.
    pub position: Option<Position>,
    /// Its commit time at the source, microseconds since the Unix epoch; 0 for
    /// `GenerationStarted`.
    pub commit_ts_us: i64,
}

impl Positions {
    /// Applies one record of the topic; a later one of the same key wins and a
    /// null value removes.
    fn apply(&mut self, topic: &str, record: &Record<'_>) -> Result<()> {
        let key = record.key.unwrap_or_default();
        let datum = match record.value {
            Some(value) => Some(wire::read_frame(value)?.1),
            None => None,
        };
        if key == PositionRecord::KEY {
            self.position = datum.map(PositionRecord::decode).transpose()?;
            return Ok(());
        }
        if key == WishRecord::KEY {
            let wish = datum.map(WishRecord::decode).transpose()?;
            self.wish = wish.map(|wish| wish.command_id);
            return Ok(());
        }
        let key_text = std::str::from_utf8(key).unwrap_or_default();
        if key_text.starts_with(TableRecord::KEY_PREFIX) {
            match datum {
                Some(datum) => {
                    self.tables
                        .insert(key_text.to_owned(), TableRecord::decode(datum)?);
                }
                None => {
                    self.tables.remove(key_text);
                }
            }
            return Ok(());
        }
        let request_id = key_text
            .strip_prefix(SyncRecord::KEY_PREFIX)
            .and_then(|id| Uuid::try_parse(id).ok());
        let Some(request_id) = request_id else {
            return Err(Error::Corrupt(format!(
                "{topic} holds a record with the unknown key {:?} at offset {}",
                String::from_utf8_lossy(key),
                record.offset
            )));
        };
        match datum {
            Some(datum) => {
                self.syncs.insert(request_id, SyncRecord::decode(datum)?);
            }
            None => {
                self.syncs.remove(&request_id);
            }
        }
        Ok(())
    }
}

/// Reads the whole position topic, committed records only.
///
/// A transaction still open hides what comes after it: whoever must know the very
/// last record fences the writer first (`init_transactions`).
pub async fn read_positions(kafka: &KafkaConfig, topics: &Topics, slug: &str) -> Result<Positions> {
    let kafka = kafka.clone();
    let topic = topics.position(slug);
    blocking(move || {
        let tail = Tail::open(&kafka, &topic, 0)?;
        let (low, _) = tail.watermarks()?;
        let mut positions = Positions::default();
        tail.read(low, |record| positions.apply(&topic, &record))?;
        Ok(positions)
    })
    .await
}

/// The last committed position record.
pub async fn last_position(
    kafka: &KafkaConfig,
    topics: &Topics,
    slug: &str,
) -> Result<Option<PositionRecord>> {
    Ok(read_positions(kafka, topics, slug).await?.position)
}

/// Offsets looked at in the first step back; each further step doubles.
const FIRST_STEP: i64 = 64;

/// The last committed event of the change topic, found by stepping back from its
/// end over control records and aborted messages. `None` when there is none.
///
/// # Errors
/// [`Error::IdLost`] when the schemas topic does not have the id that it carries, or has it for
/// something else.
pub async fn last_change(
    kafka: &KafkaConfig,
    registry: &Registry,
    topics: &Topics,
    slug: &str,
) -> Result<Option<LastEvent>> {
    let kafka = kafka.clone();
    let topic = topics.changes(slug);
    let found = blocking(move || last_message(&Tail::open(&kafka, &topic, 0)?)).await?;
    let Some((offset, message)) = found else {
        return Ok(None);
    };
    let (schema_id, datum) = wire::read_frame(&message)?;
    let carrier = format!("the record at offset {offset} of {}", topics.changes(slug));
    let schema = registry
        .schema_of(schema_id, &carrier, LOST_PATIENCE)
        .await?;
    let (generation, position, commit_ts_us) =
        place(&schema, datum).map_err(|error| error.not_of_schema(schema_id, &carrier))?;
    Ok(Some(LastEvent {
        offset,
        generation,
        position,
        commit_ts_us,
    }))
}

/// Offset and value of the partition's last committed message.
fn last_message(tail: &Tail) -> Result<Option<(i64, Vec<u8>)>> {
    let (low, end) = tail.watermarks()?;
    let mut step = FIRST_STEP;
    loop {
        let start = end.saturating_sub(step).max(low);
        let mut last: Option<(i64, Vec<u8>)> = None;
        tail.read(start, |record| {
            let value = record.value.unwrap_or_default();
            let buffer = match last.take() {
                Some((_, mut buffer)) => {
                    buffer.clear();
                    buffer.extend_from_slice(value);
                    buffer
                }
                None => value.to_vec(),
            };
            last = Some((record.offset, buffer));
            Ok(())
        })?;
        // Doubling ends at the first offset after few steps, whatever lies between.
        if last.is_some() || start == low {
            return Ok(last);
        }
        step = step.saturating_mul(2);
    }
}

/// Generation, place and commit time of an event of the change topic.
fn place(schema_json: &str, datum: &[u8]) -> Result<(Uuid, Option<Position>, i64)> {
    let of = |source: Source<'_>| {
        (
            source.generation,
            Some(source.position()),
            source.commit_ts_us,
        )
    };
    match SchemaKind::of(schema_json)? {
        SchemaKind::GenerationStarted => {
            Ok((GenerationStarted::decode(datum)?.generation, None, 0))
        }
        SchemaKind::TableGap => Ok(of(TableGap::decode(datum)?.source)),
        SchemaKind::Envelope => {
            let decoder = Decoder::new(schema_json)?;
            Ok(of(decoder.decode(datum)?.source))
        }
        other => Err(Error::Corrupt(format!(
            "the change topic ends in a record of kind {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::{Lsn, TableName};

    use super::*;
    use crate::control::SyncState;

    fn apply(positions: &mut Positions, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let record = Record {
            offset: 1,
            timestamp_ms: None,
            key: Some(key),
            value,
        };
        positions.apply("bunny.m.position", &record)
    }

    #[test]
    fn later_records_win_and_null_removes() {
        let mut positions = Positions::default();
        let mut record = PositionRecord {
            generation: Uuid::from_u128(1),
            system_id: "7".to_owned(),
            timeline: 1,
            commit_lsn: Lsn(1),
            seq: 0,
            confirm_lsn: Lsn(1),
        };
        apply(&mut positions, PositionRecord::KEY, Some(&record.encode(1))).unwrap();
        record.confirm_lsn = Lsn(2);
        apply(&mut positions, PositionRecord::KEY, Some(&record.encode(1))).unwrap();
        assert_eq!(positions.position, Some(record));

        let mut sync = SyncRecord {
            request_id: Uuid::from_u128(2),
            attempt: 1,
            schema: "public".to_owned(),
            table: "users".to_owned(),
            state: SyncState::Started,
            lsn: Lsn(5),
            start_offsets: vec![3, 0],
            generation: Uuid::from_u128(1),
            changes_offset: 4,
            taken_at_us: 5,
            rows: 6,
            bytes: 7,
        };
        apply(&mut positions, sync.key().as_bytes(), Some(&sync.encode(2))).unwrap();
        sync.state = SyncState::Finished;
        apply(&mut positions, sync.key().as_bytes(), Some(&sync.encode(2))).unwrap();
        assert_eq!(positions.syncs.get(&sync.request_id), Some(&sync));
        apply(&mut positions, sync.key().as_bytes(), None).unwrap();
        assert!(positions.syncs.is_empty());

        let mut table = TableRecord {
            generation: Uuid::from_u128(1),
            table: TableName::new("a.b", "c\"d"),
            facts: "{}".to_owned(),
        };
        let key = TableRecord::key_of(&table.table);
        apply(&mut positions, key.as_bytes(), Some(&table.encode(3))).unwrap();
        table.facts = "{\"oid\": 1}".to_owned();
        apply(&mut positions, key.as_bytes(), Some(&table.encode(3))).unwrap();
        assert_eq!(positions.tables.get(&key), Some(&table));
        apply(&mut positions, key.as_bytes(), None).unwrap();
        assert!(positions.tables.is_empty());

        for command_id in [Uuid::from_u128(3), Uuid::from_u128(4)] {
            let wish = WishRecord { command_id };
            apply(&mut positions, WishRecord::KEY, Some(&wish.encode(4))).unwrap();
            assert_eq!(positions.wish, Some(command_id));
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        let mut positions = Positions::default();
        assert!(apply(&mut positions, b"else", None).is_err());
        assert!(apply(&mut positions, b"sync/1", None).is_err());
        assert!(apply(&mut positions, b"position", Some(b"text")).is_err());
        assert!(apply(&mut positions, b"position", Some(&[0, 0, 0, 0, 1, 2])).is_err());
    }
}
