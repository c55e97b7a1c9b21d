//! How far a stream has come: what its next Kafka transaction records. Pure.

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::PositionRecord;

use super::Sequencer;

/// The position that a commit would record now.
#[derive(Debug)]
pub(crate) struct Reached {
    record: PositionRecord,
}

impl Reached {
    /// Where a run starts.
    pub(crate) fn new(record: PositionRecord) -> Self {
        Self { record }
    }

    pub(crate) fn record(&self) -> &PositionRecord {
        &self.record
    }

    /// An event is in the open Kafka transaction.
    pub(crate) fn sent(&mut self, position: Position) {
        self.record.commit_lsn = position.commit_lsn;
        self.record.seq = position.seq;
    }

    /// A source transaction that ends at `end_lsn` has been sent whole.
    pub(crate) fn transaction_sent(&mut self, end_lsn: Lsn) {
        self.record.confirm_lsn = end_lsn;
    }

    /// Everything committed before `lsn` has been received. It is published too, and so may be
    /// confirmed, if no source transaction is open and no Kafka transaction either
    /// (`is_published`); says whether it is. A keepalive may come within a transaction: what of
    /// it is still to come would be lost.
    pub(crate) fn quiet_up_to(
        &mut self,
        lsn: Lsn,
        sequencer: &Sequencer,
        is_published: bool,
    ) -> bool {
        let is_quiet = sequencer.open().is_none() && is_published;
        if is_quiet {
            self.record.confirm_lsn = self.record.confirm_lsn.max(lsn);
        }
        is_quiet
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::replication::WalEvent::{self, *};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// A stream without its I/O: every change is sent at once, `has_open` until a commit.
    struct Played {
        sequencer: Sequencer,
        reached: Reached,
        has_open: bool,
    }

    impl Played {
        fn new() -> Played {
            let record = PositionRecord {
                generation: Uuid::nil(),
                system_id: "42".into(),
                timeline: 1,
                commit_lsn: Lsn(0),
                seq: 0,
                confirm_lsn: Lsn(10),
            };
            Played {
                sequencer: Sequencer::new(Position::default()),
                reached: Reached::new(record),
                has_open: false,
            }
        }

        /// As `Stream::take` does.
        fn take(&mut self, event: &WalEvent) {
            match *event {
                Begin { final_lsn, .. } => self.sequencer.begin(final_lsn, 0, 1).unwrap(),
                Change { .. } => {
                    if let Some(position) = self.sequencer.row().unwrap() {
                        self.reached.sent(position);
                        self.has_open = true;
                    }
                }
                Commit {
                    commit_lsn,
                    end_lsn,
                    ..
                } => {
                    self.sequencer.commit(commit_lsn).unwrap();
                    self.reached.transaction_sent(end_lsn);
                }
                Keepalive { wal_end, .. } => {
                    self.reached
                        .quiet_up_to(wal_end, &self.sequencer, !self.has_open);
                }
            }
        }

        fn confirmable(&self) -> Lsn {
            self.reached.record().confirm_lsn
        }
    }

    fn keepalive(wal_end: u64) -> WalEvent {
        Keepalive {
            wal_end: Lsn(wal_end),
            reply_requested: true,
        }
    }

    fn begin(final_lsn: u64) -> WalEvent {
        Begin {
            final_lsn: Lsn(final_lsn),
            commit_ts_us: 0,
            xid: 1,
        }
    }

    fn change(lsn: u64) -> WalEvent {
        Change {
            lsn: Lsn(lsn),
            message: Default::default(),
        }
    }

    fn commit(commit_lsn: u64) -> WalEvent {
        Commit {
            commit_lsn: Lsn(commit_lsn),
            end_lsn: Lsn(commit_lsn + 5),
            commit_ts_us: 0,
        }
    }

    #[test]
    fn a_keepalive_within_a_transaction_confirms_nothing() {
        let mut played = Played::new();
        played.take(&keepalive(20));
        assert_eq!(played.confirmable(), Lsn(20));
        for event in [begin(90), change(30), keepalive(89), keepalive(500)] {
            played.take(&event);
            assert_eq!(played.confirmable(), Lsn(20), "{event:?}");
        }
        // Not even when all that came of it is committed to Kafka.
        played.has_open = false;
        played.take(&keepalive(501));
        assert_eq!(played.confirmable(), Lsn(20));
        played.take(&change(31));
        played.take(&commit(90));
        assert_eq!(played.confirmable(), Lsn(95));
        // What was sent of it may still be lost.
        played.take(&keepalive(600));
        assert_eq!(played.confirmable(), Lsn(95));
        played.has_open = false;
        played.take(&keepalive(600));
        assert_eq!(played.confirmable(), Lsn(600));
    }

    proptest! {
        /// Transactions of some changes with keepalives and Kafka commits anywhere between: what a
        /// Kafka commit lets be confirmed holds no transaction that it does not hold whole (I1).
        #[test]
        fn nothing_is_confirmed_that_is_not_published(
            transactions in prop::collection::vec((0usize..4, any::<u8>(), any::<u8>()), 1..8),
        ) {
            let mut played = Played::new();
            let mut lsn = 100;
            for (changes, keepalives, commits) in transactions {
                let commit_lsn = lsn + 50;
                played.take(&begin(commit_lsn));
                for at in 0..=changes {
                    if keepalives & (1 << at) != 0 {
                        // The server may have read far ahead of what it has sent.
                        played.take(&keepalive(commit_lsn + 1_000));
                    }
                    if commits & (1 << at) != 0 {
                        played.has_open = false;
                    }
                    prop_assert!(played.confirmable() <= Lsn(commit_lsn));
                    if at < changes {
                        played.take(&change(lsn + at as u64));
                    }
                }
                played.take(&commit(commit_lsn));
                prop_assert_eq!(played.confirmable(), Lsn(commit_lsn + 5));
                lsn += 100;
                played.take(&keepalive(lsn));
                let is_quiet = !played.has_open;
                prop_assert_eq!(played.confirmable() == Lsn(lsn), is_quiet);
            }
        }
    }
}
