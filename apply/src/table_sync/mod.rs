//! Table sync at the destination: loads the chunks of the snapshot topic.
//!
//! Contract: [`load`] returns once every table that `_bunny.tables` shows as PENDING or
//! SYNCING with a request is CATCHING_UP (all its rows as of its point L are committed,
//! each exactly once) or ERRORED (with the reason). It can die anywhere and be called
//! again: it reads the topic from where those syncs begin and passes over what `_bunny.chunks`
//! shows as committed in the same transactions as the rows.
//!
//! - `board`: which syncs count and what is loaded of them; `lane`: what one partition
//!   does with each record. Both are plain decisions on values.
//! - `loader`, `partition_task`: carry the decisions out, one task per partition.
//! - `snapshot_topic`: reading; `start`, `chunk_copy`, `outcome`: the three kinds of
//!   destination transactions.
//! - `finishing`: indexes and constraints, before a table counts as loaded.
//! - `destination_table`: the table that is loaded (its SQL is built in `crate::schema`).
//!
//! An error about one table's data or definition sets that table aside and the others go
//! on; every other error ends the load, and the caller starts it again.

mod board;
pub(crate) mod chunk_copy;
mod columns;
pub(crate) mod destination_table;
mod finishing;
mod generated;
mod lane;
mod loader;
mod outcome;
mod partition_task;
mod refusals;
mod snapshot_topic;
mod start;

pub use board::{Announced, Outcome, TableProgress};
pub(crate) use loader::Loads;
pub use loader::{LoadProgress, load};
