//! Resync by swap: a table is loaded beside itself, and its rows are exchanged at once.
//!
//! The sync fills `_bunny_resync_<oid>` in the table's schema while the table itself stays in
//! main. A catch-up reader of its own brings what is loaded to where main is. There main
//! holds for a moment, the table is taken out of it (PARKED), and one transaction makes the
//! table's rows those that are beside it, with its position and states: readers see the
//! former rows or the new ones, never none, and wait for nobody, because nothing is renamed,
//! truncated or locked against them. So everything that hangs on the table stays as it is.
//!
//! What is loaded beside has its rows in `_bunny.tables`, `_bunny.chunks` and
//! `_bunny.shapes` under an id made of the mirror's ([`ledger_of`]); loader, writer and
//! catch-up reader work on them as on any other table. docs/invariants.md has the states.
//!
//! On failure: a lock that someone holds puts the table back into main, and it is tried
//! again with growing pauses; what the table refuses ends the swap, and the table goes on
//! with the rows it had. A run that ends leaves at most a PARKED table, which the next one
//! puts back.

mod exchange;
mod tidy;

use bunny_catalog::LogLevel;
use bunny_postgres::TableName;
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::bookkeeping::{self, Progress, State, TableState};
use crate::context::MirrorRun;
use crate::error::{Error, Result};

pub(crate) use exchange::{exchange, is_due, may_pass};
pub(crate) use tidy::{dropping_by_hand, forget_all, let_go, put, tidy};

/// What the status says of a table that is out of main for the exchange.
pub(crate) const EXCHANGED: &str = "its rows are being exchanged for those of its resync";

/// How long anything of a swap waits for someone else's lock.
pub(crate) const LOCK_TIMEOUT: &str = "5s";

/// The id under which `_bunny` holds what a mirror loads beside its tables.
pub(crate) fn ledger_of(mirror_id: Uuid) -> Uuid {
    // No version 4 UUID becomes another's by this: it changes the version.
    Uuid::from_u128(mirror_id.as_u128() ^ (0xF << 76))
}

/// The table that is filled beside the destination table of that oid.
pub(crate) fn beside(destination: &TableName, oid: u32) -> TableName {
    TableName::new(
        destination.schema.as_str(),
        format!("_bunny_resync_{oid}").as_str(),
    )
}

/// Whether readers have something of the table that is to be kept until it is exchanged:
/// its rows as of some point of this generation. Pure.
pub(crate) fn stands(table: &TableState, generation: Uuid) -> bool {
    let is_loaded = table.live.is_some() || table.request_id.is_none();
    table.generation == Some(generation)
        && is_loaded
        && !matches!(table.state, State::Pending | State::Syncing)
}

/// Whether the table is out of main so that its rows can be exchanged. Pure.
pub(crate) fn is_out_for_exchange(table: &TableState) -> bool {
    table.state == State::Parked && !table.in_main && table.error.as_deref() == Some(EXCHANGED)
}

/// Whether anything is, or is to be, beside the mirror's tables.
pub(crate) async fn is_asked_for(run: &MirrorRun) -> Result<bool> {
    let session = run.connect().await?;
    let client: &Client = &session;
    let tables = bookkeeping::tables(client, ledger_of(run.mirror_id())).await?;
    Ok(!tables.is_empty())
}

/// Makes the empty table beside `destination`, in the transaction that begins its sync.
pub(crate) async fn create(
    client: &Client,
    destination: &TableName,
    beside: &TableName,
) -> Result<()> {
    let (like, name) = (destination.quoted(), beside.quoted());
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS {name};
             CREATE TABLE {name} (LIKE {like} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE
                 INCLUDING COMPRESSION INCLUDING INDEXES);
             COMMENT ON TABLE {name} IS 'Filled by BunnyDB for a resync; it goes away by itself.'"
        ))
        .await
        .map_err(Error::sql(format!("making room beside {destination}")))
}

/// The tables that are in main and so can be taken out of it.
pub(crate) async fn in_main(run: &MirrorRun, client: &Client) -> Result<Vec<TableName>> {
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    let in_main = tables.into_iter().filter(|table| table.in_main);
    Ok(in_main.map(|table| table.source).collect())
}

