//! Looking at a table under the snapshot, so that it can be cut into chunks.

use std::sync::Arc;

use bunny_postgres::{
    Leaf, ResultExt, Session, TableDefinition, TableKind, TableName, introspect, quote_ident,
};
use tokio_postgres::SimpleQueryMessage;

use super::TableSync;
use super::keys;
use super::plan::{self, Chunk, Predicate, Relation};
use super::port::LogSink;
use super::progress::Progress;
use super::sessions::{Sessions, check_columns, check_unchanged};
use super::trouble::{Cause, Trouble};
use crate::watch::Exclusions;

/// A table as the snapshot shows it, and how it will be copied.
pub(super) struct Survey {
    pub(super) definition: TableDefinition,
    /// Names of the columns to copy, in attnum order.
    pub(super) columns: Vec<String>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) rows_estimate: u64,
}

/// A relation with rows and what a look at it told.
struct Measured {
    relation: Arc<Relation>,
    pages: u32,
    rows_per_page: f64,
}

impl Measured {
    fn rows(&self) -> u64 {
        (f64::from(self.pages) * self.rows_per_page).round() as u64
    }
}

/// Surveys `table` in a transaction of its own.
pub(super) async fn survey(
    sessions: &Sessions,
    table: &TableSync,
    rows_per_chunk: u64,
    progress: &Progress,
    log: &LogSink,
) -> Result<Survey, Trouble> {
    let session = sessions.take().await?;
    let root = format!("LOCK TABLE {} IN ACCESS SHARE MODE", table.source.quoted());
    let waiting = |reason: Option<&str>| {
        progress.update(table.request_id, |progress| {
            progress.waiting_for = reason.map(str::to_owned);
        });
    };
    sessions
        .begin(&session, &root, waiting)
        .await
        .map_err(|trouble| missing_table(trouble, &table.source))?;

    let mut definition = introspect::table_definition(&session, &table.source)
        .await?
        .ok_or_else(|| Cause::Rewritten(format!("{} was created", table.source)))?;
    let objects =
        introspect::table_objects(&session, definition.oid, &table.exclude_columns).await?;
    definition.objects = Some(objects);
    let relations = relations_with_rows(&definition);
    // Leaves detached since the snapshot are not locked with the root; their rows count.
    if definition.kind == TableKind::Partitioned && !relations.is_empty() {
        session.batch(&lock_sql(&relations)).await?;
    }
    check_unchanged(&session, relations.iter().map(Arc::as_ref)).await?;
    // A root has no file, but the definition is its.
    check_columns(&session, &[definition.oid]).await?;

    let mut measured = Vec::with_capacity(relations.len());
    for relation in relations {
        measured.push(measure(&session, relation).await?);
    }
    let rows_estimate = measured.iter().map(Measured::rows).sum();
    let rows_per_chunk = plan::rows_per_chunk(rows_per_chunk, rows_estimate);

    let mut planned = Vec::with_capacity(measured.len());
    let mut by_pages = Vec::new();
    for measured in measured {
        let predicates = match keyed(&session, table, &measured, rows_per_chunk).await? {
            Keyed::Ranges(predicates) => predicates,
            Keyed::NotAsked => pages(&measured, rows_per_chunk),
            Keyed::NotPossible(why) => {
                by_pages.push(format!("{}: {why}", measured.relation.name));
                pages(&measured, rows_per_chunk)
            }
        };
        planned.push((measured.relation, predicates));
    }
    say_by_pages(log, table, &by_pages);
    sessions.give_back(session).await?;

    let columns = synced_columns(&definition, table)?;
    // The definition travels as well, and a default may be a value.
    for column in &mut definition.columns {
        if !columns.contains(&column.name) && column.generated.is_none() {
            column.default = None;
        }
    }
    Ok(Survey {
        columns,
        chunks: plan::number_chunks(planned),
        definition,
        rows_estimate,
    })
}

/// Before anything was seen of the table, a missing one is the user's to mend, not a change
/// since the snapshot.
fn missing_table(trouble: Trouble, table: &TableName) -> Trouble {
    match trouble {
        Trouble::Table(Cause::Rewritten(_)) => {
            Cause::Refused(format!("{table} does not exist at the source")).into()
        }
        other => other,
    }
}

/// The table itself, or its leaves.
fn relations_with_rows(definition: &TableDefinition) -> Vec<Arc<Relation>> {
    match definition.kind {
        TableKind::Ordinary => vec![Arc::new(Relation {
            oid: definition.oid,
            name: definition.name.clone(),
        })],
        TableKind::Partitioned => definition
            .leaves
            .iter()
            .map(|Leaf { oid, name }| {
                Arc::new(Relation {
                    oid: *oid,
                    name: name.clone(),
                })
            })
            .collect(),
    }
}

/// Locks each relation for itself, in the order given.
pub(super) fn lock_sql(relations: &[Arc<Relation>]) -> String {
    let names: Vec<String> = relations
        .iter()
        .map(|relation| format!("ONLY {}", relation.name.quoted()))
        .collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))
}

fn synced_columns(definition: &TableDefinition, table: &TableSync) -> Result<Vec<String>, Trouble> {
    let exclusions = table.exclusions.borrow();
    let columns = published_columns(definition, &table.exclude_columns, &exclusions);
    columns.map_err(Trouble::from)
}

