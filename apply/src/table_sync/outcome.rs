//! Stores how a table left the loader's hands, each in one fenced transaction.

use bunny_postgres::{Session, TableName};
use chrono::Utc;

use super::board::{Announced, SyncId};
use super::start::changed_meanwhile;
use crate::bookkeeping::{self, State};
use crate::context::MirrorRun;
use crate::error::{Error, Result};

/// Whether an error is about one table's data or definition, so that only this table
/// stops; every other error ends the run.
pub(super) fn blames_table(error: &Error) -> bool {
    let is_answer = error.sqlstate().is_some() || matches!(error, Error::Refused(_));
    is_answer && !error.is_transient()
}

/// All chunks are committed: the table catches up from here.
pub(super) async fn store_loaded(
    session: &Session,
    run: &MirrorRun,
    source: &TableName,
    sync: &SyncId,
    loaded: &Announced,
) -> Result<()> {
    let ledger = run.ledger;
    let client = begin(session, run).await?;
    let mut table = bookkeeping::table(client, ledger, source)
        .await?
        .filter(|table| table.request_id == Some(sync.request_id) && table.attempt == sync.attempt)
        .ok_or_else(|| changed_meanwhile(source))?;
    table.state = State::CatchingUp;
    table.live = Some(loaded.live);
    table.chunks_total = Some(loaded.chunks);
    table.rows_total = Some(loaded.rows);
    table.rows_synced = loaded.rows;
    table.last_synced_at = Some(Utc::now());
    bookkeeping::put_table(client, ledger, &table).await?;
    bookkeeping::forget_chunks(client, ledger, sync.request_id).await?;
    commit(client).await
}

/// The table is set aside with its reason; its rows stay as they are.
pub(super) async fn store_failed(
    session: &Session,
    run: &MirrorRun,
    source: &TableName,
    reason: &str,
) -> Result<()> {
    let client = begin(session, run).await?;
    bookkeeping::quarantine_table(client, run.ledger, source, reason, None).await?;
    commit(client).await
}

async fn begin<'a>(session: &'a Session, run: &MirrorRun) -> Result<&'a tokio_postgres::Client> {
    let client: &tokio_postgres::Client = session;
    client
        .batch_execute("BEGIN")
        .await
        .map_err(Error::sql("beginning to store a table's state"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
    Ok(client)
}

async fn commit(client: &tokio_postgres::Client) -> Result<()> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing a table's state"))
}
