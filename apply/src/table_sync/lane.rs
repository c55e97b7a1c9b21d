//! What one partition of the snapshot topic does with each record, as plain decisions.
//!
//! While it writes a chunk, capture keeps a partition for it alone, so a live chunk's
//! parts follow each other there. A dead capture leaves a chunk without its last part,
//! and one that was frozen and thawed may write parts of void syncs in between:
//! - a part of a sync that doesn't count is passed over and disturbs nothing;
//! - a part of another chunk that counts takes the place of the open one, which was given
//!   up by its writer;
//! - a part whose sync is not known yet decides nothing until it is.
//!
//! The second rule can be wrong for a while: a thawed capture's sync counts until the
//! higher attempt's start is met, which may stand later in the topic. So a lane remembers
//! what was displaced by what. When the displacing sync comes to nothing while the
//! displaced chunk still counts, the topic is read again; by then the higher attempt is
//! committed at the destination, so this happens at most once for each attempt.

use super::board::{Announced, Announcement, Claim, Standing, SyncBoard, SyncId};

/// The part of a record that decisions are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A sync begins. `usable` is false when it belongs to another generation.
    Started {
        sync: SyncId,
        usable: bool,
    },
    Part(PartHead),
    Finished {
        sync: SyncId,
        announced: Announced,
    },
}

impl Head {
    pub(super) fn sync(&self) -> SyncId {
        match self {
            Head::Started { sync, .. } | Head::Finished { sync, .. } => *sync,
            Head::Part(part) => part.sync,
        }
    }
}

/// One part of a chunk, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartHead {
    pub(super) sync: SyncId,
    pub(super) chunk: i32,
    /// Counts from 0 within the chunk.
    pub(super) part: i32,
    pub(super) last: bool,
    /// Rows in this part.
    pub(super) rows: i64,
    /// Rows in the whole chunk; meaningful on the last part.
    pub(super) chunk_rows: i64,
}

/// What the loader must do with a record, or with its open chunk, next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing; go on with the next record.
    Skip,
    /// Offer the record again when the board has changed.
    Wait,
    /// End the load and begin it again.
    Reread,
    /// Roll the open chunk back, call [`Lane::abandon`], then offer the record again.
    RollBack,
    /// The chunk is claimed: open its transaction, then offer the record again.
    Begin,
    /// Send the part's data; go on with the next record.
    Append,
    /// Send the part's data, then commit the chunk with this many rows and call [`Lane::committed`].
    Complete { rows: i64 },
    /// The chunk's rows don't add up: roll back and fail the table with this reason.
    Broken(String),
    /// Make the start true at the destination once no chunk of the request is open, then
    /// call [`SyncBoard::prepared`]; go on with the next record.
    Prepare,
    /// Tell the board that the sync's end was met; go on with the next record.
    Finish,
}

/// The state of one partition; see the module's documentation.
#[derive(Debug)]
pub(super) struct Lane {
    partition: i32,
    open: Option<Open>,
    displaced: Vec<Displaced>,
}

#[derive(Debug)]
struct Open {
    sync: SyncId,
    chunk: i32,
    next_part: i32,
    rows: i64,
}

/// A chunk that was rolled back because of another sync's.
#[derive(Debug)]
struct Displaced {
    sync: SyncId,
    chunk: i32,
    by: SyncId,
}

impl Lane {
    pub(super) fn new(partition: i32) -> Self {
        Lane {
            partition,
            open: None,
            displaced: Vec::new(),
        }
    }

    /// The chunk whose transaction is open, if any.
    pub(super) fn open_chunk(&self) -> Option<(SyncId, i32)> {
        self.open.as_ref().map(|open| (open.sync, open.chunk))
    }

    /// Whether a chunk that counts was displaced by one that came to nothing.
    pub(super) fn must_reread(&self, board: &SyncBoard) -> bool {
        self.displaced.iter().any(|displaced| {
            board.standing(&displaced.sync) == Standing::Loading
                && !board.is_recorded(&displaced.sync, displaced.chunk)
                && board.came_to_nothing(&displaced.by)
        })
    }

