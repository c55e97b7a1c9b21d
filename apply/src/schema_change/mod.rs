//! Follows the source's table definitions on the live stream.
//!
//! Every change event names the version of its table (its value schema). When main meets a
//! version for the first time, the destination table is brought in line before the first row
//! of it is written: in the same destination transaction, fenced like every other, after all
//! rows of former versions (a batch is cut there). So rows, alterations, the new shape
//! (`shape`) and progress commit together, and a crash anywhere leaves none of them. Only a
//! new enum label needs a transaction of its own before that (`labels`), for Postgres lets
//! nobody use a label in the transaction that adds it.
//!
//! `plan` says what is to be done and what the mirror's `schema_changes` forbids; a table
//! that cannot go on without silent differences is refused, and set aside by the run.
//! docs/invariants.md holds the state machine.

pub(crate) mod destination;
mod doubt;
pub(crate) mod labels;
pub(crate) mod plan;
pub(crate) mod planner;
pub(crate) mod run;
pub(crate) mod shape;
pub(crate) mod types;

use std::collections::HashMap;

use bunny_catalog::{LogLevel, SchemaChanges};
use bunny_postgres::{TableName, quote_ident};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::bookkeeping::{self, TableState};
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::{Error, Result};
use crate::event::TableVersion;
use crate::writer::of_table;

use destination::PresentTable;
use plan::{Alteration, Refusal, Wanted};
use shape::{Known, Shape};

/// Something the mirror's log is to say, once it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub table: TableName,
    pub what: Word,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A statement that was run at the destination.
    Ran(String),
    /// What was not done, and what to do.
    Notice(String),
}

/// Where the values of a version's columns go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// For each column of the version, the destination's; None: its values are left out.
    pub(crate) into: Vec<Option<String>>,
    /// Indexes among the version's columns of the source's primary key, where the version
    /// says which it is.
    pub(crate) primary_key: Option<Vec<usize>>,
}

/// Brings destination tables in line with the versions of one stream.
pub(crate) struct Follower {
    mirror_id: Uuid,
    mode: SchemaChanges,
    /// As stored, or as the table's sync left it.
    shapes: HashMap<TableName, Shape>,
    /// To be run at the end of the open transaction.
    constraints: Vec<(TableName, Vec<Alteration>)>,
    said: Vec<Said>,
}

impl Said {
    /// Says it in the mirror's log.
    pub(crate) fn log(&self, run: &MirrorRun) {
        let table = &self.table;
        let (level, message) = match &self.what {
            Word::Ran(statement) => (
                LogLevel::Info,
                format!("schema of table {table} followed: {statement}"),
            ),
            Word::Notice(notice) => (LogLevel::Warn, format!("schema of table {table}: {notice}")),
        };
        tracing::info!(mirror = %run.mirror.name, %table, "{message}");
        run.reporter.log(
            level,
            message,
            serde_json::json!({"table": table.to_string()}),
        );
    }
}

impl Follower {
    pub(crate) fn new(mirror_id: Uuid, mode: SchemaChanges) -> Follower {
        Follower {
            mirror_id,
            mode,
            shapes: HashMap::new(),
            constraints: Vec::new(),
            said: Vec::new(),
        }
    }

    /// What is to be said about the transaction that was just committed.
    pub(crate) fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// Runs what waits for the end of the open transaction.
    pub(crate) async fn finish(&mut self, client: &Client) -> Result<()> {
        for (table, constraints) in std::mem::take(&mut self.constraints) {
            let words = run::alterations(client, &constraints).await;
            let words = words.map_err(|failed| of_table(&table, failed.of(&table)))?;
            self.say(&table, words);
        }
        Ok(())
    }

