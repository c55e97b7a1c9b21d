//! Typed values as Postgres prints and reads them, under the pinned settings
//! (`extra_float_digits` 3, `bytea_output` hex).

use std::fmt::{self, Write};

use super::shortest::{self, Decimal};

/// `t` or `f`.
pub(crate) fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"t" => Some(true),
        b"f" => Some(false),
        _ => None,
    }
}

/// A whole number in decimal.
pub(crate) fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    // Counted downwards: the smallest number has no positive counterpart.
    let mut value = 0_i64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative {
        Some(value)
    } else {
        value.checked_neg()
    }
}

/// A `real`.
pub(crate) fn parse_float(text: &[u8]) -> Option<f32> {
    let value: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.is_finite() || is_named(text)).then_some(value)
}

/// A `double precision`.
pub(crate) fn parse_double(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.is_finite() || is_named(text)).then_some(value)
}

/// The values that are no numbers; anything else that parses as infinite is a
/// number out of range.
fn is_named(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// Bytes of a `bytea` in hex form, without its `\x`.
pub(crate) fn bytea_digits(text: &[u8]) -> Option<&[u8]> {
    let digits = text.strip_prefix(b"\\x")?;
    digits.len().is_multiple_of(2).then_some(digits)
}

/// Appends the bytes of hexadecimal digits; false when one is none.
pub(crate) fn decode_hex(out: &mut Vec<u8>, digits: &[u8]) -> bool {
    out.reserve(digits.len() / 2);
    let mut valid = true;
    out.extend(digits.chunks_exact(2).map(|pair| {
        let (high, low) = (HEX_VALUES[pair[0] as usize], HEX_VALUES[pair[1] as usize]);
        valid &= (high | low) & 0xf0 == 0;
        high << 4 | low
    }));
    valid
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Value of each hexadecimal digit, `0xff` for other bytes.
const HEX_VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        let character = HEX_DIGITS[digit];
        values[character as usize] = digit as u8;
        values[character.to_ascii_uppercase() as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// Appends a whole number.
pub(crate) fn print_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    print_digits(out, value.unsigned_abs());
}

/// Appends a whole number that is not negative, without the detour through a formatter.
fn print_digits(out: &mut Vec<u8>, value: u64) {
    /// Digits of the largest number.
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    let mut rest = value;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends a `real`. Postgres prints it without an exponent from 1e-4 below 1e6.
pub(crate) fn print_float(out: &mut Vec<u8>, value: f32) {
    if !print_named(out, f64::from(value)) {
        print_sign(out, value.is_sign_negative());
        print_decimal(out, shortest::of_float(value.abs()), 6);
    }
}

/// Appends a `double precision`. Postgres prints it without an exponent from 1e-4
/// below 1e15.
pub(crate) fn print_double(out: &mut Vec<u8>, value: f64) {
    if !print_named(out, value) {
        print_sign(out, value.is_sign_negative());
        print_decimal(out, shortest::of_double(value.abs()), 15);
    }
}

/// Appends a `bytea` in its hex form.
pub(crate) fn print_bytea(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(b"\\x");
    let start = out.len();
    out.resize(start + value.len() * 2, 0);
    let (pairs, _) = out[start..].as_chunks_mut();
    for (pair, byte) in pairs.iter_mut().zip(value) {
        *pair = [
            HEX_DIGITS[usize::from(byte >> 4)],
            HEX_DIGITS[usize::from(byte & 0xf)],
        ];
    }
}

fn print_named(out: &mut Vec<u8>, value: f64) -> bool {
    let name: &[u8] = if value.is_nan() {
        b"NaN"
    } else if value == f64::INFINITY {
        b"Infinity"
    } else if value == f64::NEG_INFINITY {
        b"-Infinity"
    } else {
        return false;
    };
    out.extend_from_slice(name);
    true
}

fn print_sign(out: &mut Vec<u8>, negative: bool) {
    if negative {
        out.push(b'-');
    }
}

/// Lays digits out as `to_chars` of Postgres' `d2s.c` and `f2s.c` do: fixed from
/// 1e-4 below `1e<fixed_below>`, else with a signed exponent of at least two digits.
fn print_decimal(out: &mut Vec<u8>, decimal: Decimal, fixed_below: i32) {
    let mut text = Short::default();
    let _ = write!(text, "{}", decimal.digits);
    let digits = text.as_bytes();
    // Power of ten of the first digit.
    let exponent = decimal.exponent + digits.len() as i32 - 1;
    let (first, rest) = digits.split_at(1);
    if exponent < -4 || exponent >= fixed_below {
        out.extend_from_slice(first);
        if !rest.is_empty() {
            out.push(b'.');
            out.extend_from_slice(rest);
        }
        let mut text = Short::default();
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(text, "e{sign}{:02}", exponent.unsigned_abs());
        out.extend_from_slice(text.as_bytes());
    } else if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', (-exponent - 1) as usize));
        out.extend_from_slice(digits);
    } else {
        let whole = exponent as usize;
        out.extend_from_slice(first);
        out.extend_from_slice(&rest[..whole.min(rest.len())]);
        out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(rest.len())));
        if rest.len() > whole {
            out.push(b'.');
            out.extend_from_slice(&rest[whole..]);
        }
    }
}

