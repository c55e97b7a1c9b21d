//! Kinds of tables, columns, keys and transactions, as rows of a table.
//!
//! Each case has a schema of its own, which is the search path of all its SQL.

/// One kind of table or change.
#[derive(Clone, Copy, Debug)]
pub struct RowCase {
    pub name: &'static str,
    /// Names as they are, unquoted.
    pub tables: &'static [&'static str],
    /// `(table, column)` left out.
    pub excluded: &'static [(&'static str, &'static str)],
    /// What both sides have beforehand.
    pub both: &'static str,
    /// What the destination has beforehand.
    pub destination: &'static str,
    pub create: &'static str,
    /// Each a transaction or several, compared after each.
    pub changes: &'static [&'static str],
    /// The first major version, of the older server, that it is for.
    pub since: u32,
    /// The last major version of the source that it is for.
    pub until: u32,
    pub schema: &'static str,
    /// The destination has columns of other types, which take every value.
    pub is_wider: bool,
}

const fn case(
    name: &'static str,
    tables: &'static [&'static str],
    create: &'static str,
    changes: &'static [&'static str],
) -> RowCase {
    RowCase {
        name,
        tables,
        excluded: &[],
        both: "",
        destination: "",
        create,
        changes,
        since: 14,
        until: u32::MAX,
        schema: "",
        is_wider: false,
    }
}

impl RowCase {
    const fn both(mut self, sql: &'static str) -> RowCase {
        self.both = sql;
        self
    }

    const fn destination(mut self, sql: &'static str) -> RowCase {
        self.destination = sql;
        self
    }

    const fn since(mut self, version: u32) -> RowCase {
        self.since = version;
        self
    }

    const fn until(mut self, version: u32) -> RowCase {
        self.until = version;
        self
    }

    const fn without(mut self, excluded: &'static [(&'static str, &'static str)]) -> RowCase {
        self.excluded = excluded;
        self
    }

    const fn schema(mut self, schema: &'static str) -> RowCase {
        self.schema = schema;
        self
    }

    const fn wider(mut self) -> RowCase {
        self.is_wider = true;
        self
    }

    /// The schema its tables are in.
    pub fn schema_name(&self) -> String {
        if !self.schema.is_empty() {
            return self.schema.to_owned();
        }
        let slug = self
            .name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == ' ');
        slug.take(40)
            .collect::<String>()
            .replace(' ', "_")
            .to_lowercase()
    }
}

/// Stands in excluded columns only, and so nowhere but at the source.
pub const SECRET: &str = "nobody-shall-read-this";

pub struct Group {
    pub title: &'static str,
    pub cases: &'static [RowCase],
}

pub const GROUPS: &[Group] = &[
    Group {
        title: "Columns",
        cases: COLUMNS,
    },
    Group {
        title: "Keys and identities",
        cases: KEYS,
    },
    Group {
        title: "Partitions and inheritance",
        cases: PARTITIONS,
    },
    Group {
        title: "Names",
        cases: NAMES,
    },
    Group {
        title: "Transactions",
        cases: TRANSACTIONS,
    },
];

