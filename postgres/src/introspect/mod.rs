//! What a server says about itself and its tables.
//!
//! Each function is one statement, so what it returns belongs together. Type names
//! and expressions come out qualified, because sessions are pinned to
//! `search_path = pg_catalog`.

mod definition;
mod fit;
mod identity;
mod labels;
mod objects;
mod server;
mod tables;
mod wal;
mod watch;

pub use definition::{
    ColumnDefinition, IdentityKind, Leaf, ReplicaIdentity, TableDefinition, TableKind,
    table_definition,
};
pub use fit::{Fit, fit};
pub use labels::{EnumLook, enums};
pub use objects::{
    Attribute, CollationDefinition, ColumnTraits, ConstraintDefinition, ConstraintKind,
    DomainCheck, Extension, ForeignKeyDefinition, IndexDefinition, IndexKey, SequenceDefinition,
    SequenceRole, TableObjects, TypeDefinition, TypeShape, table_objects,
};
pub use server::{ServerInfo, any_client_is_a_standby, refuse_as_a_standby, server_info};
pub use tables::{TableSummary, list_every_table, list_tables};
pub use wal::end_of_wal;
pub use watch::{ColumnLook, HeldLook, Look, Member, PublicationState, TableLook, look};
