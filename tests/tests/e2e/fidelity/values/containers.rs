//! Arrays as such, ranges, and what users make: enums, domains, composites.

use super::{ValueCase, case};

pub(super) const CASES: &[ValueCase] = &[
    case("integer[]", &["{}", "{1,NULL,3}", "[2:3]={1,NULL}", "{{1,2},{3,4}}", "[0:1][-1:0]={{1,2},{NULL,4}}", "{{{1},{2}},{{3},{4}}}"])
        .no_arrays()
        .note("NULL elements, empty, many dimensions, lower bounds"),
    case("text[]", &["{}", "{\"NULL\",NULL,\"a,b\",\"{}\",\"\\\"\",\"\\\\\",\"\"}", "{{a,b},{c,NULL}}", "{\" \",\"\t\n\",\"\\\\N\"}"]).no_arrays(),
    case("numeric(6,2)[]", &["{1.00,NULL,NaN}", "{}"]).no_arrays(),
    case("int4range", &["empty", "(,)", "[1,5)", "(,3)", "[7,)"]),
    case("int8range", &["empty", "[-9223372036854775808,9223372036854775807)"]),
    case("numrange", &["[1.10,2.2]", "(NaN,NaN]", "(,Infinity)", "empty", "(0.0,1)"]),
    case("daterange", &["[2000-01-01,infinity)", "(-infinity,2000-01-02)", "empty", "[2000-01-01,)"]),
    case("tsrange", &["[\"2000-01-01 00:00:00\",\"294276-12-31 23:59:59.999999\"]", "(,)"]),
    case("tstzrange", &["[\"2000-01-01 00:00:00+00\",infinity]", "(,\"2000-01-01 00:00:00+05:45\")"]),
    case("int4multirange", &["{}", "{[1,3),[5,)}", "{(,)}"]),
    case("int8multirange", &["{}", "{[1,3),[5,9)}"]),
    case("nummultirange", &["{[1.10,2.2],(3,)}", "{}"]),
    case("datemultirange", &["{[2000-01-01,2000-02-01),[2001-01-01,)}", "{}", "{(,infinity)}"]),
    case("tsmultirange", &["{[\"2000-01-01 00:00:00\",\"2000-01-02 00:00:00\")}", "{}"]),
    case("tstzmultirange", &["{[\"2000-01-01 00:00:00+00\",\"2000-01-02 00:00:00+00\")}", "{(,)}"]),
    case("objects.floatrange", &["[0.1,0.30000000000000004]", "(NaN,)", "empty", "[-0,5e-324]"])
        .setup("CREATE TYPE objects.floatrange AS RANGE (subtype = float8)")
        .note("a range type of the user's"),
    case("objects.floats", &["{}", "{[0.1,0.30000000000000004],[1,)}", "{(,)}", "{(NaN,)}"])
        .setup("CREATE TYPE objects.somefloats AS RANGE (subtype = float8, multirange_type_name = objects.floats)")
        .note("a multirange type of the user's"),
    case("objects.\"Mood's\"", &["sad", "ok", "very, \"happy\"", "\\N", "{}"])
        .setup("CREATE TYPE objects.\"Mood's\" AS ENUM ('sad', 'ok', 'very, \"happy\"', '\\N', '{}')")
        .note("an enum"),
    case("objects.positive", &["1", "2147483647"])
        .setup("CREATE DOMAIN objects.positive AS integer CHECK (VALUE > 0)")
        .note("a domain with a check; the event holds text"),
    case("objects.words", &["{}", "{a,NULL,\"b c\"}"])
        .no_arrays()
        .setup("CREATE DOMAIN objects.words AS text[] CHECK (cardinality(VALUE) < 10)")
        .note("a domain over an array"),
    case("objects.narrow", &["1", "99"])
        .setup("CREATE DOMAIN objects.wide AS integer; CREATE DOMAIN objects.narrow AS objects.wide CHECK (VALUE < 100)")
        .note("a domain over a domain"),
    case("objects.calm", &["ok", "very, \"happy\"", "{}"])
        .setup("CREATE DOMAIN objects.calm AS objects.\"Mood's\" CHECK (VALUE <> 'sad')")
        .compared_as("objects.\"Mood's\"")
        .note("a domain over an enum"),
    case("objects.few", &["empty", "[1,5)", "(,3)"])
        .setup("CREATE DOMAIN objects.few AS int4range CHECK (NOT upper_inf(VALUE))")
        .note("a domain over a range"),
    case("objects.words[]", &["{}", "{\"{a,b}\",NULL,\"{}\"}", "{\"{\\\"c,\\\",NULL}\"}"])
        .no_arrays()
        .note("an array of a domain over an array"),
    case("objects.bits", &["101", "000"]).setup("CREATE DOMAIN objects.bits AS bit(3)"),
    case("objects.pair", &["(1,a)", "(,)", "(2,\"\")", "(3,\"quote \"\" comma , back\\\\slash ( )\")", "(4,\"tab\tnew\nline\")"])
        .setup("CREATE TYPE objects.pair AS (a integer, b text)")
        .note("a composite, with NULLs, quotes and backslashes"),
    case("objects.whole", &["(1,a)", "(2,\"\")", "(3,\"quote \"\" comma , back\\\\slash ( )\")"])
        .setup("CREATE DOMAIN objects.whole AS objects.pair CHECK ((VALUE).a > 0)")
        .note("a domain over a composite"),
    case("objects.nest", &["(\"(1,\"\"a \"\"\"\"b\"\"\"\"\"\")\",\"{1,NULL}\",\"{\"\"(2,c)\"\",NULL}\")", "(,,)", "(\"(,)\",{},{})"])
        .setup("CREATE TYPE objects.inner AS (a integer, b text); CREATE TYPE objects.nest AS (p objects.inner, q integer[], r objects.inner[])")
        .note("a composite of composites and arrays"),
];
