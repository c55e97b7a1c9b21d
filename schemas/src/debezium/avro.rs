//! Records in Avro, as Debezium's connector writes them by way of Confluent's `AvroConverter`: a
//! frame with the id of the schema, then the datum.
//!
//! The schemas are Kafka Connect's of [`super::connect`], under names that Avro takes, translated
//! as that converter does. The data are written by hand in the order of the fields there; the
//! tests read them back by the schema.

use serde_json::{Map, Value as Json, json};

use super::connect::{envelope_schema, key_schema};
use super::fields::{Column, Datum, Kind};
use super::json::Names;
use super::{AvroIds, AvroSchemas, Origin, RowEvent, sequence, times_of};
use crate::envelope::{Source, TableSchema, Value, escape};
use crate::wire::{self, write_frame};
use crate::{Error, Result};

/// Branches of a union of two types, as they stand on the wire.
const FIRST: u8 = 0;
const SECOND: u8 = 2;

/// What all records of one version of a table have in common, as bytes.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    ids: AvroIds,
    /// For headers, which are JSON.
    names: Names,
    /// `source` up to the first field that differs from record to record.
    source_head: Vec<u8>,
    /// Its fields `snapshot` and `db`.
    source_database: Vec<u8>,
    /// Its fields `schema` and `table`.
    source_table: Vec<u8>,
}

/// Names as Avro takes them: those of the columns, and what the names of records begin with.
struct Escaped {
    namespace: String,
    columns: Vec<String>,
}

impl Escaped {
    fn of(schema: &TableSchema, columns: &[Column], origin: &Origin) -> Escaped {
        // The dots of the prefix part it; those of a table's name are a part of it.
        let parts = origin
            .name
            .split('.')
            .chain([&*schema.schema, &schema.table]);
        let parts: Vec<String> = parts.map(escape).collect();
        Escaped {
            namespace: parts.join("."),
            columns: columns.iter().map(|column| escape(&column.name)).collect(),
        }
    }
}

/// The schemas of a table's records, always the same text for the same columns.
pub(super) fn schemas(schema: &TableSchema, columns: &[Column], origin: &Origin) -> AvroSchemas {
    let names = Escaped::of(schema, columns, origin);
    let key = key_schema(&names.namespace, columns, &names.columns);
    let value = envelope_schema(&names.namespace, columns, &names.columns);
    AvroSchemas {
        key: schema.has_key().then(|| translated(&key).to_string()),
        value: translated(&value).to_string(),
    }
}

