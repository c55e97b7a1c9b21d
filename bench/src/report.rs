//! Laps, their medians, and how they are shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::cpu::{Cpu, Part};
use crate::growth::{self, Figures, Growth};

/// One contestant, one workload, one round.
#[derive(Debug, Clone, Serialize)]
pub struct Lap {
    pub measure: String,
    pub contestant: String,
    pub rows: u64,
    pub seconds: f64,
    pub cpu_seconds: Cpu,
    /// Peak resident memory within the lap, MiB.
    pub peak_mib: BTreeMap<Part, f64>,
}

impl Lap {
    /// Shows the lap to whoever waits for the report; `round` counts from 0.
    pub fn say(&self, round: u32) {
        eprintln!(
            "round {} {:<18} {:<16} {:>8.2} s",
            round, self.measure, self.contestant, self.seconds
        );
    }

    /// Thousands of rows a second.
    pub fn k_rows_per_second(&self) -> f64 {
        self.rows as f64 / self.seconds / 1e3
    }
}

/// Commit to visible, one contestant, one rate, one round.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub contestant: String,
    pub transactions_per_second: u32,
    pub transactions: usize,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// Things by name, in the order of the names' first appearance.
type Named<'a, T> = Vec<(&'a str, T)>;

/// Everything a run found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Server versions, settings, size: what the figures belong to.
    pub conditions: BTreeMap<String, String>,
    pub laps: Vec<Lap>,
    pub latencies: Vec<Latency>,
    pub growth: Vec<Growth>,
    /// What the rounds of `growth` say together.
    pub growth_figures: Vec<Figures>,
}

/// The contestant that the others are compared with.
pub const NATIVE: &str = "native";
/// The walsender read by a program that throws everything away.
pub const CEILING: &str = "pg_recvlogical";
/// A mirror's capture filling the log.
pub const CAPTURE: &str = "capture alone";

/// Whom a contestant is compared with: capture writes to no database.
fn peer(contestant: &str) -> &'static str {
    if contestant == CAPTURE {
        CEILING
    } else {
        NATIVE
    }
}

impl Report {
    /// A table a person reads: medians, spread, ratio to native, CPU by process.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.conditions {
            let _ = writeln!(out, "{name}: {value}");
        }
        if !self.laps.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<20} {:<16} {:>8} {:>15} {:>8} {:>7}  {:<58} peak MiB",
                "measure", "contestant", "rows", "k rows/s", "seconds", "ratio", "CPU µs a row"
            );
        }
        for (measure, contestants) in self.groups() {
            let seconds = |wanted: &str| {
                let (_, laps) = contestants.iter().find(|(name, _)| *name == wanted)?;
                Some(median(laps.iter().map(|lap| lap.seconds)))
            };
            for (contestant, laps) in &contestants {
                let peer = seconds(peer(contestant));
                let _ = writeln!(out, "{}", line(measure, contestant, laps, peer));
            }
        }
        if !self.latencies.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<16} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}",
                "latency", "tx/s", "n", "p50 ms", "p95", "p99", "max"
            );
        }
        for latency in &self.latencies {
            let _ = writeln!(
                out,
                "{:<16} {:>6} {:>8} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
                latency.contestant,
                latency.transactions_per_second,
                latency.transactions,
                latency.p50_ms,
                latency.p95_ms,
                latency.p99_ms,
                latency.max_ms
            );
        }
        if !self.growth_figures.is_empty() {
            let _ = write!(out, "\n{}", growth::table(&self.growth_figures));
        }
        out
    }

    /// Laps by measure and contestant, in the order in which they were first run.
    fn groups(&self) -> Named<'_, Named<'_, Vec<&Lap>>> {
        let mut groups = Named::new();
        for lap in &self.laps {
            let contestants = entry(&mut groups, &lap.measure);
            let laps: &mut Vec<&Lap> = entry(contestants, &lap.contestant);
            laps.push(lap);
        }
        groups
    }
}

