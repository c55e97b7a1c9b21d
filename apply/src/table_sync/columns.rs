//! The columns of a table that was filled by us, before a sync fills it anew: those that it carries
//! and the table lacks, those that it does not carry any more, those of another type by now, and those
//! that are required by now, or not any more.

use bunny_postgres::{ColumnDefinition, TableDefinition, introspect, quote_ident};
use tokio_postgres::Client;

use super::destination_table::{Wanted, empty, run};
use crate::error::{Error, Result};
use crate::schema::step::Step;
use crate::schema::table::{self, TablePlan};

/// Adds columns. Rows that are there have no value for them: they go first, or, where they have to
/// stay, the columns may be null. Returns what is left out.
pub(super) async fn add(
    client: &Client,
    wanted: Wanted<'_>,
    columns: &[&ColumnDefinition],
) -> Result<Vec<String>> {
    let destination = wanted.destination;
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    if !wanted.keeps_rows {
        empty(client, destination).await?;
    }
    let mut left_out = Vec::new();
    for column in columns {
        let may_be_null = wanted.keeps_rows && column.not_null;
        let planned = ColumnDefinition {
            not_null: column.not_null && !wanted.keeps_rows,
            ..(*column).clone()
        };
        let plan = table::plan_column(&planned, destination, wanted.excluded);
        left_out.extend(run(client, &plan, destination).await?);
        if may_be_null {
            left_out.push(format!(
                "NOT NULL of column {} of {destination}: rows that are there have no value for it",
                quote_ident(&column.name)
            ));
        }
    }
    Ok(left_out)
}

/// Lets columns of ours be null that nothing fills any more: excluded by now, or gone or renamed at
/// the source. Returns what it did, for people.
///
/// # Errors
/// One of them is in the primary key, which nothing but another key can mend.
pub(super) async fn relax(
    client: &Client,
    wanted: Wanted<'_>,
    present: &TableDefinition,
) -> Result<Vec<String>> {
    let destination = wanted.destination;
    let former = wanted.former.map_or(&[][..], |former| &former.columns);
    let mut relaxed = Vec::new();
    for column in unfed(&present.columns, former, wanted.columns) {
        let name = quote_ident(&column.name);
        if present.primary_key.contains(&column.name) {
            return Err(Error::Refused(format!(
                "column {name} of destination table {destination} is in its primary key, and the source does not send it any more; give the table the source's key, or drop the table, and sync it again"
            )));
        }
        client
            .batch_execute(&format!(
                "ALTER TABLE {} ALTER COLUMN {name} DROP NOT NULL",
                destination.quoted()
            ))
            .await
            .map_err(Error::sql(format!(
                "letting column {name} of {destination} be null"
            )))?;
        relaxed.push(format!(
            "NOT NULL of column {name} of {destination}: the source does not send the column any more"
        ));
    }
    Ok(relaxed)
}

/// Columns of `present` that were the source's before, that no row brings any more, and that refuse to
/// be null. Pure.
fn unfed<'a>(
    present: &'a [ColumnDefinition],
    former: &[ColumnDefinition],
    carried: &[String],
) -> Vec<&'a ColumnDefinition> {
    let is_unfed = |column: &&ColumnDefinition| {
        let fills_itself =
            column.default.is_some() || column.identity.is_some() || column.generated.is_some();
        column.not_null
            && !fills_itself
            && !carried.contains(&column.name)
            && former.iter().any(|former| former.name == column.name)
    };
    present.iter().filter(is_unfed).collect()
}

/// What became of NOT NULL at the source since the sync before becomes of it here: the stream tells of
/// that with a version older than this sync, or not at all. The table is empty. A column becomes
/// NOT NULL only if `may_tighten`: no row needs it.
pub(super) async fn follow_not_null(
    client: &Client,
    wanted: Wanted<'_>,
    may_tighten: bool,
) -> Result<()> {
    let destination = wanted.destination;
    let present = introspect::table_definition(client, destination).await?;
    let (Some(present), Some(former)) = (present, wanted.former) else {
        return Ok(());
    };
    let (former, now) = (&former.columns, &wanted.definition.columns);
    for column in turned(&present.columns, former, now, wanted.columns) {
        let needs_values = column.identity.is_some() || present.primary_key.contains(&column.name);
        let verb = match column.not_null {
            true if needs_values => continue,
            true => "DROP",
            false if may_tighten => "SET",
            false => continue,
        };
        let name = quote_ident(&column.name);
        client
            .batch_execute(&format!(
                "ALTER TABLE {} ALTER COLUMN {name} {verb} NOT NULL",
                destination.quoted()
            ))
            .await
            .map_err(Error::sql(format!(
                "following NOT NULL of column {name} of {destination}"
            )))?;
    }
    Ok(())
}

