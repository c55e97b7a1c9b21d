//! Pauses and deletions that are asked for at an awkward moment.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::broker;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::proxy::Proxy;
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::{Value, json};

use crate::deletion::wait_gone;
use crate::lifecycle::{ended, mappings};

const MIRROR: &str = "/v1/mirrors/mirror";

async fn wait_status(mirror: &Mirror, status: &str) -> Result<()> {
    mirror
        .wait_until(status, CONVERGE, |mirror, _| mirror["status"] == status)
        .await
}

/// The mirror says for a while that it is on its way, and then it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_when_the_destination_is_back() -> Result<()> {
    let stage = Stage::new("pause_away").await?;
    let address = format!("{}:{}", stage.destination.host, stage.destination.port);
    let to_destination = Proxy::start(&address).await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    stage
        .create_peers_at(&api, stage.source.port, to_destination.port())
        .await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
        .await?;
    let tables = ["public.t"];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    let ask = async |action: &str| {
        let path = format!("{MIRROR}/{action}");
        api.post(&path, json!({})).await?.expect(202)
    };

    to_destination.refuse();
    source.run("UPDATE t SET v = 'w'").await?;
    let pause = ask("pause").await?;
    wait_status(&mirror, "PAUSING").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let shown = mirror.get().await?;
    ensure!(shown["status"] == "PAUSING", "{shown}");
    to_destination.heal();
    let command = ended(&api, &mirror, &stage, &pause).await?;
    ensure!(command["state"] == "done", "{command}");
    wait_status(&mirror, "PAUSED").await?;
    ask("resume").await?;
    wait_status(&mirror, "RUNNING").await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await?;

    // Called off before it could be carried out.
    to_destination.refuse();
    source.run("UPDATE t SET v = 'x'").await?;
    let pause = ask("pause").await?;
    wait_status(&mirror, "PAUSING").await?;
    let resume = ask("resume").await?;
    to_destination.heal();
    let called_off = ended(&api, &mirror, &stage, &pause).await?;
    let why = called_off["error"].as_str().unwrap_or_default();
    ensure!(
        called_off["state"] == "failed" && why.contains("resume"),
        "{called_off}"
    );
    let command = ended(&api, &mirror, &stage, &resume).await?;
    ensure!(command["state"] == "done", "{command}");
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await
}

/// When a mirror is deleted.
#[derive(Clone, Copy, Debug)]
enum When {
    Snapshot,
    PausedAll,
    SchemaSync,
    Replay,
}

#[cfg(not(feature = "full"))]
const MOMENTS: [When; 2] = [When::Snapshot, When::PausedAll];
#[cfg(feature = "full")]
const MOMENTS: [When; 4] = [
    When::Snapshot,
    When::PausedAll,
    When::SchemaSync,
    When::Replay,
];