const COLUMNS: &[RowCase] = &[
    case(
        "one column",
        &["one", "one_full"],
        "CREATE TABLE one (v int PRIMARY KEY); INSERT INTO one SELECT generate_series(1, 20);
         CREATE TABLE one_full (v text); ALTER TABLE one_full REPLICA IDENTITY FULL;
         INSERT INTO one_full VALUES (''), (NULL), ('a'), ('a'), (NULL), ('');",
        &[
            "INSERT INTO one VALUES (100); UPDATE one SET v = v + 1000 WHERE v < 5; DELETE FROM one WHERE v = 7;",
            "DELETE FROM one_full WHERE ctid = (SELECT min(ctid) FROM one_full WHERE v = 'a'); INSERT INTO one_full VALUES ('');",
            "UPDATE one_full SET v = NULL WHERE ctid = (SELECT min(ctid) FROM one_full WHERE v = '')",
            "UPDATE one_full SET v = '' WHERE ctid = (SELECT min(ctid) FROM one_full WHERE v IS NULL)",
        ],
    ),
    case(
        "1,600 columns",
        &["wide", "wide_full"],
        "DO $$ DECLARE columns text; cells text; BEGIN
             SELECT string_agg(format('c%s %s', g, (ARRAY['int', 'text', 'boolean', 'smallint'])[g % 4 + 1]), ', ' ORDER BY g),
                    string_agg((ARRAY['r * ' || g, format('chr(64 + (r + %s) %% 26)', g), format('(r + %s) %% 2 = 0', g), 'NULL'])[g % 4 + 1], ', ' ORDER BY g)
             INTO columns, cells FROM generate_series(1, 1599) g;
             EXECUTE 'CREATE TABLE wide (id int PRIMARY KEY, ' || columns || ')';
             EXECUTE 'INSERT INTO wide SELECT r, ' || cells || ' FROM generate_series(1, 9) r';
             EXECUTE 'CREATE TABLE wide_full (id int, ' || columns || ')';
             EXECUTE 'INSERT INTO wide_full SELECT r % 3, ' || cells || ' FROM generate_series(1, 4) r, generate_series(1, 2)';
             ALTER TABLE wide_full REPLICA IDENTITY FULL;
         END $$",
        &[
            "UPDATE wide SET c1599 = 7, c1 = NULL, c1597 = E'tab\\t\\\\N\"{}', c1598 = NULL WHERE id < 5; DELETE FROM wide WHERE id = 6;",
            "UPDATE wide SET id = id + 100, c1593 = '', c2 = false WHERE id IN (3, 7, 8)",
            "INSERT INTO wide (id, c1597, c1599) VALUES (50, 'x', 1), (51, NULL, NULL); UPDATE wide SET c1597 = 'y' WHERE id = 50;",
            "DELETE FROM wide_full WHERE ctid = (SELECT min(ctid) FROM wide_full); UPDATE wide_full SET c1597 = ',' WHERE ctid = (SELECT max(ctid) FROM wide_full);",
        ],
    ),
    case(
        "dropped columns in the middle",
        &["t", "t_full"],
        "CREATE TABLE t (a int, b text, id int PRIMARY KEY, c text, d numeric); INSERT INTO t SELECT g, 'b', g, 'c', g FROM generate_series(1, 20) g;
         ALTER TABLE t DROP a, DROP c; INSERT INTO t SELECT 'b', g, g / 3.0 FROM generate_series(21, 30) g;
         CREATE TABLE t_full (a int, b text, c text); INSERT INTO t_full VALUES (1, 'x', 'y'), (1, 'x', 'y'); ALTER TABLE t_full DROP b; ALTER TABLE t_full REPLICA IDENTITY FULL;",
        &[
            "UPDATE t SET d = 0 WHERE id % 2 = 0; UPDATE t SET id = id + 100 WHERE id > 25; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES ('new', 500, 1);",
            "UPDATE t_full SET c = 'z' WHERE ctid = (SELECT min(ctid) FROM t_full)",
        ],
    ),
    case(
        "generated columns (stored)",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, price numeric, doubled numeric GENERATED ALWAYS AS (price * 2) STORED, word text);
         INSERT INTO t (id, price, word) SELECT g, g / 3.0, 'w' FROM generate_series(1, 20) g;",
        &["UPDATE t SET price = price + 1 WHERE id < 10; DELETE FROM t WHERE id = 4; INSERT INTO t (id, price) VALUES (100, NULL), (101, 'NaN');"],
    ),
    case(
        "generated columns under REPLICA IDENTITY FULL",
        &["t"],
        "CREATE TABLE t (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, b text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t (a, b) SELECT g % 3, 'b' FROM generate_series(1, 9) g;",
        &["UPDATE t SET a = 7 WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1); DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 2);"],
    )
    .until(17),
    // The server would refuse updates of a table that is published otherwise.
    case(
        "generated columns under REPLICA IDENTITY FULL, insert-only: the source's own updates go on",
        &["t"],
        "CREATE TABLE t (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, b text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t (a, b) SELECT g % 3, 'b' FROM generate_series(1, 9) g;",
        &["INSERT INTO t (a, b) VALUES (5, 'c'); UPDATE t SET a = a;"],
    )
    .since(18),
    case(
        "generated columns (virtual)",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, price numeric, doubled numeric GENERATED ALWAYS AS (price * 2) VIRTUAL);
         INSERT INTO t (id, price) SELECT g, g / 3.0 FROM generate_series(1, 20) g;",
        &["UPDATE t SET price = price + 1 WHERE id < 10; DELETE FROM t WHERE id = 4; INSERT INTO t (id, price) VALUES (100, NULL);"],
    )
    .since(18),
    case(
        "a NOT NULL that is NOT VALID: older rows are NULL",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, CASE WHEN g % 2 = 0 THEN 'v' END FROM generate_series(1, 9) g;
         ALTER TABLE t ADD CONSTRAINT v_is_there NOT NULL v NOT VALID;",
        &[
            "INSERT INTO t VALUES (10, 'x'); UPDATE t SET v = 'y' WHERE id < 3; DELETE FROM t WHERE id = 5;",
        ],
    )
    .since(18),
    case(
        "identity columns",
        &["always", "by_default", "beside"],
        "CREATE TABLE always (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, big text); ALTER TABLE always ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE by_default (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
         CREATE TABLE beside (id int PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v text, big text); ALTER TABLE beside ALTER big SET STORAGE EXTERNAL;
         INSERT INTO always (v, big) SELECT 'v' || g, repeat(md5(g::text), 300) FROM generate_series(1, 20) g; INSERT INTO by_default (v) SELECT 'v' || g FROM generate_series(1, 20) g;
         INSERT INTO beside (id, v, big) SELECT g, 'v' || g, repeat(md5(g::text), 300) FROM generate_series(1, 20) g;",
        &[
            "INSERT INTO always (v) VALUES ('a'); INSERT INTO always OVERRIDING SYSTEM VALUE VALUES (1000, 'b'); INSERT INTO by_default VALUES (1000, 'c'); UPDATE always SET v = 'changed' WHERE id < 5;",
            // The only way to change it: to the sequence's next value.
            "UPDATE always SET id = DEFAULT WHERE id IN (2, 3); UPDATE always SET id = DEFAULT, v = 'moved' WHERE id = 4; UPDATE by_default SET id = id + 500 WHERE id < 5;",
            "UPDATE beside SET n = DEFAULT WHERE id IN (5, 6); UPDATE beside SET n = DEFAULT, v = 'new' WHERE id = 7; UPDATE beside SET v = 'only' WHERE id = 8;",
            "BEGIN; INSERT INTO beside (id, v) VALUES (100, 'x'); UPDATE beside SET n = DEFAULT WHERE id = 100; UPDATE beside SET n = DEFAULT, id = 200 WHERE id = 9; DELETE FROM always WHERE id = 6; COMMIT;",
        ],
    ),
    case(
        "an identity that changes in a batch replayed row by row",
        &["t"],
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code int UNIQUE, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t (code, big) SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 20) g;",
        &[
            "BEGIN; UPDATE t SET code = 0 WHERE code = 1; UPDATE t SET code = 1 WHERE code = 2; UPDATE t SET code = 2 WHERE code = 0;
             UPDATE t SET id = DEFAULT WHERE code IN (3, 1); UPDATE t SET id = DEFAULT, code = 400 WHERE code = 4; COMMIT;",
        ],
    )
    .destination("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code int UNIQUE, big text, own text DEFAULT 'destination''s own');"),
    case(
        "columns added with a constant default",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20); ALTER TABLE t ADD a text DEFAULT 'fast', ADD b int NOT NULL DEFAULT 7, ADD c timestamptz DEFAULT '2000-01-01 00:00+00'; INSERT INTO t VALUES (21, 'x', 8);",
        &["UPDATE t SET a = a || '!' WHERE id < 5; DELETE FROM t WHERE id = 6; UPDATE t SET id = id + 100 WHERE id = 7;"],
    ),
    case(
        "values stored out of line",
        &["t", "t_full"],
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text, c bytea, n int); ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL;
         INSERT INTO t SELECT g, repeat('a' || g, 3000), repeat('b' || g, 3000), decode(repeat('00ff', 3000), 'hex'), 0 FROM generate_series(1, 30) g;
         CREATE TABLE t_full (a text, n int); ALTER TABLE t_full ALTER a SET STORAGE EXTERNAL; ALTER TABLE t_full REPLICA IDENTITY FULL; INSERT INTO t_full SELECT repeat('x', 5000), g % 3 FROM generate_series(1, 9) g;",
        &[
            "UPDATE t SET n = 1",
            "UPDATE t SET a = 'short' WHERE id = 1; UPDATE t SET a = repeat('A', 9000), b = repeat('B', 9000), c = NULL WHERE id = 2; UPDATE t SET c = '\\x' WHERE id = 3;",
            // The key changes in the same statement, and none, one or all of the values.
            "UPDATE t SET id = 104 WHERE id = 4; UPDATE t SET id = 105, a = repeat('C', 9000) WHERE id = 5; UPDATE t SET id = 106, a = NULL, b = 'b', c = '\\x00' WHERE id = 6;",
            "BEGIN; UPDATE t SET a = repeat('D', 9000) WHERE id = 7; UPDATE t SET id = 107 WHERE id = 7; UPDATE t SET b = repeat('E', 9000) WHERE id = 107; UPDATE t SET id = 7 WHERE id = 107; COMMIT;",
            "BEGIN; DELETE FROM t WHERE id = 8; INSERT INTO t VALUES (8, repeat('F', 9000), repeat('G', 9000), NULL, 5); UPDATE t SET n = 6 WHERE id = 8; COMMIT;",
            "UPDATE t_full SET n = 10 WHERE ctid = (SELECT min(ctid) FROM t_full WHERE n = 1); DELETE FROM t_full WHERE ctid = (SELECT min(ctid) FROM t_full WHERE n = 2);",
        ],
    ),
    case(
        "excluded columns",
        &["t", "t_full"],
        "CREATE TABLE t (id int PRIMARY KEY, v text, secret text NOT NULL, v2 text); INSERT INTO t SELECT g, 'v', 'nobody-shall-read-this', 'w' FROM generate_series(1, 20) g;
         CREATE TABLE t_full (secret text, a int, b text); ALTER TABLE t_full REPLICA IDENTITY FULL; INSERT INTO t_full SELECT 'nobody-shall-read-this' || g, g % 2, 'b' FROM generate_series(1, 9) g;",
        &[
            "UPDATE t SET secret = 'nobody-shall-read-this either'; UPDATE t SET v = 'new', secret = 'x' WHERE id < 5; INSERT INTO t VALUES (100, 'v', 'nobody-shall-read-this', NULL);",
            "UPDATE t_full SET secret = 'nobody-shall-read-this'; UPDATE t_full SET a = 5 WHERE ctid = (SELECT min(ctid) FROM t_full WHERE a = 1); DELETE FROM t_full WHERE ctid = (SELECT min(ctid) FROM t_full WHERE a = 0);",
        ],
    )
    .without(&[("t", "secret"), ("t_full", "secret")]),
    case(
        "a destination table with wider types, keyed and keyless",
        &["keyed", "keyless"],
        "CREATE TABLE keyed (id smallint, word varchar(8), a smallint, b smallint, c integer, d bigint, e integer, f real, g jsonb, h varchar(10), i varchar(10), j varchar(10), k char(3), l numeric(10,2), m numeric(10,2), n bit varying(3), o timestamp(3), p time(0) with time zone, q interval(2), r integer[], s varchar(3)[], t point, u interval, v timestamptz, w text[], PRIMARY KEY (id, word)); INSERT INTO keyed SELECT g, 'w' || g, g, -g, g * 1000, 9223372036854775807 - g, g, g / 3.0::real, jsonb_build_object('b', g, 'a', NULL), 'h' || g, '', E'j\\t' || g, 'k', g / 3.0, -g / 7.0, B'101', timestamp '2000-01-01 00:00:00.123' + g * interval '1 day', '12:00:01+05:45', g * interval '1.25 s', ARRAY[g, NULL, -g], ARRAY['a,b', NULL, '{}'], point(g, 0.1), g * interval '-1 mon 1 day 0.5 s', timestamptz '2000-01-01 00:00+00' + g * interval '1 hour', ARRAY['x' || g, NULL, '\\N'] FROM generate_series(1, 20) g; INSERT INTO keyed VALUES (0, '');
         CREATE TABLE keyless (a smallint, b smallint, c integer, d bigint, e integer, f real, g jsonb, h varchar(10), i varchar(10), j varchar(10), k char(3), l numeric(10,2), m numeric(10,2), n bit varying(3), o timestamp(3), p time(0) with time zone, q interval(2), r integer[], s varchar(3)[], t point, u interval, v timestamptz, w text[]); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless SELECT g, -g, g * 1000, 9223372036854775807 - g, g, g / 3.0::real, jsonb_build_object('b', g, 'a', NULL), 'h' || g, '', E'j\\t' || g, 'k', g / 3.0, -g / 7.0, B'101', timestamp '2000-01-01 00:00:00.123' + g * interval '1 day', '12:00:01+05:45', g * interval '1.25 s', ARRAY[g, NULL, -g], ARRAY['a,b', NULL, '{}'], point(g, 0.1), g * interval '-1 mon 1 day 0.5 s', timestamptz '2000-01-01 00:00+00' + g * interval '1 hour', ARRAY['x' || g, NULL, '\\N'] FROM generate_series(1, 9) g, generate_series(1, 2);",
        &[
            "UPDATE keyed SET f = 0.1, g = '[]', k = NULL WHERE id < 5; UPDATE keyed SET id = id + 100, word = 'x' WHERE id > 15; UPDATE keyed SET word = 'y', m = NULL, w = '{}' WHERE id = 6; DELETE FROM keyed WHERE id = 8;",
            "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 1); UPDATE keyless SET f = 1e30, k = 'z', u = '1 day' WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 2); UPDATE keyless SET v = NULL, g = NULL, w = NULL WHERE a = 3; INSERT INTO keyless SELECT * FROM keyless WHERE a = 4;",
        ],
    )
    .destination("CREATE TABLE keyed (id bigint, word text, a integer, b bigint, c bigint, d numeric, e numeric, f double precision, g json, h varchar(20), i varchar, j text, k text, l numeric(12,2), m numeric, n bit varying(5), o timestamp, p time(3) with time zone, q interval(4), r bigint[], s text[], t text, u text, v text, w text, PRIMARY KEY (id, word)); CREATE TABLE keyless (a integer, b bigint, c bigint, d numeric, e numeric, f double precision, g json, h varchar(20), i varchar, j text, k text, l numeric(12,2), m numeric, n bit varying(5), o timestamp, p time(3) with time zone, q interval(4), r bigint[], s text[], t text, u text, v text, w text);")
    .wider(),
    case(
        "a destination table with wider types, all of them common",
        &["keyed", "keyless"],
        "CREATE TABLE keyed (id smallint, word varchar(8), a smallint, c integer, d bigint, f real, g jsonb, h varchar(10), k char(3), l numeric(10,2), o timestamp(3), r integer[], s varchar(3)[], PRIMARY KEY (id, word)); INSERT INTO keyed SELECT g, 'w' || g, -g, g * 1000, 9223372036854775807 - g, g / 3.0::real, jsonb_build_object('b', g, 'a', NULL), 'h' || g, 'k', g / 3.0, timestamp '2000-01-01 00:00:00.123' + g * interval '1 day', ARRAY[g, NULL, -g], ARRAY['a,b', NULL, '{}'] FROM generate_series(1, 20) g;
         CREATE TABLE keyless (a smallint, d bigint, f real, k char(3), l numeric(10,2)); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless SELECT -g, g, g / 3.0::real, 'k', g / 3.0 FROM generate_series(1, 9) g, generate_series(1, 2);",
        &[
            "INSERT INTO keyed SELECT g, 'new', g, g, g, 0.1, '[]', '', NULL, g, '2026-01-01', '{1,2}', '{}' FROM generate_series(200, 240) g; UPDATE keyed SET f = 0.1, g = '[]', k = NULL WHERE id < 5; UPDATE keyed SET id = id + 100, word = 'x' WHERE id BETWEEN 16 AND 20; DELETE FROM keyed WHERE id = 8;",
            "INSERT INTO keyed SELECT g, 'later', g, g, g, 1e30, '{}', 'h', 'kkk', -g, 'infinity', '{1}', '{x}' FROM generate_series(300, 340) g;",
            "INSERT INTO keyless SELECT * FROM keyless WHERE a = -4; DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = -1); UPDATE keyless SET f = 1e30, k = 'z' WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = -2);",
        ],
    )
    .destination("CREATE TABLE keyed (id bigint, word text, a integer, c bigint, d numeric, f double precision, g json, h varchar(20), k text, l numeric(12,2), o timestamp, r bigint[], s text[], PRIMARY KEY (id, word)); CREATE TABLE keyless (a integer, d numeric, f double precision, k text, l numeric(12,2));")
    .wider(),
];

