//! The destination table of a sync: created if missing, checked if not, emptied.
//!
//! Everything here runs in the transaction that makes a sync's start true. What is
//! wrong with one table is [`Error::Refused`] with the cure, and fails that table only.

use std::collections::BTreeSet;

use bunny_postgres::introspect::{self, Fit};
use bunny_postgres::{ColumnDefinition, TableDefinition, TableName, quote_ident};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient};

use super::{columns, generated};
use crate::error::{Error, Result};
use crate::schema::foundations;
use crate::schema::table::{self as create_table, Place, TablePlan};

/// Bytes of an identifier that Postgres keeps (`NAMEDATALEN - 1`); it cuts longer ones.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// What a table must be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The source's table at the sync's point.
    pub(crate) definition: &'a TableDefinition,
    pub(crate) destination: &'a TableName,
    pub(crate) excluded: &'a [String],
    /// The columns that the chunks carry.
    pub(crate) columns: &'a [String],
    /// Create the table if it is missing.
    pub(crate) may_create: bool,
    /// Add columns that the table lacks: it was filled by us, and is emptied next.
    pub(crate) may_extend: bool,
    /// Rows that are not ours stay, so no column may change its type.
    pub(crate) keeps_rows: bool,
    /// The source's table at the point of the sync before, if there was one.
    pub(crate) former: Option<&'a TableDefinition>,
}

/// What was found or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ensured {
    pub(crate) created: bool,
    /// What the source's table has and this one hasn't, for the mirror's log.
    pub(crate) left_out: Vec<String>,
}

/// Makes sure that the destination table is there and can take the sync's columns.
pub(crate) async fn ensure(client: &Client, wanted: Wanted<'_>) -> Result<Ensured> {
    let destination = wanted.destination;
    for part in [&destination.schema, &destination.name] {
        if part.len() > IDENTIFIER_BYTES_MAX {
            return Err(Error::Refused(format!(
                "destination table {destination}: the name {part} is longer than {IDENTIFIER_BYTES_MAX} bytes; map the table to a shorter one"
            )));
        }
    }
    let too_long = |column: &&String| column.len() > IDENTIFIER_BYTES_MAX;
    if let Some(column) = wanted.columns.iter().find(too_long) {
        return Err(Error::Refused(format!(
            "the name of column {column} of {destination} is longer than {IDENTIFIER_BYTES_MAX} bytes in UTF8; give it a shorter one at the source, or name it in exclude_columns"
        )));
    }
    match find(client, destination).await? {
        Some(oid) => check(client, oid, wanted).await,
        None if wanted.may_create => create(client, wanted).await,
        None => Err(Error::Refused(format!(
            "destination table {destination} does not exist; create it, or set \"create_destination_tables\": true"
        ))),
    }
}

/// The oid of a table that rows can be written to.
async fn find(client: &Client, table: &TableName) -> Result<Option<u32>> {
    let row = client
        .query_opt(
            "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = $2",
            &[&table.schema, &table.name],
        )
        .await
        .map_err(Error::sql(format!("looking for destination table {table}")))?;
    let Some(row) = row else {
        return Ok(None);
    };
    let kind: String = row.get(1);
    if !matches!(kind.as_str(), "r" | "p") {
        return Err(Error::Refused(format!(
            "destination {table} exists but is no table; map the table to another name"
        )));
    }
    Ok(Some(row.get(0)))
}

async fn check(client: &Client, oid: u32, wanted: Wanted<'_>) -> Result<Ensured> {
    let destination = wanted.destination;
    let deferrable = client
        .query_opt(
            "SELECT conname FROM pg_constraint WHERE conrelid = $1 AND contype = 'p' AND condeferrable",
            &[&oid],
        )
        .await
        .map_err(Error::sql(format!("reading the primary key of {destination}")))?;
    if let Some(row) = deferrable.filter(|_| !wanted.definition.key_is_deferrable) {
        let name: String = row.get(0);
        return Err(Error::Refused(format!(
            "destination table {destination} has the deferrable primary key {}, which can't identify rows; make it NOT DEFERRABLE",
            quote_ident(&name)
        )));
    }
    let present = introspect::table_definition(client, destination).await?;
    let mut left_out = Vec::new();
    if let Some(present) = present.as_ref().filter(|_| wanted.may_extend) {
        left_out.extend(columns::relax(client, wanted, present).await?);
    }
    let present = present.map_or_else(Vec::new, |present| present.columns);
    let is_there = |name: &String| present.iter().any(|column| column.name == *name);
    let missing = wanted.columns.iter().filter(|column| !is_there(column));
    let mut missing_for_good = Vec::new();
    let mut added = Vec::new();
    for column in missing {
        match wanted.definition.column(column) {
            Some(definition) if wanted.may_extend => added.push(definition),
            _ => missing_for_good.push(quote_ident(column)),
        }
    }
    if !missing_for_good.is_empty() {
        return Err(Error::Refused(format!(
            "destination table {destination} lacks the columns {}; add them, or name them in exclude_columns",
            missing_for_good.join(", ")
        )));
    }
    left_out.extend(columns::add(client, wanted, &added).await?);
    let fits = compare(wanted, &present);
    if !fits.different.is_empty() {
        if !wanted.may_extend || wanted.keeps_rows {
            return Err(Error::Refused(format!(
                "columns of destination table {destination} cannot take the source's values: {}; change their types, or name them in exclude_columns",
                fits.sentences()
            )));
        }
        let changed: Vec<&ColumnDefinition> =
            fits.different.iter().map(|(column, _)| *column).collect();
        left_out.extend(columns::change_types(client, wanted, &present, &changed).await?);
        left_out.extend(fits.different.iter().map(|(column, there)| {
            format!(
                "the type of column {} of {destination}: it was {there} and is {} now, as at the source",
                quote_ident(&column.name), column.type_name
            )
        }));
    }
    left_out.extend(fits.wider);
    if wanted.may_extend && !wanted.keeps_rows {
        left_out.extend(generated::follow(client, wanted, &present).await?);
    } else {
        left_out.extend(generated::unfollowed(wanted, &present)?);
    }
    Ok(Ensured {
        created: false,
        left_out,
    })
}

