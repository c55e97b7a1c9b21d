//! Installing what apply keeps at a real destination:
//!
//! ```text
//! DESTINATION_URL=… BUNNY_KAFKA_BROKERS=… cargo test -p bunny-apply --test installation -- --ignored
//! ```
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bunny_apply::bookkeeping;
use bunny_postgres::{ConnectOptions, Session};
use uuid::Uuid;

mod support;
use support::destination;

/// Of the installation.
const LOCK: i64 = 0x0062_756e_6e79;

async fn connect(options: &ConnectOptions) -> Session {
    Session::connect(options, "bunny test").await.unwrap()
}

/// Both have looked, in vain, before either begins.
#[tokio::test]
#[ignore = "needs servers"]
async fn two_mirrors_come_to_a_new_destination_at_once() {
    let mut options = destination();
    let admin = connect(&options).await;
    let database = format!("install_{}", Uuid::new_v4().simple());
    let create = format!("CREATE DATABASE {database}");
    admin.batch_execute(&create).await.unwrap();
    options.database = database.clone();
    let (holder, one, other) =
        tokio::join!(connect(&options), connect(&options), connect(&options));
    // A session that has all it needs in its caches asks the server's tables for nothing more.
    for (session, schema) in [(&one, "a"), (&other, "b")] {
        let warm = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; BEGIN; SELECT pg_advisory_xact_lock(1); COMMIT"
        );
        session.batch_execute(&warm).await.unwrap();
    }
    let hold = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})");
    holder.batch_execute(&hold).await.unwrap();
    let let_go = async {
        let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()";
        while holder
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            < 2
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        holder.batch_execute("COMMIT").await.unwrap();
    };
    let (one, other, ()) = tokio::join!(
        async { bookkeeping::install(&one).await.and(Ok(one)) },
        async { bookkeeping::install(&other).await.and(Ok(other)) },
        let_go,
    );
    for session in [one.unwrap(), other.unwrap(), holder] {
        session.close().await;
    }
    let drop = format!("DROP DATABASE {database} WITH (FORCE)");
    admin.batch_execute(&drop).await.unwrap();
}