const KEYS: &[RowCase] = &[
    case(
        "no key, REPLICA IDENTITY FULL, equal rows",
        &["t"],
        "CREATE TABLE t (a int, b text, c double precision, d numeric, e json, f point); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t SELECT g % 4, NULLIF('b' || g % 3, 'b0'), '-0', 1.50, '{\"k\": 1}', '(1,2)' FROM generate_series(1, 60) g;",
        &[
            "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1)",
            "UPDATE t SET d = 1.5 WHERE ctid = (SELECT max(ctid) FROM t WHERE a = 2)",
            "INSERT INTO t SELECT * FROM t WHERE a = 3; UPDATE t SET e = '{\"k\":1}', b = NULL WHERE a = 3;",
            "BEGIN; INSERT INTO t VALUES (9, 'x', 'NaN', 'NaN', 'null', '(NaN,0)'), (9, 'x', 'NaN', 'NaN', 'null', '(NaN,0)'); DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 9); COMMIT;",
        ],
    ),
    case(
        "REPLICA IDENTITY FULL beside a primary key",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT g, 'v', repeat('x' || g, 4000) FROM generate_series(1, 20) g;",
        &["UPDATE t SET v = 'w' WHERE id < 5; UPDATE t SET id = id + 100 WHERE id > 15; DELETE FROM t WHERE id = 8;"],
    ),
    case(
        "REPLICA IDENTITY USING INDEX",
        &["t", "beside_primary"],
        "CREATE TABLE t (id int NOT NULL, code text NOT NULL, v text); CREATE UNIQUE INDEX t_code ON t (code, id); ALTER TABLE t REPLICA IDENTITY USING INDEX t_code; INSERT INTO t SELECT g, 'c' || g, 'v' FROM generate_series(1, 20) g;
         CREATE TABLE beside_primary (id int PRIMARY KEY, code text NOT NULL, v text); CREATE UNIQUE INDEX beside_code ON beside_primary (code); ALTER TABLE beside_primary REPLICA IDENTITY USING INDEX beside_code; INSERT INTO beside_primary SELECT g, 'c' || g, 'v' FROM generate_series(1, 20) g;",
        &[
            "UPDATE t SET code = 'new' || code WHERE id <= 5; UPDATE t SET v = 'w' WHERE id > 15; DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (100, 'x', 'y');",
            "UPDATE beside_primary SET code = 'new' || code WHERE id <= 5; UPDATE beside_primary SET id = id + 100 WHERE id > 15; DELETE FROM beside_primary WHERE id = 7;",
        ],
    ),
    case(
        "insert-only: no key, or REPLICA IDENTITY NOTHING",
        &["keyless", "nothing"],
        "CREATE TABLE keyless (a int, b text); CREATE TABLE nothing (id int PRIMARY KEY, b text); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         INSERT INTO keyless SELECT g % 5, 'same' FROM generate_series(1, 20) g; INSERT INTO nothing SELECT g, 'n' FROM generate_series(1, 10) g;",
        &["INSERT INTO keyless SELECT 1, 'same' FROM generate_series(1, 3); INSERT INTO nothing VALUES (100, 'x');", "TRUNCATE keyless", "INSERT INTO keyless VALUES (NULL, NULL), (NULL, NULL)"],
    ),
    case(
        "composite and text keys",
        &["composite", "words"],
        "CREATE TABLE composite (v text, a int, b text, c date, PRIMARY KEY (b, a, c)); INSERT INTO composite SELECT 'v', g, E'b\\t\\\\' || g % 5, date '2000-01-01' + g FROM generate_series(1, 40) g;
         CREATE TABLE words (word text PRIMARY KEY, n int); INSERT INTO words SELECT E'w\\n' || g, g FROM generate_series(1, 20) g; INSERT INTO words VALUES ('', 0), ('\\N', 1), (E'\\\\', 2);",
        &[
            "UPDATE composite SET a = a + 100, b = 'x' || b WHERE a % 2 = 0; UPDATE composite SET v = 'w' WHERE a = 3; DELETE FROM composite WHERE a = 5;",
            "UPDATE words SET n = 10 WHERE word IN ('', '\\N', E'\\\\'); UPDATE words SET word = word || '!' WHERE n = 10; DELETE FROM words WHERE word = '!';",
        ],
    ),
    case(
        "keys of citext",
        &["t"],
        "CREATE TABLE t (mail public.citext PRIMARY KEY, n int); INSERT INTO t SELECT 'User' || g || '@x', g FROM generate_series(1, 20) g;",
        &[
            "UPDATE t SET n = 100 WHERE n = 3; UPDATE t SET mail = upper(mail::text)::public.citext WHERE n < 10; DELETE FROM t WHERE n = 12;",
            "BEGIN; UPDATE t SET mail = lower(mail::text)::public.citext WHERE n < 6; UPDATE t SET n = n + 1000 WHERE n < 6; DELETE FROM t WHERE n = 1004; INSERT INTO t VALUES ('uSeR4@x', 4); COMMIT;",
        ],
    )
    .both("CREATE EXTENSION IF NOT EXISTS citext SCHEMA public"),
    case(
        "a nondeterministic collation, of keys and without a key",
        &["t", "t_full"],
        "CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE t (word text COLLATE anycase PRIMARY KEY, n int); INSERT INTO t SELECT 'Word' || g, g FROM generate_series(1, 20) g;
         CREATE TABLE t_full (word text COLLATE anycase); ALTER TABLE t_full REPLICA IDENTITY FULL; INSERT INTO t_full VALUES ('a'), ('A'), ('A'), ('b'), ('B'), (NULL);",
        &[
            "UPDATE t SET n = 100 WHERE n = 3; UPDATE t SET word = upper(word) WHERE n < 10; DELETE FROM t WHERE n = 12;
             DELETE FROM t_full WHERE ctid = (SELECT min(ctid) FROM t_full WHERE word::bytea = 'A'); UPDATE t_full SET word = 'B' WHERE word::bytea = 'b';",
            "BEGIN; UPDATE t SET word = lower(word) WHERE n < 6; UPDATE t SET n = n + 1000 WHERE n < 6; DELETE FROM t WHERE n = 1004; INSERT INTO t VALUES ('wOrD4', 4); COMMIT;",
            // Away and back again within a batch, spelled in another way each time.
            "BEGIN; UPDATE t SET word = 'WORD7' WHERE n = 7; UPDATE t SET word = 'word7' WHERE n = 7; UPDATE t SET word = 'Word7' WHERE n = 7; UPDATE t SET n = 77 WHERE n = 7; COMMIT;",
            "BEGIN; DELETE FROM t WHERE n = 8; INSERT INTO t VALUES ('WORD8', 80); DELETE FROM t WHERE n = 80; INSERT INTO t VALUES ('word8', 81); UPDATE t SET n = 82 WHERE n = 81; COMMIT;",
        ],
    ),
    case(
        "deferred unique constraints",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, place int, CONSTRAINT places UNIQUE (place) DEFERRABLE INITIALLY DEFERRED); INSERT INTO t SELECT g, g FROM generate_series(1, 20) g;",
        &["BEGIN; UPDATE t SET place = place + 1 WHERE id <= 10; UPDATE t SET place = 1 WHERE id = 11; COMMIT;", "BEGIN; UPDATE t SET place = 21 - place; INSERT INTO t VALUES (50, 5); UPDATE t SET place = 50 WHERE place = 5 AND id <> 50; COMMIT;"],
    )
    .destination("CREATE TABLE t (id int PRIMARY KEY, place int, CONSTRAINT places UNIQUE (place) DEFERRABLE INITIALLY DEFERRED);"),
    case(
        "a DEFERRABLE primary key under REPLICA IDENTITY FULL: keys that are swapped, shifted and shared for a while",
        &["t", "shared", "parts", "there"],
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'a'), (2, 'b');
         CREATE TABLE shared (id int, v text, big text, CONSTRAINT \"the key\" PRIMARY KEY (id) WITH (fillfactor = 80) DEFERRABLE INITIALLY DEFERRED); ALTER TABLE shared ALTER big SET STORAGE EXTERNAL; ALTER TABLE shared REPLICA IDENTITY FULL;
         INSERT INTO shared SELECT g, 'v' || g % 2, repeat(md5(g::text), 300) FROM generate_series(1, 20) g;
         CREATE TABLE parts (id int, v text, PRIMARY KEY (id) DEFERRABLE) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
         ALTER TABLE parts REPLICA IDENTITY FULL; ALTER TABLE parts_1 REPLICA IDENTITY FULL; ALTER TABLE parts_2 REPLICA IDENTITY FULL; INSERT INTO parts SELECT g, 'v' || g FROM generate_series(1, 9) g;
         CREATE TABLE there (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE there REPLICA IDENTITY FULL; INSERT INTO there SELECT g, 'v' || g FROM generate_series(1, 9) g;",
        &[
            "UPDATE t SET id = 3 - id; UPDATE shared SET id = 21 - id; UPDATE parts SET id = 10 - id; UPDATE there SET id = 10 - id;",
            "UPDATE t SET id = id + 1; UPDATE shared SET id = id + 1, v = v || '!'; UPDATE parts SET id = id + 1; UPDATE there SET id = id + 1;",
            "BEGIN; INSERT INTO shared VALUES (5, 'second', 'x'); UPDATE shared SET v = 'both' WHERE id = 5; DELETE FROM shared WHERE id = 5 AND big <> 'x'; UPDATE shared SET id = 6 WHERE id = 5; UPDATE shared SET id = 5 WHERE id = 6 AND big <> 'x'; COMMIT;",
            "BEGIN; DELETE FROM t WHERE id = 3; UPDATE t SET id = 3; INSERT INTO t VALUES (2, 'c'); UPDATE t SET id = 5 - id; COMMIT; DELETE FROM parts WHERE id = 4; UPDATE there SET v = 'w' WHERE id = 4; DELETE FROM there WHERE id = 5;",
        ],
    )
    .destination("CREATE TABLE there (id int PRIMARY KEY, v text);"),
    case(
        "insert-only: a DEFERRABLE primary key, which is no identity",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 9) g;",
        &["INSERT INTO t VALUES (10, 'x'), (11, 'y')", "TRUNCATE t", "INSERT INTO t VALUES (1, 'z')"],
    ),
    case(
        "unique values swapped in one transaction",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t SELECT g, g, repeat('x' || g, 3000) FROM generate_series(1, 20) g;",
        &[
            "BEGIN; UPDATE t SET code = 0 WHERE id = 1; UPDATE t SET code = 1 WHERE id = 2; UPDATE t SET code = 2 WHERE id = 1; COMMIT;",
            "BEGIN; UPDATE t SET code = 0 WHERE id = 3; UPDATE t SET code = 3, id = 104 WHERE id = 4; UPDATE t SET code = 4 WHERE id = 3; DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (105, 5, 'n'); COMMIT;",
            // Statements that shift all of them, in an order that happens to work at the source.
            "BEGIN; DELETE FROM t WHERE code = 20; UPDATE t SET code = code + 100; UPDATE t SET code = code - 99; COMMIT;",
        ],
    )
    .destination("CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE, big text);"),
];

