//! Enum labels: added, and renamed where `pg_enum.oid` proves it.
//!
//! Postgres lets nobody use a label in the transaction that adds it. So a missing one ends
//! the batch with [`Error::Labels`]; the run adds it in a fenced transaction of its own
//! ([`add`]), which changes no row and may be repeated, and reads the batch again. A label is
//! renamed within the batch's transaction, after the rows that carry its former name.
//!
//! Whether a label is new or another's new name decides what older rows hold. So what the
//! oids do not tell is refused where both could be, and so is a rename that somebody has
//! followed by adding the new name: the older rows would keep the former one.

use bunny_catalog::{LogLevel, SchemaChanges};
use bunny_postgres::introspect::{TableObjects, TypeShape};
use bunny_postgres::{TableName, quote_ident, quote_literal};
use bunny_schemas::envelope::{EnumLabels, Label};
use tokio_postgres::Client;

use super::Word;
use super::plan::{Alteration, Otherwise, alteration};
use super::run::alterations;
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

/// Those of a table's definition, where it says which oids they have.
pub(super) fn of_objects(objects: Option<&TableObjects>) -> Vec<EnumLabels> {
    let types = objects.into_iter().flat_map(|objects| &objects.types);
    types
        .filter_map(|definition| {
            let TypeShape::Enum { labels, oids } = &definition.shape else {
                return None;
            };
            let pairs = oids.iter().zip(labels);
            (labels.len() == oids.len()).then(|| EnumLabels {
                schema: definition.name.schema.clone(),
                name: definition.name.name.clone(),
                labels: pairs
                    .map(|(&oid, label)| Label {
                        oid,
                        label: label.clone(),
                    })
                    .collect(),
            })
        })
        .collect()
}

/// What one enum of the destination lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lack {
    /// Former and present label of the same oid, the former still at the destination.
    renamed: Vec<(String, String)>,
    /// Missing label, and the one before it, by the name it has at the destination now.
    added: Vec<(String, Option<String>)>,
}

/// Pure. `known`: the enum as the version before said it.
///
/// # Errors
/// Why the labels cannot be told apart, to follow the name of the type.
fn lack(
    known: Option<&EnumLabels>,
    wanted: &EnumLabels,
    present: &[String],
) -> Result<Lack, String> {
    let is_present = |label: &str| present.iter().any(|one| one == label);
    let is_wanted = |label: &str| wanted.labels.iter().any(|one| one.label == label);
    let mut lack = Lack::default();
    let mut before: Option<String> = None;
    for label in &wanted.labels {
        let former = known
            .and_then(|known| known.labels.iter().find(|known| known.oid == label.oid))
            .map(|former| former.label.as_str())
            .filter(|former| *former != label.label);
        let mut here = label.label.as_str();
        match (former, is_present(here)) {
            (Some(former), is_there) if is_present(former) => {
                let (from, to) = (quote_literal(former), quote_literal(here));
                if is_there {
                    return Err(format!(
                        "label {from} was renamed to {to} at the source, and both are here, so older rows keep the former; sync the \
                         table again"
                    ));
                }
                if is_wanted(former) {
                    return Err(format!(
                        "label {from} was renamed to {to} at the source, and another has its former name; sync the table again"
                    ));
                }
                lack.renamed.push((former.to_owned(), here.to_owned()));
                here = former;
            }
            (_, true) => {}
            (Some(former), false) => {
                return Err(format!(
                    "label {} was renamed to {} at the source, and neither is here; rename the label that stands for it, then sync \
                     the table again",
                    quote_literal(former),
                    quote_literal(here)
                ));
            }
            (None, false) => lack.added.push((here.to_owned(), before.clone())),
        }
        before = Some(here.to_owned());
    }
    let gone: Vec<&String> = present.iter().filter(|label| !is_wanted(label)).collect();
    if known.is_none() && !gone.is_empty() && !lack.added.is_empty() {
        let added: Vec<&String> = lack.added.iter().map(|(label, _)| label).collect();
        return Err(format!(
            "the labels {gone:?} are here, which the source has not, and {added:?} are lacking: they may have been renamed"
        ));
    }
    Ok(lack)
}

/// What is to be done about the enums of a version.
#[derive(Debug, Default)]
struct Steps {
    /// Each in a transaction of its own, before any rename.
    added: Vec<String>,
    /// With the rows.
    renamed: Vec<Alteration>,
    notices: Vec<String>,
}

