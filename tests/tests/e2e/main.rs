//! End-to-end suites on real Postgres and real Kafka, one binary so that all share one
//! set of servers.
