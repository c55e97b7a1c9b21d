//! What is written in Avro, read back by its schemas with the `apache-avro` crate.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::wire::read_frame;

const IDS: AvroIds = AvroIds {
    key: Some(0x0102_0304),
    value: 7,
};

fn origin() -> Origin {
    Origin {
        name: "bunny.shop".into(),
        database: "sales".into(),
    }
}

fn table(columns: Vec<ColumnSchema>) -> TableSchema {
    TableSchema {
        mirror: "shop".to_owned(),
        schema: "public".to_owned(),
        table: "Order Items".to_owned(),
        columns,
    }
}

fn in_avro(columns: Vec<ColumnSchema>) -> (RowEncoder, AvroSchemas) {
    let schema = table(columns);
    let encoder = RowEncoder::avro(&schema, &origin(), IDS);
    (encoder, AvroSchemas::of(&schema, &origin()))
}

/// The datum behind a frame that has to carry `id`, as the other format would have it.
fn read(schema_json: &str, message: &[u8], id: u32) -> Json {
    let (found, mut datum) = read_frame(message).unwrap();
    assert_eq!(found, id);
    let schema = Schema::parse_str(schema_json).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let value = reader.read_value(&mut datum).unwrap();
    assert!(datum.is_empty(), "{} bytes left", datum.len());
    as_json(&value)
}

fn as_json(value: &Avro) -> Json {
    match value {
        Avro::Union(_, inner) => as_json(inner),
        Avro::Record(fields) => {
            let fields = fields.iter();
            fields
                .map(|(name, value)| (name.clone(), as_json(value)))
                .collect()
        }
        Avro::Null => Json::Null,
        Avro::Boolean(value) => json!(value),
        Avro::Int(value) => json!(value),
        Avro::Long(value) => json!(value),
        Avro::Float(value) if value.is_nan() => json!("NaN"),
        Avro::Float(value) => json!(value),
        Avro::Double(value) => json!(value),
        Avro::Bytes(bytes) => json!(STANDARD.encode(bytes)),
        Avro::String(text) => json!(text),
        other => panic!("{other:?} is not written"),
    }
}

fn event<'e>(
    op: Op,
    before: Option<&'e [Value<'e>]>,
    after: Option<&'e [Value<'e>]>,
) -> RowEvent<'e> {
    RowEvent {
        op,
        before,
        after,
        source: &SOURCE,
        read_us: 2_000_001,
    }
}

/// One column of each type, and a row of them.
const KINDS: [(u32, &str); 17] = [
    (16, "t"),
    (16, "f"),
    (17, "\\x00ff10"),
    (20, "-9223372036854775808"),
    (21, "-32768"),
    (23, "2147483647"),
    (25, "a \"text\" \u{fc}"),
    (114, "{}"),
    (142, "<x/>"),
    (700, "NaN"),
    (700, "1.5"),
    (701, "1e+300"),
    (1082, "infinity"),
    (1083, "00:00:01"),
    (1114, "1970-01-01 00:00:01"),
    (1184, "2026-01-24 10:30:00+00"),
    (2950, "01234567-89ab-cdef-0123-456789abcdef"),
];

/// Of any change, both formats say the same.
#[test]
fn avro_says_what_json_says() {
    let columns: Vec<ColumnSchema> = KINDS
        .iter()
        .enumerate()
        .map(|(at, (type_oid, _))| column(&format!("c{at}"), *type_oid, at % 5 == 0))
        .collect();
    let row = KINDS.map(|(_, printed)| text(printed));
    let mut other = row;
    other[6] = Value::Unchanged;
    other[9] = Value::Null;
    let (avro, schemas) = in_avro(columns.clone());
    let json = encoder(columns);
    for (op, before, after) in [
        (Op::Create, None, Some(&row[..])),
        (Op::Update, Some(&row[..]), Some(&other[..])),
        (Op::Delete, Some(&row[..]), None),
        (Op::Truncate, None, None),
    ] {
        let mut message = Vec::new();
        avro.value(&mut message, &event(op, before, after)).unwrap();
        let found = read(&schemas.value, &message, IDS.value);
        assert_eq!(found, value(&json, op, before, after)["payload"]);
    }
    let (mut message, mut in_json) = (Vec::new(), Vec::new());
    avro.key(&mut message, &row).unwrap();
    json.key(&mut in_json, &row).unwrap();
    let in_json: Json = serde_json::from_slice(&in_json).unwrap();
    let key = read(schemas.key.as_ref().unwrap(), &message, 0x0102_0304);
    assert_eq!(key, in_json["payload"]);
}

