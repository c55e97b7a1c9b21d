//! Generated columns of a table that is synced again: their values are in no chunk and no
//! event, the destination computes them. So what the source computes differently now has to
//! be computed differently here, and what it computes no more has to take values.

use bunny_postgres::introspect::{self, Fit};
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
    /// Another expression.
    Altered(&'a ColumnDefinition),
    /// Another type, or made of a plain column or into one: what is there cannot become it.
    Remade(&'a ColumnDefinition),
    /// A plain column of the same type by now.
    Freed(&'a ColumnDefinition),
}

impl<'a> Change<'a> {
    fn column(self) -> &'a ColumnDefinition {
        let (Change::Added(column)
        | Change::Altered(column)
        | Change::Remade(column)
        | Change::Freed(column)) = self;
        column
    }

    /// What there is to do by hand.
    fn sentence(self, destination: &TableName) -> String {
        let column = self.column();
        let name = quote_ident(&column.name);
        match &column.generated {
            Some(generated) => format!(
                "column {name} of {destination} is generated otherwise at the source now: make it {} GENERATED ALWAYS AS ({generated}) there",
                column.type_name
            ),
            None => format!(
                "column {name} of {destination} is not generated at the source any more: run ALTER TABLE {} ALTER COLUMN {name} DROP EXPRESSION there",
                destination.quoted()
            ),
        }
    }
}

/// Where the table is not altered: says what differs by now.
///
/// # Errors
/// It would be computed for rows that stay.
pub(super) fn unfollowed(wanted: Wanted<'_>, present: &[ColumnDefinition]) -> Result<Vec<String>> {
    let Changes {
        to_follow,
        mut left_out,
    } = changes(wanted, present);
    let sentences: Vec<String> = to_follow
        .iter()
        .map(|change| change.sentence(wanted.destination))
        .collect();
    if wanted.keeps_rows && !sentences.is_empty() {
        return Err(Error::Refused(format!(
            "{}; then sync the table again",
            sentences.join("; ")
        )));
    }
    left_out.extend(sentences);
    Ok(left_out)
}

/// Follows it; returns what could not be.
pub(super) async fn follow(
    client: &Client,
    wanted: Wanted<'_>,
    present: &[ColumnDefinition],
) -> Result<Vec<String>> {
    let destination = wanted.destination;
    let Changes {
        to_follow,
        mut left_out,
    } = changes(wanted, present);
    if !to_follow.is_empty() {
        // Its rows go in any case; what is not there is not computed again.
        empty(client, destination).await?;
    }
    for change in to_follow {
        let column = change.column();
        let name = quote_ident(&column.name);
        let generated = column.generated.as_deref().unwrap_or_default();
        client
            .batch_execute("SAVEPOINT bunny_generated")
            .await
            .map_err(Error::sql("going on to a generated column"))?;
        let done = match change {
            Change::Added(_) => add(client, wanted, column).await,
            Change::Altered(_) => alter(client, wanted, column, generated).await,
            Change::Remade(_) => remake(client, wanted, column).await,
            Change::Freed(_) => free(client, wanted, column).await,
        };
        match done {
            Ok(more) => left_out.extend(more),
            Err(error) if error.sqlstate().is_none() || error.is_transient() => return Err(error),
            Err(error) => {
                client
                    .batch_execute("ROLLBACK TO SAVEPOINT bunny_generated")
                    .await
                    .map_err(Error::sql("going back before a generated column"))?;
                // A plain column's values have nowhere to go.
                if column.generated.is_none() {
                    let sentence = change.sentence(destination);
                    return Err(Error::Refused(format!("{sentence} ({error})")));
                }
                left_out.push(format!(
                    "column {name} of {destination}, which is GENERATED AS ({generated}) at the source now: {error}; alter it there"
                ));
            }
        }
    }
    Ok(left_out)
}

/// What a sync finds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes<'a> {
    to_follow: Vec<Change<'a>>,
    /// Those that an excluded column forbids to follow, a sentence each.
    left_out: Vec<String>,
}

