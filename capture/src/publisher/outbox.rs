//! Events on their way to librdkafka. No I/O.
//!
//! librdkafka sends what it has after `linger.ms`, however little that is. Handed over many at
//! a time, events travel in few and large batches, which cost the broker, the compression and
//! the threads in between a fraction, and nothing is visible before the commit anyway.

/// What is handed over at a time: about one full batch.
const BYTES_MAX: usize = 1 << 20;
const EVENTS_MAX: usize = 5_000;

/// An event this large is a batch by itself, and not worth a copy.
const LARGE_BYTES: usize = 64 << 10;

/// Whether an event of so many bytes should not wait for others.
pub(super) fn is_large(bytes: usize) -> bool {
    bytes >= LARGE_BYTES
}

/// One event in an outbox.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    /// 0 for no key.
    key: usize,
    value: usize,
}

/// Keys and values, one after the other.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    events: Vec<Lengths>,
}

impl Outbox {
    /// Appends an event. An empty key is none.
    pub(super) fn push(&mut self, key: Option<&[u8]>, value: &[u8]) {
        let key = key.unwrap_or_default();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.events.push(Lengths {
            key: key.len(),
            value: value.len(),
        });
    }

    /// Whether it is time to hand over what is here.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BYTES_MAX || self.events.len() >= EVENTS_MAX
    }

    /// Key and value of each event, in the order they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.events.iter().filter_map(move |lengths| {
            let (key, after) = rest.split_at_checked(lengths.key)?;
            let (value, after) = after.split_at_checked(lengths.value)?;
            rest = after;
            Some(((!key.is_empty()).then_some(key), value))
        })
    }

    /// Forgets the events and keeps the memory, which is bounded: it is cleared when full.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.events.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_as_they_went_in() {
        let mut outbox = Outbox::default();
        outbox.push(Some(b"key"), b"first");
        outbox.push(None, b"second");
        outbox.push(Some(b"k"), b"");
        let seen: Vec<_> = outbox.iter().collect();
        let expected: [(Option<&[u8]>, &[u8]); 3] = [
            (Some(b"key"), b"first"),
            (None, b"second"),
            (Some(b"k"), b""),
        ];
        assert_eq!(seen, expected);
        outbox.clear();
        assert_eq!(outbox.iter().count(), 0);
    }

    #[test]
    fn it_fills_by_bytes_and_by_count() {
        let mut outbox = Outbox::default();
        while !outbox.is_full() {
            outbox.push(None, b"");
        }
        assert_eq!(outbox.events.len(), EVENTS_MAX);
        outbox.clear();
        let value = vec![0; LARGE_BYTES - 1];
        while !outbox.is_full() {
            outbox.push(None, &value);
        }
        assert!(outbox.bytes.len() < BYTES_MAX + LARGE_BYTES);
    }
}
