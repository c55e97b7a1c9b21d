//! Which of Kafka Connect's types a column has, and the value that a text is of it.

use std::borrow::Cow;

use super::{UNAVAILABLE, times};
use crate::envelope::{ColumnSchema, Value, numbers};
use crate::{Error, Result};

/// A column as records have it.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// True name.
    pub(super) name: String,
    pub(super) key: bool,
    pub(super) kind: Kind,
    /// `format_type` with typmod, for messages.
    type_name: String,
}

/// What a column travels as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int16,
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    Date,
    Time,
    Timestamp,
    ZonedTimestamp,
    Uuid,
    Json,
    Xml,
    /// Any other type, as Postgres prints it.
    Text,
}

/// A value, borrowed where it can be.
#[derive(Debug, PartialEq)]
pub(super) enum Datum<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f32),
    Double(f64),
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
}

impl Kind {
    /// By `pg_type.oid`; the built-in types' oids never change.
    fn of(type_oid: u32) -> Kind {
        match type_oid {
            16 => Kind::Bool,
            17 => Kind::Bytes,
            20 => Kind::Int64,
            21 => Kind::Int16,
            23 => Kind::Int32,
            114 | 3802 => Kind::Json,
            142 => Kind::Xml,
            700 => Kind::Float,
            701 => Kind::Double,
            1082 => Kind::Date,
            1083 => Kind::Time,
            1114 => Kind::Timestamp,
            1184 => Kind::ZonedTimestamp,
            2950 => Kind::Uuid,
            _ => Kind::Text,
        }
    }

    /// Kafka Connect's name of the type, as `JsonConverter` writes it.
    pub(super) fn connect_type(self) -> &'static str {
        match self {
            Kind::Bool => "boolean",
            Kind::Int16 => "int16",
            Kind::Int32 | Kind::Date => "int32",
            Kind::Int64 | Kind::Time | Kind::Timestamp => "int64",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::Bytes => "bytes",
            Kind::ZonedTimestamp | Kind::Uuid | Kind::Json | Kind::Xml | Kind::Text => "string",
        }
    }

    /// What the value means, where its type does not say it.
    pub(super) fn semantic_name(self) -> Option<&'static str> {
        Some(match self {
            Kind::Date => "io.debezium.time.Date",
            Kind::Time => "io.debezium.time.MicroTime",
            Kind::Timestamp => "io.debezium.time.MicroTimestamp",
            Kind::ZonedTimestamp => "io.debezium.time.ZonedTimestamp",
            Kind::Uuid => "io.debezium.data.Uuid",
            Kind::Json => "io.debezium.data.Json",
            Kind::Xml => "io.debezium.data.Xml",
            _ => return None,
        })
    }

    /// `None` when the text is no such value.
    fn read(self, text: &[u8]) -> Option<Datum<'_>> {
        let string = || std::str::from_utf8(text).ok();
        let whole = |low: i64, high: i64| {
            let value = numbers::parse_int(text)?;
            (low..=high).contains(&value).then_some(Datum::Int(value))
        };
        Some(match self {
            Kind::Bool => Datum::Bool(numbers::parse_bool(text)?),
            Kind::Int16 => whole(i16::MIN.into(), i16::MAX.into())?,
            Kind::Int32 => whole(i32::MIN.into(), i32::MAX.into())?,
            Kind::Int64 => whole(i64::MIN, i64::MAX)?,
            Kind::Float => Datum::Float(numbers::parse_float(text)?),
            Kind::Double => Datum::Double(numbers::parse_double(text)?),
            Kind::Bytes => {
                let mut bytes = Vec::new();
                numbers::decode_hex(&mut bytes, numbers::bytea_digits(text)?).then_some(())?;
                Datum::Bytes(bytes.into())
            }
            Kind::Date => Datum::Int(times::date(string()?)?),
            Kind::Time => Datum::Int(times::time(string()?)?),
            Kind::Timestamp => Datum::Int(times::timestamp(string()?)?),
            Kind::ZonedTimestamp => Datum::Text(times::zoned(string()?)?.into()),
            Kind::Uuid | Kind::Json | Kind::Xml | Kind::Text => Datum::Text(string()?.into()),
        })
    }

    /// What stands for a value that was not sent; `None` for types whose values never are out of
    /// line.
    fn unavailable(self) -> Option<Datum<'static>> {
        match self {
            Kind::Bytes => Some(Datum::Bytes(UNAVAILABLE.as_bytes().into())),
            Kind::Json | Kind::Xml | Kind::Text => Some(Datum::Text(UNAVAILABLE.into())),
            _ => None,
        }
    }
}

impl Column {
    pub(super) fn of(schema: &ColumnSchema) -> Column {
        Column {
            name: schema.name.clone(),
            key: schema.key,
            kind: Kind::of(schema.type_oid),
            type_name: schema.type_name.clone(),
        }
    }

    /// The value of this column that `value` is.
    pub(super) fn read<'a>(&self, value: &Value<'a>) -> Result<Datum<'a>> {
        let read = match *value {
            Value::Null => Some(Datum::Null),
            Value::Unchanged => self.kind.unavailable(),
            Value::Text(text) => self.kind.read(text),
        };
        // The value itself is the user's data and stays out of messages.
        read.ok_or_else(|| {
            Error::Invalid(format!(
                "encode a record of a table topic: column {:?} holds what is no {}",
                self.name, self.type_name
            ))
        })
    }
}
