//! Databases of another kind at the source.

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::services::Services;
use bunny_tests::stage::CONVERGE;
use serde_json::{Value, json};

use super::major;
use crate::scene::Scene;

/// Everything that has a text of its own in the catalog.
const OBJECTS: &str = r#"
    CREATE SCHEMA "schéma"; CREATE TYPE "schéma"."maß" AS ENUM ('klein', 'groß');
    CREATE TABLE "schéma"."größen" (wort text PRIMARY KEY, m "schéma"."maß" DEFAULT 'groß', "wofür" text DEFAULT 'für ö & ä', CONSTRAINT "prüfung" CHECK ("wofür" <> 'ß'));
    COMMENT ON TABLE "schéma"."größen" IS 'größer als größtes é'; COMMENT ON COLUMN "schéma"."größen"."wofür" IS 'À quoi ça sert';
    CREATE INDEX "kürzel" ON "schéma"."größen" (lower("wofür")) WHERE "wofür" <> 'ñ';
    INSERT INTO "schéma"."größen" (wort) VALUES ('I'), ('i'), ('Ö'), ('z'), ('Z'), ('a');"#;
const ASK_OBJECTS: &str = r#"
    SELECT concat_ws('; ', obj_description(c.oid, 'pg_class'), col_description(c.oid, 3), obj_description(c.relnamespace, 'pg_namespace'),
        (SELECT string_agg(pg_get_expr(adbin, adrelid), ', ' ORDER BY adnum) FROM pg_attrdef WHERE adrelid = c.oid),
        (SELECT string_agg(conname || pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint WHERE conrelid = c.oid AND contype <> 'n'),
        (SELECT string_agg(pg_get_indexdef(indexrelid), ', ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = c.oid),
        (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = '"schéma"."maß"'::regtype))
    FROM pg_class c WHERE c.oid = '"schéma"."größen"'::regclass"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_latin1_source_into_a_utf8_destination() -> Result<()> {
    let server = Services::shared()?.source.connect().await?;
    // Of a locale in which texts are sorted and spelled otherwise, where a database can have one of ICU's.
    let locale = match major(&server).await? {
        15.. => "LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR'",
        _ => "",
    };
    let options =
        format!("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' {locale} TEMPLATE template0");
    let scene = Scene::with_source("fidelity_latin1", &options).await?;
    assert_eq!(scene.source.text("SHOW server_encoding").await?, "LATIN1");
    // Every character that LATIN1 has, in values and in a name.
    scene
        .source
        .run(r#"CREATE TABLE "tàble" (id int PRIMARY KEY, "cölumn" text, fixed char(5), label "char");
                INSERT INTO "tàble" SELECT c, chr(c) || 'é', chr(c), 'a' FROM generate_series(1, 255) c;
                CREATE TABLE keyless (v text); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless SELECT 'ü' FROM generate_series(1, 3);"#)
        .await?;
    scene.source.run(OBJECTS).await?;
    let tables = ["public.tàble", "public.keyless", "schéma.größen"];
    let mirror = scene.running_mirror(&tables, json!({})).await?;
    let pairs = TablePair::all(&tables);
    scene
        .source
        .run(r#"UPDATE "tàble" SET "cölumn" = "cölumn" || 'ß' WHERE id > 128; UPDATE "tàble" SET id = id + 1000, fixed = 'ÿ' WHERE id < 32;
                INSERT INTO "tàble" SELECT c + 5000, chr(c), NULL, NULL FROM generate_series(1, 255) c; DELETE FROM "tàble" WHERE id = 200;
                UPDATE keyless SET v = 'Ü' WHERE ctid = (SELECT min(ctid) FROM keyless);
                ALTER TYPE "schéma"."maß" ADD VALUE 'größer';"#)
        .await?;
    scene
        .source
        .run(
            r#"UPDATE "schéma"."größen" SET m = 'größer' WHERE wort = 'I'; DELETE FROM "schéma"."größen" WHERE wort = 'i'; UPDATE "schéma"."größen" SET wort = lower(wort) WHERE wort IN ('I', 'Ö');
                INSERT INTO "schéma"."größen" (wort) VALUES ('ÿ');"#,
        )
        .await?;
    scene.stage.assert_converges(&mirror, &pairs).await?;
    let destination = scene.stage.destination.connect().await?;
    let (here, there) = (
        scene.source.text(ASK_OBJECTS).await?,
        destination.text(ASK_OBJECTS).await?,
    );
    assert_eq!(there, here);
    assert!(here.contains("größer") && here.contains("ö & ä"), "{here}");
    scene.stage.assert_topics_hold(&mirror, &pairs).await?;
    long_names_are_refused(&scene).await?;

    // A byte above 127 in a "char": a character of two bytes on its way, until 15.
    scene
        .source
        .run(r#"CREATE TABLE loaded (id int PRIMARY KEY, c "char"); CREATE TABLE streamed (id int PRIMARY KEY, c "char"[]);
                INSERT INTO loaded SELECT g, chr(g)::"char" FROM generate_series(60, 90) g;
                UPDATE loaded SET c = (-23)::"char" WHERE id = 70;
                INSERT INTO streamed SELECT g, ARRAY[chr(g)::"char", NULL, '\'] FROM generate_series(60, 90) g;"#)
        .await?;
    let tables = ["public.loaded", "public.streamed"];
    let bytes = scene
        .stage
        .create_mirror(&scene.api, "bytes", &tables, json!({}))
        .await?;
    let is_kept = scene.source.number("SHOW server_version_num").await? >= 150_000
        && scene
            .stage
            .destination
            .connect()
            .await?
            .number("SHOW server_version_num")
            .await?
            >= 150_000;
    if is_kept {
        bytes.wait_running().await?;
        return scene
            .stage
            .assert_converges(&bytes, &TablePair::all(&tables))
            .await;
    }
    let is_refused = |mirror: &Value, name: &str| {
        let mut tables = mirror["tables"].as_array().into_iter().flatten();
        tables.any(|table| {
            table["source_table"] == name
                && table["status"] == "ERRORED"
                && table["error_message"].to_string().contains("above 127")
        })
    };
    bytes
        .wait_until("loaded ERRORED", CONVERGE, |mirror, _| {
            is_refused(mirror, "public.loaded")
        })
        .await?;
    let streamed = TablePair::all(&["public.streamed"]);
    scene.stage.assert_converges(&bytes, &streamed).await?;
    scene
        .source
        .run(r#"UPDATE streamed SET c[1] = (-23)::"char" WHERE id = 80"#)
        .await?;
    bytes
        .wait_until("streamed ERRORED", CONVERGE, |mirror, _| {
            is_refused(mirror, "public.streamed")
        })
        .await
}

/// 63 bytes of LATIN1 may be twice as many in UTF8, where a `name` has no room for them.
async fn long_names_are_refused(scene: &Scene) -> Result<()> {
    scene
        .source
        .run(
            "CREATE TABLE name_loaded (id int PRIMARY KEY, v name); INSERT INTO name_loaded VALUES (1, repeat('é', 31)), (2, repeat('é', 32));
             CREATE TABLE name_streamed (id int PRIMARY KEY, v name[]); INSERT INTO name_streamed VALUES (1, ARRAY[repeat('é', 31), 'a,b']);",
        )
        .await?;
    let tables = ["public.name_loaded", "public.name_streamed"];
    let names = scene
        .stage
        .create_mirror(&scene.api, "names", &tables, json!({}))
        .await?;
    let is_refused = |mirror: &Value, name: &str| {
        let mut tables = mirror["tables"].as_array().into_iter().flatten();
        tables.any(|table| {
            table["source_table"] == name
                && table["status"] == "ERRORED"
                && table["error_message"].to_string().contains("63 bytes")
        })
    };
    names
        .wait_until("name_loaded ERRORED", CONVERGE, |mirror, _| {
            is_refused(mirror, "public.name_loaded")
        })
        .await?;
    let streamed = TablePair::all(&["public.name_streamed"]);
    scene.stage.assert_converges(&names, &streamed).await?;
    scene
        .source
        .run("UPDATE name_streamed SET v[2] = repeat('ü', 63)")
        .await?;
    names
        .wait_until("name_streamed ERRORED", CONVERGE, |mirror, _| {
            is_refused(mirror, "public.name_streamed")
        })
        .await?;
    // The same for names of columns, said when the mirror is created.
    scene
        .source
        .run(&format!(
            "CREATE TABLE name_of_column (id int PRIMARY KEY, \"{}\" text)",
            "é".repeat(32)
        ))
        .await?;
    let body = json!({
        "name": "columns", "source_peer": "source", "destination_peer": "destination",
        "table_mappings": [{"source_table": "public.name_of_column", "destination_table": "public.name_of_column"}],
    });
    let answer = scene.api.post("/v1/mirrors", body).await?;
    anyhow::ensure!(
        answer.status == 422 && answer.body.to_string().contains("longer than 63 bytes"),
        "{} {}",
        answer.status,
        answer.body
    );
    Ok(())
}
