//! The writer on a real destination, against a model of what the source holds:
//!
//! ```text
//! DESTINATION_URL=… cargo test -p bunny-apply --test writer -- --ignored
//! ```
//!
//! Each test uses a mirror and a schema of its own.
#![allow(clippy::unwrap_used)]

mod ahead;
mod disagreements;
mod random_histories;
mod rows;
mod stage;
#[path = "../support/mod.rs"]
mod support;
