//! The two publications of a mirror: which tables stand in which, and how they are brought
//! there.
//!
//! Both exist before the slot does: a publication younger than the slot's position makes
//! decoding fail for good. A table that cannot carry updates stands in the insert-only one,
//! so that the source's own updates and deletes are never refused because of us.

use std::collections::BTreeSet;

use bunny_catalog::Mirror;
use bunny_postgres::introspect::{self, TableDefinition};
use bunny_postgres::{Session, TableName, quote_ident};

use crate::error::{Error, Result};

/// Where a table's changes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    /// All changes.
    All,
    /// Inserts and truncates only: no usable replica identity.
    InsertOnly,
}

/// Tables by publication, as wanted or as found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) all: BTreeSet<TableName>,
    pub(crate) insert_only: BTreeSet<TableName>,
}

impl Members {
    pub(crate) fn insert(&mut self, table: TableName, membership: Membership) {
        match membership {
            Membership::All => self.all.insert(table),
            Membership::InsertOnly => self.insert_only.insert(table),
        };
    }
}

/// Names the publications START_REPLICATION asks for.
pub(crate) fn names(mirror: &Mirror) -> Vec<String> {
    if mirror.publication_given {
        vec![mirror.publication_name.clone()]
    } else {
        vec![
            mirror.publication_name.clone(),
            mirror.publication_ins_name.clone(),
        ]
    }
}

/// Creates the publications that are missing and fills them with `mirror.tables`.
///
/// Only before the generation has started: a table or publication that left afterwards has
/// had changes that nobody captured, and putting it back would hide that (invariant I6);
/// from then on `watch` looks after them. A publication that the user named is only looked
/// at: it must exist and hold the tables.
///
/// # Errors
/// A mapped table that does not exist is fatal and named.
pub(crate) async fn create(source: &Session, mirror: &Mirror) -> Result<()> {
    // Looking at a table waits for whoever holds it exclusively; that must show, not hang.
    source.batch("SET lock_timeout = '5s'").await?;
    let wanted = wanted_members(source, mirror).await?;
    if mirror.publication_given {
        return check_given(source, mirror, &wanted).await;
    }
    let all = (&mirror.publication_name, "insert, update, delete, truncate");
    let insert_only = (&mirror.publication_ins_name, "insert, truncate");
    for (name, operations) in [all, insert_only] {
        create_if_missing(source, name, operations).await?;
    }
    let found = Members {
        all: members(source, all.0).await?,
        insert_only: members(source, insert_only.0).await?,
    };
    let statements: Vec<String> = alterations(all.0, &found.all, &wanted.all)
        .into_iter()
        .chain(alterations(
            insert_only.0,
            &found.insert_only,
            &wanted.insert_only,
        ))
        .collect();
    if statements.is_empty() {
        return Ok(());
    }
    // One transaction, so that a table that changes publication is always in one of them.
    let script = format!("BEGIN; {}; COMMIT", statements.join("; "));
    Ok(source.batch(&script).await?)
}

/// True when the source holds a publication that carries one of the mirror's own names.
pub(crate) async fn any_exists(source: &Session, mirror: &Mirror) -> Result<bool> {
    if mirror.publication_given {
        return Ok(false);
    }
    let found = source
        .query_opt(
            "SELECT 1 FROM pg_publication WHERE pubname = ANY ($1) LIMIT 1",
            &[&names(mirror)],
        )
        .await?;
    Ok(found.is_some())
}

/// Removes the publications that belong to the mirror.
pub(crate) async fn drop_own(source: &Session, mirror: &Mirror) -> Result<()> {
    if mirror.publication_given {
        return Ok(());
    }
    for name in names(mirror) {
        let script = format!("DROP PUBLICATION IF EXISTS {}", quote_ident(&name));
        source.batch(&script).await?;
    }
    Ok(())
}

async fn wanted_members(source: &Session, mirror: &Mirror) -> Result<Members> {
    let mut wanted = Members::default();
    for table in &mirror.tables {
        let definition = introspect::table_definition(source, &table.source)
            .await?
            .ok_or_else(|| {
                Error::fatal(format!(
                    "source table {} does not exist (or the peer's user may not see it); restore it or take it out of the mirror",
                    table.source
                ))
            })?;
        wanted.insert(table.source.clone(), membership(&definition));
    }
    Ok(wanted)
}