const PARTITIONS: &[RowCase] = &[
    case(
        "partitioned by range, with sub-partitions by hash, into a plain table; rows that move, partitions that come",
        &["t"],
        "CREATE TABLE t (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2000-01-01') TO ('2001-01-01') PARTITION BY HASH (id);
         CREATE TABLE t_1_0 PARTITION OF t_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE t_1_1 PARTITION OF t_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2001-01-01') TO ('2002-01-01'); CREATE TABLE t_d PARTITION OF t DEFAULT;
         INSERT INTO t SELECT g, date '2000-01-01' + g * 20, 'v' || g FROM generate_series(1, 60) g;",
        &[
            // Rows that move: from leaf to leaf, below one branch and across.
            "UPDATE t SET day = day + 366 WHERE id < 10; UPDATE t SET id = id + 1001 WHERE id BETWEEN 20 AND 25; UPDATE t SET v = 'w' WHERE id = 30; DELETE FROM t WHERE id = 31;",
            "CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM ('2010-01-01') TO ('2011-01-01'); INSERT INTO t VALUES (500, '2010-05-05', 'late'); UPDATE t SET day = '2010-06-06' WHERE id = 12;",
            "TRUNCATE t; INSERT INTO t VALUES (1, '2000-01-01', 'again');",
        ],
    ),
    case(
        "partitioned by list, into a partitioned table",
        &["t"],
        "CREATE TABLE t (id int, kind text, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind); CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a'); CREATE TABLE t_bc PARTITION OF t FOR VALUES IN ('b', 'c');
         INSERT INTO t SELECT g, (ARRAY['a', 'b', 'c'])[g % 3 + 1], 'v' FROM generate_series(1, 30) g;",
        &["UPDATE t SET kind = 'a' WHERE id < 10; UPDATE t SET v = 'w' WHERE id > 20; DELETE FROM t WHERE id = 11; INSERT INTO t VALUES (100, 'c', NULL);"],
    )
    .destination("CREATE TABLE t (id int, kind text, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind); CREATE TABLE t_ab PARTITION OF t FOR VALUES IN ('a', 'b'); CREATE TABLE t_c PARTITION OF t FOR VALUES IN ('c');"),
    case(
        "partitioned by hash, rows that move in one transaction",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text) PARTITION BY HASH (id); CREATE TABLE t_0 PARTITION OF t FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES WITH (MODULUS 3, REMAINDER 1); CREATE TABLE t_2 PARTITION OF t FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t SELECT g, 'v' || g, repeat('b' || g, 3000) FROM generate_series(1, 60) g;",
        &[
            "BEGIN; UPDATE t SET id = id + 1000 WHERE id <= 20; UPDATE t SET v = 'w' WHERE id > 1010; UPDATE t SET id = id - 1000 WHERE id > 1015; COMMIT;",
            "BEGIN; SAVEPOINT s; UPDATE t SET id = id + 5000; ROLLBACK TO s; UPDATE t SET big = 'small' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0; COMMIT;",
        ],
    ),
    case(
        "partitions without a key",
        &["t"],
        "CREATE TABLE t (a int, v text) PARTITION BY HASH (a); CREATE TABLE t_0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE t_1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t_0 REPLICA IDENTITY FULL; ALTER TABLE t_1 REPLICA IDENTITY FULL; INSERT INTO t SELECT g % 4, 'v' FROM generate_series(1, 20) g;",
        &["DELETE FROM t WHERE ctid = '(0,1)' AND a = 1; UPDATE t SET a = a + 1 WHERE a = 2; INSERT INTO t VALUES (1, 'v'), (1, 'v');"],
    ),
    case(
        "partitions whose columns lie otherwise",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text, w int) PARTITION BY RANGE (id); CREATE TABLE t_1 (gone int, w int, v text, id int NOT NULL); ALTER TABLE t_1 DROP gone; ALTER TABLE t ATTACH PARTITION t_1 FOR VALUES FROM (0) TO (100);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (1000); INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 200, 7) g;",
        &["UPDATE t SET id = id + 90 WHERE id < 20; UPDATE t SET w = 0 WHERE id > 150; DELETE FROM t WHERE id = 29;"],
    ),
    case(
        "inheritance: parent and child are tables of their own",
        &["parent", "child"],
        "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent); INSERT INTO parent SELECT g, 'p' FROM generate_series(1, 10) g; INSERT INTO child SELECT g, 'c', g FROM generate_series(1, 10) g;",
        &["UPDATE parent SET v = 'both' WHERE id < 4; DELETE FROM ONLY parent WHERE id = 5; INSERT INTO child VALUES (100, 'c', 1);", "TRUNCATE ONLY parent"],
    ),
];

