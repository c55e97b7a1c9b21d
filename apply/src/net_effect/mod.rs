//! What remains of a batch: events in source order become steps, and the changes of
//! one table within a step fold to one effect per row. Pure: no I/O, no SQL.
//!
//! Order between tables does not matter (the destination checks no foreign keys in
//! replica role), order within a table does; a TRUNCATE is a barrier for the tables it
//! lists.

pub mod keyed;
pub mod multiset;

use std::collections::HashMap;
use std::sync::Arc;

use bunny_postgres::TableName;

use crate::bookkeeping::Counts;
use crate::event::{Body, Change, Event, TableVersion};

/// One unit of writing. Steps are done in order.
#[derive(Debug)]
pub enum Step<'a> {
    /// Changes of one version of one table, in source order, at least one.
    Rows {
        version: &'a Arc<TableVersion>,
        changes: Vec<&'a Change>,
    },
    Truncate {
        tables: &'a [TableName],
        restart_identity: bool,
    },
}

/// A table whose next change is not in the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    pub table: TableName,
    pub reason: String,
}

/// Groups the events of a batch into steps.
pub fn steps(events: &[Event]) -> Result<Vec<Step<'_>>, Gap> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    // The step that still takes changes of a table. By schema id too: another version
    // of the table has other columns, so it begins another step.
    let mut open: HashMap<&TableName, (u32, usize)> = HashMap::new();
    for event in events {
        match &event.body {
            Body::Change { version, change } => {
                let at = match open.get(&version.source) {
                    Some(&(schema_id, at)) if schema_id == version.schema_id => at,
                    _ => {
                        steps.push(Step::Rows {
                            version,
                            changes: Vec::new(),
                        });
                        open.insert(&version.source, (version.schema_id, steps.len() - 1));
                        steps.len() - 1
                    }
                };
                if let Step::Rows { changes, .. } = &mut steps[at] {
                    changes.push(change);
                }
            }
            Body::Truncate {
                tables,
                restart_identity,
            } => {
                for table in tables {
                    open.remove(table);
                }
                steps.push(Step::Truncate {
                    tables,
                    restart_identity: *restart_identity,
                });
            }
            Body::Gap { table, reason } => {
                return Err(Gap {
                    table: table.clone(),
                    reason: reason.clone(),
                });
            }
            Body::Skip => {}
        }
    }
    Ok(steps)
}

/// Cuts steps where a table's rows go on in another version, so that each run holds one
/// version of each table: between two runs a destination table may have to be altered.
pub fn by_version<'s, 'a>(steps: &'s [Step<'a>]) -> Vec<&'s [Step<'a>]> {
    let mut runs = Vec::new();
    let mut versions: HashMap<&TableName, u32> = HashMap::new();
    let mut start = 0;
    for (at, step) in steps.iter().enumerate() {
        let Step::Rows { version, .. } = step else {
            continue;
        };
        let former = versions.insert(&version.source, version.schema_id);
        if former.is_some_and(|former| former != version.schema_id) {
            runs.push(&steps[start..at]);
            start = at;
            versions.clear();
            versions.insert(&version.source, version.schema_id);
        }
    }
    if start < steps.len() {
        runs.push(&steps[start..]);
    }
    runs
}

/// Source changes by kind, before any folding.
pub fn count(changes: &[&Change]) -> Counts {
    let mut counts = Counts::default();
    for change in changes {
        match change {
            Change::Insert(_) => counts.inserted += 1,
            Change::Update { .. } => counts.updated += 1,
            Change::Delete(_) => counts.deleted += 1,
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Row;
    use bunny_schemas::Position;

    fn name(name: &str) -> TableName {
        TableName {
            schema: "public".into(),
            name: name.into(),
        }
    }

    fn version(table: &str, schema_id: u32) -> Arc<TableVersion> {
        Arc::new(TableVersion {
            schema_id,
            source: name(table),
            columns: Vec::new(),
        })
    }

    fn event(body: Body) -> Event {
        Event {
            offset: 0,
            position: Position::default(),
            commit_ts_us: 0,
            last: false,
            body,
        }
    }

    fn insert(version: &Arc<TableVersion>) -> Event {
        event(Body::Change {
            version: version.clone(),
            change: Change::Insert(Row::from_values([Some(&b"1"[..])])),
        })
    }

    fn shape(events: &[Event]) -> Vec<String> {
        steps(events)
            .unwrap()
            .iter()
            .map(|step| match step {
                Step::Rows { version, changes } => {
                    format!(
                        "{}@{}x{}",
                        version.source.name,
                        version.schema_id,
                        changes.len()
                    )
                }
                Step::Truncate { tables, .. } => format!("truncate {}", tables.len()),
            })
            .collect()
    }

    #[test]
    fn tables_gather_across_each_other() {
        let (a, b) = (version("a", 1), version("b", 2));
        assert_eq!(
            shape(&[insert(&a), insert(&b), insert(&a)]),
            ["a@1x2", "b@2x1"]
        );
    }

    #[test]
    fn a_new_version_begins_a_new_step() {
        let (one, two) = (version("a", 1), version("a", 2));
        assert_eq!(
            shape(&[insert(&one), insert(&two), insert(&two)]),
            ["a@1x1", "a@2x2"]
        );
    }

    #[test]
    fn a_run_holds_one_version_of_each_table() {
        let (one, two, b) = (version("a", 1), version("a", 2), version("b", 3));
        let events = [
            insert(&one),
            insert(&b),
            insert(&two),
            insert(&b),
            insert(&one),
        ];
        let steps = steps(&events).unwrap();
        let sizes: Vec<usize> = by_version(&steps).iter().map(|run| run.len()).collect();
        // b's second row joined its first, before a's second version.
        assert_eq!(sizes, [2, 1, 1]);
        assert!(by_version(&[]).is_empty());
    }

    #[test]
    fn truncate_is_a_barrier_for_the_tables_it_lists() {
        let (a, b) = (version("a", 1), version("b", 2));
        let truncate = event(Body::Truncate {
            tables: vec![name("a")],
            restart_identity: false,
        });
        assert_eq!(
            shape(&[insert(&a), insert(&b), truncate, insert(&a), insert(&b)]),
            ["a@1x1", "b@2x2", "truncate 1", "a@1x1"]
        );
    }

    #[test]
    fn a_gap_is_never_stepped_over() {
        let a = version("a", 1);
        let gap = event(Body::Gap {
            table: name("a"),
            reason: "too large".into(),
        });
        assert_eq!(steps(&[insert(&a), gap]).unwrap_err().table, name("a"));
    }
}
