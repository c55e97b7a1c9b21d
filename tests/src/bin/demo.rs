//! `make demo`: a pgbench database is copied and followed through Kafka into a second
//! Postgres, by way of the REST API, and both are compared row by row at the end.
//!
//! Starts everything it needs under `.local/demo` and stops all of it, however it ends.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::{self, Bunny, Role};
use bunny_tests::content::{self, TablePair, qualified};
use bunny_tests::database::Url;
use bunny_tests::lsn::Lsn;
use bunny_tests::pgbench;
use bunny_tests::ports::free_port;
use bunny_tests::services::{Services, repository};
use serde_json::{Value, json};

const SCALE: u32 = 10;
const LOAD_SECONDS: u32 = 20;
const CLIENTS: u32 = 4;
const API_PORT: u16 = 8112;
const LIMIT: Duration = Duration::from_secs(300);
const MIRROR: &str = "demo";
const ADMIN_PASSWORD: &str = "demo-only-password";

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let started = Instant::now();
    say("starting Postgres (source, destination, catalog) and Kafka in .local/demo");
    let services = Arc::new(Services::start_in(repository().join(".local/demo"))?);
    let log = services.directory().join("bunny.log");
    let api_port = api_port();
    let bunny = Bunny::start(
        &services,
        Role::Up,
        settings(&services, api_port),
        log.clone(),
    )?;
    let outcome = mirror_pgbench(&services, api_port).await;
    if outcome.is_err() {
        eprintln!("\nbunny's log ends:\n{}", bunny::file_tail(&log, 30));
    }
    say("stopping everything");
    drop(bunny);
    if let Ok(services) = Arc::try_unwrap(services) {
        services.end()?;
    }
    outcome?;
    say(&format!(
        "done in {:.0} s. To keep a stack running and play with it: make up",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn mirror_pgbench(services: &Services, api_port: u16) -> Result<()> {
    let mut api = Api::new(&format!("http://127.0.0.1:{api_port}"))?;
    api.wait_ready(Duration::from_secs(60)).await?;
    api.login("admin", ADMIN_PASSWORD).await?;
    say(&format!("bunny is up; its REST API is {}", api.base()));

    for (name, url) in [
        ("source_db", &services.source),
        ("dest_db", &services.destination),
    ] {
        create_peer(&api, name, url).await?;
    }
    say(&format!("filling the source with pgbench, scale {SCALE}"));
    pgbench::initialise(&services.source, SCALE).await?;

    let load = create_mirror_and_watch(&api).await?;
    say(&format!(
        "snapshot done: {} rows in {:.1} s, {} rows/s; the mirror follows",
        load.rows,
        load.seconds,
        thousands(load.rows as f64 / load.seconds)
    ));

    say(&format!(
        "pgbench writes for {LOAD_SECONDS} s with {CLIENTS} clients, as fast as it can"
    ));
    let source = services.source.clone();
    let writing =
        tokio::spawn(async move { pgbench::run_load(&source, CLIENTS, LOAD_SECONDS, None).await });
    while !writing.is_finished() {
        show_lag(&metrics(&api).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let transactions = pgbench::transactions(&writing.await??).unwrap_or_default();
    end_line();

    let drained = drain(&api, &services.source).await?;
    say(&format!(
        "pgbench committed {transactions} transactions ({:.0}/s); all of them were at the destination {:.1} s after the last",
        transactions as f64 / f64::from(LOAD_SECONDS),
        drained.as_secs_f64()
    ));
    compare(services).await
}

async fn create_peer(api: &Api, name: &str, url: &Url) -> Result<()> {
    let peer = json!({
        "name": name, "host": url.host, "port": url.port, "user": url.user,
        "password": url.password, "database": url.database, "ssl_mode": "disable",
    });
    api.post("/v1/peers", peer).await?.expect(201)?;
    let test = api
        .post(&format!("/v1/peers/{name}/test"), json!({}))
        .await?
        .expect(200)?;
    ensure!(test["success"] == true, "peer {name}: {test}");
    say(&format!(
        "peer {name}: {}",
        test["version"].as_str().unwrap_or("")
    ));
    Ok(())
}

struct InitialLoad {
    rows: u64,
    seconds: f64,
}

/// Creates the mirror and shows the snapshot's progress until it follows the source.
async fn create_mirror_and_watch(api: &Api) -> Result<InitialLoad> {
    let mappings: Vec<Value> = pgbench::TABLES
        .iter()
        .map(|table| json!({"source_table": table, "destination_table": table}))
        .collect();
    let body = json!({
        "name": MIRROR, "source_peer": "source_db", "destination_peer": "dest_db",
        "table_mappings": mappings,
        // Small chunks, so that there is progress to watch.
        "snapshot_num_rows_per_partition": 50_000,
    });
    let started = Instant::now();
    let answer = api.post("/v1/mirrors", body).await?.expect(201)?;
    say(answer["message"].as_str().unwrap_or("mirror created"));
    loop {
        let mirror = get(api, "").await?;
        let status = mirror["status"].as_str().unwrap_or("?").to_owned();
        let sum = |field: &str| -> u64 {
            let tables = mirror["tables"].as_array().into_iter().flatten();
            tables
                .filter_map(|table| table["snapshot"][field].as_u64())
                .sum()
        };
        let (rows, estimate) = (sum("rows_done"), sum("rows_estimate"));
        if status == "RUNNING" {
            end_line();
            let seconds = started.elapsed().as_secs_f64();
            let rows = metrics(api).await?["total_rows_synced"]
                .as_u64()
                .unwrap_or(rows);
            return Ok(InitialLoad { rows, seconds });
        }
        ensure!(status != "FAILED", "the mirror failed: {mirror}");
        ensure!(
            started.elapsed() < LIMIT,
            "no end of the snapshot: {mirror}"
        );
        show_progress(&status, rows, estimate);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until everything the source has committed is applied and the lag is 0.
async fn drain(api: &Api, source: &Url) -> Result<Duration> {
    let started = Instant::now();
    let target = source.connect().await?.current_lsn().await?;
    loop {
        let metrics = metrics(api).await?;
        let applied: Option<Lsn> = metrics["apply"]["applied_lsn"]
            .as_str()
            .and_then(|text| text.parse().ok());
        if applied.is_some_and(|applied| applied >= target) && metrics["lag_bytes"] == 0 {
            end_line();
            return Ok(started.elapsed());
        }
        ensure!(
            started.elapsed() < LIMIT,
            "the lag does not go to 0: {metrics}"
        );
        show_lag(&metrics);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Full contents of every table on both sides.
async fn compare(services: &Services) -> Result<()> {
    let source = services.source.connect().await?;
    let destination = services.destination.connect().await?;
    say("comparing full contents of every table");
    for pair in TablePair::all(&pgbench::TABLES) {
        content::assert_same(&source, &destination, std::slice::from_ref(&pair)).await?;
        let columns = content::columns(&source, &pair).await?;
        let print = content::fingerprint(&source, &qualified(&pair.source), &columns).await?;
        println!("  {:<20} same on both sides: {print}", pair.source.1);
    }
    Ok(())
}

async fn get(api: &Api, path: &str) -> Result<Value> {
    api.get(&format!("/v1/mirrors/{MIRROR}{path}"))
        .await?
        .expect(200)
        .context("asking for the mirror")
}

async fn metrics(api: &Api) -> Result<Value> {
    get(api, "/metrics").await
}

/// The documented port if it is free.
fn api_port() -> u16 {
    match std::net::TcpListener::bind(("127.0.0.1", API_PORT)) {
        Ok(_) => API_PORT,
        Err(_) => free_port(),
    }
}

fn settings(services: &Services, api_port: u16) -> Vec<(String, String)> {
    let key = "ZGVtby1vbmx5LWtleS1uZXZlci11c2UtZWxzZXdoZXI=";
    [
        ("BUNNY_CATALOG_URL", services.catalog.to_string()),
        ("BUNNY_KAFKA_BROKERS", services.brokers.clone()),
        ("BUNNY_LISTEN", format!("127.0.0.1:{api_port}")),
        ("BUNNY_ENCRYPTION_KEY", key.to_owned()),
        ("BUNNY_ADMIN_USER", "admin".to_owned()),
        ("BUNNY_ADMIN_PASSWORD", ADMIN_PASSWORD.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

// --- What is shown ---------------------------------------------------------------------

fn say(text: &str) {
    println!("==> {text}");
}

/// A line that the next one overwrites on a terminal; elsewhere a plain line, unless it
/// says what the last one said.
fn show(text: &str) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let mut out = std::io::stdout();
    // A closed pipe must not end the demo half way.
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K    {text}");
    } else if let Ok(mut last) = LAST.lock()
        && *last != text
    {
        let _ = writeln!(out, "    {text}");
        text.clone_into(&mut last);
    }
    let _ = out.flush();
}

fn end_line() {
    if std::io::stdout().is_terminal() {
        println!();
    }
}

fn show_progress(status: &str, rows: u64, estimate: u64) {
    const WIDTH: usize = 40;
    let Some(share) = (rows * 100).checked_div(estimate) else {
        return show(status);
    };
    let share = share.min(100) as usize;
    let filled = share * WIDTH / 100;
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
    show(&format!(
        "{status:<8} [{bar}] {share:>3} %  {rows} of about {estimate} rows"
    ));
}

fn show_lag(metrics: &Value) {
    show(&format!(
        "{}/{}  lag {} bytes, {:.1} s, {} events",
        metrics["status"].as_str().unwrap_or("?"),
        metrics["current_phase"].as_str().unwrap_or("?"),
        metrics["lag_bytes"],
        metrics["lag_seconds"].as_f64().unwrap_or_default(),
        metrics["apply"]["lag_events"]
    ));
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
