//! Cuts the stream of events into parts to write. Pure: what time it is, and what the
//! log still holds, the reader knows.
//!
//! A destination transaction is one or more whole source transactions (I4). So a part
//! normally ends where a source transaction ends; only one that is larger than a batch
//! comes in several parts, which the applier writes into one open destination
//! transaction.

use bunny_schemas::Position;

use crate::event::{Body, Event};

/// How much may be gathered before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events in a batch, at least 1.
    pub changes_max: usize,
    /// Memory of a batch in bytes; one event may exceed it.
    pub bytes_max: usize,
}

/// A run of events to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Without those that have no effect here.
    pub events: Vec<Event>,
    /// Events in the part, those without effect included.
    pub seen: usize,
    /// Offset of its first event.
    pub first_offset: i64,
    /// The offset after its last event.
    pub next_offset: i64,
    /// Of its last event.
    pub position: Position,
    /// Commit time of its last event's source transaction, microseconds since the epoch.
    pub commit_ts_us: i64,
    /// Ends with the end of a source transaction; otherwise the next part goes on in it.
    pub complete: bool,
    /// Memory it takes, about, in bytes.
    pub bytes: usize,
}

/// Gathers events into parts.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    /// Whole source transactions.
    whole: Option<Part>,
    /// The beginning of one, or what follows the parts already handed out of it.
    tail: Option<Part>,
    /// Parts of the tail's transaction have been handed out.
    streaming: bool,
}

impl Assembler {
    pub fn new(limits: Limits) -> Assembler {
        Assembler {
            limits,
            whole: None,
            tail: None,
            streaming: false,
        }
    }

    /// For the parts to come.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes the next event, and gives the part that is full with it.
    pub fn push(&mut self, event: Event) -> Option<Part> {
        let last = event.last;
        extend(&mut self.tail, event);
        if last {
            let ended = self.tail.take().map(|tail| Part {
                complete: true,
                ..tail
            });
            if self.streaming {
                // It goes alone: what was handed out of it waits for nothing else.
                self.streaming = false;
                return ended;
            }
            self.whole = join(self.whole.take(), ended);
        }
        if !self.is_full() {
            return None;
        }
        if self.whole.is_some() {
            return self.whole.take();
        }
        self.streaming = true;
        self.tail.take()
    }

    /// The whole transactions gathered so far.
    pub fn flush(&mut self) -> Option<Part> {
        self.whole.take()
    }

    /// Whether [`Assembler::flush`] would give something.
    pub fn has_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The beginning of a transaction is here, or was handed out, and its end is not.
    pub fn is_unfinished(&self) -> bool {
        self.streaming || self.tail.is_some()
    }

    /// Parts of a transaction were handed out whose end is still missing.
    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// Forgets an unfinished transaction: its generation has ended, its end will not come.
    pub fn abandon_unfinished(&mut self) {
        self.tail = None;
        self.streaming = false;
    }

    /// What is handed out of one transaction is bounded by its memory alone: it commits with the
    /// rest in any case, and each part costs a savepoint and its round trips.
    fn is_full(&self) -> bool {
        let parts = || self.whole.iter().chain(&self.tail);
        let seen = || parts().map(|part| part.seen).sum::<usize>();
        !self.streaming && seen() >= self.limits.changes_max
            || parts().map(|part| part.bytes).sum::<usize>() >= self.limits.bytes_max
    }
}

fn extend(part: &mut Option<Part>, event: Event) {
    let part = part.get_or_insert_with(|| Part {
        events: Vec::new(),
        seen: 0,
        first_offset: event.offset,
        next_offset: event.offset,
        position: event.position,
        commit_ts_us: event.commit_ts_us,
        complete: false,
        bytes: 0,
    });
    part.seen += 1;
    part.next_offset = event.offset + 1;
    part.position = event.position;
    part.commit_ts_us = event.commit_ts_us;
    if event.body != Body::Skip {
        part.bytes += event.memory();
        part.events.push(event);
    }
}

fn join(first: Option<Part>, second: Option<Part>) -> Option<Part> {
    let (mut first, mut second) = match (first, second) {
        (Some(first), Some(second)) => (first, second),
        (first, second) => return first.or(second),
    };
    first.events.append(&mut second.events);
    Some(Part {
        events: first.events,
        seen: first.seen + second.seen,
        first_offset: first.first_offset,
        bytes: first.bytes + second.bytes,
        ..second
    })
}

#[cfg(test)]
mod tests {
    use bunny_postgres::{Lsn, TableName};
    use proptest::prelude::*;

    use super::*;

