//! Rows that change at the source without a word in the stream: noticed, said, and brought
//! over by a sync of their table; and what only looks like it, which is left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, Url};
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::fidelity::major;
use crate::scene::Scene;

/// From noticing to asking for the sync.
pub const CAPTURE_UNTRACKED: [(&str, u32); 2] = [
    ("capture::untracked_found", 1),
    ("capture::untracked_requested", 1),
];
/// Of apply while the sync is loaded.
const APPLY_CURE: [(&str, u32); 4] = [
    ("apply::after_take_over", 1),
    ("apply::sync_started", 1),
    ("apply::chunk_before_commit", 1),
    ("apply::catch_up_before_join", 1),
];

const CREATE: &str = "
    CREATE TABLE tokens (id int PRIMARY KEY, v text);
    CREATE TABLE doubled (id int PRIMARY KEY, n int, v text DEFAULT 'v');
    CREATE TABLE quiet (id int PRIMARY KEY, v text, gone text);
    CREATE TABLE parts (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (200) TO (300);
    CREATE TABLE parts_4 PARTITION OF parts FOR VALUES FROM (300) TO (400) PARTITION BY HASH (id);
    CREATE TABLE parts_4a PARTITION OF parts_4 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parts_4b PARTITION OF parts_4 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE parts_5 PARTITION OF parts FOR VALUES FROM (400) TO (500);
    CREATE TABLE parts_9 PARTITION OF parts FOR VALUES FROM (900) TO (1000);
    INSERT INTO tokens SELECT g, 'v' FROM generate_series(1, 100) g;
    INSERT INTO doubled SELECT g, g FROM generate_series(1, 100) g;
    INSERT INTO quiet SELECT g, 'v', 'g' FROM generate_series(1, 100) g;
    ALTER TABLE quiet ADD filled int DEFAULT 7;
    INSERT INTO parts SELECT g, g, 'v' FROM generate_series(1, 399) g;
    INSERT INTO parts SELECT g, g, 'v' FROM generate_series(900, 950) g;";
const TABLES: [&str; 4] = [
    "public.tokens",
    "public.doubled",
    "public.quiet",
    "public.parts",
];

/// A change of rows that no event carries.
pub struct Unseen {
    pub name: &'static str,
    table: &'static str,
    sql: &'static str,
    /// The first major version of the source that knows it.
    pub since: u32,
}

const fn unseen(name: &'static str, table: &'static str, sql: &'static str) -> Unseen {
    Unseen {
        name,
        table,
        sql,
        since: 14,
    }
}

pub const UNSEEN: [Unseen; 12] = [
    unseen(
        "a column added with a volatile default",
        "tokens",
        "ALTER TABLE tokens ADD token uuid DEFAULT gen_random_uuid()",
    ),
    unseen(
        "values changed by ALTER TYPE … USING, the type as it was",
        "doubled",
        "ALTER TABLE doubled ALTER n TYPE int USING n * 2",
    ),
    unseen(
        "a generated column added",
        "doubled",
        "ALTER TABLE doubled ADD length int GENERATED ALWAYS AS (length(v)) STORED",
    ),
    unseen(
        "another type, with USING",
        "doubled",
        "ALTER TABLE doubled ALTER n TYPE text USING 'n' || n",
    ),
    Unseen {
        since: 17,
        ..unseen(
            "a generated column SET EXPRESSION",
            "doubled",
            "ALTER TABLE doubled ALTER length SET EXPRESSION AS (length(v) * 2)",
        )
    },
    unseen("TRUNCATE of one partition", "parts", "TRUNCATE parts_1"),
    unseen(
        "ATTACH of a partition with rows",
        "parts",
        "BEGIN; CREATE TABLE loose (LIKE parts); INSERT INTO loose SELECT g, g, 'loose' FROM generate_series(500, 550) g;
         ALTER TABLE parts ATTACH PARTITION loose FOR VALUES FROM (500) TO (600); INSERT INTO parts VALUES (599, 599, 'streamed'); COMMIT;",
    ),
    unseen(
        "DETACH of a partition with rows",
        "parts",
        "ALTER TABLE parts DETACH PARTITION parts_2",
    ),
    unseen(
        "DETACH of a partition with rows, CONCURRENTLY",
        "parts",
        "ALTER TABLE parts DETACH PARTITION parts_9 CONCURRENTLY",
    ),
    unseen(
        "DROP of a partition with rows",
        "parts",
        "DROP TABLE parts_3",
    ),
    unseen(
        "a sub-tree taken out, changed and put back",
        "parts",
        "ALTER TABLE parts DETACH PARTITION parts_4; DELETE FROM parts_4 WHERE id % 3 = 0; ALTER TABLE parts ATTACH PARTITION parts_4 FOR VALUES FROM (300) TO (400);",
    ),
    unseen(
        "a partitioned table rewritten",
        "parts",
        "ALTER TABLE parts ADD stamp float DEFAULT random()",
    ),
];

/// What leaves similar marks and changes nothing that the stream does not carry; a look at
/// the tables comes after each group.
const HARMLESS: [&[&str]; 6] = [
    &[
        "VACUUM FULL quiet",
        "VACUUM FULL parts",
        "REINDEX TABLE quiet",
        "CREATE TABLE parts_6 PARTITION OF parts FOR VALUES FROM (600) TO (700)",
    ],
    &[
        "ALTER TABLE quiet DROP COLUMN gone",
        "CLUSTER quiet USING quiet_pkey",
        "BEGIN; CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM (700) TO (800); INSERT INTO parts SELECT g, g, 's' FROM generate_series(700, 720) g; COMMIT;",
        "BEGIN; CREATE TABLE parts_8 (LIKE parts); ALTER TABLE parts ATTACH PARTITION parts_8 FOR VALUES FROM (800) TO (900); INSERT INTO parts VALUES (800, 800, 's'); COMMIT;",
    ],
    &["ALTER TABLE quiet ADD plain text DEFAULT 'p'"],
    &[
        "TRUNCATE quiet",
        "INSERT INTO quiet SELECT g, 'new' FROM generate_series(1, 20) g",
        "TRUNCATE parts",
        "INSERT INTO parts SELECT g, g, 'again' FROM generate_series(1, 420) g; ANALYZE parts;",
    ],
    &[
        "VACUUM FULL quiet",
        "BEGIN; TRUNCATE parts; INSERT INTO parts SELECT g, g, 'once more' FROM generate_series(1, 390) g; COMMIT;",
    ],
    // Neither has rows by now.
    &[
        "ALTER TABLE parts DETACH PARTITION parts_6",
        "DROP TABLE parts_7",
    ],
];

/// Keeps writing to some tables until stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    fn start(source: &Url, sql: &'static str) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopping) = (source.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let session = source.connect().await?;
            let mut n = 0;
            while !stopping.load(Ordering::Relaxed) {
                n += 1;
                session.run(&sql.replace("$n", &n.to_string())).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        });
        Writer { stop, task }
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

