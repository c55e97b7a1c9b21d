//! The topic oracle: reads a mirror's topics as any consumer could and checks that they
//! are the source's history.
//!
//! It decodes with the `apache-avro` crate, not with the product's codec, and checks
//! - that `(commit_lsn, seq)` strictly increases within a generation (invariant I2),
//! - that every source transaction is whole: closed by its `last` event before the next,
//! - that snapshot chunks plus the changes after each table's consistent point add up to
//!   the source's present content, with no row inserted twice, updated or deleted unseen,
//!   over all versions of the table: rows follow from one to the next as docs/events.md says.
//!
//! A topic that has been trimmed begins later, in the middle of a generation.

mod copies;
mod materialise;
mod records;
pub mod tables;
mod version;
mod watermarks;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::content::TablePair;
use crate::database::Session;
use materialise::Tables;
use records::{ChangeRecord, Topics};

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Row events and truncates in the change topic.
    pub events: u64,
    /// Source transactions in the change topic.
    pub transactions: u64,
    /// Generations begun.
    pub generations: u64,
    /// Rows in the snapshot chunks that count.
    pub snapshot_rows: u64,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
    /// Updates that carry an old row or key.
    pub with_before: u64,
    /// Updates with columns that Postgres did not send.
    pub with_unchanged: u64,
    /// Per source table and column, the Avro type beside null in the newest schema that a
    /// record uses.
    pub avro_types: HashMap<(String, String), HashMap<String, String>>,
    /// Versions of each source table that events were written under, in any generation.
    pub versions: HashMap<(String, String), usize>,
    /// Tables that were not compared, because a schema says that the log alone does not tell
    /// what their rows hold, and what it says.
    pub unknown: BTreeMap<(String, String), String>,
}

impl Summary {
    fn count(&mut self, event: &records::Event) {
        self.events += 1;
        self.transactions += u64::from(event.last);
        match event.op.as_str() {
            "c" => self.inserts += 1,
            "u" => self.updates += 1,
            "d" => self.deletes += 1,
            _ => self.truncates += 1,
        }
        let update = event.op == "u";
        self.with_before += u64::from(update && event.before.is_some());
        self.with_unchanged += u64::from(update && !event.unchanged.is_empty());
    }
}

/// Reads the topics of the mirror `slug` to their present end and compares what they
/// add up to with the tables at the source, which must be at rest.
pub async fn assert_history(
    brokers: &str,
    prefix: &str,
    slug: &str,
    source: &Session,
    pairs: &[TablePair],
) -> anyhow::Result<Summary> {
    let topics = {
        let (brokers, prefix, slug) = (brokers.to_owned(), prefix.to_owned(), slug.to_owned());
        tokio::task::spawn_blocking(move || Topics::read(&brokers, &prefix, &slug)).await??
    };
    let mut tables = Tables::describe(source, pairs).await?;
    let mut summary = Summary {
        avro_types: topics.avro_types.clone(),
        ..Summary::default()
    };
    let generation = last_generation(&topics).with_context(|| {
        format!(
            "no GenerationStarted in the change topic: {} records, the first at {:?}",
            topics.changes.len(),
            topics.changes_from
        )
    })?;
    summary.snapshot_rows = tables.load(&topics.snapshot, &generation)?;
    replay(&topics, &generation, &mut tables, &mut summary, source).await?;
    summary.unknown = tables.unknown();
    tables.assert_equal_source(source).await?;
    Ok(summary)
}

/// Fails if any record of the mirror's topics holds these bytes, in whatever field.
pub async fn assert_nowhere(
    brokers: &str,
    prefix: &str,
    slug: &str,
    needle: &str,
) -> anyhow::Result<()> {
    for topic in ["changes", "snapshot", "position"] {
        let (brokers, topic) = (brokers.to_owned(), format!("{prefix}.{slug}.{topic}"));
        let needle = needle.to_owned();
        tokio::task::spawn_blocking(move || records::assert_without(&brokers, &topic, &needle))
            .await??;
    }
    Ok(())
}

/// First offset and end of the partitions of every topic of a mirror, and of that of the schemas.
pub async fn watermarks(
    brokers: &str,
    prefix: &str,
    slug: &str,
) -> anyhow::Result<BTreeMap<String, Vec<(i64, i64)>>> {
    let [brokers, prefix, slug] = [brokers, prefix, slug].map(str::to_owned);
    tokio::task::spawn_blocking(move || watermarks::read(&brokers, &prefix, &slug)).await?
}

