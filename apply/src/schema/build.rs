//! Makes what a plan says at the destination, each step in a fenced transaction of its
//! own, several sessions side by side.
//!
//! It can die anywhere and be called again: a plan is made from what is there. A step that
//! the destination refuses is remembered in `_bunny.objects` and the others go on; an
//! error that says nothing about the step ends the build.

use std::sync::{Arc, Mutex, PoisonError};

use bunny_catalog::LogLevel;
use bunny_postgres::introspect::{self, TableObjects};
use bunny_postgres::{Session, TableName};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::after_load::{self, Plan, Present, Wanted};
use super::step::Step;
use crate::bookkeeping::{self, MissingObject};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};

/// How long a step waits for others' locks on the table before the run tries again.
const LOCK_TIMEOUT_MS: u32 = 30_000;

/// Foreign keys come at another time than everything else of a table.
pub(crate) const FOREIGN_KEY: &str = "foreign key";

/// Makes objects, on at most `snapshot_max_parallel_workers` sessions.
pub(crate) struct Builder {
    run: MirrorRun,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

impl Builder {
    pub(crate) fn new(run: &MirrorRun) -> Arc<Builder> {
        let sessions_max = run.mirror.config.snapshot_max_parallel_workers.max(1);
        Arc::new(Builder {
            run: run.clone(),
            turns: Arc::new(Semaphore::new(sessions_max as usize)),
            idle: Mutex::default(),
        })
    }

    /// Makes what is missing on a loaded table.
    pub(crate) async fn after_load(
        self: &Arc<Self>,
        source: &TableName,
        destination: &TableName,
        objects: &TableObjects,
    ) -> Result<()> {
        let plan = self.plan(source, destination, objects).await?;
        self.say_left_out(source, &plan.left_out);
        if plan.steps() == 0 {
            return Ok(());
        }
        tracing::info!(
            mirror = %self.run.mirror.name, table = %source, indexes = plan.indexes.len(),
            constraints = plan.constraints.len(), "building indexes and constraints"
        );
        let steps = plan.steps();
        // Dropped with this future, which ends the sessions' statements.
        let mut tasks = JoinSet::new();
        for step in plan.indexes {
            let (builder, source) = (self.clone(), source.clone());
            tasks.spawn(async move { builder.make(&source, &step).await });
        }
        let mut made = 0;
        while let Some(joined) = tasks.join_next().await {
            let is_made = joined.map_err(|error| {
                Error::NotYet(format!("building an index ended by itself: {error}"))
            })??;
            made += usize::from(is_made);
        }
        for step in &plan.constraints {
            made += usize::from(self.make(source, step).await?);
        }
        let message =
            format!("table {source}: {made} of {steps} indexes and constraints are built");
        let details = json!({ "table": source.to_string(), "built": made, "planned": steps });
        self.run.reporter.log(LogLevel::Info, message, details);
        Ok(())
    }

    /// What is missing of the table, with the memory of former refusals wiped.
    async fn plan(
        &self,
        source: &TableName,
        destination: &TableName,
        objects: &TableObjects,
    ) -> Result<Plan> {
        let session = self.open().await?;
        let Some(present) = present(&session, destination).await? else {
            self.keep(session);
            return Ok(Plan::default());
        };
        let client: &tokio_postgres::Client = &session;
        begin(client, &self.run).await?;
        bookkeeping::forget_missing_objects(client, self.run.mirror_id(), source, FOREIGN_KEY)
            .await?;
        commit(client).await?;
        self.keep(session);
        let wanted = Wanted {
            objects,
            destination,
        };
        Ok(after_load::plan(wanted, &present))
    }

    /// Makes one object. False: the destination refused it, which is remembered and said.
    async fn make(&self, source: &TableName, step: &Step) -> Result<bool> {
        self.make_within(source, step, LOCK_TIMEOUT_MS).await
    }

    /// As [`Builder::make`], waiting for locks only so long. The error of a lock that was
    /// not got is transient.
    pub(crate) async fn make_within(
        &self,
        source: &TableName,
        step: &Step,
        lock_timeout_ms: u32,
    ) -> Result<bool> {
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|error| Error::NotYet(error.to_string()))?;
        let session = self.open().await?;
        let client: &tokio_postgres::Client = &session;
        begin(client, &self.run).await?;
        let sql = format!("SET LOCAL lock_timeout = {lock_timeout_ms}; {}", step.sql());
        let Err(error) = client.batch_execute(&sql).await else {
            commit(client).await?;
            reached(crash_points::OBJECT_BUILT);
            self.keep(session);
            return Ok(true);
        };
        let error = Error::sql(format!("creating {}", step.what))(error);
        if error.sqlstate().is_none() {
            return Err(error);
        }
        client
            .batch_execute("ROLLBACK")
            .await
            .map_err(Error::sql("rolling an object back"))?;
        if error.is_transient() {
            self.keep(session);
            return Err(error);
        }
        let missing = MissingObject {
            source: source.clone(),
            kind: step.kind.to_owned(),
            name: step.name.clone(),
            reason: error.to_string(),
        };
        begin(client, &self.run).await?;
        bookkeeping::put_missing_object(client, self.run.mirror_id(), &missing).await?;
        commit(client).await?;
        self.keep(session);
        self.say_missing(&missing, step);
        Ok(false)
    }

    fn say_missing(&self, missing: &MissingObject, step: &Step) {
        tracing::warn!(mirror = %self.run.mirror.name, table = %missing.source, reason = %missing.reason, "{} is missing", step.what);
        let details = json!({
            "table": missing.source.to_string(), "reason": missing.reason, "sql": step.statements,
        });
        let message = format!(
            "{} could not be created; create it by hand, rows are replicated without it",
            step.what
        );
        self.run.reporter.log(LogLevel::Error, message, details);
    }

    pub(crate) fn say_left_out(&self, source: &TableName, left_out: &[String]) {
        if left_out.is_empty() {
            return;
        }
        let details = json!({ "table": source.to_string(), "left_out": left_out });
        let message = format!("table {source} is replicated without some of its source's objects");
        self.run.reporter.log(LogLevel::Warn, message, details);
    }

    /// A session without a transaction. One that broke is not kept.
    pub(crate) async fn open(&self) -> Result<Session> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match idle.filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => self.run.connect().await,
        }
    }

    pub(crate) fn keep(&self, session: Session) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(session);
    }
}

/// What the destination's table has now; `None` when there is no table.
async fn present(session: &Session, table: &TableName) -> Result<Option<Present>> {
    let Some(definition) = introspect::table_definition(session, table).await? else {
        return Ok(None);
    };
    let rows = session
        .query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1",
            &[&table.schema],
        )
        .await
        .map_err(Error::sql(format!(
            "reading the names in destination schema {}",
            table.schema
        )))?;
    Ok(Some(Present {
        objects: introspect::table_objects(session, definition.oid, &[]).await?,
        columns: definition
            .columns
            .into_iter()
            .map(|column| column.name)
            .collect(),
        taken: rows.iter().map(|row| row.get(0)).collect(),
    }))
}

pub(crate) async fn begin(client: &tokio_postgres::Client, run: &MirrorRun) -> Result<()> {
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
        ))
        .await
        .map_err(Error::sql("beginning to create an object"))?;
    bookkeeping::fence(client, run.mirror_id(), run.epoch).await
}

pub(crate) async fn commit(client: &tokio_postgres::Client) -> Result<()> {
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("committing an object"))
}