    fn event(transaction: u64, seq: u64, last: bool, skip: bool) -> Event {
        let body = if skip {
            Body::Skip
        } else {
            Body::Truncate {
                tables: vec![TableName {
                    schema: "public".into(),
                    name: "t".into(),
                }],
                restart_identity: false,
            }
        };
        Event {
            offset: (transaction * 1000 + seq) as i64,
            position: Position {
                commit_lsn: Lsn(transaction),
                seq,
            },
            commit_ts_us: transaction as i64,
            last,
            body,
        }
    }

    /// Transactions of these sizes; every third event has no effect.
    fn stream(sizes: &[u64]) -> Vec<Event> {
        let mut events = Vec::new();
        for (transaction, &size) in sizes.iter().enumerate() {
            for seq in 0..size {
                let skip = events.len() % 3 == 2;
                events.push(event(transaction as u64 + 1, seq, seq + 1 == size, skip));
            }
        }
        events
    }

    fn limits(changes_max: usize) -> Limits {
        Limits {
            changes_max,
            bytes_max: usize::MAX,
        }
    }

    #[test]
    fn a_full_batch_is_whole_transactions() {
        let mut assembler = Assembler::new(limits(5));
        let parts: Vec<Part> = stream(&[2, 2, 2, 2])
            .into_iter()
            .filter_map(|event| assembler.push(event))
            .collect();
        assert_eq!(parts.len(), 1);
        assert!(parts[0].complete);
        assert_eq!(parts[0].seen, 4, "the third transaction did not fit whole");
        assert_eq!(assembler.flush().unwrap().seen, 4);
        assert!(assembler.flush().is_none());
    }

    #[test]
    fn a_large_transaction_comes_in_parts_and_ends_alone() {
        let mut assembler = Assembler::new(limits(3));
        let parts: Vec<Part> = stream(&[1, 7, 1])
            .into_iter()
            .filter_map(|event| assembler.push(event))
            .collect();
        let shape: Vec<(usize, bool)> = parts
            .iter()
            .map(|part| (part.seen, part.complete))
            .collect();
        assert_eq!(
            shape,
            [(1, true), (3, false), (4, true)],
            "the rest takes no memory worth another part"
        );
        assert!(!assembler.is_streaming());
        assert_eq!(assembler.flush().unwrap().seen, 1);
    }

    #[test]
    fn a_flush_never_gives_half_a_transaction() {
        let mut assembler = Assembler::new(limits(100));
        for event in stream(&[3, 3]).into_iter().take(5) {
            assert!(assembler.push(event).is_none());
        }
        assert!(assembler.is_unfinished());
        let part = assembler.flush().unwrap();
        assert_eq!(
            (part.seen, part.complete, part.next_offset),
            (3, true, 1003)
        );
        assert!(assembler.flush().is_none());
        assembler.abandon_unfinished();
        assert!(!assembler.is_unfinished());
    }

    #[test]
    fn bytes_fill_a_batch_too() {
        let mut assembler = Assembler::new(Limits {
            changes_max: 1000,
            bytes_max: 1,
        });
        assert!(assembler.push(event(1, 0, true, false)).is_some());
        assert!(
            assembler.push(event(2, 0, false, true)).is_none(),
            "no effect, no memory"
        );
        assert!(!assembler.push(event(2, 1, false, false)).unwrap().complete);
        assert!(
            !assembler.push(event(2, 2, false, false)).unwrap().complete,
            "also within a transaction"
        );
    }

    proptest! {
        /// Nothing is lost, doubled or reordered; parts end where they may; limits hold.
        #[test]
        fn parts_are_the_stream(
            sizes in prop::collection::vec(1u64..12, 0..20),
            changes_max in 1usize..10,
            flushes in prop::collection::vec(any::<bool>(), 250),
        ) {
            let events = stream(&sizes);
            let mut assembler = Assembler::new(limits(changes_max));
            let mut parts = Vec::new();
            for (event, flush) in events.iter().zip(flushes) {
                parts.extend(assembler.push(event.clone()));
                if flush {
                    parts.extend(assembler.flush());
                }
            }
            parts.extend(assembler.flush());
            prop_assert!(!assembler.is_unfinished());

            let effects: Vec<Event> = events.iter().filter(|event| event.body != Body::Skip).cloned().collect();
            let found: Vec<Event> = parts.iter().flat_map(|part| part.events.clone()).collect();
            prop_assert_eq!(found, effects);
            prop_assert_eq!(parts.iter().map(|part| part.seen).sum::<usize>(), events.len());

            let (mut seen, mut goes_on) = (0, false);
            for part in &parts {
                prop_assert!(part.seen <= changes_max || goes_on);
                goes_on = !part.complete;
                prop_assert_eq!(part.first_offset, events[seen].offset);
                seen += part.seen;
                let end = &events[seen - 1];
                prop_assert_eq!(part.complete, end.last);
                prop_assert_eq!((part.next_offset, part.position), (end.offset + 1, end.position));
            }
        }
    }
}
