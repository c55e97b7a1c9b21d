//! A slot and a publication that the user brings: used as they are, never altered or dropped.

use anyhow::{Context, Result};
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use reqwest::Method;
use serde_json::json;

use crate::scene::Scene;

/// The publications there are, with their tables: those of the catalog, not of their names.
const PUBLICATIONS: &str =
    "SELECT string_agg(concat_ws(' ', p.oid, p.pubname, p.pubinsert, p.pubupdate, p.pubdelete,
        p.pubtruncate, p.pubviaroot, r.prrelid::regclass), ', ' ORDER BY p.oid, r.prrelid)
    FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid";
const SLOTS: &str =
    "SELECT string_agg(concat_ws(' ', slot_name, plugin, temporary), ', ' ORDER BY slot_name)
    FROM pg_replication_slots WHERE database = current_database()";

async fn delete(scene: &Scene) -> Result<()> {
    scene.api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    let deadline = std::time::Instant::now() + CONVERGE;
    while scene.api.get("/v1/mirrors/mirror").await?.status != 404 {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            scene.stage.logs_tail()
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_slot_and_publication_are_used_and_left_as_they_are() -> Result<()> {
    let scene = Scene::new("given").await?;
    let source = &scene.source;
    let slot = &scene.stage.name;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY);
              INSERT INTO t SELECT g, 'v' FROM generate_series(1, 200) g;
              CREATE PUBLICATION \"My pub\" FOR TABLE t, other")
        .await?;
    source
        .run(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
        .await?;
    let before = (source.text(PUBLICATIONS).await?, source.text(SLOTS).await?);
    // The slot holds what came before the mirror, of both tables.
    source
        .run("UPDATE t SET v = 'w' WHERE id <= 20; INSERT INTO other VALUES (1)")
        .await?;

    let options = json!({"publication_name": "My pub", "replication_slot_name": slot, "on_existing_rows": "truncate"});
    let mirror = scene.running_mirror(&["public.t"], options.clone()).await?;
    let shown = mirror.get().await?;
    assert_eq!(
        (&shown["slot_name"], &shown["publication_name"]),
        (&json!(slot), &json!("My pub"))
    );
    source
        .run("UPDATE t SET v = 'x' WHERE id <= 40; DELETE FROM t WHERE id > 150; INSERT INTO other VALUES (2); TRUNCATE other")
        .await?;
    let pair = [TablePair::same("public.t")];
    scene.assert_holds(&mirror, &pair).await?;
    let confirmed = mirror.metrics().await?["source"]["confirmed_flush_lsn"].clone();
    assert!(confirmed.is_string(), "{confirmed}");

    // A table it does not hold is not put into it.
    let mappings = json!([{"source_table": "public.t", "destination_table": "public.t"},
        {"source_table": "public.late", "destination_table": "public.late"}]);
    let refused = scene
        .api
        .request(Method::PUT, "/v1/mirrors/mirror/tables", Some(mappings))
        .await?
        .expect(422)?;
    let why = refused["error"].as_str().context("error")?;
    assert!(
        why.contains("My pub") && why.contains("ALTER PUBLICATION"),
        "{why}"
    );

    delete(&scene).await?;
    assert_eq!(
        before,
        (source.text(PUBLICATIONS).await?, source.text(SLOTS).await?)
    );

    // And used again, from where the former mirror left the slot.
    source.run("UPDATE t SET v = 'y' WHERE id <= 60").await?;
    let mirror = scene.running_mirror(&["public.t"], options).await?;
    source.run("INSERT INTO t VALUES (1000, 'z')").await?;
    scene.assert_holds(&mirror, &pair).await?;
    delete(&scene).await?;
    assert_eq!(
        before,
        (source.text(PUBLICATIONS).await?, source.text(SLOTS).await?)
    );
    source
        .run(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await
}
