//! Generated columns of a table that is synced again: their values are in no chunk and no
//! event, the destination computes them. So what the source computes differently now has to
//! be computed differently here.

use bunny_postgres::{ColumnDefinition, TableName, quote_ident};
use tokio_postgres::Client;

use super::destination_table::{Wanted, empty, run};
use crate::error::{Error, Result};
use crate::schema::{expression, table};

/// Since 17 an expression can be replaced where it stands.
const SET_EXPRESSION_SINCE: i32 = 170_000;

/// What the source has done to a generated column since the sync before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change<'a> {
    Added(&'a ColumnDefinition),
    Altered(&'a ColumnDefinition),
}

/// Follows it; returns what could not be.
pub(super) async fn follow(
    client: &Client,
    wanted: Wanted<'_>,
    present: &[ColumnDefinition],
) -> Result<Vec<String>> {
    let Some(former) = wanted.former else {
        return Ok(Vec::new());
    };
    let destination = wanted.destination;
    let mut left_out = Vec::new();
    let changes = changes(&former.columns, &wanted.definition.columns, present);
    if !changes.is_empty() {
        // Its rows go in any case; what is not there is not computed again.
        empty(client, destination).await?;
    }
    for change in changes {
        let (Change::Added(column) | Change::Altered(column)) = change;
        let name = quote_ident(&column.name);
        let generated = column.generated.as_deref().unwrap_or_default();
        let mut excluded = wanted.excluded.iter();
        if let Some(touched) =
            excluded.find(|column| expression::mentions_column(generated, column))
        {
            left_out.push(format!(
                "column {name} of {destination}: at the source it is generated from the excluded column {} now",
                quote_ident(touched)
            ));
            continue;
        }
        client
            .batch_execute("SAVEPOINT bunny_generated")
            .await
            .map_err(Error::sql("going on to a generated column"))?;
        let done = match change {
            Change::Added(_) => add(client, wanted, column).await,
            Change::Altered(_) => alter(client, wanted, column, generated).await,
        };
        match done {
            Ok(more) => left_out.extend(more),
            Err(error) if error.sqlstate().is_none() || error.is_transient() => return Err(error),
            Err(error) => {
                client
                    .batch_execute("ROLLBACK TO SAVEPOINT bunny_generated")
                    .await
                    .map_err(Error::sql("going back before a generated column"))?;
                left_out.push(format!(
                    "column {name} of {destination}, which is GENERATED AS ({generated}) at the source now: {error}; alter it there"
                ));
            }
        }
    }
    Ok(left_out)
}

/// Pure.
fn changes<'a>(
    former: &[ColumnDefinition],
    now: &'a [ColumnDefinition],
    present: &[ColumnDefinition],
) -> Vec<Change<'a>> {
    let generated = now.iter().filter(|now| now.generated.is_some());
    generated
        .filter_map(|column| {
            let mut before = former.iter();
            let before = before.find(|before| before.attnum == column.attnum);
            let there = present.iter().find(|there| there.name == column.name);
            match (before, there) {
                (None, None) => Some(Change::Added(column)),
                (Some(before), Some(there))
                    if before.generated != column.generated && there.generated.is_some() =>
                {
                    Some(Change::Altered(column))
                }
                _ => None,
            }
        })
        .collect()
}

async fn add(
    client: &Client,
    wanted: Wanted<'_>,
    column: &ColumnDefinition,
) -> Result<Vec<String>> {
    let plan = table::plan_column(column, wanted.destination, wanted.excluded);
    run(client, &plan, wanted.destination).await
}

async fn alter(
    client: &Client,
    wanted: Wanted<'_>,
    column: &ColumnDefinition,
    generated: &str,
) -> Result<Vec<String>> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .map_err(Error::sql("asking for the destination's version"))?;
    let version: i32 = row.get(0);
    let (table, name) = (wanted.destination.quoted(), quote_ident(&column.name));
    if version < SET_EXPRESSION_SINCE {
        client
            .batch_execute(&format!("ALTER TABLE {table} DROP COLUMN {name}"))
            .await
            .map_err(Error::sql(doing(wanted.destination, &name)))?;
        return add(client, wanted, column).await;
    }
    client
        .batch_execute(&format!(
            "ALTER TABLE {table} ALTER COLUMN {name} SET EXPRESSION AS ({generated})"
        ))
        .await
        .map_err(Error::sql(doing(wanted.destination, &name)))?;
    Ok(Vec::new())
}

fn doing(destination: &TableName, name: &str) -> String {
    format!("changing what column {name} of {destination} is generated from")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(attnum: i16, name: &str, generated: Option<&str>) -> ColumnDefinition {
        ColumnDefinition {
            name: name.into(),
            attnum,
            type_oid: 23,
            type_name: "integer".into(),
            typmod: -1,
            type_schema: "pg_catalog".into(),
            not_null: false,
            default: None,
            identity: None,
            generated: generated.map(str::to_owned),
            collation: None,
        }
    }

    #[test]
    fn only_what_the_source_changed_is_followed() {
        let plain = column(1, "a", None);
        let former = [plain.clone(), column(2, "g", Some("a"))];
        let now = [plain.clone(), column(2, "g", Some("a + 1"))];
        assert_eq!(changes(&former, &former, &former), []);
        assert_eq!(changes(&former, &now, &former), [Change::Altered(&now[1])]);
        // Whoever made it a plain column here wants it so; whoever dropped it, too.
        assert_eq!(changes(&former, &now, &[column(2, "g", None)]), []);
        assert_eq!(changes(&former, &now, &[]), []);
        assert_eq!(changes(&[plain], &now, &[]), [Change::Added(&now[1])]);
    }
}
