//! CPU time and memory of every process that takes part, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bunny_tests::services::Services;
use serde::Serialize;

/// Ticks a second in /proc/<pid>/stat: fixed by the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Who spends CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Walsender,
    /// The source's server without the walsender.
    Source,
    Capture,
    Broker,
    Apply,
    Destination,
}

/// CPU seconds by part, either since the processes' start or of an interval.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Cpu(pub BTreeMap<Part, f64>);

impl Cpu {
    /// What was spent since `start`.
    pub fn since(&self, start: &Cpu) -> Cpu {
        let spent = self.0.iter().map(|(part, end)| {
            let before = start.0.get(part).copied().unwrap_or_default();
            (*part, (end - before).max(0.0))
        });
        Cpu(spent.collect())
    }

    /// Takes the walsender, a process that began with the interval, out of the source.
    pub fn split_walsender(&mut self, seconds: f64) {
        if let Some(source) = self.0.get_mut(&Part::Source) {
            *source = (*source - seconds).max(0.0);
        }
        self.0.insert(Part::Walsender, seconds);
    }
}

/// The processes to look at.
pub struct Processes {
    /// Data directories of the source and the destination server.
    data: [(Part, PathBuf); 2],
    broker: u32,
    capture: u32,
    apply: u32,
}

impl Processes {
    /// Those of running servers and of two roles.
    pub fn of(services: &Services, capture: u32, apply: u32) -> Result<Processes> {
        let home = fs::read_to_string(services.directory().join("home"))
            .context("where the servers' data is")?;
        let home = Path::new(home.trim());
        Ok(Processes {
            data: [
                (Part::Source, home.join("source")),
                (Part::Destination, home.join("destination")),
            ],
            broker: broker(&services.directory().canonicalize()?)
                .context("no broker is running")?,
            capture,
            apply,
        })
    }

    /// CPU seconds so far. A server's count holds those of its sessions that have ended.
    pub fn cpu(&self) -> Result<Cpu> {
        let mut seconds = BTreeMap::new();
        for (part, data) in &self.data {
            let mut sum = 0.0;
            for pid in working_in(data) {
                let Some(stat) = Stat::read(pid) else {
                    continue;
                };
                sum += stat.own;
                // Only the postmaster waits for others; its sessions are its children.
                sum += stat.of_ended_children;
            }
            seconds.insert(*part, sum);
        }
        for (part, pid) in [
            (Part::Broker, self.broker),
            (Part::Capture, self.capture),
            (Part::Apply, self.apply),
        ] {
            let stat = Stat::read(pid).with_context(|| format!("{part:?} is gone"))?;
            seconds.insert(part, stat.own);
        }
        Ok(Cpu(seconds))
    }

    /// Begins to measure peaks anew.
    pub fn reset_peaks(&self) -> Result<()> {
        for pid in [self.capture, self.apply] {
            // 5 resets VmHWM: proc(5), clear_refs.
            fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting VmHWM")?;
        }
        Ok(())
    }

    /// Peak resident memory in MiB, capture's and apply's.
    pub fn peaks(&self) -> Result<BTreeMap<Part, f64>> {
        self.memory("VmHWM")
    }

    /// Resident memory in MiB at this moment, capture's and apply's.
    pub fn resident(&self) -> Result<BTreeMap<Part, f64>> {
        self.memory("VmRSS")
    }

    fn memory(&self, field: &str) -> Result<BTreeMap<Part, f64>> {
        let mut memory = BTreeMap::new();
        for (part, pid) in [(Part::Capture, self.capture), (Part::Apply, self.apply)] {
            memory.insert(part, status_mib(pid, field)?);
        }
        Ok(memory)
    }
}

/// CPU seconds of one process; 0 if it is gone.
pub fn process_seconds(pid: u32) -> f64 {
    Stat::read(pid).map_or(0.0, |stat| stat.own)
}

/// A size in /proc/<pid>/status, as proc(5) names it.
fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| {
            let value = line.strip_prefix(field)?.strip_prefix(':')?;
            value.trim().strip_suffix(" kB")
        })
        .with_context(|| format!("no {field} in /proc"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

struct Stat {
    own: f64,
    of_ended_children: f64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(&text)
    }

    /// Fields 14 to 17 of proc(5): utime, stime, cutime, cstime. The name before may hold
    /// anything, so they are counted from its closing parenthesis.
    fn parse(text: &str) -> Option<Stat> {
        let (_, rest) = text.rsplit_once(')')?;
        let times: Vec<f64> = rest
            .split_whitespace()
            .skip(11)
            .take(4)
            .map_while(|field| field.parse().ok())
            .collect();
        let [user, system, child_user, child_system] = times.try_into().ok()?;
        Some(Stat {
            own: (user + system) / TICKS_PER_SECOND,
            of_ended_children: (child_user + child_system) / TICKS_PER_SECOND,
        })
    }
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Every process of a server works in its data directory.
fn working_in(data: &Path) -> Vec<u32> {
    pids()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
        .collect()
}

/// The broker is the Java process that was given this directory's configuration.
fn broker(directory: &Path) -> Option<u32> {
    let configuration = directory.join("kafka/server.properties");
    let configuration = configuration.as_os_str().as_encoded_bytes();
    pids().find(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words
            .next()
            .is_some_and(|program| program.ends_with(b"java"))
            && words.any(|word| word == configuration)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_after_a_name_with_spaces_and_parentheses() {
        let line = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 300 100 20 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.own, stat.of_ended_children), (2.0, 4.0));
    }

    #[test]
    fn an_interval_is_the_difference() {
        let start = Cpu(BTreeMap::from([(Part::Source, 1.0)]));
        let end = Cpu(BTreeMap::from([(Part::Source, 4.0), (Part::Apply, 2.0)]));
        let mut spent = end.since(&start);
        spent.split_walsender(2.5);
        assert_eq!(
            spent.0,
            BTreeMap::from([
                (Part::Source, 0.5),
                (Part::Apply, 2.0),
                (Part::Walsender, 2.5)
            ])
        );
    }
}
