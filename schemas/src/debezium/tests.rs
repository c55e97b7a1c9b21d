mod avro;

use bunny_postgres::Lsn;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::*;
use crate::envelope::ColumnSchema;

fn column(name: &str, type_oid: u32, key: bool) -> ColumnSchema {
    ColumnSchema {
        name: name.to_owned(),
        attnum: 1,
        type_oid,
        type_name: "of a test".to_owned(),
        typmod: -1,
        not_null: key,
        key,
        facts: None,
    }
}

fn encoder(columns: Vec<ColumnSchema>) -> RowEncoder {
    let schema = TableSchema {
        mirror: "shop".to_owned(),
        schema: "public".to_owned(),
        table: "Order Items".to_owned(),
        columns,
    };
    let origin = Origin {
        name: "bunny.shop".into(),
        database: "sales".into(),
    };
    RowEncoder::json(&schema, &origin)
}

const SOURCE: Source<'static> = Source {
    generation: Uuid::nil(),
    mirror: "shop",
    schema: "public",
    table: "Order Items",
    xid: 7,
    lsn: Lsn(0x0200),
    commit_lsn: Lsn(0x0300),
    commit_ts_us: 1_500_000,
    seq: 4,
};

fn text(text: &str) -> Value<'_> {
    Value::Text(text.as_bytes())
}

