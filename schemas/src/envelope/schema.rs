//! The Avro schemas of a table version: written as deterministic text, read back
//! from a registry.

use bunny_postgres::TableName;
use serde::Deserialize as _;
use serde_json::{Value as Json, json};

use super::{BeforeKind, ColumnFacts, Op, escape};
use crate::control::canonical_form;
use crate::{Error, Result};

/// One version of a table as its events describe it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableSchema {
    /// Mirror name.
    pub mirror: String,
    /// Schema at the source, true name.
    pub schema: String,
    /// Table at the source, true name.
    pub table: String,
    /// Columns in the order of the row, excluded ones left out.
    pub columns: Vec<ColumnSchema>,
}

/// One column of a [`TableSchema`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnSchema {
    /// True name.
    pub name: String,
    /// `pg_attribute.attnum`; survives a rename.
    pub attnum: i16,
    /// `pg_type.oid`; decides the type on the wire.
    pub type_oid: u32,
    /// `format_type` with typmod.
    pub type_name: String,
    /// `pg_attribute.atttypmod`.
    pub typmod: i32,
    /// `NOT NULL`.
    pub not_null: bool,
    /// Part of the key that identifies a row.
    pub key: bool,
    /// What else the source's catalog says of it; None when it was not recognised there,
    /// and in versions older than this property.
    pub facts: Option<ColumnFacts>,
}

/// Avro type a column travels as, by its Postgres type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireType {
    /// `boolean`.
    Bool,
    /// `smallint`, `integer`.
    Int,
    /// `bigint`.
    Long,
    /// `real`.
    Float,
    /// `double precision`.
    Double,
    /// `bytea`.
    Bytes,
    /// Any other type, as Postgres text.
    Text,
}

impl TableSchema {
    /// The table at the source.
    pub fn table_name(&self) -> TableName {
        TableName {
            schema: self.schema.clone(),
            name: self.table.clone(),
        }
    }

    /// Whether a column is part of the key.
    pub fn has_key(&self) -> bool {
        self.columns.iter().any(|column| column.key)
    }

    /// Full name of the envelope record, which is also its subject.
    pub fn value_subject(&self) -> String {
        format!("{}.Envelope", self.namespace())
    }

    /// Full name of the key record, which is also its subject.
    pub fn key_subject(&self) -> String {
        format!("{}.Key", self.namespace())
    }

    /// Schema of the envelope: the same text for the same table version, always.
    pub fn value_avro_json(&self) -> String {
        let row_fields: Vec<Json> = self.columns.iter().map(ColumnSchema::row_field).collect();
        json!({
            "type": "record",
            "name": "Envelope",
            "namespace": self.namespace(),
            "mirror": self.mirror,
            "source_schema": self.schema,
            "source_table": self.table,
            "fields": [
                {"name": "op", "type":
                    {"type": "enum", "name": "Op", "symbols": Op::SYMBOLS}},
                {"name": "before_kind", "type":
                    {"type": "enum", "name": "BeforeKind", "symbols": BeforeKind::SYMBOLS}},
                {"name": "before", "type":
                    ["null", {"type": "record", "name": "Row", "fields": row_fields}],
                    "default": null},
                {"name": "after", "type": ["null", "Row"], "default": null},
                {"name": "unchanged", "type": {"type": "array", "items": "string"}, "default": []},
                {"name": "truncate", "type": ["null", truncate_record()], "default": null},
                {"name": "source", "type": source_record()},
            ],
        })
        .to_string()
    }

    /// Schema of the record key (a record without fields when the table has none).
    pub fn key_avro_json(&self) -> String {
        let key = self.columns.iter().filter(|column| column.key);
        let fields: Vec<Json> = key.map(ColumnSchema::avro_field).collect();
        json!({
            "type": "record",
            "name": "Key",
            "namespace": self.namespace(),
            "mirror": self.mirror,
            "source_schema": self.schema,
            "source_table": self.table,
            "fields": fields,
        })
        .to_string()
    }

    /// Reads an envelope schema. One whose layout differs from what
    /// [`TableSchema::value_avro_json`] would write is refused: the plan would
    /// misread its bytes. Order and spelling of the JSON do not matter.
    pub fn from_avro_json(json: &str) -> Result<TableSchema> {
        let document: Json =
            serde_json::from_str(json).map_err(|error| Error::Schema(error.to_string()))?;
        let fields = list(&document, "fields")?;
        let before = fields
            .iter()
            .find(|field| field.get("name").and_then(Json::as_str) == Some("before"))
            .ok_or_else(|| Error::Schema("an envelope without `before`".to_owned()))?;
        let row = list(before, "type")?
            .get(1)
            .ok_or_else(|| Error::Schema("`before` is no union with a row".to_owned()))?;
        let columns = list(row, "fields")?
            .iter()
            .map(ColumnSchema::from_avro_field)
            .collect::<Result<_>>()?;
        let schema = TableSchema {
            mirror: text(&document, "mirror")?,
            schema: text(&document, "source_schema")?,
            table: text(&document, "source_table")?,
            columns,
        };
        if canonical_form(json)? != canonical_form(&schema.value_avro_json())? {
            return Err(Error::Schema(format!(
                "{} has another layout than this version's",
                schema.value_subject()
            )));
        }
        Ok(schema)
    }

