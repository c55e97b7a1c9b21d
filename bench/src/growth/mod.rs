//! Growth: what a row costs, and what memory is held, as there is more of something: tables
//! of a mirror, mirrors in one process of each role, events in a backlog.
//!
//! Each size has tables, mirrors and destinations of its own, so that nothing else runs
//! while it is measured: the mirrors are stopped, a backlog is written, and the clock runs
//! from their start until all of it has arrived.

mod figures;
mod size;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use bunny_tests::content::{self, TablePair};
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::cpu::Part;
use crate::drains::Clock;
use crate::ground::{Ground, wait_true};
use crate::mirror::Mirror;
use crate::report::Lap;

pub use figures::{Figures, figures, table};
pub use size::Axis;

use size::Size;

/// The drains' targets are for batches of that size, too.
const MAX_BATCH_SIZE: u32 = 10_000;
/// From the last row's arrival until memory counts as being at rest: what was freed goes
/// back to the system within a second.
const REST: Duration = Duration::from_secs(2);

/// What is asked for.
pub struct Plan {
    /// How many tables one mirror has.
    pub tables: Vec<u64>,
    /// How many mirrors run.
    pub mirrors: Vec<u64>,
    /// Events in the backlog at scale 1.
    pub events: Vec<u64>,
    pub rounds: u32,
    pub scale: f64,
    /// Before the first round, the first size once without being counted.
    pub warm_up: bool,
}

impl Plan {
    fn sizes(&self) -> Vec<Size> {
        let tables = self.tables.iter().map(|n| Size::of_tables(*n, self.scale));
        let mirrors = self.mirrors.iter();
        let mirrors = mirrors.map(|n| Size::of_mirrors(*n, self.scale));
        let events = self.events.iter().map(|n| Size::of_events(*n, self.scale));
        let mut sizes: Vec<Size> = tables.chain(mirrors).chain(events).collect();
        // In rising order within an axis; small backlogs may have become the same.
        sizes.sort_by_key(|size| (size.axis, size.count));
        sizes.dedup();
        sizes
    }
}

/// One size, one round.
#[derive(Debug, Clone, Serialize)]
pub struct Growth {
    pub axis: Axis,
    pub size: u64,
    #[serde(flatten)]
    pub lap: Lap,
    /// Resident memory once everything has arrived and nothing more comes, MiB.
    pub rest_mib: BTreeMap<Part, f64>,
}

/// Runs all rounds; compares contents after each size.
pub async fn run(ground: &mut Ground, plan: &Plan) -> Result<Vec<Growth>> {
    let mut sizes = plan.sizes();
    if plan.warm_up
        && let Some(first) = sizes.first()
    {
        measure(ground, first, 0).await?;
    }
    let mut found = Vec::new();
    for round in 1..=plan.rounds {
        for size in &sizes {
            let growth = measure(ground, size, round).await?;
            growth.lap.say(round);
            found.push(growth);
        }
        // Whatever changes while the bench runs must not look like growth.
        sizes.reverse();
    }
    Ok(found)
}

async fn measure(ground: &mut Ground, size: &Size, round: u32) -> Result<Growth> {
    size.create_tables(&ground.source).await?;
    let mirrors = stopped_mirrors(ground, size, round).await?;
    size.write(&ground.source).await?;
    let clock = Clock::start(ground).await?;
    for mirror in &mirrors {
        mirror.go(ground).await?;
    }
    for mirror in &mirrors {
        wait_true(&mirror.destination, &size.arrived()).await?;
    }
    let arrived = Instant::now();
    let slots: Vec<&str> = mirrors.iter().map(|mirror| mirror.slot.as_str()).collect();
    let lap = clock
        .lap(ground, "growth", &size.to_string(), size.rows(), &slots)
        .await?;
    compare(ground, size, &mirrors).await?;
    tokio::time::sleep_until(arrived + REST).await;
    let rest_mib = ground.processes.resident()?;
    let ground_now = &*ground;
    try_join_all(mirrors.into_iter().map(|mirror| mirror.remove(ground_now))).await?;
    ground.clear().await?;
    size.drop_tables(&ground.source).await?;
    Ok(Growth {
        axis: size.axis,
        size: size.count,
        lap,
        rest_mib,
    })
}

/// Mirrors that have been live and stand, each of all tables, each to a database of its
/// own. All of the same tables: a walsender decodes the whole of the WAL, so with tables of
/// their own each would pay for the others' changes.
async fn stopped_mirrors(ground: &mut Ground, size: &Size, round: u32) -> Result<Vec<Mirror>> {
    let tables = size.table_names();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let options = json!({ "max_batch_size": MAX_BATCH_SIZE });
    let mut mirrors = Vec::new();
    for number in 1..=size.mirrors {
        // Peers stay, so that every lap needs names of its own.
        let name = format!("r{round}_{}_{number}", size.to_string().replace(' ', "_"));
        let destination = ground.destination(&name).await?;
        let at = (name.as_str(), &destination);
        mirrors.push(Mirror::create(ground, &name, &tables, at, options.clone()).await?);
    }
    let ground = &*ground;
    try_join_all(mirrors.iter().map(|mirror| mirror.wait_live(ground))).await?;
    try_join_all(mirrors.iter().map(|mirror| mirror.stop(ground))).await?;
    Ok(mirrors)
}

async fn compare(ground: &Ground, size: &Size, mirrors: &[Mirror]) -> Result<()> {
    let tables = size.table_names();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let pairs = TablePair::all(&tables);
    for mirror in mirrors {
        content::assert_same(&ground.source, &mirror.destination, &pairs)
            .await
            .with_context(|| format!("{} does not hold what the source holds", mirror.name))?;
    }
    Ok(())
}