    /// Whether the open chunk can't be committed any more, whatever comes next.
    pub(super) fn is_revoked(&self, board: &SyncBoard) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| !board.holds(&open.sync, open.chunk, self.partition))
    }

    /// Decides on a record. The same record is offered until it is used up.
    pub(super) fn decide(&mut self, board: &mut SyncBoard, head: &Head) -> Action {
        if self.must_reread(board) {
            return Action::Reread;
        }
        if self.is_revoked(board) {
            return Action::RollBack;
        }
        match head {
            Head::Started { sync, usable } => match board.announce(sync, *usable) {
                Announcement::Ignore => Action::Skip,
                // The announcement may just have revoked what is open here.
                Announcement::Prepare if self.is_revoked(board) => Action::RollBack,
                Announcement::Prepare => Action::Prepare,
            },
            Head::Finished { sync, .. } => match board.standing(sync) {
                Standing::Loading => Action::Finish,
                Standing::Unwanted | Standing::Void | Standing::Unknown => Action::Skip,
            },
            Head::Part(part) => self.decide_part(board, part),
        }
    }

    fn decide_part(&mut self, board: &mut SyncBoard, part: &PartHead) -> Action {
        match board.standing(&part.sync) {
            Standing::Unwanted | Standing::Void => return Action::Skip,
            // Starts are met in partition 0, and there a start precedes its chunks:
            // waiting for one in this lane would be waiting for itself.
            Standing::Unknown if self.partition == 0 => return Action::Skip,
            Standing::Unknown => return Action::Wait,
            Standing::Loading => {}
        }
        let Some(open) = &mut self.open else {
            return self.begin(board, part);
        };
        let is_same = open.sync == part.sync && open.chunk == part.chunk;
        if is_same && open.next_part != part.part {
            // Parts are missing, or the chunk begins anew.
            return Action::RollBack;
        }
        if !is_same && part.part != 0 {
            // The rest of a chunk that can't be loaded from here.
            return Action::Skip;
        }
        if !is_same {
            let displaced = Displaced {
                sync: open.sync,
                chunk: open.chunk,
                by: part.sync,
            };
            self.displaced
                .retain(|known| board.standing(&known.sync) == Standing::Loading);
            self.displaced.push(displaced);
            return Action::RollBack;
        }
        open.next_part += 1;
        open.rows += part.rows;
        if !part.last {
            return Action::Append;
        }
        if open.rows != part.chunk_rows {
            return Action::Broken(format!(
                "chunk {} of the snapshot announces {} rows but its parts hold {}",
                part.chunk, part.chunk_rows, open.rows
            ));
        }
        Action::Complete { rows: open.rows }
    }

    fn begin(&mut self, board: &mut SyncBoard, part: &PartHead) -> Action {
        if part.part != 0 {
            // The rest of a chunk that is loaded, or that was given up here.
            return Action::Skip;
        }
        match board.claim(part.sync, part.chunk, self.partition) {
            Claim::Skip => Action::Skip,
            Claim::Wait => Action::Wait,
            Claim::Granted => {
                self.open = Some(Open {
                    sync: part.sync,
                    chunk: part.chunk,
                    next_part: 0,
                    rows: 0,
                });
                Action::Begin
            }
        }
    }

    /// The open chunk's transaction is gone without effect.
    pub(super) fn abandon(&mut self, board: &mut SyncBoard) {
        self.open = None;
        board.release(self.partition);
    }

    /// The open chunk's transaction is committed. Returns as [`SyncBoard::record`] does.
    pub(super) fn committed(
        &mut self,
        board: &mut SyncBoard,
        rows: i64,
    ) -> Option<(SyncId, super::board::Outcome)> {
        let open = self.open.take()?;
        let outcome = board.record(&open.sync, open.chunk, rows);
        board.release(self.partition);
        outcome.map(|outcome| (open.sync, outcome))
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
