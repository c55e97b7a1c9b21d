//! The exchange itself: one transaction, after which the table's rows are those beside it.
//!
//! Rows are told apart by the text of the columns that the source feeds, as everything that
//! reaches a destination is (I8); a row that is there as often as it should be is not
//! touched, so an exchange writes no more than what differs. Deletes come before inserts,
//! and no constraint is met by rows of both sides.

use bunny_catalog::LogLevel;
use bunny_postgres::{TableName, quote_ident};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{begin, commit};
use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::schema_change::destination;
use crate::schema_change::shape::{self, Shape};
use crate::waits::Task;
use crate::writer;

/// Exchanges the rows of every table that is out of main and whose rows beside it are at
/// least as new, and tells of how many. The session is in replica role where that is allowed.
///
/// # Errors
/// [`Error::Table`] where one table refuses; a lock that is not had in time as the
/// database's error. The transaction is rolled back with the session then.
pub(crate) async fn exchange(run: &MirrorRun, client: &Client) -> Result<usize> {
    let loaded = bookkeeping::tables(client, run.ledger).await?;
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    let mut exchanged = 0;
    for beside in &loaded {
        let table = tables.iter().find(|table| table.source == beside.source);
        if let Some(table) = table.filter(|table| is_ready(table, beside)) {
            one(run, client, table, beside)
                .await
                .map_err(|error| of_table(&table.source, error))?;
            exchanged += 1;
        }
    }
    Ok(exchanged)
}

/// Whether [`exchange`] would find something to do.
pub(crate) async fn is_due(run: &MirrorRun, client: &Client) -> Result<bool> {
    let loaded = bookkeeping::tables(client, run.ledger).await?;
    let tables = bookkeeping::tables(client, run.mirror_id()).await?;
    Ok(loaded.iter().any(|beside| {
        let mut of = tables.iter().filter(|table| table.source == beside.source);
        of.any(|table| is_ready(table, beside))
    }))
}

/// Whether nobody writes to the table, and what is beside it is not older. Pure.
fn is_ready(table: &TableState, beside: &TableState) -> bool {
    // One that is parked for somebody's lock goes on by itself at any time.
    let is_out = super::is_out_for_exchange(table) || table.state == State::Errored;
    is_out
        && beside.state == State::CatchingUp
        && beside.restart_offset >= table.restart_offset
        && beside.restart_offset.is_some()
}

/// What trying again cannot cure is the table's.
fn of_table(table: &TableName, error: Error) -> Error {
    let is_answer = error.sqlstate().is_some() || matches!(error, Error::Refused(_));
    if !is_answer || error.is_transient() || may_pass(&error) {
        return error;
    }
    Error::Table {
        table: table.clone(),
        reason: error.to_string(),
        restart_offset: None,
    }
}

/// Whether it is nothing about the table, and an exchange may succeed later: someone else's
/// lock is the reason, or the destination has not the room that only an exchange needs
/// (class 53, insufficient resources; PostgreSQL manual, appendix A).
pub(crate) fn may_pass(error: &Error) -> bool {
    let locks = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
    ];
    error.sqlstate().is_some_and(|found| {
        found.starts_with("53") || locks.iter().any(|lock| lock.code() == found)
    })
}

