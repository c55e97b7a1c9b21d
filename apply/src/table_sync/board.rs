//! What the loader knows about every table sync it wants, as plain values.
//!
//! The snapshot topic has several partitions that are read side by side, so the
//! parts of a sync, its announcement and its end are met in any order between
//! partitions. The board is the one place where they are matched, always by
//! `(request_id, attempt, chunk)` and never by adjacency. It does no I/O: the
//! loader asks it what an event means, does it, and tells it what was committed.
//!
//! Rules it keeps:
//! - a sync counts only after its start was committed at the destination
//!   (emptied table, forgotten chunks of lower attempts); until then its chunks wait;
//! - a higher attempt voids the lower ones from the moment it is announced, and is
//!   prepared only after every open chunk of theirs has been rolled back;
//! - a chunk is open in at most one partition and is recorded once;
//! - a table is loaded when its end is known, every chunk of that attempt is
//!   recorded and their rows add up to what the end says.

use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::TableName;
use bunny_schemas::Position;
use uuid::Uuid;

/// One attempt at copying one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SyncId {
    /// The sync that was asked for; kept over all its attempts.
    pub(super) request_id: Uuid,
    /// Counts from 1; a higher attempt voids the lower ones.
    pub(super) attempt: i32,
}

/// A table this destination waits for, as its `_bunny.tables` row says.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) request_id: Uuid,
    /// The table's name at the source.
    pub(super) table: TableName,
    /// The attempt whose start is already committed here and the rows of each of its
    /// chunks that are; `None` before the first start.
    pub(super) loading: Option<(i32, BTreeMap<i32, i64>)>,
}

/// What a sync is to this destination right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Asked for by somebody else.
    Unwanted,
    /// Replaced by a higher attempt, or its table is already loaded or has failed.
    Void,
    /// Its start was not met yet, or is being prepared: its chunks must wait.
    Unknown,
    /// Its chunks are to be loaded.
    Loading,
}

/// What to do with the start of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announcement {
    /// Not ours, void, or already prepared.
    Ignore,
    /// Open chunks of lower attempts were told to stop; prepare once none is left.
    Prepare,
}

/// Whether a partition may load a chunk now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is loaded, or its sync doesn't count.
    Skip,
    /// The sync is not prepared, or another partition still has the chunk open
    /// (it was told to stop): ask again when the board has changed.
    Wait,
    /// The chunk is the caller's until it releases it.
    Granted,
}

/// What the end of a sync says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Chunks are numbered from 0 to `chunks - 1`.
    pub chunks: i32,
    pub rows: i64,
    /// The table is as new as main once main has applied this.
    pub live: Position,
}

/// How a table left the loader's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All chunks are committed.
    Loaded(Announced),
    /// The table can't be loaded; the text is for the user.
    Failed(String),
}

#[derive(Debug)]
enum Phase {
    /// No start met yet.
    Awaiting,
    /// The start is being made true at the destination.
    Preparing(i32),
    Loading(i32),
    /// Decided, and about to be stored at the destination.
    Settling(Outcome),
    Settled(Outcome),
}

#[derive(Debug)]
struct OpenChunk {
    sync: SyncId,
    chunk: i32,
    partition: i32,
    revoked: bool,
}

#[derive(Debug)]
struct Entry {
    table: TableName,
    phase: Phase,
    /// Attempts up to this one are void whatever their start says.
    void_through: i32,
    /// Attempts of another generation, met among the starts.
    unusable: BTreeSet<i32>,
    /// Rows by chunk, of the attempt in `Loading`.
    chunks: BTreeMap<i32, i64>,
    announced: Option<Announced>,
}

/// How far one table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProgress {
    /// The table's name at the source.
    pub table: TableName,
    pub request_id: Uuid,
    pub chunks_done: i32,
    /// Known once the end of the sync was met.
    pub chunks_total: Option<i32>,
    pub rows_done: i64,
    /// How it ended, once that is stored.
    pub outcome: Option<Outcome>,
    /// Whether a start was met.
    pub started: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct SyncBoard {
    entries: BTreeMap<Uuid, Entry>,
    open: Vec<OpenChunk>,
    revision: u64,
}

impl SyncBoard {
    /// Chunks recorded and tables settled: it changes when a load gets on.
    pub(super) fn done(&self) -> (usize, usize) {
        let chunks = self.entries.values().map(|entry| entry.chunks.len()).sum();
        let is_settled = |entry: &&Entry| matches!(entry.phase, Phase::Settled(_));
        (chunks, self.entries.values().filter(is_settled).count())
    }

    pub(super) fn new(wanted: impl IntoIterator<Item = Wanted>) -> Self {
        let entries = wanted
            .into_iter()
            .map(|table| {
                let (phase, void_through, chunks) = match table.loading {
                    Some((attempt, chunks)) => (Phase::Loading(attempt), attempt - 1, chunks),
                    None => (Phase::Awaiting, 0, BTreeMap::new()),
                };
                let entry = Entry {
                    table: table.table,
                    phase,
                    void_through,
                    unusable: BTreeSet::new(),
                    chunks,
                    announced: None,
                };
                (table.request_id, entry)
            })
            .collect();
        SyncBoard {
            entries,
            open: Vec::new(),
            revision: 0,
        }
    }

