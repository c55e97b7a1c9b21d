//! The fixed records against their schemas.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use bunny_postgres::{Lsn, TableName};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::envelope::{Source, set_last};
use crate::{Error, wire};

/// Reads a framed record by its `.avsc` file.
fn read_avro(kind: SchemaKind, message: &[u8]) -> Vec<(String, Avro)> {
    let (id, mut datum) = wire::read_frame(message).unwrap();
    assert_eq!(id, 9);
    let schema = Schema::parse_str(&kind.avro_json().unwrap()).unwrap();
    let value = GenericDatumReader::builder(&schema)
        .build()
        .unwrap()
        .read_value(&mut datum)
        .unwrap();
    assert!(datum.is_empty());
    let Avro::Record(fields) = value else {
        panic!("{value:?} is no record")
    };
    fields
}

fn datum(message: &[u8]) -> &[u8] {
    wire::read_frame(message).unwrap().1
}

fn text(value: &str) -> Avro {
    Avro::String(value.to_owned())
}

fn long(value: u64) -> Avro {
    Avro::Long(value as i64)
}

fn values(fields: Vec<(String, Avro)>) -> Vec<Avro> {
    fields.into_iter().map(|(_, value)| value).collect()
}

/// Every cut of the datum, and a byte too many, is an error.
fn refuses_damage<T>(message: &[u8], decode: impl Fn(&[u8]) -> Result<T>) {
    let whole = datum(message);
    for end in 0..whole.len() {
        assert!(decode(&whole[..end]).is_err(), "cut at {end}");
    }
    let mut longer = whole.to_vec();
    longer.push(0);
    assert!(decode(&longer).is_err());
}

#[test]
fn each_schema_is_known_by_name_and_layout() {
    for kind in SchemaKind::CONTROL {
        let json = kind.avro_json().unwrap();
        assert_eq!(SchemaKind::of(&json).unwrap(), kind);
        let schema = Schema::parse_str(&json).unwrap();
        assert_eq!(schema.name().unwrap().to_string(), kind.subject().unwrap());
        let other = json
            .replacen("\"long\"", "\"int\"", 1)
            .replacen("\"string\"", "\"bytes\"", 1);
        assert!(SchemaKind::of(&other).is_err());
    }
    assert_eq!(SchemaKind::Envelope.subject(), None);
    assert_eq!(SchemaKind::Key.avro_json(), None);
}

