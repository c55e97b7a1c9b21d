//! Avro's primitives as bytes, and the Confluent frame around a datum.
//!
//! Writers append to a `Vec<u8>`; the reader borrows from the message and answers
//! any input with a value or [`Error::Malformed`], never a panic.

use uuid::Uuid;

use crate::{Error, Result};

/// Bytes of the frame: `0x00` and the schema id, big-endian.
pub const FRAME_BYTES: usize = 5;

/// Appends the Confluent frame for `schema_id`.
pub fn write_frame(out: &mut Vec<u8>, schema_id: u32) {
    out.push(0);
    out.extend_from_slice(&schema_id.to_be_bytes());
}

/// Splits a framed message into schema id and datum.
pub fn read_frame(message: &[u8]) -> Result<(u32, &[u8])> {
    match message {
        [0, a, b, c, d, datum @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), datum)),
        _ => Err(Error::Malformed {
            what: "frame of a zero byte and a schema id",
            at: 0,
        }),
    }
}

/// The most groups of seven bits that 64 bits make.
const LONG_BYTES_MAX: usize = 10;

/// `int` and `long`: zigzag, then base 128 with the low group first.
#[inline]
pub(crate) fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    // Appended as a whole, so that the room for it is looked at once.
    let mut bytes = [0; LONG_BYTES_MAX];
    let mut length = 0;
    while rest >= 0x80 {
        bytes[length] = rest as u8 | 0x80;
        length += 1;
        rest >>= 7;
    }
    bytes[length] = rest as u8;
    out.extend_from_slice(&bytes[..=length]);
}

/// A `u64` such as an LSN as a `long` with the same 64 bits.
#[inline]
pub(crate) fn write_u64(out: &mut Vec<u8>, value: u64) {
    write_long(out, value as i64);
}

#[inline]
pub(crate) fn write_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// `bytes` and `string`: length, then the bytes.
#[inline]
pub(crate) fn write_bytes(out: &mut Vec<u8>, value: &[u8]) {
    write_long(out, value.len() as i64);
    out.extend_from_slice(value);
}

#[inline]
pub(crate) fn write_str(out: &mut Vec<u8>, value: &str) {
    write_bytes(out, value.as_bytes());
}

/// A UUID as `string` in its hyphenated form.
#[inline]
pub(crate) fn write_uuid(out: &mut Vec<u8>, value: Uuid) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    write_str(out, value.hyphenated().encode_lower(&mut text));
}

/// A Postgres timeline (32 bits, unsigned) as `int` with the same bits.
pub(crate) fn write_timeline(out: &mut Vec<u8>, timeline: u32) {
    write_long(out, i64::from(timeline as i32));
}

/// `array`: one block with all items, then the empty block.
pub(crate) fn write_array<T>(out: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        write_long(out, items.len() as i64);
        for item in items {
            write(out, item);
        }
    }
    out.push(0);
}

/// Reads a datum from front to back.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    datum: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(datum: &'a [u8]) -> Reader<'a> {
        Reader { datum, at: 0 }
    }

    #[cold]
    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed { what, at: self.at }
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8]> {
        match self
            .at
            .checked_add(count)
            .and_then(|end| self.datum.get(self.at..end))
        {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Err(self.malformed(what)),
        }
    }

    #[inline]
    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8> {
        match self.datum.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => Err(self.malformed(what)),
        }
    }

    #[inline]
    pub(crate) fn long(&mut self) -> Result<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte("a whole number")?;
            // The tenth group has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(self.malformed("a number of at most 64 bits"))
    }

    #[inline]
    pub(crate) fn int(&mut self) -> Result<i32> {
        let value = self.long()?;
        i32::try_from(value).map_err(|_| self.malformed("a number of 32 bits"))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.long().map(|value| value as u64)
    }

    pub(crate) fn timeline(&mut self) -> Result<u32> {
        self.int().map(|bits| bits as u32)
    }

    #[inline]
    pub(crate) fn bool(&mut self) -> Result<bool> {
        match self.byte("a boolean")? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a boolean of 0 or 1")),
        }
    }

    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| self.malformed("a length"))?;
        self.take(length, "as many bytes as the length says")
    }

    #[inline]
    pub(crate) fn str(&mut self) -> Result<&'a str> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("text in UTF-8"))
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid> {
        let text = self.str()?;
        Uuid::try_parse(text).map_err(|_| self.malformed("a UUID"))
    }

    pub(crate) fn float(&mut self) -> Result<f32> {
        let bytes = self.take(4, "a float of 4 bytes")?;
        Ok(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(crate) fn double(&mut self) -> Result<f64> {
        let bytes = self.take(8, "a double of 8 bytes")?;
        let mut raw = [0; 8];
        raw.copy_from_slice(bytes);
        Ok(f64::from_le_bytes(raw))
    }

    /// Branch of a union or symbol of an enum, below `count`.
    #[inline]
    pub(crate) fn branch(&mut self, count: i64, what: &'static str) -> Result<usize> {
        let index = self.long()?;
        if (0..count).contains(&index) {
            Ok(index as usize)
        } else {
            Err(self.malformed(what))
        }
    }

    /// Calls `item` for each item of an array, block by block. Nothing is
    /// reserved from the count, which a damaged message may exaggerate.
    pub(crate) fn array(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                // A negative count is followed by the block's size in bytes.
                count = count
                    .checked_neg()
                    .ok_or_else(|| self.malformed("a block count"))?;
                self.long()?;
            }
            for _ in 0..count {
                item(self)?;
            }
        }
    }

    /// An array as a list.
    pub(crate) fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        self.array(|reader| {
            items.push(item(reader)?);
            Ok(())
        })?;
        Ok(items)
    }

    /// Ends the datum: nothing may be left.
    pub(crate) fn end(&self) -> Result<()> {
        if self.at == self.datum.len() {
            Ok(())
        } else {
            Err(self.malformed("the end of the datum"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn long_round_trips(value: i64) {
            let mut out = Vec::new();
            write_long(&mut out, value);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.long().unwrap(), value);
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).long();
            let _ = Reader::new(&bytes).str();
            let _ = Reader::new(&bytes).uuid();
            let _ = Reader::new(&bytes).double();
            let mut reader = Reader::new(&bytes);
            let _ = reader.array(|item| item.str().map(|_| ()));
        }
    }

    #[test]
    fn overlong_numbers_are_refused() {
        assert!(Reader::new(&[0xff; 11]).long().is_err());
        assert!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2])
                .long()
                .is_err()
        );
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])
                .long()
                .unwrap(),
            i64::MIN
        );
    }

    #[test]
    fn frame_splits() {
        let mut out = Vec::new();
        write_frame(&mut out, 0x0102_0304);
        out.push(9);
        assert_eq!(out, [0, 1, 2, 3, 4, 9]);
        assert_eq!(read_frame(&out).unwrap(), (0x0102_0304, &[9][..]));
        assert!(read_frame(&out[..4]).is_err());
        assert!(read_frame(&[1, 0, 0, 0, 0]).is_err());
    }
}
