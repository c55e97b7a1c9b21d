//! Messages on their way to librdkafka. No I/O.
//!
//! Handed over many at a time, events wake librdkafka's threads seldom; nothing is visible before
//! the commit anyway.

/// What is handed over at a time.
const BYTES_MAX: usize = 1 << 20;
const MESSAGES_MAX: usize = 5_000;

/// A message this large is a batch by itself, and not worth a copy.
const LARGE_BYTES: usize = 64 << 10;

/// Whether a message of so many bytes should not wait for others.
pub(super) fn is_large(bytes: usize) -> bool {
    bytes >= LARGE_BYTES
}

use std::sync::Arc;

/// A message without headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// A table topic; `None` for the change topic.
    pub(super) topic: Option<&'a Arc<str>>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
}

/// One message in an outbox.
#[derive(Debug, Clone)]
struct Kept {
    topic: Option<Arc<str>>,
    /// 0 for no key.
    key: usize,
    value: Option<usize>,
}

/// Keys and values, one after the other.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    messages: Vec<Kept>,
}

impl Outbox {
    /// Appends a message. An empty key is none.
    pub(super) fn push(&mut self, message: Message<'_>) {
        let key = message.key.unwrap_or_default();
        self.bytes.extend_from_slice(key);
        self.bytes
            .extend_from_slice(message.value.unwrap_or_default());
        self.messages.push(Kept {
            topic: message.topic.cloned(),
            key: key.len(),
            value: message.value.map(<[u8]>::len),
        });
    }

    /// Whether it is time to hand over what is here.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BYTES_MAX || self.messages.len() >= MESSAGES_MAX
    }

    /// Each message, in the order they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        let mut rest = self.bytes.as_slice();
        self.messages.iter().filter_map(move |kept| {
            let (key, after) = rest.split_at_checked(kept.key)?;
            let (value, after) = after.split_at_checked(kept.value.unwrap_or_default())?;
            rest = after;
            Some(Message {
                topic: kept.topic.as_ref(),
                key: (!key.is_empty()).then_some(key),
                value: kept.value.map(|_| value),
            })
        })
    }

    /// Forgets the messages and keeps the memory, which is bounded: it is cleared when full.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(key: Option<&'a [u8]>, value: &'a [u8]) -> Message<'a> {
        Message {
            topic: None,
            key,
            value: Some(value),
        }
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let mut outbox = Outbox::default();
        let topic = Arc::from("table");
        let tombstone = Message {
            topic: Some(&topic),
            key: Some(b"gone"),
            value: None,
        };
        let messages = [
            message(Some(b"key"), b"first"),
            tombstone,
            message(None, b"second"),
            message(Some(b"k"), b""),
        ];
        for message in messages {
            outbox.push(message);
        }
        let seen: Vec<_> = outbox.iter().collect();
        assert_eq!(seen, messages);
        outbox.clear();
        assert_eq!(outbox.iter().count(), 0);
    }

    #[test]
    fn it_fills_by_bytes_and_by_count() {
        let mut outbox = Outbox::default();
        while !outbox.is_full() {
            outbox.push(message(None, b""));
        }
        assert_eq!(outbox.messages.len(), MESSAGES_MAX);
        outbox.clear();
        let value = vec![0; LARGE_BYTES - 1];
        while !outbox.is_full() {
            outbox.push(message(None, &value));
        }
        assert!(outbox.bytes.len() < BYTES_MAX + LARGE_BYTES);
    }
}
