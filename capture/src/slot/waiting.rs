//! A slot is made only when the transactions that were running have ended; who holds it up
//! must show.

use std::time::Duration;

use bunny_postgres::{ResultExt, Session};

/// How often a slot that can't be created yet is looked into.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The transactions that hold up the server process `pid`, in words.
pub(crate) async fn blockers(
    session: &Session,
    pid: i32,
) -> bunny_postgres::Result<Option<String>> {
    let row = session
        .query_one(
            "SELECT string_agg(format('pid %s of %s since %s', a.pid, \
                    coalesce(a.usename::text, 'an unnamed user'), \
                    coalesce(a.xact_start::text, 'unknown')), ', ' ORDER BY a.pid) \
             FROM pg_catalog.pg_stat_activity a \
             WHERE a.pid = ANY (pg_catalog.pg_blocking_pids($1))",
            &[&pid],
        )
        .await
        .doing("looking for what the slot's creation waits for")?;
    Ok(row.get(0))
}
