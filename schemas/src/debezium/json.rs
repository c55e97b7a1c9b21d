//! Records as Kafka Connect's `JsonConverter` writes them with `schemas.enable`: an object of
//! `schema` and `payload`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::connect::{envelope_schema, key_schema};
use super::fields::{Column, Datum};
use super::{Origin, RowEvent, sequence, times_of};
use crate::Result;
use crate::envelope::{Source, TableSchema, Value, numbers};

/// What all records of one version of a table have in common, as text.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Up to the payload, which closes with a `}` of its own.
    key_head: Vec<u8>,
    value_head: Vec<u8>,
    names: Names,
    /// `source` up to the first field that differs from record to record.
    source_head: Vec<u8>,
    /// Its fields `schema` and `table`.
    source_table: Vec<u8>,
}

/// Per column: its name in records, and the colon.
#[derive(Debug, Clone)]
pub(super) struct Names(Vec<Vec<u8>>);

impl Names {
    pub(super) fn of(names: &[String]) -> Names {
        let names = names.iter().map(|name| format!("{}:", json!(name)));
        Names(names.map(String::into_bytes).collect())
    }

    /// Appends the payload of a key.
    pub(super) fn write_key(
        &self,
        out: &mut Vec<u8>,
        columns: &[Column],
        row: &[Value<'_>],
    ) -> Result<()> {
        self.write_row(out, columns, row, |column| column.key)
    }

    fn write_row(
        &self,
        out: &mut Vec<u8>,
        columns: &[Column],
        row: &[Value<'_>],
        is_wanted: impl Fn(&Column) -> bool,
    ) -> Result<()> {
        let mut separator = b'{';
        let fields = columns.iter().zip(row).zip(&self.0);
        for ((column, value), name) in fields.filter(|((column, _), _)| is_wanted(column)) {
            out.push(separator);
            separator = b',';
            out.extend_from_slice(name);
            write_datum(out, &column.read(value)?);
        }
        if separator == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
        Ok(())
    }
}

impl Plan {
    pub(super) fn new(schema: &TableSchema, columns: &[Column], origin: &Origin) -> Plan {
        let namespace = format!("{}.{}.{}", origin.name, schema.schema, schema.table);
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let head = |schema: Json| format!(r#"{{"schema":{schema},"payload":"#).into_bytes();
        let texts = [
            &*origin.name,
            &origin.database,
            &schema.schema,
            &schema.table,
        ];
        let [name, database, source_schema, source_table] = texts.map(|text| json!(text));
        Plan {
            key_head: head(key_schema(&namespace, columns, &names)),
            value_head: head(envelope_schema(&namespace, columns, &names)),
            names: Names::of(&names),
            source_head: format!(
                r#"{{"version":"{}","connector":"postgresql","name":{name},"db":{database},"snapshot":"false","#,
                env!("CARGO_PKG_VERSION")
            )
            .into_bytes(),
            source_table: format!(r#""schema":{source_schema},"table":{source_table},"#)
                .into_bytes(),
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
        out.extend_from_slice(&self.key_head);
        self.names.write_key(out, columns, row)?;
        out.push(b'}');
        Ok(())
    }

    pub(super) fn write_event(
        &self,
        out: &mut Vec<u8>,
        columns: &[Column],
        event: &RowEvent<'_>,
    ) -> Result<()> {
        out.extend_from_slice(&self.value_head);
        for (name, row) in [("{\"before\":", event.before), (",\"after\":", event.after)] {
            out.extend_from_slice(name.as_bytes());
            match row {
                Some(row) => self.names.write_row(out, columns, row, |_| true)?,
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b",\"source\":");
        self.write_source(out, event.source);
        out.extend_from_slice(b",\"transaction\":null,\"op\":\"");
        out.extend_from_slice(event.op.symbol().as_bytes());
        out.extend_from_slice(b"\",");
        write_times(out, event.read_us);
        out.extend_from_slice(b"}}");
        Ok(())
    }

    fn write_source(&self, out: &mut Vec<u8>, source: &Source<'_>) {
        out.extend_from_slice(&self.source_head);
        out.extend_from_slice(&self.source_table);
        write_times(out, source.commit_ts_us);
        out.extend_from_slice(b",\"sequence\":\"");
        out.extend_from_slice(sequence(source).replace('"', "\\\"").as_bytes());
        for (name, number) in [
            ("\",\"txId\":", i64::from(source.xid)),
            // The 64 bits of Postgres' unsigned number.
            (",\"lsn\":", source.lsn.0 as i64),
        ] {
            out.extend_from_slice(name.as_bytes());
            numbers::print_int(out, number);
        }
        out.extend_from_slice(b",\"xmin\":null}");
    }
}

/// A moment in the three units that Debezium gives.
fn write_times(out: &mut Vec<u8>, us: i64) {
    let names = ["\"ts_ms\":", ",\"ts_us\":", ",\"ts_ns\":"];
    for (name, number) in names.into_iter().zip(times_of(us)) {
        out.extend_from_slice(name.as_bytes());
        numbers::print_int(out, number);
    }
}

fn write_datum(out: &mut Vec<u8>, datum: &Datum<'_>) {
    match datum {
        Datum::Null => out.extend_from_slice(b"null"),
        Datum::Bool(true) => out.extend_from_slice(b"true"),
        Datum::Bool(false) => out.extend_from_slice(b"false"),
        Datum::Int(value) => numbers::print_int(out, *value),
        Datum::Float(value) => {
            write_float(out, f64::from(*value), |out| {
                numbers::print_float(out, *value)
            });
        }
        Datum::Double(value) => write_float(out, *value, |out| numbers::print_double(out, *value)),
        Datum::Bytes(bytes) => {
            out.push(b'"');
            let start = out.len();
            let length = base64::encoded_len(bytes.len(), true).unwrap_or_default();
            out.resize(start + length, 0);
            // The room is exactly what it takes.
            let _ = STANDARD.encode_slice(bytes, &mut out[start..]);
            out.push(b'"');
        }
        Datum::Text(text) => {
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(out, text);
        }
    }
}

/// JSON has no NaN and no infinity: they are texts, as the converter writes them.
fn write_float(out: &mut Vec<u8>, value: f64, print: impl Fn(&mut Vec<u8>)) {
    if !value.is_finite() {
        out.push(b'"');
        print(out);
        out.push(b'"');
    } else if value == 0.0 && value.is_sign_negative() {
        // Without the point it would be read as a whole number, which has no such zero.
        out.extend_from_slice(b"-0.0");
    } else {
        print(out);
    }
}
