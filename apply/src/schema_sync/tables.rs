//! One table brought to the source's schema: types and labels first, then the table itself
//! in one transaction, then indexes and constraints one by one.

use std::time::Duration;

use bunny_catalog::SchemaChanges;
use bunny_postgres::{TableDefinition, TableName, introspect};
use bunny_schemas::source_tables::SourceTable;
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use super::difference::{self, Between, Difference};
use crate::bookkeeping::{self, Entry, MissingObject, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::event::TableVersion;
use crate::schema::after_load;
use crate::schema::build::{self, FOREIGN_KEY};
use crate::schema::foundations;
use crate::schema::step::Step;
use crate::schema_change::plan::{Alteration, Refusal, Wanted};
use crate::schema_change::planner;
use crate::schema_change::run::{Failed, alterations};
use crate::schema_change::shape::{self, Shape};
use crate::schema_change::{Word, destination, labels};
use crate::stats::Stats;

/// How long one attempt waits for a lock on the table.
const LOCK_TIMEOUT_MS: u32 = 2_000;
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// How long something may be in the way of one statement before it is left: main stands.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often indexes are planned anew because a name was taken meanwhile.
const PLANS_MAX: u32 = 5;

/// What belongs together while one table is worked on.
struct Work<'a> {
    run: &'a MirrorRun,
    stats: &'a Stats,
    key: (Uuid, Uuid),
    mode: SchemaChanges,
    table: &'a SourceTable,
}

/// Brings one table in line, as far as that can be, and notes what was run and what was left.
pub(super) async fn bring_in_line(
    run: &MirrorRun,
    stats: &Stats,
    key: (Uuid, Uuid),
    mode: SchemaChanges,
    table: &SourceTable,
) -> Result<()> {
    let work = Work {
        run,
        stats,
        key,
        mode,
        table,
    };
    let source = table.name();
    let session = run.connect().await?;
    let state = bookkeeping::table(&*session, run.mirror_id(), source).await?;
    drop(session);
    let why_not = match &state {
        None => Some("it is not in the mirror any more".to_owned()),
        Some(state) if !state.in_main => Some(format!(
            "it is {} and not followed now{}: its next sync brings the source's schema (POST …/resync/{source})",
            state.state.as_str(),
            state
                .error
                .as_ref()
                .map(|error| format!(" ({error})"))
                .unwrap_or_default(),
        )),
        Some(_) => None,
    };
    let (Some(state), None) = (state, &why_not) else {
        return work.leave(why_not.into_iter().collect()).await;
    };
    if work.foundations(&state).await? && work.table(&state).await? {
        work.objects(&state.destination).await?;
    }
    Ok(())
}

