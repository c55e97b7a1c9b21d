//! Kafka as people run it, of several brokers: what one leads moves to another when it dies, and
//! with two of three away nothing is acknowledged that one disk alone would have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bunny_tests::cluster::{Cluster, NODES};
use bunny_tests::load::{self, Load};
use bunny_tests::services::Services;
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn brokers_die_one_after_the_other_and_two_at_once() -> Result<()> {
    let servers = Services::shared()?;
    let directory = servers.directory().join("cluster");
    let mut cluster = Cluster::start(&servers, &directory).await?;
    let services = Arc::new(servers.beside(cluster.brokers()));
    let stage = Stage::on(services, "cluster").await?;
    let mut processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 30_000).await?;
    // So that the first death comes in the middle of the copy.
    processes[0].restart_slowed_at_first(
        "capture::chunk_delivered",
        40,
        Duration::from_millis(250),
    )?;
    let load = Load::start(&stage.source, 2, 50);
    let options = json!({"snapshot_num_rows_per_partition": 500});
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, options)
        .await?;
    mirror
        .wait_until("in the middle of the copy", CONVERGE, |mirror, _| {
            mirror["current_phase"] == "SNAPSHOT"
                && mirror["tables"][0]["snapshot"]["chunks_done"].as_i64() > Some(0)
        })
        .await?;
    let changes = format!("{}.mirror.changes", stage.name);
    for round in 0..=NODES {
        // The one that leads what is written and read, and the others in turn.
        let node = match round {
            0 => cluster.leader_of(&changes).await?,
            _ => round - 1,
        };
        let killed = Instant::now();
        cluster.kill(node);
        if round == 0 {
            mirror.wait_running().await?;
        }
        load.advance(50).await;
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
        println!(
            "without node {node}: caught up {:?} after its death",
            killed.elapsed()
        );
        cluster.start_again(node)?;
        cluster.wait_in_step().await?;
    }

    let leader = cluster.leader_of(&changes).await?;
    let others: Vec<usize> = (0..NODES).filter(|node| *node != leader).collect();
    for node in &others {
        cluster.kill(*node);
    }
    load.advance(200).await;
    for node in &others {
        cluster.start_again(*node)?;
    }
    cluster.wait_in_step().await?;
    let back = Instant::now();
    load.advance(50).await;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    println!(
        "with two away: caught up {:?} after their return",
        back.elapsed()
    );

    load.stop().await;
    let alive = processes.iter_mut().all(|process| process.is_running());
    assert!(alive, "a process ended with a broker{}", stage.logs_tail());
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage
        .assert_topics_hold(&mirror, &load::pairs())
        .await
        .map(drop)
}
