//! Records of the change topic to events, by a plan per schema.

use std::collections::HashMap;
use std::sync::Arc;

use bunny_schemas::Position;
use bunny_schemas::control::{GenerationStarted, SchemaKind, TableGap};
use bunny_schemas::envelope::{Decoder, Op, Scratch, Source};
use foldhash::fast::RandomState;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::event::{Body, Change, Event, RowBuilder, TableVersion};
use crate::routes::{Route, Routes};

/// A record, understood.
#[derive(Debug)]
pub(super) enum Record {
    Event { generation: Uuid, event: Event },
    Generation(GenerationStarted),
}

enum Plan {
    Envelope {
        decoder: Box<Decoder>,
        version: Arc<TableVersion>,
        /// Routes are fixed, so that of the table is looked up once.
        route: Option<Route>,
    },
    Gap,
    Generation,
}

pub(super) struct Decoding {
    routes: Arc<Routes>,
    /// By schema id.
    plans: HashMap<u32, Plan, RandomState>,
    scratch: Scratch,
    rows: RowBuilder,
}

impl Decoding {
    pub(super) fn new(routes: Arc<Routes>) -> Decoding {
        Decoding {
            routes,
            plans: HashMap::default(),
            scratch: Scratch::default(),
            rows: RowBuilder::default(),
        }
    }

    pub(super) fn knows(&self, schema_id: u32) -> bool {
        self.plans.contains_key(&schema_id)
    }

    pub(super) fn learn(&mut self, schema_id: u32, schema_json: &str) -> Result<()> {
        let plan = match SchemaKind::of(schema_json)? {
            SchemaKind::Envelope => {
                let decoder = Decoder::new(schema_json)?;
                let version = Arc::new(TableVersion {
                    schema_id,
                    source: decoder.table().clone(),
                    columns: decoder.columns().to_vec(),
                });
                Plan::Envelope {
                    route: self.routes.get(decoder.table()).cloned(),
                    decoder: Box::new(decoder),
                    version,
                }
            }
            SchemaKind::TableGap => Plan::Gap,
            SchemaKind::GenerationStarted => Plan::Generation,
            other => {
                return Err(Error::Inconsistent(format!(
                    "the change topic holds a record of kind {other:?} (schema id {schema_id}): something else writes to it"
                )));
            }
        };
        self.plans.insert(schema_id, plan);
        Ok(())
    }

    /// `datum` is the message after its frame; its schema is known.
    pub(super) fn decode(&mut self, schema_id: u32, datum: &[u8], offset: i64) -> Result<Record> {
        match self.plans.get(&schema_id) {
            Some(Plan::Envelope {
                decoder,
                version,
                route,
            }) => {
                let decoded = decoder.decode_with(&mut self.scratch, datum)?;
                let source = decoded.source;
                let body = match (&decoded.truncate, decoded.op) {
                    (Some(truncate), _) => {
                        let applies =
                            |table: &&_| self.routes.applies(table, source.commit_lsn, offset);
                        let tables: Vec<_> =
                            truncate.tables.iter().filter(applies).cloned().collect();
                        let restart_identity = truncate.restart_identity;
                        if tables.is_empty() {
                            Body::Skip
                        } else {
                            Body::Truncate {
                                tables,
                                restart_identity,
                            }
                        }
                    }
                    (None, Op::Truncate) => {
                        return Err(malformed(offset, "a truncate that lists no tables"));
                    }
                    _ if !route
                        .as_ref()
                        .is_some_and(|route| route.applies(source.commit_lsn, offset)) =>
                    {
                        Body::Skip
                    }
                    _ => {
                        let change =
                            Change::from_decoded(&decoded, &mut self.rows).ok_or_else(|| {
                                malformed(offset, "a change without the row it is about")
                            })?;
                        Body::Change {
                            version: version.clone(),
                            change,
                        }
                    }
                };
                let last = decoded.last;
                self.scratch.recycle(decoded);
                Ok(event(&source, last, body, offset))
            }
            Some(Plan::Gap) => {
                let gap = TableGap::decode(datum)?;
                let table = bunny_postgres::TableName {
                    schema: gap.source.schema.to_owned(),
                    name: gap.source.table.to_owned(),
                };
                let body = if self.routes.applies(&table, gap.source.commit_lsn, offset) {
                    let reason = gap.reason.to_owned();
                    Body::Gap { table, reason }
                } else {
                    Body::Skip
                };
                Ok(event(&gap.source, gap.last, body, offset))
            }
            Some(Plan::Generation) => Ok(Record::Generation(GenerationStarted::decode(datum)?)),
            None => Err(malformed(offset, "a record whose schema was not looked up")),
        }
    }
}

fn event(source: &Source<'_>, last: bool, body: Body, offset: i64) -> Record {
    Record::Event {
        generation: source.generation,
        event: Event {
            offset,
            position: Position {
                commit_lsn: source.commit_lsn,
                seq: source.seq,
            },
            commit_ts_us: source.commit_ts_us,
            last,
            body,
        },
    }
}

fn malformed(offset: i64, what: &str) -> Error {
    Error::Inconsistent(format!("the change topic holds at offset {offset} {what}"))
}