fn value(encoder: &RowEncoder, op: Op, before: Option<&[Value]>, after: Option<&[Value]>) -> Json {
    let mut out = Vec::new();
    let event = RowEvent {
        op,
        before,
        after,
        source: &SOURCE,
        read_us: 2_000_001,
    };
    encoder.value(&mut out, &event).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn after(columns: Vec<ColumnSchema>, row: &[Value]) -> Json {
    value(&encoder(columns), Op::Create, None, Some(row))["payload"]["after"].take()
}

#[test]
fn a_record_has_the_envelope_of_debezium() {
    let encoder = encoder(vec![
        column("id", 23, true),
        column("the \"note\"", 25, false),
    ]);
    let row = [text("5"), text("a \"b\"\n")];
    let key = [text("5"), Value::Null];
    let record = value(&encoder, Op::Update, Some(&key), Some(&row));
    assert_eq!(
        record["payload"],
        json!({
            "before": {"id": 5, "the \"note\"": null},
            "after": {"id": 5, "the \"note\"": "a \"b\"\n"},
            "source": {
                "version": env!("CARGO_PKG_VERSION"), "connector": "postgresql", "name": "bunny.shop",
                "db": "sales", "snapshot": "false", "schema": "public", "table": "Order Items",
                "ts_ms": 1500, "ts_us": 1_500_000, "ts_ns": 1_500_000_000,
                "sequence": "[\"768\",\"4\"]", "txId": 7, "lsn": 512, "xmin": null,
            },
            "transaction": null,
            "op": "u", "ts_ms": 2000, "ts_us": 2_000_001, "ts_ns": 2_000_001_000,
        })
    );
    let mut out = Vec::new();
    encoder.key(&mut out, &row).unwrap();
    let key: Json = serde_json::from_slice(&out).unwrap();
    assert_eq!(key["payload"], json!({"id": 5}));
    assert_eq!(key["schema"]["name"], "bunny.shop.public.Order Items.Key");
}

/// Every field of a payload is in the schema beside it, and the other way round.
#[test]
fn schema_and_payload_agree() {
    fn check(schema: &Json, payload: &Json) {
        let Some(fields) = schema["fields"].as_array() else {
            return;
        };
        if payload.is_null() {
            assert_eq!(schema["optional"], true, "{schema}");
            return;
        }
        let mut names: Vec<&str> = fields
            .iter()
            .map(|field| field["field"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        let mut found: Vec<&str> = payload
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        found.sort_unstable();
        assert_eq!(found, names);
        for field in fields {
            check(field, &payload[field["field"].as_str().unwrap()]);
        }
    }
    let encoder = encoder(vec![column("id", 20, true), column("at", 1114, false)]);
    let row = [text("5"), text("2026-01-01 00:00:00")];
    for (op, before, after) in [
        (Op::Create, None, Some(&row[..])),
        (Op::Delete, Some(&row[..]), None),
        (Op::Truncate, None, None),
    ] {
        let record = value(&encoder, op, before, after);
        check(&record["schema"], &record["payload"]);
        assert!(
            record["schema"]["name"]
                .as_str()
                .unwrap()
                .ends_with(".Envelope")
        );
    }
}

#[test]
fn each_type_has_its_form() {
    let forms = [
        (16, "t", json!(true)),
        (21, "-32768", json!(-32768)),
        (23, "2147483647", json!(2_147_483_647)),
        (20, "-9223372036854775808", json!(i64::MIN)),
        (700, "1.5", json!(1.5)),
        (701, "1e+300", json!(1e300)),
        (701, "NaN", json!("NaN")),
        (700, "-Infinity", json!("-Infinity")),
        (17, "\\x00ff10", json!("AP8Q")),
        (17, "\\x", json!("")),
        (1082, "1970-01-11", json!(10)),
        (1083, "00:00:01", json!(1_000_000)),
        (1114, "1970-01-01 00:00:01", json!(1_000_000)),
        (
            1184,
            "2026-01-24 10:30:00+00",
            json!("2026-01-24T10:30:00Z"),
        ),
        (
            1700,
            "12345678901234567890.10",
            json!("12345678901234567890.10"),
        ),
        (1007, "{1,2}", json!("{1,2}")),
        (3802, "{\"a\": 1}", json!("{\"a\": 1}")),
    ];
    for (type_oid, printed, form) in forms {
        let row = [text(printed)];
        let found = after(vec![column("c", type_oid, false)], &row);
        assert_eq!(found["c"], form, "{type_oid} {printed}");
    }
    let zero = after(vec![column("c", 701, false)], &[text("-0")]);
    assert!(zero["c"].as_f64().unwrap().is_sign_negative());
}

#[test]
fn what_was_not_sent_is_said_to_be_unavailable() {
    let columns = vec![
        column("t", 25, false),
        column("b", 17, false),
        column("n", 1700, false),
    ];
    let found = after(columns, &[Value::Unchanged; 3]);
    assert_eq!(found["t"], UNAVAILABLE);
    assert_eq!(found["b"], "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==");
    assert_eq!(found["n"], UNAVAILABLE);
}

#[test]
fn what_is_no_value_of_its_type_is_refused_without_saying_it() {
    for (type_oid, printed) in [
        (21, "32768"),
        (1082, "secret"),
        (16, "secret"),
        (25, "\u{1}"),
    ] {
        let encoder = encoder(vec![column("c", type_oid, false)]);
        let row = [text(printed)];
        let event = RowEvent {
            op: Op::Create,
            before: None,
            after: Some(&row),
            source: &SOURCE,
            read_us: 0,
        };
        let result = encoder.value(&mut Vec::new(), &event);
        assert_eq!(result.is_err(), type_oid != 25);
        if let Err(error) = result {
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}

#[test]
fn a_table_without_a_key_has_keyless_records() {
    let encoder = encoder(vec![column("c", 25, false)]);
    let mut out = Vec::new();
    encoder.key(&mut out, &[text("x")]).unwrap();
    assert!(out.is_empty());
    assert!(encoder.key(&mut out, &[]).is_err());
}

#[test]
fn keys_are_compared_by_their_columns_alone() {
    let encoder = encoder(vec![column("id", 23, true), column("c", 25, false)]);
    let row = |id: &'static str, c: &'static str| [text(id), text(c)];
    assert!(encoder.is_same_key(&row("1", "a"), &row("1", "b")));
    assert!(!encoder.is_same_key(&row("1", "a"), &row("2", "a")));
}
