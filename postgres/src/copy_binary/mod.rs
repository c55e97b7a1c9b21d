//! The binary format of COPY (manual, "COPY", section "Binary Format"), made from values as text.
//!
//! A server takes a row in it for about two thirds of what it spends on the same row as text: no line is
//! searched for its ends, no number or date is parsed. What a value is in binary is the business of its
//! type's receive function, so only types of `pg_catalog` whose form is the same from PostgreSQL 14 to
//! 18 are known here, and of their texts only those that a server prints. Of anything else nothing is
//! said ([`NotKnown`]): it goes as text, and the server decides. So both formats accept the same
//! rows and store the same values; modifiers, domains and encodings are applied by the server either way.
//!
//! Nothing here does I/O, and nothing panics, whatever it is fed.

mod array;
mod datetime;
mod number;

use tokio_postgres::types::{Kind, Type};

use crate::copy_text;

/// Signature, flags (none), length of the header's extension (none).
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// In place of a row's number of columns.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// In place of a value's length.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// A value of which no binary form is known here; as text it may be a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotKnown;

type Known = Result<(), NotKnown>;

/// How the values of one type are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding(Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    One(Scalar),
    /// Of elements with this form; the oid is their type's.
    Array(Scalar, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    /// The text itself.
    Text,
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
}

impl Encoding {
    /// For the type with this oid. `is_enum` says that it is an enumeration, of which a value is its label.
    /// `None` if the values of the type are not known here.
    pub fn of(type_oid: u32, is_enum: bool) -> Option<Encoding> {
        if is_enum {
            return Some(Encoding(Form::One(Scalar::Text)));
        }
        let known = Type::from_oid(type_oid)?;
        let form = match known.kind() {
            Kind::Array(element) => Form::Array(Scalar::of(element)?, element.oid()),
            _ => Form::One(Scalar::of(&known)?),
        };
        Some(Encoding(form))
    }
}

impl Scalar {
    fn of(known: &Type) -> Option<Scalar> {
        Some(match *known {
            Type::BOOL => Scalar::Bool,
            Type::INT2 => Scalar::Int2,
            Type::INT4 => Scalar::Int4,
            Type::INT8 => Scalar::Int8,
            Type::OID => Scalar::Oid,
            Type::FLOAT4 => Scalar::Float4,
            Type::FLOAT8 => Scalar::Float8,
            Type::NUMERIC => Scalar::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::JSON => Scalar::Text,
            Type::JSONB => Scalar::Jsonb,
            Type::BYTEA => Scalar::Bytea,
            Type::UUID => Scalar::Uuid,
            Type::DATE => Scalar::Date,
            Type::TIME => Scalar::Time,
            Type::TIMESTAMP => Scalar::Timestamp,
            Type::TIMESTAMPTZ => Scalar::Timestamptz,
            _ => return None,
        })
    }

    /// Appends the value, without its length.
    fn write(self, out: &mut Vec<u8>, text: &[u8]) -> Known {
        match self {
            Scalar::Bool => match text {
                b"t" => out.push(1),
                b"f" => out.push(0),
                _ => return Err(NotKnown),
            },
            Scalar::Int2 => number::integer::<i16>(text)?.to_be_bytes().put(out),
            Scalar::Int4 => number::integer::<i32>(text)?.to_be_bytes().put(out),
            Scalar::Int8 => number::integer::<i64>(text)?.to_be_bytes().put(out),
            Scalar::Oid => number::integer::<u32>(text)?.to_be_bytes().put(out),
            Scalar::Float4 => number::float::<f32>(text)?.to_be_bytes().put(out),
            Scalar::Float8 => number::float::<f64>(text)?.to_be_bytes().put(out),
            Scalar::Numeric => number::numeric(out, text)?,
            Scalar::Text => out.extend_from_slice(text),
            Scalar::Jsonb => {
                out.push(JSONB_VERSION);
                out.extend_from_slice(text);
            }
            Scalar::Bytea => bytea(out, text)?,
            Scalar::Uuid => uuid(text)?.put(out),
            Scalar::Date => datetime::date(text)?.to_be_bytes().put(out),
            Scalar::Time => datetime::time(text)?.to_be_bytes().put(out),
            Scalar::Timestamp => datetime::timestamp(text)?.to_be_bytes().put(out),
            Scalar::Timestamptz => datetime::timestamptz(text)?.to_be_bytes().put(out),
        }
        Ok(())
    }
}

