//! What is looked at before a mirror, or a list of tables, is written down.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{NewMirror, NewMirrorTable, check_name};
use crate::{Error, Result};

/// What can be known without looking anywhere.
pub(super) fn check(new: &NewMirror) -> Result<()> {
    check_name("name", &new.name).map_err(Error::Invalid)?;
    let mut problems = new.config.problems();
    problems.extend(table_problems(&new.tables));
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(problems.join("; ")))
    }
}

/// What can be known of a list of tables without looking anywhere.
pub(crate) fn check_tables(tables: &[NewMirrorTable]) -> Result<()> {
    let problems = table_problems(tables);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(problems.join("; ")))
    }
}

fn table_problems(tables: &[NewMirrorTable]) -> Vec<String> {
    let mut problems = Vec::new();
    if tables.is_empty() {
        problems.push("table_mappings must hold at least one table".into());
    }
    for (at, table) in tables.iter().enumerate() {
        let before = &tables[..at];
        if before.iter().any(|other| other.source == table.source) {
            problems.push(format!("source table {} is mapped twice", table.source));
        }
        if before
            .iter()
            .any(|other| other.destination == table.destination)
        {
            problems.push(format!(
                "two source tables are mapped to {}",
                table.destination
            ));
        }
    }
    problems
}

pub(super) async fn check_peers(connection: &mut PgConnection, new: &NewMirror) -> Result<()> {
    for peer in [&new.source_peer, &new.destination_peer] {
        let there: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM bunny.peers WHERE name = $1)")
                .bind(peer)
                .fetch_one(&mut *connection)
                .await
                .map_err(|error| Error::database("looking for a peer", error))?;
        if !there {
            return Err(Error::not_found("peer", peer));
        }
    }
    Ok(())
}

pub(super) async fn check_name_free(connection: &mut PgConnection, name: &str) -> Result<()> {
    let desired: Option<String> =
        sqlx::query_scalar("SELECT desired FROM bunny.mirrors WHERE name = $1")
            .bind(name)
            .fetch_optional(connection)
            .await
            .map_err(|error| Error::database("looking for a mirror", error))?;
    match desired.as_deref() {
        None => Ok(()),
        Some("deleted") => Err(Error::conflict(format!(
            "mirror \"{name}\" is still being deleted: try again when it is gone"
        ))),
        Some(_) => Err(Error::conflict(format!("mirror \"{name}\" exists already"))),
    }
}

/// No other mirror than `own` writes one of the tables at that peer.
pub(crate) async fn check_destinations_free(
    connection: &mut PgConnection,
    destination_peer: &str,
    tables: &[NewMirrorTable],
    own: Option<Uuid>,
) -> Result<()> {
    for table in tables {
        let other: Option<String> = sqlx::query_scalar(
            "SELECT m.name FROM bunny.mirror_tables t JOIN bunny.mirrors m ON m.id = t.mirror_id
             WHERE m.destination_peer = $1 AND t.destination_schema = $2 AND t.destination_table = $3
               AND m.id IS DISTINCT FROM $4
             LIMIT 1",
        )
        .bind(destination_peer)
        .bind(&table.destination.schema)
        .bind(&table.destination.name)
        .bind(own)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| Error::database("looking for a table's mirror", error))?;
        if let Some(other) = other {
            return Err(Error::conflict(format!(
                "destination table {} is written by mirror \"{other}\" already: map to another table or delete that mirror",
                table.destination
            )));
        }
    }
    Ok(())
}
