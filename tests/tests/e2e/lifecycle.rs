//! Tables that leave and join a running mirror: set aside and brought back, added and
//! removed, synced anew. The others go on meanwhile, and processes die on the way.

use anyhow::Result;
use bunny_tests::stage::{CONVERGE, Mirror};
use serde_json::{Value, json};

use crate::crashes::{APPLY_CATCH_UP, IN_CDC, crash_in_turn, scene};

/// The status of a table of the mirror.
fn status<'a>(mirror: &'a Value, table: &str) -> &'a str {
    let tables = mirror["tables"].as_array();
    let found = tables
        .into_iter()
        .flatten()
        .find(|found| found["source_table"] == table);
    found
        .and_then(|found| found["status"].as_str())
        .unwrap_or("absent")
}

async fn wait_status(mirror: &Mirror, table: &str, wanted: &str) -> Result<()> {
    let what = format!("{table} {wanted}");
    mirror
        .wait_until(&what, CONVERGE, |mirror, _| status(mirror, table) == wanted)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_set_aside_come_back_from_the_log() -> Result<()> {
    let mut scene = scene("come_back", |_, _| Ok(())).await?;
    scene.mirror.wait_running().await?;
    let destination = scene.stage.destination.connect().await?;
    // Two tables refuse what the load writes.
    destination
        .run(
            "ALTER TABLE accounts ADD CONSTRAINT refused CHECK (owner <> 'new') NOT VALID;
              ALTER TABLE measurements ADD CONSTRAINT refused CHECK (sensor < 100) NOT VALID;",
        )
        .await?;
    wait_status(&scene.mirror, "public.accounts", "ERRORED").await?;
    wait_status(&scene.mirror, "public.measurements", "ERRORED").await?;
    scene.load.advance(100).await;
    // The others go on, and say so.
    let mirror = scene.mirror.get().await?;
    assert_eq!(
        (&mirror["status"], &mirror["health"]),
        (&json!("RUNNING"), &json!("DEGRADED"))
    );
    assert_eq!(status(&mirror, "public.documents"), "LIVE");

    // One is brought back while its cause is still there, and is set aside again.
    let retry = |table: &str| {
        let body = json!({ "table_name": table });
        let api = scene.api.clone();
        async move {
            api.post("/v1/mirrors/mirror/retry", body)
                .await?
                .expect(202)
        }
    };
    retry("public.accounts").await?;
    scene.load.advance(20).await;
    wait_status(&scene.mirror, "public.accounts", "ERRORED").await?;
    let unknown = scene
        .api
        .post(
            "/v1/mirrors/mirror/retry",
            json!({ "table_name": "public.unknown" }),
        )
        .await?;
    assert_eq!(unknown.status, 404, "{}", unknown.body);

    destination
        .run("ALTER TABLE accounts DROP CONSTRAINT refused; ALTER TABLE measurements DROP CONSTRAINT refused;")
        .await?;
    // Apply dies at every point of the way back.
    scene
        .apply
        .restart_to_crash(APPLY_CATCH_UP[0].0, APPLY_CATCH_UP[0].1)?;
    let command = retry("public.accounts").await?;
    retry("public.measurements").await?;
    crash_in_turn(
        &mut scene.apply,
        &scene.mirror,
        &APPLY_CATCH_UP,
        true,
        &IN_CDC,
    )
    .await?;
    scene.apply.restart()?;
    wait_status(&scene.mirror, "public.accounts", "LIVE").await?;
    wait_status(&scene.mirror, "public.measurements", "LIVE").await?;
    let path = format!(
        "/v1/mirrors/mirror/commands/{}",
        command["command_id"].as_str().unwrap_or_default()
    );
    assert_eq!(scene.api.get(&path).await?.expect(200)?["state"], "done");
    scene.settle().await
}