    /// Rises whenever something changed that a waiting partition may wait for.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// What `sync` is to this destination now.
    pub(super) fn standing(&self, sync: &SyncId) -> Standing {
        let Some(entry) = self.entries.get(&sync.request_id) else {
            return Standing::Unwanted;
        };
        if sync.attempt <= entry.void_through || entry.unusable.contains(&sync.attempt) {
            return Standing::Void;
        }
        match entry.phase {
            Phase::Awaiting | Phase::Preparing(_) => Standing::Unknown,
            Phase::Loading(attempt) if attempt == sync.attempt => Standing::Loading,
            Phase::Loading(_) => Standing::Unknown,
            Phase::Settling(_) | Phase::Settled(_) => Standing::Void,
        }
    }

    /// Whether nothing of the sync will ever count, and the destination already says so:
    /// a higher attempt's start is committed there, or the table's failure is.
    pub(super) fn came_to_nothing(&self, sync: &SyncId) -> bool {
        let Some(entry) = self.entries.get(&sync.request_id) else {
            return false;
        };
        match entry.phase {
            Phase::Awaiting | Phase::Preparing(_) | Phase::Settling(_) => false,
            Phase::Loading(_) | Phase::Settled(Outcome::Loaded(_)) => {
                sync.attempt <= entry.void_through
            }
            Phase::Settled(Outcome::Failed(_)) => true,
        }
    }

    /// The start of a sync was met. `usable` is false when it belongs to another
    /// generation: the sync is void then, so that its chunks are not waited for.
    pub(super) fn announce(&mut self, sync: &SyncId, usable: bool) -> Announcement {
        if self.standing(sync) != Standing::Unknown {
            return Announcement::Ignore;
        }
        let Some(entry) = self.entries.get_mut(&sync.request_id) else {
            return Announcement::Ignore;
        };
        if !usable {
            entry.unusable.insert(sync.attempt);
            self.revision += 1;
            return Announcement::Ignore;
        }
        if matches!(entry.phase, Phase::Preparing(attempt) if attempt == sync.attempt) {
            return Announcement::Prepare;
        }
        entry.phase = Phase::Preparing(sync.attempt);
        entry.void_through = sync.attempt - 1;
        entry.chunks.clear();
        entry.announced = None;
        for open in &mut self.open {
            if open.sync.request_id == sync.request_id {
                open.revoked = true;
            }
        }
        self.revision += 1;
        Announcement::Prepare
    }

    /// Whether some partition still has a chunk of the request open.
    pub(super) fn has_open_chunks(&self, request_id: Uuid) -> bool {
        self.open
            .iter()
            .any(|open| open.sync.request_id == request_id)
    }

    /// The start of `sync` is committed at the destination.
    pub(super) fn prepared(&mut self, sync: &SyncId) {
        let Some(entry) = self.entries.get_mut(&sync.request_id) else {
            return;
        };
        if matches!(entry.phase, Phase::Preparing(attempt) if attempt == sync.attempt) {
            entry.phase = Phase::Loading(sync.attempt);
            self.revision += 1;
        }
    }

    /// Asks for a chunk on behalf of a partition.
    pub(super) fn claim(&mut self, sync: SyncId, chunk: i32, partition: i32) -> Claim {
        match self.standing(&sync) {
            Standing::Unwanted | Standing::Void => return Claim::Skip,
            Standing::Unknown => return Claim::Wait,
            Standing::Loading => {}
        }
        if self.is_recorded(&sync, chunk) {
            return Claim::Skip;
        }
        let mut is_open = false;
        for open in &mut self.open {
            if open.sync == sync && open.chunk == chunk {
                // Written again, so the former copy of it was given up by its writer.
                if !open.revoked {
                    open.revoked = true;
                    self.revision += 1;
                }
                is_open = true;
            }
        }
        if is_open {
            return Claim::Wait;
        }
        self.open.push(OpenChunk {
            sync,
            chunk,
            partition,
            revoked: false,
        });
        Claim::Granted
    }

    /// The source table of a request.
    pub(super) fn table(&self, request_id: Uuid) -> Option<TableName> {
        self.entries
            .get(&request_id)
            .map(|entry| entry.table.clone())
    }

    /// Whether the chunk is committed.
    pub(super) fn is_recorded(&self, sync: &SyncId, chunk: i32) -> bool {
        self.standing(sync) == Standing::Loading
            && self
                .entries
                .get(&sync.request_id)
                .is_some_and(|entry| entry.chunks.contains_key(&chunk))
    }

    /// Whether the open chunk of a partition may still be committed.
    pub(super) fn holds(&self, sync: &SyncId, chunk: i32, partition: i32) -> bool {
        self.standing(sync) == Standing::Loading
            && self.open.iter().any(|open| {
                open.sync == *sync
                    && open.chunk == chunk
                    && open.partition == partition
                    && !open.revoked
            })
    }

