//! One destination with tables, and what the tests write there.

use std::sync::Arc;

use bunny_apply::Error;
use bunny_apply::batch::{Assembler, Limits, Part};
use bunny_apply::bookkeeping::{self, Epoch, Progress, State, TableState};
use bunny_apply::event::{Before, Body, Change, Event, Row, TableVersion};
use bunny_apply::routes::Routes;
use bunny_apply::writer::{Policy, Writer};
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use bunny_schemas::envelope::ColumnSchema;
use uuid::Uuid;

use crate::support::destination;

/// One mirror's destination.
pub struct Stage {
    pub session: Session,
    pub schema: String,
    pub mirror_id: Uuid,
    pub epoch: Epoch,
    pub tables: Vec<TableState>,
    pub has_initial_snapshot: bool,
    /// What the latest changes met: kind and rows, of all tables.
    pub drifted: Vec<(&'static str, u64)>,
    pub next_offset: i64,
    pub position: Position,
}

impl Stage {
    /// `ddl` creates the tables; `{s}` in it is the schema. `tables` with their primary keys.
    pub async fn new(ddl: &str, tables: &[(&str, &[&str])]) -> Stage {
        let session = Session::connect(&destination(), "bunny writer test")
            .await
            .unwrap();
        bookkeeping::install(&session).await.unwrap();
        let mirror_id = Uuid::new_v4();
        let schema = format!("writer {}", &mirror_id.simple().to_string()[..8]);
        let quoted = format!("\"{schema}\"");
        session
            .batch_execute(&format!(
                "CREATE SCHEMA {quoted}; {}",
                ddl.replace("{s}", &quoted)
            ))
            .await
            .unwrap();
        session
            .execute(
                "INSERT INTO _bunny.owner VALUES ($1, 'm', 7)",
                &[&mirror_id],
            )
            .await
            .unwrap();
        let mut states = Vec::new();
        for (name, primary_key) in tables {
            let state = TableState {
                state: State::Live,
                lsn: Some(Lsn(0)),
                in_main: true,
                definition: Some(serde_json::json!({ "primary_key": primary_key })),
                ..TableState::wanted(
                    TableName::new("public", *name),
                    TableName::new(schema.as_str(), *name),
                    None,
                )
            };
            bookkeeping::put_table(&*session, mirror_id, &state)
                .await
                .unwrap();
            states.push(state);
        }
        Stage {
            session,
            schema,
            mirror_id,
            epoch: Epoch(7),
            tables: states,
            has_initial_snapshot: true,
            drifted: Vec::new(),
            next_offset: 0,
            position: Position::default(),
        }
    }

    pub async fn writer(&self) -> Writer {
        let session = Session::connect(&destination(), "bunny writer test")
            .await
            .unwrap();
        Writer::new(
            session,
            self.mirror_id,
            self.epoch,
            Arc::new(Routes::of(&self.tables)),
            Policy {
                has_initial_snapshot: self.has_initial_snapshot,
                creates_tables: !self.has_initial_snapshot,
                schema_changes: bunny_catalog::SchemaChanges::Additive,
            },
        )
        .await
        .unwrap()
    }

    /// Bodies as the events of one source transaction.
    pub fn transaction(&mut self, bodies: Vec<Body>) -> Vec<Event> {
        let commit_lsn = Lsn(self.position.commit_lsn.0 + 1);
        let count = bodies.len() as u64;
        let events = (1..)
            .zip(bodies)
            .map(|(seq, body)| {
                self.position = Position { commit_lsn, seq };
                self.next_offset += 1;
                Event {
                    offset: self.next_offset - 1,
                    position: self.position,
                    commit_ts_us: 0,
                    last: seq == count,
                    body,
                }
            })
            .collect();
        self.next_offset += 1;
        events
    }

    /// Writes transactions in batches of so many changes, as the applier does.
    pub async fn apply(
        &mut self,
        transactions: Vec<Vec<Body>>,
        changes_max: usize,
    ) -> Result<(), Error> {
        let mut writer = self.writer().await;
        for part in self.parts(transactions, changes_max) {
            if !writer.is_open() {
                writer.begin(part.first_offset).await?;
            }
            writer.write(&part).await?;
            if part.complete {
                commit(&mut writer, &part).await?;
            }
        }
        let drifted = writer.drifted().into_iter();
        self.drifted = drifted.map(|(_, kind, rows)| (kind, rows)).collect();
        Ok(())
    }

