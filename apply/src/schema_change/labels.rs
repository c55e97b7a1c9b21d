//! Enum labels: added, and renamed where `pg_enum.oid` proves it.
//!
//! Postgres lets nobody use a label in the transaction that adds it. So a missing one ends
//! the batch with [`Error::Labels`]; the run adds it in a fenced transaction of its own
//! ([`add`]), which changes no row and may be repeated, and reads the batch again.

use bunny_catalog::{LogLevel, SchemaChanges};
use bunny_postgres::{TableName, quote_ident, quote_literal};
use bunny_schemas::envelope::EnumLabels;
use tokio_postgres::Client;

use super::shape::Shape;
use crate::bookkeeping;
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::event::TableVersion;

/// The enums that a version's columns are made of, each once.
pub(crate) fn of(version: &TableVersion) -> Vec<EnumLabels> {
    let mut enums: Vec<EnumLabels> = Vec::new();
    for column in &version.columns {
        if let Some(labels) = column
            .facts
            .as_ref()
            .and_then(|facts| facts.labels.as_ref())
            && !enums.contains(labels)
        {
            enums.push(labels.clone());
        }
    }
    enums
}

/// What one enum of the destination lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lack {
    /// Former and present label of the same oid, the former still at the destination.
    renamed: Vec<(String, String)>,
    /// Missing label, and the one before it at the source.
    added: Vec<(String, Option<String>)>,
}

/// Pure. `known`: the enum as the version before said it.
fn lack(known: Option<&EnumLabels>, wanted: &EnumLabels, present: &[String]) -> Lack {
    let mut lack = Lack::default();
    let mut before: Option<String> = None;
    for label in &wanted.labels {
        if !present.contains(&label.label) {
            let former = known
                .and_then(|known| known.labels.iter().find(|known| known.oid == label.oid))
                .filter(|former| present.contains(&former.label));
            match former {
                Some(former) => lack
                    .renamed
                    .push((former.label.clone(), label.label.clone())),
                None => lack.added.push((label.label.clone(), before.clone())),
            }
        }
        before = Some(label.label.clone());
    }
    lack
}

/// Looks whether the destination's enums have the labels of `wanted`. Gives what is to be
/// said; [`Error::Labels`] when labels are to be added first.
pub(super) async fn check(
    client: &Client,
    mode: SchemaChanges,
    version: &TableVersion,
    known: &[EnumLabels],
    wanted: &[EnumLabels],
) -> Result<Vec<String>> {
    let mut notices = Vec::new();
    let mut statements = Vec::new();
    for labels in wanted {
        let name = TableName::new(labels.schema.as_str(), labels.name.as_str());
        let Some(present) = present(client, &name).await? else {
            // Its columns are of another type here (text, say), which takes any label.
            continue;
        };
        let former = known
            .iter()
            .find(|known| (&known.schema, &known.name) == (&labels.schema, &labels.name));
        let lack = lack(former, labels, &present);
        let quoted = name.quoted();
        for (from, to) in &lack.renamed {
            let rename = format!(
                "ALTER TYPE {quoted} RENAME VALUE {} TO {}",
                quote_literal(from),
                quote_literal(to)
            );
            match mode {
                SchemaChanges::All => statements.push(rename),
                SchemaChanges::Additive => {
                    return Err(Error::Table {
                        table: version.source.clone(),
                        reason: format!(
                            "label {} of type {quoted} was renamed at the source, which \"schema_changes\": \"additive\" does not \
                             follow; run {rename} at the destination, then sync the table again",
                            quote_literal(from)
                        ),
                        restart_offset: None,
                    });
                }
                SchemaChanges::Manual => notices.push(format!(
                    "label {} of type {quoted} was renamed at the source: run {rename} at the destination, or the first row with \
                     it makes the table ERRORED",
                    quote_literal(from)
                )),
            }
        }
        for (label, before) in &lack.added {
            let place = match before {
                Some(before) => format!(" AFTER {}", quote_literal(before)),
                None => present
                    .first()
                    .map(|first| format!(" BEFORE {}", quote_literal(first)))
                    .unwrap_or_default(),
            };
            let add = format!(
                "ALTER TYPE {quoted} ADD VALUE IF NOT EXISTS {}{place}",
                quote_literal(label)
            );
            if mode == SchemaChanges::Manual {
                notices.push(format!(
                    "type {quoted} has a new label {} at the source: run {add} at the destination, or the first row with it makes \
                     the table ERRORED",
                    quote_literal(label)
                ));
            } else {
                statements.push(add);
            }
        }
    }
    if statements.is_empty() {
        return Ok(notices);
    }
    Err(Error::Labels {
        table: version.source.clone(),
        statements,
    })
}

/// What a schema sync is to do about enums.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// In order, each for a transaction of its own; running one again does no harm.
    pub(crate) statements: Vec<String>,
    /// Why the table cannot be brought in line.
    pub(crate) refused: Option<String>,
}

