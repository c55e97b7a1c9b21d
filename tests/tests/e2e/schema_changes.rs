//! Changes of table definitions on the live stream, under load, in every mode, and with
//! apply dying around them.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

use crate::enum_labels::{stopped, synced_again};
use crate::fidelity::major;
use crate::scene::Scene;

pub const CRASH_LIMIT: Duration = Duration::from_secs(60);

/// Around a schema change: altered and not committed, written, committed, a label of its own.
pub const APPLY_SCHEMA_CHANGES: [(&str, u32); 5] = [
    ("apply::schema_changed", 1),
    ("apply::schema_changed", 2),
    ("apply::before_commit", 1),
    ("apply::after_commit", 1),
    ("apply::label_added", 1),
];

/// The columns of a table, in one text: name, type, NOT NULL, default, key.
pub async fn columns(session: &Session, table: &str) -> Result<Vec<String>> {
    let rows = session
        .query(
            "SELECT format('%s %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                    CASE WHEN a.attnotnull THEN ' not null' END, ' default ' || pg_get_expr(d.adbin, d.adrelid),
                    CASE WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary
                                      AND a.attnum = ANY (i.indkey)) THEN ' key' END)
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname",
            &[&table],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const THINGS: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE things (id int PRIMARY KEY, a text, b int, c varchar(5), d text NOT NULL, m mood);
    INSERT INTO things SELECT g, 'a' || g, g, 'c', 'd', 'sad' FROM generate_series(1, 200) g;";

/// Each with data changes before and after; together they are everything that `all` follows.
const ALL: [&str; 19] = [
    // Added: empty, constant, stable, an array, filled rows updated and deleted.
    "ALTER TABLE things ADD plain text; UPDATE things SET plain = 'p' WHERE id % 3 = 0; DELETE FROM things WHERE id = 1;",
    "ALTER TABLE things ADD k int NOT NULL DEFAULT 7, ADD k2 text DEFAULT 'it''s', ADD k3 int[] DEFAULT '{1,2}', ADD k4 timestamptz DEFAULT now();
     INSERT INTO things (id, d) VALUES (301, 'x'); UPDATE things SET k = 8 WHERE id < 5;",
    "ALTER TABLE things ADD later int; ALTER TABLE things ALTER later SET DEFAULT 3; INSERT INTO things (id, d) VALUES (302, 'x');",
    // Several versions in one transaction, rows of each.
    "BEGIN; INSERT INTO things (id, d) VALUES (310, 'first'); ALTER TABLE things ADD e int; INSERT INTO things (id, d, e) VALUES (311, 'second', 1);
     UPDATE things SET e = 2 WHERE id = 310; ALTER TABLE things ADD f text DEFAULT 'f'; UPDATE things SET f = 'g' WHERE id % 2 = 0;
     DELETE FROM things WHERE id = 311; INSERT INTO things (id, d) VALUES (312, 'third'); COMMIT;",
    // And with more rows than a batch holds.
    "BEGIN; INSERT INTO things (id, d) SELECT g, 'many' FROM generate_series(1000, 1500) g; ALTER TABLE things ADD g numeric(6,2) DEFAULT 1.50;
     UPDATE things SET g = 2 WHERE id >= 1100; ALTER TABLE things ADD h bool; INSERT INTO things (id, d, h) SELECT g, 'more', true FROM generate_series(1600, 2000) g; COMMIT;",
    "ALTER TABLE things DROP COLUMN k2; UPDATE things SET a = 'after drop' WHERE id = 3;",
    "ALTER TABLE things RENAME COLUMN a TO a2; UPDATE things SET a2 = 'after rename' WHERE id = 4;",
    // Names that change hands.
    "BEGIN; ALTER TABLE things RENAME plain TO t; ALTER TABLE things RENAME a2 TO plain; ALTER TABLE things RENAME t TO a2; COMMIT; UPDATE things SET plain = 'now this' WHERE id = 5;",
    // Dropped and added again under the same name.
    "ALTER TABLE things DROP COLUMN later; ALTER TABLE things ADD later int DEFAULT 99; UPDATE things SET b = b + 1 WHERE id = 6;",
    "ALTER TABLE things ALTER b TYPE bigint; UPDATE things SET b = 5000000000 WHERE id = 7;",
    "ALTER TABLE things ALTER c TYPE varchar(20); UPDATE things SET c = 'longer than five' WHERE id = 8;",
    "ALTER TABLE things ALTER b TYPE text; UPDATE things SET b = 'words' WHERE id = 9;",
    "ALTER TABLE things ALTER d DROP NOT NULL; UPDATE things SET d = NULL WHERE id = 10;",
    "UPDATE things SET c = 'none' WHERE c IS NULL; ALTER TABLE things ALTER c SET NOT NULL; UPDATE things SET c = 'set' WHERE id = 11;",
    // Labels: at the end, in between, renamed.
    "ALTER TYPE mood ADD VALUE 'angry'; COMMITTED; INSERT INTO things (id, c, m) VALUES (320, 'c', 'angry');",
    "ALTER TYPE mood ADD VALUE 'so so' BEFORE 'glad'; COMMITTED; UPDATE things SET m = 'so so' WHERE id < 20;",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; UPDATE things SET m = 'blue' WHERE id = 12;",
    // The key: renamed, then another one.
    "ALTER TABLE things RENAME id TO number; UPDATE things SET number = -number WHERE number = 13; DELETE FROM things WHERE number = 14;",
    "ALTER TABLE things DROP CONSTRAINT things_pkey, ADD PRIMARY KEY (number, c); UPDATE things SET c = 'key' WHERE number = 15;
     INSERT INTO things (number, c) VALUES (15, 'twin'); DELETE FROM things WHERE number = 16;",
];

