//! What a table stands on, at the destination: extensions, collations and types, created before it.

use std::collections::BTreeSet;

use bunny_catalog::SchemaChanges;
use bunny_postgres::introspect::{
    self, CollationDefinition, Extension, TableObjects, TypeDefinition, TypeShape,
};
use bunny_postgres::{TableName, quote_ident};
use tokio_postgres::Client;

use super::build::{begin, commit};
use super::{collations, types};
use crate::bookkeeping;
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::turns;

/// Serialises this among mirrors: two would otherwise create the same type at once and
/// one of them fail. Any fixed number no one else uses.
const LOCK: i64 = 0x6275_6e6e_7954;

/// Creates what is missing for `source`, in one fenced transaction. An enum that lacks
/// labels gets them, unless `schema_changes` is `manual`, and that is noted.
///
/// # Errors
/// [`Error::Refused`] naming what the destination can't have.
pub(crate) async fn lay(
    client: &Client,
    run: &MirrorRun,
    source: &TableName,
    objects: &TableObjects,
) -> Result<()> {
    if objects.extensions.is_empty() && objects.collations.is_empty() && objects.types.is_empty() {
        return Ok(());
    }
    begin(client, run).await?;
    let laid = create(client, run, source, objects).await.map(drop);
    if laid.is_err() {
        let ended = client.batch_execute("ROLLBACK").await;
        // Why it had to be rolled back says more than that the rollback failed too.
        laid?;
        return ended.map_err(Error::sql("rolling types back"));
    }
    commit(client).await
}

/// The same in the open transaction, which is fenced; gives the statements that were run.
pub(crate) async fn create(
    client: &Client,
    run: &MirrorRun,
    source: &TableName,
    objects: &TableObjects,
) -> Result<Vec<String>> {
    wait_for_turn(client).await?;
    let mut ran = Vec::new();
    for extension in &objects.extensions {
        create_extension(client, extension, &mut ran).await?;
    }
    for collation in &objects.collations {
        create_collation(client, collation, &mut ran).await?;
    }
    let mut notes = Vec::new();
    let mode = run.mirror.config.schema_changes;
    for definition in &objects.types {
        notes.extend(create_type(client, definition, mode, &mut ran).await?);
    }
    bookkeeping::put_notes(client, run.mirror_id(), source, &notes).await?;
    Ok(ran)
}

/// For the open transaction: nobody else of us creates schemas, types or sequences now.
pub(crate) async fn wait_for_turn(client: &Client) -> Result<()> {
    client
        .batch_execute(&turns::wait(LOCK))
        .await
        .map_err(Error::sql(
            "waiting for others that create objects at the destination",
        ))
}

async fn create_extension(
    client: &Client,
    extension: &Extension,
    ran: &mut Vec<String>,
) -> Result<()> {
    let found = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = $1)",
            &[&extension.name],
        )
        .await
        .map_err(Error::sql("looking for extensions at the destination"))?;
    if found.get(0) {
        return Ok(());
    }
    create_schema(client, &extension.schema).await?;
    let sql = format!(
        "CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {} CASCADE",
        quote_ident(&extension.name),
        quote_ident(&extension.schema)
    );
    client.batch_execute(&sql).await.map_err(|error| {
        refused(
            &format!("extension {}", quote_ident(&extension.name)),
            error,
        )
    })?;
    ran.push(sql);
    Ok(())
}

async fn create_collation(
    client: &Client,
    definition: &CollationDefinition,
    ran: &mut Vec<String>,
) -> Result<()> {
    let name = &definition.name;
    let found = client
        .query_one("SELECT to_regcollation($1) IS NOT NULL", &[&name.quoted()])
        .await
        .map_err(Error::sql("looking for collations at the destination"))?;
    if found.get(0) {
        return Ok(());
    }
    create_schema(client, &name.schema).await?;
    for statement in collations::create(definition) {
        client
            .batch_execute(&statement)
            .await
            .map_err(|error| refused(&format!("collation {name}"), error))?;
        ran.push(statement);
    }
    Ok(())
}

