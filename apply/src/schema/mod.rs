//! The destination's schema: SQL text for every object of a table, built from the
//! definition in the log and nothing else.
//!
//! - `table`, `expression`: the table itself and its columns (pure).

pub(crate) mod expression;
pub(crate) mod table;
