//! The bytes of a running stream, both ways. No I/O.
//!
//! Frames of the frontend/backend protocol, and in their CopyData the messages of the
//! streaming replication protocol (chapters 54.2.2 and 54.4 of the manual).

use bytes::{Buf, Bytes, BytesMut};

use crate::Lsn;

/// Bytes of a frame's type and length.
const HEADER_BYTES: usize = 5;

/// The largest frame there can be: the server's own limit on an allocation, and on a row.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// 2000-01-01 in microseconds since the Unix epoch.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Ends the copy from our side.
pub(super) const COPY_DONE: [u8; 5] = [b'c', 0, 0, 0, 4];

/// Says good-bye.
pub(super) const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// What stands in the stream is no frame or no replication message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) body: Bytes,
}

/// Takes the first frame off the buffer, or says how many bytes it misses at least.
pub(super) fn take_frame(buffer: &mut BytesMut) -> Result<Result<Frame, usize>, Malformed> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(Err(HEADER_BYTES - buffer.len()));
    };
    let [kind, a, b, c, d] = *header;
    // It counts itself, not the kind.
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(Malformed("a frame of an impossible length"));
    }
    let missing = (1 + length).saturating_sub(buffer.len());
    if missing > 0 {
        return Ok(Err(missing));
    }
    buffer.advance(HEADER_BYTES);
    let body = buffer.split_to(length + 1 - HEADER_BYTES).freeze();
    Ok(Ok(Frame { kind, body }))
}

/// What the server says within the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// WAL data: where it starts, and the output plugin's message.
    Wal { start: Lsn, message: Bytes },
    /// It has sent everything before `wal_end`.
    Keepalive { wal_end: Lsn, reply_requested: bool },
}

/// Reads the body of a CopyData frame.
pub(super) fn read_copy_data(mut body: Bytes) -> Result<Said, Malformed> {
    let malformed = Malformed("a replication message that is cut off");
    match body.first() {
        Some(b'w') => {
            let start = u64_at(&body, 1).ok_or(malformed)?;
            // Skips the server's WAL end and clock too.
            if body.len() < 25 {
                return Err(malformed);
            }
            body.advance(25);
            Ok(Said::Wal {
                start: Lsn(start),
                message: body,
            })
        }
        Some(b'k') => {
            let wal_end = u64_at(&body, 1).ok_or(malformed)?;
            let reply = *body.get(17).ok_or(malformed)?;
            Ok(Said::Keepalive {
                wal_end: Lsn(wal_end),
                reply_requested: reply != 0,
            })
        }
        _ => Err(Malformed("an unknown replication message")),
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let (found, _) = bytes.get(at..)?.split_first_chunk::<8>()?;
    Some(u64::from_be_bytes(*found))
}

/// A CopyData frame that tells the server how far its log is safe with us (written,
/// flushed and applied alike), at `now_us` microseconds since the Unix epoch.
pub(super) fn status(confirmed: Lsn, now_us: i64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + 34);
    frame.extend_from_slice(&[b'd', 0, 0, 0, 38, b'r']);
    for _ in 0..3 {
        frame.extend_from_slice(&confirmed.0.to_be_bytes());
    }
    frame.extend_from_slice(&(now_us - POSTGRES_EPOCH_US).to_be_bytes());
    // No reply wanted.
    frame.push(0);
    frame
}

/// A simple query.
pub(super) fn query(sql: &str) -> Vec<u8> {
    let length = u32::try_from(sql.len() + 5).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(sql.len() + 6);
    frame.push(b'Q');
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(sql.as_bytes());
    frame.push(0);
    frame
}

/// Message and SQLSTATE of an ErrorResponse.
pub(super) fn read_error(body: &[u8]) -> (String, Option<String>) {
    let (mut message, mut code) = (String::new(), None);
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'M', text)) => message = String::from_utf8_lossy(text).into_owned(),
            Some((b'C', text)) => code = Some(String::from_utf8_lossy(text).into_owned()),
            _ => {}
        }
    }
    if let Some(code) = &code {
        message.push_str(&format!(" ({code})"));
    }
    (message, code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn frames_come_one_by_one_and_whole() {
        let mut sent = frame(b'd', b"first");
        sent.extend(frame(b'c', b""));
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in sent {
            buffer.extend_from_slice(&[byte]);
            match take_frame(&mut buffer).unwrap() {
                Ok(frame) => seen.push((frame.kind, frame.body.to_vec())),
                Err(missing) => assert!(missing > 0),
            }
        }
        assert_eq!(seen, [(b'd', b"first".to_vec()), (b'c', Vec::new())]);
        assert_eq!(take_frame(&mut buffer), Ok(Err(5)));
        buffer.extend_from_slice(&frame(b'd', b"0123456789")[..7]);
        assert_eq!(take_frame(&mut buffer), Ok(Err(8)));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0_u32, 3, (1 << 30) + 1, u32::MAX] {
            let mut buffer = BytesMut::from(&b"d"[..]);
            buffer.extend_from_slice(&length.to_be_bytes());
            assert!(take_frame(&mut buffer).is_err(), "{length}");
        }
    }

    #[test]
    fn replication_messages_are_read() {
        let mut wal = vec![b'w'];
        wal.extend_from_slice(&7_u64.to_be_bytes());
        wal.extend_from_slice(&[0; 16]);
        let said = |bytes: &[u8]| read_copy_data(Bytes::copy_from_slice(bytes));
        let start = Lsn(7);
        for message in [&b""[..], b"Insert"] {
            let whole = [&wal, message].concat();
            let message = Bytes::copy_from_slice(message);
            assert_eq!(said(&whole), Ok(Said::Wal { start, message }));
        }
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&9_u64.to_be_bytes());
        keepalive.extend_from_slice(&[0; 8]);
        keepalive.push(1);
        let wal_end = Lsn(9);
        let reply_requested = true;
        assert_eq!(
            said(&keepalive),
            Ok(Said::Keepalive {
                wal_end,
                reply_requested
            })
        );
        assert!(said(&wal[..24]).is_err());
        assert!(said(&keepalive[..17]).is_err());
        assert!(said(b"").is_err());
        assert!(said(b"x").is_err());
    }

    #[test]
    fn a_status_is_laid_out_as_the_manual_says() {
        let frame = status(Lsn(0x0102_0304_0506_0708), POSTGRES_EPOCH_US + 5);
        assert_eq!(frame.len(), 39);
        assert_eq!(frame[..6], [b'd', 0, 0, 0, 38, b'r']);
        for position in 0..3 {
            let at = 6 + 8 * position;
            assert_eq!(frame[at..at + 8], [1, 2, 3, 4, 5, 6, 7, 8]);
        }
        assert_eq!(frame[30..], [0, 0, 0, 0, 0, 0, 0, 5, 0]);
    }

    #[test]
    fn queries_and_errors() {
        assert_eq!(query("ab"), [b'Q', 0, 0, 0, 7, b'a', b'b', 0]);
        let (message, code) = read_error(b"SFATAL\0C55006\0Mslot \"s\" is active\0\0");
        assert_eq!(message, "slot \"s\" is active (55006)");
        assert_eq!(code.as_deref(), Some("55006"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let _ = take_frame(&mut buffer);
            let _ = read_copy_data(Bytes::from(bytes.clone()));
            let _ = read_error(&bytes);
        }
    }
}
