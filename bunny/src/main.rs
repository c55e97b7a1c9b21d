//! `bunny`: one binary, every role a subcommand. Reads settings, starts roles,
//! and ends within 10 s of SIGTERM or SIGINT.

mod cli;
mod config;
mod exit;
mod keys;
mod roles;
mod tail;
mod telemetry;

use std::time::Duration;

use bunny_catalog::EncryptionKey;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use cli::Task;
use config::Layers;
use exit::Exit;

/// How it behaves is said in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// From the signal to the end, whatever still runs.
const SHUTDOWN_MAX: Duration = Duration::from_secs(9);

fn main() {
    // Before anything can open a connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();

    let matches = cli::command().get_matches();
    let code = match start(&matches) {
        Ok(()) => 0,
        Err(exit) => {
            eprintln!("bunny: {exit}");
            exit.code()
        }
    };
    // Not by returning: a thread of librdkafka may still wait for a broker.
    std::process::exit(code);
}

fn start(matches: &clap::ArgMatches) -> Result<(), Exit> {
    let Some((task, flags)) = cli::task(matches) else {
        return Err(Exit::setting("no task: see bunny --help"));
    };
    if task == Task::Keygen {
        println!("{}", EncryptionKey::generate().to_base64().as_str());
        return Ok(());
    }
    let layers = cli::layers(flags)?;
    let tail = match task {
        Task::Tail => Some(tail::Options::read(flags)?),
        _ => None,
    };
    let logging = match task {
        Task::Tail => config::logging_or(&layers, config::LOG_QUIET)?,
        _ => config::logging(&layers)?,
    };
    telemetry::log(&logging)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::failed(format!("no threads to work with: {error}")))?;
    let outcome = runtime.block_on(supervised(task, tail, &layers));
    runtime.shutdown_background();
    outcome
}

async fn supervised(task: Task, tail: Option<tail::Options>, layers: &Layers) -> Result<(), Exit> {
    let failed = |error| Exit::failed(format!("signals cannot be received: {error}"));
    let terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let cancel = CancellationToken::new();
    let work = async {
        if let Some(options) = tail {
            return tail::run(options, layers, cancel.clone()).await;
        }
        match task {
            Task::Migrate => roles::migrate(layers, cancel.clone()).await,
            Task::RotateKey => keys::rotate(layers, cancel.clone()).await,
            Task::LoseKey => keys::lose(layers, cancel.clone()).await,
            task => Box::pin(roles::run(task, layers, cancel.clone())).await,
        }
    };
    tokio::select! {
        outcome = work => outcome,
        never = stop_on_signal(terminate, interrupt, cancel.clone()) => match never {},
    }
}

/// Passes the first signal on; a second one ends the process at once.
async fn stop_on_signal(
    mut terminate: Signal,
    mut interrupt: Signal,
    cancel: CancellationToken,
) -> std::convert::Infallible {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    cancel.cancel();
    bound_shutdown();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("bunny: told twice to stop, leaving at once");
    std::process::exit(1);
}

/// A thread of its own, so that it counts even when every worker thread hangs.
/// Leaving in the middle is safe: a start after it is a start after a crash.
fn bound_shutdown() {
    let watch = || {
        std::thread::sleep(SHUTDOWN_MAX);
        let seconds = SHUTDOWN_MAX.as_secs();
        eprintln!(
            "bunny: still busy {seconds} s after the signal, leaving anyway; the next start goes on from what is committed"
        );
        std::process::exit(0);
    };
    if let Err(error) = std::thread::Builder::new()
        .name("shutdown".into())
        .spawn(watch)
    {
        tracing::warn!(%error, "the shutdown is not bounded in time");
    }
}
