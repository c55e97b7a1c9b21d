//! Dates and times, as a session with `DateStyle = ISO` prints them. They count from the beginning of
//! the year 2000, in days or microseconds.

use super::NotKnown;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// No time zone is so far from Greenwich (`MAX_TZDISP_HOUR`).
const OFFSET_END: i64 = 16 * HOUR;

/// Of 2000-01-01 in the proleptic Gregorian calendar, counted from 0000-03-01.
const EPOCH_DAY: i64 = 730_425;

/// No year of a timestamp or date is later (5874897).
const YEAR_DIGITS_MAX: usize = 7;

pub(super) fn date(text: &[u8]) -> Result<i32, NotKnown> {
    match text {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(i32::MIN),
        _ => {}
    }
    let mut reader = Reader { rest: text };
    let date = reader.date()?;
    let days = date.days(reader.era()?)?;
    reader.end()?;
    // The ends stand for infinity.
    i32::try_from(days)
        .ok()
        .filter(|days| !matches!(*days, i32::MAX | i32::MIN))
        .ok_or(NotKnown)
}

pub(super) fn time(text: &[u8]) -> Result<i64, NotKnown> {
    let mut reader = Reader { rest: text };
    let time = reader.time()?;
    reader.end()?;
    match time <= DAY {
        true => Ok(time),
        false => Err(NotKnown),
    }
}

pub(super) fn timestamp(text: &[u8]) -> Result<i64, NotKnown> {
    moment(text, |_| Ok(0))
}

pub(super) fn timestamptz(text: &[u8]) -> Result<i64, NotKnown> {
    moment(text, |reader| reader.offset())
}

fn moment(
    text: &[u8],
    offset: impl FnOnce(&mut Reader<'_>) -> Result<i64, NotKnown>,
) -> Result<i64, NotKnown> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let mut reader = Reader { rest: text };
    let date = reader.date()?;
    reader.take(b' ')?;
    let time = reader.time()?;
    let offset = offset(&mut reader)?;
    let days = date.days(reader.era()?)?;
    reader.end()?;
    if time >= DAY {
        return Err(NotKnown);
    }
    let micros = days
        .checked_mul(DAY)
        .and_then(|day| day.checked_add(time - offset));
    // The ends stand for infinity.
    micros
        .filter(|micros| !matches!(*micros, i64::MAX | i64::MIN))
        .ok_or(NotKnown)
}

struct Date {
    year: i64,
    month: i64,
    day: i64,
}

impl Date {
    /// Days from 2000-01-01. Years begin in March here, so that a leap day is the last of its year.
    fn days(&self, is_before_christ: bool) -> Result<i64, NotKnown> {
        if self.year == 0 {
            return Err(NotKnown);
        }
        let year = match is_before_christ {
            true => 1 - self.year,
            false => self.year,
        };
        let is_leap =
            year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
        let length = match self.month {
            4 | 6 | 9 | 11 => 30,
            2 if is_leap => 29,
            2 => 28,
            1..=12 => 31,
            _ => return Err(NotKnown),
        };
        if !(1..=length).contains(&self.day) {
            return Err(NotKnown);
        }
        let year = year - i64::from(self.month <= 2);
        let month = (self.month + 9) % 12;
        let day_of_year = (153 * month + 2) / 5 + self.day - 1;
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        Ok(year * 365 + leap_days + day_of_year - EPOCH_DAY)
    }
}

struct Reader<'t> {
    rest: &'t [u8],
}

impl Reader<'_> {
    fn take(&mut self, byte: u8) -> Result<(), NotKnown> {
        let rest = self.rest.strip_prefix(&[byte]).ok_or(NotKnown)?;
        self.rest = rest;
        Ok(())
    }

    /// All the digits that stand here, at most `max`.
    fn digits(&mut self, min: usize, max: usize) -> Result<(i64, usize), NotKnown> {
        let mut value = 0;
        let mut count = 0;
        while let Some((byte @ b'0'..=b'9', rest)) = self.rest.split_first() {
            value = value * 10 + i64::from(byte - b'0');
            count += 1;
            self.rest = rest;
            if count > max {
                return Err(NotKnown);
            }
        }
        match count < min {
            true => Err(NotKnown),
            false => Ok((value, count)),
        }
    }

    fn two(&mut self) -> Result<i64, NotKnown> {
        Ok(self.digits(2, 2)?.0)
    }

    fn date(&mut self) -> Result<Date, NotKnown> {
        let (year, digits) = self.digits(4, YEAR_DIGITS_MAX)?;
        if digits > 4 && year < 10_000 {
            return Err(NotKnown);
        }
        self.take(b'-')?;
        let month = self.two()?;
        self.take(b'-')?;
        let day = self.two()?;
        Ok(Date { year, month, day })
    }

    /// Microseconds. The end of a day may be beyond its last second, which is for the caller to judge.
    fn time(&mut self) -> Result<i64, NotKnown> {
        let hours = self.two()?;
        self.take(b':')?;
        let minutes = self.two()?;
        self.take(b':')?;
        let seconds = self.two()?;
        if minutes > 59 || seconds > 59 {
            return Err(NotKnown);
        }
        let micros = match self.take(b'.') {
            Ok(()) => {
                let (fraction, count) = self.digits(1, 6)?;
                fraction * 10_i64.pow(6 - count as u32)
            }
            Err(NotKnown) => 0,
        };
        Ok(hours * HOUR + minutes * MINUTE + seconds * SECOND + micros)
    }

    /// East of Greenwich, in microseconds; minutes and seconds are printed if there are any.
    fn offset(&mut self) -> Result<i64, NotKnown> {
        let sign = match self.take(b'+') {
            Ok(()) => 1,
            Err(NotKnown) => {
                self.take(b'-')?;
                -1
            }
        };
        let mut offset = self.two()? * HOUR;
        for unit in [MINUTE, SECOND] {
            if self.take(b':').is_err() {
                break;
            }
            let count = self.two()?;
            if count > 59 {
                return Err(NotKnown);
            }
            offset += count * unit;
        }
        match offset < OFFSET_END {
            true => Ok(sign * offset),
            false => Err(NotKnown),
        }
    }

    /// Whether the year counts backwards.
    fn era(&mut self) -> Result<bool, NotKnown> {
        match self.rest {
            b"" => Ok(false),
            b" BC" => {
                self.rest = b"";
                Ok(true)
            }
            _ => Err(NotKnown),
        }
    }

    fn end(&self) -> Result<(), NotKnown> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(NotKnown),
        }
    }
}
