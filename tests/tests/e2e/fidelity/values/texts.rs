//! Text in all its types, bytes, documents.

use super::{ValueCase, case};

/// What has a meaning to some format on the way.
const AWKWARD: &[&str] = &[
    "",
    " ",
    "\\N",
    "\\\\N",
    "\\.",
    "NULL",
    "null",
    "tab\there",
    "line\nfeed",
    "carriage\rreturn\r\n",
    "back\\slash",
    "ends in a backslash\\",
    "\u{8}\u{c}\u{b}\u{1}\u{7f}",
    "single ' double \" both '\"",
    "{curly}",
    "(1,2)",
    "a,b",
    "$1 %s {} ${x}",
    " leading and trailing ",
    "ünïcödé ß ﬁ",
    "e\u{301} is not é",
    "日本語 עברית العربية",
    "🐇 \u{10ffff} \u{fffd} \u{feff}",
    "\u{85}\u{a0}\u{2028}\u{2029}\u{200b}",
];

pub(super) const CASES: &[ValueCase] = &[
    case("text", AWKWARD).note("all of UTF-8, `\\N`, tabs, newlines, backslashes; 1 MiB, and 32 MiB in the full tier"),
    case("text COLLATE \"C\"", &["", "a", "A", "ä", "Z"]).no_arrays(),
    // Every character of the planes in use, in runs that fit a page.
    case(
        "character varying",
        &[
            "=(SELECT string_agg(chr(c), '') FROM generate_series(1, 2047) c)",
            "=(SELECT string_agg(chr(c), '') FROM generate_series(2048, 55295) c)",
            "=(SELECT string_agg(chr(c), '') FROM generate_series(57344, 65535) c)",
            "=(SELECT string_agg(chr(c), '') FROM generate_series(65536, 131071, 7) c)",
            "=repeat('x', 1048576)",
            "=repeat(E'\\\\\\t\\n', 100000)",
            "=(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 3000) g)",
        ],
    )
    .no_arrays()
    .note("every character of the basic plane, 1 MiB"),
    case("character varying(5)", &["", "abcde", "éé🐇"]),
    case("character(10)", &["", "a", "padded", "trailing  ", "1234567890", "éé🐇", "\\N"]).note("padding kept"),
    case("character(1)", &["", "x", "é"]),
    case("\"char\"", &["", "a", "\\", "\\200", "\\377", "\t"]).since(16).note("bytes above 127 too"),
    case("pg_catalog.\"char\"", &["", "a", "\\", "\t"])
        .note("ASCII; a byte above 127 makes the table `ERRORED` where the destination would read another"),
    case("name", &["", "Name", "=repeat('n', 63)", "with \"quotes\" and \\"]),
    case(
        "bytea",
        &[
            "", "\\x00", "\\x00ff0a09275c0d", "\\x5c4e", "=decode('5c2e', 'hex')",
            "=(SELECT string_agg(decode(lpad(to_hex(b), 2, '0'), 'hex'), '' ORDER BY b) FROM generate_series(0, 255) b)",
            "=decode(repeat('00ff5c09', 500000), 'hex')",
        ],
    )
    .avro("bytes")
    .no_arrays()
    .note("empty to megabytes; 31 MiB, and 32 MiB in the stream, in the full tier"),
    case("bytea[]", &["{}", "{\"\\\\x00ff\",NULL,\"\\\\x\"}"]).no_arrays(),
    case("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    case(
        "json",
        &[
            "null", "\"\"", "{}", "[]", " { \"a\" :  1, \"a\": 2 } ", "[1,\n\t2 ]", "1.10", "1e5", "-0", "\"\\u00e9 \\ud83d\\udc07\"", "\"back\\\\slash \\\" \\n\"",
            "{\"nested\": {\"b\": [1, [2, {\"c\": null}]]}}",
        ],
    )
    .no_key()
    .note("the very text: spaces, double keys, escapes"),
    case(
        "jsonb",
        &["null", "\"string\"", "{}", "[]", "{\"b\": [1.10, null, \"\\u00e9\"], \"a\": {}}", "1e400", "-0.0", "\"\\\\ \\\" \\t\"", "true"],
    ),
    case("jsonpath", &["$", "$.a[*] ? (@.b > 1.5)", "lax $.\"odd key\".type()", "strict $[0 to last]"]).no_key(),
    case(
        "xml",
        &["", "<a/>", "<a/>text<b x=\"1\"/>", "<?xml version=\"1.0\"?><a>&amp;&lt;é</a>", "<!-- c --><r><![CDATA[ ]] > ]]></r>", "plain text"],
    )
    .no_key()
    .note("documents and content"),
];
