//! What takes too long for every change: memory bounds at a million rows, soak.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::Bunny;
use bunny_tests::content::TablePair;
use bunny_tests::load::{self, Load};
use bunny_tests::services::Services;
use bunny_tests::stage::Stage;
use serde_json::json;

const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(600);

/// Invariant I5: neither the table's size nor the transaction's shows in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_rows_copied_and_streamed_in_bounded_memory() -> Result<()> {
    let stage = Stage::new("memory").await?;
    let [mut capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id bigint PRIMARY KEY, a text, b numeric, c timestamptz);
              INSERT INTO t SELECT g, md5(g::text) || md5((g + 1)::text), g / 3.0, now() FROM generate_series(1, 1000000) g; ANALYZE t;")
        .await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &["public.t"], json!({}))
        .await?;
    mirror
        .wait_until("RUNNING", LIMIT, |mirror, _| mirror["status"] == "RUNNING")
        .await?;
    let pairs = [TablePair::same("public.t")];
    stage.assert_converges(&mirror, &pairs).await?;
    report_and_check("copying 1M rows", &capture, &apply)?;

    // Peaks are per process: fresh ones for the second half.
    capture.restart()?;
    apply.restart()?;
    source
        .run("INSERT INTO t SELECT g, md5(g::text) || md5((g + 1)::text), g / 3.0, now() FROM generate_series(1000001, 2000000) g")
        .await?;
    mirror
        .wait_for_lsn_within(source.current_lsn().await?, LIMIT)
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;
    report_and_check("streaming one transaction of 1M rows", &capture, &apply)
}

fn report_and_check(what: &str, capture: &Bunny, apply: &Bunny) -> Result<()> {
    for (name, process) in [("capture", capture), ("apply", apply)] {
        let peak = process.peak_memory_bytes()?;
        println!("{what}: {name} peaked at {} MiB", peak >> 20);
        assert!(
            peak < MEMORY_BYTES_MAX,
            "{name} used {peak} bytes while {what}"
        );
    }
    Ok(())
}

/// Ten minutes of writes while every process is killed in turn.
#[tokio::test(flavor = "multi_thread")]
async fn soak_under_kills() -> Result<()> {
    let stage = Stage::new("soak").await?;
    let mut processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    load::create_tables(&stage.source.connect().await?, 50_000).await?;
    let load = Load::start(&stage.source, 4, 50);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    for round in 0..120 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        processes[round % 3].restart()?;
    }
    load.stop().await;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}

const PAUSE: Duration = Duration::from_secs(300);
const PAUSE_WAL_BYTES: u64 = 1 << 30;
const RETAINED_BYTES_MAX: i64 = 64 << 20;

/// A long pause under load leaves no WAL behind at the source: at least five minutes and 1 GB of
/// it, sampled each second. Postgres moves `restart_lsn` only with the records of running
/// transactions that it logs every 15 s, and to the one before while transactions are open: about
/// 30 s of WAL stay whatever capture confirms (measured: 122 MB at 4 MB/s). So the load is paced.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_pause_keeps_no_wal_at_the_source() -> Result<()> {
    // What others write to the same server is retained as well: this one has it to itself.
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services, "long_pause").await?;
    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 1000).await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;
    let load = Load::start(&stage.source, 2, 30);
    let asked = std::time::Instant::now();
    api.post("/v1/mirrors/mirror/pause", json!({}))
        .await?
        .expect(202)?;
    mirror
        .wait_until("PAUSED", LIMIT, |mirror, _| mirror["status"] == "PAUSED")
        .await?;
    println!("PAUSED {:?} after it was asked for", asked.elapsed());

    let began = source.current_lsn().await?;
    let started = std::time::Instant::now();
    let (mut samples, mut retained_max, mut written) = (0, 0, 0);
    while started.elapsed() < PAUSE || written < PAUSE_WAL_BYTES {
        source
            .run("INSERT INTO journal SELECT 77, g, repeat(md5(g::text), 30), now() FROM generate_series(1, 1200) g")
            .await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let retained = source
            .number("SELECT max(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn))::int8 FROM pg_replication_slots WHERE database = current_database()")
            .await?;
        written = source.current_lsn().await?.0 - began.0;
        retained_max = retained_max.max(retained);
        samples += 1;
    }
    println!(
        "paused {:?}: {written} bytes of WAL written, at most {retained_max} retained in {samples} samples",
        started.elapsed()
    );
    assert!(
        retained_max <= RETAINED_BYTES_MAX,
        "{retained_max} bytes of WAL retained"
    );

    load.stop().await;
    api.post("/v1/mirrors/mirror/resume", json!({}))
        .await?
        .expect(202)?;
    mirror
        .wait_for_lsn_within(source.current_lsn().await?, LIMIT)
        .await?;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}

