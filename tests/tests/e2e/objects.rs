//! Everything that belongs to a table beside its rows: what the source's catalog says of
//! it, the destination's says too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, quote};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::json;

/// Objects of every kind.
const CREATE: &str = include_str!("objects.sql");

const TABLES: [&str; 5] = ["places", "goods", "ledger", "rest", "parts"];

/// What is said of objects that do not arrive, also when apply dies right after it: the
/// log is written a moment behind what it tells.
const SAID: [&str; 14] = [
    "goods_secret\\\" of",
    "goods_secret_where",
    "rest_outside",
    "shop.outside, is not mirrored",
    "trigger watcher",
    "policy visible",
    "grants to pg_monitor",
    "storage parameters of its TOAST table of",
    "options of column note",
    "statistics target of column note",
    "comment on constraint above_zero of domain shop.positive",
    "comment on attribute x of type shop.point3",
    "index that only a partition has (1 in all, such as parts_left_only)",
    "constraint that only a partition has (1 in all, such as left_only)",
];

/// What is asked of both catalogs about a table. `$S` and `$T` stand for schema and table
/// as literals, `$O` for its oid. The table's own name is taken out of the answers.
/// NOT NULL is asked for as a property: 17 and 18 list it among the constraints too, under a name that is not carried.
const QUESTIONS: [(&str, &str); 7] = [
    (
        "table",
        "SELECT relreplident, reloptions, obj_description(oid, 'pg_class') FROM pg_class WHERE oid = $O",
    ),
    (
        "columns",
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage,
                attcompression, attcollation::regcollation, col_description(attrelid, attnum),
                regexp_replace(pg_get_expr(adbin, adrelid), 'nextval\\(''[^.]+\\.', 'nextval(''…')
         FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         WHERE attrelid = $O AND attnum > 0 AND NOT attisdropped AND attname <> 'secret' ORDER BY attnum",
    ),
    (
        "constraints",
        "SELECT conname, contype, convalidated, condeferrable, condeferred,
                regexp_replace(pg_get_constraintdef(oid), 'REFERENCES [^(]+', 'REFERENCES …'),
                CASE WHEN confrelid <> 0 THEN (SELECT relname FROM pg_class WHERE oid = confrelid) END,
                obj_description(oid, 'pg_constraint')
         FROM pg_constraint WHERE conrelid = $O AND conname <> 'rest_outside' AND contype <> 'n' ORDER BY conname",
    ),
    (
        "indexes",
        "SELECT relname, indisunique, indisprimary, indisreplident, indisvalid, reloptions,
                regexp_replace(pg_get_indexdef(oid), ' ON .* USING ', ' USING '), obj_description(oid, 'pg_class')
         FROM pg_index JOIN pg_class ON oid = indexrelid
         WHERE indrelid = $O AND relname NOT IN ('goods_secret', 'goods_secret_where', 'rest_own') ORDER BY relname",
    ),
    (
        "sequences",
        "SELECT c.relname, a.attname, d.deptype, s.data_type, s.start_value, s.min_value, s.max_value,
                s.increment_by, s.cycle, s.cache_size, s.last_value
         FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
         JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_sequences s ON s.schemaname = n.nspname AND s.sequencename = c.relname
         WHERE d.refobjid = $O AND d.deptype IN ('a', 'i') ORDER BY 1",
    ),
    (
        "types",
        "SELECT t.oid::regtype::text, t.typtype, obj_description(t.oid, 'pg_type'), t.typnotnull, t.typdefault,
                CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, t.typcollation::regcollation,
                ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
                ARRAY(SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = t.oid AND contype <> 'n' ORDER BY conname),
                ARRAY(SELECT attname || format_type(atttypid, atttypmod) || attcollation::regcollation FROM pg_attribute
                      WHERE attrelid = t.typrelid AND attnum > 0 ORDER BY attnum),
                (SELECT row(rngsubtype::regtype, rngmultitypid::regtype, rngsubdiff::regproc, o.opcname) FROM pg_range
                 JOIN pg_opclass o ON o.oid = rngsubopc WHERE rngtypid = t.oid)
         FROM pg_type t WHERE t.typnamespace IN (to_regnamespace('shop'), to_regnamespace('\"Ty pes\"'))
           AND t.typtype IN ('e', 'd', 'r') OR t.oid IN (to_regtype('shop.path3'), to_regtype('shop.point3'))
         ORDER BY 1",
    ),
    (
        "shared sequence",
        "SELECT last_value, is_called, (SELECT row(s.*) FROM pg_sequences s WHERE sequencename = 'shared')
         FROM shop.shared",
    ),
];