/// Pure. What was changed here is left as it is: whoever made a generated column plain, or dropped
/// it, wants it so. A column dropped at the source and added under its name is known by that. An excluded
/// column is not looked at, generated or not: what has its name here is not the source's.
fn changes<'a>(wanted: Wanted<'a>, present: &[ColumnDefinition]) -> Changes<'a> {
    let former = wanted.former.map_or(&[][..], |former| &former.columns);
    let change = |column: &'a ColumnDefinition| {
        let numbered = former.iter().find(|before| before.attnum == column.attnum);
        let named = former.iter().find(|before| before.name == column.name);
        let there = present.iter().find(|there| there.name == column.name);
        let Some(there) = there else {
            let is_new = numbered.is_none() && column.generated.is_some();
            return is_new.then_some(Change::Added(column));
        };
        let before = numbered.or(named)?;
        let is_retyped =
            before.type_name != column.type_name && there.type_name != column.type_name;
        match (&column.generated, &there.generated) {
            (None, Some(_)) if before.generated.is_none() => None,
            (None, Some(_)) if introspect::fit(column, there) == Fit::Differs => {
                Some(Change::Remade(column))
            }
            (None, Some(_)) => Some(Change::Freed(column)),
            (Some(_), None) => before.generated.is_none().then_some(Change::Remade(column)),
            (Some(_), Some(_)) if is_retyped => Some(Change::Remade(column)),
            (Some(now), Some(here)) if before.generated != column.generated && now != here => {
                Some(Change::Altered(column))
            }
            _ => None,
        }
    };
    let mut changes = Changes::default();
    if wanted.former.is_none() {
        return changes;
    }
    let columns = wanted.definition.columns.iter();
    let columns = columns
        .filter(|column| column.generated.is_some() || wanted.columns.contains(&column.name))
        .filter(|column| !wanted.excluded.contains(&column.name));
    for change in columns.filter_map(change) {
        let column = change.column();
        let expression = column.generated.as_deref().unwrap_or_default();
        let mut excluded = wanted.excluded.iter();
        match excluded.find(|column| expression::mentions_column(expression, column)) {
            Some(touched) => changes.left_out.push(format!(
                "column {} of {}: at the source it is generated from the excluded column {} now",
                quote_ident(&column.name),
                wanted.destination,
                quote_ident(touched)
            )),
            None => changes.to_follow.push(change),
        }
    }
    changes
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
        return remake(client, wanted, column).await;
    }
    client
        .batch_execute(&format!(
            "ALTER TABLE {table} ALTER COLUMN {name} SET EXPRESSION AS ({generated})"
        ))
        .await
        .map_err(Error::sql(doing(wanted.destination, &name)))?;
    Ok(Vec::new())
}

async fn remake(
    client: &Client,
    wanted: Wanted<'_>,
    column: &ColumnDefinition,
) -> Result<Vec<String>> {
    let (table, name) = (wanted.destination.quoted(), quote_ident(&column.name));
    client
        .batch_execute(&format!("ALTER TABLE {table} DROP COLUMN {name}"))
        .await
        .map_err(Error::sql(doing(wanted.destination, &name)))?;
    add(client, wanted, column).await
}

