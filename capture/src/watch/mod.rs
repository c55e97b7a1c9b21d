//! Whether the mapped tables are still what the mirror captures: there, published, with an
//! identity that carries their updates.
//!
//! What was seen is kept in the position topic ([`TableRecord`]), so that what changes
//! while no capture runs is noticed too. Where changes of a table may have been missed, the
//! stream writes a `TableGap` into the log, behind everything that had been captured well,
//! together with the new record: the table is ERRORED until it is synced again, the others
//! go on (invariant I6). A table whose sync has not finished needs none: its next attempt
//! begins after what happened.
//!
//! Rows may also change in ways that the stream does not carry (`untracked`). That needs
//! nothing in the log: a sync of the table is asked for (`cure`), and begins after them.

mod alter;
mod attached;
mod cure;
mod drift;
mod facts;
mod marks;
mod membership;
mod settle;
mod streamed;
mod untracked;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::time::{Duration, Instant};

use bunny_catalog::{Mirror, MirrorTable};
use bunny_postgres::introspect::{self, Look};
use bunny_postgres::{Session, TableName};
use bunny_schemas::control::TableRecord;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};
use crate::exclusion::Exclusion;
use crate::publisher::Expected;
use crate::rounds::SyncView;
use crate::run::Run;
use crate::snapshot::Passed;
use alter::alter;
use cure::Unfinished;
pub(crate) use facts::TableFacts;
use facts::{Judged, judge};
use membership::{Obstacle, check_publications, kept_out, publications};
pub(crate) use settle::Finding;
use settle::record;
pub(crate) use streamed::Streamed;
use untracked::{Inquiry, Subject};
pub(crate) use view::View;

/// The design promises to notice within 10 s.
const INTERVAL: Duration = Duration::from_secs(4);
/// Nothing here is worth waiting for a lock; the next look tries again.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '2s'";

/// A look at the source.
struct Seen {
    look: Look,
    /// How many descriptions the stream had met when it was begun.
    described_before: u64,
}

/// What is looked at, and who is told.
struct Links<'a> {
    source: &'a Session,
    findings: &'a mpsc::Sender<Finding>,
}

/// Tables whose sync is asked for and has not finished.
pub(crate) type Pending = BTreeSet<TableName>;

/// Tables that are to be captured and not published yet, with what keeps each of them out.
pub(crate) type KeptOut = BTreeMap<TableName, Obstacle>;

/// Of tables that have excluded columns: the oid the table has, or had, and what is excluded.
pub(crate) type Exclusions = HashMap<TableName, (u32, Exclusion)>;

pub(crate) struct Watch {
    known: BTreeMap<TableName, TableFacts>,
    /// As of the latest look, of tables that have excluded columns: with the table's oid.
    exclusions: watch::Sender<Exclusions>,
    /// Nothing was known at all: written by a version that did not look.
    knew_nothing: bool,
    unpublished: watch::Sender<KeptOut>,
    /// A look that is to be dealt with next.
    taken: Option<Seen>,
    drift_logged: HashMap<TableName, Instant>,
    said: BTreeSet<String>,
    streamed: Streamed,
    /// Every table ever taken out of the mirror. One that left before anything was recorded of
    /// it may still stand in a publication.
    taken_out: BTreeSet<String>,
}