struct Scene {
    apply: Bunny,
    _others: [Bunny; 2],
    source: Session,
    destination: Session,
    api: Api,
    stage: Stage,
}

impl Scene {
    async fn new(test: &str) -> Result<Scene> {
        let stage = Stage::new(test).await?;
        let [capture, apply, api_process] = stage.start_all()?;
        let api = stage.api().await?;
        stage.create_peers(&api).await?;
        let source = stage.source.connect().await?;
        source.run(CREATE).await?;
        Ok(Scene {
            apply,
            _others: [capture, api_process],
            source,
            destination: stage.destination.connect().await?,
            api,
            stage,
        })
    }

    /// All tables but for one column, into `schema` under the names `rename` gives, and
    /// others as they are mapped.
    async fn mirror(
        &self,
        name: &str,
        schema: &str,
        rename: impl Fn(&str) -> String,
        others: &[serde_json::Value],
    ) -> Result<Mirror> {
        let mut mappings = mappings(schema, rename);
        mappings.extend_from_slice(others);
        self.stage
            .create_mapped_mirror(&self.api, name, json!(mappings), json!({}))
            .await
    }

    /// Asks both catalogs everything until they agree: foreign keys come a moment after
    /// the tables are live.
    async fn assert_same_objects(
        &self,
        schema: &str,
        rename: impl Fn(&str) -> String,
    ) -> Result<()> {
        self.assert_same(&TABLES, &QUESTIONS, schema, rename).await
    }