impl Plan {
    pub(super) fn new(
        schema: &TableSchema,
        columns: &[Column],
        origin: &Origin,
        ids: AvroIds,
    ) -> Plan {
        let names = Escaped::of(schema, columns, origin);
        let texts = |texts: &[&str]| {
            let mut out = Vec::new();
            texts
                .iter()
                .for_each(|text| wire::write_str(&mut out, text));
            out
        };
        // `snapshot` has its default, the first branch.
        let mut source_database = vec![FIRST];
        source_database.extend(texts(&["false", &origin.database]));
        Plan {
            ids,
            names: Names::of(&names.columns),
            source_head: texts(&[env!("CARGO_PKG_VERSION"), "postgresql", &origin.name]),
            source_database,
            source_table: texts(&[&schema.schema, &schema.table]),
        }
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn write_key(
        &self,
        out: &mut Vec<u8>,
        columns: &[Column],
        row: &[Value<'_>],
    ) -> Result<()> {
        let id = self.ids.key.ok_or_else(|| {
            Error::Invalid("encode a key of a table topic: its schema has no id".to_owned())
        })?;
        let start = out.len();
        write_frame(out, id);
        let fields = columns.iter().zip(row);
        for (column, value) in fields.filter(|(column, _)| column.key) {
            let datum = column.read(value)?;
            // A row of before there was this key; the schema of keys has no NULL.
            if datum == Datum::Null {
                out.truncate(start);
                return Ok(());
            }
            write_datum(out, column.kind, &datum);
        }
        Ok(())
    }

    pub(super) fn write_event(
        &self,
        out: &mut Vec<u8>,
        columns: &[Column],
        event: &RowEvent<'_>,
    ) -> Result<()> {
        write_frame(out, self.ids.value);
        for row in [event.before, event.after] {
            match row {
                Some(row) => {
                    out.push(SECOND);
                    write_row(out, columns, row)?;
                }
                None => out.push(FIRST),
            }
        }
        self.write_source(out, event.source);
        // No `transaction`.
        out.push(FIRST);
        wire::write_str(out, event.op.symbol());
        for number in times_of(event.read_us) {
            write_optional(out, number);
        }
        Ok(())
    }

    fn write_source(&self, out: &mut Vec<u8>, source: &Source<'_>) {
        let [ts_ms, ts_us, ts_ns] = times_of(source.commit_ts_us);
        out.extend_from_slice(&self.source_head);
        wire::write_long(out, ts_ms);
        out.extend_from_slice(&self.source_database);
        out.push(SECOND);
        wire::write_str(out, &sequence(source));
        write_optional(out, ts_us);
        write_optional(out, ts_ns);
        out.extend_from_slice(&self.source_table);
        write_optional(out, source.xid.into());
        // The 64 bits of Postgres' unsigned number.
        write_optional(out, source.lsn.0 as i64);
        // No `xmin`.
        out.push(FIRST);
    }
}

fn write_row(out: &mut Vec<u8>, columns: &[Column], row: &[Value<'_>]) -> Result<()> {
    for (column, value) in columns.iter().zip(row) {
        match column.read(value)? {
            Datum::Null => out.push(FIRST),
            datum => {
                out.push(SECOND);
                write_datum(out, column.kind, &datum);
            }
        }
    }
    Ok(())
}

/// A number of a field that may be null.
fn write_optional(out: &mut Vec<u8>, number: i64) {
    out.push(SECOND);
    wire::write_long(out, number);
}

/// A value that is not NULL.
fn write_datum(out: &mut Vec<u8>, kind: Kind, datum: &Datum<'_>) {
    match datum {
        Datum::Null => debug_assert!(false, "{kind:?} has no null"),
        Datum::Bool(value) => wire::write_bool(out, *value),
        Datum::Int(value) => wire::write_long(out, *value),
        Datum::Float(value) => out.extend_from_slice(&value.to_le_bytes()),
        Datum::Double(value) => out.extend_from_slice(&value.to_le_bytes()),
        Datum::Bytes(bytes) => wire::write_bytes(out, bytes),
        Datum::Text(text) => wire::write_str(out, text),
    }
}

/// A schema of Kafka Connect's in Avro.
fn translated(connect: &Json) -> Json {
    translate(connect, &mut Vec::new())
}

/// The same; a record that is one of the `defined` is only named.
fn translate(connect: &Json, defined: &mut Vec<String>) -> Json {
    let typed = translate_type(connect, defined);
    match (connect["optional"].as_bool(), connect.get("default")) {
        // The default has to be of the first branch.
        (Some(true), Some(_)) => json!([typed, "null"]),
        (Some(true), None) => json!(["null", typed]),
        _ => typed,
    }
}

fn translate_type(connect: &Json, defined: &mut Vec<String>) -> Json {
    let plain = match connect["type"].as_str().unwrap_or_default() {
        "struct" => return translate_struct(connect, defined),
        "int16" | "int32" => "int",
        "int64" => "long",
        same => same,
    };
    let mut avro = Map::new();
    avro.insert("type".to_owned(), json!(plain));
    if connect["type"] == "int16" {
        avro.insert("connect.type".to_owned(), json!("int16"));
    }
    let properties = ["version", "parameters", "default", "name"];
    insert_properties(&mut avro, connect, &properties);
    match avro.len() {
        1 => json!(plain),
        _ => Json::Object(avro),
    }
}

fn translate_struct(connect: &Json, defined: &mut Vec<String>) -> Json {
    let full_name = connect["name"].as_str().unwrap_or_default();
    if defined.iter().any(|name| name == full_name) {
        return json!(full_name);
    }
    defined.push(full_name.to_owned());
    let (namespace, name) = full_name.rsplit_once('.').unwrap_or(("", full_name));
    let fields = connect["fields"].as_array().into_iter().flatten();
    let fields: Vec<Json> = fields
        .map(|field| {
            let mut avro = json!({"name": field["field"], "type": translate(field, defined)});
            match field.get("default") {
                Some(default) => avro["default"] = default.clone(),
                None if field["optional"] == true => avro["default"] = Json::Null,
                None => {}
            }
            avro
        })
        .collect();
    let mut avro = Map::new();
    avro.insert("type".to_owned(), json!("record"));
    avro.insert("name".to_owned(), json!(name));
    avro.insert("namespace".to_owned(), json!(namespace));
    avro.insert("fields".to_owned(), json!(fields));
    insert_properties(&mut avro, connect, &["version", "name"]);
    Json::Object(avro)
}

/// What Avro has no word for: kept for readers who make Kafka Connect's schema of it again.
fn insert_properties(avro: &mut Map<String, Json>, connect: &Json, names: &[&str]) {
    for name in names {
        if let Some(value) = connect.get(name) {
            avro.insert(format!("connect.{name}"), value.clone());
        }
    }
}