/// How the columns that are there suit those that are wanted.
#[derive(Debug, Default)]
struct Fits<'a> {
    /// A sentence for each column of another type that takes all values.
    wider: Vec<String>,
    /// Columns that can't take all values, and their type at the destination.
    different: Vec<(&'a ColumnDefinition, String)>,
}

impl Fits<'_> {
    fn sentences(&self) -> String {
        let sentences: Vec<String> = self
            .different
            .iter()
            .map(|(column, there)| {
                format!(
                    "{} is {there} and at the source {}",
                    quote_ident(&column.name),
                    column.type_name
                )
            })
            .collect();
        sentences.join(", ")
    }
}

fn compare<'a>(wanted: Wanted<'a>, present: &[ColumnDefinition]) -> Fits<'a> {
    let mut fits = Fits::default();
    for name in wanted.columns {
        let column = wanted.definition.column(name);
        let there = present.iter().find(|column| column.name == *name);
        let (Some(column), Some(there)) = (column, there) else {
            continue;
        };
        if there.generated.is_some() {
            // It takes no values as it is, of whatever type: `generated` sees to that.
            continue;
        }
        match introspect::fit(column, there) {
            Fit::Same => {}
            Fit::Wider => fits.wider.push(format!(
                "the type of column {} of {}: it is {} here and {} at the source",
                quote_ident(name),
                wanted.destination,
                there.type_name,
                column.type_name
            )),
            Fit::Differs => fits.different.push((column, there.type_name.clone())),
        }
    }
    fits
}

async fn create(client: &Client, wanted: Wanted<'_>) -> Result<Ensured> {
    let destination = wanted.destination;
    foundations::wait_for_turn(client).await?;
    let mut definition = wanted.definition.clone();
    check_types(client, &definition, wanted).await?;
    check_collations(client, &definition, wanted).await?;
    // IF NOT EXISTS asks for the right to create even when there is nothing to do.
    if !exists(
        client,
        "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)",
        &destination.schema,
    )
    .await?
    {
        let sql = format!(
            "CREATE SCHEMA IF NOT EXISTS {}",
            quote_ident(&destination.schema)
        );
        client
            .batch_execute(&sql)
            .await
            .map_err(Error::sql(format!(
                "creating the destination schema {}",
                destination.schema
            )))?;
    }
    let place = place(client, destination).await?;
    // Names of indexes are unique per schema; Postgres picks a free one when asked to.
    definition
        .primary_key_name
        .take_if(|name| place.taken.contains(name));
    let plan = create_table::plan(&definition, destination, wanted.excluded, &place);
    Ok(Ensured {
        created: true,
        left_out: run(client, &plan, destination).await?,
    })
}

/// What the planned table finds around it.
async fn place(client: &Client, table: &TableName) -> Result<Place> {
    let row = client
        .query_one(
            "SELECT ARRAY(SELECT c.relname::text FROM pg_class c
                          JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1),
                    current_setting('server_version_num')::int",
            &[&table.schema],
        )
        .await
        .map_err(Error::sql(format!(
            "reading the names in destination schema {}",
            table.schema
        )))?;
    let taken: Vec<String> = row.get(0);
    Ok(Place {
        taken: taken.into_iter().collect(),
        version_num: row.get(1),
    })
}

