//! SIGTERM: within 10 s, by an orderly end and not by the limit that cuts it off, whatever a role
//! is doing and whoever does not answer it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::{Bunny, Role};
use bunny_tests::load::{self, Load};
use bunny_tests::proxy::Proxy;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Mirror, Stage};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::scene::Scene;

const LIMIT: Duration = Duration::from_secs(10);

/// So long that only leases given back are free in time.
const LONG_LEASES: (&str, &str) = ("BUNNY_LEASE_TTL_SECONDS", "200");

/// What an end says that was cut off.
const CUT_OFF: [&str; 4] = [
    "leaving anyway",
    "cut off",
    "leases run out by themselves",
    "leaving at once",
];

const LEASES_HELD: &str = "SELECT count(*) FROM bunny.leases WHERE expires_at > clock_timestamp()";

/// Ends as it should.
async fn drains(process: &mut Bunny) -> Result<()> {
    let status = process.sigterm(LIMIT).await?;
    let log = process.log_of_this_run()?;
    let end = log
        .split_once("stopping")
        .with_context(|| format!("it does not say that it stops: {log}"))?
        .1;
    ensure!(
        status.success() && !CUT_OFF.iter().any(|line| end.contains(line)),
        "{status}, and after the signal: {end}"
    );
    Ok(())
}

/// All at once end as they should, and hold no lease any more.
async fn all_drain(processes: &mut [Bunny; 3], stage: &Stage, doing: &str) -> Result<()> {
    let [one, two, three] = processes;
    tokio::try_join!(drains(one), drains(two), drains(three)).with_context(|| doing.to_owned())?;
    ensure!(
        stage.catalog.connect().await?.number(LEASES_HELD).await? == 0,
        "{doing}: a lease was not given back"
    );
    Ok(())
}

fn start(stage: &Stage) -> Result<[Bunny; 3]> {
    stage.migrate()?;
    let start = |role| stage.start_with(role, &[LONG_LEASES]);
    Ok([
        start(Role::Capture)?,
        start(Role::Apply)?,
        start(Role::Api)?,
    ])
}

async fn mirror(stage: &Stage, api: &bunny_tests::api::Api) -> Result<Mirror> {
    let options = json!({"snapshot_num_rows_per_partition": 500, "max_batch_size": 100});
    stage
        .create_mirror(api, "mirror", &load::TABLES, options)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_cleanly() -> Result<()> {
    let mut scene = Scene::new("sigterm").await?;
    scene.bunny.kill9();
    scene.bunny = scene.stage.start_with(Role::Up, &[LONG_LEASES])?;
    scene.api = scene.stage.api().await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    scene
        .source
        .run("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 20000) g")
        .await?;
    drains(&mut scene.bunny).await?;
    let catalog = scene.stage.catalog.connect().await?;
    assert_eq!(catalog.number(LEASES_HELD).await?, 0);

    // The leases were given back: nobody waits for them to run out.
    scene.bunny = scene.stage.start(Role::Up)?;
    scene.api = scene.stage.api().await?;
    let pairs = [bunny_tests::content::TablePair::same("public.t")];
    scene.assert_holds(&mirror, &pairs).await
}

/// While tables are copied, while changes are followed, and while one of the databases is silent.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_every_role_whatever_it_is_doing() -> Result<()> {
    let stage = Stage::new("sigterm_roles").await?;
    let mut processes = start(&stage)?;
    let api = stage.api().await?;
    let to_source = Proxy::start(&format!("127.0.0.1:{}", stage.source.port)).await?;
    let to_destination = Proxy::start(&format!("127.0.0.1:{}", stage.destination.port)).await?;
    stage
        .create_peers_at(&api, to_source.port(), to_destination.port())
        .await?;
    load::create_tables(&stage.source.connect().await?, 10_000).await?;
    processes[0].restart_slowed("capture::chunk_delivered", Duration::from_millis(200))?;
    let load = Load::start(&stage.source, 2, 50);
    let mirror = mirror(&stage, &api).await?;
    mirror
        .wait_until("being copied", CONVERGE, |mirror, _| {
            let tables = mirror["tables"].as_array();
            mirror["current_phase"] == "SNAPSHOT"
                && tables.is_some_and(|tables| {
                    let loaded = |table: &serde_json::Value| table["rows_synced"].as_i64();
                    tables.iter().filter_map(loaded).sum::<i64>() > 0
                })
        })
        .await?;
    all_drain(&mut processes, &stage, "copying").await?;

    for process in &mut processes {
        process.restart()?;
    }
    mirror.wait_running().await?;
    load.advance(50).await;
    all_drain(&mut processes, &stage, "following changes").await?;

    for (silent, doing) in [
        (&to_destination, "with a silent destination"),
        (&to_source, "with a silent source"),
    ] {
        for process in &mut processes {
            process.restart()?;
        }
        let lsn = stage.source.connect().await?.current_lsn().await?;
        mirror.wait_for_lsn(lsn).await?;
        silent.freeze();
        load.advance(100).await;
        let drained = all_drain(&mut processes, &stage, doing).await;
        silent.heal();
        drained?;
    }

    // Nor does anyone answer those who come.
    to_source.freeze();
    to_destination.freeze();
    for process in &mut processes {
        process.restart()?;
    }
    let catalog = stage.catalog.connect().await?;
    let deadline = Instant::now() + CONVERGE;
    while catalog.number(LEASES_HELD).await? < 2 {
        ensure!(Instant::now() < deadline, "{}", stage.logs_tail());
        sleep(Duration::from_millis(50)).await;
    }
    let drained = all_drain(&mut processes, &stage, "coming to silent databases").await;
    to_source.heal();
    to_destination.heal();
    drained?;

    for process in &mut processes {
        process.restart()?;
    }
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_every_role_with_kafka_away() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "sigterm_kafka").await?;
    let mut processes = start(&stage)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 1000).await?;
    let load = Load::start(&stage.source, 2, 50);
    let mirror = mirror(&stage, &api).await?;
    mirror.wait_running().await?;
    services.kill(Server::Kafka).await?;
    load.advance(100).await;
    let drained = all_drain(&mut processes, &stage, "with Kafka away").await;
    // And before they have seen it once.
    let mut unseen = Ok(());
    if drained.is_ok() {
        for process in &mut processes {
            process.restart()?;
        }
        load.advance(100).await;
        unseen = all_drain(&mut processes, &stage, "started without Kafka").await;
    }
    services.start_again(Server::Kafka).await?;
    drained?;
    unseen?;
    for process in &mut processes {
        process.restart()?;
    }
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}