async fn one(
    run: &MirrorRun,
    client: &Client,
    table: &TableState,
    beside: &TableState,
) -> Result<()> {
    let destination = &table.destination;
    let doing = || format!("exchanging the rows of {destination}");
    // Rows that change are deleted and inserted: nothing may follow them.
    writer::enter_replica_role(client, &[destination.quoted()]).await?;
    begin(run, client).await?;
    // What is beside is dropped in the end. Who reads it, as a dump does, is met now, while
    // nothing is done and nobody has to wait for us.
    client
        .batch_execute(&format!(
            "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
            beside.destination.quoted()
        ))
        .await
        .map_err(Error::sql(format!(
            "{}, locking {}",
            doing(),
            beside.destination
        )))?;
    // Readers of the table go on; whoever writes beside us waits, or has made us wait. What the
    // planner thinks of tables just filled must not make it compare each row with each.
    client
        .batch_execute(&format!(
            "LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; SET LOCAL enable_nestloop = off",
            destination.quoted()
        ))
        .await
        .map_err(Error::sql(doing()))?;
    let columns = columns(run, client, table, beside).await?;
    tracing::info!(mirror = %run.mirror.name, table = %table.source, "exchanging rows");
    let sql = Statements::new(destination, &beside.destination, &columns);
    let removed = client
        .execute(&sql.delete, &[])
        .await
        .map_err(Error::sql(doing()))?;
    let added = client
        .execute(&sql.insert, &[])
        .await
        .map_err(Error::sql(doing()))?;
    take_over_states(run, client, table, beside).await?;
    client
        .batch_execute(&format!("DROP TABLE {}", beside.destination.quoted()))
        .await
        .map_err(Error::sql(doing()))?;
    reached(crash_points::SWAP_BEFORE_COMMIT);
    commit(client).await?;
    reached(crash_points::SWAP_DONE);
    run.waits.over(Task::Exchange);
    let source = &table.source;
    tracing::info!(mirror = %run.mirror.name, table = %source, removed, added, "rows exchanged");
    run.reporter.log(
        LogLevel::Info,
        format!("table {source} holds the rows of its resync: {removed} rows removed, {added} added, the others were right"),
        serde_json::json!({"table": source.to_string(), "removed": removed, "added": added}),
    );
    Ok(())
}

/// The columns that the source feeds, where both tables have them alike.
async fn columns(
    run: &MirrorRun,
    client: &Client,
    table: &TableState,
    beside: &TableState,
) -> Result<Vec<String>> {
    let shape = match shape::load(client, run.ledger, beside).await? {
        Some(shape) => Some(shape),
        None => Shape::of_sync(beside),
    };
    let fed: Vec<String> = match shape {
        Some(shape) => shape
            .columns
            .into_iter()
            .filter_map(|known| known.into)
            .collect(),
        None => beside.columns.clone(),
    };
    let there = destination::look(client, &table.destination).await?;
    let here = destination::look(client, &beside.destination).await?;
    let mut differing = Vec::new();
    for name in &fed {
        let types = [&there, &here].map(|table| table.column(name).map(|column| &column.type_name));
        if types[0].is_none() || types[0] != types[1] {
            differing.push(quote_ident(name));
        }
    }
    if !differing.is_empty() || fed.is_empty() {
        return Err(Error::Refused(format!(
            "the columns of {} are not those of its resync ({}): resync it with {{\"strategy\": \"truncate\"}}",
            table.destination,
            differing.join(", ")
        )));
    }
    let generated = client
        .query(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attgenerated <> ''",
            &[&table.destination.quoted()],
        )
        .await
        .map_err(Error::sql(format!("looking at {}", table.destination)))?;
    let is_generated = |name: &String| generated.iter().any(|row| row.get::<_, &str>(0) == name);
    Ok(fed.into_iter().filter(|name| !is_generated(name)).collect())
}

/// The table's states become those of what was beside it.
async fn take_over_states(
    run: &MirrorRun,
    client: &Client,
    table: &TableState,
    beside: &TableState,
) -> Result<()> {
    let mirror_id = run.mirror_id();
    let exchanged = TableState {
        destination: table.destination.clone(),
        retry_id: table.retry_id,
        rows_inserted: table.rows_inserted,
        rows_updated: table.rows_updated,
        rows_deleted: table.rows_deleted,
        state: State::CatchingUp,
        in_main: false,
        error: None,
        ..beside.clone()
    };
    bookkeeping::put_table(client, mirror_id, &exchanged).await?;
    bookkeeping::set_keeps_rows(client, mirror_id, &table.source, false).await?;
    let TableName { schema, name } = &table.source;
    for statement in [
        "DELETE FROM _bunny.shapes WHERE mirror_id = $1 AND mirror_id <> $2 AND source_schema = $3 AND source_table = $4",
        "UPDATE _bunny.shapes SET mirror_id = $1 WHERE mirror_id = $2 AND source_schema = $3 AND source_table = $4",
    ] {
        client
            .execute(statement, &[&mirror_id, &run.ledger, schema, name])
            .await
            .map_err(Error::sql(format!(
                "writing the shape of table {}",
                table.source
            )))?;
    }
    bookkeeping::remove_table(client, run.ledger, &table.source).await
}