/// What the change event says of its source and what the gap says is one record.
#[test]
fn gap_and_envelope_share_the_source_record() {
    let fields = |json: &Json| {
        json["type"]["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| (field["name"].clone(), field["type"].clone()))
            .collect::<Vec<_>>()
    };
    let gap: Json = serde_json::from_str(&SchemaKind::TableGap.avro_json().unwrap()).unwrap();
    let table = crate::envelope::TableSchema {
        mirror: "m".to_owned(),
        schema: "s".to_owned(),
        table: "t".to_owned(),
        columns: vec![],
    };
    let envelope: Json = serde_json::from_str(&table.value_avro_json()).unwrap();
    assert_eq!(fields(&gap["fields"][1]), fields(&envelope["fields"][6]));
}

proptest! {
    #[test]
    fn generation_started(generation: u128, mirror: String, system_id: String, timeline: u32, lsn: u64) {
        let record = GenerationStarted {
            generation: Uuid::from_u128(generation), mirror, system_id, timeline, start_lsn: Lsn(lsn),
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::GenerationStarted, &message)), vec![
            Avro::Uuid(record.generation), text(&record.mirror), text(&record.system_id),
            Avro::Int(record.timeline as i32), long(lsn),
        ]);
        prop_assert_eq!(GenerationStarted::decode(datum(&message)).unwrap(), record);
        refuses_damage(&message, GenerationStarted::decode);
    }

    #[test]
    fn table_gap(reason: String, generation: u128, schema: String, xid: u32, lsn: u64, seq: u64, last: bool) {
        let gap = TableGap {
            reason: &reason,
            source: Source {
                generation: Uuid::from_u128(generation), mirror: "m", schema: &schema, table: "t", xid,
                lsn: Lsn(lsn), commit_lsn: Lsn(seq), commit_ts_us: 5, seq,
            },
            last,
        };
        let mut message = gap.encode(9);
        if last {
            set_last(&mut message);
        }
        let fields = values(read_avro(SchemaKind::TableGap, &message));
        prop_assert_eq!(&fields[0], &text(&reason));
        let Avro::Record(source) = &fields[1] else { panic!() };
        prop_assert_eq!(&source[9], &("last".to_owned(), Avro::Boolean(last)));
        prop_assert_eq!(TableGap::decode(datum(&message)).unwrap(), gap);
        refuses_damage(&message, |datum| TableGap::decode(datum).map(|_| ()));
    }

    #[test]
    fn table_sync_started(
        request: u128, attempt: i32, schema: String, generation: u128, lsn: u64, offset: i64,
        columns: Vec<String>, definition: String, start_offsets: Vec<i64>,
    ) {
        let record = TableSyncStarted {
            request_id: Uuid::from_u128(request), attempt, schema, table: "t".to_owned(),
            generation: Uuid::from_u128(generation), lsn: Lsn(lsn), changes_offset: offset,
            columns, definition, start_offsets,
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::TableSyncStarted, &message)), vec![
            Avro::Uuid(record.request_id), Avro::Int(attempt), text(&record.schema), text("t"),
            Avro::Uuid(record.generation), long(lsn), Avro::Long(offset),
            Avro::Array(record.columns.iter().map(|name| text(name)).collect()),
            text(&record.definition),
            Avro::Array(record.start_offsets.iter().map(|offset| Avro::Long(*offset)).collect()),
        ]);
        prop_assert_eq!(TableSyncStarted::decode(datum(&message)).unwrap(), record);
        refuses_damage(&message, TableSyncStarted::decode);
    }

    #[test]
    fn snapshot_chunk(
        request: u128, attempt: i32, chunk: i32, part: i32, last: bool, rows: i64, chunk_rows: i64,
        columns: Vec<String>, data: Vec<u8>,
    ) {
        let record = SnapshotChunk {
            request_id: Uuid::from_u128(request), attempt, chunk, part, last, rows, chunk_rows,
            columns: columns.iter().map(String::as_str).collect(), data: &data,
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::SnapshotChunk, &message)), vec![
            Avro::Uuid(record.request_id), Avro::Int(attempt), Avro::Int(chunk), Avro::Int(part),
            Avro::Boolean(last), Avro::Long(rows), Avro::Long(chunk_rows),
            Avro::Array(columns.iter().map(|name| text(name)).collect()), Avro::Bytes(data.clone()),
        ]);
        let decoded = SnapshotChunk::decode(datum(&message)).unwrap();
        prop_assert_eq!(&decoded, &record);
        // Borrowed, not copied.
        prop_assert!(message.as_ptr_range().contains(&decoded.data.as_ptr()) || data.is_empty());
        let mut by_header = Vec::new();
        record.encode_header(&mut by_header, 9, data.len());
        by_header.extend_from_slice(&data);
        prop_assert_eq!(&by_header, &message);
        refuses_damage(&message, |datum| SnapshotChunk::decode(datum).map(|_| ()));
    }

    #[test]
    fn table_sync_finished(request: u128, attempt: i32, table: String, chunks: i32, rows: i64, offset: i64, lsn: u64, seq: u64) {
        let record = TableSyncFinished {
            request_id: Uuid::from_u128(request), attempt, schema: "s".to_owned(), table, chunks, rows,
            live_offset: offset, live_commit_lsn: Lsn(lsn), live_seq: seq,
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::TableSyncFinished, &message)), vec![
            Avro::Uuid(record.request_id), Avro::Int(attempt), text("s"), text(&record.table),
            Avro::Int(chunks), Avro::Long(rows), Avro::Long(offset), long(lsn), long(seq),
        ]);
        prop_assert_eq!(TableSyncFinished::decode(datum(&message)).unwrap(), record);
        refuses_damage(&message, TableSyncFinished::decode);
    }

    #[test]
    fn position(generation: u128, system_id: String, timeline: u32, commit: u64, seq: u64, confirm: u64) {
        let record = PositionRecord {
            generation: Uuid::from_u128(generation), system_id, timeline,
            commit_lsn: Lsn(commit), seq, confirm_lsn: Lsn(confirm),
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::Position, &message)), vec![
            Avro::Uuid(record.generation), text(&record.system_id), Avro::Int(timeline as i32),
            long(commit), long(seq), long(confirm),
        ]);
        prop_assert_eq!(PositionRecord::decode(datum(&message)).unwrap(), record);
        refuses_damage(&message, PositionRecord::decode);
    }

    #[test]
    fn sync(
        request: u128, attempt: i32, schema: String, table: String, finished: bool, lsn: u64,
        start_offsets: Vec<i64>, generation: u128, numbers: [i64; 4],
    ) {
        let state = if finished { SyncState::Finished } else { SyncState::Started };
        let record = SyncRecord {
            request_id: Uuid::from_u128(request), attempt, schema, table, state, lsn: Lsn(lsn), start_offsets,
            generation: Uuid::from_u128(generation), changes_offset: numbers[0], taken_at_us: numbers[1],
            rows: numbers[2], bytes: numbers[3],
        };
        let message = record.encode(9);
        let symbol = if finished { "finished" } else { "started" };
        prop_assert_eq!(values(read_avro(SchemaKind::Sync, &message)), vec![
            Avro::Uuid(record.request_id), Avro::Int(attempt), text(&record.schema), text(&record.table),
            Avro::Enum(u32::from(finished), symbol.to_owned()), long(lsn),
            Avro::Array(record.start_offsets.iter().map(|offset| Avro::Long(*offset)).collect()),
            Avro::Uuid(record.generation), Avro::Long(numbers[0]), Avro::Long(numbers[1]),
            Avro::Long(numbers[2]), Avro::Long(numbers[3]),
        ]);
        prop_assert_eq!(record.key(), format!("sync/{}", record.request_id));
        prop_assert_eq!(SyncRecord::decode(datum(&message)).unwrap(), record.clone());
        // Two cuts are no damage: records of earlier versions end before the offsets, or
        // after them.
        let without_point = |start_offsets: Vec<i64>| SyncRecord {
            start_offsets, generation: Uuid::nil(), changes_offset: 0, taken_at_us: 0, rows: 0, bytes: 0,
            ..record.clone()
        };
        // The point's own bytes: a UUID as text with its length, and four numbers.
        let point = |record: &SyncRecord| {
            let mut bytes = Vec::new();
            wire::write_uuid(&mut bytes, record.generation);
            for number in numbers { wire::write_long(&mut bytes, number); }
            bytes.len()
        };
        let second = datum(&message).len() - point(&record);
        prop_assert_eq!(
            SyncRecord::decode(&datum(&message)[..second]).unwrap(), without_point(record.start_offsets.clone()));
        let first = {
            let empty = SyncRecord { start_offsets: Vec::new(), ..record.clone() };
            datum(&empty.encode(9)).len() - point(&record) - 1
        };
        prop_assert_eq!(SyncRecord::decode(&datum(&message)[..first]).unwrap(), without_point(Vec::new()));
        refuses_damage(&message, |bytes| match bytes.len() == first || bytes.len() == second {
            true => Err(Error::Corrupt("an earlier version's".to_owned())),
            false => SyncRecord::decode(bytes),
        });
    }

    #[test]
    fn table(generation: u128, schema: String, table: String, facts: String) {
        let record = TableRecord {
            generation: Uuid::from_u128(generation), table: TableName::new(schema, table), facts,
        };
        let message = record.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::Table, &message)), vec![
            Avro::Uuid(record.generation), text(&record.table.schema), text(&record.table.name), text(&record.facts),
        ]);
        prop_assert_eq!(TableRecord::decode(datum(&message)).unwrap(), record);
        refuses_damage(&message, TableRecord::decode);

        let wish = WishRecord { command_id: Uuid::from_u128(generation) };
        let message = wish.encode(9);
        prop_assert_eq!(values(read_avro(SchemaKind::Wish, &message)), vec![Avro::Uuid(wish.command_id)]);
        prop_assert_eq!(WishRecord::decode(datum(&message)).unwrap(), wish);
        refuses_damage(&message, WishRecord::decode);
    }

    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>) {
        let _ = GenerationStarted::decode(&bytes);
        let _ = TableGap::decode(&bytes);
        let _ = TableSyncStarted::decode(&bytes);
        let _ = SnapshotChunk::decode(&bytes);
        let _ = TableSyncFinished::decode(&bytes);
        let _ = PositionRecord::decode(&bytes);
        let _ = SyncRecord::decode(&bytes);
        let _ = TableRecord::decode(&bytes);
    }
}
