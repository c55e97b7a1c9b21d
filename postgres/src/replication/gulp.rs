//! When to read from the server. No I/O.
//!
//! A walsender sends each message as soon as the socket takes it, and both sides pay for
//! every small piece. While a lot is coming, the reader lets it gather for a moment; when
//! little comes, it reads at once.

use std::time::{Duration, Instant};

/// How long to let bytes gather: the shortest pause that timers give.
const PAUSE: Duration = Duration::from_millis(1);

/// Bytes a pause must be worth on average: 2 MB/s, ten times what a thousand small
/// transactions a second are.
const WORTH_BYTES: u128 = 2 * 1024;

/// How long a stream that flowed may be silent before it counts as quiet.
const SILENCE: Duration = Duration::from_millis(5);

/// Follows the reads of one stream.
#[derive(Debug)]
pub(super) struct Gulps {
    /// What is being counted began here.
    since: Instant,
    bytes: usize,
    /// Much is coming.
    flows: bool,
    /// The last read left nothing behind.
    is_drained: bool,
    read_at: Instant,
}

impl Gulps {
    pub(super) fn new(now: Instant) -> Gulps {
        Gulps {
            since: now,
            bytes: 0,
            flows: false,
            is_drained: true,
            read_at: now,
        }
    }

    /// A read gave `bytes`, all that was there or not.
    pub(super) fn read(&mut self, bytes: usize, is_drained: bool, now: Instant) {
        self.read_at = now;
        self.is_drained = is_drained;
        self.bytes = self.bytes.saturating_add(bytes);
        let counted = now.saturating_duration_since(self.since);
        if counted < PAUSE {
            return;
        }
        let worth = WORTH_BYTES * counted.as_nanos() / PAUSE.as_nanos();
        self.flows = self.bytes as u128 >= worth;
        self.since = now;
        self.bytes = 0;
    }

    /// Until when to wait before the next read; `None` to read at once. What was done since
    /// the last read counts as waiting.
    pub(super) fn pause_until(&self, now: Instant) -> Option<Instant> {
        let until = self.read_at + PAUSE;
        (self.flows && self.is_drained && now < until).then_some(until)
    }

    /// Until when more is expected; `None` if little is coming.
    pub(super) fn flows_until(&self) -> Option<Instant> {
        self.flows.then(|| self.read_at + SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lone_message_is_read_at_once() {
        let start = Instant::now();
        let mut gulps = Gulps::new(start);
        assert_eq!(gulps.pause_until(start), None);
        for second in 1..4 {
            let now = start + second * Duration::from_secs(1);
            gulps.read(500, true, now);
            assert_eq!(gulps.pause_until(now), None);
            assert_eq!(gulps.flows_until(), None);
        }
    }

    #[test]
    fn what_flows_gathers() {
        let mut now = Instant::now();
        let mut gulps = Gulps::new(now);
        for _ in 0..20 {
            now += MS / 10;
            gulps.read(400, true, now);
        }
        assert_eq!(gulps.pause_until(now), Some(now + MS));
        // Work in between is as good as a pause.
        assert_eq!(gulps.pause_until(now + 2 * MS), None);
        now += 2 * MS;
        gulps.read(100_000, false, now);
        assert_eq!(gulps.pause_until(now), None, "more is there");
        now += 2 * MS;
        gulps.read(100_000, true, now);
        assert!(gulps.pause_until(now).is_some());
        assert_eq!(gulps.flows_until(), Some(now + SILENCE));
        now += 2 * MS;
        gulps.read(300, true, now);
        assert_eq!(gulps.pause_until(now), None);
        assert_eq!(gulps.flows_until(), None);
    }
}
