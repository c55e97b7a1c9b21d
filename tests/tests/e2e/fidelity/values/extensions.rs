//! Types of the extensions that come with PostgreSQL.

use super::{ValueCase, case};

pub(super) const CASES: &[ValueCase] = &[
    case("citext", &["", "abc", "ABC", "aBc", "Straße", "\\N"])
        .extension("citext")
        .note("keys that differ in case only are one key"),
    case(
        "hstore",
        &[
            "",
            "\"a\"=>\"1\", \"b\"=>NULL",
            "\"quote \\\" back\\\\slash\"=>\"\"",
            "\" \"=>\"=>\"",
        ],
    )
    .extension("hstore"),
    case("ltree", &["", "Top", "Top.Science.Astronomy"]).extension("ltree"),
    case("lquery", &["Top.*", "*.!a|b@.c{1,2}"])
        .no_key()
        .extension("ltree"),
    case(
        "ltxtquery",
        &["Europe & Russia*@ & !Transportation", "Asia | Africa"],
    )
    .no_key()
    .extension("ltree"),
    case("cube", &["(1)", "(1, 2),(3, 4)", "(0.1, -1e-300, 1e300)"]).extension("cube"),
    case("seg", &["1", "1 .. 2", "~3.5", "< 6.50", "1.0(+-)0.1"]).extension("seg"),
    case("isbn13", &["978-0-393-04002-9", "978-0-306-40615-7"]).extension("isn"),
    case("query_int", &["1&(2|3)&!4", "5"])
        .no_key()
        .extension("intarray"),
    case("objects.label", &["abc", "ABC"])
        .extension("citext")
        .setup("CREATE DOMAIN objects.label AS public.citext CHECK (VALUE <> '')")
        .note("a domain over an extension's type"),
];
