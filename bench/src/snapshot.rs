//! First loads: from an empty destination until every row and index is there and the
//! table follows the stream.

use anyhow::Result;
use bunny_tests::content::{self, TablePair};
use bunny_tests::pgbench;
use serde_json::json;

use crate::drains::Clock;
use crate::ground::Ground;
use crate::mirror::Mirror;
use crate::native::Subscription;
use crate::report::{Lap, NATIVE};
use crate::workload::{CREATE_MIXED, MIXED_ROW};

const ACCOUNTS: &str = "public.pgbench_accounts";
const MIXED: &str = "public.mixed";
/// Rows at scale 1.
const ACCOUNT_ROWS: f64 = 5_000_000.0;
const MIXED_ROWS: f64 = 1_000_000.0;

/// Runs all rounds; compares contents after each load.
pub async fn run(ground: &mut Ground, rounds: u32, scale: f64) -> Result<Vec<Lap>> {
    let url = ground.stage.source.clone();
    // 100,000 accounts are the least that pgbench makes.
    let accounts = (ACCOUNT_ROWS * scale / 100_000.0).ceil().max(1.0) as u32;
    let mixed = (MIXED_ROWS * scale).max(1.0) as u64;
    pgbench::initialise(&url, accounts).await?;
    ground
        .source
        .run(&format!(
            "{CREATE_MIXED};
             INSERT INTO mixed SELECT {MIXED_ROW} FROM generate_series(1, {mixed}) g"
        ))
        .await?;
    ground.source.run("VACUUM ANALYZE").await?;
    let mut laps = Vec::new();
    for round in 0..rounds {
        for (table, measure, rows) in [
            (ACCOUNTS, "snapshot accounts", u64::from(accounts) * 100_000),
            (MIXED, "snapshot mixed", mixed),
        ] {
            // Whoever comes second finds the source's pages in memory: both take turns.
            for native in [round % 2 == 0, round % 2 == 1] {
                ground.source.run("CHECKPOINT").await?;
                let lap = if native {
                    native_load(ground, table, measure, rows).await?
                } else {
                    mirror_load(ground, table, measure, rows).await?
                };
                lap.say(round + 1);
                laps.push(lap);
                ground.clear().await?;
            }
        }
    }
    Ok(laps)
}

async fn native_load(ground: &mut Ground, table: &str, measure: &str, rows: u64) -> Result<Lap> {
    let peer = format!("native_{}", unique());
    let destination = ground.destination(&peer).await?;
    if table == ACCOUNTS {
        pgbench::create_tables(&destination).await?;
    } else {
        destination.connect().await?.run(CREATE_MIXED).await?;
    }
    let publication = format!("CREATE PUBLICATION bench_load FOR TABLE {table}");
    ground.source.run(&publication).await?;
    let clock = Clock::start(ground).await?;
    let subscription =
        Subscription::create(ground, "bench_load", "bench_load", &destination).await?;
    subscription.wait_copied().await?;
    let lap = clock.lap(ground, measure, NATIVE, rows, &[]).await?;
    content::assert_same(
        &ground.source,
        &subscription.destination,
        &TablePair::all(&[table]),
    )
    .await?;
    subscription.remove().await?;
    ground.source.run("DROP PUBLICATION bench_load").await?;
    Ok(lap)
}

async fn mirror_load(ground: &mut Ground, table: &str, measure: &str, rows: u64) -> Result<Lap> {
    let name = format!("load_{}", unique());
    let destination = ground.destination(&name).await?;
    let clock = Clock::start(ground).await?;
    let mirror = Mirror::create(ground, &name, &[table], (&name, &destination), json!({})).await?;
    mirror.wait_live(ground).await?;
    let lap = clock.lap(ground, measure, "mirror", rows, &[]).await?;
    content::assert_same(
        &ground.source,
        &mirror.destination,
        &TablePair::all(&[table]),
    )
    .await?;
    mirror.remove(ground).await?;
    Ok(lap)
}

/// Peers stay, so that every load needs a name of its own.
fn unique() -> String {
    format!("{:08x}", rand::random::<u32>())
}
