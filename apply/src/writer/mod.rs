//! Writes parts into the destination: one open transaction at a time, rows, counters
//! and progress together (I3).
//!
//! A part is first written the quick way. If the destination refuses something about
//! the data, all of the part is undone and written again with care: each table under a
//! savepoint of its own, and, where only the order within the batch violates a
//! constraint (swapped unique values), row by row in source order. What fails then is
//! that one table's failure ([`Error::Table`]). Whatever the error, the session must not
//! be used afterwards: dropping it rolls everything back.

mod ahead;
mod blame;
mod create;
mod drift;
mod keyed;
mod keyless;
mod packed;
mod replica_role;
mod set;
mod sql;
mod target;
mod truncate;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bunny_catalog::SchemaChanges;
use bunny_postgres::{Session, TableName};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::batch::Part;
use crate::bookkeeping::{Counts, Epoch, Prepared, Progress};
use crate::context::MirrorRun;
use crate::error::{Error, Result};
use crate::event::Change;
use crate::net_effect::{self, Step};
use crate::parked;
use crate::routes::Routes;
use crate::schema_change::Follower;

pub(crate) use ahead::is_worth_preparing;
pub(crate) use blame::of_table;
use blame::{missing_from, of_lock};
use drift::Drifts;
pub(crate) use replica_role::enter_for as enter_replica_role;
use target::Target;

/// What the destination is told of a mirror's events.
pub struct Writer {
    session: Session,
    mirror_id: Uuid,
    /// Whose table states are counted and followed: [`MirrorRun::ledger`].
    ledger: Uuid,
    epoch: Epoch,
    prepared: Prepared,
    routes: Arc<Routes>,
    policy: Policy,
    follower: Follower,
    /// By value schema id; one version of each table at a time.
    targets: HashMap<u32, Target>,
    /// Versions met for the first time here, since someone asked.
    met: Vec<(TableName, u32)>,
    open: Option<Open>,
    /// What committed transactions have met and nobody has asked for yet.
    drifted: Drifts,
}

/// What the mirror's options say to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Without an initial snapshot, an update may be of a row that was never here: it is
    /// left out and counted. Otherwise such a row is missing, and the table stops.
    pub has_initial_snapshot: bool,
    /// Missing tables are created that no sync has created before.
    pub creates_tables: bool,
    /// What may be done to a table whose definition changed at the source.
    pub schema_changes: SchemaChanges,
}

/// The open destination transaction.
struct Open {
    counts: BTreeMap<TableName, Counts>,
    drifts: Drifts,
    /// Offset of the first event in it.
    first_offset: i64,
    /// What is staged is of the part that is written next, with which the transaction begins;
    /// the owner epoch has not been checked yet.
    is_ahead: bool,
    savepoint: Savepoint,
}

/// Where the savepoint stands that a refused part is undone to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Savepoint {
    None,
    /// Nothing was done since.
    Fresh,
    /// A part was written since.
    Used,
}

impl Open {
    fn at(first_offset: i64) -> Open {
        Open {
            counts: BTreeMap::new(),
            drifts: Drifts::new(),
            first_offset,
            is_ahead: false,
            savepoint: Savepoint::None,
        }
    }
}

/// The quick way, or the way that finds out what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    Quick,
    Careful,
}

impl Writer {
    /// Prepares a session that no one else uses. Fails if the destination would check
    /// foreign keys or fire triggers that the source has already dealt with.
    pub async fn new(
        session: Session,
        mirror_id: Uuid,
        epoch: Epoch,
        routes: Arc<Routes>,
        policy: Policy,
    ) -> Result<Writer> {
        session
            .batch_execute(&format!(
                "SET lock_timeout = '{}s'; SET synchronous_commit = off",
                parked::patience_seconds()
            ))
            .await
            .map_err(Error::sql("preparing the writer's session"))?;
        replica_role::enter(&session, &routes).await?;
        let prepared = Prepared::new(&session).await?;
        Ok(Writer {
            session,
            mirror_id,
            ledger: mirror_id,
            epoch,
            prepared,
            routes,
            policy,
            follower: Follower::new(mirror_id, policy.schema_changes),
            targets: HashMap::new(),
            met: Vec::new(),
            open: None,
            drifted: Drifts::new(),
        })
    }

