//! End-to-end suites on real Postgres and real Kafka, one binary so that all share one
//! set of servers.

mod answers;
mod control;
mod crashes;
mod deletion;
mod excluded_columns;
mod failover;
mod failures;
mod fidelity;
#[cfg(feature = "full")]
mod full;
#[cfg(feature = "full")]
mod fuzz;
mod generations;
mod kills;
mod lifecycle;
#[cfg(feature = "full")]
mod machine;
mod mirrors;
mod objects;
mod oracles;
mod outages;
mod parked;
mod pausing;
mod pgbench;
mod replay;
mod replay_swap;
mod retention;
mod scene;
mod schema_changes;
#[cfg(feature = "full")]
mod schema_registry;
mod schema_sync;
mod secrets;
mod seed;
mod snapshots;
mod source_changes;
mod source_writes;
mod subscribers;
mod swap;
mod swap_kinds;
mod tables;
mod tail;
mod tls;
mod types;
mod untracked;
