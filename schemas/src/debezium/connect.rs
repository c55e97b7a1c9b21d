//! The schemas of records in Kafka Connect's terms, as `JsonConverter` writes them: the one
//! description of keys and envelopes that all formats are made from.

use serde_json::{Value as Json, json};

use super::fields::Column;

/// The schema of keys. `names`: what the columns are called in records.
pub(super) fn key_schema(namespace: &str, columns: &[Column], names: &[String]) -> Json {
    let named = columns.iter().zip(names);
    let key = named.filter(|(column, _)| column.key);
    let fields: Vec<Json> = key
        .map(|(column, name)| field(column, name, false))
        .collect();
    json!({
        "type": "struct", "name": format!("{namespace}.Key"), "optional": false, "fields": fields,
    })
}

/// The schema of values. `names`: what the columns are called in records.
pub(super) fn envelope_schema(namespace: &str, columns: &[Column], names: &[String]) -> Json {
    let named = columns.iter().zip(names);
    // All optional: a `before` of the key alone leaves the others out.
    let fields: Vec<Json> = named
        .map(|(column, name)| field(column, name, true))
        .collect();
    let row = |name: &str| {
        json!({
            "type": "struct", "name": format!("{namespace}.Value"), "optional": true,
            "fields": fields, "field": name,
        })
    };
    json!({
        "type": "struct", "name": format!("{namespace}.Envelope"), "version": 2, "optional": false,
        "fields": [
            row("before"),
            row("after"),
            source_schema(),
            {
                "type": "struct", "name": "event.block", "version": 1, "optional": true,
                "field": "transaction", "fields": [
                    plain("string", false, "id"),
                    plain("int64", false, "total_order"),
                    plain("int64", false, "data_collection_order"),
                ],
            },
            plain("string", false, "op"),
            plain("int64", true, "ts_ms"),
            plain("int64", true, "ts_us"),
            plain("int64", true, "ts_ns"),
        ],
    })
}

fn source_schema() -> Json {
    json!({
        "type": "struct", "name": "io.debezium.connector.postgresql.Source", "version": 1,
        "optional": false, "field": "source", "fields": [
            plain("string", false, "version"),
            plain("string", false, "connector"),
            plain("string", false, "name"),
            plain("int64", false, "ts_ms"),
            {
                "type": "string", "name": "io.debezium.data.Enum", "version": 1, "optional": true,
                "default": "false", "field": "snapshot", "parameters": {
                    "allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental",
                },
            },
            plain("string", false, "db"),
            plain("string", true, "sequence"),
            plain("int64", true, "ts_us"),
            plain("int64", true, "ts_ns"),
            plain("string", false, "schema"),
            plain("string", false, "table"),
            plain("int64", true, "txId"),
            plain("int64", true, "lsn"),
            plain("int64", true, "xmin"),
        ],
    })
}

fn field(column: &Column, name: &str, optional: bool) -> Json {
    let mut field = plain(column.kind.connect_type(), optional, name);
    if let Some(name) = column.kind.semantic_name() {
        field["name"] = json!(name);
        field["version"] = json!(1);
    }
    field
}

fn plain(kind: &str, optional: bool, name: &str) -> Json {
    json!({"type": kind, "optional": optional, "field": name})
}
