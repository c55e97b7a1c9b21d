//! What retention stores at a real destination:
//!
//! ```text
//! DESTINATION_URL=… BUNNY_KAFKA_BROKERS=… cargo test -p bunny-apply --test retention -- --ignored
//! ```
#![allow(clippy::unwrap_used)]

use bunny_apply::{bookkeeping, retention};
use bunny_catalog::MirrorConfig;
use bunny_postgres::{ConnectOptions, Session, TableName};
use bunny_schemas::registry::Registry;
use bunny_schemas::topics::Topics;

#[path = "support/mirrors.rs"]
mod mirrors;
mod support;
use support::destination;

/// So often, for the server writes by itself what nobody waits for, a little later.
const ROUNDS: i64 = 20;

async fn connect() -> Session {
    let options: ConnectOptions = destination();
    let session = Session::connect(&options, "bunny test").await.unwrap();
    // As at a destination that is set so for all its sessions.
    let set = session.batch_execute("SET synchronous_commit = off").await;
    set.unwrap();
    session
}

#[tokio::test]
#[ignore = "needs servers"]
async fn what_is_applied_is_on_disk_before_records_go() {
    let kafka = mirrors::kafka();
    let mut mirror = mirrors::mirror("floor", MirrorConfig::default());
    let name = TableName::new("public", "t");
    mirror.tables = vec![mirrors::mapping(name.clone(), name)];
    let topics = Topics::new("floor-test");
    let registry = Registry::reading(kafka.clone(), &topics);
    let (applies, trims) = (connect().await, connect().await);
    bookkeeping::install(&applies).await.unwrap();
    let run = mirrors::take_over(&mirror, &kafka, &topics, &registry).await;
    let rows = format!("public.\"rows {}\"", mirror.slug);
    let create = format!("CREATE TABLE {rows} (v text)");
    applies.batch_execute(&create).await.unwrap();
    for floor in 1..=ROUNDS {
        let insert = format!("INSERT INTO {rows} SELECT repeat('v', 1000)");
        applies.batch_execute(&insert).await.unwrap();
        let written = applies
            .query_one("SELECT pg_current_wal_insert_lsn()", &[])
            .await
            .unwrap();
        let written: tokio_postgres::types::PgLsn = written.get(0);
        let before = retention::raise(&run, &trims, mirror.generation, floor).await;
        assert_eq!(before.unwrap(), floor - 1);
        let flushed = trims
            .query_one("SELECT pg_current_wal_flush_lsn()", &[])
            .await
            .unwrap();
        let flushed: tokio_postgres::types::PgLsn = flushed.get(0);
        assert!(flushed >= written, "{flushed} is on disk, not {written}");
    }
}
