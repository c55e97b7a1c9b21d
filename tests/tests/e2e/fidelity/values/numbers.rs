//! Numbers, booleans, bits.

use super::{ValueCase, case};

pub(super) const CASES: &[ValueCase] = &[
    case("boolean", &["true", "false"]).avro("boolean"),
    case("smallint", &["0", "1", "-1", "32767", "-32768"]).avro("int"),
    case("integer", &["0", "1", "-1", "2147483647", "-2147483648"]).avro("int"),
    case(
        "bigint",
        &[
            "0",
            "1",
            "-1",
            "9223372036854775807",
            "-9223372036854775808",
            "9007199254740993",
        ],
    )
    .avro("long"),
    case(
        "real",
        &[
            "0",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e-45",
            "-1e-45",
            "1.1754942e-38",
            "1.17549435e-38",
            "3.4028235e38",
            "0.1",
            "16777217",
            "1e15",
            "1e-5",
            "123456.7",
            "9.999999e22",
        ],
    )
    .avro("float")
    .note("NaN, infinities, −0, subnormals"),
    case(
        "double precision",
        &[
            "0",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "5e-324",
            "-5e-324",
            "2.225073858507201e-308",
            "2.2250738585072014e-308",
            "1.7976931348623157e308",
            "0.1",
            "0.30000000000000004",
            "9007199254740993",
            "1e15",
            "1e16",
            "1e-5",
            "1e23",
            "123456789.12345678",
        ],
    )
    .avro("double")
    .note("NaN, infinities, −0, subnormals, the digits Postgres prints"),
    case(
        "numeric",
        &[
            "0",
            "0.0",
            "-0.000",
            "NaN",
            "Infinity",
            "-Infinity",
            "1.10",
            "1.1",
            "1e-130",
            "12345678901234567890.012345678901234567890",
            "=('1' || repeat('0', 999))",
            "=('-' || repeat('9', 1000))",
            "=('0.' || repeat('0', 1000) || '1')",
            "100000",
            "1E+20",
            "0.0001",
        ],
    )
    .note("NaN, infinities, 1,000 digits, the scale kept"),
    case(
        "numeric(30,10)",
        &[
            "0",
            "-1",
            "12345678901234567890.0123456789",
            "0.0000000001",
            "NaN",
        ],
    ),
    case("numeric(5,0)", &["99999", "-99999", "0"]),
    case("numeric(2,4)", &["0.0012", "-0.0099"]).since(15),
    case("numeric(5,-3)", &["12345000", "-99999000", "0"]).since(15),
    case(
        "money",
        &[
            "0",
            "-12.34",
            "92233720368547758.07",
            "-92233720368547758.08",
            "1234567.89",
        ],
    )
    .note("printed under `lc_monetary` C on both sides"),
    case("bit(5)", &["10101", "00000", "11111"]),
    case("bit(1)", &["0", "1"]),
    case("bit varying(10)", &["", "0", "1111111111", "01"]),
    case("bit varying", &["", "1", "=repeat('10', 700)::varbit"]),
    case("oid", &["0", "1", "2147483648", "4294967295"])
        .note("the number; large objects that it may name are not replicated, see below"),
    case("xid", &["0", "3", "4294967295"]).no_key(),
    case("xid8", &["0", "3", "18446744073709551615"]),
    case("cid", &["0", "4294967295"]).no_key(),
];
