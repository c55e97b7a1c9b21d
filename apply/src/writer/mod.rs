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
mod array_literal;
mod blame;
mod create;
mod drift;
mod few;
mod keyed;
mod keyless;
mod replica_role;
mod set;
mod sql;
mod target;
mod transaction;
mod truncate;

use std::collections::HashMap;
use std::sync::Arc;

use bunny_catalog::SchemaChanges;
use bunny_postgres::{Session, TableName};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::batch::Part;
use crate::bookkeeping::{Epoch, Prepared};
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
use transaction::Open;

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
        for target in self.targets.values_mut() {
            target.staging_is_new = false;
        }
        if let Err(error) = self.write_steps(steps, Care::Quick).await {
            if error.is_transient() {
                return Err(error);
            }
            tracing::info!(%error, "a batch was refused, writing it again with care");
            self.run("ROLLBACK TO SAVEPOINT part").await?;
            for target in self.targets.values_mut() {
                if target.staging_is_new {
                    target.stage_copy = None;
                }
                // Staged rows may be back that were cleared since the savepoint.
                target.staged = target.stage_copy.is_some();
                target.ahead = None;
                target.met.put_back(Default::default());
            }
            self.write_steps(steps, Care::Careful).await?;
            self.stage_what_refused(&error);
        }
        if let Some(open) = &mut self.open {
            for target in self.targets.values() {
                target.met.hand_over(&target.source, &mut open.drifts);
            }
        }
        Ok(())
    }

    /// What was written with care only is not tried as parameters again: every batch would be
    /// written twice.
    fn stage_what_refused(&mut self, error: &Error) {
        let Error::Table { table, .. } = error else {
            return;
        };
        let mut targets = self.targets.values_mut();
        if let Some(target) = targets.find(|target| target.source == *table) {
            target.few_sql = None;
        }
    }

    /// Looks up the tables that appear for the first time. Staging tables that will be needed are
    /// created here, before the savepoint that may be rolled back to.
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
            let bytes = || changes.iter().map(|change| change.text_bytes()).sum();
            let needs_staging = |target: &Target| {
                target.stage_copy.is_none()
                    && (!only_inserts || target.avoid_direct_copy)
                    && (target.key.is_empty() || !few::are_few(target, changes.len(), bytes))
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