#[tokio::test(flavor = "multi_thread")]
async fn all_follows_every_change_under_load() -> Result<()> {
    let scene = Scene::new("schema_all").await?;
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        .await?;
    load::create_tables(&scene.source, 1000).await?;
    scene.source.run(THINGS).await?;
    let mut tables = load::TABLES.to_vec();
    tables.push("public.things");
    let mirror = scene
        .running_mirror(
            &tables,
            json!({"schema_changes": "all", "max_batch_size": 100}),
        )
        .await?;
    let load = Load::start(&scene.stage.source, 2, 40);
    let things = [TablePair::same("public.things")];
    for change in ALL {
        // A new label may be used only after it is committed.
        for sql in change.split("COMMITTED;") {
            scene.source.run(sql).await?;
        }
        scene
            .stage
            .assert_converges(&mirror, &things)
            .await
            .with_context(|| change.to_owned())?;
        let (here, there) = (
            columns(&scene.source, "things").await?,
            columns(&destination, "things").await?,
        );
        assert_eq!(there, here, "{change}");
    }
    // The tables that the load writes to, in the midst of it.
    load::run_beside(
        &scene.source,
        "ALTER TABLE accounts ADD grade int DEFAULT 3; ALTER TABLE journal ADD mark text; ALTER TABLE measurements ADD unit text DEFAULT 'mm';
         ALTER TABLE documents DROP COLUMN title, ADD words int;",
    )
    .await?;
    load.advance(60).await;
    // What older rows hold in "unit" is not to be read any more once the table is rewritten.
    published(&mirror, &scene.source).await?;
    load::run_beside(
        &scene.source,
        "ALTER TABLE accounts RENAME owner TO holder; ALTER TABLE measurements ALTER value TYPE numeric;",
    )
    .await?;
    load.advance(60).await;
    load.stop().await;
    scene
        .stage
        .assert_converges(&mirror, &load::pairs())
        .await?;
    // Over all versions: events decode under theirs, and what they and the copies add up to is the source.
    let mut all = load::pairs();
    all.extend(things);
    let told = scene.stage.assert_topics_hold(&mirror, &all).await?;
    let versions = |table: &str| told.versions.get(&("public".to_owned(), table.to_owned()));
    assert!(
        versions("things") >= Some(&ALL.len()),
        "{:?}",
        told.versions
    );
    assert!(versions("measurements") >= Some(&3), "{:?}", told.versions);
    for table in ["accounts", "documents", "measurements", "journal"] {
        scene
            .source
            .run(&format!(
                "INSERT INTO {table} SELECT * FROM {table} WHERE false"
            ))
            .await?;
        let (here, there) = (
            columns(&scene.source, table).await?,
            columns(&destination, table).await?,
        );
        let names = |columns: &[String]| -> Vec<String> {
            let first = |column: &String| column.split(' ').next().unwrap_or_default().to_owned();
            columns.iter().map(first).collect()
        };
        assert_eq!(names(&there), names(&here), "{table}");
    }
    Ok(())
}

