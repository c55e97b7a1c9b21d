//! The source side: reads a mirror's slot and tables, writes its topics.
//!
//! A [`Service`] holds leases and runs one task per mirror. A run goes through the start
//! order (`slot`), then streams (`stream`, `change`, `publisher`) while table syncs
//! (`rounds`, `snapshot`), a look at the mapped tables now and then (`watch`) and reports go
//! on beside it. Any error ends the run; the next one
//! begins at the top. docs/invariants.md lists every point at which it may die.

mod adopt;
mod change;
mod checkpoints;
pub mod crash_points;
mod definitions;
mod error;
mod exclusion;
mod last_wish;
mod memory;
mod mirror;
mod paused;
mod publication;
mod publisher;
mod removal;
mod report;
mod rounds;
mod run;
mod service;
mod size;
mod slot;
mod snapshot;
mod stream;
mod superseded;
mod table_topics;
mod watch;

pub use error::{Error, Result};
pub use run::Options;
pub use service::Service;
pub use slot::{Refusal, SequenceError};