/// Looks whether the destination's enums have the labels of `wanted`.
///
/// # Errors
/// [`Error::Table`] where the table cannot go on.
async fn steps(
    client: &Client,
    mode: SchemaChanges,
    version: &TableVersion,
    known: &[EnumLabels],
    wanted: &[EnumLabels],
) -> Result<Steps> {
    let refused = |reason: String| Error::Table {
        table: version.source.clone(),
        reason,
        restart_offset: None,
    };
    let mut steps = Steps::default();
    for labels in wanted {
        let name = TableName::new(labels.schema.as_str(), labels.name.as_str());
        let Some(present) = present(client, &name).await? else {
            // Its columns are of another type here (text, say), which takes any label.
            continue;
        };
        let former = known
            .iter()
            .find(|known| (&known.schema, &known.name) == (&labels.schema, &labels.name));
        let quoted = name.quoted();
        let lack = match lack(former, labels, &present) {
            Ok(lack) => lack,
            Err(why) if former.is_some() => return Err(refused(format!("type {quoted}: {why}"))),
            Err(why) => {
                let cure = format!(
                    "type {quoted}: {why}; run ALTER TYPE {quoted} RENAME VALUE, or ADD VALUE, at the destination, then sync the table again"
                );
                if mode != SchemaChanges::Manual {
                    return Err(refused(cure));
                }
                steps.notices.push(cure);
                continue;
            }
        };
        for (from, to) in &lack.renamed {
            let rename = format!(
                "ALTER TYPE {quoted} RENAME VALUE {} TO {}",
                quote_literal(from),
                quote_literal(to)
            );
            let renamed = format!(
                "label {} of type {quoted} was renamed at the source",
                quote_literal(from)
            );
            match mode {
                SchemaChanges::All => {
                    let otherwise = format!(
                        "{renamed}, which could not be followed; run {rename} at the destination, then sync the table again"
                    );
                    steps
                        .renamed
                        .push(alteration(rename, Otherwise::Refuse(otherwise)));
                }
                SchemaChanges::Additive => {
                    return Err(refused(format!(
                        "{renamed}, which \"schema_changes\": \"additive\" does not follow; run {rename} at the destination, \
                         then sync the table again"
                    )));
                }
                SchemaChanges::Manual => steps.notices.push(format!(
                    "{renamed}: run {rename} at the destination, or the first row with it makes the table ERRORED"
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
                steps.notices.push(format!(
                    "type {quoted} has a new label {} at the source: run {add} at the destination, or the first row with it makes \
                     the table ERRORED",
                    quote_literal(label)
                ));
            } else {
                steps.added.push(add);
            }
        }
    }
    Ok(steps)
}

/// Brings the destination's enums to the labels of `wanted`, in the open transaction. Gives
/// what is to be said; [`Error::Labels`] when labels are to be added first.
pub(super) async fn follow(
    client: &Client,
    mode: SchemaChanges,
    version: &TableVersion,
    known: &[EnumLabels],
    wanted: &[EnumLabels],
) -> Result<Vec<Word>> {
    let steps = steps(client, mode, version, known, wanted).await?;
    if !steps.added.is_empty() {
        return Err(Error::Labels {
            table: version.source.clone(),
            statements: steps.added,
        });
    }
    let mut words = alterations(client, &steps.renamed)
        .await
        .map_err(|failed| failed.of(&version.source))?;
    words.extend(steps.notices.into_iter().map(Word::Notice));
    Ok(words)
}

/// What a schema sync is to do about enums.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// In order, each for a transaction of its own; running one again does no harm.
    pub(crate) statements: Vec<String>,
    /// Why the table cannot be brought in line.
    pub(crate) refused: Option<String>,
}

/// The same as [`follow`] for a schema sync.
pub(crate) async fn asked(
    client: &Client,
    mode: SchemaChanges,
    version: &TableVersion,
    known: &[EnumLabels],
) -> Result<Asked> {
    match steps(client, mode, version, known, &of(version)).await {
        Ok(steps) => {
            let renamed = steps.renamed.into_iter();
            let attempts = renamed.flat_map(|alteration| alteration.attempts);
            let mut statements = steps.added;
            statements.extend(attempts.map(|attempt| attempt.sql));
            Ok(Asked {
                statements,
                refused: None,
            })
        }
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
        let known = labels(&[(1, "old"), (2, "c")]);
        let added = |before: &str| {
            [
                ("b".to_owned(), Some(before.to_owned())),
                ("d".to_owned(), Some("c".to_owned())),
            ]
        };
        let found = lack(None, &wanted, &present(&["a", "c"])).unwrap();
        assert_eq!(found.added, added("a"));
        assert!(found.renamed.is_empty());
        // Beside a label that is not renamed yet.
        let found = lack(Some(&known), &wanted, &present(&["old", "c"])).unwrap();
        assert_eq!(found.added, added("old"));
    }

    #[test]
    fn a_rename_is_proven_by_the_oid() {
        let known = labels(&[(1, "a"), (2, "b")]);
        let wanted = labels(&[(1, "a"), (2, "c")]);
        let found = lack(Some(&known), &wanted, &present(&["a", "b"])).unwrap();
        assert_eq!(found.renamed, [("b".to_owned(), "c".to_owned())]);
        assert!(found.added.is_empty());
        // Done already: nothing is lacking.
        assert_eq!(
            lack(Some(&known), &wanted, &present(&["a", "c"])),
            Ok(Lack::default())
        );
    }

    #[test]
    fn what_older_rows_hold_is_not_guessed() {
        let refused = |known: Option<&EnumLabels>, wanted: &[(u32, &str)], there: &[&str]| {
            lack(known, &labels(wanted), &present(there)).unwrap_err()
        };
        let known = labels(&[(1, "a"), (2, "b")]);
        let renamed = [(1, "a"), (2, "c")];
        let both = refused(Some(&known), &renamed, &["a", "b", "c"]);
        assert!(both.contains("both are here"), "{both}");
        let neither = refused(Some(&known), &renamed, &["a", "z"]);
        assert!(neither.contains("neither is here"), "{neither}");
        let taken = refused(Some(&known), &[(1, "a"), (2, "c"), (3, "b")], &["a", "b"]);
        assert!(taken.contains("another has its former name"), "{taken}");
        let unknown = refused(None, &renamed, &["a", "b"]);
        assert!(unknown.contains("may have been renamed"), "{unknown}");
        let swapped = refused(Some(&known), &[(2, "a"), (1, "b")], &["a", "b"]);
        assert!(swapped.contains("both are here"), "{swapped}");
    }
}
