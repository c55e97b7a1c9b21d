//! TRUNCATE at the destination: the listed tables in one statement if possible, never
//! CASCADE (what else it would empty is not ours).

use bunny_postgres::TableName;
use tokio_postgres::Client;

use super::of_table;
use crate::error::{Error, Result};
use crate::routes::Route;

/// feature_not_supported: what TRUNCATE says of a table that a foreign key points to.
const FOREIGN_KEY_FORBIDS: &str = "0A000";

/// Sequences that belong to columns of a table (serial and identity).
const OWNED_SEQUENCES_SQL: &str = "
SELECT quote_ident(n.nspname) || '.' || quote_ident(s.relname)
FROM pg_depend d
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = to_regclass($1) AND d.deptype IN ('a', 'i')";

/// A table to empty: the source's, which is blamed, and the destination's.
type Pair<'a> = (&'a TableName, &'a TableName);

/// Which of the tables can be emptied. One that no sync has brought may not be there
/// yet: its first row creates it, so there is nothing to empty.
pub(super) async fn present<'a>(
    client: &Client,
    routes: impl Iterator<Item = (&'a TableName, &'a Route)>,
) -> Result<Vec<Pair<'a>>> {
    let mut present = Vec::new();
    for (source, route) in routes {
        let destination = &route.destination;
        if route.is_synced || exists(client, destination).await? {
            present.push((source, destination));
        }
    }
    Ok(present)
}

async fn exists(client: &Client, table: &TableName) -> Result<bool> {
    let found = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table.quoted()])
        .await
        .map_err(Error::sql(format!("looking for {table}")))?;
    Ok(found.get(0))
}

/// Empties the tables together, as the source did.
pub(super) async fn truncate(
    client: &Client,
    tables: &[Pair<'_>],
    restart_identity: bool,
) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(|(_, table)| table.quoted()).collect();
    let names = names.join(", ");
    let identity = if restart_identity {
        " RESTART IDENTITY"
    } else {
        ""
    };
    client
        .batch_execute(&format!("TRUNCATE {names}{identity}"))
        .await
        .map_err(Error::sql(format!("truncating {names}")))
}

/// Empties the tables, together if the destination lets it, else one by one; then an
/// error is that of the table that fails, and a table that a foreign key points to is
/// emptied by DELETE (the rows that point there are the source's affair: it has dealt
/// with them).
pub(super) async fn one_by_one(
    client: &Client,
    tables: &[Pair<'_>],
    restart_identity: bool,
) -> Result<()> {
    if tables.len() > 1 {
        let refused = undone_if_refused(client, tables, restart_identity).await?;
        let Some(error) = refused else {
            return Ok(());
        };
        tracing::info!(%error, "several tables can't be truncated together, emptying them one by one");
    }
    for (source, table) in tables {
        empty(client, (source, table), restart_identity)
            .await
            .map_err(|error| of_table(source, error))?;
    }
    Ok(())
}

async fn empty(client: &Client, table: Pair<'_>, restart_identity: bool) -> Result<()> {
    match undone_if_refused(client, &[table], restart_identity).await? {
        None => Ok(()),
        Some(error) if error.sqlstate() == Some(FOREIGN_KEY_FORBIDS) => {
            tracing::info!(table = %table.1, "a foreign key forbids TRUNCATE, deleting all rows");
            delete_all(client, table.1, restart_identity).await
        }
        Some(error) => Err(error),
    }
}

/// Truncates under a savepoint. Gives the destination's refusal, already undone.
async fn undone_if_refused(
    client: &Client,
    tables: &[Pair<'_>],
    restart_identity: bool,
) -> Result<Option<Error>> {
    let run = async |statement: &'static str| {
        client
            .batch_execute(statement)
            .await
            .map_err(Error::sql(statement))
    };
    run("SAVEPOINT truncating").await?;
    let refused = match truncate(client, tables, restart_identity).await {
        Ok(()) => None,
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => {
            run("ROLLBACK TO SAVEPOINT truncating").await?;
            Some(error)
        }
    };
    run("RELEASE SAVEPOINT truncating").await?;
    Ok(refused)
}

async fn delete_all(client: &Client, table: &TableName, restart_identity: bool) -> Result<()> {
    let name = table.quoted();
    let doing = || format!("emptying {name}");
    client
        .batch_execute(&format!("DELETE FROM {name}"))
        .await
        .map_err(Error::sql(doing()))?;
    if !restart_identity {
        return Ok(());
    }
    let sequences = client
        .query(OWNED_SEQUENCES_SQL, &[&name])
        .await
        .map_err(Error::sql(doing()))?;
    for row in sequences {
        let sequence: &str = row.get(0);
        client
            .batch_execute(&format!("ALTER SEQUENCE {sequence} RESTART"))
            .await
            .map_err(Error::sql(doing()))?;
    }
    Ok(())
}
