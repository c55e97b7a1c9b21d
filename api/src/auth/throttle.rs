//! Slows down password guessing: after a few failures for the same user name and address, every
//! further attempt waits its turn, each turn longer than the last. A correct password given in its
//! turn works and clears the record.
//!
//! Attempts are queued by time, not by connection: each one moves the turn of the next, so trying in
//! parallel gains nothing. An attempt whose turn is further away than [`WAIT_MAX`] is turned away with
//! the time to come back, so waiting requests stay few. Memory is bounded by [`RECORDS_MAX`]; the
//! record that would be forgotten first anyway makes room.
//!
//! Pure: the caller gives the time and does the waiting.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Records kept at most, of about 40 bytes each.
const RECORDS_MAX: usize = 16_384;
/// Failures of one user name from one address before attempts are slowed.
const FREE_FAILURES_PER_NAME: u32 = 3;
/// Failures of all user names from one address before attempts are slowed.
const FREE_FAILURES_PER_ADDRESS: u32 = 30;
/// The first pause; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest an attempt is made to wait before it is turned away instead.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Failures are forgotten so long after the last one.
const MEMORY: Duration = Duration::from_secs(15 * 60);

/// What to do with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Check the password after this pause (zero for most).
    After(Duration),
    /// Too many attempts are waiting: come back after this.
    TurnedAway(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Record {
    failures: u32,
    next_turn: Instant,
    last_seen: Instant,
}

/// Failed attempts by (user name, address) and by address.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Keys are keyed hashes, so that a long user name costs no memory.
    records: HashMap<u64, Record>,
    hasher: RandomState,
}

impl Throttle {
    /// Takes the next turn for an attempt.
    pub(crate) fn take_turn(&mut self, username: &str, address: IpAddr, now: Instant) -> Turn {
        let keys = self.keys(username, address);
        let mut turn_at = now;
        for (key, _) in keys {
            if let Some(record) = self.live(key, now) {
                turn_at = turn_at.max(record.next_turn);
            }
        }
        let wait = turn_at - now;
        if wait > WAIT_MAX {
            return Turn::TurnedAway(wait);
        }
        for (key, free_failures) in keys {
            if let Some(record) = self.records.get_mut(&key) {
                record.next_turn = turn_at + pause(record.failures, free_failures);
            }
        }
        Turn::After(wait)
    }

    /// Records that an attempt failed.
    pub(crate) fn failed(&mut self, username: &str, address: IpAddr, now: Instant) {
        for (key, free_failures) in self.keys(username, address) {
            if self.live(key, now).is_none() {
                self.make_room(now);
                let fresh = Record {
                    failures: 0,
                    next_turn: now,
                    last_seen: now,
                };
                self.records.insert(key, fresh);
            }
            if let Some(record) = self.records.get_mut(&key) {
                record.failures = record.failures.saturating_add(1);
                record.last_seen = now;
                let next_turn = now + pause(record.failures, free_failures);
                record.next_turn = record.next_turn.max(next_turn);
            }
        }
    }

    /// Records that the password was right: this name from this address starts afresh. The
    /// address's own record stays, or one good account would cover guessing at all others.
    pub(crate) fn succeeded(&mut self, username: &str, address: IpAddr) {
        let [(by_name, _), _] = self.keys(username, address);
        self.records.remove(&by_name);
    }

    fn keys(&self, username: &str, address: IpAddr) -> [(u64, u32); 2] {
        [
            (
                self.hasher.hash_one((username, address)),
                FREE_FAILURES_PER_NAME,
            ),
            (self.hasher.hash_one(address), FREE_FAILURES_PER_ADDRESS),
        ]
    }

    fn live(&mut self, key: u64, now: Instant) -> Option<Record> {
        let record = *self.records.get(&key)?;
        if now.saturating_duration_since(record.last_seen) > MEMORY {
            self.records.remove(&key);
            return None;
        }
        Some(record)
    }

    fn make_room(&mut self, now: Instant) {
        if self.records.len() < RECORDS_MAX {
            return;
        }
        self.records
            .retain(|_, record| now.saturating_duration_since(record.last_seen) <= MEMORY);
        while self.records.len() >= RECORDS_MAX {
            let least = self
                .records
                .iter()
                .min_by_key(|(_, record)| (record.failures, record.last_seen))
                .map(|(key, _)| *key);
            let Some(key) = least else { return };
            self.records.remove(&key);
        }
    }
}

fn pause(failures: u32, free_failures: u32) -> Duration {
    let Some(over) = failures.checked_sub(free_failures) else {
        return Duration::ZERO;
    };
    FIRST_PAUSE
        .saturating_mul(1_u32.checked_shl(over.min(16)).unwrap_or(u32::MAX))
        .min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn fail_times(throttle: &mut Throttle, times: u32, now: Instant) {
        for _ in 0..times {
            throttle.failed("admin", HOME, now);
        }
    }

    #[test]
    fn a_few_mistakes_cost_nothing() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        fail_times(&mut throttle, FREE_FAILURES_PER_NAME - 1, now);
        assert_eq!(
            throttle.take_turn("admin", HOME, now),
            Turn::After(Duration::ZERO)
        );
    }

    #[test]
    fn pauses_grow_and_parallel_attempts_queue() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        fail_times(&mut throttle, FREE_FAILURES_PER_NAME, now);
        assert_eq!(
            throttle.take_turn("admin", HOME, now),
            Turn::After(FIRST_PAUSE)
        );
        assert_eq!(
            throttle.take_turn("admin", HOME, now),
            Turn::After(FIRST_PAUSE * 2)
        );
        fail_times(&mut throttle, 10, now);
        assert!(matches!(
            throttle.take_turn("admin", HOME, now),
            Turn::TurnedAway(wait) if wait <= PAUSE_MAX
        ));
    }

    #[test]
    fn another_name_or_address_is_not_slowed() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        fail_times(&mut throttle, 10, now);
        let elsewhere: IpAddr = "10.0.0.9".parse().unwrap();
        assert_eq!(
            throttle.take_turn("admin", elsewhere, now),
            Turn::After(Duration::ZERO)
        );
        assert_eq!(
            throttle.take_turn("viewer", HOME, now),
            Turn::After(Duration::ZERO)
        );
    }

    #[test]
    fn many_names_from_one_address_are_slowed() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for number in 0..FREE_FAILURES_PER_ADDRESS + 5 {
            throttle.failed(&format!("user{number}"), HOME, now);
        }
        assert_ne!(
            throttle.take_turn("someone_else", HOME, now),
            Turn::After(Duration::ZERO)
        );
    }

    #[test]
    fn success_and_time_clear_the_record() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        fail_times(&mut throttle, 8, now);
        throttle.succeeded("admin", HOME);
        assert_eq!(
            throttle.take_turn("admin", HOME, now),
            Turn::After(Duration::ZERO)
        );
        fail_times(&mut throttle, 8, now);
        let later = now + MEMORY + Duration::from_secs(1);
        assert_eq!(
            throttle.take_turn("admin", HOME, later),
            Turn::After(Duration::ZERO)
        );
    }

    #[test]
    fn memory_is_bounded_and_the_worst_offender_is_kept() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        fail_times(&mut throttle, 10, now);
        for number in 0..RECORDS_MAX {
            throttle.failed(&format!("user{number}"), HOME, now);
        }
        assert!(throttle.records.len() <= RECORDS_MAX);
        assert!(matches!(
            throttle.take_turn("admin", HOME, now),
            Turn::TurnedAway(_)
        ));
    }
}