/// Refuses a table whose columns have types that the destination lacks, naming them all.
async fn check_types(
    client: &Client,
    definition: &TableDefinition,
    wanted: Wanted<'_>,
) -> Result<()> {
    let mut missing = BTreeSet::new();
    for column in &definition.columns {
        let is_ours = column.type_schema != "pg_catalog" && !wanted.excluded.contains(&column.name);
        if is_ours
            && !exists(
                client,
                "SELECT to_regtype($1) IS NOT NULL",
                &column.type_name,
            )
            .await?
        {
            missing.insert(format!(
                "{} (column {})",
                column.type_name,
                quote_ident(&column.name)
            ));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.into_iter().collect();
    Err(Error::Refused(format!(
        "the destination lacks types that {} uses: {}; create them there, or name the columns in exclude_columns",
        wanted.destination,
        missing.join(", ")
    )))
}

/// Refuses a table whose columns have collations that the destination lacks: which texts are equal,
/// and so which keys are, may be another thing without.
async fn check_collations(
    client: &Client,
    definition: &TableDefinition,
    wanted: Wanted<'_>,
) -> Result<()> {
    for column in &definition.columns {
        let Some(collation) = &column.collation else {
            continue;
        };
        let is_there = "SELECT to_regcollation($1) IS NOT NULL";
        if !wanted.excluded.contains(&column.name) && !exists(client, is_there, collation).await? {
            return Err(Error::Refused(format!(
                "the destination lacks collation {collation} of column {} of {}; create it there, or name the column in exclude_columns",
                quote_ident(&column.name),
                wanted.destination
            )));
        }
    }
    Ok(())
}

/// Runs a plan and returns what is left out of it, refused objects included.
pub(super) async fn run(
    client: &Client,
    plan: &TablePlan,
    destination: &TableName,
) -> Result<Vec<String>> {
    for statement in &plan.statements {
        client
            .batch_execute(statement)
            .await
            .map_err(Error::sql(format!(
                "creating destination table {destination}"
            )))?;
    }
    let mut left_out = plan.left_out.clone();
    for step in &plan.optional {
        let sql = format!(
            "SAVEPOINT bunny_optional; {}; RELEASE SAVEPOINT bunny_optional",
            step.sql()
        );
        let Err(error) = client.batch_execute(&sql).await else {
            continue;
        };
        let error = Error::sql(format!("creating {}", step.what))(error);
        if error.sqlstate().is_none() || error.is_transient() {
            return Err(error);
        }
        client
            .batch_execute("ROLLBACK TO SAVEPOINT bunny_optional")
            .await
            .map_err(Error::sql("going back before an object that was refused"))?;
        left_out.push(format!(
            "{}: the destination refuses it: {error}",
            step.what
        ));
    }
    Ok(left_out)
}

async fn exists<C: GenericClient + Sync>(client: &C, question: &str, name: &str) -> Result<bool> {
    let row = client
        .query_one(question, &[&name])
        .await
        .map_err(Error::sql(format!("looking for {name} at the destination")))?;
    Ok(row.get(0))
}

/// Whether the table holds any row.
pub(super) async fn has_rows<C: GenericClient + Sync>(
    client: &C,
    table: &TableName,
) -> Result<bool> {
    let row = client
        .query_one(
            &format!("SELECT EXISTS (SELECT FROM {})", table.quoted()),
            &[],
        )
        .await
        .map_err(Error::sql(format!(
            "looking for rows in destination table {table}"
        )))?;
    Ok(row.get(0))
}

/// Empties the table: TRUNCATE, or DELETE where foreign keys forbid that.
pub(super) async fn empty<C: GenericClient + Sync>(client: &C, table: &TableName) -> Result<()> {
    let doing = || format!("emptying destination table {table}");
    client
        .batch_execute("SAVEPOINT bunny_empty")
        .await
        .map_err(Error::sql(doing()))?;
    let Err(error) = client
        .batch_execute(&format!("TRUNCATE {}", table.quoted()))
        .await
    else {
        return Ok(());
    };
    // "cannot truncate a table referenced in a foreign key constraint"
    if error.code() != Some(&SqlState::FEATURE_NOT_SUPPORTED) {
        return Err(Error::sql(doing())(error));
    }
    client
        .batch_execute("ROLLBACK TO SAVEPOINT bunny_empty")
        .await
        .map_err(Error::sql(doing()))?;
    // Else ON DELETE CASCADE would take rows of other tables along.
    let in_role = exists(
        client,
        "SELECT current_setting($1) = 'replica'",
        "session_replication_role",
    )
    .await?;
    if !in_role {
        return Err(Error::Refused(format!(
            "destination table {table} cannot be emptied: foreign keys point to it, and the destination's user may not set \
             session_replication_role, so that they would act on other tables. As a superuser of the destination run: \
             GRANT SET ON PARAMETER session_replication_role TO <the peer's user> (PostgreSQL 15 and later; before that the \
             user must be a superuser), or drop the foreign keys"
        )));
    }
    client
        .batch_execute(&format!("DELETE FROM {}", table.quoted()))
        .await
        .map_err(Error::sql(doing()))
}
