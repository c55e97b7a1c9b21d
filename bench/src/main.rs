//! `make bench`: workloads through BunnyDB and through native logical replication, on the
//! same servers, in turn, in the same run.
//!
//! Figures of a shared machine wander; ratios within a run, and CPU time a row, wander
//! less. Contents are compared after every round.

mod ceiling;
mod cpu;
mod drains;
mod ground;
mod growth;
mod latency;
mod mirror;
mod native;
mod report;
mod settings;
mod snapshot;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bunny_tests::services::{Services, repository};
use clap::{Parser, ValueEnum};

use crate::ground::Ground;
use crate::report::Report;
use crate::workload::Workload;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Drains,
    Snapshot,
    Latency,
    Growth,
}

/// Workloads through BunnyDB and native logical replication, side by side.
#[derive(Debug, Parser)]
struct Cli {
    /// What to measure; everything if not given.
    #[arg(value_enum)]
    measures: Vec<Measure>,
    /// Size of the workloads: 1 is the full size.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Without what comes before the first round and is not counted: a tenth of every backlog of
    /// the drains, the first size of the growth.
    #[arg(long)]
    no_warm_up: bool,
    /// Rounds of each measure; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only these backlogs.
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Only these drain the backlogs.
    #[arg(long, value_enum, value_delimiter = ',')]
    parties: Vec<drains::Party>,
    /// max_batch_size of the live mirrors.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    batches: Vec<u32>,
    /// max_batch_size of the mirror that is applied from a filled log.
    #[arg(long, default_value_t = 10_000)]
    log_batch: u32,
    /// Transactions a second of the latency measure.
    #[arg(long, value_delimiter = ',', default_value = "10,1000")]
    rates: Vec<u32>,
    /// Seconds a latency is measured for.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// How many tables the growth measure gives a mirror.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100", value_parser = clap::value_parser!(u64).range(1..))]
    tables: Vec<u64>,
    /// How many mirrors the growth measure runs in one process.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u64).range(1..))]
    mirrors: Vec<u64>,
    /// Events in the backlogs of the growth measure at full size.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,10000000", value_parser = clap::value_parser!(u64).range(1..))]
    backlogs: Vec<u64>,
    #[command(flatten)]
    settings: settings::Settings,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let services = match std::env::var_os("BUNNY_TEST_SERVICES") {
        Some(_) => Services::shared()?,
        None => Arc::new(Services::start_in(repository().join(".local/bench"))?),
    };
    let wanted = |measure| cli.measures.is_empty() || cli.measures.contains(&measure);
    let mut report = Report::default();
    conditions(&mut report, &services, cli).await?;
    if wanted(Measure::Drains) {
        let mut ground = Ground::new(services.clone(), "bench_drains", cli.settings).await?;
        let plan = drains::Plan {
            workloads: workloads(cli)?,
            parties: cli.parties.clone(),
            rounds: cli.rounds,
            scale: cli.scale,
            warm_up: !cli.no_warm_up,
            batches: cli.batches.clone(),
            log_batch: cli.log_batch,
        };
        report.laps.extend(drains::run(&mut ground, &plan).await?);
    }
    if wanted(Measure::Snapshot) {
        let mut ground = Ground::new(services.clone(), "bench_snapshot", cli.settings).await?;
        let laps = snapshot::run(&mut ground, cli.rounds, cli.scale).await?;
        report.laps.extend(laps);
    }
    if wanted(Measure::Latency) {
        let mut ground = Ground::new(services.clone(), "bench_latency", cli.settings).await?;
        let found = latency::run(&mut ground, &cli.rates, cli.seconds, cli.rounds).await?;
        report.latencies.extend(found);
    }
    if wanted(Measure::Growth) {
        let mut ground = Ground::new(services.clone(), "bench_growth", cli.settings).await?;
        let plan = growth::Plan {
            tables: cli.tables.clone(),
            mirrors: cli.mirrors.clone(),
            events: cli.backlogs.clone(),
            rounds: cli.rounds,
            scale: cli.scale,
            warm_up: !cli.no_warm_up,
        };
        report.growth = growth::run(&mut ground, &plan).await?;
        report.growth_figures = growth::figures(&report.growth);
    }
    println!("{}", report.table());
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Ok(services) = Arc::try_unwrap(services)
        && std::env::var_os("BUNNY_TEST_SERVICES").is_none()
    {
        services.end()?;
    }
    Ok(())
}

/// The backlogs that are asked for.
fn workloads(cli: &Cli) -> Result<Vec<Workload>> {
    if cli.workloads.is_empty() {
        return Ok(Workload::ALL.to_vec());
    }
    let changes = [Workload::Updates, Workload::Deletes];
    let has_rows = cli.workloads.contains(&Workload::Inserts);
    if !has_rows && let Some(changes) = changes.iter().find(|one| cli.workloads.contains(one)) {
        bail!("{changes:?} change what inserts writes: name both in --workloads");
    }
    Ok(cli.workloads.clone())
}

async fn conditions(report: &mut Report, services: &Services, cli: &Cli) -> Result<()> {
    let source = services.source.connect().await?;
    for name in [
        "server_version",
        "shared_buffers",
        "fsync",
        "synchronous_commit",
    ] {
        let value = source.text(&format!("SHOW {name}")).await?;
        report.conditions.insert(name.to_owned(), value);
    }
    let cores = std::thread::available_parallelism()?;
    for (name, value) in [
        ("cores", cores.to_string()),
        ("scale", cli.scale.to_string()),
        ("rounds", cli.rounds.to_string()),
    ] {
        report.conditions.insert(name.to_owned(), value);
    }
    report.conditions.extend(cli.settings.conditions());
    Ok(())
}