impl Watch {
    /// Looks for the first time in a run, and puts right what a table that is about to be
    /// synced needs: it is published, and where its identity belongs.
    ///
    /// # Errors
    /// Fatal when a publication of a running mirror is gone: decoding fails for good then.
    pub(crate) async fn begin(
        source: &Session,
        mirror: &Mirror,
        stored: &HashMap<String, TableRecord>,
        pending: &Pending,
        taken_out: BTreeSet<String>,
    ) -> Result<Watch> {
        source.batch(LOCK_TIMEOUT).await?;
        let known: BTreeMap<TableName, TableFacts> = stored
            .values()
            .filter(|record| record.generation == mirror.generation)
            .map(|record| {
                let facts = serde_json::from_str(&record.facts).unwrap_or_default();
                (record.table.clone(), facts)
            })
            .collect();
        let logged = known
            .iter()
            .map(|(name, facts)| (name.clone(), (facts.last_oid(), facts.exclusion.clone())));
        let mut watch = Watch {
            knew_nothing: known.is_empty(),
            exclusions: watch::Sender::new(logged.collect()),
            known,
            unpublished: watch::Sender::new(KeptOut::new()),
            taken: None,
            drift_logged: HashMap::new(),
            said: BTreeSet::new(),
            streamed: Streamed::default(),
            taken_out,
        };
        let mut seen = watch.look(source, mirror).await?;
        check_publications(mirror, &watch.known, &seen.look)?;
        if mirror.generation_ready && !mirror.publication_given {
            let changes = watch.wanted_changes(mirror, &seen.look, pending);
            if !changes.is_empty() {
                let coming = changes.iter().map(|change| change.table.clone());
                let mut kept_out = alter(source, &changes, &coming.collect()).await?;
                kept_out.retain(|name, _| is_mapped(mirror, name));
                watch.unpublished.send_replace(kept_out);
                seen = watch.look(source, mirror).await?;
            }
        }
        watch.taken = Some(seen);
        Ok(watch)
    }

    /// What the stream is to begin with. A table about to be synced counts as it is.
    pub(crate) fn expected(
        &self,
        mirror: &Mirror,
        pending: &Pending,
    ) -> HashMap<TableName, Expected> {
        let seen = self.taken.iter().flat_map(|seen| &seen.look.tables);
        let mut expected: HashMap<TableName, Expected> = seen
            .map(|table| {
                let known = self.known.get(&table.name);
                let same = known.filter(|known| known.oid == table.oid);
                // What the stream reads of a table that is new to it comes after the look.
                let is_new = known.is_none() && !self.knew_nothing;
                let exclusion = Exclusion::at_start(
                    same.map(|same| &same.exclusion),
                    &self.exclusion(&table.name, table.oid),
                    is_new
                        || known.is_some_and(|known| known.oid != table.oid)
                        || !mirror.generation_ready,
                );
                let expected = Expected {
                    oid: table.oid,
                    exclusion,
                    record: known.map(|known| record(mirror, &table.name, known)),
                };
                (table.name.clone(), expected)
            })
            .collect();
        for (table, facts) in &self.known {
            let begins = expected.entry(table.clone()).or_default();
            if !pending.contains(table) && begins.oid != facts.oid {
                *begins = Expected {
                    oid: facts.oid,
                    exclusion: facts.exclusion.clone(),
                    record: Some(record(mirror, table, facts)),
                };
            }
        }
        expected
    }

    /// What is excluded of the table of that name and oid.
    fn exclusion(&self, table: &TableName, oid: u32) -> Exclusion {
        let exclusions = self.exclusions.borrow();
        let found = exclusions.get(table).filter(|(of, _)| *of == oid);
        found.map_or_else(Exclusion::default, |(_, exclusion)| exclusion.clone())
    }

    /// What is excluded, as of the latest look. Who learns more adds it.
    pub(crate) fn exclusions(&self) -> watch::Sender<Exclusions> {
        self.exclusions.clone()
    }

    /// Tables that cannot be copied yet: a table is published before its snapshot is taken.
    pub(crate) fn unpublished(&self) -> watch::Receiver<KeptOut> {
        self.unpublished.subscribe()
    }

    /// Where the stream tells what it meets.
    pub(crate) fn streamed(&self) -> Streamed {
        self.streamed.clone()
    }

    /// Records of all tables as they are: for the first transaction of a generation.
    pub(crate) fn first_records(&self, mirror: &Mirror) -> Vec<TableRecord> {
        let Some(Seen { look, .. }) = &self.taken else {
            return Vec::new();
        };
        mirror
            .tables
            .iter()
            .map(|table| {
                let mut judged = judge(table, None, true, look, publications(mirror));
                judged.facts.exclusion = self.exclusion(&table.source, judged.facts.last_oid());
                record(mirror, &table.source, &judged.facts)
            })
            .collect()
    }

