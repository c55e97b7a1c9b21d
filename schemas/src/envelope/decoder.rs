//! From an Avro datum to borrowed values.

use std::collections::HashMap;

use bunny_postgres::TableName;
use foldhash::fast::RandomState;

use super::{
    BeforeKind, Change, ColumnSchema, Datum, Op, Row, Source, TableSchema, Truncate, WireType,
};
use crate::wire::Reader;
use crate::{Error, Result};

/// Decodes the events of one table version.
#[derive(Debug, Clone)]
pub struct Decoder {
    schema: TableSchema,
    table: TableName,
    wires: Vec<WireType>,
    by_name: HashMap<String, usize, RandomState>,
}

/// Buffers of earlier changes, so that decoding many takes no allocation each.
/// See [`Decoder::decode_with`].
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Row<'static>>,
    flags: Vec<Vec<bool>>,
}

/// The most buffers kept for later.
const SCRATCH_BUFFERS_MAX: usize = 1024;

impl Scratch {
    /// Takes the buffers of a change that is done with.
    pub fn recycle(&mut self, change: Change<'_>) {
        if self.rows.len() < SCRATCH_BUFFERS_MAX {
            self.rows.extend(change.before.map(detach));
            self.rows.extend(change.after.map(detach));
        }
        if change.unchanged.capacity() > 0 && self.flags.len() < SCRATCH_BUFFERS_MAX {
            let mut flags = change.unchanged;
            flags.clear();
            self.flags.push(flags);
        }
    }
}

/// Empties a row and lets its buffer outlive what the row borrowed: collecting an
/// iterator of the same item size reuses the allocation.
fn detach(mut row: Row<'_>) -> Row<'static> {
    row.clear();
    row.into_iter().map(|_| Datum::Null).collect()
}

impl Decoder {
    /// Plans the decoding of events written with this schema. A schema that is no
    /// envelope of this program's layout is refused.
    pub fn new(schema_json: &str) -> Result<Decoder> {
        let schema = TableSchema::from_avro_json(schema_json)?;
        let wires = schema.columns.iter().map(ColumnSchema::wire_type).collect();
        let by_name = schema
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| (column.name.clone(), index))
            .collect();
        Ok(Decoder {
            table: schema.table_name(),
            schema,
            wires,
            by_name,
        })
    }

    /// The table version.
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// The table at the source.
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Columns, in the order of rows.
    pub fn columns(&self) -> &[ColumnSchema] {
        &self.schema.columns
    }

    /// Decodes a datum (the message after its frame): one allocation a row.
    pub fn decode<'a>(&self, datum: &'a [u8]) -> Result<Change<'a>> {
        self.decode_with(&mut Scratch::default(), datum)
    }

    /// Like [`Decoder::decode`], with buffers from `scratch`: none when changes
    /// are given back by [`Scratch::recycle`].
    pub fn decode_with<'a>(&self, scratch: &mut Scratch, datum: &'a [u8]) -> Result<Change<'a>> {
        let mut reader = Reader::new(datum);
        let op = Op::ALL[reader.branch(Op::ALL.len() as i64, "an operation")?];
        let before_kind =
            BeforeKind::ALL[reader.branch(BeforeKind::ALL.len() as i64, "a kind of old row")?];
        let before = self.read_optional_row(scratch, &mut reader)?;
        let after = self.read_optional_row(scratch, &mut reader)?;
        let unchanged = self.read_unchanged(scratch, &mut reader)?;
        let truncate = match reader.branch(2, "null or a truncate")? {
            0 => None,
            _ => Some(read_truncate(&mut reader)?),
        };
        let (source, last) = Source::read(&mut reader)?;
        reader.end()?;
        // Tables of one shape are told apart by nothing else.
        if source.table != self.schema.table || source.schema != self.schema.schema {
            return Err(reader.malformed("a change of the table whose schema it names"));
        }
        let change = Change {
            op,
            before_kind,
            before,
            after,
            unchanged,
            truncate,
            source,
            last,
        };
        check(&change)?;
        Ok(change)
    }

    fn read_optional_row<'a>(
        &self,
        scratch: &mut Scratch,
        reader: &mut Reader<'a>,
    ) -> Result<Option<Row<'a>>> {
        if reader.branch(2, "null or a row")? == 0 {
            return Ok(None);
        }
        let mut row: Row<'a> = scratch.rows.pop().unwrap_or_default();
        row.reserve(self.wires.len());
        for wire in &self.wires {
            row.push(read_datum(reader, *wire)?);
        }
        Ok(Some(row))
    }

    fn read_unchanged(&self, scratch: &mut Scratch, reader: &mut Reader<'_>) -> Result<Vec<bool>> {
        let mut flags = Vec::new();
        reader.array(|item| {
            let name = item.str()?;
            let column = self
                .by_name
                .get(name)
                .ok_or_else(|| item.malformed("the name of a column"))?;
            if flags.is_empty() {
                flags = scratch.flags.pop().unwrap_or_default();
                flags.resize(self.wires.len(), false);
            }
            flags[*column] = true;
            Ok(())
        })?;
        Ok(flags)
    }
}

#[inline]
fn read_datum<'a>(reader: &mut Reader<'a>, wire: WireType) -> Result<Datum<'a>> {
    if reader.branch(2, "null or a value")? == 0 {
        return Ok(Datum::Null);
    }
    Ok(match wire {
        WireType::Bool => Datum::Bool(reader.bool()?),
        WireType::Int => Datum::Int(i64::from(reader.int()?)),
        WireType::Long => Datum::Int(reader.long()?),
        WireType::Float => Datum::Float(reader.float()?),
        WireType::Double => Datum::Double(reader.double()?),
        WireType::Bytes => Datum::Bytes(reader.bytes()?),
        WireType::Text => Datum::Text(reader.str()?),
    })
}

fn read_truncate(reader: &mut Reader<'_>) -> Result<Truncate> {
    let tables = reader.list(|item| {
        Ok(TableName {
            schema: item.str()?.to_owned(),
            name: item.str()?.to_owned(),
        })
    })?;
    Ok(Truncate {
        tables,
        cascade: reader.bool()?,
        restart_identity: reader.bool()?,
    })
}

/// The parts that go with each operation, as [`super::Encoder`] writes them.
fn check(change: &Change<'_>) -> Result<()> {
    let rows = match change.op {
        Op::Create => change.before.is_none() && change.after.is_some(),
        Op::Update => change.after.is_some(),
        Op::Delete => change.before.is_some() && change.after.is_none(),
        Op::Truncate => change.before.is_none() && change.after.is_none(),
    };
    let sound = rows
        && (change.before_kind == BeforeKind::None) == change.before.is_none()
        && (change.op == Op::Truncate) == change.truncate.is_some()
        && (change.unchanged.is_empty() || change.after.is_some());
    if sound {
        return Ok(());
    }
    Err(Error::Malformed {
        what: "the rows that go with the operation",
        at: 0,
    })
}
