//! Every built-in type, at its edges, byte for byte (invariant I8).

use anyhow::Result;
use bunny_tests::content::TablePair;
use serde_json::json;

use crate::enum_labels::stopped;
use crate::scene::Scene;

const CREATE: &str = r#"
CREATE TABLE every_type (
    id int PRIMARY KEY,
    bo boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision, nu numeric, nu2 numeric(30, 10),
    te text, vc varchar(50), ch char(10), na name, by bytea, mo money,
    da date, ti time, tz timetz, ts timestamp, tt timestamptz, iv interval,
    uu uuid, js json, jb jsonb, xm xml, bi bit(5), vb bit varying(10),
    ne inet, ci cidr, ma macaddr, po point, li line, ls lseg, bx box, pa path, pg polygon, cc circle,
    ia int[], ta text[], t2 text[][], ra int4range, mr int4multirange, tq tsquery, tv tsvector, lsn pg_lsn, oi oid
);"#;

/// Settings that would change how values are printed, were sessions not pinned.
const OTHER_SETTINGS: &str = r#"
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET datestyle = ''SQL, DMY''', current_database());
    EXECUTE format('ALTER DATABASE %I SET intervalstyle = ''iso_8601''', current_database());
    EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kathmandu''', current_database());
    EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
    EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database());
    EXECUTE format('ALTER DATABASE %I SET xmloption = ''document''', current_database());
END $$"#;

const ROWS: &str = r#"
INSERT INTO every_type (id) VALUES (0);
INSERT INTO every_type VALUES (1, true, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', 12345678901234567890.0123456789,
    '', '', '', '', '\x', '-12.34',
    '4713-01-01 BC', '00:00', '23:59:59.999999+15:59', '-infinity', 'infinity', '-178000000 years',
    '00000000-0000-0000-0000-000000000000', ' { "a" :  1, "a": 2 } ', '{"b": [1.10, null, "\u00e9"]}', '<a/>text<b x="1"/>', '10101', '',
    '::1', '10.0.0.0/8', '08:00:2b:01:02:03', '(1.5,-0)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1))', '<(0,0),1>',
    '{}', '{}', '{}', 'empty', '{}', '', '', '0/0', 0);
