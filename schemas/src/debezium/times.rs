//! Dates and times as Debezium's semantic types hold them, from what Postgres prints under
//! `DateStyle` ISO and `TimeZone` UTC.
//!
//! What these types cannot hold is what Debezium makes of it too: an infinite date or timestamp is
//! a value far away, and so is a timestamp beyond the year 294246.

/// Debezium's stand-ins for an infinite `timestamp`, microseconds since the Unix epoch.
pub(super) const TIMESTAMP_INFINITY: i64 = 9_223_372_036_825_200_000;
pub(super) const TIMESTAMP_MINUS_INFINITY: i64 = -9_223_372_036_832_400_000;
/// Those for an infinite `date`, days since the Unix epoch.
pub(super) const DATE_INFINITY: i64 = days_from_civil(5_877_611, 6, 21);
pub(super) const DATE_MINUS_INFINITY: i64 = days_from_civil(-5_877_611, 6, 22);

const DAY_US: i64 = 86_400_000_000;

/// Days since the Unix epoch of a `date`.
pub(super) fn date(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(DATE_INFINITY),
        "-infinity" => Some(DATE_MINUS_INFINITY),
        _ => {
            let (date, before_christ) = era(text);
            day(date, before_christ)
        }
    }
}

/// Microseconds since midnight of a `time`, 24:00:00 included.
pub(super) fn time(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':').map(number);
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || fraction.len() > 6 {
        return None;
    }
    let mut us = match fraction {
        "" => 0,
        digits => number(digits)?,
    };
    for _ in fraction.len()..6 {
        us *= 10;
    }
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + us)
}

/// Microseconds since the Unix epoch of a `timestamp` without time zone.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(TIMESTAMP_INFINITY),
        "-infinity" => return Some(TIMESTAMP_MINUS_INFINITY),
        _ => {}
    }
    let (moment, before_christ) = era(text);
    let (date, clock) = moment.split_once(' ')?;
    let day_us = day(date, before_christ)?.checked_mul(DAY_US);
    let us = day_us.and_then(|day_us| Some((day_us, time(clock)?)));
    Some(match us.map(|(day_us, us)| day_us.checked_add(us)) {
        Some(Some(us)) => us.min(TIMESTAMP_INFINITY),
        Some(None) => TIMESTAMP_INFINITY,
        // Postgres begins in 4714 BC: only far in the future there are too many.
        None => time(clock).map(|_| TIMESTAMP_INFINITY)?,
    })
}

/// A `timestamptz`, which Postgres prints in UTC, as ISO 8601 has it.
pub(super) fn zoned(text: &str) -> Option<String> {
    if matches!(text, "infinity" | "-infinity") {
        return Some(text.to_owned());
    }
    let (moment, before_christ) = era(text);
    let (date, clock) = moment.strip_suffix("+00")?.split_once(' ')?;
    time(clock)?;
    let (year, month, day) = civil(date, before_christ)?;
    let sign = match year {
        ..0 => "-",
        0..=9999 => "",
        10_000.. => "+",
    };
    Some(format!(
        "{sign}{:04}-{month:02}-{day:02}T{clock}Z",
        year.abs()
    ))
}

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

fn day(date: &str, before_christ: bool) -> Option<i64> {
    let (year, month, day) = civil(date, before_christ)?;
    Some(days_from_civil(year, month, day))
}

/// Year (astronomical: 1 BC is 0), month and day.
fn civil(date: &str, before_christ: bool) -> Option<(i64, i64, i64)> {
    let mut parts = date.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day);
    if parts.next().is_some() || !is_date || year > 6_000_000 {
        return None;
    }
    Some((if before_christ { 1 - year } else { year }, month, day))
}

fn number(digits: &str) -> Option<i64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, which Postgres' is too. Years are
/// counted from March, so that the leap day is a year's last.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_the_epoch() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-02-29", 11_016),
            ("2026-03-01", 20_513),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("4714-11-24 BC", -2_440_588),
            ("5874897-12-31", 2_145_042_905),
        ] {
            assert_eq!(date(text), Some(days), "{text}");
        }
        for infinite in ["infinity", "-infinity"] {
            let days = date(infinite).unwrap();
            assert!(i32::try_from(days).is_ok(), "{days}");
            assert!(days.abs() > 2_145_042_905);
        }
        for wrong in [
            "",
            "2026",
            "2026-13-01",
            "2026-01-01-01",
            "x-01-01",
            "-5-01-01",
        ] {
            assert_eq!(date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_microseconds_since_midnight() {
        assert_eq!(time("00:00:00"), Some(0));
        assert_eq!(time("10:30:05.5"), Some(37_805_500_000));
        assert_eq!(time("23:59:59.999999"), Some(DAY_US - 1));
        assert_eq!(time("24:00:00"), Some(DAY_US));
        assert_eq!(time("10:30"), None);
        assert_eq!(time("10:30:00+02"), None);
    }

    #[test]
    fn timestamps_are_microseconds_since_the_epoch() {
        assert_eq!(timestamp("1970-01-01 00:00:00.000001"), Some(1));
        assert_eq!(timestamp("1969-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(
            timestamp("4714-11-24 00:00:00 BC"),
            Some(-2_440_588 * DAY_US)
        );
        assert_eq!(timestamp("infinity"), Some(TIMESTAMP_INFINITY));
        assert_eq!(timestamp("-infinity"), Some(TIMESTAMP_MINUS_INFINITY));
        // Postgres goes on for thirty years after 64 bits are full.
        assert_eq!(
            timestamp("294276-12-31 23:59:59.999999"),
            Some(TIMESTAMP_INFINITY)
        );
        assert_eq!(timestamp("2026-01-01"), None);
    }

    #[test]
    fn zoned_timestamps_are_iso() {
        for (text, iso) in [
            ("2026-01-24 10:30:00+00", "2026-01-24T10:30:00Z"),
            ("2026-01-24 10:30:00.12+00", "2026-01-24T10:30:00.12Z"),
            ("0044-03-15 01:02:03+00 BC", "-0043-03-15T01:02:03Z"),
            ("0001-01-01 00:00:00+00 BC", "0000-01-01T00:00:00Z"),
            ("10000-01-01 00:00:00+00", "+10000-01-01T00:00:00Z"),
            ("infinity", "infinity"),
            ("-infinity", "-infinity"),
        ] {
            assert_eq!(zoned(text).as_deref(), Some(iso), "{text}");
        }
        assert_eq!(zoned("2026-01-24 10:30:00+02"), None);
    }
}
