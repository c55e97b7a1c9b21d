//! The plan against the `apache-avro` crate and against itself.

mod events;

use std::io::Cursor;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use proptest::prelude::*;

use events::{Cell, Event, event, table};

use super::*;
use crate::control::SchemaKind;

fn read_avro(schema_json: &str, mut datum: &[u8]) -> Avro {
    let schema = Schema::parse_str(schema_json).unwrap();
    let value = GenericDatumReader::builder(&schema)
        .build()
        .unwrap()
        .read_value(&mut datum)
        .unwrap();
    assert!(datum.is_empty(), "{} bytes left", datum.len());
    value
}

fn field<'v>(record: &'v Avro, name: &str) -> &'v Avro {
    let Avro::Record(fields) = record else {
        panic!("{record:?} is no record")
    };
    &fields.iter().find(|(field, _)| field == name).unwrap().1
}

fn inner(union: &Avro) -> Option<&Avro> {
    match union {
        Avro::Union(0, value) if **value == Avro::Null => None,
        Avro::Union(1, value) => Some(value),
        other => panic!("{other:?} is no union with null"),
    }
}

/// Postgres text of a value as the oracle read it, compared by value.
fn same_value(column: &ColumnSchema, avro: &Avro, text: &[u8]) -> bool {
    let text = std::str::from_utf8(text).unwrap();
    match (column.wire_type(), avro) {
        (WireType::Bool, Avro::Boolean(value)) => (text == "t") == *value,
        (WireType::Int, Avro::Int(value)) => text.parse() == Ok(*value),
        (WireType::Long, Avro::Long(value)) => text.parse() == Ok(*value),
        (WireType::Float, Avro::Float(value)) => {
            let wanted: f32 = text.parse().unwrap();
            wanted.to_bits() == value.to_bits() || wanted.is_nan() && value.is_nan()
        }
        (WireType::Double, Avro::Double(value)) => {
            let wanted: f64 = text.parse().unwrap();
            wanted.to_bits() == value.to_bits() || wanted.is_nan() && value.is_nan()
        }
        (WireType::Bytes, Avro::Bytes(value)) => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            text == format!("\\x{hex}")
        }
        (WireType::Text, Avro::String(value)) => text == value,
        _ => false,
    }
}

fn check_avro_row(table: &TableSchema, avro: &Avro, cells: &[Cell]) {
    let Avro::Record(fields) = avro else {
        panic!("{avro:?} is no row")
    };
    assert_eq!(fields.len(), cells.len());
    for ((column, (name, value)), cell) in table.columns.iter().zip(fields).zip(cells) {
        assert_eq!(name, &escape(&column.name));
        match (inner(value), cell) {
            (None, Cell::Null | Cell::Unchanged) => {}
            (Some(value), Cell::Text(text)) => {
                assert!(
                    same_value(column, value, text),
                    "{column:?}: {value:?} {text:?}"
                );
            }
            (value, cell) => panic!("{column:?}: {value:?} {cell:?}"),
        }
    }
}

fn check_row(row: &Row<'_>, cells: &[Cell]) {
    assert_eq!(row.len(), cells.len());
    for (datum, cell) in row.iter().zip(cells) {
        match cell {
            Cell::Null | Cell::Unchanged => assert!(datum.is_null()),
            // What was printed by our own printers is given back byte for byte.
            Cell::Text(text) => assert_eq!(datum.postgres_text().unwrap(), text.as_slice()),
        }
    }
}

fn unchanged_names(event: &Event) -> Vec<String> {
    let cells = event.after.iter().flatten();
    let columns = event.table.columns.iter();
    columns
        .zip(cells)
        .filter(|(_, cell)| **cell == Cell::Unchanged)
        .map(|(column, _)| column.name.clone())
        .collect()
}

