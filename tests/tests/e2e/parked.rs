//! Tables that somebody keeps locked are parked, the others go on, and they come back.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::bunny::Role;
use bunny_tests::load::{self, Load};
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;

use crate::lifecycle::wait_status;

/// While a table is parked.
pub const APPLY_PARKED: [(&str, u32); 1] = [("apply::table_parked", 1)];

/// Apply's patience with locks, which is a minute otherwise.
const PATIENCE: &str = "apply_lock_patience_seconds=return(1)";
const CRASH_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_is_parked_and_comes_back() -> Result<()> {
    let stage = Stage::new("parked").await?;
    stage.migrate()?;
    let _capture = stage.start(Role::Capture)?;
    let mut apply = stage.start_with(Role::Apply, &[("FAILPOINTS", PATIENCE)])?;
    let _api_process = stage.start(Role::Api)?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 2000).await?;
    let load = Load::start(&stage.source, 2, 40);
    let mirror = stage
        .create_mirror(&api, "mirror", &load::TABLES, json!({}))
        .await?;
    mirror.wait_running().await?;

    // Apply dies just when it has parked the table, and parks it again.
    let locking = stage.destination.connect().await?;
    locking
        .run("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        .await?;
    let crash = APPLY_PARKED[0].0;
    apply.restart_to_crash(&format!("{PATIENCE};{crash}"), 1)?;
    apply.wait_crash_point(crash, CRASH_LIMIT).await?;
    apply.restart()?;
    wait_status(&mirror, "public.accounts", "PARKED").await?;
    // A reader is enough to hold off a TRUNCATE.
    let reader = stage.destination.connect().await?;
    reader
        .run("BEGIN; SELECT count(*) FROM measurements")
        .await?;
    source.run("TRUNCATE measurements").await?;
    wait_status(&mirror, "public.measurements", "PARKED").await?;
    // The others go on.
    load.advance(60).await;
    mirror.wait_for_lsn(source.current_lsn().await?).await?;
    let seen = mirror.get().await?;
    assert_eq!(
        (&seen["status"], &seen["health"]),
        (&json!("RUNNING"), &json!("DEGRADED")),
        "{seen}"
    );
    let message = seen["error_message"].as_str().unwrap_or_default();
    assert!(message.contains("PARKED: pid "), "{message}");
    wait_status(&mirror, "public.documents", "LIVE").await?;

    locking.run("COMMIT").await?;
    wait_status(&mirror, "public.accounts", "LIVE").await?;
    reader.run("COMMIT").await?;
    wait_status(&mirror, "public.measurements", "LIVE").await?;
    assert!(load.stop().await > 50);
    let alone = |mirror: &serde_json::Value, _: &serde_json::Value| mirror["health"] == "OK";
    mirror.wait_until("OK", CONVERGE, alone).await?;
    stage.assert_converges(&mirror, &load::pairs()).await?;
    stage.assert_topics_hold(&mirror, &load::pairs()).await?;
    Ok(())
}
