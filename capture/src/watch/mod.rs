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
mod streamed;
mod untracked;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::time::{Duration, Instant};

use bunny_catalog::{LogLevel, Mirror, MirrorTable};
use bunny_postgres::introspect::{self, Look, Member};
use bunny_postgres::{Lsn, Session, TableName, quote_ident};
use bunny_schemas::control::TableRecord;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::exclusion::Exclusion;
use crate::publication::only;
use crate::publisher::Expected;
use crate::rounds::SyncView;
use crate::run::Run;
use crate::slot::Refusal;
use crate::snapshot::Passed;
use alter::alter;
use cure::Unfinished;
pub(crate) use facts::TableFacts;
use facts::{Judged, Publications, judge};
pub(crate) use streamed::Streamed;
use untracked::{Inquiry, Subject};

/// The design promises to notice within 10 s.
const INTERVAL: Duration = Duration::from_secs(4);
/// Nothing here is worth waiting for a lock; the next look tries again.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '2s'";
/// How often a table's drift is put into the log at most.
const DRIFT_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What a look found that the log must hold, with the line to answer on once it does.
#[derive(Debug)]
pub(crate) struct Finding {
    /// It happened before this: once the stream has passed it, all that was captured well
    /// is in the log.
    pub(crate) at: Lsn,
    /// Tables that must not go on, and why.
    pub(crate) gaps: Vec<(TableName, String)>,
    /// What is known from now on; None forgets the table.
    pub(crate) records: Vec<(TableName, Option<TableRecord>)>,
    /// The tables whose changes are captured from now on.
    pub(crate) expected: HashMap<TableName, Expected>,
    pub(crate) done: oneshot::Sender<()>,
}

/// What the report shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) insert_only: Vec<TableName>,
    pub(crate) messages: Vec<String>,
}

/// A table enters or leaves a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alteration {
    publication: String,
    adds: bool,
    table: TableName,
}

impl Alteration {
    fn sql(&self) -> String {
        format!(
            "ALTER PUBLICATION {} {} TABLE {}",
            quote_ident(&self.publication),
            if self.adds { "ADD" } else { "DROP" },
            only(&self.table)
        )
    }
}

/// What is looked at, and who is told.
struct Links<'a> {
    source: &'a Session,
    findings: &'a mpsc::Sender<Finding>,
}

/// Tables whose sync is asked for and has not finished.
pub(crate) type Pending = BTreeSet<TableName>;

/// Of tables that have excluded columns: the oid the table has, or had, and what is excluded.
pub(crate) type Exclusions = HashMap<TableName, (u32, Exclusion)>;

