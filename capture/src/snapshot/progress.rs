//! How far the tables of a round are, for the status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bunny_postgres::TableName;
use uuid::Uuid;

use super::trouble::Cause;

/// Progress of one table's sync.
#[derive(Debug, Clone, PartialEq)]
pub struct TableProgress {
    pub request_id: Uuid,
    pub attempt: i32,
    pub source: TableName,
    /// Chunks whose parts Kafka has acknowledged.
    pub chunks_done: u64,
    /// Known once the table is planned.
    pub chunks_total: Option<u64>,
    pub rows_done: u64,
    /// From a sample of the table's pages; 0 before the plan.
    pub rows_estimate: u64,
    /// Bytes of COPY text.
    pub bytes_done: u64,
    /// True when updates and deletes of the table cannot be replicated (no identity).
    pub insert_only: bool,
    /// What holds the table up, in words; None while it moves.
    pub waiting_for: Option<String>,
    /// `TableSyncFinished` is recorded.
    pub finished: bool,
    /// Why the table did not finish in this round.
    pub failure: Option<Cause>,
}

#[derive(Debug, Default)]
struct Board {
    tables: BTreeMap<Uuid, TableProgress>,
    waiting_for: Option<String>,
}

/// Shared by the round, which writes, and the mirror's reporter, which reads. Cheap to
/// clone; may outlive the round and serve the next one.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    board: Arc<Mutex<Board>>,
}

impl Progress {
    /// The tables of the present round and what they have reached.
    pub fn tables(&self) -> Vec<TableProgress> {
        self.lock().tables.values().cloned().collect()
    }

    /// What the whole round waits for: a snapshot can only be taken when the transactions
    /// older than it have ended.
    pub fn waiting_for(&self) -> Option<String> {
        self.lock().waiting_for.clone()
    }

    /// Begins a round: its tables replace what stood here.
    pub(super) fn begin(&self, tables: impl Iterator<Item = (Uuid, i32, TableName)>) {
        let mut board = self.lock();
        board.waiting_for = None;
        board.tables = tables
            .map(|(request_id, attempt, source)| {
                let table = TableProgress {
                    request_id,
                    attempt,
                    source,
                    chunks_done: 0,
                    chunks_total: None,
                    rows_done: 0,
                    rows_estimate: 0,
                    bytes_done: 0,
                    insert_only: false,
                    waiting_for: None,
                    finished: false,
                    failure: None,
                };
                (request_id, table)
            })
            .collect();
    }

    pub(super) fn round_waits_for(&self, reason: Option<String>) {
        self.lock().waiting_for = reason;
    }

    pub(super) fn update(&self, request_id: Uuid, change: impl FnOnce(&mut TableProgress)) {
        if let Some(table) = self.lock().tables.get_mut(&request_id) {
            change(table);
        }
    }

    /// A panic elsewhere leaves numbers that are still fit to be shown.
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_round_replaces_the_former() {
        let progress = Progress::default();
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let name = TableName {
            schema: "public".into(),
            name: "t".into(),
        };
        progress.begin([(first, 1, name.clone())].into_iter());
        progress.update(first, |table| table.rows_done += 5);
        assert_eq!(progress.tables()[0].rows_done, 5);

        progress.begin([(second, 2, name)].into_iter());
        progress.update(first, |table| table.rows_done += 5);
        let tables = progress.tables();
        assert_eq!(tables.len(), 1);
        assert_eq!((tables[0].request_id, tables[0].rows_done), (second, 0));
    }
}
