//! TRUNCATE at the destination: the listed tables in one statement, never CASCADE
//! (what else it would empty is not ours).

use bunny_postgres::TableName;
use tokio_postgres::Client;

use crate::error::{Error, Result};

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

/// Empties the tables. With `may_delete`, by DELETE where a foreign key forbids TRUNCATE
/// (the rows that point here are the source's affair: it has dealt with them).
pub(super) async fn truncate(
    client: &Client,
    tables: &[&TableName],
    restart_identity: bool,
    may_delete: bool,
) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(|table| table.quoted()).collect();
    let names = names.join(", ");
    let identity = if restart_identity {
        " RESTART IDENTITY"
    } else {
        ""
    };
    let statement = format!("TRUNCATE {names}{identity}");
    let doing = || format!("truncating {names}");
    if !may_delete {
        return client
            .batch_execute(&statement)
            .await
            .map_err(Error::sql(doing()));
    }
    client
        .batch_execute("SAVEPOINT truncating")
        .await
        .map_err(Error::sql(doing()))?;
    match client
        .batch_execute(&statement)
        .await
        .map_err(Error::sql(doing()))
    {
        Ok(()) => {}
        Err(error) if error.sqlstate() == Some(FOREIGN_KEY_FORBIDS) => {
            client
                .batch_execute("ROLLBACK TO SAVEPOINT truncating")
                .await
                .map_err(Error::sql(doing()))?;
            tracing::info!(tables = %names, "a foreign key forbids TRUNCATE, deleting all rows");
            delete_all(client, tables, restart_identity).await?;
        }
        Err(error) => return Err(error),
    }
    client
        .batch_execute("RELEASE SAVEPOINT truncating")
        .await
        .map_err(Error::sql(doing()))
}

async fn delete_all(client: &Client, tables: &[&TableName], restart_identity: bool) -> Result<()> {
    for table in tables {
        let name = table.quoted();
        let doing = || format!("emptying {name}");
        client
            .batch_execute(&format!("DELETE FROM {name}"))
            .await
            .map_err(Error::sql(doing()))?;
        if !restart_identity {
            continue;
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
    }
    Ok(())
}