/// The only version there is.
const JSONB_VERSION: u8 = 1;

/// Appends bytes.
trait Put {
    fn put(self, out: &mut Vec<u8>);
}

impl<const N: usize> Put for [u8; N] {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self);
    }
}

/// Begins a COPY.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(HEADER);
}

/// Ends a COPY.
pub fn end(out: &mut Vec<u8>) {
    TRAILER.put(out);
}

/// Begins a row of as many columns, which must follow.
///
/// # Errors
/// No row has so many.
pub fn row(out: &mut Vec<u8>, columns: usize) -> Known {
    i16::try_from(columns)
        .map_err(|_| NotKnown)?
        .to_be_bytes()
        .put(out);
    Ok(())
}

/// Appends a column from what it is in COPY text: escaped, `\N` for NULL.
///
/// # Errors
/// No binary form of it is known. What was appended until then is of no use.
pub fn cell(out: &mut Vec<u8>, encoding: Encoding, cell: &[u8]) -> Known {
    if cell == copy_text::NULL {
        NULL.put(out);
        return Ok(());
    }
    with_length(out, |out| {
        match encoding.0 {
            Form::One(Scalar::Text) => copy_text::unescape_into(out, cell),
            Form::One(Scalar::Jsonb) => {
                out.push(JSONB_VERSION);
                copy_text::unescape_into(out, cell);
            }
            Form::One(scalar) => return scalar.write(out, &copy_text::unescape(cell)),
            Form::Array(element, oid) => {
                return array::write(out, &copy_text::unescape(cell), element, oid);
            }
        }
        Ok(())
    })
}

/// Appends a column whose binary form is `value`, of at most 2 GiB.
pub fn value(out: &mut Vec<u8>, value: &[u8]) {
    (value.len() as i32).to_be_bytes().put(out);
    out.extend_from_slice(value);
}

/// Appends what `write` appends, behind its length.
fn with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Known) -> Known {
    let start = out.len();
    NULL.put(out);
    write(out)?;
    let bytes = i32::try_from(out.len() - start - NULL.len()).map_err(|_| NotKnown)?;
    out[start..start + NULL.len()].copy_from_slice(&bytes.to_be_bytes());
    Ok(())
}

/// `bytea_output = hex`.
fn bytea(out: &mut Vec<u8>, text: &[u8]) -> Known {
    let digits = text.strip_prefix(b"\\x").ok_or(NotKnown)?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err(NotKnown);
    };
    out.reserve(pairs.len());
    for pair in pairs {
        out.push(hex_pair(pair)?);
    }
    Ok(())
}

fn hex_pair(&[high, low]: &[u8; 2]) -> Result<u8, NotKnown> {
    let (high, low) = (HEX_VALUES[usize::from(high)], HEX_VALUES[usize::from(low)]);
    if (high | low) > 15 {
        return Err(NotKnown);
    }
    Ok(high << 4 | low)
}

/// By byte: its value as a hexadecimal digit, or 255.
const HEX_VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// As Postgres prints it: hyphens in four places.
fn uuid(text: &[u8]) -> Result<[u8; 16], NotKnown> {
    if text.len() != 36 {
        return Err(NotKnown);
    }
    uuid::Uuid::try_parse_ascii(text)
        .map(uuid::Uuid::into_bytes)
        .map_err(|_| NotKnown)
}

#[cfg(test)]
mod tests;