fn entry<'a, 'b, T: Default>(list: &'b mut Named<'a, T>, name: &'a str) -> &'b mut T {
    let index = list
        .iter()
        .position(|(known, _)| *known == name)
        .unwrap_or_else(|| {
            list.push((name, T::default()));
            list.len() - 1
        });
    &mut list[index].1
}

fn line(measure: &str, contestant: &str, laps: &[&Lap], peer: Option<f64>) -> String {
    let seconds = median(laps.iter().map(|lap| lap.seconds));
    let rates = || laps.iter().map(|lap| lap.k_rows_per_second());
    let (slowest, fastest) = spread(rates());
    format!(
        "{measure:<20} {contestant:<16} {:>8} {:>6.1} {:>8} {seconds:>8.2} {:>7}  {:<58} {}",
        laps.first().map_or(0, |lap| lap.rows),
        median(rates()),
        format!("{slowest:.0}–{fastest:.0}"),
        peer.map_or_else(String::new, |peer| format!("{:.2} ×", peer / seconds)),
        by_part(&cpu_a_row(laps), 1),
        by_part(&largest(laps.iter().map(|lap| &lap.peak_mib)), 0)
    )
}

/// CPU time by part, microseconds a row: of each the median.
pub fn cpu_a_row(laps: &[&Lap]) -> BTreeMap<Part, f64> {
    let parts = laps.iter().flat_map(|lap| lap.cpu_seconds.0.keys());
    let spent = |lap: &Lap, part| {
        let seconds = lap.cpu_seconds.0.get(&part).copied().unwrap_or_default();
        seconds * 1e6 / lap.rows as f64
    };
    parts
        .map(|part| (*part, median(laps.iter().map(|lap| spent(lap, *part)))))
        .collect()
}

/// Of each part the largest value.
pub fn largest<'a>(all: impl Iterator<Item = &'a BTreeMap<Part, f64>>) -> BTreeMap<Part, f64> {
    let mut largest: BTreeMap<Part, f64> = BTreeMap::new();
    for (part, value) in all.flatten() {
        let known = largest.entry(*part).or_insert(*value);
        *known = known.max(*value);
    }
    largest
}

/// The smallest and the largest value.
pub fn spread(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

/// `send 1.2 cap 3.4`, with so many decimals.
pub fn by_part(values: &BTreeMap<Part, f64>, decimals: usize) -> String {
    let words = values
        .iter()
        .map(|(part, value)| format!("{} {value:.decimals$}", short(*part)));
    words.collect::<Vec<_>>().join(" ")
}

fn short(part: Part) -> &'static str {
    match part {
        Part::Walsender => "send",
        Part::Source => "src",
        Part::Capture => "cap",
        Part::Broker => "kafka",
        Part::Apply => "app",
        Part::Destination => "dst",
    }
}

/// The middle value; of an even number the mean of both; NaN of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The value below which `share` (0 to 1) of sorted values lie.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let index = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lap(contestant: &str, seconds: f64) -> Lap {
        Lap {
            measure: "inserts".to_owned(),
            contestant: contestant.to_owned(),
            rows: 1000,
            seconds,
            cpu_seconds: Cpu(BTreeMap::from([(Part::Apply, 0.5)])),
            peak_mib: BTreeMap::new(),
        }
    }

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn ratios_are_of_medians() {
        let report = Report {
            laps: vec![
                lap("mirror", 1.0),
                lap(NATIVE, 2.0),
                lap("mirror", 1.0),
                lap(NATIVE, 8.0),
                lap("mirror", 9.0),
                lap(NATIVE, 3.0),
            ],
            ..Report::default()
        };
        let table = report.table();
        let mirror = table.lines().find(|line| line.contains("mirror")).unwrap();
        assert!(mirror.contains("3.00 ×"), "{mirror}");
        assert!(mirror.contains("app 500.0"), "{mirror}");
    }
}
