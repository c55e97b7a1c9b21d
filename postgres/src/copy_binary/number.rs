//! Numbers.

use super::{Known, NotKnown, Put};

/// Postgres reads more than that (spaces, other radixes), but prints digits only.
pub(super) fn integer<N: std::str::FromStr>(text: &[u8]) -> Result<N, NotKnown> {
    if !text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-')) {
        return Err(NotKnown);
    }
    parse(text)
}

/// What a float can be asked.
pub(super) trait Float: std::str::FromStr + Copy {
    const NAN: Self;
    const INFINITY: Self;
    const NEGATIVE_INFINITY: Self;
    /// It is no number, or none that a decimal other than 0 was meant to be.
    fn is_out_of_range(self) -> bool;
}

macro_rules! float {
    ($float:ident) => {
        impl Float for $float {
            const NAN: Self = $float::NAN;
            const INFINITY: Self = $float::INFINITY;
            const NEGATIVE_INFINITY: Self = $float::NEG_INFINITY;
            fn is_out_of_range(self) -> bool {
                !self.is_finite() || self == 0.0
            }
        }
    };
}

float!(f32);
float!(f64);

/// Rounded to the nearest, as the C library does it. A decimal beyond the type's range is for the server
/// to refuse.
pub(super) fn float<F: Float>(text: &[u8]) -> Result<F, NotKnown> {
    match text {
        b"NaN" => return Ok(F::NAN),
        b"Infinity" => return Ok(F::INFINITY),
        b"-Infinity" => return Ok(F::NEGATIVE_INFINITY),
        _ => {}
    }
    let is_decimal = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e');
    if !text.iter().all(is_decimal) {
        return Err(NotKnown);
    }
    let value: F = parse(text)?;
    let is_zero = || text.iter().all(|byte| matches!(byte, b'0' | b'-' | b'.'));
    if value.is_out_of_range() && !is_zero() {
        return Err(NotKnown);
    }
    Ok(value)
}

fn parse<N: std::str::FromStr>(text: &[u8]) -> Result<N, NotKnown> {
    let text = std::str::from_utf8(text).map_err(|_| NotKnown)?;
    text.parse().map_err(|_| NotKnown)
}

/// Decimal digits in a digit of a numeric.
const GROUP: usize = 4;

/// Longer numerals are left to the server, which has limits of its own.
const NUMERAL_BYTES_MAX: usize = 4_000;

/// Signs, and what stands in their place, in src/backend/utils/adt/numeric.c.
const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// What a server sends as the decimals of an infinity: its sign looked at as those of a number.
const INFINITY_DECIMALS: u16 = 32;

/// Digits of base 10,000 (their number, the exponent of the first, the sign, decimals shown, themselves), without
/// zeros at either end.
pub(super) fn numeric(out: &mut Vec<u8>, text: &[u8]) -> Known {
    let special = match text {
        b"NaN" => Some((NAN, 0)),
        b"Infinity" => Some((POSITIVE_INFINITY, INFINITY_DECIMALS)),
        b"-Infinity" => Some((NEGATIVE_INFINITY, INFINITY_DECIMALS)),
        _ => None,
    };
    if let Some((sign, decimals)) = special {
        header(out, sign, decimals);
        return Ok(());
    }
    if text.len() > NUMERAL_BYTES_MAX {
        return Err(NotKnown);
    }
    let (sign, numeral) = match text.strip_prefix(b"-") {
        Some(numeral) => (NEGATIVE, numeral),
        None => (POSITIVE, text),
    };
    let point = numeral.iter().position(|&byte| byte == b'.');
    let (whole, decimals) = match point {
        Some(at) => (&numeral[..at], &numeral[at + 1..]),
        None => (numeral, &[][..]),
    };
    let is_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !is_digits(whole) || !is_digits(decimals) {
        return Err(NotKnown);
    }
    let (first, whole_groups) = whole.split_at(whole.len() % GROUP);
    let groups = (!first.is_empty())
        .then_some(first)
        .into_iter()
        .chain(whole_groups.chunks(GROUP))
        .map(|group| digit(group, 0))
        .chain(decimals.chunks(GROUP).map(|group| digit(group, GROUP)));

    let start = out.len();
    header(out, sign, decimals.len() as u16);
    let digits = out.len();
    let mut weight = whole.len().div_ceil(GROUP) as i16 - 1;
    let mut kept = digits;
    for group in groups {
        if group == 0 && out.len() == digits {
            weight -= 1;
            continue;
        }
        group.to_be_bytes().put(out);
        if group != 0 {
            kept = out.len();
        }
    }
    out.truncate(kept);
    let count = ((kept - digits) / 2) as u16;
    let (weight, sign) = match count {
        0 => (0, POSITIVE),
        _ => (weight, sign),
    };
    let mut set = |place: usize, value: [u8; 2]| {
        out[start + 2 * place..start + 2 * place + 2].copy_from_slice(&value);
    };
    set(0, count.to_be_bytes());
    set(1, weight.to_be_bytes());
    set(2, sign.to_be_bytes());
    Ok(())
}

/// Of no digits.
fn header(out: &mut Vec<u8>, sign: u16, decimals: u16) {
    for part in [0, 0, sign, decimals] {
        part.to_be_bytes().put(out);
    }
}

/// At most four decimal digits, filled up with zeros to `width`.
fn digit(decimal: &[u8], width: usize) -> u16 {
    let mut value = 0;
    for &byte in decimal {
        value = value * 10 + u16::from(byte - b'0');
    }
    for _ in decimal.len()..width {
        value *= 10;
    }
    value
}