/// The definition's identity is the one in force over all leaves: one leaf without identity
/// would make the source refuse updates.
fn membership(definition: &TableDefinition) -> Membership {
    if definition.can_carry_updates() {
        Membership::All
    } else {
        Membership::InsertOnly
    }
}

async fn create_if_missing(source: &Session, name: &str, operations: &str) -> Result<()> {
    let found = source
        .query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name])
        .await?;
    if found.is_none() {
        let script = format!(
            "CREATE PUBLICATION {} WITH (publish = '{operations}', publish_via_partition_root = true)",
            quote_ident(name)
        );
        source.batch(&script).await?;
    }
    Ok(())
}

async fn members(source: &Session, publication: &str) -> Result<BTreeSet<TableName>> {
    let rows = source
        .query(
            "SELECT n.nspname, c.relname
             FROM pg_publication p
             JOIN pg_publication_rel r ON r.prpubid = p.oid
             JOIN pg_class c ON c.oid = r.prrelid
             JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE p.pubname = $1",
            &[&publication],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| TableName {
            schema: row.get(0),
            name: row.get(1),
        })
        .collect())
}

/// A table as ALTER PUBLICATION and LOCK have to name it: without ONLY they take all that inherits
/// from it too. A child has no key by inheritance; published, its updates would be refused at the
/// source, and one that came later would keep its parent from being taken out.
pub(crate) fn only(table: &TableName) -> String {
    format!("ONLY {}", table.quoted())
}

/// The statements that bring one publication from `found` to `wanted`.
fn alterations(
    publication: &str,
    found: &BTreeSet<TableName>,
    wanted: &BTreeSet<TableName>,
) -> Vec<String> {
    let publication = quote_ident(publication);
    let list = |tables: Vec<&TableName>| {
        let named: Vec<String> = tables.into_iter().map(only).collect();
        named.join(", ")
    };
    let added: Vec<&TableName> = wanted.difference(found).collect();
    let dropped: Vec<&TableName> = found.difference(wanted).collect();
    let mut statements = Vec::new();
    if !added.is_empty() {
        statements.push(format!(
            "ALTER PUBLICATION {publication} ADD TABLE {}",
            list(added)
        ));
    }
    if !dropped.is_empty() {
        statements.push(format!(
            "ALTER PUBLICATION {publication} DROP TABLE {}",
            list(dropped)
        ));
    }
    statements
}

async fn check_given(source: &Session, mirror: &Mirror, wanted: &Members) -> Result<()> {
    let name = &mirror.publication_name;
    let rows = source
        .query(
            "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1",
            &[name],
        )
        .await?;
    let found: BTreeSet<TableName> = rows
        .iter()
        .map(|row| TableName {
            schema: row.get(0),
            name: row.get(1),
        })
        .collect();
    let missing: Vec<String> = wanted
        .all
        .union(&wanted.insert_only)
        .filter(|table| !found.contains(table))
        .map(|table| table.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::fatal(format!(
        "publication {name}, which this mirror was told to use, does not publish {}; add them with ALTER PUBLICATION (partitioned tables need publish_via_partition_root)",
        missing.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(names: &[&str]) -> BTreeSet<TableName> {
        names
            .iter()
            .map(|name| TableName {
                schema: "public".into(),
                name: (*name).into(),
            })
            .collect()
    }

    #[test]
    fn nothing_to_alter_when_membership_agrees() {
        let same = tables(&["a", "b"]);
        assert!(alterations("p", &same, &same).is_empty());
    }

    #[test]
    fn adds_what_is_missing_and_drops_what_is_not_wanted() {
        let statements = alterations("p\"x", &tables(&["a", "b"]), &tables(&["b", "c", "d"]));
        assert_eq!(
            statements,
            [
                r#"ALTER PUBLICATION "p""x" ADD TABLE ONLY "public"."c", ONLY "public"."d""#,
                r#"ALTER PUBLICATION "p""x" DROP TABLE ONLY "public"."a""#,
            ]
        );
    }
}