/// Word for word what Confluent's converter makes of Debezium's schema.
#[test]
fn schemas_are_those_of_the_converter() {
    let (_, schemas) = in_avro(vec![column("id", 21, true), column("at", 1114, false)]);
    let key: Json = serde_json::from_str(&schemas.key.unwrap()).unwrap();
    assert_eq!(
        key,
        json!({
            "type": "record", "name": "Key", "namespace": "bunny.shop.public.Order_x20Items",
            "fields": [{"name": "id", "type": {"type": "int", "connect.type": "int16"}}],
            "connect.name": "bunny.shop.public.Order_x20Items.Key",
        })
    );
    let value: Json = serde_json::from_str(&schemas.value).unwrap();
    let row = json!({
        "type": "record", "name": "Value", "namespace": "bunny.shop.public.Order_x20Items",
        "fields": [
            {"name": "id", "type": ["null", {"type": "int", "connect.type": "int16"}], "default": null},
            {
                "name": "at", "default": null, "type": ["null", {
                    "type": "long", "connect.version": 1,
                    "connect.name": "io.debezium.time.MicroTimestamp",
                }],
            },
        ],
        "connect.name": "bunny.shop.public.Order_x20Items.Value",
    });
    assert_eq!(
        value["fields"][0],
        json!({"name": "before", "type": ["null", row], "default": null})
    );
    assert_eq!(
        value["fields"][1],
        json!({"name": "after", "type": ["null", "bunny.shop.public.Order_x20Items.Value"], "default": null})
    );
    let source = &value["fields"][2]["type"];
    assert_eq!(source["namespace"], "io.debezium.connector.postgresql");
    assert_eq!(
        source["fields"][4],
        json!({
            "name": "snapshot", "default": "false", "type": [{
                "type": "string", "connect.version": 1,
                "connect.parameters": {
                    "allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental",
                },
                "connect.default": "false", "connect.name": "io.debezium.data.Enum",
            }, "null"],
        })
    );
    assert_eq!(value["connect.version"], 2);
    assert_eq!(
        value["connect.name"],
        "bunny.shop.public.Order_x20Items.Envelope"
    );
}

#[test]
fn names_are_escaped_and_stay_different() {
    let columns = ["a b", "a-b", "a_b", "2"].map(|name| column(name, 23, true));
    let (encoder, schemas) = in_avro(columns.to_vec());
    let row = ["1", "2", "3", "4"].map(text);
    let mut message = Vec::new();
    encoder.key(&mut message, &row).unwrap();
    let key = read(schemas.key.as_ref().unwrap(), &message, 0x0102_0304);
    assert_eq!(key, json!({"a_x20b": 1, "a_x2Db": 2, "a_b": 3, "_x32": 4}));
    // A header is no Avro, and speaks of the key's fields.
    let mut header = Vec::new();
    encoder.key_header(&mut header, &row).unwrap();
    assert_eq!(serde_json::from_slice::<Json>(&header).unwrap(), key);
}

/// What ids are given by: the same text for the same columns, another one for others.
#[test]
fn another_column_is_another_schema_and_the_former_ones_come_back() {
    let narrow = vec![column("id", 23, true)];
    let wide = vec![column("id", 23, true), column("note", 25, false)];
    let of = |columns: &Vec<ColumnSchema>| AvroSchemas::of(&table(columns.clone()), &origin());
    assert_ne!(of(&narrow).value, of(&wide).value);
    assert_eq!(of(&narrow).key, of(&wide).key);
    let mut again = narrow.clone();
    again[0].attnum = 3;
    assert_eq!(of(&narrow), of(&again));
}

#[test]
fn a_key_is_there_as_a_whole_or_not_at_all() {
    let (encoder, schemas) = in_avro(vec![column("c", 25, false)]);
    assert_eq!(schemas.key, None);
    let mut out = Vec::new();
    encoder.key(&mut out, &[text("x")]).unwrap();
    assert!(out.is_empty());

    let (encoder, _) = in_avro(vec![column("id", 23, true)]);
    encoder.key(&mut out, &[Value::Null]).unwrap();
    assert!(out.is_empty(), "a row that is older than the key");
}
