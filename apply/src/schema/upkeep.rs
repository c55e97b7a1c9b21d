//! What is done to tables beside main: foreign keys, once both their tables are LIVE, and
//! sequences, which follow the rows that come. It also brings the notes on tables into the
//! mirror's log.
//!
//! Main never waits long for it: a foreign key is added without checking rows, under a
//! lock timeout shorter than any deadlock check, and checked afterwards under a lock that
//! lets main write. Whatever goes wrong is said, and tried again later; nothing of it
//! ends the mirror's run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bunny_catalog::LogLevel;
use bunny_postgres::introspect::{
    self, ForeignKeyDefinition, SequenceDefinition, SequenceRole, TableObjects,
};
use bunny_postgres::{TableDefinition, TableName};
use serde_json::json;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::build::{Builder, FOREIGN_KEY, Outcome, begin, commit};
use super::foreign_keys::{self, Addition, Mapped, Plan};
use super::sequences;
use super::step::Step;
use crate::bookkeeping::{self, Overview};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};

/// How often the tables' states are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many looks apart the sequences of a table whose rows changed are raised.
const SEQUENCES_EVERY: u32 = 10;

/// How long a foreign key waits for both tables. Below `deadlock_timeout` (1 s): main and
/// this never pick a victim among themselves, this steps back.
const LOCK_TIMEOUT_MS: u32 = 400;