    /// Makes the destination ready for rows of `version`, in the open transaction.
    pub(crate) async fn follow(
        &mut self,
        client: &Client,
        version: &TableVersion,
        destination: &TableName,
    ) -> Result<Fit> {
        let state = bookkeeping::table(client, self.mirror_id, &version.source)
            .await?
            .ok_or_else(|| {
                Error::Inconsistent(format!(
                    "table {} has changes to write, but no row in _bunny.tables",
                    version.source
                ))
            })?;
        let known = match self.shapes.get(&version.source) {
            Some(shape) => Some(shape.clone()),
            None => shape::load(client, self.mirror_id, &state)
                .await?
                .or_else(|| Shape::of_sync(&state)),
        };
        let mut shape = match known {
            Some(known) if plan::is_known(&known, version) => known,
            Some(known) => {
                self.bring_in_line(client, &state, known, version, destination)
                    .await?
            }
            None => {
                let shape = self.first(client, version, destination).await?;
                shape::store(client, self.mirror_id, &state, &shape).await?;
                shape
            }
        };
        let enums = labels::of(version);
        if shape.enums != enums {
            let words = labels::follow(client, self.mode, version, &shape.enums, &enums).await?;
            self.say(&version.source, words);
            shape.enums = enums;
            shape::store(client, self.mirror_id, &state, &shape).await?;
        }
        let fit = Fit {
            into: version
                .columns
                .iter()
                .map(|column| shape.place_of(&column.name).map(str::to_owned))
                .collect(),
            primary_key: primary_key(version),
        };
        self.shapes.insert(version.source.clone(), shape);
        Ok(fit)
    }

    async fn bring_in_line(
        &mut self,
        client: &Client,
        state: &TableState,
        known: Shape,
        version: &TableVersion,
        destination: &TableName,
    ) -> Result<Shape> {
        let present = destination::look(client, destination).await?;
        let refused = |reason: String| Error::Table {
            table: version.source.clone(),
            reason,
            restart_offset: None,
        };
        if present.columns.is_empty() {
            return Err(refused(format!(
                "destination table {destination} does not exist"
            )));
        }
        let plan = planner::plan(Wanted {
            mode: self.mode,
            known: &known,
            version,
            destination,
            present: &present,
        })
        .map_err(|Refusal(reason)| refused(reason))?;
        if !plan.alterations.is_empty() {
            labels::create_types(client, version, &known).await?;
        }
        let mut words = run::alterations(client, &plan.alterations)
            .await
            .map_err(|failed| failed.of(&version.source))?;
        words.extend(plan.notices.into_iter().map(Word::Notice));
        let shape = Shape {
            enums: known.enums,
            ..plan.shape
        };
        shape::store(client, self.mirror_id, state, &shape).await?;
        reached(crash_points::SCHEMA_CHANGED);
        self.say(&version.source, words);
        if !plan.constraints.is_empty() {
            self.constraints
                .push((version.source.clone(), plan.constraints));
        }
        Ok(shape)
    }

    /// A table that no sync has brought: its columns go where they are found by name.
    async fn first(
        &mut self,
        client: &Client,
        version: &TableVersion,
        destination: &TableName,
    ) -> Result<Shape> {
        let present = destination::look(client, destination).await?;
        let lacks = lacking(version, &present);
        if !lacks.is_empty() {
            if self.mode != SchemaChanges::Manual || present.columns.is_empty() {
                return Err(Error::Table {
                    table: version.source.clone(),
                    reason: if present.columns.is_empty() {
                        format!("destination table {destination} does not exist")
                    } else {
                        format!(
                            "destination table {destination} lacks the columns {}; add them there, then sync the table again",
                            lacks.join(", ")
                        )
                    },
                    restart_offset: None,
                });
            }
            let notice = format!(
                "{destination} lacks the columns {}; \"schema_changes\" is \"manual\", so the table goes on without them",
                lacks.join(", ")
            );
            self.say(&version.source, [Word::Notice(notice)]);
        }
        let columns = version.columns.iter().map(|column| Known {
            into: present.column(&column.name).map(|there| there.name.clone()),
            ..plan::first_seen(column)
        });
        Ok(Shape {
            columns: columns.collect(),
            primary_key: plan::primary_key(version),
            ..Shape::default()
        })
    }

    fn say(&mut self, table: &TableName, words: impl IntoIterator<Item = Word>) {
        self.said.extend(words.into_iter().map(|what| Said {
            table: table.clone(),
            what,
        }));
    }
}

fn lacking(version: &TableVersion, present: &PresentTable) -> Vec<String> {
    version
        .columns
        .iter()
        .filter(|column| present.column(&column.name).is_none())
        .map(|column| quote_ident(&column.name))
        .collect()
}

/// The primary key of a version, as indexes; None where it does not say.
fn primary_key(version: &TableVersion) -> Option<Vec<usize>> {
    let key = plan::primary_key(version)?;
    key.iter()
        .map(|attnum| {
            let columns = &version.columns;
            columns.iter().position(|column| column.attnum == *attnum)
        })
        .collect()
}
