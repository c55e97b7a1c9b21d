//! The destination's schema: SQL text for every object of a table, built from the
//! definition in the log and nothing else.
//!
//! Pure, from values to SQL text:
//! - `table`, `expression`: the table itself and its columns;
//! - `collations`, `types`: what a table stands on;
//! - `after_load`: indexes and constraints that come when the rows are there;
//! - `foreign_keys`: between tables that are LIVE; `sequences`;
//! - `step`: one object that may be refused without anything else suffering.
//!
//! `foundations` creates extensions, collations and types; `build` carries plans out; `upkeep` does so beside main.

pub(crate) mod after_load;
pub(crate) mod build;
mod collations;
pub(crate) mod expression;
pub(crate) mod foreign_keys;
pub(crate) mod foundations;
pub(crate) mod sequences;
pub(crate) mod step;
pub(crate) mod table;
mod types;
pub(crate) mod upkeep;
