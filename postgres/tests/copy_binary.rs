//! Whether a server writes the same bytes, for values of every sort that it prints. Against the
//! server that `SOURCE_URL` names:
//!
//! ```text
//! SOURCE_URL=… cargo test -p bunny-postgres --test copy_binary -- --ignored
//! ```

// The whole file is tests and what they share.
#![allow(clippy::unwrap_used)]

use bunny_postgres::copy_binary::{self, Encoding};
use bunny_postgres::copy_text;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{Client, NoTls};

/// A type, and queries that give values of it, edges first.
const VALUES: [(&str, &str); 20] = [
    ("boolean", "VALUES (true), (false), (NULL)"),
    ("smallint", "VALUES (-32768), (32767), (0), (NULL)"),
    ("integer", "VALUES (-2147483648), (2147483647), (0)"),
    (
        "bigint",
        "VALUES (-9223372036854775808), (9223372036854775807), (0)",
    ),
    ("oid", "VALUES (0::oid), (4294967295::oid)"),
    (
        "real",
        "SELECT v::real FROM unnest('{NaN,Infinity,-Infinity,0,-0,1e-45,3.4028235e38,1.1754944e-38,0.1,1e15,1e16,123456789}'::text[]) v
         UNION ALL SELECT ((random() - 0.5) * 10 ^ (random() * 70 - 35))::real FROM generate_series(1, 1000)",
    ),
    (
        "double precision",
        "SELECT v::float8 FROM unnest('{NaN,Infinity,-Infinity,0,-0,4.9e-324,1.7976931348623157e308,2.2250738585072014e-308,0.1,1e15,1e16,9007199254740993}'::text[]) v
         UNION ALL SELECT (random() - 0.5) * 10::float8 ^ (random() * 600 - 300) FROM generate_series(1, 1000)",
    ),
    (
        "numeric",
        "SELECT v::numeric FROM unnest('{NaN,Infinity,-Infinity,0,0.000,-0.0,1,-1,10000,9999,100000000,0.0001,0.00001,-0.00000000001,1.10,12345678901234567890.0987654321,1000.00,99990000.0000}'::text[]) v
         UNION ALL SELECT repeat('9', 1000)::numeric UNION ALL SELECT ('0.' || repeat('0', 500) || '7')::numeric
         UNION ALL SELECT (random() * 10::numeric ^ (g % 40))::numeric(60, 12) FROM generate_series(1, 500) g
         UNION ALL SELECT trim_scale(-((random() * 10::numeric ^ (g % 30 - 15))::numeric(60, 25))) FROM generate_series(1, 500) g",
    ),
    (
        "text",
        r"VALUES (''), ('\N'), ('\'), (E'a\tb\nc\rd\\e\b\f\v'), ('süß 🐇'), ('NULL'), (NULL), (repeat('x', 100000))",
    ),
    ("character varying(5)", "VALUES ('ab'), ('süß')"),
    ("character(7)", "VALUES ('ab'), (''), ('süß')"),
    ("json", r#"VALUES (' {"a" : 1, "a":2}'::json), ('"\\u00e4"')"#),
    (
        "jsonb",
        r#"VALUES ('{"a": [1, null, "x\ty"], "b": {}}'::jsonb), ('"\""'), ('null')"#,
    ),
    (
        "bytea",
        "VALUES (''::bytea), ('\\x00ff5c'), (decode(repeat('5c0a', 50000), 'hex'))",
    ),
    (
        "uuid",
        "SELECT gen_random_uuid() FROM generate_series(1, 100)",
    ),
    (
        "date",
        "SELECT v::date FROM unnest('{infinity,-infinity,2000-01-01,1999-12-31,0001-01-01,0001-12-31 BC,4714-11-24 BC,5874897-12-31,10000-02-29,2000-02-29,1900-02-28,1900-03-01}'::text[]) v
         UNION ALL SELECT date '4714-11-24 BC' + g * 977 FROM generate_series(1, 3000) g",
    ),
    (
        "time",
        "VALUES (time '00:00'), ('24:00'), ('23:59:59.999999'), ('00:00:00.000001'), ('01:02:03.1')",
    ),
    (
        "timestamp",
        "SELECT v::timestamp FROM unnest('{infinity,-infinity,2000-01-01,1999-12-31 23:59:59.999999,4714-11-24 00:00:00 BC,294276-12-31 23:59:59.999999,0044-03-15 12:00:00.5 BC}'::text[]) v
         UNION ALL SELECT timestamp '4000-01-01 BC' + g * interval '1234 days 5 hours 6.789012 seconds' FROM generate_series(1, 3000) g",
    ),
    (
        "timestamptz",
        "SELECT v::timestamptz FROM unnest('{infinity,-infinity,2000-01-01 00:00:00+00,1999-12-31 23:59:59.999999+00,4714-11-25 00:00:00+00 BC,294276-12-30 23:59:59.999999+00}'::text[]) v
         UNION ALL SELECT timestamptz '1800-01-01' + g * interval '27 days 5 hours 6.789012 seconds' FROM generate_series(1, 3000) g",
    ),
    (
        "text[]",
        r#"VALUES ('{}'::text[]), ('{a,b}'), ('{NULL,"NULL","",null}'), (ARRAY['a,b', '{', '"', '\', ' ', E'\t', 'ä']), (NULL)"#,
    ),
];

async fn connect() -> Client {
    let url = std::env::var("SOURCE_URL").expect("SOURCE_URL names the server to test with");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn copied(client: &Client, copy: &str) -> Vec<u8> {
    let rows = client.copy_out(copy).await.unwrap();
    let rows: Vec<_> = rows.try_collect().await.unwrap();
    rows.concat()
}

/// What a table with one column of the type and these values is as binary, by the server and by us.
/// The second is shorter by what is not known.
async fn both(client: &Client, type_name: &str, values: &str) -> (Vec<u8>, Vec<u8>) {
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS pg_temp.v; CREATE TEMP TABLE v (v {type_name}); INSERT INTO v {values}"
        ))
        .await
        .unwrap();
    let oid: u32 = client
        .query_one("SELECT atttypid FROM pg_attribute WHERE attrelid = 'pg_temp.v'::regclass AND attname = 'v'", &[])
        .await
        .unwrap()
        .get(0);
    let encoding = Encoding::of(oid, false).expect(type_name);
    let theirs = copied(client, "COPY v TO STDOUT (FORMAT binary)").await;
    let text = copied(client, "COPY v TO STDOUT").await;
    let mut ours = Vec::new();
    copy_binary::begin(&mut ours);
    for line in copy_text::rows(&text) {
        let start = ours.len();
        copy_binary::row(&mut ours, 1).unwrap();
        if copy_binary::cell(&mut ours, encoding, line.line).is_err() {
            ours.truncate(start);
        }
    }
    copy_binary::end(&mut ours);
    (theirs, ours)
}