pub(crate) struct Watch {
    known: BTreeMap<TableName, TableFacts>,
    /// As of the latest look, of tables that have excluded columns: with the table's oid.
    exclusions: watch::Sender<Exclusions>,
    /// Nothing was known at all: written by a version that did not look.
    knew_nothing: bool,
    /// Tables that are to be captured and not published yet, because others have them locked.
    unpublished: watch::Sender<Pending>,
    /// A look that is to be dealt with next.
    taken: Option<Look>,
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
            unpublished: watch::Sender::new(Pending::new()),
            taken: None,
            drift_logged: HashMap::new(),
            said: BTreeSet::new(),
            streamed: Streamed::default(),
            taken_out,
        };
        let mut look = watch.look(source, mirror).await?;
        check_publications(mirror, &watch.known, &look)?;
        if mirror.generation_ready && !mirror.publication_given {
            let changes = watch.wanted_changes(mirror, &look, pending);
            if !changes.is_empty() {
                let coming = changes.iter().map(|change| change.table.clone());
                let mut locked = alter(source, &changes, &coming.collect()).await?;
                locked.retain(|name| is_mapped(mirror, name));
                watch.unpublished.send_replace(locked);
                look = watch.look(source, mirror).await?;
            }
        }
        watch.taken = Some(look);
        Ok(watch)
    }

    /// What the stream is to begin with. A table about to be synced counts as it is.
    pub(crate) fn expected(
        &self,
        mirror: &Mirror,
        pending: &Pending,
    ) -> HashMap<TableName, Expected> {
        let seen = self.taken.iter().flat_map(|look| &look.tables);
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
    pub(crate) fn unpublished(&self) -> watch::Receiver<Pending> {
        self.unpublished.subscribe()
    }

    /// Where the stream tells what it meets.
    pub(crate) fn streamed(&self) -> Streamed {
        self.streamed.clone()
    }

    /// Records of all tables as they are: for the first transaction of a generation.
    pub(crate) fn first_records(&self, mirror: &Mirror) -> Vec<TableRecord> {
        let Some(look) = &self.taken else {
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
                .is_some_and(|look| look.table(&table.source).is_none())
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
            let look = match self.taken.take() {
                Some(look) => look,
                None => match self.ask_and_move(run, source).await {
                    Ok((look, _)) => look,
                    Err(error) if error.is_lock_timeout() => {
                        tracing::info!(mirror = %mirror.name, %error, "a look at the source tables waited for a lock, trying again");
                        tokio::time::sleep(INTERVAL).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            self.remember_excluded(mirror, &look);
            check_publications(mirror, &self.known, &look)?;
            let subjects = look.tables.iter().map(|table| {
                let known = self.known.get(&table.name);
                let same = known.filter(|known| known.oid == table.oid);
                Subject {
                    table,
                    marks: same.and_then(|known| known.marks.as_ref()),
                    exclusion: self.exclusion(&table.name, table.oid),
                }
            });
            let asking = Box::pin(inquiry.of(source, &look, subjects));
            let (found, moved) = self.meanwhile(run, source, asking).await?;
            let found = found?;
            self.taken = moved;
            let pending = syncs.pending();
            let mut judged = self.judge_all(mirror, &look);
            if !is_first {
                restart_if_copying(&judged, &pending, &absent)?;
            }
            let mut copying = syncs.copying();
            copying
                .retain(|name| !absent.contains(name) && !self.unpublished.borrow().contains(name));
            let unfinished = Unfinished {
                pending,
                copying,
                is_first_look: is_first,
            };
            is_first = false;
            let decided = cure::decide(run, &mut judged, found, &unfinished);
            self.show(run, &look, &judged, &view);
            let pending = &unfinished.pending;
            // What is harmless is recorded first: a sync that is asked for ends this run, and
            // the next one has less to prove it by.
            let unsettled = decided.unsettled(&[]);
            self.settle(run, &look, judged.clone(), pending, &unsettled, &links)
                .await?;
            inquiry.settled(&unsettled);
            if !decided.wanted.is_empty() {
                let asked = cure::ask(run, &decided.wanted).await;
                for (_, judged) in &mut judged {
                    judged.gap = None;
                }
                let unsettled = decided.unsettled(&asked);
                self.settle(run, &look, judged, pending, &unsettled, &links)
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
    ) -> Result<(T, Option<Look>)> {
        let mut moved = None;
        loop {
            tokio::select! {
                done = &mut work => return Ok((done, moved)),
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match self.ask_and_move(run, source).await {
                Ok((look, true)) => moved = moved.or(Some(look)),
                Ok((_, false)) => {}
                Err(error) if error.is_lock_timeout() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn look(&self, source: &Session, mirror: &Mirror) -> Result<Look> {
        let look = self.ask(source, mirror).await?;
        self.remember_excluded(mirror, &look);
        Ok(look)
    }

    /// The same, but what it says of excluded columns does not count yet: not before the stream
    /// hears of what is found by it.
    async fn ask(&self, source: &Session, mirror: &Mirror) -> Result<Look> {
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
        Ok(introspect::look(source, &tables, &with_columns, &names, given).await?)
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

    /// A table that lost its identity is moved at once: until then the source refuses its
    /// own updates. One that is not published yet is tried again. Whether anything was altered
    /// comes with a look after it.
    async fn ask_and_move(&self, run: &Run, source: &Session) -> Result<(Look, bool)> {
        let mirror = &run.mirror;
        let look = self.ask(source, mirror).await?;
        if mirror.publication_given {
            return Ok((look, false));
        }
        let mut coming = self.unpublished.borrow().clone();
        let changes = self.wanted_changes(mirror, &look, &coming);
        let locked = alter(source, &changes, &coming).await?;
        coming.retain(|name| locked.contains(name) || look.table(name).is_none());
        self.unpublished.send_if_modified(|unpublished| {
            let differs = *unpublished != coming;
            *unpublished = coming;
            differs
        });
        if changes.iter().all(|change| locked.contains(&change.table)) {
            return Ok((look, false));
        }
        tracing::warn!(mirror = %mirror.name, ?changes, ?locked, "altered the publications");
        Ok((self.ask(source, mirror).await?, true))
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
                if self.unpublished.borrow().contains(&table.source) {
                    judged.problem = Some(kept_out(&table.source));
                    judged.insert_only = false;
                    judged.facts.drift = None;
                }
                (table, judged)
            })
            .collect()
    }

    /// Statements that bring tables where they belong: those about to be synced, those
    /// nothing is known of yet, those that lost their identity, and those not mapped any more.
    fn wanted_changes(&self, mirror: &Mirror, look: &Look, pending: &Pending) -> Vec<Alteration> {
        let (Some(all), Some(insert_only)) = (
            look.publication(&mirror.publication_name),
            look.publication(&mirror.publication_ins_name),
        ) else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        let mut change = |publication: &str, adds: bool, table: &TableName| {
            changes.push(Alteration {
                publication: publication.to_owned(),
                adds,
                table: table.clone(),
            });
        };
        for (table, judged) in self.judge_all(mirror, look) {
            let name = &table.source;
            let Some(found) = look.table(name) else {
                continue;
            };
            let is_new = !self.known.contains_key(name) && !self.knew_nothing;
            if !(judged.to_be_moved || pending.contains(name) || is_new) {
                continue;
            }
            let (wanted, other) = if found.can_carry_updates() {
                (all, insert_only)
            } else {
                (insert_only, all)
            };
            if look.member(other.oid, found.oid).is_some() {
                change(&other.name, false, name);
            }
            if look.member(wanted.oid, found.oid).is_none() {
                change(&wanted.name, true, name);
            }
        }
        let was_ours = |member: &Member| {
            let known = self.known.get(&member.name);
            known.is_some_and(|facts| facts.oid == member.table)
                || self.taken_out.contains(&member.name.to_string())
        };
        for member in look
            .members
            .iter()
            .filter(|member| !is_mapped(mirror, &member.name))
        {
            let mut publications = look.publications.iter();
            let publication = publications.find(|found| found.oid == member.publication);
            if let Some(publication) = publication.filter(|_| was_ours(member)) {
                change(&publication.name, false, &member.name);
            }
        }
        changes
    }

    /// Gives the stream what the log must hold, and waits until it does.
    async fn settle(
        &mut self,
        run: &Run,
        look: &Look,
        judged: Vec<(&MirrorTable, Judged)>,
        pending: &Pending,
        held_back: &BTreeSet<TableName>,
        links: &Links<'_>,
    ) -> Result<()> {
        let mirror = &run.mirror;
        let mut known = BTreeMap::new();
        let mut gaps = Vec::new();
        let mut records = Vec::new();
        for (table, mut judged) in judged {
            let name = &table.source;
            let before = self.known.get(name);
            // What is not decided is found again by the next look.
            if let Some(before) = before.filter(|_| held_back.contains(name)) {
                judged.facts.marks = before.marks.clone();
            }
            if before.is_none_or(|before| !before.same(&judged.facts)) {
                records.push((name.clone(), Some(record(mirror, name, &judged.facts))));
            }
            if let Some(reason) = judged.gap.filter(|_| !pending.contains(name)) {
                gaps.push((name.clone(), reason));
            }
            known.insert(name.clone(), judged.facts);
        }
        let forgotten = self.known.keys().filter(|name| !known.contains_key(*name));
        records.extend(forgotten.map(|name| (name.clone(), None)));
        if records.is_empty() && gaps.is_empty() {
            self.known = known;
            return Ok(());
        }
        for (name, reason) in &gaps {
            run.context.reporter.log(
                LogLevel::Error,
                format!("changes of table {name} may be missing: {reason}"),
                json!({"table": name.to_string(), "lsn": look.lsn.to_string()}),
            );
        }
        let (done, settled) = oneshot::channel();
        let finding = Finding {
            at: look.lsn,
            gaps,
            records,
            expected: known
                .iter()
                .map(|(name, facts)| {
                    let expected = Expected {
                        oid: facts.oid,
                        exclusion: facts.exclusion.clone(),
                        record: Some(record(mirror, name, facts)),
                    };
                    (name.clone(), expected)
                })
                .collect(),
            done,
        };
        let gone = || Error::transient("the main stream has ended");
        let sent = links.findings.send(finding).await;
        sent.map_err(|_| gone())?;
        let (settled, moved) = self.meanwhile(run, links.source, settled).await?;
        settled.map_err(|_| gone())?;
        self.taken = self.taken.take().or(moved);
        self.known = known;
        self.knew_nothing = false;
        Ok(())
    }

    /// What the report shows, and what goes into the mirror's log: each thing once, drift
    /// now and then.
    fn show(
        &mut self,
        run: &Run,
        look: &Look,
        judged: &[(&MirrorTable, Judged)],
        view: &watch::Sender<View>,
    ) {
        let mirror = &run.mirror;
        let mut now = View {
            insert_only: Vec::new(),
            messages: Vec::new(),
        };
        for (table, judged) in judged {
            if judged.insert_only {
                now.insert_only.push(table.source.clone());
            }
            now.messages.extend(judged.problem.clone());
            now.messages.extend(judged.facts.standing.clone());
            now.messages.extend(judged.waiting.clone());
            let Some(drift) = judged.facts.drift.as_ref() else {
                continue;
            };
            let Some(said) = drift.said() else { continue };
            let message = format!("table {} is insert-only: {said}", table.source);
            let before = self.known.get(&table.source);
            let rose = before.and_then(|before| before.drift.as_ref()) != Some(drift);
            let logged = self.drift_logged.get(&table.source);
            if rose && logged.is_none_or(|at| at.elapsed() >= DRIFT_LOGGED_EVERY) {
                self.drift_logged
                    .insert(table.source.clone(), Instant::now());
                let details = json!({"table": table.source.to_string(), "updates": drift.updates, "deletes": drift.deletes});
                run.context
                    .reporter
                    .log(LogLevel::Warn, message.clone(), details);
            }
            now.messages.push(message);
        }
        if !mirror.publication_given {
            now.messages.extend(strangers(mirror, &self.known, look));
        }
        let problems = judged
            .iter()
            .filter_map(|(_, judged)| judged.problem.clone());
        let problems: BTreeSet<String> = problems.collect();
        for problem in problems.difference(&self.said) {
            run.context
                .reporter
                .log(LogLevel::Warn, problem.clone(), json!({}));
        }
        self.said = problems;
        view.send_if_modified(|view| {
            let changed = *view != now;
            *view = now;
            changed
        });
    }
}

fn is_mapped(mirror: &Mirror, name: &TableName) -> bool {
    mirror.tables.iter().any(|table| table.source == *name)
}

/// What is wrong with a table that cannot be published yet, and what to do.
fn kept_out(name: &TableName) -> String {
    format!(
        "the source table {name} is not captured and copied yet: a lock that another session holds (CREATE INDEX CONCURRENTLY, VACUUM, ALTER TABLE or an open transaction; see pg_locks) keeps it from being added to the mirror's publication; it is tried again every few seconds"
    )
}

fn publications(mirror: &Mirror) -> Publications<'_> {
    Publications {
        all: &mirror.publication_name,
        insert_only: (!mirror.publication_given).then_some(mirror.publication_ins_name.as_str()),
    }
}

fn record(mirror: &Mirror, table: &TableName, facts: &TableFacts) -> TableRecord {
    TableRecord {
        generation: mirror.generation,
        table: table.clone(),
        facts: facts.json(),
    }
}

/// A publication that is gone, or another of its name, ends decoding for good.
fn check_publications(
    mirror: &Mirror,
    known: &BTreeMap<TableName, TableFacts>,
    look: &Look,
) -> Result<()> {
    if !mirror.generation_ready {
        return Ok(());
    }
    for name in crate::publication::names(mirror) {
        if look.publication(&name).is_none() {
            return Err(Refusal::PublicationGone(name).into());
        }
    }
    let is_known = |oid: u32| look.publications.iter().any(|found| found.oid == oid);
    let gone = known
        .values()
        .any(|facts| facts.publication != 0 && !is_known(facts.publication));
    if gone {
        return Err(Refusal::PublicationReplaced.into());
    }
    Ok(())
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

/// Members of the mirror's own publications that it does not map.
fn strangers(mirror: &Mirror, known: &BTreeMap<TableName, TableFacts>, look: &Look) -> Vec<String> {
    let was_mapped = |oid: u32| known.values().any(|facts| facts.oid == oid);
    look.members
        .iter()
        .filter(|member| !is_mapped(mirror, &member.name) && !was_mapped(member.table))
        .filter_map(|member| {
            let mut publications = look.publications.iter();
            let publication = publications.find(|found| found.oid == member.publication)?;
            Some(format!(
                "publication {} holds table {}, which the mirror does not map; take it out with ALTER PUBLICATION {} DROP TABLE {}",
                publication.name,
                member.name,
                quote_ident(&publication.name),
                only(&member.name)
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests;
