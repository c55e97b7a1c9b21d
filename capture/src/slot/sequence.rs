//! Numbers the row messages of each source transaction and decides which of them are
//! already in the log.
//!
//! `seq` counts every row message the walsender sends in a transaction, before our own
//! filters, so that a changed mapping shifts nothing; each table of a TRUNCATE counts as one,
//! because each may have something to say of its own. Postgres decodes a transaction the
//! same way each time it is asked, which is what makes `(commit_lsn, seq)` a name for an
//! event that survives restarts.

use bunny_postgres::Lsn;
use bunny_schemas::Position;

use crate::publisher::Given;

/// The source transaction being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenTransaction {
    /// LSN of the commit record: `final_lsn` of the Begin message.
    pub(crate) commit_lsn: Lsn,
    /// Commit time, µs since the Unix epoch.
    pub(crate) commit_ts_us: i64,
    pub(crate) xid: u32,
    next_seq: u64,
}

impl OpenTransaction {
    /// The place of the row message numbered `seq`, which the log holds at `lsn`.
    pub(crate) fn at(&self, lsn: Lsn, seq: u64) -> Place {
        Place {
            lsn,
            commit_lsn: self.commit_lsn,
            commit_ts_us: self.commit_ts_us,
            xid: self.xid,
            seq,
        }
    }

    /// What a look at the source's catalog has to see.
    pub(crate) fn given(&self) -> Given {
        Given {
            xid: self.xid,
            commit_ts_us: self.commit_ts_us,
        }
    }
}

/// Where one change stands at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// LSN of the change itself.
    pub(crate) lsn: Lsn,
    pub(crate) commit_lsn: Lsn,
    /// µs since the Unix epoch.
    pub(crate) commit_ts_us: i64,
    pub(crate) xid: u32,
    pub(crate) seq: u64,
}

/// Follows Begin, row and Commit messages of one replication session.
#[derive(Debug)]
pub(crate) struct Sequencer {
    /// The last event the log holds at the start of the session.
    resume_after: Position,
    open: Option<OpenTransaction>,
}

/// The walsender broke the protocol's order.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SequenceError {
    #[error("the source began a transaction inside another one (commit LSN {0})")]
    NestedBegin(Lsn),
    #[error("the source sent {0} outside a transaction")]
    OutsideTransaction(&'static str),
    #[error("the source committed at {committed} a transaction announced for {announced}")]
    OtherCommit { announced: Lsn, committed: Lsn },
}

impl Sequencer {
    pub(crate) fn new(resume_after: Position) -> Self {
        Self {
            resume_after,
            open: None,
        }
    }

    /// The transaction whose messages are arriving, if one is.
    pub(crate) fn open(&self) -> Option<&OpenTransaction> {
        self.open.as_ref()
    }

    /// Whether the log has a part of the open transaction from an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        let after = self.resume_after;
        after.seq > 0
            && self
                .open
                .is_some_and(|open| open.commit_lsn == after.commit_lsn)
    }

    pub(crate) fn begin(
        &mut self,
        commit_lsn: Lsn,
        commit_ts_us: i64,
        xid: u32,
    ) -> Result<(), SequenceError> {
        if let Some(open) = &self.open {
            return Err(SequenceError::NestedBegin(open.commit_lsn));
        }
        self.open = Some(OpenTransaction {
            commit_lsn,
            commit_ts_us,
            xid,
            next_seq: 1,
        });
        Ok(())
    }

    /// Takes the number of the next row message, or of the next table of a TRUNCATE. `None`
    /// means that the log has it already.
    pub(crate) fn row(&mut self) -> Result<Option<Position>, SequenceError> {
        let open = self
            .open
            .as_mut()
            .ok_or(SequenceError::OutsideTransaction("a row change"))?;
        let position = Position {
            commit_lsn: open.commit_lsn,
            seq: open.next_seq,
        };
        open.next_seq += 1;
        Ok((position > self.resume_after).then_some(position))
    }

    pub(crate) fn commit(&mut self, commit_lsn: Lsn) -> Result<(), SequenceError> {
        let open = self
            .open
            .take()
            .ok_or(SequenceError::OutsideTransaction("a commit"))?;
        if open.commit_lsn != commit_lsn {
            return Err(SequenceError::OtherCommit {
                announced: open.commit_lsn,
                committed: commit_lsn,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(commit_lsn: u64, seq: u64) -> Position {
        Position {
            commit_lsn: Lsn(commit_lsn),
            seq,
        }
    }

    #[test]
    fn numbers_rows_from_one_in_each_transaction() {
        let mut sequencer = Sequencer::new(Position::default());
        for commit_lsn in [100, 200] {
            sequencer.begin(Lsn(commit_lsn), 0, 1).unwrap();
            assert_eq!(sequencer.row().unwrap(), Some(at(commit_lsn, 1)));
            assert_eq!(sequencer.row().unwrap(), Some(at(commit_lsn, 2)));
            sequencer.commit(Lsn(commit_lsn)).unwrap();
        }
    }

    #[test]
    fn drops_what_the_log_holds_and_keeps_the_rest_of_the_same_transaction() {
        let mut sequencer = Sequencer::new(at(100, 2));
        sequencer.begin(Lsn(100), 0, 1).unwrap();
        assert_eq!(sequencer.row().unwrap(), None);
        assert_eq!(sequencer.row().unwrap(), None);
        assert_eq!(sequencer.row().unwrap(), Some(at(100, 3)));
        assert!(sequencer.is_resumed());
        sequencer.commit(Lsn(100)).unwrap();
        sequencer.begin(Lsn(200), 0, 2).unwrap();
        assert!(!sequencer.is_resumed());
    }

    #[test]
    fn refuses_messages_out_of_order() {
        let mut sequencer = Sequencer::new(Position::default());
        assert!(sequencer.row().is_err());
        assert!(sequencer.commit(Lsn(1)).is_err());
        sequencer.begin(Lsn(5), 0, 1).unwrap();
        assert_eq!(
            sequencer.begin(Lsn(6), 0, 2),
            Err(SequenceError::NestedBegin(Lsn(5)))
        );
        assert!(sequencer.commit(Lsn(6)).is_err());
    }
}
