//! Backlogs: all streams stand, a workload is written once, then each contestant in turn
//! has the machine to itself until its destination holds it.

use std::time::Instant;

use anyhow::{Context, Result};
use bunny_tests::content::{self, TablePair};
use bunny_tests::database::{Session, Url};
use bunny_tests::lsn::Lsn;
use bunny_tests::pgbench;
use serde_json::json;

use crate::ceiling;
use crate::ground::{Ground, wait_true};
use crate::mirror::Mirror;
use crate::native::Subscription;
use crate::report::{CAPTURE, CEILING, Lap, NATIVE};
use crate::workload::{CREATE_MIXED, CREATE_OTHERS, HOT_KEYS, TABLES, Workload};

const PUBLICATION: &str = "bench";
const CEILING_SLOT: &str = "bench_ceiling";
/// pgbench's scale of the small transactions at full size: 100,000 accounts each.
const ACCOUNTS: f64 = 10.0;

/// Size of what warms up, of the full size.
const WARM_UP_SCALE: f64 = 0.1;

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Party {
    Native,
    /// The live mirrors.
    Live,
    /// The mirror whose log is filled first: capture alone, then apply alone.
    Log,
    /// `pg_recvlogical`.
    Ceiling,
}

/// What is asked for.
pub struct Plan {
    pub workloads: Vec<Workload>,
    /// Everyone if empty.
    pub parties: Vec<Party>,
    pub rounds: u32,
    pub scale: f64,
    /// Before the first round, a smaller one that is not counted.
    pub warm_up: bool,
    /// `max_batch_size` of each live mirror.
    pub batches: Vec<u32>,
    /// `max_batch_size` of the mirror that is applied from a filled log.
    pub log_batch: u32,
}

enum Contestant {
    Native(Subscription),
    /// Capture and apply start together on a waiting slot.
    Live(Mirror),
    /// Capture fills the log first, then apply empties it: two measures.
    Log(Mirror),
    /// The walsender alone, read by `pg_recvlogical`.
    Ceiling,
}

/// A written backlog.
struct Backlog {
    workload: Workload,
    rows: u64,
    /// The transaction after it, whose arrival ends the clock.
    marker: i64,
    /// Past every change, before the marker.
    end: Lsn,
}

/// Runs all rounds; compares contents after each.
pub async fn run(ground: &mut Ground, plan: &Plan) -> Result<Vec<Lap>> {
    let url = ground.stage.source.clone();
    prepare(&ground.source, &url, plan.scale).await?;
    let mut contestants = gather(ground, plan).await?;
    let mut laps = Vec::new();
    let mut marker = 0;
    // A broker that was just started compiles its code while it works.
    let warm_up = plan.warm_up.then_some(WARM_UP_SCALE.min(plan.scale));
    let rounds = (1..=plan.rounds).map(|round| (round, plan.scale));
    for (round, scale) in warm_up.map(|scale| (0, scale)).into_iter().chain(rounds) {
        for &workload in &plan.workloads {
            marker += 1;
            let backlog = write(ground, workload, &url, scale, marker).await?;
            for contestant in &contestants {
                for lap in contestant.drain(ground, &url, &backlog).await? {
                    if round > 0 {
                        lap.say(round);
                        laps.push(lap);
                    }
                }
            }
            contestants.rotate_left(1);
        }
        compare(ground, &contestants).await?;
        // The next round writes the same keys.
        ground.source.run("TRUNCATE mixed").await?;
    }
    for contestant in contestants {
        contestant.remove(ground).await?;
    }
    ground.clear().await?;
    Ok(laps)
}

async fn prepare(source: &Session, url: &Url, scale: f64) -> Result<()> {
    let accounts = (ACCOUNTS * scale).ceil().max(1.0) as u32;
    pgbench::initialise(url, accounts).await?;
    source
        .run(&format!(
            "{CREATE_MIXED}; {CREATE_OTHERS};
             INSERT INTO hot SELECT g, 0, '' FROM generate_series(1, {HOT_KEYS}) g;
             CREATE PUBLICATION {PUBLICATION} FOR TABLE {};
             ANALYZE",
            TABLES.join(", ")
        ))
        .await
}

async fn gather(ground: &mut Ground, plan: &Plan) -> Result<Vec<Contestant>> {
    let mut contestants = Vec::new();
    let wanted = |party| plan.parties.is_empty() || plan.parties.contains(&party);
    if wanted(Party::Native) {
        let native = ground.destination("native").await?;
        pgbench::create_tables(&native).await?;
        let tables = native.connect().await?;
        tables
            .run(&format!("{CREATE_MIXED}; {CREATE_OTHERS}"))
            .await?;
        let subscription =
            Subscription::create(ground, "bench_native", PUBLICATION, &native).await?;
        subscription.wait_copied().await?;
        subscription.disable().await?;
        contestants.push(Contestant::Native(subscription));
    }
    let live = plan.batches.iter().map(|batch| (true, *batch));
    for (live, batch) in live.chain([(false, plan.log_batch)]) {
        if !wanted(if live { Party::Live } else { Party::Log }) {
            continue;
        }
        let name = format!("{}_{batch}", if live { "live" } else { "log" });
        let destination = ground.destination(&name).await?;
        let options = json!({ "max_batch_size": batch });
        let at = (name.as_str(), &destination);
        let mirror = Mirror::create(ground, &name, &TABLES, at, options).await?;
        mirror.wait_live(ground).await?;
        mirror.stop(ground).await?;
        contestants.push(match live {
            true => Contestant::Live(mirror),
            false => Contestant::Log(mirror),
        });
    }
    if wanted(Party::Ceiling) {
        ceiling::create_slot(&ground.source, CEILING_SLOT).await?;
        contestants.push(Contestant::Ceiling);
    }
    Ok(contestants)
}

