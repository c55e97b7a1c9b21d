//! Log and metrics of the process.

use std::convert::Infallible;
use std::future::Future;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use metrics_util::MetricKindMask;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, Logging};
use crate::exit::Exit;

/// Two libraries log errors that they also return, and the first also every end of a
/// partition as an error. librdkafka's own lines have another target and stay.
const QUIET: &str = "rdkafka::client=off,pgwire_replication=off";

/// Buckets of latency histograms, in seconds: from a quick statement to a load.
const SECONDS_BUCKETS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0,
];

/// Gauges say what is now: one that nobody has set for so long is shown no more. So go those
/// of a deleted mirror, and all of them while the catalog is away.
const GAUGE_LIFE: Duration = Duration::from_secs(20);

/// Prometheus's own name for it, in bytes.
const RESIDENT_MEMORY: &str = "process_resident_memory_bytes";
const MEMORY_EVERY: Duration = Duration::from_secs(5);

/// Sends log lines to stderr.
pub(crate) fn log(logging: &Logging) -> Result<(), Exit> {
    let filter = format!("{QUIET},{}", logging.filter);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Exit::setting(format!(
            "BUNNY_LOG \"{}\" is no log filter: {error}",
            logging.filter
        ))
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match logging.format {
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    started.map_err(|error| Exit::failed(format!("the log cannot be started: {error}")))
}

/// Installs the recorder; the future serves it until it is dropped.
pub(crate) fn metrics(
    address: SocketAddr,
) -> Result<impl Future<Output = Result<(), Exit>> + Send + 'static, Exit> {
    let failed = |error: BuildError| {
        Exit::setting(format!(
            "cannot serve metrics on {address}: {error}; free the port or set BUNNY_METRICS_LISTEN to another address"
        ))
    };
    let (recorder, exporter) = PrometheusBuilder::new()
        .with_http_listener(address)
        .upkeep_timeout(Duration::from_secs(5))
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_LIFE))
        .set_buckets(&SECONDS_BUCKETS)
        .and_then(PrometheusBuilder::build)
        .map_err(failed)?;
    metrics::set_global_recorder(recorder)
        .map_err(|error| Exit::failed(format!("metrics cannot be recorded: {error}")))?;
    Ok(async move {
        tokio::select! {
            served = exporter => served
                .map_err(|error| Exit::failed(format!("metrics are no longer served: {error:?}"))),
            never = show_memory() => match never {},
        }
    })
}

async fn show_memory() -> Infallible {
    metrics::describe_gauge!(RESIDENT_MEMORY, "Memory of this process");
    loop {
        let status = tokio::fs::read_to_string("/proc/self/status").await;
        if let Some(bytes) = status.ok().as_deref().and_then(resident_bytes) {
            metrics::gauge!(RESIDENT_MEMORY).set(bytes as f64);
        }
        tokio::time::sleep(MEMORY_EVERY).await;
    }
}

/// Linux tells it in kB, whatever the size of a page. Pure.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_tells_it() {
        let status = "Name:\tbunny\nVmHWM:\t    2000 kB\nVmRSS:\t    1536 kB\n";
        assert_eq!(resident_bytes(status), Some(1_572_864));
        assert_eq!(resident_bytes("Name:\tbunny\n"), None);
    }
}
