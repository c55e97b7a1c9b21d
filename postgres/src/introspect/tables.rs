//! The tables of a database, in brief.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Result, ResultExt, Session};

/// One table a user may choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TableSummary {
    /// Schema.
    pub schema: String,
    /// Table.
    pub table_name: String,
    /// Rows, as the planner and the statistics estimate them; leaves included.
    pub row_estimate: i64,
    /// Bytes of the table and its TOAST, without indexes; leaves included.
    pub size_bytes: i64,
    /// `default`, `nothing`, `full` or `index`, as set on the table itself.
    #[schemars(extend("enum" = ["default", "nothing", "full", "index"]))]
    pub replica_identity: String,
    /// It has a primary key.
    pub has_primary_key: bool,
}

/// Sizes from the files: true, but each takes a lock on its table for a moment.
const TRUE_SIZE: &str = "pg_table_size(part.oid)";

/// Sizes from the last vacuum or analyze: takes no lock.
const ESTIMATED_SIZE: &str = "part.relpages::int8 * current_setting('block_size')::int8";

/// What a mirror may take: permanent ordinary tables and partition roots.
const MIRRORABLE: &str = "c.relkind IN ('r', 'p') AND c.relpersistence = 'p'";

/// What somebody may take for such: unlogged and foreign tables too.
const EVERY_TABLE: &str = "c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'";

/// The tables that are `meant`, without partitions (their root stands for them), system
/// schemas, and what is our own.
fn list_statement(meant: &str, size: &str) -> String {
    format!(
        "SELECT n.nspname AS schema, c.relname AS table_name,
                coalesce(held.row_estimate, 0) AS row_estimate,
                coalesce(held.size_bytes, 0) AS size_bytes,
                CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'n' THEN 'nothing'
                                    WHEN 'f' THEN 'full' ELSE 'index' END AS replica_identity,
                EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
                    AS has_primary_key
         FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (
             SELECT sum(CASE WHEN part.reltuples >= 0 THEN part.reltuples::int8
                             ELSE pg_stat_get_live_tuples(part.oid) END)::int8 AS row_estimate,
                    sum({size})::int8 AS size_bytes
             FROM (SELECT c.oid WHERE c.relkind = 'r'
                   UNION ALL
                   SELECT t.relid FROM pg_partition_tree(c.oid) t
                   WHERE c.relkind = 'p' AND t.isleaf) member
             JOIN pg_class part ON part.oid = member.oid AND part.relkind = 'r'
         ) held
         WHERE {meant} AND NOT c.relispartition
           AND n.nspname NOT IN ('information_schema', '_bunny')
           AND NOT starts_with(n.nspname, 'pg_')
           AND NOT starts_with(c.relname, '_bunny_resync_')
         ORDER BY n.nspname, c.relname"
    )
}

/// Lists the tables a mirror may take, ordered by schema and name. Not to be called
/// inside a transaction.
///
/// Sizes are true ones; if some table is locked exclusively for longer than 2 s, all
/// are taken from the last vacuum instead, so that nobody's DDL blocks the list.
pub async fn list_tables(session: &Session) -> Result<Vec<TableSummary>> {
    list(session, MIRRORABLE).await
}

/// The same with the tables that no mirror may take: unlogged and foreign ones.
pub async fn list_every_table(session: &Session) -> Result<Vec<TableSummary>> {
    list(session, EVERY_TABLE).await
}

async fn list(session: &Session, meant: &str) -> Result<Vec<TableSummary>> {
    session.batch("SET lock_timeout = '2s'").await?;
    let with_true_sizes = session.query(&list_statement(meant, TRUE_SIZE), &[]).await;
    session.batch("SET lock_timeout = 0").await?;
    let rows = match with_true_sizes {
        Err(error)
            if error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) =>
        {
            session
                .query(&list_statement(meant, ESTIMATED_SIZE), &[])
                .await
        }
        other => other,
    };
    let rows = rows.doing("listing tables")?;
    let tables = rows.iter().map(|row| TableSummary {
        schema: row.get("schema"),
        table_name: row.get("table_name"),
        row_estimate: row.get("row_estimate"),
        size_bytes: row.get("size_bytes"),
        replica_identity: row.get("replica_identity"),
        has_primary_key: row.get("has_primary_key"),
    });
    Ok(tables.collect())
}