/// What the catalog tells afterwards is not what the rows in the log were written with: each
/// table follows, or stops and says so.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_altered_while_capture_is_away() -> Result<()> {
    let mut scene = Scene::new("schema_away").await?;
    for table in ["told", "untold"] {
        scene
            .source
            .run(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, gone int, a int, b text);
                 INSERT INTO {table} SELECT g, g, g, 'b' || g FROM generate_series(1, 50) g; ALTER TABLE {table} DROP gone;"
            ))
            .await?;
    }
    let tables = ["public.told", "public.untold"];
    let options = json!({"schema_changes": "all"});
    let mirror = scene.running_mirror(&tables, options).await?;
    scene.bunny.kill9();
    // What became of each column has one explanation.
    scene
        .source
        .run(
            "ALTER TABLE told ADD c int DEFAULT 3, DROP a; UPDATE told SET c = 4 WHERE id < 20;
             ALTER TABLE told RENAME b TO z; INSERT INTO told VALUES (60, 'z', 5);",
        )
        .await?;
    // c has three.
    for sql in [
        "ALTER TABLE untold ADD c int DEFAULT 1; UPDATE untold SET c = 5 WHERE id < 20;",
        "ALTER TABLE untold DROP c; ALTER TABLE untold ADD c text DEFAULT 'two'; UPDATE untold SET b = 'x' WHERE id < 10;",
        "ALTER TABLE untold DROP c; ALTER TABLE untold ADD c int DEFAULT 3; UPDATE untold SET b = 'y' WHERE id < 5;",
    ] {
        scene.source.run(sql).await?;
    }
    scene.source.run("SELECT pg_sleep(4)").await?;
    scene.bunny.restart()?;
    scene.api.wait_ready(CRASH_LIMIT).await?;
    mirror
        .wait_until("untold stopped", CRASH_LIMIT, |mirror, _| {
            let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
            tables.iter().any(|table| {
                let error = table["error_message"].as_str().unwrap_or_default();
                table["source_table"] == "public.untold" && error.contains("sync the table again")
            })
        })
        .await?;
    let told = [TablePair::same("public.told")];
    scene.stage.assert_converges(&mirror, &told).await?;
    let pairs = TablePair::all(&tables);
    let told = scene
        .stage
        .assert_topics_hold_known(&mirror, &pairs)
        .await?;
    assert_eq!(told.unknown.keys().collect::<Vec<_>>(), [&pairs[1].source]);
    Ok(())
}

/// Waits until capture has published what the source has committed: it looks at the
/// source's catalog of that moment.
async fn published(mirror: &Mirror, source: &Session) -> Result<()> {
    let lsn = source.current_lsn().await?;
    mirror
        .wait_until("published", CRASH_LIMIT, |_, metrics| {
            metrics["source"]["confirmed_flush_lsn"]
                .as_str()
                .and_then(|text| text.parse().ok())
                .is_some_and(|published: bunny_tests::lsn::Lsn| published >= lsn)
        })
        .await
}