async fn free(
    client: &Client,
    wanted: Wanted<'_>,
    column: &ColumnDefinition,
) -> Result<Vec<String>> {
    let (table, name) = (wanted.destination.quoted(), quote_ident(&column.name));
    client
        .batch_execute(&format!(
            "ALTER TABLE {table} ALTER COLUMN {name} DROP EXPRESSION"
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
    use bunny_postgres::TableDefinition;
    use bunny_postgres::introspect::{ReplicaIdentity, TableKind};

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

    fn table(columns: &[ColumnDefinition]) -> TableDefinition {
        TableDefinition {
            oid: 1,
            name: TableName::new("public", "t"),
            kind: TableKind::Ordinary,
            persistence: 'p',
            columns: columns.to_vec(),
            primary_key: Vec::new(),
            primary_key_name: None,
            key_is_deferrable: false,
            replica_identity: ReplicaIdentity::Default,
            identity_key: Vec::new(),
            row_estimate: 0,
            size_bytes: 0,
            pages: 0,
            leaves: Vec::new(),
            objects: None,
        }
    }

    /// What the source has changed between two definitions, looked at by `look`.
    fn between<T>(
        (former, now): (&[ColumnDefinition], &[ColumnDefinition]),
        excluded: &[&str],
        look: impl FnOnce(Wanted<'_>) -> T,
    ) -> T {
        let (former, now) = (table(former), table(now));
        let excluded: Vec<String> = excluded.iter().map(|name| (*name).to_owned()).collect();
        let carried = now.columns.iter();
        let carried =
            carried.filter(|now| now.generated.is_none() && !excluded.contains(&now.name));
        let columns: Vec<String> = carried.map(|column| column.name.clone()).collect();
        look(Wanted {
            definition: &now,
            destination: &TableName::new("public", "t"),
            excluded: &excluded,
            columns: &columns,
            may_create: false,
            may_extend: true,
            keeps_rows: true,
            former: Some(&former),
        })
    }

    /// What is to be done, in a word and the column's name.
    fn found(
        former: &[ColumnDefinition],
        now: &[ColumnDefinition],
        present: &[ColumnDefinition],
    ) -> Vec<String> {
        let word = |change: &Change<'_>| {
            let text = format!("{change:?}");
            let word = text.split('(').next().unwrap_or_default();
            format!("{word} {}", change.column().name)
        };
        between((former, now), &[], |wanted| {
            let changes = changes(wanted, present);
            changes.to_follow.iter().map(word).collect()
        })
    }

    #[test]
    fn only_what_the_source_changed_is_followed() {
        let plain = column(1, "a", None);
        let former = [plain.clone(), column(2, "g", Some("a"))];
        let now = [plain.clone(), column(2, "g", Some("a + 1"))];
        let nothing: [&str; 0] = [];
        assert_eq!(found(&former, &former, &former), nothing);
        assert_eq!(found(&former, &now, &former), ["Altered g"]);
        assert_eq!(found(&former, &now, &now), nothing, "done by hand");
        // Whoever made it a plain column here wants it so; whoever dropped it, too.
        assert_eq!(found(&former, &now, &[column(2, "g", None)]), nothing);
        assert_eq!(found(&former, &now, &[]), nothing);
        assert_eq!(found(&[plain], &now, &[]), ["Added g"]);
    }

    #[test]
    fn a_column_that_was_made_again_is_known_by_its_name() {
        let plain = column(1, "a", None);
        let generated = [plain.clone(), column(2, "g", Some("a"))];
        let again = [plain.clone(), column(3, "g", Some("a + 1"))];
        assert_eq!(found(&generated, &again, &generated), ["Altered g"]);
        let was_plain = [plain.clone(), column(2, "g", None)];
        assert_eq!(found(&was_plain, &again, &was_plain), ["Remade g"]);
        assert_eq!(found(&generated, &was_plain, &generated), ["Freed g"]);
        let mut retyped = generated.clone();
        retyped[1].type_name = "bigint".into();
        assert_eq!(found(&generated, &retyped, &generated), ["Remade g"]);
        let mut freed = retyped.clone();
        freed[1].generated = None;
        assert_eq!(found(&generated, &freed, &generated), ["Remade g"]);
    }

    #[test]
    fn an_excluded_column_is_not_made_here_nor_dropped() {
        let (plain, note) = (column(1, "a", None), column(2, "note", None));
        let former = [plain.clone(), note.clone()];
        let again = [plain.clone(), column(3, "note", Some("a"))];
        for present in [&[plain.clone()][..], &[plain.clone(), note.clone()]] {
            let nothing = between((&former, &again), &["note"], |wanted| {
                changes(wanted, present) == Changes::default()
            });
            assert!(nothing, "{present:?}");
        }
    }

    /// Whether rows are kept or not: nothing that could be done by hand keeps the column out.
    #[test]
    fn what_is_generated_from_an_excluded_column_is_said() {
        let (plain, note) = (column(1, "a", None), column(2, "note", None));
        let former = [plain.clone(), note.clone(), column(3, "g", Some("a"))];
        let altered = [plain.clone(), note.clone(), column(3, "g", Some("note"))];
        let added = [plain.clone(), note, column(4, "h", Some("(note + 1)"))];
        let here = [plain, column(3, "g", Some("a"))];
        for (now, name) in [(&altered, "\"g\""), (&added, "\"h\"")] {
            let said = between((&former, now), &["note"], |wanted| {
                unfollowed(wanted, &here)
            });
            let said = said.unwrap();
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains(name) && said[0].contains("excluded column"));
        }
    }
}