/// Takes a table out of main, which holds at `main`; what is beside it is there too.
/// False: it is not in main any more.
pub(crate) async fn take_out(
    run: &MirrorRun,
    client: &Client,
    table: &TableName,
    main: &Progress,
) -> Result<bool> {
    begin(run, client).await?;
    if bookkeeping::progress(client, run.mirror_id()).await? != Some(*main) {
        return Err(Error::NotYet(
            "main moved while it was held for a swap; starting again".to_owned(),
        ));
    }
    let taken = client
        .execute(
            "UPDATE _bunny.tables SET state = 'PARKED', in_main = false, restart_offset = $4, error = $5,
                 updated_at = now()
             WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3 AND in_main",
            &[&run.mirror_id(), &table.schema, &table.name, &main.next_offset, &EXCHANGED],
        )
        .await
        .map_err(Error::sql(format!("taking table {table} out of main")))?;
    commit(client).await?;
    Ok(taken > 0)
}

/// Lets the tables that were taken out go on: they catch up and join main again.
pub(crate) async fn put_back(run: &MirrorRun, client: &Client) -> Result<()> {
    begin(run, client).await?;
    put_back_in(run, client).await?;
    commit(client).await
}

async fn put_back_in(run: &MirrorRun, client: &Client) -> Result<()> {
    client
        .execute(
            "UPDATE _bunny.tables SET state = 'CATCHING_UP', error = NULL, updated_at = now()
             WHERE mirror_id = $1 AND state = 'PARKED' AND error = $2",
            &[&run.mirror_id(), &EXCHANGED],
        )
        .await
        .map(|_| ())
        .map_err(Error::sql("letting tables go on without an exchange"))
}

/// The swap of a table has failed: it goes on with the rows it has.
pub(crate) async fn give_up(run: &MirrorRun, table: &TableName, reason: &str) -> Result<()> {
    let session = run.connect().await?;
    let client: &Client = &session;
    begin(run, client).await?;
    bookkeeping::quarantine_table(client, run.ledger, table, reason, None).await?;
    put_back_in(run, client).await?;
    commit(client).await?;
    say_given_up(run, table, reason);
    Ok(())
}

/// Says in the mirror's log that the swap of a table has failed.
pub(crate) fn say_given_up(run: &MirrorRun, table: &TableName, reason: &str) {
    tracing::warn!(mirror = %run.mirror.name, %table, reason, "a swap is given up");
    run.reporter.log(
        LogLevel::Error,
        format!("the resync of table {table} by swap is given up, the table goes on with the rows it has: {reason}"),
        serde_json::json!({"table": table.to_string(), "reason": reason}),
    );
}

/// Opens a fenced transaction that waits a bounded time for locks.
async fn begin(run: &MirrorRun, client: &Client) -> Result<()> {
    client
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL synchronous_commit = on"
        ))
        .await
        .map_err(Error::sql("beginning a step of a swap"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await
}

async fn commit(client: &Client) -> Result<()> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing a step of a swap"))
}

/// The oid of a destination table, if it is there.
pub(crate) async fn oid_of<C: GenericClient + Sync>(
    client: &C,
    table: &TableName,
) -> Result<Option<u32>> {
    let row = client
        .query_one("SELECT to_regclass($1)::oid", &[&table.quoted()])
        .await
        .map_err(Error::sql(format!("looking for destination table {table}")))?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_no_mirror_of_its_own() {
        let mirror = Uuid::new_v4();
        let ledger = ledger_of(mirror);
        assert_ne!(ledger, mirror);
        assert_eq!(ledger_of(ledger), mirror);
        assert_ne!(ledger.get_version_num(), 4);
    }

    #[test]
    fn a_table_is_kept_for_readers_once_it_is_loaded() {
        let generation = Uuid::from_u128(7);
        let name = TableName::new("public", "t");
        let loaded = TableState {
            state: State::Live,
            generation: Some(generation),
            live: Some(bunny_schemas::Position::default()),
            ..TableState::wanted(name.clone(), name, Some(Uuid::from_u128(1)))
        };
        assert!(stands(&loaded, generation));
        assert!(!stands(&loaded, Uuid::from_u128(8)));
        let with = |state| TableState {
            state,
            ..loaded.clone()
        };
        assert!(stands(&with(State::Errored), generation));
        assert!(!stands(&with(State::Syncing), generation));
        let failed_loading = TableState {
            live: None,
            ..with(State::Errored)
        };
        assert!(!stands(&failed_loading, generation));
    }
}
