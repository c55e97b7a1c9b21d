//! A changed list of mappings: a table that is written elsewhere from then on, names that need
//! quotes, and lists that are refused and disturb nothing.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::stage::{CONVERGE, Mirror};
use serde_json::{Value, json};

use crate::lifecycle::{ended, mappings};
use crate::refused_creation::all_there_is;
use crate::scene::Scene;

const TABLES: &str = "/v1/mirrors/mirror/tables";

async fn is_done(scene: &Scene, mirror: &Mirror, accepted: &Value) -> Result<()> {
    let command = ended(&scene.api, mirror, &scene.stage, accepted).await?;
    ensure!(command["state"] == "done", "{command}");
    Ok(())
}

fn mapped(source: &str, destination: &str) -> Value {
    json!({"table_mappings": [{"source_table": source, "destination_table": destination}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_written_elsewhere_from_then_on() -> Result<()> {
    let scene = Scene::new("elsewhere").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    let destination = scene.stage.destination.connect().await?;
    let stays = "SELECT concat_ws(' ', count(*), min(v), max(v)) FROM t";

    let moved = mapped("public.t", "public.elsewhere");
    let moved = scene.api.put(TABLES, moved).await?.expect(202)?;
    assert_eq!(moved["changed"], json!(["public.t"]), "{moved}");
    scene
        .source
        .run("UPDATE t SET v = 'w' WHERE id <= 100; DELETE FROM t WHERE id > 290")
        .await?;
    is_done(&scene, &mirror, &moved).await?;
    scene.source.run("UPDATE t SET v = 'x'").await?;
    let elsewhere = [TablePair::renamed("public.t", "public.elsewhere")];
    scene.assert_holds(&mirror, &elsewhere).await?;
    // What the table was before stays as it was when it was left, and is followed no more.
    let left = destination.text(stays).await?;
    ensure!(!left.contains('x'), "{left}");
    let known = "SELECT string_agg(dest_table, ',') FROM _bunny.tables";
    assert_eq!(destination.text(known).await?, "elsewhere");

    // Where rows stand nothing is loaded unasked, its own of before neither.
    let back = mapped("public.t", "public.t");
    let refused = scene.api.put(TABLES, back.clone()).await?.expect(422)?;
    let why = refused["error"].as_str().unwrap_or_default();
    ensure!(why.contains("public.t") && why.contains("rows"), "{why}");
    scene.source.run("UPDATE t SET v = 'y'").await?;
    scene.stage.assert_converges(&mirror, &elsewhere).await?;
    assert_eq!(destination.text(stays).await?, left);
    destination.run("TRUNCATE t").await?;
    let back = scene.api.put(TABLES, back).await?.expect(202)?;
    is_done(&scene, &mirror, &back).await?;
    scene.source.run("DELETE FROM t WHERE id < 50").await?;
    let pair = TablePair::all(&["public.t"]);
    scene.assert_holds(&mirror, &pair).await?;
    let rows = destination.number("SELECT count(*) FROM elsewhere").await?;
    assert_eq!(rows, 290);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_refused_disturbs_nothing() -> Result<()> {
    let scene = Scene::new("refused_list").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY);
              INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
              CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM t;
              CREATE SCHEMA \"Odd S\"; CREATE TABLE \"Odd S\".\"T\" (id int PRIMARY KEY);
              CREATE TABLE \"Odd S\".\"T.x\" (id int PRIMARY KEY); INSERT INTO \"Odd S\".\"T\" SELECT generate_series(1, 20)")
        .await?;
    let odd = [("Odd S", "T"), ("Odd S", "T.x")];
    let mut list = mappings(&["public.t"]);
    let all = list["table_mappings"].as_array_mut().context("a list")?;
    for (schema, table) in odd {
        all.push(json!({"source_schema": schema, "source_table": table,
            "destination_schema": schema, "destination_table": table}));
    }
    let kept = list.clone();
    let mirror = scene
        .stage
        .create_mapped_mirror(
            &scene.api,
            "mirror",
            list["table_mappings"].clone(),
            json!({}),
        )
        .await?;
    mirror.wait_running().await?;
    let pairs = TablePair::all(&["public.t", "Odd S.T", "Odd S.T.x"]);
    scene.stage.assert_converges(&mirror, &pairs).await?;

    // Named in a path as written, or quoted; encoded either way.
    for (path, status) in [
        ("Odd%20S.T", 202),
        ("%22Odd%20S%22.%22T.x%22", 202),
        ("odd%20s.t", 404),
        ("%22Odd%20S.T%22", 400),
    ] {
        let path = format!("/v1/mirrors/mirror/resync/{path}");
        let answer = scene.api.post(&path, json!({})).await?;
        ensure!(answer.status == status, "{path}: {answer:?}");
        if status == 202 {
            is_done(&scene, &mirror, &answer.body).await?;
        }
    }

    let with = |more: Value| {
        let mut list = kept.clone();
        if let Some(all) = list["table_mappings"].as_array_mut() {
            all.push(more);
        }
        list
    };
    let plain = |table: &str| json!({"source_table": table, "destination_table": table});
    let mut without_key = kept.clone();
    without_key["table_mappings"][0]["exclude_columns"] = json!(["id"]);
    let refused = [
        (with(plain("public.missing")), "public.missing"),
        (with(plain("public.unlogged")), "SET LOGGED"),
        (with(plain("public.seen")), "is a view"),
        (with(plain("public.t")), "public.t"),
        (
            with(json!({"source_table": "public.u", "destination_table": "public.t"})),
            "public.t",
        ),
        (without_key, "belongs to the key"),
        (json!({"table_mappings": []}), "table_mappings"),
    ];
    for status in ["RUNNING", "PAUSED"] {
        if status == "PAUSED" {
            let pause = scene
                .api
                .post("/v1/mirrors/mirror/pause", json!({}))
                .await?;
            is_done(&scene, &mirror, &pause.expect(202)?).await?;
        }
        let before = all_there_is(&scene.stage).await?;
        for (list, words) in &refused {
            let answer = scene.api.put(TABLES, list.clone()).await?;
            let said = answer.body["error"].as_str().unwrap_or_default();
            ensure!(
                (400..=422).contains(&answer.status) && said.contains(words),
                "{status} {words}: {answer:?}"
            );
        }
        let after = all_there_is(&scene.stage).await?;
        ensure!(before == after, "{status}: {after:?} of {before:?}");
        assert_eq!(mirror.get().await?["status"], status);
        scene
            .source
            .run("UPDATE t SET v = v || 'w' WHERE id % 3 = 0; DELETE FROM t WHERE id = (SELECT max(id) FROM t)")
            .await?;
        if status == "PAUSED" {
            // A list that is not refused is taken, and acted on when the mirror goes on.
            let taken = with(plain("public.u"));
            let taken = scene.api.put(TABLES, taken).await?.expect(202)?;
            let resume = scene
                .api
                .post("/v1/mirrors/mirror/resume", json!({}))
                .await?;
            resume.expect(202)?;
            is_done(&scene, &mirror, &taken).await?;
        }
        mirror
            .wait_until("RUNNING", CONVERGE, |mirror, _| {
                mirror["status"] == "RUNNING"
            })
            .await?;
        scene.stage.assert_converges(&mirror, &pairs).await?;
    }
    Ok(())
}
