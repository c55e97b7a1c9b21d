//! Servers that die and come back, connections that are cut or go silent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::database::{Session, Url};
use bunny_tests::load::{self, Load};
use bunny_tests::proxy::Proxy;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::{Value, json};

/// Some chunks have reached the destination, and some table has not got all of them.
fn is_being_copied(mirror: &Value) -> bool {
    let tables = || mirror["tables"].as_array().into_iter().flatten();
    let has_chunks = |table: &Value| table["snapshot"]["chunks_done"].as_i64() > Some(0);
    let waits_for_chunks =
        |table: &Value| table["status"] == "PENDING" || table["status"] == "SYNCING";
    mirror["current_phase"] == "SNAPSHOT"
        && tables().any(has_chunks)
        && tables().any(waits_for_chunks)
}

/// Kills a server in the middle of the snapshot and twice in the middle of streaming,
/// stops it once as an operator would, and starts it again each time.
async fn survives_the_death_of(server: Server, test: &str) -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), test).await?;
    let mut processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 30_000).await?;
    // So that the first death comes in the middle of the copy, however fast the machine is.
    processes[0].restart_slowed_at_first(
        "capture::chunk_delivered",
        40,
        Duration::from_millis(250),
    )?;
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
        .wait_until("in the middle of the copy", CONVERGE, |mirror, _| {
            is_being_copied(mirror)
        })
        .await?;
    for round in 0..4 {
        let now = mirror.get().await?;
        if round == 0 {
            ensure!(
                is_being_copied(&now),
                "not in the middle of the copy: {now}"
            );
        } else {
            ensure!(now["current_phase"] == "CDC", "in round {round}: {now}");
        }
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

#[cfg(feature = "full")]
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

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_dies_and_comes_back() -> Result<()> {
    survives_the_death_of(Server::Catalog, "out_catalog").await
}

/// A walsender that cannot pass on what it reads keeps its server from being shut down: after 30 s
/// without Kafka capture lets go of the source, and does not come back before Kafka does.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_the_source_is_let_go() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(45);
    const HELD: &str = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE active)
                             + (SELECT count(*) FROM pg_stat_replication)";
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "out_long").await?;
    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 1000).await?;
    let load = Load::start(&stage.source, 4, 100);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;

    let gone = Instant::now();
    services.kill(Server::Kafka).await?;
    let source = stage.source.connect().await?;
    ensure!(source.number(HELD).await? > 0, "nobody read the source");
    let mut let_go = None;
    while gone.elapsed() < AWAY {
        let is_held = source.number(HELD).await? > 0;
        match let_go {
            None if !is_held => let_go = Some(gone.elapsed()),
            Some(when) => ensure!(!is_held, "let go after {when:?} and taken again"),
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let when = let_go.context("the source is held on to")?;
    println!("let go {when:?} after Kafka's death");
    drop(source);
    // After 30 s of a fast shutdown it would be cut off.
    let stopping = Instant::now();
    let stopped = services.stop(Server::Source).await;
    let took = stopping.elapsed();
    services.start_again(Server::Source).await?;
    services.start_again(Server::Kafka).await?;
    stopped?;
    ensure!(took < Duration::from_secs(20), "it stopped after {took:?}");
    load.advance(50).await;
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
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

/// Makes the commits of sessions that ask for it wait for a standby that never answers.
async fn commits_wait(database: &Url, source: &Session) -> Result<()> {
    for sql in [
        "ALTER SYSTEM SET synchronous_commit = 'local'",
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        "SELECT pg_reload_conf()",
    ] {
        source.run(sql).await?;
    }
    // The server takes it over a moment later.
    for number in 0.. {
        let probe = database.connect().await?;
        probe.run("SET synchronous_commit = on").await?;
        let pid = probe.number("SELECT pg_backend_pid()").await?;
        let probing =
            tokio::spawn(
                async move { probe.run(&format!("CREATE TABLE probe_{number} ()")).await },
            );
        while !probing.is_finished() {
            if waits_for_standby(source, pid).await? {
                source
                    .run(&format!("SELECT pg_cancel_backend({pid})"))
                    .await?;
                probing.await??;
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn waits_for_standby(source: &Session, pid: i64) -> Result<bool> {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
    );
    Ok(source.number(&waiting).await? == 1)
}

async fn wait_number(session: &Session, question: &str, expected: i64) -> Result<()> {
    let deadline = Instant::now() + CONVERGE;
    loop {
        let number = session.number(question).await?;
        if number == expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{question}: {number}, not {expected}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The source writes a commit to its log before it shows what it did: here for as long as a
/// synchronous standby is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_in_the_log_and_not_visible() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "hidden").await?;
    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, r int DEFAULT 1); INSERT INTO t SELECT generate_series(1, 50);
              CREATE TABLE before (id int PRIMARY KEY, v text);
              CREATE TABLE unkeyed_1 (id int PRIMARY KEY, v text); INSERT INTO unkeyed_1 VALUES (1, 'v');
              CREATE TABLE unkeyed_2 (id int PRIMARY KEY, v text); INSERT INTO unkeyed_2 VALUES (1, 'v');")
        .await?;
    let options = json!({"schema_changes": "all"});
    let tables = [
        "public.t",
        "public.before",
        "public.unkeyed_1",
        "public.unkeyed_2",
    ];
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, options)
        .await?;
    mirror.wait_running().await?;
    source.run("UPDATE t SET r = 2 WHERE id < 9").await?;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;

    commits_wait(&stage.source, &source).await?;
    let waiting = stage.source.connect().await?;
    waiting.run("SET synchronous_commit = on").await?;
    let pid = waiting.number("SELECT pg_backend_pid()").await?;
    let altering = tokio::spawn(async move {
        waiting
            .run("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO before SELECT g, 'v' FROM generate_series(1, 15000) g; COMMIT;
                  ALTER TABLE t DROP r; ALTER TABLE t ADD r text DEFAULT 'again'; DELETE FROM t WHERE id = 7")
            .await
    });
    mirror
        .wait_until("said to be hidden", CONVERGE, |mirror, _| {
            mirror["messages"]
                .to_string()
                .contains("synchronous standby")
        })
        .await?;
    // What came before it waits for nothing, not even in a transaction of Kafka.
    let destination = stage.destination.connect().await?;
    wait_number(&destination, "SELECT count(*) FROM before", 15_000).await?;
    // Nor do tables whose updates the source refuses until they are moved; what is found of the
    // first of them waits for the stream.
    for table in ["unkeyed_1", "unkeyed_2"] {
        source
            .run(&format!("ALTER TABLE {table} DROP CONSTRAINT {table}_pkey"))
            .await?;
        let refusing = format!(
            "SELECT count(*) FROM pg_publication_tables JOIN pg_publication USING (pubname) WHERE tablename = '{table}' AND pubupdate"
        );
        wait_number(&source, &refusing, 0).await?;
        source.run(&format!("UPDATE {table} SET v = 'w'")).await?;
    }
    assert!(waits_for_standby(&source, pid).await?);
    source
        .run(&format!("SELECT pg_cancel_backend({pid})"))
        .await?;
    altering.await??;
    source.run("UPDATE t SET r = 'after' WHERE id > 40").await?;
    stage
        .assert_converges(&mirror, &[TablePair::same("public.t")])
        .await
}