const WRITES: &str = "
    INSERT INTO parts (id, at, v) SELECT 100000 + $n, at, 'written' FROM (VALUES (50), (350)) a (at) ON CONFLICT DO NOTHING;
    UPDATE parts SET v = 'u' || $n WHERE id BETWEEN 300 AND 310; DELETE FROM parts WHERE id = 99990 + $n;
    UPDATE tokens SET v = 'u' || $n WHERE id = 1 + $n % 100; INSERT INTO doubled (id) VALUES (1000 + $n) ON CONFLICT DO NOTHING;";

/// Syncs asked for of a table because of changes outside the stream.
pub async fn asked(stage: &Stage, table: &str, only: &str) -> Result<i64> {
    let count = stage
        .catalog_text(&format!(
            "SELECT count(*)::text FROM bunny.commands WHERE kind = 'resync' AND requested_by = 'untracked_changes'
                 AND args->>'table_name' = 'public.{table}' AND {only}"
        ))
        .await?;
    Ok(count.parse()?)
}

/// Waits until that many were asked for and have brought the table.
pub async fn wait_synced(stage: &Stage, mirror: &Mirror, table: &str, times: i64) -> Result<()> {
    let started = std::time::Instant::now();
    while asked(stage, table, "state = 'done'").await? < times {
        let failed = asked(stage, table, "state = 'failed'").await?;
        anyhow::ensure!(
            failed == 0 && started.elapsed() < CONVERGE,
            "{table} is not synced {times} times: {}\n{}",
            mirror.get().await?,
            stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn log_lines(stage: &Stage, part: &str) -> Result<i64> {
    let count = stage
        .catalog_text(&format!(
            "SELECT count(*)::text FROM bunny.logs WHERE strpos(message, '{part}') > 0"
        ))
        .await?;
    Ok(count.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn unseen_changes_are_noticed_and_come_by_a_sync() -> Result<()> {
    let scene = Scene::new("untracked").await?;
    load::create_tables(&scene.source, 500).await?;
    scene.source.run(CREATE).await?;
    let tables = [&load::TABLES[..], &TABLES].concat();
    let options = json!({"schema_changes": "all"});
    let mirror = scene.running_mirror(&tables, options).await?;
    let load = Load::start(&scene.stage.source, 1, 20);
    let major = major(&scene.source).await?;
    let changes: Vec<&Unseen> = UNSEEN.iter().filter(|one| one.since <= major).collect();
    let of = |table: &str| changes.iter().filter(|one| one.table == table).count();
    let rounds = TABLES
        .iter()
        .map(|table| of(&table["public.".len()..]))
        .max();
    for round in 0..rounds.unwrap_or_default() {
        let writer = Writer::start(&scene.stage.source, WRITES);
        let mut changed = Vec::new();
        for table in ["tokens", "doubled", "parts"] {
            let mut changes = changes.iter().filter(|one| one.table == table);
            if let Some(change) = changes.nth(round) {
                scene.source.run(change.sql).await?;
                changed.push(change);
            }
        }
        let names: Vec<&str> = changed.iter().map(|one| one.name).collect();
        for change in &changed {
            wait_synced(&scene.stage, &mirror, change.table, round as i64 + 1)
                .await
                .with_context(|| change.name)?;
        }
        writer.stop().await?;
        scene
            .stage
            .assert_converges(&mirror, &TablePair::all(&TABLES))
            .await
            .with_context(|| names.join(", "))?;
    }
    load.stop().await;
    scene
        .stage
        .assert_converges(&mirror, &load::pairs())
        .await?;
    for table in ["tokens", "doubled", "parts", "quiet"] {
        let times = asked(&scene.stage, table, "true").await?;
        assert_eq!(times, of(table) as i64, "{table}");
    }
    for said in [
        "public.tokens was rewritten by ALTER TABLE",
        "got with its rows the partition public.loose",
        "lost by DETACH or DROP the partition public.parts_2",
        "lost by TRUNCATE the rows of only the partition public.parts_1",
    ] {
        assert_eq!(log_lines(&scene.stage, said).await?, 1, "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_it_is_not_copied() -> Result<()> {
    let scene = Scene::new("harmless").await?;
    scene.source.run(CREATE).await?;
    let mirror = scene.running_mirror(&TABLES, json!({})).await?;
    // A sync of this one shows that the others have been looked at.
    let looked = |n: i64| format!("ALTER TABLE tokens ADD c{n} float DEFAULT random()");
    for (n, group) in (1..).zip(HARMLESS) {
        run_all(&scene.source, group).await?;
        scene.source.run(&looked(n)).await?;
        wait_synced(&scene.stage, &mirror, "tokens", n).await?;
        for table in ["quiet", "parts"] {
            let count = asked(&scene.stage, table, "true").await?;
            assert_eq!(count, 0, "{table}: {group:?}");
        }
    }
    scene
        .stage
        .assert_converges(&mirror, &TablePair::all(&TABLES))
        .await
}

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn where_no_sync_is_allowed_it_is_said() -> Result<()> {
    let scene = Scene::new("warned").await?;
    scene
        .source
        .run("CREATE TABLE warned (id int PRIMARY KEY, n int); INSERT INTO warned SELECT g, g FROM generate_series(1, 50) g;
              CREATE TABLE by_hand (id int PRIMARY KEY, n int); INSERT INTO by_hand SELECT g, g FROM generate_series(1, 50) g;
              CREATE TABLE retyped (id int PRIMARY KEY, n int); INSERT INTO retyped SELECT g, g FROM generate_series(1, 50) g;
              CREATE TABLE followed (id int PRIMARY KEY, n int);")
        .await?;
    let options = [
        ("warned", json!({"untracked_changes": "warn"})),
        ("by_hand", json!({"schema_changes": "manual"})),
        ("retyped", json!({"schema_changes": "additive"})),
        ("followed", json!({"do_initial_snapshot": false})),
    ];
    let mut mirrors = Vec::new();
    for (name, options) in options {
        let table = format!("public.{name}");
        let mirror = scene
            .stage
            .create_mirror(&scene.api, name, &[&table], options)
            .await?;
        mirror.wait_running().await?;
        mirrors.push((name, mirror));
    }
    scene
        .source
        .run("INSERT INTO followed SELECT g, g FROM generate_series(1, 50) g")
        .await?;
    for (name, mirror) in &mirrors {
        scene
            .source
            .run(&match *name {
                "retyped" => "ALTER TABLE retyped ALTER n TYPE bigint".to_owned(),
                name => format!("ALTER TABLE {name} ALTER n TYPE int USING n + 1"),
            })
            .await?;
        mirror
            .wait_until("said", CONVERGE, |mirror, _| {
                let messages = mirror["messages"].to_string();
                messages.contains("was rewritten by ALTER TABLE") && messages.contains("resync")
            })
            .await?;
        assert_eq!(
            log_lines(&scene.stage, &format!("public.{name} was rewritten")).await?,
            1
        );
        assert_eq!(asked(&scene.stage, name, "true").await?, 0);
        // The stream goes on.
        scene
            .source
            .run(&format!("UPDATE {name} SET n = 0 WHERE id = 1"))
            .await?;
        let resync = format!("/v1/mirrors/{name}/resync/public.{name}");
        if *name != "followed" {
            scene.api.post(&resync, json!({})).await?.expect(202)?;
            mirror
                .wait_until("said no more", CONVERGE, |mirror, _| {
                    mirror["status"] == "RUNNING"
                        && !mirror["messages"].to_string().contains("rewritten")
                })
                .await?;
            let pair = TablePair::all(&[&format!("public.{name}")]);
            scene.stage.assert_converges(mirror, &pair).await?;
        }
    }
    Ok(())
}

async fn run_all(source: &Session, statements: &[&str]) -> Result<()> {
    for statement in statements {
        source.run(statement).await?;
    }
    Ok(())
}

/// Noticed while nobody watched; then each role dies on the way to the cure.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn deaths_between_noticing_and_cure_lose_nothing() -> Result<()> {
    let stage = Stage::new("untracked_kills").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source.run(CREATE).await?;
    load::create_tables(&source, 500).await?;
    let load = Load::start(&stage.source, 1, 20);
    let tables = [&load::TABLES[..], &TABLES].concat();
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    let changes = [
        "ALTER TABLE parts DETACH PARTITION parts_2",
        "TRUNCATE parts_1",
    ];
    for (times, ((point, pass), change)) in (1..).zip(CAPTURE_UNTRACKED.iter().zip(changes)) {
        capture.kill9();
        source.run(change).await?;
        capture.restart_to_crash(point, *pass)?;
        capture.wait_crash_point(point, CONVERGE).await?;
        capture.restart()?;
        wait_synced(&stage, &mirror, "parts", times).await?;
    }
    for (index, (point, pass)) in APPLY_CURE.iter().enumerate() {
        apply.restart_to_crash(point, *pass)?;
        run_all(
            &source,
            &[&format!(
                "ALTER TABLE doubled ALTER n TYPE int USING n + {index}"
            )],
        )
        .await?;
        apply.wait_crash_point(point, CONVERGE).await?;
        apply.restart()?;
        wait_synced(&stage, &mirror, "doubled", index as i64 + 1).await?;
    }
    load.stop().await;
    let pairs = [load::pairs(), TablePair::all(&TABLES)].concat();
    stage.assert_converges(&mirror, &pairs).await?;
    assert_eq!(asked(&stage, "parts", "true").await?, 2);
    Ok(())
}
