//! What must follow what in the change topic (I2). A log that was recreated, trimmed or
//! written by someone else shows here, and nothing of it is applied. Pure.

use bunny_schemas::Position;
use uuid::Uuid;

use crate::bookkeeping::Progress;
use crate::error::{Error, Result};

/// The last event seen, or the progress a run starts from.
#[derive(Clone, Debug)]
pub(super) struct Order {
    generation: Uuid,
    position: Position,
    /// What helps where the log does not go on.
    way_out: String,
}

/// What the start of a generation means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It is the one we follow; nothing of it has been applied.
    Known,
    /// Another one: every table leaves main.
    New,
}

impl Order {
    pub(super) fn after(progress: &Progress, way_out: String) -> Order {
        Order {
            generation: progress.generation,
            position: progress.position,
            way_out,
        }
    }

    /// Accepts the next event or says what is wrong with it.
    pub(super) fn event(
        &mut self,
        generation: Uuid,
        position: Position,
        offset: i64,
    ) -> Result<()> {
        if generation != self.generation {
            return Err(Error::History(format!(
                "the change topic holds at offset {offset} an event of generation {generation} where generation {} \
                 goes on: the topic was recreated, trimmed or written to by something else; {}",
                self.generation, self.way_out
            )));
        }
        if position <= self.position {
            return Err(Error::History(format!(
                "the change topic holds at offset {offset} the event {position}, which does not follow {}: the topic \
                 was recreated, trimmed or written to by something else; {}",
                self.position, self.way_out
            )));
        }
        self.position = position;
        Ok(())
    }

    /// Accepts the start of a generation.
    pub(super) fn generation(&mut self, generation: Uuid, offset: i64) -> Result<Start> {
        if generation != self.generation {
            self.generation = generation;
            self.position = Position::default();
            return Ok(Start::New);
        }
        if self.position != Position::default() {
            return Err(Error::History(format!(
                "the change topic begins generation {generation} at offset {offset} again, after the event {}: it was \
                 written to by something else; {}",
                self.position, self.way_out
            )));
        }
        Ok(Start::Known)
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::Lsn;

    use super::*;

    fn at(commit_lsn: u64, seq: u64) -> Position {
        Position {
            commit_lsn: Lsn(commit_lsn),
            seq,
        }
    }

    fn order(generation: u128, position: Position) -> Order {
        let progress = Progress {
            generation: Uuid::from_u128(generation),
            position,
            next_offset: 0,
        };
        Order::after(&progress, "resync".to_owned())
    }

    #[test]
    fn events_must_rise() {
        let one = Uuid::from_u128(1);
        let mut order = order(1, at(100, 2));
        assert!(order.event(one, at(100, 3), 7).is_ok());
        assert!(order.event(one, at(101, 1), 8).is_ok());
        assert!(order.event(one, at(101, 1), 9).is_err(), "twice");
        assert!(order.event(one, at(100, 9), 9).is_err(), "back");
    }

    #[test]
    fn an_event_of_another_generation_is_fatal() {
        let error = order(1, at(1, 1))
            .event(Uuid::from_u128(2), at(2, 1), 3)
            .unwrap_err();
        assert!(!error.is_transient());
    }

    #[test]
    fn a_generation_starts_anew_once() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut fresh = order(1, Position::default());
        assert_eq!(fresh.generation(one, 0).unwrap(), Start::Known);
        let mut order = order(1, at(100, 1));
        assert!(order.generation(one, 5).is_err());
        assert_eq!(order.generation(two, 6).unwrap(), Start::New);
        assert!(
            order.event(two, at(1, 1), 7).is_ok(),
            "positions begin again"
        );
    }
}