/// Columns that travel: not the excluded ones, and not generated ones, which the stream
/// doesn't carry and the destination computes itself.
///
/// A column is known as excluded by its number, whatever it is called now.
pub(crate) fn published_columns(
    definition: &TableDefinition,
    exclude_columns: &[String],
    exclusions: &Exclusions,
) -> Result<Vec<String>, Cause> {
    let columns = &definition.columns;
    let source = &definition.name;
    let kept = match exclusions.get(source).cloned() {
        _ if exclude_columns.is_empty() => vec![true; columns.len()],
        Some((oid, mut exclusion)) if oid == definition.oid => {
            exclusion.require(exclude_columns);
            let numbered = columns.iter().map(|c| (c.name.as_str(), c.attnum));
            let refused = |reason| Cause::Refused(format!("{source}: {reason}"));
            exclusion.keeps(numbered).map_err(refused)?
        }
        // Another table by now: the next look knows it.
        _ => return Err(Cause::Rewritten(format!("{source} was created anew"))),
    };
    let kept = columns.iter().zip(kept).filter(|(_, kept)| *kept);
    Ok(kept
        .filter(|(column, _)| column.generated.is_none())
        .map(|(column, _)| column.name.clone())
        .collect())
}

/// Pages by the file's true size, and rows per page from a sample: statistics may be old or
/// missing.
async fn measure(session: &Session, relation: Arc<Relation>) -> Result<Measured, Trouble> {
    let row = session
        .query_one(
            "SELECT pg_catalog.pg_relation_size($1::pg_catalog.oid::pg_catalog.regclass) \
                 / pg_catalog.current_setting('block_size')::pg_catalog.int8",
            &[&relation.oid],
        )
        .await
        .doing(format!("reading the size of {}", relation.name))?;
    // A relation gone since gives NULL; the chunks' own checks tell.
    let pages: i64 = row.get::<_, Option<i64>>(0).unwrap_or_default();
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    let rows_per_page = sampled_density(session, &relation.name, pages).await?;
    Ok(Measured {
        relation,
        pages,
        rows_per_page,
    })
}

async fn sampled_density(
    session: &Session,
    relation: &TableName,
    pages: u32,
) -> Result<f64, Trouble> {
    if pages == 0 {
        return Ok(0.0);
    }
    let probes = plan::probes(pages);
    let pages_read: u32 = probes.iter().map(|(from, to)| to - from).sum();
    let counts: Vec<String> = probes
        .iter()
        .map(|(from, to)| {
            let range = Predicate::Pages {
                from: *from,
                to: Some(*to),
            };
            format!(
                "(SELECT count(*) FROM ONLY {} WHERE {})",
                relation.quoted(),
                range.sql().unwrap_or_default()
            )
        })
        .collect();
    let sql = format!("SELECT {}", counts.join(" + "));
    let row = session
        .query_one(&sql, &[])
        .await
        .doing(format!("sampling {relation}"))?;
    let rows: i64 = row.get(0);
    Ok(rows as f64 / f64::from(pages_read.max(1)))
}

fn pages(measured: &Measured, rows_per_chunk: u64) -> Vec<Predicate> {
    plan::page_ranges(measured.pages, measured.rows_per_page, rows_per_chunk)
}

enum Keyed {
    Ranges(Vec<Predicate>),
    NotAsked,
    NotPossible(String),
}

/// Cuts by the table's partition key, if it has one and the relation an index on it.
async fn keyed(
    session: &Session,
    table: &TableSync,
    measured: &Measured,
    rows_per_chunk: u64,
) -> Result<Keyed, Trouble> {
    let Some(column) = &table.partition_key else {
        return Ok(Keyed::NotAsked);
    };
    let chunks = plan::chunks_of(measured.rows(), rows_per_chunk);
    if chunks <= 1 || measured.pages == 0 {
        return Ok(Keyed::NotAsked);
    }

    // A surprising type or operator must not cost the table its sync: whatever the server
    // refuses here, pages always work.
    session.batch("SAVEPOINT keys").await?;
    let found = keys::bounds(session, &measured.relation, column, measured.pages, chunks).await;
    match found {
        Ok(keys::Bounds::Found { axis, bounds }) => {
            session.batch("RELEASE SAVEPOINT keys").await?;
            Ok(Keyed::Ranges(plan::key_ranges(&axis, bounds)))
        }
        Ok(keys::Bounds::Unusable(why)) => {
            session.batch("RELEASE SAVEPOINT keys").await?;
            Ok(Keyed::NotPossible(why))
        }
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) => {
            session.batch("ROLLBACK TO SAVEPOINT keys").await?;
            Ok(Keyed::NotPossible(error.to_string()))
        }
    }
}

fn say_by_pages(log: &LogSink, table: &TableSync, reasons: &[String]) {
    const REASONS_MAX: usize = 10;
    let Some(column) = table.partition_key.as_ref().filter(|_| !reasons.is_empty()) else {
        return;
    };
    log.warning(
        format!(
            "table {} is copied by page ranges instead of ranges of {}",
            table.source,
            quote_ident(column)
        ),
        serde_json::json!({
            "table": table.source.to_string(),
            "partition_key": column,
            "relations": reasons.len(),
            "reasons": reasons.iter().take(REASONS_MAX).collect::<Vec<_>>(),
        }),
    );
}

/// The rows of a simple query: every value as its type prints it.
pub(super) fn text_rows(
    messages: Vec<SimpleQueryMessage>,
) -> impl Iterator<Item = tokio_postgres::SimpleQueryRow> {
    messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}