INSERT INTO every_type VALUES (2, false, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 5e-324, 1e-130, 0,
    E'tab\there\nnewline\\backslash\r\b\f\v \\N \\. "quotes" ''single''', 'ünïcödé 🐇', 'padded', 'Name', '\x00ff0a09275c', '92233720368547758.07',
    '5874897-12-31', '24:00', '00:00-15:59', '294276-12-31 23:59:59.999999', '4713-01-01 00:00:00+00 BC', '1 year -2 mons 3 days -04:05:06.789',
    'ffffffff-ffff-ffff-ffff-ffffffffffff', 'null', '"string"', '<?xml version="1.0"?><a/>', '00000', '1111111111',
    '192.168.1.5/24', '::/0', 'ff:ff:ff:ff:ff:ff', '(1e300,1e-300)', '{-1,0,0.1}', '[(1e10,0),(0,1)]', '(2,2),(1,1)', '((0,0),(1,1),(2,0))', '((0,0),(1,1),(2,0))', '<(1,2),0>',
    '[2:3]={1,NULL}', '{"NULL",NULL,"a,b","{}","\"","\\",""}', '{{a,b},{c,NULL}}', '[1,)', '{[1,3),[5,)}', '''a'' & !''b'':*A', '''a'':1A,2B ''b''', 'FFFFFFFF/FFFFFFFF', 4294967295);
INSERT INTO every_type (id, f4, f8, nu) VALUES (3, '-0', '-0', '-0.000'), (4, 0.1, 0.1, '1.10'), (5, 1e-45, 1.7976931348623157e308, 'Infinity'), (6, 16777217, 9007199254740993, '-Infinity');
"#;

#[tokio::test(flavor = "multi_thread")]
async fn values_arrive_byte_for_byte() -> Result<()> {
    let scene = Scene::new("types").await?;
    scene.source.run(OTHER_SETTINGS).await?;
    let destination = scene.stage.destination.connect().await?;
    destination.run(OTHER_SETTINGS).await?;
    // The same rows by way of the snapshot and, shifted, by way of the stream.
    let shifted = ROWS.replace(
        "INSERT INTO every_type VALUES (",
        "INSERT INTO every_type VALUES (10",
    );
    let streamed = format!(
        "{} UPDATE every_type SET te = 'changed', f8 = 1.0/3 WHERE id < 10; UPDATE every_type SET id = id + 500 WHERE id = 1",
        shifted
            .replace("(id) VALUES (0)", "(id) VALUES (100)")
            .replace("VALUES (3,", "VALUES (103,")
            .replace("(4,", "(104,")
            .replace("(5,", "(105,")
            .replace("(6,", "(106,")
    );
    let create = format!("{CREATE} {ROWS}");
    scene
        .mirror_and_change(&create, &["public.every_type"], &[&streamed])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_with_defaults_identities_and_generated_values() -> Result<()> {
    let scene = Scene::new("columns").await?;
    let create = "
        CREATE TABLE t (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            price numeric NOT NULL DEFAULT 1.5,
            doubled numeric GENERATED ALWAYS AS (price * 2) STORED,
            at timestamptz NOT NULL DEFAULT now(),
            dropped text,
            word text COLLATE \"C\"
        );
        ALTER TABLE t DROP dropped;
        INSERT INTO t (price, word) SELECT g, 'w' || g FROM generate_series(1, 100) g;";
    let changes = [
        "INSERT INTO t DEFAULT VALUES; UPDATE t SET price = price + 1 WHERE id < 10; DELETE FROM t WHERE id = 20;",
    ];
    scene
        .mirror_and_change(create, &["public.t"], &changes)
        .await
}

/// What a `regclass` pointed to is gone at the source, which prints its oid then. At the destination
/// that may be the oid of something else.
#[tokio::test(flavor = "multi_thread")]
async fn an_oid_is_not_taken_for_a_name() -> Result<()> {
    let scene = Scene::new("names").await?;
    scene
        .source
        .run("CREATE TABLE gone (); CREATE TABLE \"123\" ();
              CREATE TABLE copied (id int PRIMARY KEY, c regclass); CREATE TABLE live (LIKE copied INCLUDING ALL);
              CREATE TABLE listed (id int PRIMARY KEY, l regclass[], t regtype); INSERT INTO listed VALUES (1, '{pg_class,-}', 'int');
              INSERT INTO copied VALUES (1, 'pg_class'), (2, 'gone'); INSERT INTO live VALUES (1, 'pg_class'), (2, '-'); DROP TABLE gone;")
        .await?;
    let destination = scene.stage.destination.connect().await?;
    destination.run("CREATE TABLE \"123\" ()").await?;
    let (api, stage) = (&scene.api, &scene.stage);
    let mirror = stage
        .create_mirror(
            api,
            "mirror",
            &["public.copied", "public.live", "public.listed"],
            json!({}),
        )
        .await?;
    stopped(&mirror, "public.copied", "names nothing at the source").await?;
    let good = TablePair::all(&["public.live", "public.listed"]);
    scene
        .source
        .run("INSERT INTO live VALUES (3, 'public.\"123\"'); UPDATE listed SET l = ARRAY['public.\"123\"', 'pg_type']::regclass[]")
        .await?;
    stage.assert_converges(&mirror, &good).await?;
    scene
        .source
        .run("INSERT INTO live VALUES (4, '4294967295'); UPDATE listed SET l = '{pg_class,4294967295}'")
        .await?;
    for table in ["public.live", "public.listed"] {
        stopped(&mirror, table, "names nothing at the source").await?;
    }
    Ok(())
}

/// Rows are written in the form of the types that the columns had when they were looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_altered_at_the_destination_takes_values_of_its_new_type() -> Result<()> {
    let scene = Scene::new("altered_there").await?;
    let tables = ["public.keyed", "public.bare"];
    scene
        .source
        .run("CREATE TABLE keyed (id int PRIMARY KEY, n bigint, f bigint); CREATE TABLE bare (n bigint, f bigint)")
        .await?;
    let mirror = scene.running_mirror(&tables, json!({})).await?;
    let destination = scene.stage.destination.connect().await?;
    let insert = |from: i32| {
        format!(
            "INSERT INTO keyed SELECT g, g, g FROM generate_series({from}, {from} + 99) g;
             INSERT INTO bare SELECT g, g FROM generate_series({from}, {from} + 99) g"
        )
    };
    scene.source.run(&insert(1)).await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    destination
        .run(
            "ALTER TABLE keyed ALTER n TYPE numeric, ALTER f TYPE double precision;
             ALTER TABLE bare ALTER n TYPE numeric, ALTER f TYPE double precision",
        )
        .await?;
    scene.source.run(&insert(101)).await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    for table in ["keyed", "bare"] {
        let sums = "SELECT count(*) || ' ' || sum(n) || ' ' || sum(f) || ' ' || count(DISTINCT n) || ' ' || count(DISTINCT f)";
        let sums = destination.text(&format!("{sums} FROM {table}")).await?;
        assert_eq!(sums, "200 20100 20100 200 200", "{table}");
    }
    Ok(())
}

/// What the source's names stand for is not there: the table stops and says which column, and what it misses.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_destination_lacks_is_named() -> Result<()> {
    let scene = Scene::new("lacking").await?;
    let role = format!("{} only here", scene.stage.name);
    scene
        .source
        .run(&format!(
            "CREATE TABLE only_here (); CREATE ROLE \"{role}\"; CREATE COLLATION odd (LOCALE = 'C'); UPDATE pg_collation SET collcollate = 'xx_YY', collctype = 'xx_YY' WHERE collname = 'odd';
             CREATE COLLATION other (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
             CREATE TABLE class_copied (id int PRIMARY KEY, \"the class\" regclass); CREATE TABLE class_live (LIKE class_copied INCLUDING ALL);
             CREATE TABLE acl_copied (id int PRIMARY KEY, acl aclitem[]); CREATE TABLE acl_live (n int, acl aclitem); ALTER TABLE acl_live REPLICA IDENTITY FULL;
             CREATE TABLE role_live (id int PRIMARY KEY, r regrole);
             CREATE TABLE sorted (id int PRIMARY KEY, v text COLLATE odd); CREATE TABLE otherwise (id int PRIMARY KEY, v text COLLATE other);
             INSERT INTO class_copied VALUES (1, 'pg_class'), (2, 'only_here'); INSERT INTO class_live VALUES (1, 'pg_class');
             INSERT INTO acl_copied VALUES (1, '{{\"\\\"{role}\\\"=r/postgres\"}}'); INSERT INTO role_live VALUES (1, 'postgres');"
        ))
        .await?;
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("CREATE COLLATION other (PROVIDER = icu, LOCALE = 'und-u-ks-level2')")
        .await?;
    let tables = [
        "public.class_copied",
        "public.class_live",
        "public.acl_copied",
        "public.acl_live",
        "public.role_live",
        "public.sorted",
        "public.otherwise",
    ];
    let mirror = scene
        .stage
        .create_mirror(&scene.api, "mirror", &tables, json!({}))
        .await?;
    let live = TablePair::all(&["public.class_live", "public.acl_live", "public.role_live"]);
    scene.stage.assert_converges(&mirror, &live).await?;
    scene
        .source
        .run(&format!(
            "UPDATE class_live SET \"the class\" = 'only_here'; INSERT INTO acl_live VALUES (1, '\"{role}\"=r/postgres'); UPDATE role_live SET r = '\"{role}\"'"
        ))
        .await?;
    let lacks = format!("role \"{role}\" does not exist");
    for (table, words) in [
        (
            "public.class_copied",
            ["column \"the class\"", "only_here\" does not exist"],
        ),
        (
            "public.class_live",
            ["column \"the class\"", "only_here\" does not exist"],
        ),
        ("public.acl_copied", ["column \"acl\"", &lacks]),
        ("public.acl_live", ["column \"acl\"", &lacks]),
        ("public.role_live", ["column \"r\"", &lacks]),
        ("public.sorted", ["collation public.odd", "xx_YY"]),
        (
            "public.otherwise",
            [
                "other",
                "is deterministic there and nondeterministic at the source",
            ],
        ),
    ] {
        for words in words {
            stopped(&mirror, table, words).await?;
        }
    }
    scene
        .source
        .run(&format!(
            "DROP TABLE acl_copied, acl_live, role_live; DROP ROLE \"{role}\""
        ))
        .await
}
