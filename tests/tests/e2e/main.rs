//! End-to-end suites on real Postgres and real Kafka, one binary so that all share one
//! set of servers.
//!
//! With the `full` feature come those that take too long for every change; whoever else helps
//! only them is idle without it.
#![cfg_attr(not(feature = "full"), allow(dead_code, unused_imports))]

mod answers;
mod api_deaths;
mod avro_topics;
#[cfg(feature = "full")]
mod broker_cluster;
#[cfg(feature = "full")]
mod checkpoint_interval;
mod command_crashes;
mod control;
mod crashes;
mod deletion;
mod enum_labels;
mod excluded_columns;
mod failover;
mod failures;
mod fan_out;
mod fan_out_deaths;
mod fidelity;
#[cfg(feature = "full")]
mod full;
#[cfg(feature = "full")]
mod full_disk;
#[cfg(feature = "full")]
mod fuzz;
#[cfg(feature = "full")]
mod fuzz_leaks;
mod generated_columns;
mod generations;
mod given_names;
#[cfg(feature = "full")]
mod jdbc_sink;
mod kills;
mod lifecycle;
mod lost_copies;
mod lost_schemas;
#[cfg(feature = "full")]
mod machine;
mod mapping_changes;
mod mirrors;
mod moments;
mod objects;
mod options;
mod oracles;
mod outages;
mod parked;
mod pausing;
mod pgbench;
mod privileges;
mod readers;
mod recovery;
mod recovery_attached;
#[cfg(feature = "full")]
mod recovery_destination;
mod refused_creation;
mod replay;
mod replay_moments;
mod replay_swap;
mod resync_columns;
#[cfg(feature = "full")]
mod resync_points;
mod retention;
#[cfg(feature = "full")]
mod retry;
mod scene;
mod schema_changes;
mod schema_modes;
#[cfg(feature = "full")]
mod schema_registry;
#[cfg(feature = "full")]
mod schema_registry_access;
mod schema_sync;
mod secrets;
mod seed;
mod settings;
mod shutdown;
mod snapshots;
#[cfg(feature = "full")]
mod soak;
#[cfg(feature = "full")]
mod soak_readers;
mod source_changes;
mod source_writes;
#[cfg(feature = "full")]
mod stopped_mirror;
mod subscribers;
mod swap;
mod swap_kinds;
mod swap_locked;
mod table_failures;
mod table_list;
#[cfg(feature = "full")]
mod table_list_points;
mod table_topics;
mod tables;
mod tail;
mod tls;
#[cfg(feature = "full")]
mod touched_history;
mod types;
mod until_schema;
mod untracked;
mod untracked_proofs;
