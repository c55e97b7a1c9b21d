//! The testkit: real servers, real processes, and oracles that say whether what
//! came out is right.
//!
//! - [`services`]: Postgres servers and Kafka, one set for a whole test run.
//! - [`bunny`]: `bunny` processes that can be killed at any moment or at a named point.
//! - [`stage`]: everything one test owns: databases, topic prefix, processes, a mirror.
//! - [`contract`]: every answer of the API is as its document says.
//! - [`content`]: source and destination hold the same rows.
//! - [`topic`]: the topics, read by another Avro implementation, hold the source's history.
//! - [`backup`]: dumps of a database, databases made from them, and base backups.
//! - [`broker`]: the topics and consumer groups there are.
//! - [`load`]: writers that keep changing the source while things break.
//! - [`transfers`]: writers and a reader that tell whether whole transactions arrive.
//! - [`clients`]: programs that read the topics from outside.
//! - [`cluster`]: a Kafka of three nodes that die one by one.
//! - [`connect`]: Kafka Connect with Debezium's JDBC sink.
//! - [`proxy`]: a TCP proxy that cuts, freezes and refuses connections.
//!
//! It uses none of the product's crates, so that no mistake can hide on both sides.

pub mod api;
pub mod backup;
pub mod broker;
pub mod bunny;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod connect;
pub mod content;
pub mod contract;
pub mod database;
pub mod load;
pub mod lsn;
pub mod pgbench;
pub mod ports;
pub mod proxy;
pub mod registry;
pub mod services;
pub mod stage;
pub mod topic;
pub mod transfers;