proptest! {
    #[test]
    fn avro_reads_what_was_encoded(event in event()) {
        let message = event.encode();
        let (id, datum) = wire::read_frame(&message).unwrap();
        prop_assert_eq!(id, 0x0A0B_0C0D);
        let value = read_avro(&event.table.value_avro_json(), datum);

        prop_assert_eq!(field(&value, "op"), &Avro::Enum(event.op as u32, event.op.symbol().to_owned()));
        let kind = event.before.as_ref().map_or(BeforeKind::None, |(kind, _)| *kind);
        let symbol = BeforeKind::SYMBOLS[kind as usize].to_owned();
        prop_assert_eq!(field(&value, "before_kind"), &Avro::Enum(kind as u32, symbol));
        match (inner(field(&value, "before")), &event.before) {
            (None, None) => {}
            (Some(row), Some((_, cells))) => check_avro_row(&event.table, row, cells),
            other => panic!("before: {other:?}"),
        }
        match (inner(field(&value, "after")), &event.after) {
            (None, None) => {}
            (Some(row), Some(cells)) => check_avro_row(&event.table, row, cells),
            other => panic!("after: {other:?}"),
        }
        let names = unchanged_names(&event).into_iter().map(Avro::String).collect();
        prop_assert_eq!(field(&value, "unchanged"), &Avro::Array(names));
        prop_assert_eq!(inner(field(&value, "truncate")), None);

        let source = field(&value, "source");
        let wanted = event.source();
        prop_assert_eq!(field(source, "generation"), &Avro::Uuid(wanted.generation));
        prop_assert_eq!(field(source, "mirror"), &Avro::String(wanted.mirror.to_owned()));
        prop_assert_eq!(field(source, "schema"), &Avro::String(wanted.schema.to_owned()));
        prop_assert_eq!(field(source, "table"), &Avro::String(wanted.table.to_owned()));
        prop_assert_eq!(field(source, "xid"), &Avro::Long(i64::from(wanted.xid)));
        prop_assert_eq!(field(source, "lsn"), &Avro::Long(wanted.lsn.0 as i64));
        prop_assert_eq!(field(source, "commit_lsn"), &Avro::Long(wanted.commit_lsn.0 as i64));
        prop_assert_eq!(field(source, "commit_ts_us"), &Avro::Long(wanted.commit_ts_us));
        prop_assert_eq!(field(source, "seq"), &Avro::Long(wanted.seq as i64));
        prop_assert_eq!(field(source, "last"), &Avro::Boolean(event.last));
    }

    #[test]
    fn decoder_reads_what_was_encoded(events in prop::collection::vec(event(), 1..4)) {
        let mut scratch = Scratch::default();
        for event in &events {
            let message = event.encode();
            let (_, datum) = wire::read_frame(&message).unwrap();
            let decoder = Decoder::new(&event.table.value_avro_json()).unwrap();
            prop_assert_eq!(decoder.schema(), &event.table);
            let change = decoder.decode(datum).unwrap();
            prop_assert_eq!(change.op, event.op);
            prop_assert_eq!(change.source, event.source());
            prop_assert_eq!(change.last, event.last);
            prop_assert_eq!(change.before.is_some(), event.before.is_some());
            if let (Some(row), Some((kind, cells))) = (&change.before, &event.before) {
                prop_assert_eq!(change.before_kind, *kind);
                check_row(row, cells);
            }
            prop_assert_eq!(change.after.is_some(), event.after.is_some());
            if let (Some(row), Some(cells)) = (&change.after, &event.after) {
                check_row(row, cells);
            }
            let names: Vec<String> = decoder
                .columns()
                .iter()
                .enumerate()
                .filter(|(index, _)| change.is_unchanged(*index))
                .map(|(_, column)| column.name.clone())
                .collect();
            prop_assert_eq!(names, unchanged_names(event));

            // Debug text, because NaN differs from itself.
            let again = decoder.decode_with(&mut scratch, datum).unwrap();
            prop_assert_eq!(format!("{again:?}"), format!("{change:?}"));
            scratch.recycle(again);
        }
    }

    #[test]
    fn keys_hold_the_key_columns(event in event()) {
        let cells: Vec<Cell> = event
            .after
            .iter()
            .chain(event.before.iter().map(|(_, row)| row))
            .next()
            .unwrap()
            .iter()
            .map(|cell| if *cell == Cell::Unchanged { Cell::Null } else { cell.clone() })
            .collect();
        let values: Vec<Value<'_>> = cells.iter().map(Cell::value).collect();
        let mut out = Vec::new();
        Encoder::new(&event.table, 1, 0x0102_0304).key(&mut out, &values).unwrap();
        if !event.table.has_key() {
            prop_assert!(out.is_empty());
            return Ok(());
        }
        let (id, datum) = wire::read_frame(&out).unwrap();
        prop_assert_eq!(id, 0x0102_0304);
        let value = read_avro(&event.table.key_avro_json(), datum);
        let key_table = TableSchema {
            columns: event.table.columns.iter().filter(|column| column.key).cloned().collect(),
            ..event.table.clone()
        };
        let key_cells: Vec<Cell> = event.table.columns.iter().zip(cells)
            .filter(|(column, _)| column.key)
            .map(|(_, cell)| cell)
            .collect();
        check_avro_row(&key_table, &value, &key_cells);
    }

    #[test]
    fn damaged_events_are_refused(event in event(), cut in any::<prop::sample::Index>(), flip in any::<(prop::sample::Index, u8)>()) {
        let message = event.encode();
        let (_, datum) = wire::read_frame(&message).unwrap();
        let decoder = Decoder::new(&event.table.value_avro_json()).unwrap();
        prop_assert!(decoder.decode(&datum[..cut.index(datum.len())]).is_err());
        let mut longer = datum.to_vec();
        longer.push(0);
        prop_assert!(decoder.decode(&longer).is_err());
        // Any other damage is answered, by a value or an error.
        let mut damaged = datum.to_vec();
        let at = flip.0.index(damaged.len());
        damaged[at] = flip.1;
        let _ = decoder.decode(&damaged);
    }

    #[test]
    fn schemas_are_deterministic_and_read_back(table in table()) {
        let json = table.value_avro_json();
        prop_assert_eq!(&json, &table.clone().value_avro_json());
        prop_assert_eq!(TableSchema::from_avro_json(&json).unwrap(), table.clone());
        prop_assert_eq!(SchemaKind::of(&json).unwrap(), SchemaKind::Envelope);
        prop_assert_eq!(SchemaKind::of(&table.key_avro_json()).unwrap(), SchemaKind::Key);
        let schema = Schema::parse_str(&json).unwrap();
        prop_assert_eq!(schema.name().unwrap().to_string(), table.value_subject());
        let key = Schema::parse_str(&table.key_avro_json()).unwrap();
        prop_assert_eq!(key.name().unwrap().to_string(), table.key_subject());
        // Another registry may write the document anew.
        let rewritten = serde_json::to_string(&schema).unwrap();
        prop_assert_eq!(TableSchema::from_avro_json(&rewritten).unwrap(), table);
    }

    #[test]
    fn any_text_as_a_schema_is_answered(text: String) {
        let _ = Decoder::new(&text);
        let _ = SchemaKind::of(&text);
    }
}