/// Text on the stack; the longest number takes 24 bytes.
#[derive(Default)]
pub(super) struct Short {
    bytes: [u8; 32],
    length: usize,
}

impl Short {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(super) fn as_str(&self) -> &str {
        // Only whole `str`s were written.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn printed(print: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        print(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// As printed by a server of version 15 for the same texts.
    #[test]
    fn doubles_print_as_postgres_does() {
        for text in [
            "0",
            "-0",
            "1",
            "-1",
            "0.1",
            "1e+20",
            "1e-05",
            "0.0001",
            "0.00012345",
            "123456.789",
            "100000",
            "999999",
            "1000000",
            "123456789012345",
            "1e+15",
            "1.5e+15",
            "5e-324",
            "1.7976931348623157e+308",
            "2.2250738585072014e-308",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e+100",
            "1.25e-100",
            "3.141592653589793",
            "-1.2345e-07",
        ] {
            let value = parse_double(text.as_bytes()).unwrap();
            assert_eq!(printed(|out| print_double(out, value)), text);
        }
    }

    #[test]
    fn floats_print_as_postgres_does() {
        for text in [
            "0",
            "-0",
            "1",
            "0.1",
            "1e+06",
            "999999",
            "1.5e+06",
            "1.234567e+06",
            "1e-05",
            "0.0001",
            "1e-45",
            "3.4028235e+38",
            "1.1754944e-38",
            "NaN",
            "Infinity",
            "-Infinity",
            "-3.1415927",
        ] {
            let value = parse_float(text.as_bytes()).unwrap();
            assert_eq!(printed(|out| print_float(out, value)), text);
        }
    }

    #[test]
    fn texts_that_are_no_values_are_refused() {
        for text in [
            "", "1e400", "-1e400", "inf", "nan", "1 ", " 1", "0x1", "one",
        ] {
            assert_eq!(parse_double(text.as_bytes()), None, "{text}");
            assert_eq!(parse_float(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_float(b"1e39"), None);
        for text in [
            "",
            "-",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "1a",
        ] {
            assert_eq!(parse_int(text.as_bytes()), None, "{text}");
        }
        for text in ["true", "", "T"] {
            assert_eq!(parse_bool(text.as_bytes()), None, "{text}");
        }
        assert_eq!(bytea_digits(b"\\x0"), None);
        assert_eq!(bytea_digits(b"00"), None);
        assert!(!decode_hex(&mut Vec::new(), b"0g"));
        assert!(!decode_hex(&mut Vec::new(), "é".as_bytes()));
    }

    proptest! {
        #[test]
        fn doubles_round_trip(bits: u64) {
            let value = f64::from_bits(bits);
            let text = printed(|out| print_double(out, value));
            let read = parse_double(text.as_bytes()).unwrap();
            prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()), "{}", text);
        }

        #[test]
        fn floats_round_trip(bits: u32) {
            let value = f32::from_bits(bits);
            let text = printed(|out| print_float(out, value));
            let read = parse_float(text.as_bytes()).unwrap();
            prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()), "{}", text);
        }

        #[test]
        fn ints_round_trip(value: i64) {
            let text = printed(|out| print_int(out, value));
            prop_assert_eq!(&text, &value.to_string());
            prop_assert_eq!(parse_int(text.as_bytes()), Some(value));
        }

        #[test]
        fn bytea_round_trips(value: Vec<u8>) {
            let text = printed(|out| print_bytea(out, &value));
            let mut read = Vec::new();
            prop_assert!(decode_hex(&mut read, bytea_digits(text.as_bytes()).unwrap()));
            prop_assert_eq!(read, value);
        }
    }
}