/// Columns of `present` that are as nullable as they were at the source before, and are otherwise
/// there by now. Pure.
fn turned<'a>(
    present: &'a [ColumnDefinition],
    former: &[ColumnDefinition],
    now: &[ColumnDefinition],
    carried: &[String],
) -> Vec<&'a ColumnDefinition> {
    let is = |columns: &[ColumnDefinition], name: &String, not_null: bool| {
        let mut columns = columns.iter();
        columns.any(|column| column.name == *name && column.not_null == not_null)
    };
    let has_turned = |column: &&ColumnDefinition| {
        let (name, not_null) = (&column.name, column.not_null);
        carried.contains(name) && is(former, name, not_null) && is(now, name, !not_null)
    };
    present.iter().filter(has_turned).collect()
}

/// Gives columns the types they have at the source now. The rows go: they are synced anew. What a
/// column fills itself with stays, as far as it is of the new type; returns what does not.
pub(super) async fn change_types(
    client: &Client,
    wanted: Wanted<'_>,
    present: &[ColumnDefinition],
    columns: &[&ColumnDefinition],
) -> Result<Vec<String>> {
    let destination = wanted.destination;
    empty(client, destination).await?;
    let mut plan = TablePlan::default();
    for column in columns {
        let name = quote_ident(&column.name);
        let table = destination.quoted();
        let mut there = present.iter();
        let there = there.find(|there| there.name == column.name);
        // An identity follows the type by itself, and has no default that could be dropped.
        if let Some(default) = there.and_then(|there| there.default.as_deref()) {
            plan.statements.push(format!(
                "ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"
            ));
            plan.optional.push(Step::new(
                "default",
                &column.name,
                format!("default of column {name} of {destination}"),
                vec![format!(
                    "ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {default}"
                )],
            ));
        }
        plan.statements.push(format!(
            "ALTER TABLE {table} ALTER COLUMN {name} TYPE {type_name} USING NULL::{type_name}",
            type_name = column.type_name
        ));
    }
    run(client, &plan, destination).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, not_null: bool, default: Option<&str>) -> ColumnDefinition {
        ColumnDefinition {
            name: name.into(),
            attnum: 1,
            type_oid: 25,
            type_name: "text".into(),
            typmod: -1,
            type_schema: "pg_catalog".into(),
            not_null,
            default: default.map(str::to_owned),
            identity: None,
            generated: None,
            collation: None,
        }
    }

    #[test]
    fn only_what_was_the_sources_and_nothing_fills_is_unfed() {
        let former = ["sent", "gone", "filled", "nullable"].map(|name| column(name, true, None));
        let present = [
            column("sent", true, None),
            column("gone", true, None),
            column("filled", true, Some("''::text")),
            column("nullable", false, None),
            column("theirs", true, None),
        ];
        let carried = ["sent".to_owned()];
        assert_eq!(unfed(&present, &former, &carried), [&present[1]]);
        assert!(unfed(&present, &[], &carried).is_empty());
    }

    #[test]
    fn not_null_turns_where_it_turned_at_the_source() {
        let names = ["set", "dropped", "always", "theirs", "new"];
        let columns = |not_null: [bool; 5]| {
            let columns = names.into_iter().zip(not_null);
            let column = |(name, not_null)| column(name, not_null, None);
            columns.map(column).collect::<Vec<_>>()
        };
        let present = columns([false, true, false, true, false]);
        let former = &columns([false, true, true, false, false])[..4];
        let now = columns([true, false, true, false, true]);
        let carried = names.map(str::to_owned);
        let found = turned(&present, former, &now, &carried);
        assert_eq!(found, [&present[0], &present[1]]);
        let found = turned(&present, former, &now, &carried[1..]);
        assert_eq!(found, [&present[1]], "not carried");
        assert!(turned(&now, former, &now, &carried).is_empty(), "it is so");
    }
}
