//! Dates, times, intervals.

use super::{ValueCase, case};

pub(super) const CASES: &[ValueCase] = &[
    case(
        "date",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "4713-01-01 BC",
            "0001-12-31 BC",
            "0001-01-01",
            "1582-10-10",
            "2000-02-29",
            "5874897-12-31",
            "12345-06-07",
        ],
    )
    .note("infinities, BC, the year 5874897"),
    case(
        "time",
        &[
            "00:00",
            "24:00",
            "23:59:59.999999",
            "12:34:56.1",
            "00:00:00.000001",
        ],
    ),
    case("time(2)", &["12:34:56.78", "24:00"]),
    case(
        "time with time zone",
        &[
            "00:00+00",
            "24:00-15:59:59",
            "23:59:59.999999+15:59",
            "12:00:00+05:45",
            "12:00:00-00:00:01",
        ],
    )
    .note("24:00, offsets with seconds"),
    case(
        "timestamp",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "2000-01-01 00:00:00",
            "1999-12-31 23:59:59.000001",
            "0001-01-01 00:00:00",
            "2016-12-31 23:59:60",
        ],
    )
    .note("infinities, BC, the year 294276, microseconds"),
    case("timestamp(0)", &["2000-01-01 00:00:01", "infinity"]),
    case(
        "timestamptz",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00+00 BC",
            "4713-01-01 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "2024-03-31 02:30:00 Europe/Berlin",
            "2024-10-27 00:30:00+00",
            "2024-10-27 01:30:00+00",
            "1890-01-01 00:00:00 Europe/Amsterdam",
            "2000-01-01 00:00:00+05:45",
        ],
    )
    .note("whatever the time zone of either server"),
    case(
        "timestamptz(3)",
        &["2000-01-01 00:00:00.123+00", "-infinity"],
    ),
    case(
        "interval",
        &[
            "0",
            "1 year",
            "-1 year",
            "1 mon -1 day",
            "-1 mon 1 day",
            "1 day -00:00:01",
            "-1 day 00:00:01",
            "1 year -2 mons 3 days -04:05:06.789",
            "-1 year 2 mons -3 days 04:05:06.789",
            "1 mon 2 days 03:00",
            "1 mon 2 days -03:00",
            "1 mon -2 days 03:00",
            "1 mon -2 days -03:00",
            "-1 mon 2 days 03:00",
            "-1 mon 2 days -03:00",
            "-1 mon -2 days 03:00",
            "-1 mon -2 days -03:00",
            "1 microsecond",
            "-1 microsecond",
            "24:00",
            "1 day",
            "-00:00:00.5",
        ],
    )
    .note("every mix of signs"),
    case(
        "interval(6)",
        &[
            "178000000 years",
            "-178000000 years",
            "2562047788:00:54.775807",
        ],
    )
    .since(15)
    .note("the largest, which PostgreSQL 14 does not read"),
    case(
        "interval day to second(3)",
        &["1 day 02:03:04.567", "-1 day"],
    ),
    case("interval(3)", &["infinity", "-infinity", "1 day"])
        .since(17)
        .note("infinities"),
    case("interval year to month", &["1 year 2 mons", "-3 mons"]),
    case("interval hour to minute", &["02:03", "-26:59"]),
];
