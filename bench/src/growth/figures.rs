//! What the rounds of each size say together, and whether a row costs the same at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Axis, Growth};
use crate::cpu::Part;
use crate::report::{Lap, by_part, cpu_a_row, largest, median, spread};

/// One size, all rounds: medians, and of memory the largest.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    pub axis: Axis,
    pub size: u64,
    name: String,
    rows: u64,
    k_rows_per_second: f64,
    /// The slowest and the fastest round.
    k_rows_per_second_spread: (f64, f64),
    seconds: f64,
    /// CPU time of all parts, microseconds a row.
    total_us_a_row: f64,
    /// Its ratio to that of the size which the axis' others are compared with: 1 for all of
    /// them is what should be.
    pub cpu_ratio: f64,
    us_a_row: BTreeMap<Part, f64>,
    peak_mib: BTreeMap<Part, f64>,
    rest_mib: BTreeMap<Part, f64>,
}

/// One for each size, in rising order.
pub fn figures(laps: &[Growth]) -> Vec<Figures> {
    let mut sizes: BTreeMap<Axis, BTreeMap<u64, Vec<&Growth>>> = BTreeMap::new();
    for lap in laps {
        let axis = sizes.entry(lap.axis).or_default();
        axis.entry(lap.size).or_default().push(lap);
    }
    let mut all = Vec::new();
    for (axis, sizes) in sizes {
        let mut of_axis: Vec<Figures> = sizes.values().map(|laps| of_size(laps)).collect();
        let base = of_axis[axis.base(of_axis.len())].total_us_a_row;
        for figures in &mut of_axis {
            figures.cpu_ratio = figures.total_us_a_row / base;
        }
        all.extend(of_axis);
    }
    all
}

/// Of one size at least one lap; the ratio is not known yet.
fn of_size(growths: &[&Growth]) -> Figures {
    let laps: Vec<&Lap> = growths.iter().map(|growth| &growth.lap).collect();
    let first = growths[0];
    Figures {
        axis: first.axis,
        size: first.size,
        name: first.lap.contestant.clone(),
        rows: first.lap.rows,
        k_rows_per_second: median(laps.iter().map(|lap| lap.k_rows_per_second())),
        k_rows_per_second_spread: spread(laps.iter().map(|lap| lap.k_rows_per_second())),
        seconds: median(laps.iter().map(|lap| lap.seconds)),
        total_us_a_row: median(laps.iter().map(|lap| {
            let seconds: f64 = lap.cpu_seconds.0.values().sum();
            seconds * 1e6 / lap.rows as f64
        })),
        cpu_ratio: f64::NAN,
        us_a_row: cpu_a_row(&laps),
        peak_mib: largest(laps.iter().map(|lap| &lap.peak_mib)),
        rest_mib: largest(growths.iter().map(|growth| &growth.rest_mib)),
    }
}

/// As a person reads it.
pub fn table(figures: &[Figures]) -> String {
    let mut out = format!(
        "{:<16} {:>8} {:>15} {:>8} {:>9} {:>7}  {:<58} {:<15} at rest MiB\n",
        "growth", "rows", "k rows/s", "seconds", "CPU ratio", "µs", "CPU µs a row", "peak MiB"
    );
    for line in figures {
        let (slowest, fastest) = line.k_rows_per_second_spread;
        let _ = writeln!(
            out,
            "{:<16} {:>8} {:>6.1} {:>8} {:>8.2} {:>7.2} × {:>7.1}  {:<58} {:<15} {}",
            line.name,
            line.rows,
            line.k_rows_per_second,
            format!("{slowest:.0}–{fastest:.0}"),
            line.seconds,
            line.cpu_ratio,
            line.total_us_a_row,
            by_part(&line.us_a_row, 1),
            by_part(&line.peak_mib, 0),
            by_part(&line.rest_mib, 0),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    fn lap(axis: Axis, size: u64, us_a_row: f64) -> Growth {
        let half = us_a_row / 2.0 * 1_000.0 / 1e6;
        Growth {
            axis,
            size,
            lap: Lap {
                measure: "growth".to_owned(),
                contestant: size.to_string(),
                rows: 1_000,
                seconds: 2.0,
                cpu_seconds: Cpu(BTreeMap::from([(Part::Capture, half), (Part::Apply, half)])),
                peak_mib: BTreeMap::from([(Part::Apply, us_a_row)]),
            },
            rest_mib: BTreeMap::from([(Part::Apply, 7.0)]),
        }
    }

    fn ratios(laps: &[Growth]) -> Vec<(u64, f64)> {
        let figures = figures(laps);
        let ratio = |line: &Figures| (line.size, (line.cpu_ratio * 100.0).round() / 100.0);
        figures.iter().map(ratio).collect()
    }

    #[test]
    fn tables_are_compared_with_the_fewest_backlogs_with_the_middle_one() {
        let laps = [
            lap(Axis::Tables, 100, 30.0),
            lap(Axis::Tables, 10, 20.0),
            lap(Axis::Tables, 1, 20.0),
            lap(Axis::Events, 1, 500.0),
            lap(Axis::Events, 100, 20.0),
            lap(Axis::Events, 10_000, 22.0),
        ];
        let tables = [(1, 1.0), (10, 1.0), (100, 1.5)];
        let events = [(1, 25.0), (100, 1.0), (10_000, 1.1)];
        assert_eq!(ratios(&laps), [tables, events].concat());
    }

    #[test]
    fn ratios_are_of_medians_and_memory_is_the_largest() {
        let laps = [
            lap(Axis::Mirrors, 1, 10.0),
            lap(Axis::Mirrors, 4, 15.0),
            lap(Axis::Mirrors, 4, 90.0),
            lap(Axis::Mirrors, 4, 20.0),
        ];
        assert_eq!(ratios(&laps), [(1, 1.0), (4, 2.0)]);
        let text = table(&figures(&laps));
        let four = text.lines().last().unwrap();
        for part in ["2.00 ×", "20.0", "cap 10.0 app 10.0", "app 90", "app 7"] {
            assert!(four.contains(part), "no {part} in {four}");
        }
    }
}
