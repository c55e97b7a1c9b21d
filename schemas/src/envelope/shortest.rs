//! The shortest decimal digits of a binary float, as Postgres chooses them.
//!
//! Postgres (`src/common/d2s.c`, `f2s.c`) and Rust both print the fewest digits
//! that read back as the same value, and the closest of those. They differ in two
//! rare cases (measured on a server of version 15: about 1 in 2,000 random doubles
//! of 1e-300 to 1e300, 1 in 250 reals):
//!
//! * Postgres does not use a decimal that lies exactly half-way to the next float,
//!   which reads back correctly only by the rule of rounding to even (1e23 is one);
//! * where two candidates are equally close, it takes the even one.
//!
//! The text matters where rows are found by it, so both are put right here.

use std::fmt::Write;

use super::numbers::{Short, parse_int};

/// `digits × 10^exponent`; no trailing zero in `digits` unless it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decimal {
    pub(super) digits: u64,
    pub(super) exponent: i32,
}

/// `mantissa × 2^exponent`.
#[derive(Debug, Clone, Copy)]
struct Binary {
    mantissa: u64,
    exponent: i32,
    /// The next smaller float is only half as far away as the next larger.
    lower_is_near: bool,
}

/// How a float prints and reads; one implementation for each width.
trait Float: Copy {
    /// With fewer digits than so and a fraction, the two cases cannot occur: the
    /// decimal would have to equal a number of more bits than its digits can say.
    const DIGITS_CERTAIN: u64;
    /// Digits that tell any two floats apart.
    const DIGITS_MAX: usize;

    fn binary(self) -> Binary;
    fn print(self, out: &mut Short);
    fn print_digits(self, out: &mut Short, count: usize);
    fn is_read_from(self, text: &str) -> bool;
}

/// Of a finite `real` that is not negative.
pub(super) fn of_float(value: f32) -> Decimal {
    shortest(value)
}

/// Of a finite `double precision` that is not negative.
pub(super) fn of_double(value: f64) -> Decimal {
    shortest(value)
}

fn shortest<F: Float>(value: F) -> Decimal {
    let mut text = Short::default();
    value.print(&mut text);
    let rust = read(&text);
    if rust.digits == 0 || rust.exponent < 0 && rust.digits < F::DIGITS_CERTAIN {
        return rust;
    }
    let binary = value.binary();
    let first = to_even(value, binary, rust);
    if !binary.is_half_way(first) {
        return first;
    }
    for count in 1..=F::DIGITS_MAX {
        let mut text = Short::default();
        value.print_digits(&mut text, count);
        let closest = to_even(value, binary, read_padded(&text));
        let above = Decimal {
            digits: closest.digits + 1,
            ..closest
        };
        for candidate in [closest, above] {
            if is_inside(value, binary, candidate) {
                return candidate.without_zeros();
            }
        }
    }
    first
}

/// Replaces an odd last digit where the even neighbour is exactly as close.
fn to_even<F: Float>(value: F, binary: Binary, decimal: Decimal) -> Decimal {
    if decimal.digits.is_multiple_of(2) {
        return decimal;
    }
    for (middle, even) in [
        (decimal.digits * 2 + 1, decimal.digits + 1),
        (decimal.digits * 2 - 1, decimal.digits - 1),
    ] {
        let even = Decimal {
            digits: even,
            ..decimal
        };
        // value = middle / 2 × 10^exponent
        if binary.twice().equals(middle, decimal.exponent) && is_inside(value, binary, even) {
            return even.without_zeros();
        }
    }
    decimal
}

/// Whether the decimal reads back as the value, whatever the rule of rounding.
fn is_inside<F: Float>(value: F, binary: Binary, decimal: Decimal) -> bool {
    let mut text = Short::default();
    let _ = write!(text, "{}e{}", decimal.digits, decimal.exponent);
    value.is_read_from(text.as_str()) && !binary.is_half_way(decimal)
}

impl Decimal {
    fn without_zeros(mut self) -> Decimal {
        while self.digits != 0 && self.digits.is_multiple_of(10) {
            self.digits /= 10;
            self.exponent += 1;
        }
        self
    }
}

impl Binary {
    fn twice(self) -> Binary {
        Binary {
            exponent: self.exponent + 1,
            ..self
        }
    }

    /// Whether the decimal lies exactly half-way to a neighbouring float.
    fn is_half_way(self, decimal: Decimal) -> bool {
        let half_way = |mantissa, exponent| {
            let middle = Binary {
                mantissa,
                exponent,
                lower_is_near: false,
            };
            middle.equals(decimal.digits, decimal.exponent)
        };
        let below = if self.lower_is_near {
            half_way(self.mantissa * 4 - 1, self.exponent - 2)
        } else {
            half_way(self.mantissa * 2 - 1, self.exponent - 1)
        };
        below || half_way(self.mantissa * 2 + 1, self.exponent - 1)
    }