/// The requests under which the mirror's position topic knows of copies.
pub async fn recorded_copies(
    brokers: &str,
    prefix: &str,
    slug: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let [brokers, prefix, slug] = [brokers, prefix, slug].map(str::to_owned);
    tokio::task::spawn_blocking(move || copies::requests(&brokers, &prefix, &slug)).await?
}

/// How many schema ids were given under a prefix so far; an error if one was given twice.
pub async fn schema_ids(brokers: &str, prefix: &str) -> anyhow::Result<usize> {
    let (brokers, topic) = (brokers.to_owned(), format!("{prefix}.schemas"));
    tokio::task::spawn_blocking(move || records::schema_ids(&brokers, &topic)).await?
}

/// Makes every copy that the mirror's topics hold older than it is.
pub async fn age_copies(
    brokers: &str,
    prefix: &str,
    slug: &str,
    by: Duration,
) -> anyhow::Result<()> {
    let [brokers, prefix, slug] = [brokers, prefix, slug].map(str::to_owned);
    tokio::task::spawn_blocking(move || copies::age(&brokers, &prefix, &slug, by)).await?
}

/// Writes the last event of the mirror's change topic a second time: what the oracle
/// has to notice.
pub async fn repeat_last_event(brokers: &str, prefix: &str, slug: &str) -> anyhow::Result<()> {
    let (brokers, topic) = (brokers.to_owned(), format!("{prefix}.{slug}.changes"));
    tokio::task::spawn_blocking(move || records::repeat_last_event(&brokers, &topic)).await?
}

fn last_generation(topics: &Topics) -> Option<String> {
    let mut newest_first = topics.changes.iter().rev();
    let begun = newest_first.find_map(|record| match record {
        ChangeRecord::GenerationStarted { generation } => Some(generation.as_str()),
        _ => None,
    });
    let generation = begun.or_else(|| generation_at_start(topics));
    generation.map(str::to_owned)
}

/// The generation that a topic is in the middle of where it begins: its begin has been trimmed.
fn generation_at_start(topics: &Topics) -> Option<&str> {
    let is_trimmed = topics.changes_from.is_some_and(|first| first > 0);
    match topics.changes.first() {
        Some(ChangeRecord::Event(event)) if is_trimmed => Some(&event.generation),
        _ => None,
    }
}

/// Checks order and transaction ends over all generations; applies those of the last.
async fn replay(
    topics: &Topics,
    last_generation: &str,
    tables: &mut Tables,
    summary: &mut Summary,
    source: &Session,
) -> anyhow::Result<()> {
    let mut generation: Option<&str> = generation_at_start(topics);
    let mut before: Option<(u64, i64)> = None;
    let mut open_transaction: Option<u64> = None;
    let mut versions: HashMap<&(String, String), HashSet<usize>> = HashMap::new();
    for record in &topics.changes {
        let event = match record {
            ChangeRecord::GenerationStarted { generation: name } => {
                generation = Some(name);
                before = None;
                open_transaction = None; // Void, by the contract.
                summary.generations += 1;
                continue;
            }
            ChangeRecord::TableGap => bail!("a TableGap nobody asked for"),
            ChangeRecord::Event(event) => event,
        };
        let position = (event.commit_lsn, event.seq);
        ensure!(
            generation == Some(&event.generation),
            "an event of generation {} in generation {generation:?}: {event:?}",
            event.generation
        );
        ensure!(
            before.is_none_or(|before| before < position),
            "{position:?} follows {before:?}: doubled or out of order: {event:?}"
        );
        ensure!(
            open_transaction.is_none_or(|open| open == event.commit_lsn),
            "the transaction at {open_transaction:?} has no last event before {event:?}"
        );
        ensure!(
            open_transaction.is_some()
                || before.is_none_or(|(commit_lsn, _)| commit_lsn != event.commit_lsn),
            "the transaction goes on after its last event: {event:?}"
        );
        before = Some(position);
        open_transaction = (!event.last).then_some(event.commit_lsn);
        summary.count(event);
        let seen = versions.entry(&event.table).or_default();
        seen.insert(Arc::as_ptr(&event.version).addr());
        if event.generation == last_generation {
            tables
                .apply(event, source)
                .await
                .with_context(|| format!("applying {event:?}"))?;
        }
    }
    let versions = versions.into_iter();
    summary.versions = versions
        .map(|(table, seen)| (table.clone(), seen.len()))
        .collect();
    ensure!(
        open_transaction.is_none(),
        "the topic ends within the transaction at {open_transaction:?}"
    );
    Ok(())
}
