//! The reader behind [`decode`].

use super::{
    DecodeError, Message, OldTuple, Relation, RelationColumn, Tuple, TupleValue, TupleValues,
};
use crate::Lsn;

/// 2000-01-01 in microseconds since the Unix epoch: where Postgres' clock starts.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A Postgres timestamp (microseconds since 2000) as microseconds since 1970.
pub fn unix_from_postgres_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_US)
}

/// Decodes one message of protocol version 1 (no streaming of open transactions).
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let Some((&tag, rest)) = bytes.split_first() else {
        return Err(DecodeError::Empty);
    };
    let mut reader = Reader { rest };
    let message = match tag {
        b'B' => Message::Begin {
            final_lsn: reader.lsn("a begin")?,
            commit_ts_us: reader.timestamp("a begin")?,
            xid: reader.u32("a begin")?,
        },
        b'C' => {
            let _flags = reader.u8("a commit")?; // "currently unused", says the manual
            Message::Commit {
                commit_lsn: reader.lsn("a commit")?,
                end_lsn: reader.lsn("a commit")?,
                commit_ts_us: reader.timestamp("a commit")?,
            }
        }
        b'O' => Message::Origin {
            commit_lsn: reader.lsn("an origin")?,
            name: reader.string("an origin's name")?,
        },
        b'R' => Message::Relation(reader.relation()?),
        b'Y' => Message::Type {
            oid: reader.u32("a type")?,
            schema: pg_catalog_if_empty(reader.string("a type's schema")?),
            name: reader.string("a type's name")?,
        },
        b'I' => {
            let relation = reader.u32("an insert")?;
            match reader.u8("an insert")? {
                b'N' => Message::Insert {
                    relation,
                    new: reader.tuple()?,
                },
                value => return Err(unknown("tuple of an insert", value)),
            }
        }
        b'U' => reader.update()?,
        b'D' => {
            let relation = reader.u32("a delete")?;
            let kind = reader.u8("a delete")?;
            let old = reader
                .old_tuple(kind)?
                .ok_or_else(|| unknown("tuple of a delete", kind))?;
            Message::Delete { relation, old }
        }
        b'T' => reader.truncate()?,
        b'M' => {
            let flags = reader.u8("a logical message")?;
            let lsn = reader.lsn("a logical message")?;
            let prefix = reader.string("a logical message's prefix")?;
            let length = reader.length("a logical message")?;
            Message::Message {
                transactional: flags & 1 != 0,
                lsn,
                prefix,
                content: reader.take(length, "a logical message")?,
            }
        }
        value => return Err(unknown("message type", value)),
    };
    match reader.rest.len() {
        0 => Ok(message),
        left => Err(DecodeError::TrailingBytes(left)),
    }
}

fn unknown(what: &'static str, value: u8) -> DecodeError {
    DecodeError::Unknown { what, value }
}

/// The sender leaves the schema out for `pg_catalog` (`logicalrep_write_namespace`).
fn pg_catalog_if_empty(schema: &str) -> &str {
    if schema.is_empty() {
        "pg_catalog"
    } else {
        schema
    }
}

/// Takes values from the front of a message; `part` names what is read, for errors.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, part: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated(part))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated(part))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self, part: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(part)?))
    }

    fn u32(&mut self, part: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(part)?))
    }

    fn i32(&mut self, part: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(part)?))
    }

    fn lsn(&mut self, part: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array(part)?)))
    }

    fn timestamp(&mut self, part: &'static str) -> Result<i64, DecodeError> {
        let postgres_us = i64::from_be_bytes(self.array(part)?);
        Ok(unix_from_postgres_us(postgres_us))
    }

    /// A 16-bit count of columns.
    fn count(&mut self, part: &'static str) -> Result<u16, DecodeError> {
        let count = i16::from_be_bytes(self.array(part)?);
        u16::try_from(count).map_err(|_| DecodeError::NegativeLength(part))
    }

    /// A 32-bit length or count.
    fn length(&mut self, part: &'static str) -> Result<usize, DecodeError> {
        let length = self.i32(part)?;
        usize::try_from(length).map_err(|_| DecodeError::NegativeLength(part))
    }

    /// A string that ends with a zero byte.
    fn string(&mut self, part: &'static str) -> Result<&'a str, DecodeError> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(DecodeError::Truncated(part))?;
        let text =
            std::str::from_utf8(&self.rest[..end]).map_err(|_| DecodeError::NotUtf8(part))?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn relation(&mut self) -> Result<Relation, DecodeError> {
        let oid = self.u32("a relation")?;
        let schema = pg_catalog_if_empty(self.string("a relation's schema")?).to_owned();
        let name = self.string("a relation's name")?.to_owned();
        let replica_identity = self.u8("a relation")?;
        let count = self.count("a relation's columns")?;
        // Grown as columns are read: a count alone must not reserve memory.
        let mut columns = Vec::new();
        for _ in 0..count {
            let flags = self.u8("a column")?;
            columns.push(RelationColumn {
                key: flags & 1 != 0,
                name: self.string("a column's name")?.to_owned(),
                type_oid: self.u32("a column")?,
                typmod: self.i32("a column")?,
            });
        }
        Ok(Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        })
    }

    fn update(&mut self) -> Result<Message<'a>, DecodeError> {
        let relation = self.u32("an update")?;
        let mut kind = self.u8("an update")?;
        let old = self.old_tuple(kind)?;
        if old.is_some() {
            kind = self.u8("an update")?;
        }
        if kind != b'N' {
            return Err(unknown("tuple of an update", kind));
        }
        Ok(Message::Update {
            relation,
            old,
            new: self.tuple()?,
        })
    }

    /// The old tuple that `kind` announces; `None` when it announces none.
    fn old_tuple(&mut self, kind: u8) -> Result<Option<OldTuple<'a>>, DecodeError> {
        match kind {
            b'K' => Ok(Some(OldTuple::Key(self.tuple()?))),
            b'O' => Ok(Some(OldTuple::Row(self.tuple()?))),
            _ => Ok(None),
        }
    }

    fn truncate(&mut self) -> Result<Message<'a>, DecodeError> {
        let count = self.length("a truncate")?;
        let options = self.u8("a truncate")?;
        let oids = self.rest;
        let length = count
            .checked_mul(4)
            .filter(|&length| length <= oids.len())
            .ok_or(DecodeError::Truncated("a truncate's tables"))?;
        self.take(length, "a truncate's tables")?;
        let relations = oids[..length]
            .chunks_exact(4)
            .map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
            .collect();
        Ok(Message::Truncate {
            relations,
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
        })
    }

    /// Walks over a row once, so that [`TupleValues`] need not check again.
    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let columns = self.count("a row's columns")?;
        let start = self.rest;
        for _ in 0..columns {
            match self.u8("a row")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = self.length("a value")?;
                    self.take(length, "a value")?;
                }
                value => return Err(unknown("kind of value", value)),
            }
        }
        let length = start.len() - self.rest.len();
        Ok(Tuple {
            columns,
            data: &start[..length],
        })
    }
}

impl<'a> Iterator for TupleValues<'a> {
    type Item = TupleValue<'a>;

    fn next(&mut self) -> Option<TupleValue<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.data.split_first()?;
        self.data = rest;
        if kind == b'n' {
            return Some(TupleValue::Null);
        }
        if kind == b'u' {
            return Some(TupleValue::Unchanged);
        }
        let (&length, rest) = self.data.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(length) as usize)?;
        self.data = rest;
        Some(match kind {
            b't' => TupleValue::Text(value),
            _ => TupleValue::Binary(value),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for TupleValues<'_> {}