/// Looks after the mirror's tables for as long as it is polled.
pub(crate) async fn run(run: MirrorRun) {
    let builder = Builder::new(&run);
    let mut upkeep = Upkeep {
        run,
        builder,
        objects: BTreeMap::new(),
        done: BTreeMap::new(),
        said: BTreeSet::new(),
        may_be_replica: None,
        raised: BTreeMap::new(),
    };
    let mut look = 0_u32;
    loop {
        let is_turn = look.is_multiple_of(SEQUENCES_EVERY);
        if let Err(error) = upkeep.look(is_turn).await {
            upkeep.say_trouble(&error);
        }
        look = look.wrapping_add(1);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Upkeep {
    run: MirrorRun,
    builder: Arc<Builder>,
    /// What the source's tables had at their last syncs.
    objects: BTreeMap<TableName, Kept>,
    /// Tables whose foreign keys are as far as they can be, with what that was seen under.
    done: BTreeMap<TableName, Seen>,
    /// Trouble that is in the mirror's log already.
    said: BTreeSet<String>,
    /// Whether the destination's user may set the replica role, once that was tried.
    may_be_replica: Option<bool>,
    /// The row counts under which a table's sequences were raised last.
    raised: BTreeMap<TableName, Counts>,
}

/// What is looked after, of one sync's definition.
struct Kept {
    sync: (Option<Uuid>, i32),
    shaped_at: Option<SystemTime>,
    foreign_keys: Vec<ForeignKeyDefinition>,
    /// Those of the table's own columns.
    sequences: Vec<SequenceDefinition>,
}

/// A table and those its foreign keys lead to: when anything of this changes, they are
/// looked at again.
type Seen = Vec<Option<Overview>>;

/// Rows written, of which sync.
type Counts = ((Option<Uuid>, i32), (i64, i64));

impl Upkeep {
    async fn look(&mut self, sequences_too: bool) -> Result<()> {
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        let tables = bookkeeping::overview(client, self.run.mirror_id()).await?;
        // Without the catalog the notes wait; everything else goes on.
        match self.say_notes(client).await {
            Ok(()) => self.builder.keep(session),
            Err(error) => self.say_trouble(&error),
        }
        let is_there = |name: &TableName| {
            tables
                .binary_search_by(|table| table.source.cmp(name))
                .is_ok()
        };
        self.objects.retain(|name, _| is_there(name));
        self.done.retain(|name, _| is_there(name));
        self.raised.retain(|name, _| is_there(name));
        for table in tables.iter().filter(|table| table.is_live) {
            self.keep_objects(table).await?;
        }
        if self.run.mirror.config.replicate_foreign_keys && self.may_have_foreign_keys().await? {
            self.foreign_keys(&tables).await?;
        }
        if sequences_too {
            for table in tables.iter().filter(|table| table.is_live) {
                self.sequences(table).await?;
            }
        }
        Ok(())
    }

    /// Brings notes on tables into the mirror's log. One may come twice after a crash,
    /// none gets lost.
    async fn say_notes(&self, client: &tokio_postgres::Client) -> Result<()> {
        for (source, sentences) in bookkeeping::notes(client, self.run.mirror_id()).await? {
            let message = format!("table {source} is not in everything as its source");
            let details = json!({ "table": source.to_string(), "differences": sentences });
            self.run
                .catalog
                .log(self.run.mirror_id(), LogLevel::Warn, &message, details)
                .await?;
            begin(client, &self.run).await?;
            bookkeeping::notes_are_said(client, self.run.mirror_id(), &source, &sentences).await?;
            commit(client).await?;
        }
        Ok(())
    }

    /// Reads what is looked after of a table, if its sync is another one than before.
    async fn keep_objects(&mut self, table: &Overview) -> Result<()> {
        if self
            .objects
            .get(&table.source)
            .is_some_and(|kept| kept.sync == table.sync && kept.shaped_at == table.shaped_at)
        {
            return Ok(());
        }
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        let row = bookkeeping::table(client, self.run.mirror_id(), &table.source).await?;
        self.builder.keep(session);
        let definition = row.and_then(|row| row.definition);
        let objects = definition.and_then(objects).unwrap_or_default();
        // Where the source's sequences stood when the table was read was heeded when it was
        // loaded; a TRUNCATE … RESTART IDENTITY may have set them back since.
        let following = objects
            .sequences
            .into_iter()
            .filter(|sequence| sequence.role != SequenceRole::Used)
            .map(|sequence| SequenceDefinition {
                last_value: None,
                ..sequence
            });
        let kept = Kept {
            sync: table.sync,
            shaped_at: table.shaped_at,
            foreign_keys: objects.foreign_keys,
            sequences: following.collect(),
        };
        self.objects.insert(table.source.clone(), kept);
        Ok(())
    }

    /// Foreign keys would act on replicated rows unless the writer works in replica role.
    async fn may_have_foreign_keys(&mut self) -> Result<bool> {
        if let Some(may) = self.may_be_replica {
            return Ok(may);
        }
        let session = self.builder.open().await?;
        let tried = session
            .batch_execute("BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK")
            .await;
        let may = match tried {
            Ok(()) => true,
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                session
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(Error::sql("leaving a transaction"))?;
                self.run.reporter.log(
                    LogLevel::Warn,
                    "foreign keys are not created: the destination's user may not set session_replication_role, so they would act on replicated rows",
                    json!({}),
                );
                false
            }
            Err(error) => return Err(Error::sql("trying the replica role")(error)),
        };
        self.builder.keep(session);
        self.may_be_replica = Some(may);
        Ok(may)
    }

    /// What passes by itself is the run's to tell; anything else is said once.
    fn say_trouble(&mut self, error: &Error) {
        tracing::debug!(mirror = %self.run.mirror.name, %error, "upkeep of tables has to wait");
        if !error.is_transient() && self.said.insert(error.to_string()) {
            self.run.reporter.log(
                LogLevel::Warn,
                "foreign keys, sequences or notes on tables cannot be looked after",
                json!({ "reason": error.to_string() }),
            );
        }
    }

    async fn foreign_keys(&mut self, tables: &[Overview]) -> Result<()> {
        let mirrored: BTreeMap<&TableName, Mapped<'_>> = tables
            .iter()
            .map(|table| {
                let mapped = Mapped {
                    destination: &table.destination,
                    is_live: table.is_live,
                };
                (&table.source, mapped)
            })
            .collect();
        for table in tables.iter().filter(|table| table.is_live) {
            let Some(kept) = self.objects.get(&table.source) else {
                continue;
            };
            let keys = kept.foreign_keys.clone();
            let seen = seen(table, &keys, tables);
            if keys.is_empty() || self.done.get(&table.source) == Some(&seen) {
                continue;
            }
            let plan = self.plan(table, &keys, &mirrored).await?;
            self.builder.note(&table.source, &plan.left_out).await?;
            let mut is_done = true;
            for addition in &plan.additions {
                is_done &= self.add(table, addition).await?;
            }
            if is_done {
                self.done.insert(table.source.clone(), seen);
            }
        }
        Ok(())
    }

    async fn plan(
        &self,
        table: &Overview,
        keys: &[ForeignKeyDefinition],
        mirrored: &BTreeMap<&TableName, Mapped<'_>>,
    ) -> Result<Plan> {
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        let Some(definition) = introspect::table_definition(client, &table.destination).await?
        else {
            self.builder.keep(session);
            return Ok(Plan::default());
        };
        let present = introspect::table_objects(client, definition.oid, &[]).await?;
        self.builder.keep(session);
        let columns = definition.columns.into_iter().map(|column| column.name);
        Ok(foreign_keys::plan(
            &table.source,
            keys,
            &present.foreign_keys,
            &columns.collect(),
            mirrored,
        ))
    }

    /// Adds and checks one foreign key. False: a lock was in the way, try again.
    async fn add(&self, table: &Overview, addition: &Addition) -> Result<bool> {
        for step in addition.add.iter().chain(&addition.validate) {
            let made = self
                .builder
                .make_within(&table.source, step, LOCK_TIMEOUT_MS)
                .await;
            match made {
                Ok(Outcome::Made) => reached(crash_points::FOREIGN_KEY_STEP),
                // Refused and remembered; the same rows would be refused again.
                Ok(Outcome::Refused | Outcome::NameTaken) => return Ok(true),
                Err(error) if error.is_transient() => {
                    tracing::debug!(what = %step.what, %error, "tried again later");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(step) = addition.validate.as_ref().or(addition.add.as_ref()) {
            self.say_added(table, step).await?;
        }
        Ok(true)
    }

    async fn say_added(&self, table: &Overview, step: &Step) -> Result<()> {
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        begin(client, &self.run).await?;
        bookkeeping::forget_missing_object(
            client,
            self.run.mirror_id(),
            &table.source,
            FOREIGN_KEY,
            &step.name,
        )
        .await?;
        commit(client).await?;
        self.builder.keep(session);
        tracing::info!(mirror = %self.run.mirror.name, table = %table.source, "{} is there", step.what);
        self.run.reporter.log(
            LogLevel::Info,
            format!("{} is created", step.what),
            json!({ "table": table.source.to_string() }),
        );
        Ok(())
    }

    /// Raises the sequences of a table whose rows changed since the last time.
    async fn sequences(&mut self, table: &Overview) -> Result<()> {
        let counts = (table.sync, table.rows_written);
        if self.raised.get(&table.source) == Some(&counts) {
            return Ok(());
        }
        let following = self
            .objects
            .get(&table.source)
            .map_or(&[][..], |kept| &kept.sequences);
        if !following.is_empty() {
            let session = self.builder.open().await?;
            let raised = sequences::raise(&session, &self.run, &table.destination, following).await;
            match raised {
                Ok(()) => self.builder.keep(session),
                Err(error) if error.is_transient() => return Err(error),
                // About this table only; the session goes with its transaction.
                Err(error) => self.say_trouble(&error),
            }
        }
        self.raised.insert(table.source.clone(), counts);
        Ok(())
    }
}

/// A table and those its foreign keys lead to, without what changes with every row.
fn seen(table: &Overview, keys: &[ForeignKeyDefinition], tables: &[Overview]) -> Seen {
    let names = keys.iter().map(|key| &key.references);
    std::iter::once(&table.source)
        .chain(names)
        .map(|name| {
            let found = tables
                .binary_search_by(|table| table.source.cmp(name))
                .ok()?;
            Some(Overview {
                rows_written: (0, 0),
                ..tables.get(found)?.clone()
            })
        })
        .collect()
}

/// What belonged to the source's table at its sync, if that can be read.
fn objects(definition: serde_json::Value) -> Option<TableObjects> {
    let definition: TableDefinition = serde_json::from_value(definition).ok()?;
    definition.objects
}
