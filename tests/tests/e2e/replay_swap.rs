//! Tables rebuilt from the topics beside themselves: readers look all the time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::load::{self, Load};
use bunny_tests::services::{Server, Services};
use bunny_tests::stage::{CONVERGE, Stage};
use serde_json::json;

use crate::crashes::{crash_in_turn, scene};
use crate::lifecycle::{ended, wait_status};
use crate::replay::{CHANGES, CHANGING, IN_REPLAY, REPLAY, replay_of};
use crate::swap::{assert_nothing_beside, assert_undisturbed, watch_rows};

/// Passed on the way, in this order.
const POINTS: [(&str, u32); 15] = [
    ("apply::after_take_over", 1),
    ("apply::sync_started", 1),
    ("apply::chunk_mid_copy", 1),
    ("apply::chunk_before_commit", 2),
    ("apply::chunk_after_commit", 1),
    ("apply::chunks_loaded", 1),
    ("apply::table_loaded", 1),
    ("apply::catch_up_before_commit", 1),
    ("apply::catch_up_after_commit", 1),
    ("apply::catch_up_held", 1),
    ("apply::swap_taken_out", 1),
    ("apply::swap_before_commit", 1),
    ("apply::swap_done", 1),
    ("apply::catch_up_before_join", 1),
    ("apply::catch_up_joined", 1),
];

/// Wrong in every way, and never empty.
const SPOIL: &str = "
SET session_replication_role = replica;
DELETE FROM accounts WHERE id BETWEEN 100 AND 2000;
INSERT INTO accounts (id, owner) SELECT -g, 'nobody' FROM generate_series(1, 50) g;
UPDATE documents SET title = 'wrong';
DELETE FROM measurements WHERE sensor = 3;
INSERT INTO journal SELECT * FROM journal WHERE writer = 0 AND n % 5 = 0;
DELETE FROM changing WHERE id % 2 = 0;
UPDATE changing SET named = 'wrong', widened = 0 WHERE id % 11 = 0;";