/// Gives what is to be said about a type that was there and had to be altered.
async fn create_type(
    client: &Client,
    definition: &TypeDefinition,
    mode: SchemaChanges,
    ran: &mut Vec<String>,
) -> Result<Vec<String>> {
    let name = &definition.name;
    let what = format!("type {name}");
    let found = client
        .query_one(
            "SELECT to_regtype($1) IS NOT NULL,
                    ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = to_regtype($1)
                          ORDER BY enumsortorder)",
            &[&name.quoted()],
        )
        .await
        .map_err(Error::sql(format!("looking for {what} at the destination")))?;
    let (is_there, labels): (bool, Vec<String>) = (found.get(0), found.get(1));
    let mut notes = Vec::new();
    let statements = match &definition.shape {
        TypeShape::Enum { labels: wanted, .. } if is_there && !labels.is_empty() => {
            let statements = types::add_labels(definition, wanted, &labels);
            if mode == SchemaChanges::Manual && !statements.is_empty() {
                return Err(Error::Refused(format!(
                    "{what} lacks labels at the destination, and \"schema_changes\" is \"manual\": run {} there, then retry the table",
                    statements.join("; ")
                )));
            }
            notes.extend(statements.iter().map(|statement| {
                format!(
                    "{what}: it lacked a label at the destination, so this was run: {statement}"
                )
            }));
            statements
        }
        _ if is_there => Vec::new(),
        _ => {
            create_schema(client, &name.schema).await?;
            types::create(definition).map_err(|reason| {
                Error::Refused(format!(
                    "{what} can't be created at the destination: {reason}; create it there by hand, or exclude the columns that use it"
                ))
            })?
        }
    };
    for statement in statements {
        client
            .batch_execute(&statement)
            .await
            .map_err(|error| refused(&what, error))?;
        ran.push(statement);
    }
    Ok(notes)
}

/// IF NOT EXISTS asks for the right to create even when there is nothing to do.
async fn create_schema(client: &Client, schema: &str) -> Result<()> {
    let found = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)",
            &[&schema],
        )
        .await
        .map_err(Error::sql("looking for schemas at the destination"))?;
    if found.get(0) {
        return Ok(());
    }
    client
        .batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS {}",
            quote_ident(schema)
        ))
        .await
        .map_err(|error| refused(&format!("schema {}", quote_ident(schema)), error))
}

fn refused(what: &str, error: tokio_postgres::Error) -> Error {
    let error = Error::sql(format!("creating {what}"))(error);
    if error.sqlstate().is_none() || error.is_transient() {
        return error;
    }
    Error::Refused(format!(
        "{error}; create it at the destination by hand, or exclude the columns that need it"
    ))
}

/// Refuses a destination table whose types have the source's names and are something else.
/// Gives a sentence for each that differs in a way that its values survive.
pub(crate) async fn compare(
    client: &Client,
    destination: &TableName,
    wanted: &TableObjects,
) -> Result<Vec<String>> {
    if wanted.types.is_empty() && wanted.collations.is_empty() {
        return Ok(Vec::new());
    }
    let Some(definition) = introspect::table_definition(client, destination).await? else {
        return Ok(Vec::new());
    };
    let present = introspect::table_objects(client, definition.oid, &[]).await?;
    let pairs = || {
        wanted.types.iter().filter_map(|wanted| {
            let found = present.types.iter().find(|one| one.name == wanted.name)?;
            Some((wanted, found))
        })
    };
    let of_collations = wanted.collations.iter().filter_map(|wanted| {
        let mut there = present.collations.iter();
        collations::difference(wanted, there.find(|one| one.name == wanted.name)?)
    });
    let differences: BTreeSet<String> = pairs()
        .filter_map(|(wanted, found)| types::difference(wanted, found))
        .chain(of_collations)
        .collect();
    if differences.is_empty() {
        let variations = pairs().filter_map(|(wanted, found)| types::variation(wanted, found));
        return Ok(variations.collect());
    }
    let differences: Vec<String> = differences.into_iter().collect();
    Err(Error::Refused(format!(
        "types or collations of destination table {destination} differ from the source's: {}; change them there, or exclude the columns",
        differences.join("; ")
    )))
}