    fn namespace(&self) -> String {
        [&self.mirror, &self.schema, &self.table]
            .map(|part| escape(part))
            .join(".")
    }
}

impl ColumnSchema {
    /// Type of the column on the wire.
    pub fn wire_type(&self) -> WireType {
        WireType::of(self.type_oid)
    }

    fn row_field(&self) -> Json {
        let mut field = self.avro_field();
        if let Some(facts) = &self.facts {
            field["facts"] = json!(facts);
        }
        field
    }

    fn avro_field(&self) -> Json {
        json!({
            "name": escape(&self.name),
            "type": ["null", self.wire_type().avro_name()],
            "default": null,
            "column": self.name,
            "attnum": self.attnum,
            "pg_type": self.type_name,
            "pg_type_oid": self.type_oid,
            "pg_typmod": self.typmod,
            "not_null": self.not_null,
            "key": self.key,
        })
    }

    fn from_avro_field(field: &Json) -> Result<ColumnSchema> {
        Ok(ColumnSchema {
            name: text(field, "column")?,
            attnum: number(field, "attnum")?,
            type_oid: number(field, "pg_type_oid")?,
            type_name: text(field, "pg_type")?,
            typmod: number(field, "pg_typmod")?,
            not_null: flag(field, "not_null")?,
            key: flag(field, "key")?,
            facts: match field.get("facts") {
                None => None,
                Some(facts) => Some(
                    ColumnFacts::deserialize(facts)
                        .map_err(|error| Error::Schema(format!("property \"facts\": {error}")))?,
                ),
            },
        })
    }
}

impl WireType {
    /// By `pg_type.oid`; the built-in types' oids never change.
    pub fn of(type_oid: u32) -> WireType {
        match type_oid {
            16 => WireType::Bool,
            17 => WireType::Bytes,
            20 => WireType::Long,
            21 | 23 => WireType::Int,
            700 => WireType::Float,
            701 => WireType::Double,
            _ => WireType::Text,
        }
    }

    /// Avro's name of the type.
    pub fn avro_name(self) -> &'static str {
        match self {
            WireType::Bool => "boolean",
            WireType::Int => "int",
            WireType::Long => "long",
            WireType::Float => "float",
            WireType::Double => "double",
            WireType::Bytes => "bytes",
            WireType::Text => "string",
        }
    }
}

fn truncate_record() -> Json {
    json!({
        "type": "record",
        "name": "Truncate",
        "fields": [
            {"name": "tables", "type": {"type": "array", "items": {
                "type": "record",
                "name": "TruncatedTable",
                "fields": [
                    {"name": "schema", "type": "string"},
                    {"name": "table", "type": "string"},
                ],
            }}},
            {"name": "cascade", "type": "boolean"},
            {"name": "restart_identity", "type": "boolean"},
        ],
    })
}

fn source_record() -> Json {
    json!({
        "type": "record",
        "name": "Source",
        "fields": [
            {"name": "generation", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "mirror", "type": "string"},
            {"name": "schema", "type": "string"},
            {"name": "table", "type": "string"},
            {"name": "xid", "type": "long"},
            {"name": "lsn", "type": "long"},
            {"name": "commit_lsn", "type": "long"},
            {"name": "commit_ts_us", "type": "long"},
            {"name": "seq", "type": "long"},
            {"name": "last", "type": "boolean"},
        ],
    })
}

fn property<'j>(json: &'j Json, name: &str) -> Result<&'j Json> {
    json.get(name)
        .ok_or_else(|| Error::Schema(format!("no property {name:?}")))
}

fn text(json: &Json, name: &str) -> Result<String> {
    property(json, name)?
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Schema(format!("property {name:?} is no text")))
}

fn number<T: TryFrom<i64>>(json: &Json, name: &str) -> Result<T> {
    property(json, name)?
        .as_i64()
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| Error::Schema(format!("property {name:?} is no number in range")))
}

fn flag(json: &Json, name: &str) -> Result<bool> {
    property(json, name)?
        .as_bool()
        .ok_or_else(|| Error::Schema(format!("property {name:?} is no boolean")))
}

fn list<'j>(json: &'j Json, name: &str) -> Result<&'j [Json]> {
    property(json, name)?
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| Error::Schema(format!("property {name:?} is no list")))
}
