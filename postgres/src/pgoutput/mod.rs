//! Decoding of Postgres' `pgoutput` messages, protocol version 1 (chapter "Logical
//! Replication Message Formats" of the manual).
//!
//! Bytes in, borrowed values out, no I/O and no copying of row data. A message that
//! does not follow the format gives a [`DecodeError`]; no input makes this module
//! panic, and none makes it allocate more than a small multiple of the input's size.

mod decode;
#[cfg(test)]
mod tests;

pub use decode::{decode, unix_from_postgres_us};

use crate::Lsn;

/// One decoded message. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// A transaction begins; all its changes follow, then [`Message::Commit`].
    Begin {
        /// Position of the transaction's commit record.
        final_lsn: Lsn,
        /// Commit time.
        commit_ts_us: i64,
        /// Transaction id.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// Position of the commit record, the `final_lsn` of its begin.
        commit_lsn: Lsn,
        /// Position right after the commit record: what may be confirmed.
        end_lsn: Lsn,
        /// Commit time.
        commit_ts_us: i64,
    },
    /// Where the transaction came from, when it was itself replicated.
    Origin {
        /// Commit position at the origin.
        commit_lsn: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The shape of a table; sent before its first change and after it changed.
    Relation(Relation),
    /// A type that is not built in; sent before the relations that use it.
    Type {
        /// Its oid at the source.
        oid: u32,
        /// Its schema, `pg_catalog` included.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// Table, as in [`Relation::oid`].
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Table, as in [`Relation::oid`].
        relation: u32,
        /// What identified the row; absent when the key did not change.
        old: Option<OldTuple<'a>>,
        /// The row as it is now; unchanged out-of-line values are
        /// [`TupleValue::Unchanged`].
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Table, as in [`Relation::oid`].
        relation: u32,
        /// What identified the row.
        old: OldTuple<'a>,
    },
    /// Tables were emptied in one statement.
    Truncate {
        /// Tables, as in [`Relation::oid`].
        relations: Vec<u32>,
        /// `CASCADE` was given.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
    },
    /// A message from `pg_logical_emit_message`.
    Message {
        /// It belongs to the transaction it stands in.
        transactional: bool,
        /// Its position.
        lsn: Lsn,
        /// The sender's prefix.
        prefix: &'a str,
        /// The content.
        content: &'a [u8],
    },
}

/// The old row of an update or delete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OldTuple<'a> {
    /// Full width, but only the columns of the replica identity carry values; the
    /// others are [`TupleValue::Null`] whatever they were.
    Key(Tuple<'a>),
    /// The whole old row (`REPLICA IDENTITY FULL`).
    Row(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The tuple, whichever kind it is.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Row(tuple) => *tuple,
        }
    }
}

/// A row: its values lie in the message and are walked over, not collected. It was
/// validated when it was decoded, so walking cannot fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuple<'a> {
    columns: u16,
    data: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// How many columns it has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether it has no columns (a table may have none).
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values in column order.
    pub fn iter(&self) -> TupleValues<'a> {
        TupleValues {
            left: self.columns,
            data: self.data,
        }
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = TupleValue<'a>;
    type IntoIter = TupleValues<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// SQL NULL (or, in [`OldTuple::Key`], a column outside the key).
    Null,
    /// An out-of-line value that the update did not touch and Postgres did not send.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's binary output; only when the stream was started in binary mode.
    Binary(&'a [u8]),
}

/// The values of a [`Tuple`], in column order.
#[derive(Clone, Debug)]
pub struct TupleValues<'a> {
    left: u16,
    data: &'a [u8],
}

/// The shape of a table as the stream knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its oid at the source; the root's, when published through a partition root.
    pub oid: u32,
    /// Schema; `pg_catalog` is sent as an empty name and restored here.
    pub schema: String,
    /// Table.
    pub name: String,
    /// `d`, `n`, `f` or `i`, as `pg_class.relreplident`.
    pub replica_identity: u8,
    /// The columns in the order of the tuples.
    pub columns: Vec<RelationColumn>,
}

/// One column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Name.
    pub name: String,
    /// Type oid at the source.
    pub type_oid: u32,
    /// Type modifier, −1 for none.
    pub typmod: i32,
    /// It belongs to the replica identity (every column does, under FULL).
    pub key: bool,
}

/// Why a message could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before what it announces.
    #[error("the message ends inside {0}")]
    Truncated(&'static str),
    /// A byte that selects a form has an unknown value.
    #[error("unknown {what} {value:#04x}")]
    Unknown {
        /// What the byte selects.
        what: &'static str,
        /// The byte.
        value: u8,
    },
    /// A name is not UTF-8, although the session asked for it.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A length or count is negative.
    #[error("{0} has a negative length")]
    NegativeLength(&'static str),
    /// Bytes are left over after the message.
    #[error("{0} bytes follow the end of the message")]
    TrailingBytes(usize),
    /// There is no message at all.
    #[error("the message is empty")]
    Empty,
}
