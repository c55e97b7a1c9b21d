//! Destinations that are put back to a backup, and that of a mirror which is attached to another's
//! capture: they go on from the progress that came with their rows. The load's journal has no key, so
//! what were applied twice would be seen.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::backup;
use bunny_tests::content::TablePair;
use bunny_tests::load;
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::CONVERGE;
use serde_json::{Value, json};

use crate::fan_out::{Attached, FanOut, PROGRESS, ended, fan_out, fan_out_on, is_gone};

/// What only a destination that was not put back has.
const MARK: &str = "CREATE TABLE since_the_backup ()";
const IS_MARKED: &str = "SELECT count(*) FROM pg_class WHERE relname = 'since_the_backup'";

impl FanOut {
    /// Both have applied what is committed by now.
    async fn both_follow(&self, second: &Attached) -> Result<()> {
        self.advance(60).await;
        let now = self.source.current_lsn().await?;
        self.owner.wait_for_lsn(now).await?;
        second.mirror.wait_for_lsn(now).await
    }
}

/// The whole server is put back while apply runs, and with it the destinations of the owner and of
/// who is attached. What was asked for in between is done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_destinations_restored_from_a_base_backup_goes_on() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let mut fan = fan_out_on(services.clone(), "base_backup").await?;
    let second = fan.attach("second", load::pairs(), json!({})).await?;
    second.mirror.wait_running().await?;
    fan.both_follow(&second).await?;

    services.keep_base_backup(Server::Destination).await?;
    for (path, body) in [
        ("mirror/resync/public.documents", json!({})),
        ("second/replay", json!({"tables": ["public.journal"]})),
    ] {
        let accepted = fan.ask(&format!("/v1/mirrors/{path}"), body).await?;
        let (name, _) = path.split_once('/').unwrap_or_default();
        ended(&fan, name, &accepted).await?;
    }
    fan.both_follow(&second).await?;
    let urls = [fan.stage.destination.clone(), second.destination.clone()];
    for url in &urls {
        url.connect().await?.run(MARK).await?;
    }
    services.kill(Server::Destination).await?;
    services.put_copy_back(Server::Destination).await?;
    fan.advance(20).await;
    services.start_again(Server::Destination).await?;
    for url in &urls {
        assert_eq!(url.connect().await?.number(IS_MARKED).await?, 0);
    }
    fan.both_follow(&second).await?;
    fan.settle(&[&second]).await
}

/// Only the attached one is put back. What the owner has let go of it cannot have any more: then it
/// is attached anew, and the owner never notices.
#[tokio::test(flavor = "multi_thread")]
async fn an_attached_destination_restored_from_a_dump_goes_on_or_is_attached_anew() -> Result<()> {
    let mut fan = fan_out("attached_restored").await?;
    let pairs = TablePair::all(&["public.accounts", "public.journal"]);
    let second = fan.attach("second", pairs, json!({})).await?;
    second.mirror.wait_running().await?;
    fan.both_follow(&second).await?;
    let file = std::env::temp_dir().join(format!("{}.dump", fan.stage.name));
    backup::dump(&second.destination, &file).await?;
    let replay = json!({"tables": ["public.accounts"], "strategy": "swap"});
    let accepted = fan.ask("/v1/mirrors/second/replay", replay).await?;
    ended(&fan, "second", &accepted).await?;
    fan.both_follow(&second).await?;
    let there = second.destination.connect().await?;
    let applied = there.number(PROGRESS).await?;
    drop(there);
    fan.apply.kill9();
    backup::restore(&second.destination, &file).await?;
    let there = second.destination.connect().await?;
    let restored = there.number(PROGRESS).await?;
    assert!(restored < applied, "{restored} of {applied}");
    fan.apply.restart()?;
    fan.both_follow(&second).await?;
    fan.settle(&[&second]).await?;

    // By now nobody needs what the backup would.
    for name in ["mirror", "second"] {
        fan.patch(name, json!({"topic_retention_hours": 0})).await?;
    }
    let deadline = Instant::now() + CONVERGE;
    while fan.watermarks("changes", 0).await?.0 <= restored {
        ensure!(Instant::now() < deadline, "nothing is trimmed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(there);
    fan.apply.kill9();
    backup::restore(&second.destination, &file).await?;
    fan.apply.restart()?;
    let failed = |mirror: &Value, _: &Value| {
        let said = mirror["error_message"].as_str().unwrap_or_default();
        let words = ["backup", "topic_retention_hours", "attach it again"];
        mirror["status"] == "FAILED" && words.iter().all(|word| said.contains(word))
    };
    second
        .mirror
        .wait_until("FAILED, with the cure", CONVERGE, failed)
        .await?;
    fan.settle(&[]).await?;

    fan.api.delete("/v1/mirrors/second").await?.expect(202)?;
    is_gone(&fan.api, "second").await?;
    let fresh = json!({"on_existing_rows": "truncate", "initial_load": "fresh"});
    let second = fan
        .attach_to("second", second.destination, second.pairs, fresh)
        .await?;
    second.mirror.wait_running().await?;
    fan.settle(&[&second]).await?;
    Ok(std::fs::remove_file(file)?)
}
