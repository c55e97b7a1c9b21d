//! The REST service: what users see and want of BunnyDB.
//!
//! It holds no truth of its own: wishes go to the catalog, what is known comes from the catalog, the
//! peers and Kafka. It is never on the data path; mirrors run on while it is away. Any number of
//! replicas may serve at once.
//!
//! * [`Service`] listens and shuts down; [`router`] is the same without a listener.
//! * `router.rs` holds the one table of routes, each with who may call it.
//! * `openapi/` makes the document of all of it, from the routes, what reads requests and what handlers return.
//! * `answer.rs` holds the answers a handler may give.
//! * `gauges.rs` shows every mirror in the metrics of the process.
//! * `mirror_validation/` decides whether a mirror can be created, before anything is.
//!
//! Every answer that is not a success is `{"error": "<what is wrong and what to do>"}` with the right
//! status, also for a bad body, an unknown path, a wrong method and a failure of our own.

mod answer;
mod auth;
mod commands;
mod error;
mod gauges;
mod health;
mod mirror_validation;
mod mirrors;
mod openapi;
mod peers;
mod readiness;
mod refusal;
mod registry;
mod request;
mod router;
mod service;
mod state;
mod users;

pub use error::Error;
pub use gauges::show_gauges;
pub use router::router;
pub use service::Service;
pub use state::{Api, Options};
