//! `sync-schema`: what the stream does not carry arrives on demand, at one position of the
//! stream, with a report of every statement and of everything that was not done.

use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{Mirror, Stage};
use serde_json::{Value, json};

use crate::scene::Scene;

const LIMIT: Duration = Duration::from_secs(120);
const CRASH_LIMIT: Duration = Duration::from_secs(60);

pub const CAPTURE_SCHEMA_SYNC: [(&str, u32); 2] = [
    ("capture::definitions_read", 1),
    ("capture::definitions_handed_over", 1),
];

pub const APPLY_SCHEMA_SYNC: [(&str, u32); 6] = [
    ("apply::schema_sync_held", 1),
    ("apply::schema_sync_altered", 1),
    ("apply::schema_sync_step", 1),
    ("apply::schema_sync_step", 2),
    ("apply::schema_sync_done", 1),
    ("apply::schema_sync_told", 1),
];

/// Everything that a table is made of, but for foreign keys, in one text.
async fn definition(session: &Session, table: &str) -> Result<Vec<String>> {
    let rows = session
        .query(
            "SELECT format('column %s %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                    CASE WHEN a.attnotnull THEN ' not null' END, ' default ' || pg_get_expr(d.adbin, d.adrelid), a.attgenerated)
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped
             UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
             WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u', 'c', 'x', 'f')
             UNION ALL SELECT 'index ' || pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::text::regclass
             UNION ALL SELECT format('enum %s', string_agg(enumlabel, ',' ORDER BY enumsortorder)) FROM pg_enum GROUP BY enumtypid
             ORDER BY 1",
            &[&table],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn ask(scene: &Scene, body: Value) -> Result<String> {
    let answer = scene
        .api
        .post("/v1/mirrors/mirror/sync-schema", body)
        .await?
        .expect(202)?;
    let id = answer["command_id"].as_str().context("no command_id")?;
    Ok(id.to_owned())
}

/// The command once it has ended.
async fn ended(stage: &Stage, id: &str) -> Result<Value> {
    let api = stage.api().await?;
    let path = format!("/v1/mirrors/mirror/commands/{id}");
    let until = tokio::time::Instant::now() + LIMIT;
    loop {
        let command = api.get(&path).await?.expect(200)?;
        if ["done", "failed"]
            .iter()
            .any(|end| command["state"] == *end)
        {
            return Ok(command);
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < until,
            "the command is still open: {command}\n{}",
            stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was run, and what was not done, of a command that ended well.
async fn sync(scene: &Scene, body: Value) -> Result<(Vec<String>, Vec<String>)> {
    let id = ask(scene, body).await?;
    report(&ended(&scene.stage, &id).await?)
}

fn report(command: &Value) -> Result<(Vec<String>, Vec<String>)> {
    anyhow::ensure!(command["state"] == "done", "{command}");
    let list = |kind: &str, what: &str| -> Vec<String> {
        let entries = command["args"]["report"][kind].as_array().cloned();
        let entries = entries.unwrap_or_default().into_iter();
        entries
            .map(|entry| {
                let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
                format!("{}: {}", text("table"), text(what))
            })
            .collect()
    };
    Ok((list("ran", "statement"), list("not_done", "reason")))
}

fn holds(sentences: &[String], words: &[&str]) -> bool {
    sentences
        .iter()
        .any(|sentence| words.iter().all(|word| sentence.contains(word)))
}

async fn resync(scene: &Scene, mirror: &Mirror, table: &str) -> Result<()> {
    let path = format!("/v1/mirrors/{}/resync/{table}", mirror.name);
    let answer = scene
        .api
        .post(&path, json!({"strategy": "truncate"}))
        .await?
        .expect(202)?;
    let id = answer["command_id"].as_str().context("no command_id")?;
    let command = ended(&scene.stage, id).await?;
    anyhow::ensure!(command["state"] == "done", "{command}");
    Ok(())
}

const QUIET: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE quiet (id int PRIMARY KEY, a text, b varchar(5), c int NOT NULL DEFAULT 1, d int DEFAULT 2, e text,
        gone int, m mood, CONSTRAINT positive CHECK (c > 0), CONSTRAINT only_one UNIQUE (d));
    CREATE INDEX quiet_a ON quiet (a);
    CREATE UNIQUE INDEX quiet_e ON quiet (e);
    CREATE TABLE target (id int PRIMARY KEY, v text);
    CREATE TABLE spare (id int PRIMARY KEY, v text);
    INSERT INTO quiet SELECT g, 'a' || g, 'b', g, g, 'e' || g, g, 'sad' FROM generate_series(1, 100) g;
    INSERT INTO target SELECT g, 'v' FROM generate_series(1, 100) g;
    INSERT INTO spare SELECT * FROM target;";

/// Nobody writes to the table, so the stream tells nothing of it.
const QUIET_CHANGES: &str = "
    ALTER TABLE quiet ADD n int NOT NULL DEFAULT 7, ADD twice int GENERATED ALWAYS AS (c * 2) STORED;
    ALTER TABLE quiet ALTER b TYPE varchar(50), ALTER c DROP NOT NULL, ALTER c DROP DEFAULT, ALTER d SET DEFAULT 5,
        ALTER a SET NOT NULL, ALTER e SET DEFAULT 'e';
    ALTER TABLE quiet DROP CONSTRAINT positive, DROP CONSTRAINT only_one, ADD CONSTRAINT short CHECK (length(b) < 60);
    ALTER TABLE quiet ADD CONSTRAINT to_target FOREIGN KEY (id) REFERENCES target;
    DROP INDEX quiet_a; DROP INDEX quiet_e; CREATE INDEX quiet_m ON quiet (m) WHERE c > 3; CREATE UNIQUE INDEX quiet_u ON quiet (id, a);
    ALTER TABLE quiet DROP COLUMN gone; ALTER TABLE quiet RENAME e TO renamed;";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_sync_brings_what_the_stream_does_not_carry() -> Result<()> {
    let scene = Scene::new("schema_sync").await?;
    load::create_tables(&scene.source, 1000).await?;
    scene.source.run(QUIET).await?;
    let mut tables = load::TABLES.to_vec();
    tables.extend(["public.quiet", "public.target", "public.spare"]);
    let options = json!({"schema_changes": "manual", "max_batch_size": 100});
    let mirror = scene.running_mirror(&tables, options).await?;
    let destination = scene.stage.destination.connect().await?;
    // Someone's own, which no schema sync may touch.
    destination
        .run("CREATE INDEX own ON quiet (b); ALTER TABLE quiet ADD CONSTRAINT own_check CHECK (id > -9), ALTER m SET DEFAULT 'sad'")
        .await?;
    let slots = "SELECT string_agg(slot_name, ',') || min(age(catalog_xmin)) * 0 FROM pg_replication_slots WHERE slot_name LIKE 'bunny%'";
    let slot_before = scene.source.text(slots).await?;
    let load = Load::start(&scene.stage.source, 2, 40);

    scene.source.run(QUIET_CHANGES).await?;
    scene
        .source
        .run("ALTER TYPE mood ADD VALUE 'so so' BEFORE 'glad'")
        .await?;
    // Written to all the while: rows with the new columns are applied without them.
    load::run_beside(
        &scene.source,
        "ALTER TABLE accounts ADD grade int DEFAULT 3; ALTER TABLE documents ALTER title TYPE varchar(400);
         ALTER TABLE measurements ADD CONSTRAINT sane CHECK (value > -1000000)",
    )
    .await?;
    load.advance(40).await;
    let lsn = scene.source.current_lsn().await?;
    mirror.wait_for_lsn(lsn).await?;

    let first = ask(&scene, json!({})).await?;
    // Asked again, the same; asked otherwise meanwhile, a conflict (or it has ended by now).
    let again = scene
        .api
        .post("/v1/mirrors/mirror/sync-schema", json!({}))
        .await?
        .expect(202)?;
    let command = ended(&scene.stage, &first).await?;
    let (ran, left) = report(&command)?;
    assert!(
        command["outcome"]
            .as_str()
            .is_some_and(|text| text.contains("ADD COLUMN")),
        "{command}"
    );
    for words in [
        &["public.quiet: ALTER", "ADD COLUMN \"n\" integer DEFAULT"][..],
        &["ADD COLUMN \"twice\" integer GENERATED"],
        &["\"b\" TYPE character varying(50)"],
        &["\"c\" DROP NOT NULL"],
        &["\"c\" DROP DEFAULT"],
        &["\"d\" SET DEFAULT 5"],
        &["\"a\" SET NOT NULL"],
        &["DROP CONSTRAINT \"positive\""],
        &["DROP CONSTRAINT \"only_one\""],
        &["DROP INDEX \"public\".\"quiet_e\""],
        &["CREATE INDEX \"quiet_m\""],
        &["CREATE UNIQUE INDEX \"quiet_u\""],
        &["ADD CONSTRAINT \"short\""],
        &["ADD VALUE IF NOT EXISTS 'so so'"],
        &["public.accounts: ALTER", "ADD COLUMN \"grade\""],
        &["public.measurements: ALTER", "\"sane\""],
    ] {
        assert!(
            holds(&ran, words),
            "{words:?} was not run: {ran:#?} {left:#?}"
        );
    }
    for words in [
        &["public.quiet", "\"gone\"", "dropped"][..],
        &["public.quiet", "renamed to \"renamed\""],
        &["public.quiet", "quiet_a", "\"all\""],
        &["public.quiet", "own_check"],
        &["public.accounts", "\"grade\"", "synced again"],
    ] {
        assert!(holds(&left, words), "{words:?} is not said: {left:#?}");
    }
    assert!(!holds(&ran, &["own"]), "{ran:#?}");
    // Under the source's present constraints the rows flow.
    scene
        .source
        .run("INSERT INTO target SELECT g, 'v' FROM generate_series(200, 210) g;
              INSERT INTO quiet (id, a, b, c, d, m) VALUES (200, 'x', repeat('b', 40), NULL, 1, 'so so'), (201, 'x', 'b', -5, 1, 'glad');
              UPDATE quiet SET renamed = 'e1' WHERE id < 4;")
        .await?;
    destination
        .run(
            "CREATE VIEW quiet_seen AS SELECT id, a, b, c, d, e AS renamed, m, n, twice FROM quiet",
        )
        .await?;
    let seen = [
        TablePair::renamed("public.quiet", "public.quiet_seen"),
        TablePair::same("public.target"),
    ];
    scene.stage.assert_converges(&mirror, &seen).await?;
    destination.run("DROP VIEW quiet_seen").await?;

    // Asked again: nothing is left but what is not to be done.
    let (ran, left) = sync(&scene, json!({})).await?;
    assert!(ran.is_empty(), "{ran:#?}");
    assert!(holds(&left, &["public.quiet", "\"gone\""]), "{left:#?}");
    let _ = again;

    // All of it: the definitions are the same, but for what is someone's own.
    let (ran, left) = sync(&scene, json!({"schema_changes": "all"})).await?;
    assert!(holds(&ran, &["DROP COLUMN \"gone\""]), "{ran:#?} {left:#?}");
    assert!(
        holds(&ran, &["RENAME COLUMN \"e\" TO \"renamed\""]),
        "{ran:#?} {left:#?}"
    );
    let own = ["own", "own_check"];
    let until = tokio::time::Instant::now() + LIMIT;
    loop {
        // The foreign key comes beside the stream, when both tables are LIVE.
        let here = definition(&scene.source, "quiet").await?;
        let there: Vec<String> = definition(&destination, "quiet")
            .await?
            .into_iter()
            .filter(|line| !own.iter().any(|name| line.contains(&format!(" {name} "))))
            .map(|line| line.replace(" m mood default 'sad'::mood", " m mood"))
            .collect();
        if here == there {
            break;
        }
        anyhow::ensure!(
            tokio::time::Instant::now() < until,
            "{here:#?}\n{there:#?}\n{}",
            scene.stage.logs_tail()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    scene
        .source
        .run("UPDATE quiet SET renamed = 'once more', n = 9 WHERE id > 50")
        .await?;
    // What was missed comes with the table's next sync. (The oracle of topics follows no
    // changed columns; a schema sync writes nothing to them.)
    resync(&scene, &mirror, "public.accounts").await?;

    // Tables that cannot be brought in line are named, the others are not concerned.
    destination.run("DROP TABLE spare").await?;
    scene
        .source
        .run("ALTER TABLE spare ADD w int; ALTER TABLE target ADD w int DEFAULT 4")
        .await?;
    let (ran, left) = sync(&scene, json!({})).await?;
    assert!(
        holds(&left, &["public.spare", "does not exist"]),
        "{left:#?}"
    );
    assert!(holds(&ran, &["public.target", "\"w\""]), "{ran:#?}");
    load.stop().await;
    let mut pairs = load::pairs();
    pairs.extend(TablePair::all(&["public.quiet", "public.target"]));
    scene.stage.assert_converges(&mirror, &pairs).await?;
    assert_eq!(scene.source.text(slots).await?, slot_before);

    // Nothing to bring while it is paused; a mirror that is gone has no schema.
    scene
        .api
        .post("/v1/mirrors/mirror/pause", json!({}))
        .await?
        .expect(202)?;
    let refused = scene
        .api
        .post("/v1/mirrors/mirror/sync-schema", json!({}))
        .await?
        .expect(409)?;
    assert!(
        refused["error"]
            .as_str()
            .is_some_and(|why| why.contains("PAUSED")),
        "{refused}"
    );
    Ok(())
}

/// Both roles die at each step; the report misses nothing of what was run before.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn both_roles_die_at_every_point_of_a_schema_sync() -> Result<()> {
    let stage = Stage::new("schema_sync_crash").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    load::create_tables(&source, 500).await?;
    source
        .run("CREATE TABLE quiet (id int PRIMARY KEY, a text); INSERT INTO quiet SELECT g, 'a' FROM generate_series(1, 50) g;")
        .await?;
    let mut tables = load::TABLES.to_vec();
    tables.push("public.quiet");
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &tables,
            json!({"schema_changes": "additive"}),
        )
        .await?;
    mirror.wait_running().await?;
    let load = Load::start(&stage.source, 2, 40);
    let points = CAPTURE_SCHEMA_SYNC.iter().map(|point| (true, point));
    let points = points.chain(APPLY_SCHEMA_SYNC.iter().map(|point| (false, point)));
    for (round, (of_capture, &(point, pass))) in points.enumerate() {
        let columns = format!("n{round}");
        source
            .run(&format!(
                "ALTER TABLE quiet ADD {columns} int DEFAULT {round}; CREATE INDEX quiet_{columns} ON quiet ({columns});"
            ))
            .await?;
        let process = if of_capture { &mut capture } else { &mut apply };
        process.restart_to_crash(point, pass)?;
        mirror.wait_running().await?;
        let answer = api
            .post("/v1/mirrors/mirror/sync-schema", json!({}))
            .await?
            .expect(202)?;
        let id = answer["command_id"].as_str().context("no id")?.to_owned();
        process
            .wait_crash_point(point, CRASH_LIMIT)
            .await
            .with_context(|| format!("{point}, pass {pass}"))?;
        let seen = mirror.get().await?;
        let is_told = point == "apply::schema_sync_told";
        let wanted = if is_told { "RUNNING" } else { "SYNCING_SCHEMA" };
        assert_eq!(seen["status"], wanted, "{point}");
        process.restart()?;
        let command = ended(&stage, &id).await?;
        let (ran, left) = report(&command)?;
        assert!(
            holds(&ran, &["ADD COLUMN", &columns]),
            "{point}: {ran:#?} {left:#?}"
        );
        assert!(
            holds(&ran, &["CREATE INDEX", &columns]),
            "{point}: {ran:#?} {left:#?}"
        );
        assert_eq!(ran.len(), 3, "{point}: {ran:#?}");
        assert!(left.is_empty(), "{point}: {left:#?}");
        assert_eq!(
            definition(&destination, "quiet").await?,
            definition(&source, "quiet").await?,
            "{point}"
        );
    }
    source.run("UPDATE quiet SET n0 = 7 WHERE id < 9").await?;
    load.stop().await;
    mirror.wait_running().await?;
    let mut pairs = load::pairs();
    pairs.push(TablePair::same("public.quiet"));
    stage.assert_converges(&mirror, &pairs).await?;
    let left = destination
        .number("SELECT count(*) FROM _bunny.schema_syncs")
        .await?;
    assert_eq!(left, 0);
    Ok(())
}
