//! A slot is made only when the transactions that were running have ended; who holds it up
//! must show.

use std::time::Duration;

use bunny_postgres::{ResultExt, Session};

/// How often a slot that can't be created yet is looked into.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The transactions that hold up the server process `pid`, in words.
///
/// A prepared transaction has no process (`pg_blocking_pids` says 0 of it): it is known by the
/// transaction id that is waited for.
pub(crate) async fn blockers(
    session: &Session,
    pid: i32,
) -> bunny_postgres::Result<Option<String>> {
    let row = session
        .query_one(
            "SELECT string_agg(who, ', ' ORDER BY who) FROM ( \
               SELECT format('pid %s of %s since %s', a.pid, \
                      coalesce(a.usename::text, 'an unnamed user'), \
                      coalesce(a.xact_start::text, 'unknown')) \
               FROM pg_catalog.pg_stat_activity a \
               WHERE a.pid = ANY (pg_catalog.pg_blocking_pids($1)) \
               UNION ALL \
               SELECT format('prepared transaction %L of %s in database %s since %s \
                      (COMMIT PREPARED or ROLLBACK PREPARED it there)', \
                      p.gid, p.owner, p.database, p.prepared) \
               FROM pg_catalog.pg_prepared_xacts p \
               JOIN pg_catalog.pg_locks l ON l.transactionid = p.transaction \
               WHERE l.pid = $1 AND NOT l.granted) AS holding (who)",
            &[&pid],
        )
        .await
        .doing("looking for what the slot's creation waits for")?;
    Ok(row.get(0))
}
