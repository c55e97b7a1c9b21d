//! The life of a mirror, and what it leaves alone.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::stage::CONVERGE;
use serde_json::json;

use crate::scene::Scene;

async fn wait_for_metrics(scene: &Scene, what: &str, are: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + CONVERGE;
    loop {
        let metrics = scene.bunny.metrics().await?;
        if are(&metrics) {
            return Ok(());
        }
        assert!(
            std::time::Instant::now() < deadline,
            "not {what}:\n{metrics}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_mirror_leaves_only_the_data() -> Result<()> {
    let scene = Scene::new("delete").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100);")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    for line in [
        r#"bunny_mirror_status{mirror="mirror",status="RUNNING"} 1"#,
        r#"bunny_mirror_tables{mirror="mirror",state="LIVE"} 1"#,
        r#"bunny_mirror_rows_synced{mirror="mirror"} 100"#,
        r#"bunny_source_slot_active{mirror="mirror"} 1"#,
        r#"bunny_mirror_lag_bytes{mirror="mirror"} 0"#,
    ] {
        wait_for_metrics(&scene, line, |text| text.lines().any(|found| found == line)).await?;
    }
    let metrics = scene.bunny.metrics().await?;
    assert!(
        metrics.contains("process_resident_memory_bytes "),
        "{metrics}"
    );
    scene.api.delete("/v1/mirrors/mirror").await?.expect(202)?;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while scene.api.get("/v1/mirrors/mirror").await?.status != 404 {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            mirror.get().await
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let left = scene
        .source
        .number("SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())")
        .await?;
    assert_eq!(left, 0, "slot or publications are left");
    let destination = scene.stage.destination.connect().await?;
    assert_eq!(destination.number("SELECT count(*) FROM t").await?, 100);
    assert_eq!(
        destination
            .number("SELECT count(*) FROM _bunny.progress")
            .await?,
        0
    );

    wait_for_metrics(&scene, "no series of the mirror", |text| {
        text.contains("bunny_catalog_up 1") && !text.contains(r#"mirror="mirror""#)
    })
    .await?;

    // And the same name again.
    let mirror = scene
        .running_mirror(&["public.t"], json!({"on_existing_rows": "truncate"}))
        .await?;
    // Rows that somebody has changed at the destination are the source's again, and it is said.
    destination
        .run("DELETE FROM t WHERE id < 8; INSERT INTO t VALUES (500)")
        .await?;
    scene
        .source
        .run("DELETE FROM t WHERE id < 50; INSERT INTO t VALUES (500)")
        .await?;
    scene
        .assert_holds(&mirror, &[TablePair::same("public.t")])
        .await?;
    let deadline = std::time::Instant::now() + CONVERGE;
    let logs = loop {
        let logs = scene
            .api
            .get("/v1/mirrors/mirror/logs?search=not%20as%20the%20stream%20implies")
            .await?
            .expect(200)?;
        if logs["total"] != 0 {
            break logs;
        }
        assert!(std::time::Instant::now() < deadline, "no word of drift");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let drift = json!([{"table": "public.t", "kind": "delete_missed", "rows": 7},
        {"table": "public.t", "kind": "insert_overwrote", "rows": 1}]);
    assert_eq!(logs["logs"][0]["details"]["drift"], drift, "{logs}");
    wait_for_metrics(&scene, "drift counted", |text| {
        text.contains(r#"bunny_apply_drift_rows_total{mirror="mirror",table="public.t",kind="delete_missed"} 7"#)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_mirror_does_not_hold_wal() -> Result<()> {
    let scene = Scene::new("idle").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (v text);")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    // Only a table that is not mirrored changes.
    scene
        .source
        .run("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        .await?;
    let lsn = scene.source.current_lsn().await?;
    mirror
        .wait_until("confirmed", Duration::from_secs(45), |_, metrics| {
            metrics["source"]["confirmed_flush_lsn"]
                .as_str()
                .and_then(|text| text.parse().ok())
                .is_some_and(|confirmed: bunny_tests::lsn::Lsn| confirmed >= lsn)
        })
        .await?;
    mirror.wait_for_lsn(lsn).await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_mirrors_share_the_workers() -> Result<()> {
    let scene = Scene::new("several").await?;
    let mut mirrors = Vec::new();
    for name in ["one", "Two", "three-3"] {
        let table = format!("public.{}", name.to_lowercase().replace('-', "_"));
        scene
            .source
            .run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT g, 'v' FROM generate_series(1, 500) g;"))
            .await?;
        let mirror = scene
            .stage
            .create_mirror(&scene.api, name, &[&table], json!({}))
            .await?;
        mirrors.push((mirror, TablePair::same(&table), table));
    }
    for (mirror, _, table) in &mirrors {
        mirror.wait_running().await?;
        scene
            .source
            .run(&format!(
                "UPDATE {table} SET v = 'w' WHERE id < 100; DELETE FROM {table} WHERE id > 400;"
            ))
            .await?;
    }
    for (mirror, pair, _) in &mirrors {
        scene
            .stage
            .assert_converges(mirror, std::slice::from_ref(pair))
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_by_interval() -> Result<()> {
    let scene = Scene::new("interval").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await?;
    let mirror = scene
        .running_mirror(
            &["public.t"],
            json!({"apply_mode": "interval", "idle_timeout_seconds": 4, "max_batch_size": 50}),
        )
        .await?;
    let destination = scene.stage.destination.connect().await?;
    // Fewer than a batch: they wait for the timer.
    scene.source.run("INSERT INTO t VALUES (1, 'a')").await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(destination.number("SELECT count(*) FROM t").await?, 0);
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    assert_eq!(destination.number("SELECT count(*) FROM t").await?, 1);
    // More than a batch: the size flushes most of them at once.
    for id in 10..80 {
        scene
            .source
            .run(&format!("INSERT INTO t VALUES ({id}, 'b')"))
            .await?;
    }
    scene
        .assert_holds(&mirror, &[TablePair::same("public.t")])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_mirror_logs_no_trouble() -> Result<()> {
    let scene = Scene::new("calm").await?;
    let tables = ["public.a", "public.b", "public.c"];
    for table in tables {
        let create = format!(
            "CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} SELECT generate_series(1, 100)"
        );
        scene.source.run(&create).await?;
    }
    let mirror = scene.running_mirror(&tables, json!({})).await?;
    // Rows too have schemas, which are written after those of the copies.
    for table in tables {
        scene
            .source
            .run(&format!("INSERT INTO {table} VALUES (101)"))
            .await?;
    }
    let lsn = scene.source.current_lsn().await?;
    mirror.wait_for_lsn(lsn).await?;
    let log = scene.stage.log_of(Role::Up)?;
    let is_calm = |line: &&str| !["ERROR", "NOTICE"].iter().any(|word| line.contains(word));
    let trouble: Vec<&str> = log.lines().filter(|line| !is_calm(line)).collect();
    assert!(trouble.is_empty(), "{}", trouble.join("\n"));
    assert!(log.contains("streaming"), "{log}");
    Ok(())
}
