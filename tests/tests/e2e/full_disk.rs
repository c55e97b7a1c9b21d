//! A destination whose disk is full to the last page, while changes come and while a copy is made.

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::database::Session;
use bunny_tests::lsn::Lsn;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::json;

use crate::lifecycle::ended;

const TABLES: [&str; 2] = ["public.t", "public.u"];
const MEBIBYTES: u32 = 64;

/// Takes all the room there is, the last page too.
async fn fill(destination: &Session) -> Result<()> {
    destination
        .run("CREATE TABLE filler (v text); ALTER TABLE filler ALTER v SET STORAGE PLAIN")
        .await?;
    for rows in [1000, 10, 1] {
        let insert =
            format!("INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, {rows})");
        let mut more = 0;
        while destination.run(&insert).await.is_ok() {
            more += 1;
            ensure!(more < 10_000, "the disk is never full");
        }
    }
    Ok(())
}

async fn wait_for_room(mirror: &Mirror, status: &str) -> Result<()> {
    mirror
        .wait_until("waiting for room", CONVERGE, |mirror, _| {
            let error = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == status
                && mirror["health"] == "DEGRADED"
                && mirror["error_count"].as_i64() > Some(1)
                && error.contains("No space left on device")
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_without_room_waits_for_some_and_goes_on() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "full_disk").await?;
    let place = services.small_volume(Server::Destination, MEBIBYTES)?;
    let server = services.destination.connect().await?;
    for sql in [
        format!("CREATE TABLESPACE small LOCATION '{}'", place.display()),
        format!(
            "ALTER DATABASE \"{}\" SET TABLESPACE small",
            stage.destination.database
        ),
    ] {
        server.run(&sql).await?;
    }
    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
              INSERT INTO t SELECT g, repeat('t', 500) FROM generate_series(1, 4000) g; INSERT INTO u SELECT * FROM t")
        .await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;
    let destination = stage.destination.connect().await?;

    fill(&destination).await?;
    source
        .run("INSERT INTO t SELECT g, repeat('n', 500) FROM generate_series(5001, 8000) g; UPDATE u SET v = 'changed' || v")
        .await?;
    wait_for_room(&mirror, "RUNNING").await?;
    // Nobody's source waits for that disk.
    let lsn = source.current_lsn().await?;
    mirror
        .wait_until("captured", CONVERGE, |_, metrics| {
            let published = metrics["capture"]["published_lsn"].as_str();
            published.and_then(|text| text.parse::<Lsn>().ok()) >= Some(lsn)
        })
        .await?;
    destination.run("DROP TABLE filler").await?;
    let pairs = TablePair::all(&TABLES);
    stage.assert_converges(&mirror, &pairs).await?;

    fill(&destination).await?;
    let resync = api
        .post("/v1/mirrors/mirror/resync", json!({"strategy": "swap"}))
        .await?
        .expect(202)?;
    source.run("UPDATE t SET v = v || '.'").await?;
    wait_for_room(&mirror, "RESYNCING").await?;
    destination.run("DROP TABLE filler").await?;
    let resync = ended(&api, &mirror, &stage, &resync).await?;
    ensure!(resync["state"] == "done", "{resync}");
    stage.assert_converges(&mirror, &pairs).await?;
    stage.assert_topics_hold(&mirror, &pairs).await.map(drop)
}