/// The same as [`check`] for a schema sync, which must not guess: where labels are gone and
/// others are new, and nothing is known of their oids, they may have been renamed.
pub(crate) async fn asked(
    client: &Client,
    mode: SchemaChanges,
    version: &TableVersion,
    known: &[EnumLabels],
) -> Result<Asked> {
    let wanted = of(version);
    for labels in &wanted {
        let name = TableName::new(labels.schema.as_str(), labels.name.as_str());
        let is_known = known
            .iter()
            .any(|known| (&known.schema, &known.name) == (&labels.schema, &labels.name));
        let Some(present) = present(client, &name).await?.filter(|_| !is_known) else {
            continue;
        };
        let is_wanted = |label: &String| labels.labels.iter().any(|one| one.label == *label);
        let gone: Vec<&String> = present.iter().filter(|label| !is_wanted(label)).collect();
        let lack = lack(None, labels, &present);
        if !gone.is_empty() && !lack.added.is_empty() {
            let added: Vec<&String> = lack.added.iter().map(|(label, _)| label).collect();
            return Ok(Asked {
                refused: Some(format!(
                    "type {} has the labels {gone:?} here, which the source has not, and lacks {added:?}: they may have been                      renamed; run ALTER TYPE … RENAME VALUE, or ADD VALUE, at the destination and ask again",
                    name.quoted()
                )),
                ..Asked::default()
            });
        }
    }
    match check(client, mode, version, known, &wanted).await {
        Ok(_) => Ok(Asked::default()),
        Err(Error::Labels { statements, .. }) => Ok(Asked {
            statements,
            refused: None,
        }),
        Err(Error::Table { reason, .. }) => Ok(Asked {
            refused: Some(reason),
            ..Asked::default()
        }),
        Err(error) => Err(error),
    }
}

/// The labels of an enum at the destination, in order; None when there is no such enum.
async fn present(client: &Client, name: &TableName) -> Result<Option<Vec<String>>> {
    let row = client
        .query_one(
            "SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
             FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
             WHERE n.nspname = $1 AND t.typname = $2",
            &[&name.schema, &name.name],
        )
        .await
        .map_err(Error::sql(format!("reading the labels of type {}", name.quoted())))?;
    Ok(row.get(0))
}

/// Creates the enums that only new columns use, where the destination has no such type.
/// In the transaction that adds the columns.
pub(super) async fn create_types(
    client: &Client,
    version: &TableVersion,
    known: &Shape,
) -> Result<()> {
    for column in &version.columns {
        let labels = column
            .facts
            .as_ref()
            .and_then(|facts| facts.labels.as_ref());
        let Some(labels) = labels.filter(|_| known.position(column).is_none()) else {
            continue;
        };
        let name = TableName::new(labels.schema.as_str(), labels.name.as_str());
        let doing = || format!("creating type {} at the destination", name.quoted());
        let found = client
            .query_one("SELECT to_regtype($1) IS NOT NULL", &[&name.quoted()])
            .await
            .map_err(Error::sql(doing()))?;
        if found.get(0) {
            continue;
        }
        let list: Vec<String> = labels
            .labels
            .iter()
            .map(|label| quote_literal(&label.label))
            .collect();
        client
            .batch_execute(&format!(
                "CREATE SCHEMA IF NOT EXISTS {}; CREATE TYPE {} AS ENUM ({})",
                quote_ident(&name.schema),
                name.quoted(),
                list.join(", ")
            ))
            .await
            .map_err(Error::sql(doing()))?;
    }
    Ok(())
}

/// Runs the statements of [`Error::Labels`], each in a fenced transaction of its own.
pub(crate) async fn add(run: &MirrorRun, table: &TableName, statements: &[String]) -> Result<()> {
    let session = run.connect().await?;
    let client: &Client = &session;
    for statement in statements {
        let doing = || format!("running {statement}");
        client
            .batch_execute("BEGIN")
            .await
            .map_err(Error::sql(doing()))?;
        bookkeeping::fence(client, run.mirror_id(), run.epoch).await?;
        let ran = client.batch_execute(statement).await;
        if let Err(error) = ran.map_err(Error::sql(doing())) {
            if error.is_transient() {
                return Err(error);
            }
            // The batch was rolled back: nothing from the progress row on is applied.
            drop(session);
            let session = run.connect().await?;
            let client: &Client = &session;
            let progress = bookkeeping::progress(client, run.mirror_id()).await?;
            return Err(Error::Table {
                table: table.clone(),
                reason: error.to_string(),
                restart_offset: progress.map(|progress| progress.next_offset),
            });
        }
        client
            .batch_execute("COMMIT")
            .await
            .map_err(Error::sql(doing()))?;
        reached(crash_points::LABEL_ADDED);
        tracing::info!(mirror = %run.mirror.name, %table, statement, "followed a change of an enum");
        run.reporter.log(
            LogLevel::Info,
            format!("schema of table {table} followed: {statement}"),
            serde_json::json!({"table": table.to_string(), "statement": statement}),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bunny_schemas::envelope::Label;

    use super::*;

    fn labels(labels: &[(u32, &str)]) -> EnumLabels {
        EnumLabels {
            schema: "public".into(),
            name: "mood".into(),
            labels: labels
                .iter()
                .map(|(oid, label)| Label {
                    oid: *oid,
                    label: (*label).to_owned(),
                })
                .collect(),
        }
    }

    fn present(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    #[test]
    fn labels_are_added_in_their_place() {
        let wanted = labels(&[(1, "a"), (3, "b"), (2, "c"), (4, "d")]);
        let lack = lack(None, &wanted, &present(&["a", "c"]));
        assert_eq!(
            lack.added,
            [
                ("b".to_owned(), Some("a".to_owned())),
                ("d".to_owned(), Some("c".to_owned()))
            ]
        );
        assert!(lack.renamed.is_empty());
    }

    #[test]
    fn a_rename_is_proven_by_the_oid() {
        let known = labels(&[(1, "a"), (2, "b")]);
        let wanted = labels(&[(1, "a"), (2, "c")]);
        let found = lack(Some(&known), &wanted, &present(&["a", "b"]));
        assert_eq!(found.renamed, [("b".to_owned(), "c".to_owned())]);
        assert!(found.added.is_empty());
        // Done already: nothing is lacking.
        assert_eq!(
            lack(Some(&known), &wanted, &present(&["a", "c"])),
            Lack::default()
        );
    }
}