/// Dies around each schema change, while more of them and their rows follow.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn apply_dies_around_schema_changes() -> Result<()> {
    let stage = Stage::new("schema_kill").await?;
    stage.migrate()?;
    let _capture = stage.start(Role::Capture)?;
    let mut apply = stage.start(Role::Apply)?;
    let _api = stage.start(Role::Api)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    destination
        .run("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        .await?;
    load::create_tables(&source, 500).await?;
    source.run(THINGS).await?;
    let mut tables = load::TABLES.to_vec();
    tables.push("public.things");
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &tables,
            json!({"schema_changes": "all", "max_batch_size": 50}),
        )
        .await?;
    mirror.wait_running().await?;
    let load = Load::start(&stage.source, 2, 30);
    for (index, (point, pass)) in APPLY_SCHEMA_CHANGES.into_iter().enumerate() {
        apply.restart_to_crash(point, pass)?;
        for sql in [
            format!(
                "BEGIN; INSERT INTO things (id, d) SELECT g, 'before' FROM generate_series({index}000 + 10000, {index}000 + 10080) g;
                 ALTER TABLE things ADD n{index} int DEFAULT {index}; UPDATE things SET n{index} = id WHERE id % 2 = 0;
                 ALTER TABLE accounts ADD n{index} text DEFAULT 'x'; COMMIT;"
            ),
            format!("ALTER TYPE mood ADD VALUE 'm{index}' AFTER 'sad'"),
            format!("UPDATE things SET n{index} = 0, m = 'm{index}' WHERE id % 3 = 0"),
            format!("ALTER TABLE things RENAME n{index} TO r{index}; UPDATE things SET r{index} = 5 WHERE id % 5 = 0"),
            format!(
                "ALTER TABLE things DROP COLUMN r{index}; ALTER TABLE things ADD r{index} text DEFAULT 'again';
                 DELETE FROM things WHERE id % 7 = {index};"
            ),
        ] {
            source.run(&sql).await?;
            published(&mirror, &source).await?;
        }
        apply
            .wait_crash_point(point, CRASH_LIMIT)
            .await
            .with_context(|| format!("{point}, pass {pass}"))?;
    }
    apply.restart()?;
    load.advance(30).await;
    load.stop().await;
    let mut pairs = load::pairs();
    pairs.push(TablePair::same("public.things"));
    stage.assert_converges(&mirror, &pairs).await?;
    stage.assert_topics_hold(&mirror, &pairs).await?;
    assert_eq!(
        columns(&destination, "things").await?,
        columns(&source, "things").await?
    );
    Ok(())
}

/// What older rows of a partitioned table hold in a new column, only its leaves know.
#[tokio::test(flavor = "multi_thread")]
async fn the_leaves_tell_what_older_rows_hold() -> Result<()> {
    let scene = Scene::new("schema_leaves").await?;
    scene
        .source
        .run(
            "CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id);
              CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (0) TO (100);
              CREATE TABLE tree_2 (gone text, id int NOT NULL);
              ALTER TABLE tree_2 DROP gone;
              ALTER TABLE tree ATTACH PARTITION tree_2 FOR VALUES FROM (100) TO (200);
              CREATE TABLE torn (id int PRIMARY KEY) PARTITION BY RANGE (id);
              CREATE TABLE torn_1 PARTITION OF torn FOR VALUES FROM (0) TO (100);
              CREATE TABLE torn_2 PARTITION OF torn FOR VALUES FROM (100) TO (200);
              INSERT INTO tree SELECT generate_series(1, 150); INSERT INTO torn TABLE tree;
              CREATE TABLE stiff (id int PRIMARY KEY, v text); INSERT INTO stiff SELECT g, 'v' || g FROM generate_series(1, 20) g;",
        )
        .await?;
    let tables = ["public.tree", "public.torn", "public.stiff"];
    let options = json!({"schema_changes": "all", "untracked_changes": "warn"});
    let mirror = scene.running_mirror(&tables, options).await?;
    no_cast_is_guessed(&scene, &mirror).await?;
    let changes = [
        "ALTER TABLE tree ADD a int DEFAULT 5 NOT NULL; ALTER TABLE tree ALTER a DROP DEFAULT; INSERT INTO tree VALUES (160, 8);",
        "ALTER TABLE tree ADD b int DEFAULT 5 NOT NULL; ALTER TABLE tree ALTER b SET DEFAULT 6; UPDATE tree SET b = 7 WHERE id = 3;",
        "ALTER TABLE tree ADD c text DEFAULT 'it''s, \"so\"'; ALTER TABLE tree ALTER c DROP DEFAULT;
         CREATE TABLE tree_3 PARTITION OF tree FOR VALUES FROM (200) TO (300); INSERT INTO tree VALUES (250, 1, 2, 'new');",
        // The file of a leaf says nothing of a column that came later.
        "VACUUM FULL tree_1;COMMITTED;ALTER TABLE tree ADD d int; UPDATE tree SET d = 1 WHERE id = 4;",
        "ALTER TABLE tree ADD e int; ALTER TABLE tree ALTER e SET DEFAULT 6; INSERT INTO tree VALUES (251, 1, 2, 'new', 3);",
    ];
    for change in changes {
        for sql in change.split("COMMITTED;") {
            scene.source.run(sql).await?;
        }
        scene
            .stage
            .assert_converges(&mirror, &[TablePair::same("public.tree")])
            .await
            .with_context(|| change.to_owned())?;
    }
    // One leaf has lost the value by the time it is looked for.
    for sql in [
        "ALTER TABLE torn ADD a int DEFAULT 5 NOT NULL; ALTER TABLE torn ALTER a DROP DEFAULT",
        "VACUUM FULL torn_1",
        "INSERT INTO torn VALUES (160, 1)",
    ] {
        scene.source.run(sql).await?;
    }
    let torn = |mirror: &Value| {
        let tables = mirror["tables"].as_array();
        let mut tables = tables.into_iter().flatten();
        let found = tables.find(|found| found["source_table"] == "public.torn");
        found.map_or(Value::Null, |found| found["error_message"].clone())
    };
    mirror
        .wait_until("the torn table is set aside", CRASH_LIMIT, |mirror, _| {
            torn(mirror).as_str().is_some_and(|error| {
                error.contains("what its older rows hold is not in the stream")
            })
        })
        .await?;
    let pairs = TablePair::all(&tables);
    let told = scene
        .stage
        .assert_topics_hold_known(&mirror, &pairs)
        .await?;
    assert_eq!(told.unknown.keys().collect::<Vec<_>>(), [&pairs[1].source]);
    Ok(())
}