    /// The same in two sessions: while one has written a batch and not committed it, or has not
    /// even begun, the other prepares the next. Gives how many were prepared.
    pub async fn apply_ahead(
        &mut self,
        transactions: Vec<Vec<Body>>,
        changes_max: usize,
    ) -> Result<usize, Error> {
        let (mut writing, mut idle) = (self.writer().await, self.writer().await);
        let parts = self.parts(transactions, changes_max);
        let mut prepared = 0;
        for (index, part) in parts.iter().enumerate() {
            let next = parts.get(index + 1).filter(|_| part.complete);
            let is_early = index % 2 == 0;
            if let Some(next) = next.filter(|_| is_early) {
                prepared += usize::from(idle.prepare(next).await?);
            }
            if !writing.is_open() {
                writing.begin(part.first_offset).await?;
            }
            writing.write(part).await?;
            if let Some(next) = next.filter(|_| !is_early) {
                prepared += usize::from(idle.prepare(next).await?);
            }
            if !part.complete {
                continue;
            }
            commit(&mut writing, part).await?;
            if idle.is_outdated_by(&writing.met()) {
                idle = self.writer().await;
            }
            std::mem::swap(&mut writing, &mut idle);
        }
        Ok(prepared)
    }

    pub fn parts(&mut self, transactions: Vec<Vec<Body>>, changes_max: usize) -> Vec<Part> {
        let mut assembler = Assembler::new(Limits {
            changes_max,
            bytes_max: usize::MAX,
        });
        let mut parts: Vec<Part> = Vec::new();
        for bodies in transactions {
            for event in self.transaction(bodies) {
                parts.extend(assembler.push(event));
            }
        }
        parts.extend(assembler.flush());
        parts
    }

    pub async fn rows(&self, select: &str) -> Vec<String> {
        let quoted = format!("\"{}\"", self.schema);
        let rows = self
            .session
            .query(&select.replace("{s}", &quoted), &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect()
    }

    pub async fn execute(&self, sql: &str) {
        let quoted = format!("\"{}\"", self.schema);
        self.session
            .batch_execute(&sql.replace("{s}", &quoted))
            .await
            .unwrap();
    }

    pub async fn counts(&self, table: &str) -> (i64, i64, i64) {
        let state = bookkeeping::table(
            &*self.session,
            self.mirror_id,
            &TableName::new("public", table),
        )
        .await
        .unwrap()
        .unwrap();
        (state.rows_inserted, state.rows_updated, state.rows_deleted)
    }
}

pub async fn commit(writer: &mut Writer, part: &Part) -> Result<(), Error> {
    let progress = Progress {
        generation: Uuid::nil(),
        position: part.position,
        next_offset: part.next_offset,
    };
    writer.commit(&progress, &[]).await
}

pub fn version(schema_id: u32, table: &str, columns: &[(&str, bool)]) -> Arc<TableVersion> {
    let columns = (1..)
        .zip(columns)
        .map(|(attnum, (name, key))| ColumnSchema {
            name: (*name).to_owned(),
            attnum,
            type_oid: 25,
            type_name: "text".to_owned(),
            typmod: -1,
            not_null: *key,
            key: *key,
            facts: None,
        });
    Arc::new(TableVersion {
        schema_id,
        source: TableName::new("public", table),
        columns: columns.collect(),
    })
}

pub fn row(cells: &[Option<&str>]) -> Row {
    Row::from_values(cells.iter().map(|cell| cell.map(str::as_bytes)))
}

pub fn some(cells: &[&str]) -> Row {
    Row::from_values(cells.iter().map(|cell| Some(cell.as_bytes())))
}

pub fn body(version: &Arc<TableVersion>, change: Change) -> Body {
    Body::Change {
        version: version.clone(),
        change,
    }
}

pub const KEYED: &str = r#"
CREATE TABLE {s}.keyed (
    "ID" int PRIMARY KEY,
    code text NOT NULL UNIQUE,
    amount numeric(12,3),
    big text,
    doubled int GENERATED ALWAYS AS ("ID" * 2) STORED
);"#;

pub fn keyed() -> Arc<TableVersion> {
    let columns = [
        ("ID", true),
        ("code", false),
        ("amount", false),
        ("big", false),
    ];
    version(1, "keyed", &columns)
}

pub fn old_key(id: u64) -> Before {
    Before::Key(row(&[Some(&id.to_string()), None, None, None]))
}