const MIB: usize = 1 << 20;

/// The largest values: through the snapshot and through the stream. COPY writes a bytea as two
/// digits a byte, so that one of 32 MiB is just too large for the snapshot's 64 MiB a row; the
/// stream, which sends the bytes themselves, carries it.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_32_mib_arrive_and_larger_ones_are_named() -> Result<()> {
    let stage = Stage::new("huge").await?;
    let _processes = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    source
        .run(&format!(
            "CREATE TABLE huge (id int PRIMARY KEY, t text, b bytea, n int);
             ALTER TABLE huge ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
             CREATE TABLE small (id int PRIMARY KEY, v text);
             INSERT INTO huge VALUES (1, repeat('0123456789abcdé', {text}), NULL, 0), (2, NULL, decode(repeat('00ff5c0a', {bytes}), 'hex'), 0);
             INSERT INTO small VALUES (1, 'v');",
            text = 32 * MIB / 16,
            bytes = 31 * MIB / 4,
        ))
        .await?;
    let mirror = stage
        .create_mirror(&api, "mirror", &["public.huge", "public.small"], json!({}))
        .await?;
    let pairs = TablePair::all(&["public.huge", "public.small"]);
    mirror
        .wait_until("RUNNING", LIMIT, |mirror, _| mirror["status"] == "RUNNING")
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;
    source
        .run(&format!(
            "INSERT INTO huge VALUES (3, repeat('fedcba987654321\\', {text}), NULL, 0);
             INSERT INTO huge VALUES (4, NULL, decode(repeat('00ff5c0a', {bytes}), 'hex'), 0);
             UPDATE huge SET n = n + 1; UPDATE huge SET t = t || 'x' WHERE id = 1; DELETE FROM huge WHERE id = 2;",
            text = 32 * MIB / 16,
            bytes = 32 * MIB / 4,
        ))
        .await?;
    mirror
        .wait_for_lsn_within(source.current_lsn().await?, LIMIT)
        .await?;
    stage.assert_converges(&mirror, &pairs).await?;

    // Beyond the limit of an event: the table is named, the others go on.
    source
        .run(&format!(
            "INSERT INTO huge VALUES (5, repeat('0123456789abcdef', {}), NULL, 0); INSERT INTO small VALUES (2, 'w');",
            65 * MIB / 16
        ))
        .await?;
    mirror
        .wait_until("huge ERRORED", LIMIT, |mirror, _| {
            let tables = mirror["tables"].as_array().into_iter().flatten();
            let mut huge = tables.filter(|table| table["source_table"] == "public.huge");
            huge.any(|table| {
                table["status"] == "ERRORED"
                    && table["error_message"]
                        .to_string()
                        .contains("over the limit")
            })
        })
        .await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&["public.small"]))
        .await?;
    // Beyond that of a row in a snapshot.
    let wide = stage
        .create_mapped_mirror(
            &api,
            "wide",
            json!([{"source_table": "public.huge", "destination_table": "public.wide"}]),
            json!({}),
        )
        .await?;
    wide.wait_until("wide ERRORED", LIMIT, |mirror, _| {
        mirror["tables"][0]["status"] == "ERRORED"
            && mirror.to_string().contains("as COPY text, the limit is")
    })
    .await
}