    async fn assert_same(
        &self,
        tables: &[&str],
        questions: &[(&str, &str)],
        schema: &str,
        rename: impl Fn(&str) -> String,
    ) -> Result<()> {
        let began = Instant::now();
        for table in tables.iter().copied() {
            for (what, question) in questions.iter().copied() {
                loop {
                    let wanted = ask(&self.source, question, "shop", table).await?;
                    let found = ask(&self.destination, question, schema, &rename(table)).await?;
                    // Names of tables that a foreign key leads to.
                    let wanted: Vec<String> =
                        wanted.iter().map(|row| renamed(row, &rename)).collect();
                    if wanted == found {
                        ensure!(
                            what == "shared sequence"
                                || what == "types"
                                || !found.is_empty()
                                || table == "ledger"
                                || what == "sequences",
                            "nothing to compare of {what} of {table}"
                        );
                        break;
                    }
                    ensure!(
                        began.elapsed() < CONVERGE,
                        "{what} of {table} at the source:\n{}\nand at the destination:\n{}\n{}",
                        wanted.join("\n"),
                        found.join("\n"),
                        self.stage.logs_tail()
                    );
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        Ok(())
    }

    /// Waits until a command is done.
    async fn done(&self, accepted: &serde_json::Value) -> Result<()> {
        let id = accepted["command_id"].as_str().unwrap_or_default();
        let path = format!("/v1/mirrors/mirror/commands/{id}");
        let began = Instant::now();
        loop {
            let command = self.api.get(&path).await?.expect(200)?;
            if command["state"] == "done" {
                return Ok(());
            }
            ensure!(
                began.elapsed() < CONVERGE && command["state"] != "failed",
                "{command}{}",
                self.stage.logs_tail()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the mirror's log says all of it.
    async fn assert_said(&self, words: &[&str]) -> Result<()> {
        let began = Instant::now();
        for word in words {
            loop {
                let body = self
                    .api
                    .get("/v1/mirrors/mirror/logs?limit=200")
                    .await?
                    .expect(200)?;
                let log = body["logs"].to_string();
                if log.contains(word) {
                    break;
                }
                ensure!(began.elapsed() < CONVERGE, "{word} is not in {log}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

/// All tables but for one column.
fn mappings(schema: &str, rename: impl Fn(&str) -> String) -> Vec<serde_json::Value> {
    let mapping = |table: &&str| {
        let excluded: &[&str] = if *table == "goods" { &["secret"] } else { &[] };
        json!({
            "source_table": format!("shop.{table}"), "destination_schema": schema,
            "destination_table": rename(table), "exclude_columns": excluded,
        })
    };
    TABLES.iter().map(mapping).collect()
}

/// The referenced table is the seventh field of a constraint.
fn renamed(row: &str, rename: &impl Fn(&str) -> String) -> String {
    let mut fields: Vec<String> = row.split(" | ").map(str::to_owned).collect();
    if let Some(name) = fields
        .get_mut(6)
        .filter(|name| TABLES.contains(&name.as_str()))
    {
        *name = rename(name);
    }
    fields.join(" | ")
}

/// Each row as one line.
async fn ask(session: &Session, question: &str, schema: &str, table: &str) -> Result<Vec<String>> {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let oid = format!(
        "to_regclass({})",
        literal(&format!("{}.{}", quote(schema), quote(table)))
    );
    let sql = question
        .replace("$S", &literal(schema))
        .replace("$T", &literal(table))
        .replace("$O", &oid);
    let messages = session
        .simple_query(&sql)
        .await
        .with_context(|| format!("asking {sql}"))?;
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let fields: Vec<&str> = (0..row.len())
                .map(|at| row.get(at).unwrap_or("-"))
                .collect();
            Some(fields.join(" | "))
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn pair(table: &str, schema: &str, name: &str) -> TablePair {
    let mut pair = TablePair {
        source: ("shop".into(), table.into()),
        destination: (schema.into(), name.into()),
        excluded: Vec::new(),
    };
    if table == "goods" {
        pair = pair.without(&["secret"]);
    }
    pair
}

/// Killed while indexes are built, twice, and with a foreign key added that is not
/// checked; then everything is there once, under its name.
#[tokio::test(flavor = "multi_thread")]
async fn every_object_arrives_although_apply_dies() -> Result<()> {
    let mut scene = Scene::new("objects").await?;
    scene.apply.restart_to_crash("apply::object_built", 3)?;
    let mirror = scene.mirror("mirror", "shop", str::to_owned, &[]).await?;
    let limit = Duration::from_secs(60);
    scene
        .apply
        .wait_crash_point("apply::object_built", limit)
        .await?;
    let built = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'shop'";
    let before = scene.destination.number(built).await?;
    scene.apply.restart_to_crash("apply::object_built", 4)?;
    scene
        .apply
        .wait_crash_point("apply::object_built", limit)
        .await?;
    assert!(scene.destination.number(built).await? > before);
    let [(point, count)] = crate::crashes::APPLY_OBJECTS;
    scene.apply.restart_to_crash(point, count)?;
    scene.apply.wait_crash_point(point, limit).await?;
    let unchecked = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated";
    assert_eq!(scene.destination.number(unchecked).await?, 1);
    scene.apply.restart()?;
    mirror.wait_running().await?;
    let pairs: Vec<TablePair> = TABLES
        .iter()
        .map(|table| pair(table, "shop", table))
        .collect();
    scene.stage.assert_converges(&mirror, &pairs).await?;
    scene.assert_same_objects("shop", str::to_owned).await?;

    scene.assert_said(&SAID).await?;
    // What was refused stays in the status.
    let messages = mirror.get().await?["messages"].to_string();
    assert!(messages.contains("rest_own"), "{messages}");

    // Changes go through all of it, and sequences follow them.
    scene
        .source
        .run("
            INSERT INTO shop.places (name, parent) SELECT 'new ' || g, 1000 FROM generate_series(1, 30) g;
            INSERT INTO shop.goods (place, place_name, price) SELECT id, name, 1 FROM shop.places WHERE name LIKE 'new%';
            BEGIN; UPDATE shop.goods SET number = -number; UPDATE shop.goods SET number = -number + 1; COMMIT;
            UPDATE shop.places SET favourite = NULL; DELETE FROM shop.goods WHERE place = 1010;
            DELETE FROM shop.places WHERE id = 1010;
            UPDATE shop.ledger SET note = 'n', kept = 5 WHERE id < 10; DELETE FROM shop.ledger WHERE id = 50;
            INSERT INTO shop.rest VALUES (1, NULL, 'a'), (2, NULL, 'b');
            BEGIN; UPDATE shop.rest SET note = 'x' WHERE id = 1; UPDATE shop.rest SET note = 'a' WHERE id = 2;
            UPDATE shop.rest SET note = 'b' WHERE id = 1; COMMIT;")
        .await?;
    scene.stage.assert_converges(&mirror, &pairs).await?;
    let began = Instant::now();
    let behind = "SELECT (SELECT last_value FROM shop.goods_id_seq) < (SELECT max(id) FROM shop.goods)
                      OR (SELECT last_value FROM shop.places_id_seq) < (SELECT max(id) FROM shop.places)";
    while scene.destination.text(behind).await? == "t" {
        ensure!(began.elapsed() < CONVERGE, "sequences stay behind");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // After a cut-over the application goes on here.
    scene
        .destination
        .run("INSERT INTO shop.goods (place, code, price) SELECT id, 'new', 2 FROM shop.places LIMIT 1")
        .await
}

/// A table that comes later, and one that is synced anew, while rows come and go that
/// foreign keys tie together.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_tables_that_come_later() -> Result<()> {
    let mut scene = Scene::new("objects_later").await?;
    let mirror = scene.mirror("mirror", "shop", str::to_owned, &[]).await?;
    mirror.wait_running().await?;
    scene.assert_same_objects("shop", str::to_owned).await?;
    scene
        .source
        .run(
            "UPDATE shop.places SET favourite = NULL;
             CREATE DOMAIN shop.late_note AS text CHECK (VALUE <> '');
             CREATE TABLE shop.late (
                 id bigserial PRIMARY KEY, note shop.late_note UNIQUE,
                 place bigint NOT NULL CONSTRAINT late_place REFERENCES shop.places ON DELETE CASCADE,
                 before bigint CONSTRAINT late_before REFERENCES shop.late
             );
             CREATE INDEX late_lower ON shop.late (lower(note));
             INSERT INTO shop.late (note, place) SELECT 'n' || g, 1000 + 10 * (g % 40) FROM generate_series(1, 500) g;
             ALTER TABLE shop.late ADD gone bigint; UPDATE shop.late SET gone = -1 WHERE id % 3 = 0;
             ALTER TABLE shop.late ADD CONSTRAINT late_gone FOREIGN KEY (gone) REFERENCES shop.places NOT VALID",
        )
        .await?;
    let writer = scene.stage.source.connect().await?;
    let writing = tokio::spawn(async move {
        for round in 0.. {
            writer
                .run(&format!(
                    "BEGIN;
                     INSERT INTO shop.places (name) VALUES ('round {round}');
                     INSERT INTO shop.late (note, place) SELECT 'round {round}', max(id) FROM shop.places;
                     UPDATE shop.goods SET place_name = NULL, place = (SELECT max(id) FROM shop.places)
                     WHERE id = {round} % 400 + 1;
                     DELETE FROM shop.places WHERE name = 'round {}';
                     COMMIT",
                    round - 3
                ))
                .await?;
        }
        Ok::<(), anyhow::Error>(())
    });
    let late = json!({
        "source_table": "shop.late", "destination_schema": "shop", "destination_table": "late",
    });
    let mut all = mappings("shop", str::to_owned);
    all.push(late);
    // Apply dies with one of its indexes built.
    scene.apply.restart_to_crash("apply::object_built", 1)?;
    let added = scene
        .api
        .put(
            "/v1/mirrors/mirror/tables",
            json!({ "table_mappings": all }),
        )
        .await?
        .expect(202)?;
    let limit = Duration::from_secs(60);
    scene
        .apply
        .wait_crash_point("apply::object_built", limit)
        .await?;
    scene.apply.restart()?;
    scene.done(&added).await?;
    let checked = "SELECT count(*) FROM pg_constraint
                   WHERE conrelid = 'shop.late'::regclass AND contype = 'f' AND convalidated";
    let began = Instant::now();
    while scene.destination.number(checked).await? < 2 {
        ensure!(began.elapsed() < CONVERGE, "{}", scene.stage.logs_tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Foreign keys point to it, so it is emptied row by row, and nothing goes with them.
    let again = scene
        .api
        .post("/v1/mirrors/mirror/resync/shop.places", json!({}))
        .await?
        .expect(202)?;
    scene.done(&again).await?;
    ensure!(!writing.is_finished(), "the writer: {:?}", writing.await);
    writing.abort();
    let _ = writing.await;
    let tables = [&TABLES[..], &["late"]].concat();
    let pairs: Vec<TablePair> = tables
        .iter()
        .map(|table| pair(table, "shop", table))
        .collect();
    scene.stage.assert_converges(&mirror, &pairs).await?;
    // Sequences follow rows, not values that were drawn and given up.
    let mut asked = QUESTIONS.to_vec();
    asked.retain(|(what, _)| *what != "sequences");
    scene
        .assert_same(&tables, &asked, "shop", str::to_owned)
        .await
}

/// Where the destination has something of the name already, and another mirror brings the
/// same types at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn objects_move_with_mapped_names() -> Result<()> {
    let scene = Scene::new("objects_mapped").await?;
    scene
        .source
        .run(
            "CREATE SCHEMA extra;
             CREATE TYPE extra.level AS ENUM ('low', 'high');
             CREATE TABLE extra.items (id int PRIMARY KEY, note text);
             CREATE INDEX items_note ON extra.items (note);
             CREATE TABLE extra.levels (id int PRIMARY KEY, level extra.level);
             CREATE INDEX twin ON extra.levels (level);
             CREATE SCHEMA other;
             CREATE TABLE other.tags (id int PRIMARY KEY, tag text);
             CREATE INDEX twin ON other.tags (tag);
             INSERT INTO extra.items SELECT g, 'i' || g FROM generate_series(1, 10) g;
             INSERT INTO extra.levels VALUES (1, 'low'), (2, 'high');
             INSERT INTO other.tags VALUES (1, 'a')",
        )
        .await?;
    scene
        .destination
        .run(
            "CREATE SCHEMA extra; CREATE TYPE extra.level AS ENUM ('high');
             CREATE SCHEMA \"Moved here\";
             CREATE TABLE \"Moved here\".items (id int PRIMARY KEY, note text);
             CREATE INDEX items_note ON \"Moved here\".items (lower(note))",
        )
        .await?;
    let rename = |table: &str| format!("the \"{table}\"");
    let schema = "Moved here";
    let others = [("extra", "items"), ("extra", "levels"), ("other", "tags")];
    let mapped = others.map(|(from, table)| {
        json!({
            "source_table": format!("{from}.{table}"),
            "destination_schema": schema, "destination_table": table,
        })
    });
    let mirror = scene.mirror("mirror", schema, rename, &mapped).await?;
    let second = scene.mirror("second", "Second", str::to_owned, &[]).await?;
    mirror.wait_running().await?;
    second.wait_running().await?;
    let mut pairs: Vec<TablePair> = TABLES
        .iter()
        .map(|table| pair(table, schema, &rename(table)))
        .collect();
    pairs.extend(others.map(|(from, table)| TablePair {
        source: (from.into(), table.into()),
        destination: (schema.into(), table.into()),
        excluded: Vec::new(),
    }));
    scene.stage.assert_converges(&mirror, &pairs).await?;
    scene.assert_same_objects(schema, rename).await?;
    scene.assert_same_objects("Second", str::to_owned).await?;

    // Two indexes of one name in one schema: one has the name, both are there.
    let indexes = "SELECT string_agg(regexp_replace(pg_get_indexdef(indexrelid), '^.* ON ', ''), '; ' ORDER BY relname)
                   FROM pg_index JOIN pg_class ON oid = indrelid
                   WHERE relname IN ('levels', 'tags') AND NOT indisprimary";
    assert_eq!(
        scene.destination.text(indexes).await?,
        "\"Moved here\".levels USING btree (level); \"Moved here\".tags USING btree (tag)"
    );
    // What was there stays as it is, and is named.
    let note = "SELECT pg_get_indexdef('\"Moved here\".items_note'::regclass)";
    assert!(scene.destination.text(note).await?.contains("lower(note)"));
    let labels = "SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum
                  WHERE enumtypid = 'extra.level'::regtype";
    assert_eq!(scene.destination.text(labels).await?, "low high");
    scene.assert_said(&SAID).await?;
    let further = [
        "index \\\"items_note\\\" of",
        "lacked a label",
        "rest_own",
        "places_favourite",
    ];
    scene.assert_said(&further).await
}