#[cfg(feature = "full")]
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_rebuilt_beside_while_the_source_is_down() -> Result<()> {
    let (services, _alone) = Services::outage().await?;
    let stage = Stage::on(services.clone(), "replay_swap").await?;
    let [_capture, mut apply, _api] = stage.start_all()?;
    let api = stage.api().await?;
    stage.create_peers(&api).await?;
    let source = stage.source.connect().await?;
    load::create_tables(&source, 6000).await?;
    source.run(CHANGING).await?;
    let load = Load::start(&stage.source, 2, 40);
    let tables = [&load::TABLES[..], &["public.changing"]].concat();
    let pairs = TablePair::all(&tables);
    let options = json!({
        "snapshot_num_rows_per_partition": 700, "max_batch_size": 100, "schema_changes": "all",
        "resync_strategy": "swap",
    });
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, options)
        .await?;
    mirror.wait_running().await?;
    for change in CHANGES {
        source.run(change).await?;
        load.advance(10).await;
        mirror.wait_for_lsn(source.current_lsn().await?).await?;
    }
    load.stop().await;
    stage.assert_converges(&mirror, &pairs).await?;
    // What a change of the table asked for is recorded as done after its rows are there.
    let commands = api.get("/v1/mirrors/mirror/commands").await?.expect(200)?;
    for command in commands.as_array().into_iter().flatten() {
        ended(&api, &mirror, &stage, &json!({"command_id": command["id"]})).await?;
    }
    let destination = stage.destination.connect().await?;
    destination.run(SPOIL).await?;
    drop(source);
    services.stop(Server::Source).await?;
    // Whoever reads has prepared it: the columns must stay what they are, too.
    let watched = &["accounts", "documents", "measurements", "changing"];
    let mut watching = watch_rows(&stage.destination, watched);
    let columns = "SELECT string_agg(attname || ' ' || atttypid::regtype || attnotnull || attnum, ',' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = 'changing'::regclass AND attnum > 0 AND NOT attisdropped";
    let before = destination.text(columns).await?;

    // A moment would be had table by table; also where nobody has said swap.
    for body in [
        json!({"until": {"lsn": "0/1"}}),
        json!({"until": {"lsn": "0/1"}, "strategy": "swap"}),
    ] {
        let refused = api.post(REPLAY, body).await?;
        assert_eq!(refused.status, 400, "{}", refused.body);
        let why = refused.body["error"].as_str().unwrap_or_default();
        assert!(why.contains("truncate"), "{why}");
    }

    // One table, apply dying at every point of the way.
    let one = json!({"tables": ["public.changing"], "strategy": "swap"});
    apply.restart_to_crash(POINTS[0].0, POINTS[0].1)?;
    let command = api.post(REPLAY, one.clone()).await?.expect(202)?;
    let same = api.post(REPLAY, one).await?.expect(202)?;
    assert_eq!(command["command_id"], same["command_id"]);
    crash_in_turn(&mut apply, &mirror, &POINTS, true, &IN_REPLAY).await?;
    apply.restart()?;
    let command = ended(&api, &mirror, &stage, &command).await?;
    assert_eq!(command["state"], "done", "{command}");
    assert_eq!(destination.text(columns).await?, before);
    let wrong = "SELECT count(*) FROM changing WHERE named = 'wrong'";
    assert_eq!(destination.number(wrong).await?, 0);
    let others = "SELECT count(*) FROM documents WHERE title <> 'wrong'";
    assert_eq!(destination.number(others).await?, 0, "not named");

    // What the table refuses leaves it as it was.
    destination
        .run("ALTER TABLE measurements ADD CONSTRAINT refused CHECK (sensor <> 3)")
        .await?;
    let one = json!({"tables": ["public.measurements"]});
    let refused = api.post(REPLAY, one).await?.expect(202)?;
    let refused = ended(&api, &mirror, &stage, &refused).await?;
    assert_eq!(refused["state"], "failed", "{refused}");
    let why = refused["error"].as_str().unwrap_or_default();
    assert!(why.contains("refused"), "{refused}");
    wait_status(&mirror, "public.measurements", "LIVE").await?;
    destination
        .run("ALTER TABLE measurements DROP CONSTRAINT refused")
        .await?;

    // And all of them, as the mirror's options say.
    let whole = api.post(REPLAY, json!({})).await?.expect(202)?;
    let whole = ended(&api, &mirror, &stage, &whole).await?;
    assert_eq!(whole["state"], "done", "{whole}");
    assert_nothing_beside(&stage).await?;
    assert_eq!(destination.text(columns).await?, before);
    assert_undisturbed(&mut watching).await?;
    watching.abort();
    services.start_again(Server::Source).await?;
    stage.assert_converges(&mirror, &pairs).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_replayed_beside_follows_its_source() -> Result<()> {
    let mut scene = scene("replay_beside", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let (api, mirror) = (scene.api.clone(), scene.mirror.clone());
    let source = scene.stage.source.connect().await?;
    let destination = scene.stage.destination.connect().await?;
    let mut watching = watch_rows(
        &scene.stage.destination,
        &["accounts", "documents", "measurements"],
    );
    // A row that has to go, and that somebody holds: nothing can be exchanged yet.
    destination
        .run("INSERT INTO documents (id, title) VALUES (-1, 'of nobody')")
        .await?;
    let locking = scene.stage.destination.connect().await?;
    locking
        .run("BEGIN; SELECT FROM documents WHERE id = -1 FOR UPDATE")
        .await?;
    let some = json!({"tables": ["public.documents"], "strategy": "swap"});
    let command = api.post(REPLAY, some).await?.expect(202)?;
    let other = json!({"tables": ["public.documents"], "strategy": "truncate"});
    let other = api.post(REPLAY, other).await?;
    assert_eq!(other.status, 409, "{}", other.body);
    mirror
        .wait_until("progress of the replay", CONVERGE, |mirror, _| {
            let replay = replay_of(mirror, "public.documents");
            replay["bytes_total"].as_i64() > Some(0)
                && replay["bytes_done"] == replay["bytes_total"]
                && mirror["current_phase"] == "REPLAY"
        })
        .await?;
    let deadline = Instant::now() + CONVERGE;
    while !scene.apply.log_of_this_run()?.contains("exchanged later") {
        ensure!(Instant::now() < deadline, "the lock was not met");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Meanwhile the table gets its changes.
    source
        .run("INSERT INTO documents (id, title) VALUES (1000000, 'followed')")
        .await?;
    let followed = "SELECT count(*) FROM documents WHERE id = 1000000";
    let rogue = "SELECT count(*) FROM documents WHERE id = -1";
    let deadline = Instant::now() + CONVERGE;
    while destination.number(followed).await? == 0 {
        ensure!(
            Instant::now() < deadline,
            "the table does not follow its source"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(destination.number(rogue).await?, 1);
    locking.run("COMMIT").await?;
    let command = scene.ended(&command).await?;
    assert_eq!(command["state"], "done", "{command}");
    assert_eq!(destination.number(rogue).await?, 0);

    // The whole mirror, both processes dying on the way, and a column coming meanwhile.
    scene
        .apply
        .restart_to_crash("apply::chunk_after_commit", 4)?;
    let whole = json!({"strategy": "swap"});
    let whole = api.post(REPLAY, whole).await?.expect(202)?;
    scene.capture.kill9();
    scene.capture.restart()?;
    scene
        .apply
        .wait_crash_point("apply::chunk_after_commit", CONVERGE)
        .await?;
    source
        .run("ALTER TABLE documents ADD COLUMN extra text DEFAULT 'constant'; UPDATE documents SET extra = 'set' WHERE id = 7")
        .await?;
    scene.load.advance(30).await;
    scene.apply.restart()?;
    let whole = scene.ended(&whole).await?;
    assert_eq!(whole["state"], "done", "{whole}");
    assert_nothing_beside(&scene.stage).await?;
    for table in load::TABLES {
        wait_status(&mirror, table, "LIVE").await?;
    }
    assert_undisturbed(&mut watching).await?;
    watching.abort();
    // The topics' own oracle knows no columns that come after a copy.
    assert!(scene.load.stop().await > 50);
    let pairs = load::pairs();
    scene.stage.assert_converges(&mirror, &pairs).await
}