    /// The partition has no transaction open any more, committed or rolled back.
    pub(super) fn release(&mut self, partition: i32) {
        self.open.retain(|open| open.partition != partition);
        self.revision += 1;
    }

    /// A chunk was committed. Returns how the table ended, if that was what it waited for;
    /// the caller stores it and then calls [`SyncBoard::settled`].
    pub(super) fn record(&mut self, sync: &SyncId, chunk: i32, rows: i64) -> Option<Outcome> {
        if self.standing(sync) != Standing::Loading {
            return None;
        }
        let entry = self.entries.get_mut(&sync.request_id)?;
        entry.chunks.insert(chunk, rows);
        self.revision += 1;
        entry.conclude()
    }

    /// The end of a sync was met. Returns as [`SyncBoard::record`] does.
    pub(super) fn finish(&mut self, sync: &SyncId, announced: Announced) -> Option<Outcome> {
        if self.standing(sync) != Standing::Loading {
            return None;
        }
        let entry = self.entries.get_mut(&sync.request_id)?;
        entry.announced = Some(announced);
        self.revision += 1;
        entry.conclude()
    }

    /// The table can't be loaded, as this attempt showed. Returns whether that is news: the
    /// first reason is the one that is stored, and a void attempt's is of no interest.
    pub(super) fn fail(&mut self, sync: &SyncId, reason: &str) -> bool {
        let Some(entry) = self.entries.get_mut(&sync.request_id) else {
            return false;
        };
        let is_current = match entry.phase {
            Phase::Preparing(attempt) | Phase::Loading(attempt) => attempt == sync.attempt,
            Phase::Awaiting | Phase::Settling(_) | Phase::Settled(_) => false,
        };
        if !is_current {
            return false;
        }
        entry.phase = Phase::Settling(Outcome::Failed(reason.to_owned()));
        self.revision += 1;
        for open in &mut self.open {
            if open.sync.request_id == sync.request_id {
                open.revoked = true;
            }
        }
        true
    }

    /// The source does not let the table be copied. True: the caller stores that, then says
    /// [`SyncBoard::settled`]. Not while a start is being made true, which would be stored
    /// over it; it is to be asked again.
    pub(super) fn refuse(&mut self, request_id: Uuid, reason: &str) -> bool {
        let Some(entry) = self.entries.get_mut(&request_id) else {
            return false;
        };
        if !matches!(entry.phase, Phase::Awaiting | Phase::Loading(_)) {
            return false;
        }
        entry.phase = Phase::Settling(Outcome::Failed(reason.to_owned()));
        self.revision += 1;
        for open in &mut self.open {
            if open.sync.request_id == request_id {
                open.revoked = true;
            }
        }
        true
    }

    /// The outcome is stored at the destination.
    pub(super) fn settled(&mut self, request_id: Uuid) {
        let Some(entry) = self.entries.get_mut(&request_id) else {
            return;
        };
        if let Phase::Settling(outcome) = &entry.phase {
            entry.phase = Phase::Settled(outcome.clone());
            self.revision += 1;
        }
    }

    /// Whether nothing is left to load or to store.
    pub(super) fn all_settled(&self) -> bool {
        self.entries
            .values()
            .all(|entry| matches!(entry.phase, Phase::Settled(_)))
    }

    /// How far every table is, by request.
    pub(super) fn progress(&self) -> Vec<TableProgress> {
        self.entries
            .iter()
            .map(|(request_id, entry)| TableProgress {
                table: entry.table.clone(),
                request_id: *request_id,
                chunks_done: i32::try_from(entry.chunks.len()).unwrap_or(i32::MAX),
                chunks_total: entry.announced.map(|announced| announced.chunks),
                rows_done: entry.chunks.values().sum(),
                outcome: match &entry.phase {
                    Phase::Settled(outcome) => Some(outcome.clone()),
                    _ => None,
                },
                started: !matches!(entry.phase, Phase::Awaiting),
            })
            .collect()
    }
}

impl Entry {
    fn conclude(&mut self) -> Option<Outcome> {
        let announced = self.announced?;
        let recorded = self.chunks.len() as i64;
        if recorded < i64::from(announced.chunks) {
            return None;
        }
        let rows: i64 = self.chunks.values().sum();
        let numbered = self
            .chunks
            .keys()
            .all(|chunk| (0..announced.chunks).contains(chunk));
        let outcome = if numbered && rows == announced.rows {
            Outcome::Loaded(announced)
        } else {
            Outcome::Failed(format!(
                "the snapshot of {} does not add up: its end announces {} chunks with {} rows, \
                 {recorded} chunks with {rows} rows were loaded; ask for a new sync of the table",
                self.table, announced.chunks, announced.rows,
            ))
        };
        self.phase = Phase::Settling(outcome.clone());
        Some(outcome)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
