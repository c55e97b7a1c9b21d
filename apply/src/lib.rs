//! The destination side: reads a mirror's topics and writes its tables.
//!
//! A run of a mirror takes the destination over (`bookkeeping`), loads the tables that
//! are not loaded yet (`table_sync`), then follows the change topic: `reader` decodes
//! it into batches of whole source transactions (`batch`), `net_effect` folds a batch
//! into what remains of it per row, `writer` turns that into set-based SQL, and rows and
//! progress commit together. Any error ends the run by one path; the next run starts
//! from the progress row.

mod adopt;
mod ahead;
mod ambiguous_text;
pub mod batch;
mod batch_log;
mod behind;
pub mod bookkeeping;
pub mod budget;
mod catch_up;
mod commands;
pub mod context;
mod copy_in;
pub mod crash_points;
pub mod crossing;
mod error;
pub mod event;
mod last_wish;
pub mod main_stream;
mod mirror;
pub mod net_effect;
mod parked;
mod paused;
mod quarantine;
pub mod reader;
mod removal;
pub mod replay;
mod report;
pub mod retention;
pub mod routes;
mod schema;
mod schema_change;
mod schema_sync;
mod service;
pub mod stats;
mod swap;
pub mod table_sync;
mod turns;
pub mod waits;
mod wanted;
pub mod writer;

pub use context::MirrorRun;
pub use error::{Error, Result};
pub use service::{Options, Service};