    /// Mapped tables that do not exist at the source.
    pub(crate) fn absent(&self, mirror: &Mirror) -> BTreeSet<TableName> {
        let is_absent = |table: &&MirrorTable| {
            self.taken
                .as_ref()
                .is_some_and(|seen| seen.look.table(&table.source).is_none())
        };
        let absent = mirror.tables.iter().filter(is_absent);
        absent.map(|table| table.source.clone()).collect()
    }

    /// Looks again and again until the run ends.
    ///
    /// # Errors
    /// The source cannot be asked; or something happened to a table that is being copied,
    /// which begins anew with the next run.
    pub(crate) async fn run(
        mut self,
        run: &Run,
        source: &Session,
        syncs: SyncView,
        passed: watch::Receiver<Passed>,
        findings: mpsc::Sender<Finding>,
        view: watch::Sender<View>,
    ) -> Result<()> {
        let mirror = &*run.mirror;
        source.batch(LOCK_TIMEOUT).await?;
        let absent = self.absent(mirror);
        let mut inquiry = Inquiry::new(self.streamed.clone(), passed);
        let links = Links {
            source,
            findings: &findings,
        };
        let mut is_first = true;
        loop {
            let seen = match self.taken.take() {
                Some(seen) => seen,
                None => match self.ask_and_move(run, source).await {
                    Ok((seen, _)) => seen,
                    Err(error) if error.is_lock_timeout() => {
                        tracing::info!(mirror = %mirror.name, %error, "a look at the source tables waited for a lock, trying again");
                        tokio::time::sleep(INTERVAL).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let look = &seen.look;
            self.remember_excluded(mirror, look);
            check_publications(mirror, &self.known, look)?;
            let subjects = look.tables.iter().map(|table| {
                let known = self.known.get(&table.name);
                let same = known.filter(|known| known.oid == table.oid);
                Subject {
                    table,
                    marks: same.and_then(|known| known.marks.as_ref()),
                    exclusion: self.exclusion(&table.name, table.oid),
                }
            });
            let asking = Box::pin(inquiry.of(source, &seen, subjects));
            let (found, moved) = self.meanwhile(run, source, asking).await?;
            let found = found?;
            self.taken = moved;
            let pending = syncs.pending();
            let mut judged = self.judge_all(mirror, look);
            if !is_first {
                restart_if_copying(&judged, &pending, &absent)?;
            }
            let mut copying = syncs.copying();
            copying.retain(|name| {
                !absent.contains(name) && !self.unpublished.borrow().contains_key(name)
            });
            let unfinished = Unfinished {
                pending,
                copying,
                is_first_look: is_first,
            };
            is_first = false;
            let decided = cure::decide(run, &mut judged, found, &unfinished);
            self.show(run, look, &judged, &view);
            let pending = &unfinished.pending;
            // What is harmless is recorded first: a sync that is asked for ends this run, and
            // the next one has less to prove it by.
            let unsettled = decided.unsettled(&[]);
            self.settle(run, look, judged.clone(), pending, &unsettled, &links)
                .await?;
            inquiry.settled(&unsettled);
            if !decided.wanted.is_empty() {
                let asked = cure::ask(run, &decided.wanted).await;
                for (_, judged) in &mut judged {
                    judged.gap = None;
                }
                let unsettled = decided.unsettled(&asked);
                self.settle(run, look, judged, pending, &unsettled, &links)
                    .await?;
                inquiry.settled(&unsettled);
            }
            if self.taken.is_none() {
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    /// Does `work`, which may have to wait for a stream that is behind, and goes on looking: the
    /// source refuses updates of a table without identity until it is moved. With the outcome
    /// comes the first look after a table was moved, if one was: it is to be dealt with next, and
    /// tells where in the stream that was.
    async fn meanwhile<T>(
        &self,
        run: &Run,
        source: &Session,
        mut work: impl Future<Output = T> + Unpin,
    ) -> Result<(T, Option<Seen>)> {
        let mut moved = None;
        loop {
            tokio::select! {
                done = &mut work => return Ok((done, moved)),
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match self.ask_and_move(run, source).await {
                Ok((seen, true)) => moved = moved.or(Some(seen)),
                Ok((_, false)) => {}
                Err(error) if error.is_lock_timeout() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn look(&self, source: &Session, mirror: &Mirror) -> Result<Seen> {
        let seen = self.ask(source, mirror).await?;
        self.remember_excluded(mirror, &seen.look);
        Ok(seen)
    }

    /// The same, but what it says of excluded columns does not count yet: not before the stream
    /// hears of what is found by it.
    async fn ask(&self, source: &Session, mirror: &Mirror) -> Result<Seen> {
        let described_before = self.streamed.descriptions();
        let known = |table: &TableName| self.known.get(table).map_or(0, TableFacts::last_oid);
        let tables: Vec<(TableName, u32)> = mirror
            .tables
            .iter()
            .map(|table| (table.source.clone(), known(&table.source)))
            .collect();
        let names = crate::publication::names(mirror);
        let excluding = mirror
            .tables
            .iter()
            .filter(|table| !table.exclude_columns.is_empty());
        let with_columns: Vec<TableName> = excluding.map(|table| table.source.clone()).collect();
        let given = mirror.publication_given;
        let look = introspect::look(source, &tables, &with_columns, &names, given).await?;
        Ok(Seen {
            look,
            described_before,
        })
    }

    fn remember_excluded(&self, mirror: &Mirror, look: &Look) {
        let mut exclusions = self.exclusions.borrow().clone();
        let excludes = |name: &TableName| {
            let mut tables = mirror.tables.iter();
            tables.any(|table| table.source == *name && !table.exclude_columns.is_empty())
        };
        exclusions.retain(|name, _| excludes(name));
        for (name, oid, columns) in &look.columns {
            let mapping = mirror.tables.iter().find(|table| table.source == *name);
            let Some(mapping) = mapping else { continue };
            let before = exclusions.get(name).filter(|(of, _)| of == oid);
            let before = before.map(|(_, exclusion)| exclusion);
            let seen = Exclusion::seen(before, &mapping.exclude_columns, columns);
            exclusions.insert(name.clone(), (*oid, seen));
        }
        self.exclusions.send_replace(exclusions);
    }

    fn judge_all<'m>(&self, mirror: &'m Mirror, look: &Look) -> Vec<(&'m MirrorTable, Judged)> {
        mirror
            .tables
            .iter()
            .map(|table| {
                let before = self.known.get(&table.source);
                let is_new = before.is_none() && !self.knew_nothing;
                let mut judged = judge(table, before, is_new, look, publications(mirror));
                judged.facts.exclusion = self.exclusion(&table.source, judged.facts.last_oid());
                if let Some(obstacle) = self.unpublished.borrow().get(&table.source) {
                    judged.problem = Some(kept_out(&table.source, obstacle));
                    judged.insert_only = false;
                    judged.facts.drift = None;
                }
                (table, judged)
            })
            .collect()
    }
}

fn is_mapped(mirror: &Mirror, name: &TableName) -> bool {
    mirror.tables.iter().any(|table| table.source == *name)
}

/// What happened to a table that is being copied, or has come back to be, concerns its
/// next attempt, which begins with the next run.
fn restart_if_copying(
    judged: &[(&MirrorTable, Judged)],
    pending: &Pending,
    absent: &BTreeSet<TableName>,
) -> Result<()> {
    for (table, judged) in judged {
        let name = &table.source;
        if !pending.contains(name) {
            continue;
        }
        if let Some(reason) = &judged.gap {
            return Err(Error::transient(format!(
                "copying table {name} begins anew: {reason}"
            )));
        }
        if absent.contains(name) && judged.facts.oid != 0 {
            return Err(Error::transient(format!(
                "the source table {name} is there now, copying it begins"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