    /// `mantissa × 2^exponent = digits × 10^ten`, exactly: both sides have the same
    /// number of factors two, and the same odd rest.
    fn equals(self, digits: u64, ten: i32) -> bool {
        /// A larger power of five exceeds any `u64`, and so any odd rest.
        const FIVES_MAX: u32 = 27;
        let (twos_binary, twos_decimal) = (
            self.mantissa.trailing_zeros() as i32 + self.exponent,
            digits.trailing_zeros() as i32 + ten,
        );
        let fives = ten.unsigned_abs();
        if twos_binary != twos_decimal || fives > FIVES_MAX || self.mantissa == 0 || digits == 0 {
            return false;
        }
        let odd_binary = u128::from(self.mantissa >> self.mantissa.trailing_zeros());
        let odd_decimal = u128::from(digits >> digits.trailing_zeros());
        let power = 5_u128.pow(fives);
        if ten >= 0 {
            odd_decimal * power == odd_binary
        } else {
            odd_decimal == odd_binary * power
        }
    }
}

impl Float for f64 {
    const DIGITS_CERTAIN: u64 = 1_000_000_000_000_000;
    const DIGITS_MAX: usize = 17;

    fn binary(self) -> Binary {
        let fraction = self.to_bits() & ((1 << 52) - 1);
        let exponent = (self.to_bits() >> 52 & 0x7ff) as i32;
        binary(fraction, exponent, 52, 1075)
    }

    fn print(self, out: &mut Short) {
        let _ = write!(out, "{self:e}");
    }

    fn print_digits(self, out: &mut Short, count: usize) {
        let _ = write!(out, "{self:.*e}", count - 1);
    }

    fn is_read_from(self, text: &str) -> bool {
        text.parse() == Ok(self)
    }
}

impl Float for f32 {
    const DIGITS_CERTAIN: u64 = 1_000_000;
    const DIGITS_MAX: usize = 9;

    fn binary(self) -> Binary {
        let fraction = u64::from(self.to_bits() & ((1 << 23) - 1));
        let exponent = (self.to_bits() >> 23 & 0xff) as i32;
        binary(fraction, exponent, 23, 150)
    }

    fn print(self, out: &mut Short) {
        let _ = write!(out, "{self:e}");
    }

    fn print_digits(self, out: &mut Short, count: usize) {
        let _ = write!(out, "{self:.*e}", count - 1);
    }

    fn is_read_from(self, text: &str) -> bool {
        text.parse() == Ok(self)
    }
}

/// Of an IEEE 754 fraction of `width` bits and a biased exponent.
fn binary(fraction: u64, exponent: i32, width: u32, bias: i32) -> Binary {
    if exponent == 0 {
        return Binary {
            mantissa: fraction,
            exponent: 1 - bias,
            lower_is_near: false,
        };
    }
    Binary {
        mantissa: fraction | 1 << width,
        exponent: exponent - bias,
        lower_is_near: fraction == 0 && exponent > 1,
    }
}

/// `d.dddex` without trailing zeros.
fn read(text: &Short) -> Decimal {
    read_padded(text).without_zeros()
}

/// `d.dddex` with every digit it has.
fn read_padded(text: &Short) -> Decimal {
    let (mantissa, exponent) = text
        .as_str()
        .split_once('e')
        .unwrap_or((text.as_str(), "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.bytes().chain(fraction.bytes());
    let exponent = parse_int(exponent.as_bytes()).unwrap_or(0) as i32;
    Decimal {
        digits: digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0')),
        exponent: exponent - fraction.len() as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(digits: u64, exponent: i32) -> Decimal {
        Decimal { digits, exponent }
    }

    /// Where Rust and Postgres differ; right-hand sides from a server of version 15.
    #[test]
    fn digits_are_those_of_postgres() {
        assert_eq!(of_double(1e23), decimal(9_999_999_999_999_999, 7));
        assert_eq!(
            of_double(7.17374802411415e16),
            decimal(71_737_480_241_141_504, 0)
        );
        assert_eq!(
            of_double(711_223_288_265_703.2),
            decimal(7_112_232_882_657_032, -1)
        );
        assert_eq!(
            of_double(2_182_317_330_132_639.3),
            decimal(21_823_173_301_326_392, -1)
        );
        assert_eq!(of_float(6.115965e7), decimal(61_159_648, 0));
        assert_eq!(of_float(17_470.313), decimal(17_470_312, -3));
        assert_eq!(of_float(4.534176e9), decimal(45_341_757, 2));
        assert_eq!(of_double(0.1), decimal(1, -1));
        assert_eq!(of_double(5e-324), decimal(5, -324));
        assert_eq!(of_double(0.0), decimal(0, 0));
    }
}
