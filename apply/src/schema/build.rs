//! Makes what a plan says at the destination, each step in a fenced transaction of its
//! own, several sessions side by side.
//!
//! It can die anywhere and be called again: a plan is made from what is there. A step that
//! the destination refuses is remembered in `_bunny.objects` and the others go on; one that
//! somebody's lock or a full disk is in the way of waits, so that nothing else is begun
//! anew for it; an error that says nothing about the step ends the build.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// How long a step waits for others' locks on the table before it steps back for a moment.
const LOCK_TIMEOUT_MS: u32 = 30_000;

/// Pauses of a step that something is in the way of: the first one, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often a table is planned anew because a name was taken meanwhile.
const PLANS_MAX: u32 = 5;

/// duplicate_table, which is said of indexes too (PostgreSQL manual, appendix A).
const DUPLICATE_TABLE: &str = "42P07";
const SYNTAX_ERROR: &str = "42601";

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Made,
    /// The destination refused it, which is remembered and said.
    Refused,
    /// Something got the name between plan and step: another table's index, mostly.
    NameTaken,
}

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
        let (mut made, mut planned) = (0, 0);
        for round in 1..=PLANS_MAX {
            let plan = self.plan(source, destination, objects).await?;
            if plan.steps() == 0 {
                break;
            }
            tracing::info!(
                mirror = %self.run.mirror.name, table = %source, indexes = plan.indexes.len(),
                constraints = plan.constraints.len(), "building indexes and constraints"
            );
            let outcomes = self.carry_out(source, plan).await?;
            let count = |wanted| outcomes.iter().filter(|found| **found == wanted).count();
            made += count(Outcome::Made);
            planned = planned.max(made + count(Outcome::Refused) + count(Outcome::NameTaken));
            if count(Outcome::NameTaken) == 0 {
                break;
            }
            if round == PLANS_MAX {
                return Err(Error::NotYet(format!(
                    "names of indexes of {destination} are taken by others again and again"
                )));
            }
        }
        if planned == 0 {
            return Ok(());
        }
        let message =
            format!("table {source}: {made} of {planned} indexes and constraints are built");
        let details = json!({ "table": source.to_string(), "built": made, "planned": planned });
        self.run.reporter.log(LogLevel::Info, message, details);
        Ok(())
    }

    async fn carry_out(self: &Arc<Self>, source: &TableName, plan: Plan) -> Result<Vec<Outcome>> {
        // Dropped with this future, which ends the sessions' statements.
        let mut tasks = JoinSet::new();
        for step in plan.indexes {
            let (builder, source) = (self.clone(), source.clone());
            tasks.spawn(async move { builder.make(&source, &step).await });
        }
        let mut outcomes = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let outcome = joined.map_err(|error| {
                Error::NotYet(format!("building an index ended by itself: {error}"))
            })??;
            outcomes.push(outcome);
        }
        for step in &plan.constraints {
            outcomes.push(self.make(source, step).await?);
        }
        Ok(outcomes)
    }

    /// What is missing of the table, with the memory of former refusals wiped and what is
    /// left out noted.
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
        let wanted = Wanted {
            objects,
            destination,
            indexes: self.run.mirror.config.replicate_indexes,
        };
        let plan = after_load::plan(wanted, &present);
        let client: &tokio_postgres::Client = &session;
        begin(client, &self.run).await?;
        bookkeeping::forget_missing_objects(client, self.run.mirror_id(), source, FOREIGN_KEY)
            .await?;
        bookkeeping::put_notes(client, self.run.mirror_id(), source, &plan.left_out).await?;
        commit(client).await?;
        self.keep(session);
        Ok(plan)
    }

    /// Leaves sentences for the mirror's log.
    pub(crate) async fn note(&self, source: &TableName, sentences: &[String]) -> Result<()> {
        if sentences.is_empty() {
            return Ok(());
        }
        let session = self.open().await?;
        let client: &tokio_postgres::Client = &session;
        begin(client, &self.run).await?;
        bookkeeping::put_notes(client, self.run.mirror_id(), source, sentences).await?;
        commit(client).await?;
        self.keep(session);
        Ok(())
    }

    /// Makes one object, however long something is in its way.
    async fn make(&self, source: &TableName, step: &Step) -> Result<Outcome> {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.make_within(source, step, LOCK_TIMEOUT_MS).await {
                Err(error) if may_wait(&error) => error,
                ended => return ended,
            };
            tracing::info!(mirror = %self.run.mirror.name, table = %source, %error, "{} has to wait", step.what);
            if pause == PAUSE_MIN {
                let details = json!({ "table": source.to_string(), "reason": error.to_string() });
                let message = format!(
                    "{} has to wait; it is tried again until it is there",
                    step.what
                );
                self.run.reporter.log(LogLevel::Warn, message, details);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Makes one object, waiting for locks only so long. The error of a lock that was not
    /// got is transient.
    pub(crate) async fn make_within(
        &self,
        source: &TableName,
        step: &Step,
        lock_timeout_ms: u32,
    ) -> Result<Outcome> {
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
            return Ok(Outcome::Made);
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
        if is_name_taken(&error) {
            self.keep(session);
            return Ok(Outcome::NameTaken);
        }
        let missing = MissingObject {
            source: source.clone(),
            kind: step.kind.to_owned(),
            name: step.name.clone(),
            reason: format!("{error}{}", cause(&error, step)),
        };
        begin(client, &self.run).await?;
        bookkeeping::put_missing_object(client, self.run.mirror_id(), &missing).await?;
        commit(client).await?;
        self.keep(session);
        self.say_missing(&missing, step);
        Ok(Outcome::Refused)
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

/// Whether a step that ended so may go through a little later, in the same session: locks,
/// and class 53, what the server has too little of (PostgreSQL manual, appendix A). Pure.
pub(crate) fn may_wait(error: &Error) -> bool {
    error
        .sqlstate()
        .is_some_and(|code| code.starts_with("53") || matches!(code, "55P03" | "40P01" | "40001"))
}

/// What an older server's answer does not tell: all it has to say is where it stopped reading. Pure.
fn cause(error: &Error, step: &Step) -> &'static str {
    let is_unread = error.sqlstate() == Some(SYNTAX_ERROR);
    match is_unread && step.sql().contains(" NULLS NOT DISTINCT") {
        true => "; it is NULLS NOT DISTINCT, which PostgreSQL knows from 15 on",
        false => "",
    }
}

/// Whether a name was free when it was looked for and is not any more. Pure.
pub(crate) fn is_name_taken(error: &Error) -> bool {
    error.sqlstate() == Some(DUPLICATE_TABLE)
        || error.db_error().and_then(|error| error.constraint())
            == Some("pg_class_relname_nsp_index")
}

/// What the destination's table has now; `None` when there is no table.
pub(crate) async fn present(session: &Session, table: &TableName) -> Result<Option<Present>> {
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