/// Nothing of it stays at the source, in Kafka, in `_bunny` or in the catalog but its commands; the
/// tables of the destination do.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_deleted_at_any_moment() -> Result<()> {
    let stage = Stage::new("delete_moments").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    for table in ["a", "b"] {
        source
            .run(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT g, 'v' FROM generate_series(1, 4000) g"
            ))
            .await?;
    }
    let tables = ["public.a", "public.b"];
    for moment in MOMENTS {
        apply.restart()?;
        // A schema sync that was cut short has not brought it over.
        source.run("ALTER TABLE a DROP COLUMN IF EXISTS w").await?;
        if matches!(moment, When::Snapshot) {
            let each = Duration::from_millis(300);
            apply.restart_slowed("apply::chunk_after_commit", each)?;
        }
        let mut body = mappings(&tables);
        for (name, value) in [
            ("name", json!("mirror")),
            ("source_peer", json!("source")),
            ("destination_peer", json!("destination")),
            ("on_existing_rows", json!("truncate")),
            ("snapshot_num_rows_per_partition", json!(200)),
            ("snapshot_max_parallel_workers", json!(1)),
        ] {
            body[name] = value;
        }
        api.post("/v1/mirrors", body).await?.expect(201)?;
        let mirror = stage.mirror(&api, "mirror");
        if !matches!(moment, When::Snapshot) {
            mirror.wait_running().await?;
        }
        let ask = async |action: &str, body: Value| {
            let path = format!("{MIRROR}/{action}");
            api.post(&path, body).await?.expect(202)
        };
        match moment {
            When::Snapshot => {
                let is_loading = |mirror: &Value, _: &Value| {
                    let tables = mirror["tables"].as_array().into_iter().flatten();
                    let done = tables.filter_map(|table| table["snapshot"]["chunks_done"].as_i64());
                    mirror["status"] == "SNAPSHOT" && done.sum::<i64>() > 2
                };
                mirror.wait_until("loading", CONVERGE, is_loading).await?;
            }
            When::PausedAll => {
                let pause = ask("pause", json!({"scope": "all"})).await?;
                ended(&api, &mirror, &stage, &pause).await?;
                wait_status(&mirror, "PAUSED").await?;
                source.run("UPDATE a SET v = 'w' WHERE id < 50").await?;
            }
            When::SchemaSync => {
                source.run("ALTER TABLE a ADD COLUMN w int").await?;
                apply.restart_to_crash("apply::schema_sync_held", 1)?;
                ask("sync-schema", json!({})).await?;
                apply
                    .wait_crash_point("apply::schema_sync_held", CONVERGE)
                    .await?;
            }
            When::Replay => {
                apply.restart_to_crash("apply::chunk_after_commit", 2)?;
                ask("replay", json!({"strategy": "swap"})).await?;
                apply
                    .wait_crash_point("apply::chunk_after_commit", CONVERGE)
                    .await?;
            }
        }
        let delete = api.delete(MIRROR).await?.expect(202)?;
        if matches!(moment, When::SchemaSync | When::Replay) {
            apply.restart()?;
        }
        wait_gone(&api).await?;
        assert_nothing_is_left(&stage, moment).await?;
        let id = delete["command_id"].as_str().context("a command")?;
        let command = api.get(&format!("{MIRROR}/commands/{id}")).await?;
        let command = command.expect(200)?;
        ensure!(command["state"] == "done", "{moment:?}: {command}");
    }
    Ok(())
}

async fn assert_nothing_is_left(stage: &Stage, moment: When) -> Result<()> {
    let [source, destination, catalog] = [&stage.source, &stage.destination, &stage.catalog];
    for (place, of) in [
        (
            source,
            "pg_replication_slots WHERE database = current_database()",
        ),
        (source, "pg_publication"),
        (destination, "pg_class WHERE relname LIKE '%bunny_resync%'"),
        (destination, "_bunny.owner"),
        (destination, "_bunny.tables"),
        (destination, "_bunny.chunks"),
        (destination, "_bunny.progress"),
        (catalog, "bunny.mirrors"),
        (catalog, "bunny.mirror_tables"),
        (catalog, "bunny.leases"),
        (catalog, "bunny.reports"),
        (catalog, "bunny.logs"),
        (catalog, "bunny.log_needs"),
        (catalog, "bunny.topic_bytes"),
        (catalog, "bunny.source_definitions"),
        (
            catalog,
            "bunny.commands WHERE state IN ('pending', 'running')",
        ),
    ] {
        let session = place.connect().await?;
        let left = session
            .number(&format!("SELECT count(*) FROM {of}"))
            .await?;
        ensure!(left == 0, "{moment:?}: {left} left of {of}");
    }
    let rows = destination.connect().await?;
    let rows = rows.number("SELECT count(*) FROM a").await?;
    ensure!(rows > 0, "{moment:?}: the destination's rows are gone");
    let deadline = Instant::now() + CONVERGE;
    loop {
        let topics = broker::topics(&stage.services.brokers, &stage.name).await?;
        let of_mirror = topics.iter().any(|topic| !topic.ends_with(".schemas"));
        let groups = broker::groups(&stage.services.brokers, &stage.name).await?;
        if !of_mirror && groups.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{moment:?}: {topics:?} {groups:?} are left"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
