//! From Postgres text to a framed Avro datum.

use bunny_postgres::TableName;

use super::{BeforeKind, Op, Source, TableSchema, Value, WireType, numbers};
use crate::wire::{self, FRAME_BYTES};
use crate::{Error, Result};

/// Branches of a `union{null,T}` as they stand on the wire.
const BRANCH_NULL: u8 = 0;
const BRANCH_VALUE: u8 = 2;

/// Encodes the events of one table version. Holds no buffers: share it freely.
#[derive(Debug, Clone)]
pub struct Encoder {
    schema: TableSchema,
    columns: Vec<ColumnPlan>,
    value_frame: [u8; FRAME_BYTES],
    key_frame: [u8; FRAME_BYTES],
}

#[derive(Debug, Clone)]
struct ColumnPlan {
    wire: WireType,
    key: bool,
    /// The true name as an Avro string, for `unchanged`.
    name: Box<[u8]>,
}

impl Encoder {
    /// Plans the encoding for `schema`, registered as `value_id` and `key_id`.
    pub fn new(schema: &TableSchema, value_id: u32, key_id: u32) -> Encoder {
        let columns = schema
            .columns
            .iter()
            .map(|column| {
                let mut name = Vec::with_capacity(column.name.len() + 2);
                wire::write_str(&mut name, &column.name);
                ColumnPlan {
                    wire: column.wire_type(),
                    key: column.key,
                    name: name.into_boxed_slice(),
                }
            })
            .collect();
        Encoder {
            schema: schema.clone(),
            columns,
            value_frame: frame(value_id),
            key_frame: frame(key_id),
        }
    }