/// A type into which the destination casts no value of before: the table stops, with the cure, which helps.
async fn no_cast_is_guessed(scene: &Scene, mirror: &Mirror) -> Result<()> {
    scene
        .source
        .run(
            "ALTER TABLE stiff ALTER v TYPE int USING length(v); INSERT INTO stiff VALUES (30, 30)",
        )
        .await?;
    for words in [
        "the type of column \"v\" changed at the source from text to integer, which column \"v\" of public.stiff could not follow",
        "remove the cause (or change its type yourself), then sync the table again",
        "cannot be cast automatically to type integer",
    ] {
        stopped(mirror, "public.stiff", words).await?;
    }
    let destination = scene.stage.destination.connect().await?;
    destination
        .run("ALTER TABLE stiff ALTER v TYPE int USING 0")
        .await?;
    synced_again(scene, mirror, "public.stiff").await?;
    let stiff = [TablePair::same("public.stiff")];
    scene.stage.assert_converges(mirror, &stiff).await
}

/// A NOT NULL that is NOT VALID (18) is no proof that older rows have the column's default.
#[tokio::test(flavor = "multi_thread")]
async fn a_not_null_that_is_not_valid_says_nothing_of_older_rows() -> Result<()> {
    let scene = Scene::new("schema_not_valid").await?;
    if major(&scene.source).await? < 18 {
        return Ok(());
    }
    // Rewritten, so that nothing but the constraint is left to tell.
    scene
        .source
        .run("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1); ALTER TABLE late ALTER id TYPE bigint;")
        .await?;
    let options = json!({"schema_changes": "all", "untracked_changes": "warn"});
    let mirror = scene.running_mirror(&["public.late"], options).await?;
    scene
        .source
        .run(
            "ALTER TABLE late ADD w int; ALTER TABLE late ALTER w SET DEFAULT 5;
             ALTER TABLE late ADD CONSTRAINT w_is_there NOT NULL w NOT VALID; INSERT INTO late VALUES (2);",
        )
        .await?;
    let why = "what its older rows hold is not in the stream";
    stopped(&mirror, "public.late", why).await?;
    synced_again(&scene, &mirror, "public.late").await?;
    let late = [TablePair::same("public.late")];
    scene.stage.assert_converges(&mirror, &late).await
}
