//! Sets one table aside so that the others can go on.

use bunny_catalog::LogLevel;
use bunny_postgres::TableName;

use crate::bookkeeping;
use crate::context::MirrorRun;
use crate::error::{Error, Result};

/// Marks the table ERRORED with its reason. Its changes from `restart_offset` on stay in
/// the log; whoever brings it back begins there.
pub(crate) async fn set_aside(
    run: &MirrorRun,
    table: &TableName,
    reason: &str,
    restart_offset: Option<i64>,
) -> Result<()> {
    let session = run.connect().await?;
    let client: &tokio_postgres::Client = &session;
    client
        .batch_execute("BEGIN")
        .await
        .map_err(Error::sql("beginning to set a table aside"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    bookkeeping::quarantine_table(client, run.mirror_id(), table, reason, restart_offset).await?;
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("setting a table aside"))?;
    tracing::error!(mirror = %run.mirror.name, %table, reason, restart_offset, "table is ERRORED, the others go on");
    run.reporter.log(
        LogLevel::Error,
        format!("table {table} is ERRORED: {reason}"),
        serde_json::json!({"table": table.to_string(), "restart_offset": restart_offset}),
    );
    Ok(())
}
