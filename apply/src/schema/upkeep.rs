//! What is done to tables beside main: foreign keys, once both their tables are LIVE, and
//! sequences, which follow the rows that come.
//!
//! Main never waits long for it: a foreign key is added without checking rows, under a
//! lock timeout shorter than any deadlock check, and checked afterwards under a lock that
//! lets main write. Whatever goes wrong is said, and tried again later; nothing of it
//! ends the mirror's run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::LogLevel;
use bunny_postgres::introspect::{SequenceDefinition, SequenceRole};
use bunny_postgres::{TableDefinition, TableName};
use serde_json::json;
use tokio_postgres::error::SqlState;

use super::build::{Builder, FOREIGN_KEY, begin, commit};
use super::foreign_keys::{self, Addition, Mapped, Plan, Validated};
use super::sequences;
use super::step::Step;
use crate::bookkeeping::{self, State, TableState};
use crate::context::MirrorRun;
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
    /// Tables whose foreign keys are as far as they can be, with what that was seen under.
    done: BTreeMap<TableName, Seen>,
    /// Sentences that are in the mirror's log already.
    said: BTreeSet<String>,
    /// Whether the destination's user may set the replica role, once that was tried.
    may_be_replica: Option<bool>,
    /// The row counts under which a table's sequences were raised last.
    raised: BTreeMap<TableName, (i32, i64, i64)>,
}

/// When anything of this changes, a table's foreign keys are looked at again.
type Seen = Vec<(TableName, i32, bool)>;

impl Upkeep {
    async fn look(&mut self, sequences_too: bool) -> Result<()> {
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        let tables = bookkeeping::tables(client, self.run.mirror_id()).await?;
        self.builder.keep(session);
        if self.run.mirror.config.replicate_foreign_keys && self.may_have_foreign_keys().await? {
            self.foreign_keys(&tables).await?;
        }
        if sequences_too {
            for table in tables.iter().filter(|table| table.state == State::Live) {
                self.sequences(table).await?;
            }
        }
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
                "foreign keys or sequences cannot be looked after",
                json!({ "reason": error.to_string() }),
            );
        }
    }

    async fn foreign_keys(&mut self, tables: &[TableState]) -> Result<()> {
        let mirrored: BTreeMap<&TableName, Mapped<'_>> = tables
            .iter()
            .map(|table| {
                let mapped = Mapped {
                    destination: &table.destination,
                    is_live: table.state == State::Live,
                };
                (&table.source, mapped)
            })
            .collect();
        let seen: Seen = tables
            .iter()
            .map(|table| {
                let is_live = table.state == State::Live;
                (table.source.clone(), table.attempt, is_live)
            })
            .collect();
        for table in tables.iter().filter(|table| table.state == State::Live) {
            if self.done.get(&table.source) == Some(&seen) {
                continue;
            }
            let plan = self.plan(table, &mirrored).await?;
            let news: Vec<String> = plan
                .left_out
                .into_iter()
                .filter(|sentence| self.said.insert(sentence.clone()))
                .collect();
            self.builder.say_left_out(&table.source, &news);
            let mut is_done = true;
            for addition in &plan.additions {
                is_done &= self.add(table, addition).await?;
            }
            if is_done {
                self.done.insert(table.source.clone(), seen.clone());
            }
        }
        Ok(())
    }

    async fn plan(
        &self,
        table: &TableState,
        mirrored: &BTreeMap<&TableName, Mapped<'_>>,
    ) -> Result<Plan> {
        let Some(objects) = definition(table).and_then(|definition| definition.objects) else {
            return Ok(Plan::default());
        };
        if objects.foreign_keys.is_empty() {
            return Ok(Plan::default());
        }
        let session = self.builder.open().await?;
        let client: &tokio_postgres::Client = &session;
        let destination = table.destination.quoted();
        let doing = || format!("reading the foreign keys of {}", table.destination);
        let rows = client
            .query(
                "SELECT conname::text, convalidated FROM pg_constraint
                 WHERE conrelid = to_regclass($1) AND contype = 'f'",
                &[&destination],
            )
            .await
            .map_err(Error::sql(doing()))?;
        let present = rows
            .iter()
            .map(|row| (row.get(0), Validated(row.get(1))))
            .collect();
        let rows = client
            .query(
                "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
                &[&destination],
            )
            .await
            .map_err(Error::sql(doing()))?;
        let columns = rows.iter().map(|row| row.get(0)).collect();
        self.builder.keep(session);
        Ok(foreign_keys::plan(
            &table.source,
            &objects.foreign_keys,
            &present,
            &columns,
            mirrored,
        ))
    }

    /// Adds and checks one foreign key. False: a lock was in the way, try again.
    async fn add(&self, table: &TableState, addition: &Addition) -> Result<bool> {
        for step in addition.add.iter().chain(&addition.validate) {
            let made = self
                .builder
                .make_within(&table.source, step, LOCK_TIMEOUT_MS)
                .await;
            match made {
                Ok(true) => {}
                // Refused and remembered; the same rows would be refused again.
                Ok(false) => return Ok(true),
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

    async fn say_added(&self, table: &TableState, step: &Step) -> Result<()> {
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
    async fn sequences(&mut self, table: &TableState) -> Result<()> {
        let counts = (table.attempt, table.rows_inserted, table.rows_updated);
        if self.raised.get(&table.source) == Some(&counts) {
            return Ok(());
        }
        let objects = definition(table).and_then(|definition| definition.objects);
        // Where the source's stood when the table was read was heeded when it was loaded; a
        // TRUNCATE … RESTART IDENTITY may have set it back since.
        let following: Vec<SequenceDefinition> = objects
            .map(|objects| objects.sequences)
            .unwrap_or_default()
            .into_iter()
            .filter(|sequence| sequence.role != SequenceRole::Used)
            .map(|sequence| SequenceDefinition {
                last_value: None,
                ..sequence
            })
            .collect();
        if !following.is_empty() {
            let session = self.builder.open().await?;
            let raised =
                sequences::raise(&session, &self.run, &table.destination, &following).await;
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

/// The source's definition at the table's sync, if it has one that can be read.
fn definition(table: &TableState) -> Option<TableDefinition> {
    serde_json::from_value(table.definition.clone()?).ok()
}
