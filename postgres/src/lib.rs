//! Postgres primitives that every other room stands on: connections and TLS,
//! identifiers, log positions, introspection, the `pgoutput` decoder, COPY text
//! and the replication ("walsender") session.
//!
//! Nothing here knows Kafka, events or mirrors. The parts that only turn bytes
//! into values ([`pgoutput`], [`copy_text`], [`copy_binary`], [`Lsn`], [`TableName`]) do no I/O and
//! never panic, whatever they are fed. The parts that talk to a server return
//! [`Error`], which says what was being done and whether trying again may help
//! ([`Error::is_transient`]); nothing in this crate retries by itself.

pub mod copy_binary;
pub mod copy_text;
mod error;
pub mod introspect;
mod lsn;
mod name;
mod options;
pub mod pgoutput;
pub mod replication;
mod session;
mod tls;

pub use error::{Error, Result, ResultExt, describe};
pub use introspect::{
    ColumnDefinition, IdentityKind, Leaf, ReplicaIdentity, ServerInfo, TableDefinition, TableKind,
    TableObjects, TableSummary,
};
pub use lsn::{Lsn, ParseLsnError};
pub use name::{ParseTableNameError, TableName, quote_ident, quote_literal};
pub use options::{ConnectOptions, SslMode};
pub use session::{NameMatch, Session, pinned_options, terminate_sessions};