    /// The table version.
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// Appends a framed change, its `last` false (see [`set_last`]). Rows are full
    /// column width; under [`BeforeKind::Key`] the columns outside the key are
    /// [`Value::Null`]. [`Value::Unchanged`] may stand in `after` only.
    ///
    /// On error `out` is as before: a row of another width, a text that is no
    /// value of its type, a combination that `op` does not have.
    pub fn change(
        &self,
        out: &mut Vec<u8>,
        op: Op,
        before: Option<(BeforeKind, &[Value<'_>])>,
        after: Option<&[Value<'_>]>,
        source: &Source<'_>,
    ) -> Result<()> {
        let sound = match op {
            Op::Create => before.is_none() && after.is_some(),
            Op::Update => after.is_some(),
            Op::Delete => before.is_some() && after.is_none(),
            Op::Truncate => false,
        };
        if !sound || matches!(before, Some((BeforeKind::None, _))) {
            return Err(self.invalid(&format!("rows that do not go with {op:?}")));
        }
        let start = out.len();
        let result = self.write_change(out, op, before, after, source);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Appends the framed record key, taken from the key columns of a full-width
    /// row; none of them may be [`Value::Unchanged`]. Events of a table without a
    /// key have a null key: then nothing is appended.
    pub fn key(&self, out: &mut Vec<u8>, values: &[Value<'_>]) -> Result<()> {
        self.check_width(values)?;
        if !self.schema.has_key() {
            return Ok(());
        }
        let start = out.len();
        out.extend_from_slice(&self.key_frame);
        for (index, (plan, value)) in self.columns.iter().zip(values).enumerate() {
            if !plan.key {
                continue;
            }
            let written = match value {
                Value::Unchanged => Err(self.unexpected_unchanged(index)),
                value => self.write_value(out, index, plan, value),
            };
            if let Err(error) = written {
                out.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Appends a framed truncate of `tables`, in the schema of the first of them.
    /// Its record key is null.
    pub fn truncate(
        &self,
        out: &mut Vec<u8>,
        tables: &[TableName],
        cascade: bool,
        restart_identity: bool,
        source: &Source<'_>,
    ) -> Result<()> {
        if tables.is_empty() {
            return Err(self.invalid("a truncate of no table"));
        }
        out.extend_from_slice(&self.value_frame);
        write_symbol(out, Op::Truncate as u8);
        write_symbol(out, BeforeKind::None as u8);
        out.push(BRANCH_NULL);
        out.push(BRANCH_NULL);
        wire::write_array::<&str>(out, &[], |_, _| {});
        out.push(BRANCH_VALUE);
        wire::write_array(out, tables, |out, table| {
            wire::write_str(out, &table.schema);
            wire::write_str(out, &table.name);
        });
        wire::write_bool(out, cascade);
        wire::write_bool(out, restart_identity);
        source.write(out);
        Ok(())
    }

    fn write_change(
        &self,
        out: &mut Vec<u8>,
        op: Op,
        before: Option<(BeforeKind, &[Value<'_>])>,
        after: Option<&[Value<'_>]>,
        source: &Source<'_>,
    ) -> Result<()> {
        out.extend_from_slice(&self.value_frame);
        write_symbol(out, op as u8);
        match before {
            None => {
                write_symbol(out, BeforeKind::None as u8);
                out.push(BRANCH_NULL);
            }
            Some((kind, row)) => {
                write_symbol(out, kind as u8);
                out.push(BRANCH_VALUE);
                let unchanged = self.write_row(out, row)?;
                if unchanged > 0 {
                    let index = row.iter().position(|value| *value == Value::Unchanged);
                    return Err(self.unexpected_unchanged(index.unwrap_or_default()));
                }
            }
        }
        match after {
            None => {
                out.push(BRANCH_NULL);
                out.push(0);
            }
            Some(row) => {
                out.push(BRANCH_VALUE);
                let unchanged = self.write_row(out, row)?;
                self.write_unchanged(out, row, unchanged);
            }
        }
        // No truncate.
        out.push(BRANCH_NULL);
        source.write(out);
        Ok(())
    }

    /// Writes a row and counts the values that were not sent.
    fn write_row(&self, out: &mut Vec<u8>, row: &[Value<'_>]) -> Result<usize> {
        self.check_width(row)?;
        let mut unchanged = 0;
        for (index, (plan, value)) in self.columns.iter().zip(row).enumerate() {
            unchanged += usize::from(*value == Value::Unchanged);
            self.write_value(out, index, plan, value)?;
        }
        Ok(unchanged)
    }

    fn write_unchanged(&self, out: &mut Vec<u8>, row: &[Value<'_>], count: usize) {
        if count > 0 {
            wire::write_long(out, count as i64);
            for (plan, value) in self.columns.iter().zip(row) {
                if *value == Value::Unchanged {
                    out.extend_from_slice(&plan.name);
                }
            }
        }
        out.push(0);
    }

    #[inline]
    fn write_value(
        &self,
        out: &mut Vec<u8>,
        index: usize,
        plan: &ColumnPlan,
        value: &Value<'_>,
    ) -> Result<()> {
        let Value::Text(text) = *value else {
            out.push(BRANCH_NULL);
            return Ok(());
        };
        out.push(BRANCH_VALUE);
        if write_text(out, plan.wire, text).is_none() {
            return Err(self.not_a_value(index, text.len()));
        }
        Ok(())
    }

    fn check_width(&self, row: &[Value<'_>]) -> Result<()> {
        if row.len() == self.columns.len() {
            return Ok(());
        }
        Err(self.invalid(&format!(
            "a row of {} values for {} columns",
            row.len(),
            self.columns.len()
        )))
    }

    #[cold]
    fn not_a_value(&self, index: usize, length: usize) -> Error {
        // The value itself is the user's data and stays out of messages.
        let column = &self.schema.columns[index];
        self.invalid(&format!(
            "column {:?}: a text of {length} bytes that is no {} ({})",
            column.name,
            column.type_name,
            column.wire_type().avro_name()
        ))
    }

    #[cold]
    fn unexpected_unchanged(&self, index: usize) -> Error {
        let column = &self.schema.columns[index];
        self.invalid(&format!(
            "column {:?} was not sent where it must be",
            column.name
        ))
    }

    #[cold]
    fn invalid(&self, what: &str) -> Error {
        Error::Invalid(format!(
            "encode a change of {}: {what}",
            self.schema.table_name()
        ))
    }
}

/// Marks an encoded event (a change, a truncate or a `TableGap`) as its
/// transaction's last: `source.last` is the final byte of them all.
pub fn set_last(event: &mut [u8]) {
    if let Some(last) = event.last_mut() {
        debug_assert!(*last <= 1, "the final byte of an event is a boolean");
        *last = 1;
    }
}

fn frame(id: u32) -> [u8; FRAME_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [0, a, b, c, d]
}

/// Symbol of an enum of fewer than 64: one byte.
fn write_symbol(out: &mut Vec<u8>, index: u8) {
    out.push(index << 1);
}

/// Writes a text as its wire type; `None` when it is no such value.
#[inline]
fn write_text(out: &mut Vec<u8>, wire: WireType, text: &[u8]) -> Option<()> {
    match wire {
        WireType::Bool => wire::write_bool(out, numbers::parse_bool(text)?),
        WireType::Int => {
            let value = i32::try_from(numbers::parse_int(text)?).ok()?;
            wire::write_long(out, i64::from(value));
        }
        WireType::Long => wire::write_long(out, numbers::parse_int(text)?),
        WireType::Float => {
            out.extend_from_slice(&numbers::parse_float(text)?.to_le_bytes());
        }
        WireType::Double => {
            out.extend_from_slice(&numbers::parse_double(text)?.to_le_bytes());
        }
        WireType::Bytes => {
            let digits = numbers::bytea_digits(text)?;
            wire::write_long(out, (digits.len() / 2) as i64);
            numbers::decode_hex(out, digits).then_some(())?;
        }
        WireType::Text => {
            // An Avro string is UTF-8, and so is what Postgres sends us.
            std::str::from_utf8(text).ok()?;
            wire::write_bytes(out, text);
        }
    }
    Some(())
}
