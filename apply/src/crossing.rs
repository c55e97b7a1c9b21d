//! Where main and the catch-up reader of a run meet.
//!
//! Main shows what it has committed; the catch-up reader never passes that. When the
//! reader is near, it asks main to hold: main answers at its next batch boundary with
//! what it has committed, and does nothing until it hears the [`Outcome`]. Ordering only
//! holds within one hold: a request whose asker is gone is passed over.

use tokio::sync::{mpsc, oneshot, watch};

use crate::bookkeeping::Progress;

/// What came of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Tables have joined main: its routes are not what they were.
    Joined,
    /// Nothing has changed for main.
    GoOn,
}

/// Main, please wait.
#[derive(Debug)]
pub struct Hold {
    /// Answered with main's committed progress, from which it does not move.
    pub held: oneshot::Sender<Progress>,
    /// Dropped without a word: the asker failed, and nobody knows what it has done.
    pub outcome: oneshot::Receiver<Outcome>,
}

/// Main's end.
#[derive(Debug)]
pub struct MainEnd {
    committed: watch::Sender<Progress>,
    holds: mpsc::Receiver<Hold>,
}

/// The catch-up reader's end.
#[derive(Clone, Debug)]
pub struct Crossing {
    committed: watch::Receiver<Progress>,
    holds: mpsc::Sender<Hold>,
}

/// Both ends; main has committed `progress`.
pub fn crossing(progress: Progress) -> (MainEnd, Crossing) {
    let (committed, seen) = watch::channel(progress);
    let (ask, holds) = mpsc::channel(1);
    let main = MainEnd { committed, holds };
    let crossing = Crossing {
        committed: seen,
        holds: ask,
    };
    (main, crossing)
}

impl MainEnd {
    /// Main has committed `progress`.
    pub fn committed(&self, progress: Progress) {
        self.committed.send_replace(progress);
    }

    /// The next request whose asker still waits. Cancel safe; for ever without one.
    pub async fn hold(&mut self) -> Hold {
        loop {
            match self.holds.recv().await {
                Some(hold) if hold.held.is_closed() => {}
                Some(hold) => return hold,
                None => std::future::pending().await,
            }
        }
    }
}

impl Crossing {
    /// What main has committed, kept current.
    pub fn committed(&self) -> watch::Receiver<Progress> {
        self.committed.clone()
    }

    /// Asks main to hold. Main's answer comes by the receiver; the sender tells it what
    /// came of it. None when main is gone.
    pub async fn hold(&self) -> Option<(oneshot::Receiver<Progress>, oneshot::Sender<Outcome>)> {
        let (held, answer) = oneshot::channel();
        let (tell, outcome) = oneshot::channel();
        self.holds.send(Hold { held, outcome }).await.ok()?;
        Some((answer, tell))
    }
}

#[cfg(test)]
mod tests {
    use bunny_schemas::Position;
    use uuid::Uuid;

    use super::*;

    fn at(next_offset: i64) -> Progress {
        Progress {
            generation: Uuid::from_u128(1),
            position: Position::default(),
            next_offset,
        }
    }

    #[tokio::test]
    async fn a_hold_is_answered_with_what_is_committed() {
        let (mut main, crossing) = crossing(at(5));
        main.committed(at(7));
        assert_eq!(crossing.committed().borrow().next_offset, 7);
        let (answer, tell) = crossing.hold().await.unwrap();
        let hold = main.hold().await;
        hold.held.send(at(7)).unwrap();
        assert_eq!(answer.await.unwrap().next_offset, 7);
        tell.send(Outcome::Joined).unwrap();
        assert_eq!(hold.outcome.await.unwrap(), Outcome::Joined);
    }

    #[tokio::test]
    async fn a_request_whose_asker_is_gone_is_passed_over() {
        let (mut main, crossing) = crossing(at(5));
        drop(crossing.hold().await);
        let waiting = tokio::spawn(async move { main.hold().await });
        let (answer, _tell) = crossing.hold().await.unwrap();
        let hold = waiting.await.unwrap();
        hold.held.send(at(9)).unwrap();
        assert_eq!(answer.await.unwrap().next_offset, 9);
    }
}