fn users() -> TableSchema {
    let column = |name: &str, attnum, type_oid, type_name: &str, key| ColumnSchema {
        name: name.to_owned(),
        attnum,
        type_oid,
        type_name: type_name.to_owned(),
        typmod: -1,
        not_null: key,
        key,
        facts: None,
    };
    TableSchema {
        mirror: "shop".to_owned(),
        schema: "public".to_owned(),
        table: "Users".to_owned(),
        columns: vec![
            column("id", 1, 20, "bigint", true),
            column("full name", 2, 25, "text", false),
            column("photo", 3, 17, "bytea", false),
        ],
    }
}

fn source() -> Source<'static> {
    Source {
        generation: Uuid::from_u128(1),
        mirror: "shop",
        schema: "public",
        table: "Users",
        xid: u32::MAX,
        lsn: Lsn(u64::MAX),
        commit_lsn: Lsn(0x1_0000_0000),
        commit_ts_us: -1,
        seq: 3,
    }
}

/// Ids that have changed their meaning give an event another table's schema.
#[test]
fn a_change_of_another_table_of_the_same_shape_is_refused() {
    let table = users();
    let encoder = Encoder::new(&table, 1, 2);
    let row = [Value::Text(b"1"), Value::Null, Value::Null];
    let decoded = |schema: &str, name: &str| {
        let source = Source {
            schema,
            table: name,
            ..source()
        };
        let mut event = Vec::new();
        encoder
            .change(&mut event, Op::Create, None, Some(&row), &source)
            .unwrap();
        let (_, datum) = wire::read_frame(&event).unwrap();
        let decoder = Decoder::new(&table.value_avro_json()).unwrap();
        decoder.decode(datum).map(|_| ())
    };
    assert!(decoded("public", "Users").is_ok());
    for (schema, name) in [("public", "Orders"), ("shop", "Users")] {
        let error = decoded(schema, name).unwrap_err();
        assert!(matches!(error, crate::Error::Malformed { .. }), "{error}");
        let said = error.not_of_schema(1, "the record at offset 7 of bunny.m.changes");
        assert!(!said.is_transient());
        let said = said.to_string();
        assert!(said.contains("offset 7 of bunny.m.changes"), "{said}");
        assert!(said.contains("resync every mirror"), "{said}");
    }
}

