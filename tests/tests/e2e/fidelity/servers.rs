//! Databases of another kind at the source.

use anyhow::Result;
use bunny_tests::content::TablePair;
use serde_json::json;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_latin1_source_into_a_utf8_destination() -> Result<()> {
    let scene = Scene::with_source(
        "fidelity_latin1",
        "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    .await?;
    assert_eq!(scene.source.text("SHOW server_encoding").await?, "LATIN1");
    // Every character that LATIN1 has, in values and in a name.
    scene
        .source
        .run(r#"CREATE TABLE "tàble" (id int PRIMARY KEY, "cölumn" text, fixed char(5), label "char");
                INSERT INTO "tàble" SELECT c, chr(c) || 'é', chr(c), 'a' FROM generate_series(1, 255) c;
                CREATE TABLE keyless (v text); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless SELECT 'ü' FROM generate_series(1, 3);"#)
        .await?;
    let mirror = scene
        .running_mirror(&["public.tàble", "public.keyless"], json!({}))
        .await?;
    let pairs = TablePair::all(&["public.tàble", "public.keyless"]);
    scene
        .source
        .run(r#"UPDATE "tàble" SET "cölumn" = "cölumn" || 'ß' WHERE id > 128; UPDATE "tàble" SET id = id + 1000, fixed = 'ÿ' WHERE id < 32;
                INSERT INTO "tàble" SELECT c + 5000, chr(c), NULL, NULL FROM generate_series(1, 255) c; DELETE FROM "tàble" WHERE id = 200;
                UPDATE keyless SET v = 'Ü' WHERE ctid = (SELECT min(ctid) FROM keyless);"#)
        .await?;
    scene.stage.assert_converges(&mirror, &pairs).await?;
    scene.stage.assert_topics_hold(&mirror, &pairs).await?;
    Ok(())
}