impl Work<'_> {
    fn source(&self) -> &TableName {
        self.table.name()
    }

    async fn leave(&self, sentences: Vec<String>) -> Result<()> {
        let session = self.run.connect().await?;
        let client: &Client = &session;
        build::begin(client, self.run).await?;
        bookkeeping::put_entries(client, self.key, self.source(), Entry::Left, &sentences).await?;
        build::commit(client).await
    }

    /// Runs `attempt` until nothing is in its way. Some: something was for too long, or the
    /// destination refuses it.
    async fn patiently<T, F>(
        &self,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<Result<T, String>>
    where
        F: Future<Output = Result<T>>,
    {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(Ok(done)),
                Err(error) => error,
            };
            if build::may_wait(&error) && Instant::now() < give_up_at {
                self.stats.phase(format!(
                    "{what} of table {} has to wait: {error}",
                    self.source()
                ));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if build::may_wait(&error) {
                return Ok(Err(format!(
                    "{what}: {error}, for {} s; ask again",
                    PATIENCE.as_secs()
                )));
            }
            let is_tables_own = matches!(error, Error::Refused(_) | Error::Table { .. })
                || (error.sqlstate().is_some() && !error.is_transient());
            if is_tables_own {
                return Ok(Err(format!("{what}: {error}")));
            }
            return Err(error);
        }
    }

    /// A fenced transaction that waits only so long for locks.
    async fn begin(&self, client: &Client) -> Result<()> {
        build::begin(client, self.run).await?;
        client
            .batch_execute(&format!("SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            .await
            .map_err(Error::sql("beginning to bring a table in line"))
    }

    async fn ran(&self, client: &Client, statements: &[String]) -> Result<()> {
        bookkeeping::put_entries(client, self.key, self.source(), Entry::Ran, statements).await
    }

    async fn left(&self, client: &Client, sentences: &[String]) -> Result<()> {
        bookkeeping::put_entries(client, self.key, self.source(), Entry::Left, sentences).await
    }

    fn version(&self) -> TableVersion {
        TableVersion {
            schema_id: 0,
            source: self.source().clone(),
            columns: self.table.columns(),
        }
    }

    /// Labels and types, each committed before the table uses them. False: it cannot go on.
    async fn foundations(&self, state: &TableState) -> Result<bool> {
        let version = self.version();
        let session = self.run.connect().await?;
        let stored = shape::load(&session, self.run.mirror_id(), state).await?;
        let shape = stored.or_else(|| Shape::of_sync(state));
        let known = shape.map(|shape| shape.enums).unwrap_or_default();
        let asked = labels::asked(&session, self.mode, &version, &known).await?;
        drop(session);
        if let Some(refused) = asked.refused {
            self.leave(vec![refused]).await?;
            return Ok(false);
        }
        for statement in &asked.statements {
            let done = self
                .patiently("a label", || async {
                    let session = self.run.connect().await?;
                    let client: &Client = &session;
                    self.begin(client).await?;
                    client
                        .batch_execute(statement)
                        .await
                        .map_err(Error::sql(format!("running {statement}")))?;
                    self.ran(client, std::slice::from_ref(statement)).await?;
                    build::commit(client).await
                })
                .await?;
            if let Err(why) = done {
                self.leave(vec![why]).await?;
                return Ok(false);
            }
            reached(crash_points::SCHEMA_SYNC_STEP);
        }
        let Some(objects) = &self.table.definition.objects else {
            return Ok(true);
        };
        let laid = self
            .patiently("its types", || async {
                let session = self.run.connect().await?;
                let client: &Client = &session;
                self.begin(client).await?;
                let ran = foundations::create(client, self.run, self.source(), objects).await?;
                self.ran(client, &ran).await?;
                build::commit(client).await
            })
            .await?;
        if let Err(why) = laid {
            self.leave(vec![why]).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Columns, what is dropped, defaults and checks, with the shape and the definition that
    /// are true from then on. False: the table is left as it is.
    async fn table(&self, state: &TableState) -> Result<bool> {
        let altered = self.patiently("its columns", || self.alter(state)).await?;
        match altered {
            Ok(()) => {
                reached(crash_points::SCHEMA_SYNC_STEP);
                Ok(true)
            }
            Err(why) => {
                self.leave(vec![why]).await?;
                Ok(false)
            }
        }
    }

    async fn alter(&self, state: &TableState) -> Result<()> {
        let session = self.run.connect().await?;
        let client: &Client = &session;
        let mirror_id = self.run.mirror_id();
        let table = &state.destination;
        self.begin(client).await?;
        let stored = shape::load(client, mirror_id, state).await?;
        let shape = stored.or_else(|| Shape::of_sync(state));
        let present = destination::look(client, table).await?;
        let Some(here) = look(client, table).await? else {
            return Err(Error::Refused(format!(
                "destination table {table} does not exist: sync the table again"
            )));
        };
        let version = self.version();
        let source = &self.table.definition;
        let columns = &version.columns;
        let (known, lacking) =
            difference::as_present(shape.as_ref(), columns, &present, &here, source);
        let plan = planner::plan(Wanted {
            mode: self.mode,
            known: &known,
            version: &version,
            destination: table,
            present: &present,
        })
        .map_err(|Refusal(reason)| Error::Refused(reason))?;
        let former: Option<TableDefinition> = state
            .definition
            .clone()
            .and_then(|definition| serde_json::from_value(definition).ok());
        let between = |here| Between {
            mode: self.mode,
            destination: table,
            former: former.as_ref(),
            source,
            here,
        };
        let excluded = self.table.excluded();
        let beyond = difference::columns(between(&here), &known, &lacking, &excluded);
        let mut steps = beyond.alterations;
        steps.extend(plan.alterations);
        self.apply(client, steps).await?;
        self.left(client, &beyond.left).await?;
        self.left(client, &plan.notices).await?;

        let Some(here) = look(client, table).await? else {
            return Err(Error::NotYet(format!(
                "{table} is gone while it is altered"
            )));
        };
        let mut shape = Shape {
            enums: labels::of(&version),
            ..plan.shape
        };
        shape.abandoned.retain(|name| here.column(name).is_some());
        let with_indexes = self.run.mirror.config.replicate_indexes;
        let dropped = difference::objects(between(&here), with_indexes);
        let facts = difference::column_facts(between(&here), &shape);
        let Difference { alterations, left } = dropped;
        let rest = alterations
            .into_iter()
            .chain(facts.alterations)
            .chain(plan.constraints);
        let rest = difference::without_repeats(rest.collect());
        self.apply(client, rest).await?;
        self.left(client, &left).await?;
        self.left(client, &facts.left).await?;

        let Some(here) = look(client, table).await? else {
            return Err(Error::NotYet(format!(
                "{table} is gone while it is altered"
            )));
        };
        let left_over = difference::left_over(between(&here));
        let is_new = |name: &String| !shape.abandoned.contains(name);
        let left_over: Vec<String> = left_over.into_iter().filter(is_new).collect();
        shape.abandoned.extend(left_over);
        shape::store(client, mirror_id, state, &shape).await?;
        let definition = serde_json::to_value(difference::remembered(between(&here)))
            .map_err(|error| Error::Inconsistent(format!("a definition is no JSON: {error}")))?;
        let placed: Vec<String> = columns
            .iter()
            .filter(|column| shape.place_of(&column.name).is_some())
            .map(|column| column.name.clone())
            .collect();
        bookkeeping::set_definition(client, mirror_id, self.source(), &definition, &placed).await?;
        bookkeeping::forget_missing_objects(client, mirror_id, self.source(), FOREIGN_KEY).await?;
        reached(crash_points::SCHEMA_SYNC_ALTERED);
        build::commit(client).await
    }

    async fn apply(&self, client: &Client, steps: Vec<Alteration>) -> Result<()> {
        let words = alterations(client, &steps)
            .await
            .map_err(|failed| match failed {
                Failed::Refused(reason) => Error::Refused(reason),
                Failed::Other(error) => error,
            })?;
        for word in words {
            match word {
                Word::Ran(statement) => self.ran(client, &[statement]).await?,
                Word::Notice(notice) => self.left(client, &[notice]).await?,
            }
        }
        Ok(())
    }

    /// Indexes and constraints that are missing, each in a transaction of its own.
    async fn objects(&self, table: &TableName) -> Result<()> {
        let Some(objects) = &self.table.definition.objects else {
            return Ok(());
        };
        for _ in 0..PLANS_MAX {
            let session = self.run.connect().await?;
            let Some(present) = build::present(&session, table).await? else {
                return Ok(());
            };
            let wanted = after_load::Wanted {
                objects,
                destination: table,
                indexes: self.run.mirror.config.replicate_indexes,
            };
            let plan = after_load::plan(wanted, &present);
            drop(session);
            self.leave(plan.left_out.clone()).await?;
            let mut is_name_taken = false;
            for step in plan.indexes.iter().chain(&plan.constraints) {
                self.stats.phase(format!("building {}", step.what));
                is_name_taken |= self.object(step).await?;
            }
            if !is_name_taken {
                return Ok(());
            }
        }
        let sentence = "names of its indexes are taken by others again and again; ask again";
        self.leave(vec![sentence.to_owned()]).await
    }

    /// True: something got the object's name meanwhile.
    async fn object(&self, step: &Step) -> Result<bool> {
        let made = self
            .patiently(&step.what, || async {
                let session = self.run.connect().await?;
                let client: &Client = &session;
                self.begin(client).await?;
                for statement in &step.statements {
                    let doing = format!("running {statement}");
                    let ran = client.batch_execute(statement).await;
                    match ran.map_err(Error::sql(doing)) {
                        Ok(()) => {}
                        Err(error) if build::is_name_taken(&error) => return Ok(true),
                        Err(error) => return Err(error),
                    }
                }
                self.ran(client, &step.statements).await?;
                build::commit(client).await?;
                Ok(false)
            })
            .await?;
        match made {
            Ok(is_name_taken) => {
                reached(crash_points::SCHEMA_SYNC_STEP);
                Ok(is_name_taken)
            }
            Err(why) => {
                let missing = MissingObject {
                    source: self.source().clone(),
                    kind: step.kind.to_owned(),
                    name: step.name.clone(),
                    reason: why.clone(),
                };
                let session = self.run.connect().await?;
                let client: &Client = &session;
                build::begin(client, self.run).await?;
                bookkeeping::put_missing_object(client, self.run.mirror_id(), &missing).await?;
                self.left(client, &[why]).await?;
                build::commit(client).await?;
                Ok(false)
            }
        }
    }
}

/// The destination's table with its objects, as the open transaction sees it.
async fn look(client: &Client, table: &TableName) -> Result<Option<TableDefinition>> {
    let Some(definition) = introspect::table_definition(client, table).await? else {
        return Ok(None);
    };
    let objects = introspect::table_objects(client, definition.oid, &[]).await?;
    Ok(Some(TableDefinition {
        objects: Some(objects),
        ..definition
    }))
}