const NAMES: &[RowCase] = &[
    case(
        "odd identifiers",
        &["Mixed Case", "mixed case", "select", "quo\"te's", "dot.ted", "ünïcödé 🐇", "63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte", "$1", "back\\slash"],
        r#"CREATE TABLE "Mixed Case" ("Id" int PRIMARY KEY, "id" int, "ID" text); CREATE TABLE "mixed case" (id int PRIMARY KEY, v text); CREATE TABLE "select" ("from" int PRIMARY KEY, "where" text, "order" text);
           CREATE TABLE "quo""te's" ("a""b" int PRIMARY KEY, "it's" text, "two""""quotes" text); CREATE TABLE "dot.ted" ("a.b" int PRIMARY KEY, "a b" text, "a,b" text);
           CREATE TABLE "ünïcödé 🐇" ("ключ" int PRIMARY KEY, "é" text, "🐇" text); CREATE TABLE "63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte" ("63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte" int PRIMARY KEY, v text);
           CREATE TABLE "$1" ("$1" int PRIMARY KEY, "2fa" text, "_x41" text, "%s" text); CREATE TABLE "back\slash" ("\" int PRIMARY KEY, "\N" text, " " text);
           INSERT INTO "Mixed Case" SELECT g, g, 'a' FROM generate_series(1, 9) g; INSERT INTO "mixed case" SELECT g, 'b' FROM generate_series(1, 9) g; INSERT INTO "select" SELECT g, 'c' FROM generate_series(1, 9) g;
           INSERT INTO "quo""te's" SELECT g, 'd' FROM generate_series(1, 9) g; INSERT INTO "dot.ted" SELECT g, 'e' FROM generate_series(1, 9) g; INSERT INTO "ünïcödé 🐇" SELECT g, 'f' FROM generate_series(1, 9) g;
           INSERT INTO "63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte" SELECT g, 'g' FROM generate_series(1, 9) g; INSERT INTO "$1" SELECT g, 'h' FROM generate_series(1, 9) g; INSERT INTO "back\slash" SELECT g, 'i' FROM generate_series(1, 9) g;"#,
        &[
            r#"UPDATE "Mixed Case" SET "Id" = "Id" + 100, id = 0, "ID" = 'x' WHERE "Id" < 4; DELETE FROM "mixed case" WHERE id = 4; UPDATE "mixed case" SET v = 'x' WHERE id = 5; UPDATE "select" SET "from" = "from" + 100, "order" = 'o' WHERE "from" < 4;
               UPDATE "quo""te's" SET "a""b" = "a""b" + 100, "it's" = 'x' WHERE "a""b" < 4; UPDATE "dot.ted" SET "a.b" = "a.b" + 100, "a,b" = 'x' WHERE "a.b" < 4; UPDATE "ünïcödé 🐇" SET "ключ" = "ключ" + 100, "🐇" = 'x' WHERE "ключ" < 4;"#,
            r#"UPDATE "63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte" SET v = 'x' WHERE "63_bytes_long_63_bytes_long_63_bytes_long_63_bytes_long_63_byte" < 4; UPDATE "$1" SET "$1" = "$1" + 100, "2fa" = 'x', "_x41" = 'y', "%s" = 'z' WHERE "$1" < 4;
               UPDATE "back\slash" SET "\" = "\" + 100, " " = 'x' WHERE "\" < 4; DELETE FROM "back\slash" WHERE "\" = 5; TRUNCATE "Mixed Case", "$1";"#,
        ],
    )
    .schema("Odd \"Schema\".ü"),
    case(
        "a schema's name of 63 bytes",
        &["t", "t_full"],
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, v text, m mood DEFAULT 'ok'); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 9) g;
         CREATE TABLE t_full (m mood, v text); ALTER TABLE t_full REPLICA IDENTITY FULL; INSERT INTO t_full SELECT 'sad', 'v' FROM generate_series(1, 4) g;",
        &["UPDATE t SET id = id + 100, m = 'sad' WHERE id < 4; DELETE FROM t WHERE id = 5; UPDATE t_full SET m = 'ok' WHERE ctid = (SELECT min(ctid) FROM t_full); TRUNCATE t;"],
    )
    .schema("a_schema_whose_name_is_63_bytes_long_a_schema_whose_name_is_63b"),
    case(
        "a reserved word as a schema's name",
        &["t", "t_full"],
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, v text, m mood DEFAULT 'ok'); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 9) g;
         CREATE TABLE t_full (m mood, v text); ALTER TABLE t_full REPLICA IDENTITY FULL; INSERT INTO t_full SELECT 'sad', 'v' FROM generate_series(1, 4) g;",
        &["UPDATE t SET id = id + 100, m = 'sad' WHERE id < 4; DELETE FROM t WHERE id = 5; UPDATE t_full SET m = 'ok' WHERE ctid = (SELECT min(ctid) FROM t_full); TRUNCATE t;"],
    )
    .schema("select"),
];

const TRANSACTIONS: &[RowCase] = &[
    case(
        "savepoints and rolled back subtransactions",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g;",
        &[
            "BEGIN; UPDATE t SET v = 'a' WHERE id = 1; SAVEPOINT s; UPDATE t SET v = 'gone' WHERE id = 1; DELETE FROM t WHERE id = 2; SAVEPOINT s2; INSERT INTO t VALUES (100, 'gone'); ROLLBACK TO s2; INSERT INTO t VALUES (100, 'gone too'); ROLLBACK TO s; INSERT INTO t VALUES (100, 'kept'); RELEASE s; UPDATE t SET v = v || '!' WHERE id = 1; COMMIT;",
            "DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO t VALUES (1000 + i, 'sub'); IF i % 3 = 0 THEN RAISE 'undo'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
            "BEGIN; INSERT INTO t VALUES (5000, 'gone'); TRUNCATE t; ROLLBACK;",
        ],
    ),
    case(
        "prepared transactions",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g;",
        &[
            "BEGIN; INSERT INTO t VALUES (100, 'prepared'); UPDATE t SET v = 'prepared' WHERE id = 1; PREPARE TRANSACTION 'fidelity one'; BEGIN; INSERT INTO t VALUES (101, 'gone'); PREPARE TRANSACTION 'fidelity two';",
            "INSERT INTO t VALUES (102, 'meanwhile'); UPDATE t SET v = 'meanwhile' WHERE id = 2;",
            "COMMIT PREPARED 'fidelity one'",
            "ROLLBACK PREPARED 'fidelity two'",
        ],
    ),
    case(
        "TRUNCATE of several tables, CASCADE, RESTART IDENTITY",
        &["parent", "child", "numbered"],
        "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); CREATE TABLE numbered (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
         INSERT INTO parent SELECT g, 'p' FROM generate_series(1, 50) g; INSERT INTO child SELECT g, g FROM generate_series(1, 50) g; INSERT INTO numbered (v) SELECT 'n' FROM generate_series(1, 50) g;",
        &[
            "BEGIN; INSERT INTO child VALUES (100, 1); TRUNCATE parent, numbered RESTART IDENTITY CASCADE; INSERT INTO parent VALUES (1, 'after'); INSERT INTO child VALUES (1, 1); INSERT INTO numbered (v) VALUES ('first'); COMMIT;",
            "BEGIN; UPDATE parent SET v = 'x'; TRUNCATE child; TRUNCATE parent CASCADE; COMMIT;",
        ],
    ),
    case(
        "logical messages are ignored",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text);",
        &[
            "BEGIN; SELECT pg_logical_emit_message(true, 'prefix', 'content'); INSERT INTO t VALUES (1, 'a'); SELECT pg_logical_emit_message(false, 'prefix', 'content'); INSERT INTO t VALUES (2, 'b'); SELECT pg_logical_emit_message(true, '', ''); COMMIT;",
            "SELECT pg_logical_emit_message(true, 'alone', repeat('x', 100000)); SELECT pg_logical_emit_message(false, 'alone', 'y');",
        ],
    ),
];