    /// Keeps the states of its tables under another id than the mirror's.
    pub(crate) fn with_ledger(mut self, ledger: Uuid) -> Writer {
        self.ledger = ledger;
        self.follower = Follower::new(ledger, self.policy.schema_changes);
        self
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Begins the destination transaction in which `first_offset` is the first event.
    pub async fn begin(&mut self, first_offset: i64) -> Result<()> {
        let client: &Client = &self.session;
        // One flight: the fence is checked in the transaction that BEGIN opens.
        let (begun, fenced, entered) = tokio::join!(
            client.batch_execute("BEGIN"),
            self.prepared.fence(client, self.mirror_id, self.epoch),
            client.batch_execute("SAVEPOINT part"),
        );
        begun.map_err(Error::sql("beginning a batch"))?;
        fenced?;
        entered.map_err(Error::sql("beginning a batch (SAVEPOINT part)"))?;
        self.open = Some(Open {
            savepoint: Savepoint::Fresh,
            ..Open::at(first_offset)
        });
        Ok(())
    }

    /// Says in the mirror's log, and in the metrics, what there is to say of the transactions
    /// committed so far.
    pub(crate) fn tell(&mut self, run: &MirrorRun) {
        for said in self.follower.said() {
            said.log(run);
        }
        drift::tell(run, &std::mem::take(&mut self.drifted));
    }

    /// Rows that were not as the stream implies, as far as they have not been told of: source
    /// table, kind, how many.
    pub fn drifted(&self) -> Vec<(TableName, &'static str, u64)> {
        let drifted = self.drifted.iter();
        drifted
            .map(|((table, drift), rows)| (table.clone(), drift.as_str(), *rows))
            .collect()
    }

    /// Writes a part into the open transaction.
    pub async fn write(&mut self, part: &Part) -> Result<()> {
        let first_offset = self.first_offset(part)?;
        let written = self.write_part(part).await;
        written.map_err(|error| missing_from(first_offset, error))
    }

    async fn write_part(&mut self, part: &Part) -> Result<()> {
        let steps = net_effect::steps(&part.events).map_err(|gap| Error::Table {
            table: gap.table,
            reason: format!("{}; sync the table again", gap.reason),
            restart_offset: None,
        })?;
        for steps in net_effect::by_version(&steps) {
            self.write_versions(steps).await?;
        }
        self.count(&steps);
        Ok(())
    }

    /// Writes steps that hold one version of each table at most.
    async fn write_versions(&mut self, steps: &[Step<'_>]) -> Result<()> {
        self.find_targets(steps).await?;
        self.clear_staging().await?;
        self.enter_part().await?;
        if let Err(error) = self.write_steps(steps, Care::Quick).await {
            if error.is_transient() {
                return Err(error);
            }
            tracing::info!(%error, "a batch was refused, writing it again with care");
            self.run("ROLLBACK TO SAVEPOINT part").await?;
            for target in self.targets.values_mut() {
                // Staged rows may be back that were cleared since the savepoint.
                target.staged = target.stage_copy.is_some();
                target.ahead = None;
                target.met.put_back(Default::default());
            }
            self.write_steps(steps, Care::Careful).await?;
        }
        if let Some(open) = &mut self.open {
            for target in self.targets.values() {
                target.met.hand_over(&target.source, &mut open.drifts);
            }
        }
        Ok(())
    }

    /// What follows can be undone and written again with care. Its savepoint is left when the next
    /// is needed, or by the end of the transaction.
    async fn enter_part(&mut self) -> Result<()> {
        let (is_ahead, savepoint) = match &mut self.open {
            None => (false, Savepoint::None),
            Some(open) => {
                let savepoint = std::mem::replace(&mut open.savepoint, Savepoint::Used);
                (std::mem::take(&mut open.is_ahead), savepoint)
            }
        };
        if is_ahead {
            let (fenced, entered) = tokio::join!(
                self.prepared
                    .fence(&self.session, self.mirror_id, self.epoch),
                self.run("SAVEPOINT part"),
            );
            fenced?;
            return entered;
        }
        match savepoint {
            Savepoint::None => self.run("SAVEPOINT part").await,
            Savepoint::Fresh => Ok(()),
            Savepoint::Used => self.run("RELEASE SAVEPOINT part; SAVEPOINT part").await,
        }
    }

    /// What follows stays when the next part is undone.
    async fn leave_part(&mut self) -> Result<()> {
        let leave = |open: &mut Open| std::mem::replace(&mut open.savepoint, Savepoint::None);
        match self.open.as_mut().map_or(Savepoint::None, leave) {
            Savepoint::None => Ok(()),
            Savepoint::Fresh | Savepoint::Used => self.run("RELEASE SAVEPOINT part").await,
        }
    }

    /// Commits what was written, with the progress it makes.
    pub async fn commit(&mut self, progress: &Progress, caught_up: &[TableName]) -> Result<()> {
        let open = self.take_open(progress.next_offset);
        self.finish(&open).await?;
        for table in caught_up {
            self.prepared
                .set_live(&self.session, self.mirror_id, table)
                .await?;
        }
        crate::crash_points::reached(crate::crash_points::BEFORE_COMMIT);
        let ended = self.record_and_commit(&open, progress).await;
        self.ended(open, ended)
    }

    /// One flight. If anything before it fails, COMMIT rolls back, and the error says so: it is
    /// sent only when the rest has been sent, and what fails at the server fails the transaction.
    async fn record_and_commit(&self, open: &Open, progress: &Progress) -> Result<()> {
        let mut recorded = pin!(async {
            tokio::try_join!(
                biased;
                self.add_counts(open),
                self.prepared
                    .set_progress(&self.session, self.mirror_id, progress),
            )
        });
        match futures_util::poll!(recorded.as_mut()) {
            Poll::Ready(recorded) => {
                recorded?;
                self.run("COMMIT").await
            }
            Poll::Pending => {
                let (recorded, committed) = tokio::join!(recorded, self.run("COMMIT"));
                recorded?;
                committed
            }
        }
    }

    /// Commits what was written for tables that are behind main, with their own progress.
    pub(crate) async fn commit_behind(
        &mut self,
        next_offset: i64,
        tables: &[TableName],
    ) -> Result<()> {
        let open = self.take_open(next_offset);
        self.finish(&open).await?;
        self.add_counts(&open).await?;
        let client: &Client = &self.session;
        crate::catch_up::advance(client, self.ledger, tables, next_offset).await?;
        crate::crash_points::reached(crate::crash_points::CATCH_UP_BEFORE_COMMIT);
        let ended = self.run("COMMIT").await;
        self.ended(open, ended)
    }

    /// Runs what of schema changes waits for the end of the transaction.
    async fn finish(&mut self, open: &Open) -> Result<()> {
        let finished = self.follower.finish(&self.session).await;
        finished.map_err(|error| missing_from(open.first_offset, error))
    }

    /// For the open transaction: how long its statements wait for someone else's lock.
    pub(crate) async fn wait_for_locks(&mut self, at_most: Duration) -> Result<()> {
        self.leave_part().await?;
        self.session
            .batch_execute(&format!("SET LOCAL lock_timeout = {}", at_most.as_millis()))
            .await
            .map_err(Error::sql("limiting the wait for locks"))
    }

    fn take_open(&mut self, first_offset: i64) -> Open {
        self.open.take().unwrap_or(Open::at(first_offset))
    }

    async fn add_counts(&self, open: &Open) -> Result<()> {
        self.prepared
            .add_counts(&self.session, self.ledger, &open.counts)
            .await
    }

    fn ended(&mut self, open: Open, ended: Result<()>) -> Result<()> {
        ended.map_err(|error| self.attributed(error, open.first_offset))?;
        for target in self.targets.values_mut() {
            target.staged = false;
        }
        for (of, rows) in open.drifts {
            *self.drifted.entry(of).or_default() += rows;
        }
        Ok(())
    }

    /// A constraint checked at commit only names its table in the error.
    fn attributed(&self, error: Error, first_offset: i64) -> Error {
        if error.is_transient() {
            return error;
        }
        let named = error.db_error().and_then(|db| {
            Some(TableName {
                schema: db.schema()?.to_owned(),
                name: db.table()?.to_owned(),
            })
        });
        match named.and_then(|named| self.routes.source_of(&named)) {
            Some(source) => Error::Table {
                table: source.clone(),
                reason: error.to_string(),
                restart_offset: Some(first_offset),
            },
            None => error,
        }
    }

    /// Looks up the tables that appear for the first time. Staging tables are created
    /// here, before the savepoint that may be rolled back to.
    async fn find_targets(&mut self, steps: &[Step<'_>]) -> Result<()> {
        for step in steps {
            let Step::Rows { version, changes } = step else {
                continue;
            };
            if !self.targets.contains_key(&version.schema_id) {
                self.leave_part().await?;
                let route = self.routes.get(&version.source).ok_or_else(|| {
                    Error::Inconsistent(format!(
                        "table {} has changes to write, but no destination",
                        version.source
                    ))
                })?;
                if self.policy.creates_tables && !route.is_synced {
                    create::if_missing(&self.session, version, &route.destination)
                        .await
                        .map_err(|error| of_table(&version.source, error))?;
                }
                let (source, destination) = (&version.source, route.destination.clone());
                let primary_key = route.primary_key.clone();
                self.forget_former(source).await?;
                let fit = self
                    .follower
                    .follow(&self.session, version, &destination)
                    .await
                    .map_err(|error| of_table(source, error))?;
                let target =
                    Target::find(&self.session, version, &destination, &fit, &primary_key).await?;
                self.met.push((source.clone(), version.schema_id));
                self.targets.insert(version.schema_id, target);
            }
            let only_inserts = changes
                .iter()
                .all(|change| matches!(change, Change::Insert(_)));
            let needs_staging = |target: &Target| {
                target.stage_copy.is_none() && (!only_inserts || target.avoid_direct_copy)
            };
            if self
                .targets
                .get(&version.schema_id)
                .is_some_and(needs_staging)
            {
                self.leave_part().await?;
                if let Some(target) = self.targets.get_mut(&version.schema_id) {
                    target.ensure_staging(&self.session).await?;
                }
            }
        }
        Ok(())
    }

    /// Forgets how rows of the table's former version were written.
    async fn forget_former(&mut self, source: &TableName) -> Result<()> {
        let former = self.targets.iter().find(|(_, of)| of.source == *source);
        let Some(target) = former
            .map(|(id, _)| *id)
            .and_then(|id| self.targets.remove(&id))
        else {
            return Ok(());
        };
        if target.stage_copy.is_some() {
            self.session
                .batch_execute(&target.sql.drop_staging())
                .await
                .map_err(Error::sql(format!(
                    "dropping the staging table of {}",
                    target.destination
                )))?;
        }
        Ok(())
    }

    /// Empties what earlier parts of the transaction staged. Outside the savepoint: there
    /// Postgres empties the table in place, inside it gives it new files each time.
    async fn clear_staging(&mut self) -> Result<()> {
        let is_void = |target: &Target| target.staged && target.ahead.is_none();
        if !self.targets.values().any(is_void) {
            return Ok(());
        }
        self.leave_part().await?;
        let staged = self.targets.values_mut();
        for target in staged.filter(|target| is_void(target)) {
            self.session
                .batch_execute(&target.sql.clear_staging())
                .await
                .map_err(Error::sql(format!(
                    "clearing the staging table of {}",
                    target.destination
                )))?;
            target.staged = false;
        }
        Ok(())
    }

    async fn write_steps(&mut self, steps: &[Step<'_>], care: Care) -> Result<()> {
        for step in steps {
            match step {
                Step::Rows { version, changes } => {
                    let Some(target) = self.targets.get_mut(&version.schema_id) else {
                        continue;
                    };
                    let written =
                        write_rows(&self.session, target, changes, care, self.policy).await;
                    written.map_err(|error| of_table(&version.source, error))?;
                }
                Step::Truncate {
                    tables,
                    restart_identity,
                } => {
                    let routes = tables
                        .iter()
                        .filter_map(|table| Some((table, self.routes.get(table)?)));
                    let targets = truncate::present(&self.session, routes).await?;
                    let truncated = match care {
                        Care::Quick => {
                            truncate::truncate(&self.session, &targets, *restart_identity).await
                        }
                        Care::Careful => {
                            truncate::one_by_one(&self.session, &targets, *restart_identity).await
                        }
                    };
                    // Which of them is locked is not said. If it is another than the first,
                    // that comes back by itself, and the next attempt meets the others.
                    truncated.map_err(|error| match tables.first() {
                        Some(first) => of_lock(first, error),
                        None => error,
                    })?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, steps: &[Step<'_>]) {
        let Some(open) = &mut self.open else {
            return;
        };
        for step in steps {
            if let Step::Rows { version, changes } = step {
                let counts = net_effect::count(changes);
                let sum = open.counts.entry(version.source.clone()).or_default();
                sum.inserted += counts.inserted;
                sum.updated += counts.updated;
                sum.deleted += counts.deleted;
            }
        }
    }

    async fn run(&self, statement: &'static str) -> Result<()> {
        self.session
            .batch_execute(statement)
            .await
            .map_err(Error::sql(format!("writing a batch ({statement})")))
    }
}

async fn write_rows(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
    care: Care,
    policy: Policy,
) -> Result<()> {
    let mut changed = changes.iter();
    if let Some(reason) = changed.find_map(|change| target.ambiguous.refuse(change)) {
        return Err(Error::Table {
            table: target.source.clone(),
            reason,
            restart_offset: None,
        });
    }
    if target.key.is_empty() {
        return keyless::write(client, target, changes).await;
    }
    if care == Care::Quick {
        return keyed::write(client, target, changes, care, policy).await;
    }
    target.ensure_staging(client).await?;
    savepoint(client, "SAVEPOINT one_table").await?;
    let met_before = target.met.rows();
    match keyed::write(client, target, changes, care, policy).await {
        Ok(()) => {}
        Err(error) if is_constraint_violation(&error) => {
            savepoint(client, "ROLLBACK TO SAVEPOINT one_table").await?;
            target.staged = true;
            target.met.put_back(met_before);
            tracing::info!(table = %target.source, %error, "replaying a batch row by row, in source order");
            keyed::replay(client, target, changes, policy).await?;
        }
        Err(error) => return Err(error),
    }
    savepoint(client, "RELEASE SAVEPOINT one_table").await
}

async fn savepoint(client: &Client, statement: &'static str) -> Result<()> {
    client
        .batch_execute(statement)
        .await
        .map_err(Error::sql(statement))
}

/// SQLSTATE class 23, integrity constraint violation (PostgreSQL manual, appendix A).
fn is_constraint_violation(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| code.starts_with("23"))
}
