//! What a server says about itself and its tables.

mod definition;
mod server;
mod tables;

pub use definition::{
    ColumnDefinition, IdentityKind, Leaf, ReplicaIdentity, TableDefinition, TableKind,
    table_definition,
};
pub use server::{ServerInfo, server_info};
pub use tables::{TableSummary, list_tables};