/// The text is part of the contract: a change of it gives every table new ids.
#[test]
fn schema_text_is_fixed() {
    assert_eq!(users().value_subject(), "shop.public.Users.Envelope");
    assert_eq!(
        users().key_avro_json(),
        concat!(
            r#"{"type":"record","name":"Key","namespace":"shop.public.Users","mirror":"shop","#,
            r#""source_schema":"public","source_table":"Users","fields":[{"name":"id","#,
            r#""type":["null","long"],"default":null,"column":"id","attnum":1,"pg_type":"bigint","#,
            r#""pg_type_oid":20,"pg_typmod":-1,"not_null":true,"key":true}]}"#
        )
    );
    let value = users().value_avro_json();
    assert!(value.starts_with(concat!(
        r#"{"type":"record","name":"Envelope","namespace":"shop.public.Users","mirror":"shop","#,
        r#""source_schema":"public","source_table":"Users","fields":[{"name":"op","#,
    )));
    assert!(value.contains(r#""name":"full_x20name""#));
    assert!(value.ends_with(r#"{"name":"last","type":"boolean"}]}}]}"#));
}

#[test]
fn truncates_round_trip() {
    let tables = [
        TableName {
            schema: "public".to_owned(),
            name: "Users".to_owned(),
        },
        TableName {
            schema: "o.dd".to_owned(),
            name: "é".to_owned(),
        },
    ];
    let mut out = Vec::new();
    Encoder::new(&users(), 1, 2)
        .truncate(&mut out, &tables, true, false, &source())
        .unwrap();
    set_last(&mut out);
    let (_, datum) = wire::read_frame(&out).unwrap();
    let change = Decoder::new(&users().value_avro_json())
        .unwrap()
        .decode(datum)
        .unwrap();
    let truncate = change.truncate.unwrap();
    assert_eq!(truncate.tables, tables);
    assert!(truncate.cascade && !truncate.restart_identity);
    assert_eq!(
        (change.op, change.last, change.source),
        (Op::Truncate, true, source())
    );

    let value = read_avro(&users().value_avro_json(), datum);
    let truncate = inner(field(&value, "truncate")).unwrap();
    let Avro::Array(tables) = field(truncate, "tables") else {
        panic!()
    };
    assert_eq!(
        field(&tables[1], "schema"),
        &Avro::String("o.dd".to_owned())
    );
    assert_eq!(field(truncate, "cascade"), &Avro::Boolean(true));
    assert!(
        Encoder::new(&users(), 1, 2)
            .truncate(&mut out, &[], true, false, &source())
            .is_err()
    );
}

#[test]
fn unsound_changes_leave_the_buffer_alone() {
    let encoder = Encoder::new(&users(), 1, 2);
    let good = [Value::Text(b"1"), Value::Text(b"Ann"), Value::Null];
    let unchanged = [Value::Text(b"1"), Value::Unchanged, Value::Null];
    let bad_int = [Value::Text(b"one"), Value::Null, Value::Null];
    let bad_utf8 = [Value::Text(b"1"), Value::Text(b"\xff"), Value::Null];
    let bad_bytea = [Value::Text(b"1"), Value::Null, Value::Text(b"\\xzz")];
    let key = Some((BeforeKind::Key, good.as_slice()));
    let mut out = b"kept".to_vec();
    for (op, before, after) in [
        (Op::Create, None, None),
        (Op::Create, key, Some(good.as_slice())),
        (Op::Update, None, None),
        (
            Op::Update,
            Some((BeforeKind::None, good.as_slice())),
            Some(good.as_slice()),
        ),
        (
            Op::Update,
            Some((BeforeKind::Row, unchanged.as_slice())),
            Some(good.as_slice()),
        ),
        (Op::Delete, None, None),
        (Op::Delete, key, Some(good.as_slice())),
        (Op::Truncate, None, None),
        (Op::Create, None, Some(&good[..2])),
        (Op::Create, None, Some(bad_int.as_slice())),
        (Op::Create, None, Some(bad_utf8.as_slice())),
        (Op::Create, None, Some(bad_bytea.as_slice())),
    ] {
        let error = encoder
            .change(&mut out, op, before, after, &source())
            .unwrap_err();
        assert!(!error.is_transient());
        assert!(
            !error.to_string().contains("one"),
            "values stay out of messages: {error}"
        );
        assert_eq!(out, b"kept");
    }
    assert!(
        encoder
            .key(&mut out, &[Value::Unchanged, Value::Null, Value::Null])
            .is_err()
    );
    assert!(encoder.key(&mut out, &good[..1]).is_err());
    assert_eq!(out, b"kept");
}

#[test]
fn scratch_keeps_the_buffers() {
    let encoder = Encoder::new(&users(), 1, 2);
    let decoder = Decoder::new(&users().value_avro_json()).unwrap();
    let row = [Value::Text(b"1"), Value::Unchanged, Value::Null];
    let mut out = Vec::new();
    encoder
        .change(&mut out, Op::Create, None, Some(&row), &source())
        .unwrap();
    let (_, datum) = wire::read_frame(&out).unwrap();
    let mut scratch = Scratch::default();
    let change = decoder.decode_with(&mut scratch, datum).unwrap();
    let buffer = change.after.as_ref().unwrap().as_ptr().addr();
    scratch.recycle(change);
    let change = decoder.decode_with(&mut scratch, datum).unwrap();
    assert_eq!(change.after.as_ref().unwrap().as_ptr().addr(), buffer);
}

#[test]
fn foreign_layouts_are_refused() {
    let json = users().value_avro_json();
    for (from, to) in [
        (r#""long""#, r#""int""#),
        (
            r#""symbols":["c","u","d","t"]"#,
            r#""symbols":["c","u","d"]"#,
        ),
        (r#""pg_type_oid":20"#, r#""pg_type_oid":23"#),
        (r#""source_table":"Users""#, r#""source_table":"Others""#),
        (r#""name":"seq""#, r#""name":"number""#),
    ] {
        assert!(json.contains(from), "{from}");
        assert!(Decoder::new(&json.replacen(from, to, 1)).is_err(), "{from}");
    }
    assert!(Decoder::new(r#"{"type":"record","name":"Envelope","fields":[]}"#).is_err());
    assert!(Decoder::new(r#""string""#).is_err());
    assert!(SchemaKind::of(r#"{"type":"record","name":"Else","fields":[]}"#).is_err());
}

#[test]
fn oracle_writes_the_same_bytes() {
    // The plan against the crate in the other direction, for one event.
    let encoder = Encoder::new(&users(), 1, 2);
    let row = [
        Value::Text(b"42"),
        Value::Text(b"Ann"),
        Value::Text(b"\\x00ff"),
    ];
    let mut out = Vec::new();
    encoder
        .change(&mut out, Op::Create, None, Some(&row), &source())
        .unwrap();
    let (_, datum) = wire::read_frame(&out).unwrap();
    let schema = Schema::parse_str(&users().value_avro_json()).unwrap();
    let value = read_avro(&users().value_avro_json(), datum);
    let mut written = Cursor::new(Vec::new());
    apache_avro::writer::datum::GenericDatumWriter::builder(&schema)
        .build()
        .unwrap()
        .write_value_ref(&mut written, &value)
        .unwrap();
    assert_eq!(written.into_inner(), datum);
}
