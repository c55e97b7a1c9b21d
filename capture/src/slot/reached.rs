//! How far a stream has come: what its next Kafka transaction records. Pure.

use bunny_postgres::Lsn;
use bunny_schemas::Position;
use bunny_schemas::control::PositionRecord;

use super::Sequencer;

/// The position that a commit would record now.
#[derive(Debug)]
pub(crate) struct Reached {
    record: PositionRecord,
    /// Everything committed before this has been received, published or not.
    received: Lsn,
}

impl Reached {
    /// Where a run starts.
    pub(crate) fn new(record: PositionRecord) -> Self {
        Self {
            received: record.confirm_lsn,
            record,
        }
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
    /// confirmed, if no source transaction is open and all that was sent is committed to Kafka
    /// (`is_published`); then this says up to where. If only the latter is missing, it may be once
    /// that has come. A keepalive within a transaction says nothing: what of it is still to come would
    /// be lost.
    pub(crate) fn quiet_up_to(
        &mut self,
        lsn: Lsn,
        sequencer: &Sequencer,
        is_published: bool,
    ) -> Option<Lsn> {
        if sequencer.open().is_some() {
            return None;
        }
        self.received = self.received.max(lsn);
        if !is_published {
            return None;
        }
        self.record.confirm_lsn = self.record.confirm_lsn.max(self.received);
        Some(self.record.confirm_lsn)
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::replication::WalEvent::{self, *};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// A stream without its I/O: every change is sent at once.
    struct Played {
        sequencer: Sequencer,
        reached: Reached,
        /// Commit LSNs of the events sent since the latest Kafka commit began.
        open: Vec<Lsn>,
        /// The Kafka commit under way: its events', and what may be confirmed after it.
        committing: Option<(Vec<Lsn>, Lsn)>,
        confirmed: Lsn,
        /// Everything committed before this is published, as the stream says to who waits for it.
        passed: Lsn,
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
                open: Vec::new(),
                committing: None,
                confirmed: Lsn(0),
                passed: Lsn(0),
            }
        }

        fn quiet_up_to(&mut self, lsn: Lsn) {
            let is_published = self.open.is_empty() && self.committing.is_none();
            if let Some(passed) = self.reached.quiet_up_to(lsn, &self.sequencer, is_published) {
                self.passed = passed;
            }
        }

        /// As `Stream::begin_commit` does.
        fn begin_commit(&mut self) {
            self.end_commit();
            self.committing = Some((std::mem::take(&mut self.open), self.confirmable()));
        }

        /// As `Stream::committed` does.
        fn end_commit(&mut self) {
            if let Some((_, confirmable)) = self.committing.take() {
                self.confirmed = confirmable;
                self.quiet_up_to(confirmable);
            }
        }

        /// The first source transaction of which Kafka has not committed all that is known.
        fn first_missing(&self) -> Option<Lsn> {
            let committing = self.committing.iter().flat_map(|(events, _)| events);
            let open = self.sequencer.open().map(|open| open.commit_lsn);
            committing.chain(&self.open).copied().chain(open).min()
        }

        /// As `Stream::take` does.
        fn take(&mut self, event: &WalEvent) {
            match *event {
                Begin { final_lsn, .. } => self.sequencer.begin(final_lsn, 0, 1).unwrap(),
                Change { .. } => {
                    if let Some(position) = self.sequencer.row().unwrap() {
                        self.reached.sent(position);
                        self.open.push(position.commit_lsn);
                    }
                }
                Commit {
                    commit_lsn,
                    end_lsn,
                    ..
                } => {
                    self.sequencer.commit(commit_lsn).unwrap();
                    self.reached.transaction_sent(end_lsn);
                    self.quiet_up_to(end_lsn);
                }
                Keepalive { wal_end, .. } => self.quiet_up_to(wal_end),
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
        played.begin_commit();
        played.end_commit();
        played.take(&keepalive(501));
        assert_eq!(played.confirmable(), Lsn(20));
        played.take(&change(31));
        played.take(&commit(90));
        assert_eq!(played.confirmable(), Lsn(95));
        // What was sent of it may still be lost.
        played.take(&keepalive(600));
        assert_eq!(played.confirmable(), Lsn(95));
        played.begin_commit();
        played.take(&keepalive(700));
        assert_eq!((played.confirmable(), played.confirmed), (Lsn(95), Lsn(20)));
        // A keepalive that came during the commit is not forgotten: no other may come for long.
        played.end_commit();
        assert_eq!(played.passed, Lsn(700));
        assert_eq!(
            (played.confirmable(), played.confirmed),
            (Lsn(700), Lsn(95))
        );
    }

    proptest! {
        /// Transactions of some changes, with keepalives, Kafka commits and their answers anywhere
        /// between: what is confirmed holds no transaction that Kafka does not hold whole (I1).
        #[test]
        fn nothing_is_confirmed_that_is_not_published(
            transactions in prop::collection::vec(prop::collection::vec(0u8..5, 0..12), 1..8),
        ) {
            let mut played = Played::new();
            let mut lsn = 100;
            for steps in transactions {
                let commit_lsn = lsn + 50;
                let mut is_open = false;
                for (at, step) in (lsn..).zip(steps) {
                    match step {
                        0 if !is_open => {
                            played.take(&begin(commit_lsn));
                            is_open = true;
                        }
                        0 | 1 if is_open => played.take(&change(at)),
                        2 => played.begin_commit(),
                        3 => played.end_commit(),
                        // Within a transaction the server may have read far ahead of what it sent.
                        _ if is_open => played.take(&keepalive(commit_lsn + 1_000)),
                        _ => played.take(&keepalive(at)),
                    }
                    let missing = played.first_missing().unwrap_or(Lsn(u64::MAX));
                    prop_assert!(played.confirmed <= missing, "{} > {missing}", played.confirmed);
                    prop_assert!(played.passed <= missing, "{} > {missing}", played.passed);
                }
                if is_open {
                    played.take(&commit(commit_lsn));
                }
                lsn += 100;
            }
            played.begin_commit();
            played.end_commit();
            played.take(&keepalive(lsn));
            prop_assert_eq!(played.confirmable(), Lsn(lsn));
        }
    }
}
