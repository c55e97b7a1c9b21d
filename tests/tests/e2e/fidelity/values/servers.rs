//! Geometry, networks, text search, and types that name things of the server.

use super::{ValueCase, case};

pub(super) const CASES: &[ValueCase] = &[
    case("point", &["(0,0)", "(1.5,-0)", "(1e300,1e-300)", "(NaN,Infinity)", "(0.1,0.30000000000000004)"]).no_key(),
    case("line", &["{1,2,3}", "{-1,0,0.1}", "{0,1,-1e-300}"]).no_key(),
    case("lseg", &["[(0,0),(1,1)]", "[(1e10,0),(0,1)]"]).no_key(),
    case("box", &["(1,1),(0,0)", "(2.5,2),(1,-1)"]).no_key().note("arrays of it, too, with their `;`"),
    case("path", &["[(0,0),(1,1)]", "((0,0),(1,1),(2,0))", "[(1,2)]"]).no_key(),
    case("polygon", &["((0,0),(1,1))", "((0,0),(1,1),(2,0))", "((1,1))"]).no_key(),
    case("circle", &["<(0,0),1>", "<(1,2),0>", "<(NaN,0),1>"]).no_key(),
    case("inet", &["::1", "192.168.1.5/24", "10.0.0.1", "::ffff:1.2.3.4/96", "255.255.255.255", "fe80::1/10"]),
    case("cidr", &["10.0.0.0/8", "::/0", "0.0.0.0/0", "192.168.1.0/24", "2001:db8::/32"]),
    case("macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"]),
    case("macaddr8", &["08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"]),
    case("tsvector", &["", "'a':1A,2B 'b'", "'it''s':3 'sp ace' 'back\\\\slash'", "='fat cats ate rats'::tsvector"]),
    case("tsquery", &["", "'a' & !'b':*A", "'it''s' <2> 'b' | 'c'", "( 'a' | 'b' ) & 'c':AB"]),
    case("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    case("tid", &["(0,0)", "(4294967295,65535)", "(1,2)"]),
    case("pg_snapshot", &["1:1:", "10:20:10,14,15"]).no_key(),
    case("txid_snapshot", &["1:1:", "10:20:10,14,15"]).no_key(),
    case("int2vector", &["", "1", "1 2 -3"]).no_key().no_arrays(),
    case("oidvector", &["", "1", "1 2 4294967295"]),
    case("regclass", &["pg_class", "information_schema.tables", "-"])
        .note("the name must resolve at the destination, else the table is `ERRORED` and names it; so it is when the source prints an oid, \
               because what it stood for is gone; so for all `reg` types"),
    case("regtype", &["integer", "text[]", "information_schema.sql_identifier", "-", "character varying"]),
    case("regproc", &["now", "-"]),
    case("regprocedure", &["now()", "lower(text)", "-"]),
    case("regoper", &["||/", "0"]),
    case("regoperator", &["+(integer,integer)", "-(NONE,integer)", "0"]),
    case("regnamespace", &["pg_catalog", "information_schema", "-"]),
    case("regrole", &["postgres", "pg_monitor", "-"]),
    case("regconfig", &["english", "simple", "-"]),
    case("regdictionary", &["english_stem", "simple", "-"]),
    case("regcollation", &["\"C\"", "\"POSIX\"", "-"]),
    case("aclitem", &["postgres=arwdDxt/postgres", "='=r/postgres'", "pg_monitor=r*/postgres"])
        .no_key()
        .note("the roles must be there at the destination"),
    case("refcursor", &["", "cursor \"1\""]).no_key(),
];
