//! Deaths around further destinations: between a permission to trim and the trimming, and of one
//! destination alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::load;
use bunny_tests::stage::CONVERGE;
use serde_json::{Value, json};

use crate::crashes::{BEFORE_CDC, crash_in_turn};
use crate::fan_out::{FLOOR, FanOut, ended, fan_out, wait_number};
use crate::replay::IN_REPLAY;

/// Passed when more may be trimmed than is.
pub const APPLY_GRANTED: [(&str, u32); 1] = [("apply::trim_granted", 1)];

/// On the way of a first load from retained copies.
const LOAD: [(&str, u32); 2] = [
    ("apply::chunk_before_commit", 2),
    ("apply::table_loaded", 1),
];
/// On the way of a replay.
const REPLAY: [(&str, u32); 3] = [
    ("apply::chunk_mid_copy", 1),
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_before_join", 1),
];

/// Up to where the owner's log may be trimmed.
async fn permitted(fan: &FanOut) -> Result<i64> {
    fan.wait_need("mirror", |_| true).await
}

/// The owner may trim, and has not: who is attached has all it needs, and who comes now goes by
/// what is permitted and not by what is still there.
#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_between_permission_and_trimming() -> Result<()> {
    let mut fan = fan_out("fan_trim").await?;
    // Behind the copies that it has been loaded with, so that these may go.
    let copied = fan.watermarks("changes", 0).await?.1;
    let no_window = json!({"topic_retention_hours": 0});
    let second = fan.attach("second", load::pairs(), no_window).await?;
    second.mirror.wait_running().await?;
    fan.wait_need("second", |need| need > copied).await?;
    fan.ask("/v1/mirrors/second/pause", json!({})).await?;
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    second.mirror.wait_until("PAUSED", CONVERGE, paused).await?;
    let need = fan.wait_need("second", |_| true).await?;
    fan.advance(50).await;
    let own = fan.stage.destination.connect().await?;
    ensure!(own.number(FLOOR).await? == 0 && permitted(&fan).await? == 0);

    let (point, pass) = APPLY_GRANTED[0];
    fan.apply.kill9();
    fan.patch("mirror", json!({"topic_retention_hours": 0}))
        .await?;
    fan.apply.restart_to_crash(point, pass)?;
    fan.apply.wait_crash_point(point, CONVERGE).await?;
    assert_eq!(permitted(&fan).await?, need);
    assert_eq!(own.number(FLOOR).await?, 0);
    assert_eq!(fan.watermarks("changes", 0).await?.0, 0);

    // The topics still hold every copy.
    let third = fan.stage.another_destination(&fan.api, "third").await?;
    let pairs = TablePair::all(&["public.accounts", "public.journal"]);
    let refused = fan.request("third", &pairs, &json!({}));
    let refused = fan.api.post("/v1/mirrors", refused).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let said = refused.body["error"].as_str().unwrap_or_default();
    assert!(said.contains("being trimmed"), "{said}");
    let third = fan
        .attach_to("third", third, pairs, json!({"initial_load": "fresh"}))
        .await?;
    assert_eq!(fan.wait_need("third", |_| true).await?, need);

    fan.apply.restart()?;
    wait_number(&own, FLOOR, |floor| floor == need).await?;
    third.mirror.wait_running().await?;
    let deadline = Instant::now() + CONVERGE;
    while fan.watermarks("changes", 0).await?.0 < need {
        ensure!(Instant::now() < deadline, "nothing is trimmed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Not beyond what the one that stands still needs, however far the others are.
    assert_eq!(fan.watermarks("changes", 0).await?.0, need);
    fan.ask("/v1/mirrors/second/resume", json!({})).await?;
    fan.settle(&[&second, &third]).await
}

/// One destination's process dies again and again; the owner's, which another has, never notices.
#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn a_third_destination_dies_alone() -> Result<()> {
    let mut fan = fan_out("fan_alone").await?;
    let two = TablePair::all(&["public.documents", "public.measurements"]);
    let second = fan.attach("second", two, json!({})).await?;
    second.mirror.wait_running().await?;
    let others =
        "SELECT string_agg(m.name || ' ' || l.holder || ' ' || l.epoch, ', ' ORDER BY m.name)
        FROM bunny.leases l JOIN bunny.mirrors m ON m.id = l.mirror_id
        WHERE l.role = 'apply' AND m.name <> 'third'";
    let before = fan.stage.catalog_text(others).await?;
    // It takes what is there to be taken, which the other leaves to it.
    let mut dying = fan.stage.start(Role::Apply)?;
    dying.restart_to_crash(LOAD[0].0, LOAD[0].1)?;
    let workers = "SELECT count(*) FROM bunny.workers WHERE role = 'apply' AND expires_at > clock_timestamp()";
    let catalog = fan.stage.catalog.connect().await?;
    wait_number(&catalog, workers, |count| count > 1).await?;
    let third = fan.attach("third", load::pairs(), json!({})).await?;
    let apart = |fan: &FanOut| {
        let (owner, source) = (fan.owner.clone(), fan.stage.source.clone());
        async move {
            let now = source.connect().await?.current_lsn().await?;
            owner
                .wait_for_lsn_within(now, Duration::from_secs(10))
                .await
        }
    };
    crash_in_turn(&mut dying, &third.mirror, &LOAD, true, &BEFORE_CDC).await?;
    // At once: what is free for seconds the others take, and with it what is to die.
    dying.restart()?;
    apart(&fan).await?;
    third.mirror.wait_running().await?;

    dying.restart_to_crash(REPLAY[0].0, REPLAY[0].1)?;
    let replay = fan.ask("/v1/mirrors/third/replay", json!({})).await?;
    crash_in_turn(&mut dying, &third.mirror, &REPLAY, true, &IN_REPLAY).await?;
    // At once: what is free for seconds the others take, and with it what is to die.
    dying.restart()?;
    apart(&fan).await?;
    ended(&fan, "third", &replay).await?;
    assert_eq!(
        fan.stage.catalog_text(others).await?,
        before,
        "a task of the others was started anew"
    );
    fan.settle(&[&second, &third]).await
}