async fn write(
    ground: &Ground,
    workload: Workload,
    url: &Url,
    scale: f64,
    marker: i64,
) -> Result<Backlog> {
    let rows = workload.write(&ground.source, url, scale).await?;
    // Written out, so that nobody measured pays for it.
    ground
        .source
        .run("SET synchronous_commit = on; CHECKPOINT")
        .await?;
    let end = ground.source.current_lsn().await?;
    ground
        .source
        .run(&format!("INSERT INTO bench_marker VALUES ({marker})"))
        .await?;
    Ok(Backlog {
        workload,
        rows,
        marker,
        end,
    })
}

impl Contestant {
    /// Lets it have the machine until the backlog has arrived.
    async fn drain(&self, ground: &Ground, url: &Url, backlog: &Backlog) -> Result<Vec<Lap>> {
        match self {
            Contestant::Native(subscription) => {
                let clock = Clock::start(ground).await?;
                subscription.enable().await?;
                arrival(&subscription.destination, backlog).await?;
                let lap = clock.stop(ground, backlog, NATIVE, Some(subscription.slot()));
                let lap = lap.await?;
                subscription.disable().await?;
                Ok(vec![lap])
            }
            Contestant::Live(mirror) => {
                let clock = Clock::start(ground).await?;
                mirror.go(ground).await?;
                arrival(&mirror.destination, backlog).await?;
                let lap = clock.stop(ground, backlog, &mirror.name, Some(&mirror.slot));
                let lap = lap.await?;
                mirror.stop(ground).await?;
                Ok(vec![lap])
            }
            Contestant::Log(mirror) => {
                let clock = Clock::start(ground).await?;
                mirror.capture_only(ground).await?;
                mirror.wait_captured(ground, backlog.end).await?;
                let capture = clock
                    .stop(ground, backlog, CAPTURE, Some(&mirror.slot))
                    .await?;
                let clock = Clock::start(ground).await?;
                mirror.go(ground).await?;
                arrival(&mirror.destination, backlog).await?;
                let apply = clock.stop(ground, backlog, "apply alone", None).await?;
                mirror.stop(ground).await?;
                Ok(vec![capture, apply])
            }
            Contestant::Ceiling => {
                let clock = Clock::start(ground).await?;
                ceiling::drain(url, CEILING_SLOT, PUBLICATION, backlog.end).await?;
                let lap = clock.stop(ground, backlog, CEILING, None).await?;
                Ok(vec![lap])
            }
        }
    }

    fn destination(&self) -> Option<(&str, &Session)> {
        match self {
            Contestant::Native(subscription) => Some((NATIVE, &subscription.destination)),
            Contestant::Live(mirror) | Contestant::Log(mirror) => {
                Some((&mirror.name, &mirror.destination))
            }
            Contestant::Ceiling => None,
        }
    }

    async fn remove(self, ground: &Ground) -> Result<()> {
        match self {
            Contestant::Native(subscription) => subscription.remove().await,
            Contestant::Live(mirror) | Contestant::Log(mirror) => mirror.remove(ground).await,
            Contestant::Ceiling => {
                let sql = format!("SELECT pg_drop_replication_slot('{CEILING_SLOT}')");
                ground.source.text(&sql).await.map(drop)
            }
        }
    }
}

async fn arrival(destination: &Session, backlog: &Backlog) -> Result<()> {
    let sql = format!("SELECT true FROM bench_marker WHERE n = {}", backlog.marker);
    wait_true(destination, &sql).await
}

/// Equal speed is nothing without equal contents.
async fn compare(ground: &Ground, contestants: &[Contestant]) -> Result<()> {
    for contestant in contestants {
        if let Some((name, destination)) = contestant.destination() {
            content::assert_same(&ground.source, destination, &TablePair::all(&TABLES))
                .await
                .with_context(|| format!("{name} does not hold what the source holds"))?;
        }
    }
    Ok(())
}

/// Time, CPU and memory of one lap.
pub struct Clock {
    cpu: crate::cpu::Cpu,
    started: Instant,
}

impl Clock {
    pub async fn start(ground: &Ground) -> Result<Clock> {
        ground.processes.reset_peaks()?;
        let (cpu, _) = ground.cpu(&[]).await?;
        Ok(Clock {
            cpu,
            started: Instant::now(),
        })
    }

    async fn stop(
        self,
        ground: &Ground,
        backlog: &Backlog,
        contestant: &str,
        slot: Option<&str>,
    ) -> Result<Lap> {
        let measure = serde_json::to_value(backlog.workload)?;
        let measure = measure.as_str().unwrap_or_default();
        self.lap(ground, measure, contestant, backlog.rows, slot.as_slice())
            .await
    }

    /// The walsenders of `slots`, which began within the lap and still run, are told apart.
    pub async fn lap(
        self,
        ground: &Ground,
        measure: &str,
        contestant: &str,
        rows: u64,
        slots: &[&str],
    ) -> Result<Lap> {
        let seconds = self.started.elapsed().as_secs_f64();
        let (cpu, walsender) = ground.cpu(slots).await?;
        let mut cpu_seconds = cpu.since(&self.cpu);
        if !slots.is_empty() {
            cpu_seconds.split_walsender(walsender);
        }
        Ok(Lap {
            measure: measure.to_owned(),
            contestant: contestant.to_owned(),
            rows,
            seconds,
            cpu_seconds,
            peak_mib: ground.processes.peaks()?,
        })
    }
}
