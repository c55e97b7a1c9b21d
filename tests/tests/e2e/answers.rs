//! Every answer has the form that the OpenAPI document says. The client of these tests holds each
//! answer it gets against it; here everything that can be read is read, so that none is left out.

use anyhow::{Context, Result, ensure};
use bunny_tests::contract::Contract;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;

/// A path with names that exist.
async fn filled(scene: &Scene, template: &str) -> Result<String> {
    let commands = scene.api.get("/v1/mirrors/mirror/commands").await?;
    let subjects = scene.api.get("/registry/subjects").await?.expect(200)?;
    let subject = subjects[0].as_str().context("no subject")?;
    let latest = format!("/registry/subjects/{subject}/versions/latest");
    let latest = scene.api.get(&latest).await?.expect(200)?;
    let name = match template.starts_with("/v1/peers") {
        true => "source",
        false => "mirror",
    };
    let id = match template.starts_with("/registry") {
        true => latest["id"].to_string(),
        false => commands.body[0]["id"].as_str().context("no id")?.to_owned(),
    };
    Ok(template
        .replace("{name}", name)
        .replace("{id}", &id)
        .replace("{subject}", subject)
        .replace("{version}", "latest"))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_read_is_as_documented() -> Result<()> {
    let scene = Scene::new("answers").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
              CREATE TABLE logged (v text); CREATE TABLE other (id int PRIMARY KEY); CREATE UNLOGGED TABLE unfit (id int)")
        .await?;
    let mirror = scene
        .running_mirror(&["public.t", "public.logged"], json!({}))
        .await?;
    scene.source.run("UPDATE t SET v = 'after'").await?;
    let pairs = bunny_tests::content::TablePair::all(&["public.t"]);
    scene.stage.assert_converges(&mirror, &pairs).await?;

    for template in Contract::kept()?.readable_paths() {
        let path = filled(&scene, &template).await?;
        ensure!(!path.contains('{'), "nothing is known to put into {path}");
        let answer = scene.api.get(&path).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        let is_empty = answer.body.as_array().is_some_and(Vec::is_empty);
        ensure!(!is_empty, "{path} lists nothing that could be looked at");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_is_as_documented() -> Result<()> {
    let scene = Scene::new("looks").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
        .await?;
    let api = &scene.api;
    let mapping = |table: &str| json!({"source_table": table, "destination_table": table});
    let dry = json!({"name": "mirror", "source_peer": "source", "destination_peer": "destination",
        "dry_run": true, "table_mappings": [mapping("public.t")]});
    let dry = api.post("/v1/mirrors", dry).await?.expect(200)?;
    assert_eq!(dry["dry_run"], true);
    scene.running_mirror(&["public.t"], json!({})).await?;

    let list = |tables: &[&str]| {
        let mappings: Vec<Value> = tables.iter().map(|table| mapping(table)).collect();
        json!({"table_mappings": mappings, "dry_run": true})
    };
    for tables in [&["public.t"][..], &["public.t", "public.u"]] {
        let path = "/v1/mirrors/mirror/tables";
        let answer = api.request(Method::PUT, path, Some(list(tables))).await?;
        assert_eq!(answer.expect(200)?["added"], json!(&tables[1..]));
    }

    let reached = api.post("/v1/peers/source/test", json!({})).await?;
    assert_eq!(reached.expect(200)?["success"], true);
    let nowhere = json!({"name": "nowhere", "host": "127.0.0.1", "port": 1, "user": "u", "password": "p", "database": "d"});
    api.post("/v1/peers", nowhere).await?.expect(201)?;
    let away = api.post("/v1/peers/nowhere/test", json!({})).await?;
    assert_eq!(away.expect(200)?["success"], false);
    Ok(())
}