fn assert_same(theirs: &[u8], ours: &[u8], of: &str) {
    let first = theirs
        .iter()
        .zip(ours)
        .position(|(one, other)| one != other);
    let at = first.unwrap_or(theirs.len().min(ours.len()));
    let around = |bytes: &[u8]| {
        bytes[at.saturating_sub(20).min(bytes.len())..(at + 20).min(bytes.len())].to_vec()
    };
    assert!(
        theirs == ours,
        "{of}, at byte {at}: {:x?} and {:x?}",
        around(theirs),
        around(ours)
    );
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn a_server_writes_the_same_bytes() {
    let client = connect().await;
    for zone in [
        "UTC",
        "Asia/Kathmandu",
        "Africa/Monrovia",
        "America/St_Johns",
    ] {
        client
            .batch_execute(&format!("SET TimeZone = '{zone}'"))
            .await
            .unwrap();
        for (type_name, values) in VALUES {
            let (theirs, ours) = both(&client, type_name, values).await;
            assert_same(
                &theirs,
                &ours,
                &format!("{type_name} with time zone {zone}"),
            );
            if zone == "UTC" && !type_name.ends_with(']') {
                let values = format!("SELECT array_agg(v) FROM ({values}) x(v)");
                let (theirs, ours) = both(&client, &format!("{type_name}[]"), &values).await;
                assert_same(&theirs, &ours, &format!("{type_name}[]"));
            }
        }
    }
}

/// Another type, to which values go as their own is printed: by a modifier, a domain or a type that holds more.
const ELSEWHERE: [(&str, &str, &str); 14] = [
    ("smallint", "bigint", "VALUES (-1), (32767), (NULL)"),
    (
        "bigint",
        "numeric(30,3)",
        "VALUES (9223372036854775807), (0), (-1)",
    ),
    (
        "numeric",
        "double precision",
        "VALUES (0.1), (1e300), ('NaN'), ('-Infinity'), (0.000)",
    ),
    (
        "numeric",
        "numeric(12,1)",
        "VALUES (0.05), (-0.05), (0.15), (99999999999.94), ('NaN')",
    ),
    (
        "real",
        "double precision",
        "VALUES (0.1), ('1e-45'), ('Infinity'), ('-0')",
    ),
    (
        "double precision",
        "numeric",
        "VALUES (0.1), (1e20), (1e-20), ('NaN'), ('Infinity')",
    ),
    (
        "text",
        "character varying(4)",
        "VALUES ('abcd'), ('abcd   '), ('süß'), ('')",
    ),
    (
        "text",
        "character(4)",
        "VALUES ('a'), ('abcd   '), ('süß'), ('')",
    ),
    ("character(4)", "text", "VALUES ('a'), ('')"),
    (
        "jsonb",
        "json",
        r#"VALUES ('{"b": 1, "a": [null]}'::jsonb)"#,
    ),
    (
        "timestamp",
        "timestamp(0)",
        "VALUES (timestamp '2026-01-01 00:00:00.5'), ('2026-12-31 23:59:59.999999'), ('infinity')",
    ),
    (
        "timestamptz",
        "timestamp",
        "VALUES (timestamptz '2026-01-01 00:00:00+05'), ('infinity')",
    ),
    (
        "time",
        "time(1)",
        "VALUES (time '23:59:59.99'), ('00:00:00.05')",
    ),
    (
        "integer[]",
        "numeric(5,1)[]",
        "VALUES ('{1,NULL,-3}'::int[]), ('{}')",
    ),
];

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn both_formats_store_the_same_in_another_type() {
    let client = connect().await;
    client
        .batch_execute("SET TimeZone = 'UTC'; CREATE TEMP TABLE own (v int); CREATE DOMAIN pg_temp.held AS numeric(6,2) CHECK (VALUE > -5)")
        .await
        .unwrap();
    let domain = ("numeric", "pg_temp.held", "VALUES (1.005), (NULL), (-4.5)");
    for (from, to, values) in ELSEWHERE.into_iter().chain([domain]) {
        client
            .batch_execute(&format!(
                "DROP TABLE own; CREATE TEMP TABLE own (v {from}); INSERT INTO own {values};
                 CREATE TEMP TABLE by_text (v {to}); CREATE TEMP TABLE by_binary (v {to})"
            ))
            .await
            .unwrap();
        let look = client
            .prepare("SELECT v FROM by_binary LIMIT 0")
            .await
            .unwrap();
        let encoding = Encoding::of(look.columns()[0].type_().oid(), false).expect(to);
        let text = copied(&client, "COPY own TO STDOUT").await;
        let (mut binary, mut rest) = (Vec::new(), Vec::new());
        copy_binary::begin(&mut binary);
        for line in copy_text::rows(&text) {
            let start = binary.len();
            copy_binary::row(&mut binary, 1).unwrap();
            if copy_binary::cell(&mut binary, encoding, line.line).is_err() {
                binary.truncate(start);
                rest.extend_from_slice(line.line);
                rest.push(b'\n');
            }
        }
        copy_binary::end(&mut binary);
        copy_in(&client, "COPY by_text FROM STDIN", text).await;
        copy_in(&client, "COPY by_binary FROM STDIN", rest).await;
        copy_in(&client, "COPY by_binary FROM STDIN (FORMAT binary)", binary).await;
        let rows = |table: &str| {
            format!(
                "SELECT coalesce(string_agg(coalesce(v::text, '-'), ' ' ORDER BY v::text), '') FROM {table}"
            )
        };
        let query = format!("SELECT ({}), ({})", rows("by_text"), rows("by_binary"));
        let row = client.query_one(&query, &[]).await.unwrap();
        let (by_text, by_binary): (String, String) = (row.get(0), row.get(1));
        assert_eq!(by_text, by_binary, "{from} to {to}");
        client
            .batch_execute("DROP TABLE by_text, by_binary")
            .await
            .unwrap();
    }
}

async fn copy_in(client: &Client, copy: &str, data: Vec<u8>) {
    let sink = client.copy_in(copy).await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from(data)).await.unwrap();
    sink.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn other_arrays_are_left_to_the_server() {
    let client = connect().await;
    for value in ["{{1,2},{3,4}}", "[0:1]={1,2}"] {
        let (_, ours) = both(&client, "int[]", &format!("VALUES ('{value}'::int[])")).await;
        let (_, empty) = both(&client, "int[]", "SELECT NULL::int[] WHERE false").await;
        assert_eq!(ours, empty, "{value}");
    }
}
