//! Servers that die and come back, connections that are cut or go silent.

use std::time::{Duration, Instant};

use anyhow::Result;
use bunny_tests::bunny::Role;
use bunny_tests::load::{self, Load};
use bunny_tests::proxy::Proxy;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;

/// Kills a server in the middle of the snapshot and twice in the middle of streaming,
/// stops it once as an operator would, and starts it again each time.
async fn survives_the_death_of(server: Server, test: &str) -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), test).await?;
    let mut processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 30_000).await?;
    let load = Load::start(&stage.source, 2, 50);
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &load::TABLES,
            json!({"snapshot_num_rows_per_partition": 500}),
        )
        .await?;
    mirror
        .wait_until("SNAPSHOT", CONVERGE, |mirror, _| {
            mirror["status"] == "SNAPSHOT" || mirror["status"] == "RUNNING"
        })
        .await?;
    for round in 0..4 {
        if round == 3 {
            services.stop(server).await?;
        } else {
            services.kill(server).await?;
        }
        // Long enough for connections to be refused, not only cut.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        services.start_again(server).await?;
        let back = Instant::now();
        if round == 0 {
            mirror.wait_running().await?;
        } else {
            let lsn = stage.source.connect().await?.current_lsn().await?;
            mirror.wait_for_lsn(lsn).await?;
            load.advance(50).await;
        }
        println!(
            "{server:?}: caught up {:?} after its return",
            back.elapsed()
        );
    }
    let alive = processes.iter_mut().all(|process| process.is_running());
    assert!(
        alive,
        "a process ended with its server{}",
        stage.logs_tail()
    );
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_dies_and_comes_back() -> Result<()> {
    survives_the_death_of(Server::Source, "out_source").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_dies_and_comes_back() -> Result<()> {
    survives_the_death_of(Server::Destination, "out_destination").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_dies_and_comes_back() -> Result<()> {
    survives_the_death_of(Server::Kafka, "out_kafka").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_dies_and_comes_back() -> Result<()> {
    survives_the_death_of(Server::Catalog, "out_catalog").await
}

/// Everything between bunny and the two databases goes through proxies that misbehave.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut_refused_and_frozen() -> Result<()> {
    let stage = Stage::new("cut").await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    let to_source = Proxy::start(&format!("127.0.0.1:{}", stage.source.port)).await?;
    let to_destination = Proxy::start(&format!("127.0.0.1:{}", stage.destination.port)).await?;
    stage
        .create_peers_at(&api, to_source.port(), to_destination.port())
        .await?;
    load::create_tables(&stage.source.connect().await?, 10_000).await?;
    let load = Load::start(&stage.source, 2, 50);
    let mirror = stage
        .create_mirror(
            &api,
            "mirror",
            &load::TABLES,
            json!({"snapshot_num_rows_per_partition": 500}),
        )
        .await?;
    for round in 0..12u32 {
        let pause = 150 + u64::from(round) * 70;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match round % 6 {
            0 | 3 => to_source.cut(),
            1 | 4 => to_destination.cut(),
            2 => to_source.refuse(),
            _ => to_destination.refuse(),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        to_source.heal();
        to_destination.heal();
    }
    mirror.wait_running().await?;
    // Silence shorter than any time-out: nothing may be lost when it ends.
    for proxy in [&to_source, &to_destination] {
        proxy.freeze();
        load.advance(30).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        proxy.heal();
    }
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}