/// The two statements of an exchange.
#[derive(Debug, PartialEq, Eq)]
struct Statements {
    delete: String,
    insert: String,
}

impl Statements {
    fn new(table: &TableName, beside: &TableName, columns: &[String]) -> Statements {
        let (table, beside) = (table.quoted(), beside.quoted());
        let digest = |alias: &str| {
            let columns: Vec<String> = columns
                .iter()
                .map(|column| format!("{alias}.{}", quote_ident(column)))
                .collect();
            format!(
                "sha256(convert_to(ROW({})::text, 'UTF8'))",
                columns.join(", ")
            )
        };
        let list: Vec<String> = columns.iter().map(|column| quote_ident(column)).collect();
        let taken: Vec<String> = list.iter().map(|column| format!("b.{column}")).collect();
        let (of_table, of_beside) = (digest("t"), digest("b"));
        Statements {
            delete: format!(
                "WITH held AS (SELECT t.tableoid AS rel, t.ctid AS place, {of_table} AS mark,
                      row_number() OVER (PARTITION BY {of_table}) AS n FROM {table} t),
                  wanted AS (SELECT {of_beside} AS mark, count(*) AS n FROM {beside} b GROUP BY 1)
                 DELETE FROM {table} t USING held h LEFT JOIN wanted w ON w.mark = h.mark
                 WHERE t.tableoid = h.rel AND t.ctid = h.place AND h.n > coalesce(w.n, 0)"
            ),
            insert: format!(
                "WITH wanted AS (SELECT b.ctid AS place, {of_beside} AS mark,
                      row_number() OVER (PARTITION BY {of_beside}) AS n FROM {beside} b),
                  held AS (SELECT {of_table} AS mark, count(*) AS n FROM {table} t GROUP BY 1)
                 INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE
                 SELECT {} FROM {beside} b JOIN wanted w ON b.ctid = w.place LEFT JOIN held h ON h.mark = w.mark
                 WHERE w.n > coalesce(h.n, 0)",
                list.join(", "),
                taken.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_table_out_of_main_and_never_for_older_rows() {
        let name = TableName::new("public", "t");
        let table = TableState {
            state: State::Parked,
            error: Some(super::super::EXCHANGED.to_owned()),
            restart_offset: Some(7),
            ..TableState::wanted(name.clone(), name.clone(), None)
        };
        let beside = TableState {
            state: State::CatchingUp,
            restart_offset: Some(7),
            ..TableState::wanted(name.clone(), name, None)
        };
        let older = TableState {
            restart_offset: Some(6),
            ..beside.clone()
        };
        let loading = TableState {
            state: State::Syncing,
            ..beside.clone()
        };
        let in_main = TableState {
            in_main: true,
            state: State::Live,
            ..table.clone()
        };
        assert!(is_ready(&table, &beside));
        assert!(!is_ready(&table, &older));
        assert!(!is_ready(&table, &loading));
        assert!(!is_ready(&in_main, &beside));
        let locked = TableState {
            error: Some("somebody locks it".into()),
            ..table.clone()
        };
        assert!(!is_ready(&locked, &beside));
        let errored = TableState {
            state: State::Errored,
            restart_offset: None,
            ..table
        };
        assert!(is_ready(&errored, &beside));
    }
}
