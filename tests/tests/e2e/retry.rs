//! `retry`, while the next try is far away.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::content::TablePair;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::failures::{LIMIT, post};
use crate::scene::Scene;

/// Both sides fail for so long that the next try is far away. Whoever removes the cause and says so does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_acts_before_the_next_try() -> Result<()> {
    /// After so many failures in a row the next try is half a minute away.
    const FAILURES: i64 = 6;
    let scene = Scene::new("retry_at_once").await?;
    scene
        .source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
        .await?;
    let mirror = scene.running_mirror(&["public.t"], json!({})).await?;
    let stage = &scene.stage;
    let allow = async |allowed: bool| -> Result<()> {
        for url in [&stage.source, &stage.destination] {
            let database = &url.database;
            let beside = url.with_database("postgres").connect().await?;
            beside
                .run(&format!(
                    "ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS {allowed}"
                ))
                .await?;
            if !allowed {
                beside
                    .run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))
                    .await?;
            }
        }
        Ok(())
    };
    let next_try = |mirror: &Value, role: &str| -> Option<DateTime<Utc>> {
        mirror["failures"][role]["next_try"].as_str()?.parse().ok()
    };
    allow(false).await?;
    mirror
        .wait_until("both wait long", LIMIT, |mirror, _| {
            ["capture", "apply"].iter().all(|role| {
                mirror["failures"][role]["count"].as_i64() >= Some(FAILURES)
                    && next_try(mirror, role) > Some(Utc::now() + Duration::from_secs(10))
            })
        })
        .await?;
    let waiting = mirror.get().await?;
    assert_eq!(
        (&waiting["status"], &waiting["health"]),
        (&json!("RUNNING"), &json!("DEGRADED")),
        "{waiting}"
    );
    let announced = ["capture", "apply"].map(|role| next_try(&waiting, role));
    allow(true).await?;
    post(&scene.api, "/v1/mirrors/mirror/retry", json!({})).await?;
    mirror
        .wait_until("nobody fails", LIMIT, |mirror, _| {
            ["capture", "apply"]
                .iter()
                .all(|role| mirror["failures"][role].is_null())
        })
        .await?;
    let recovered = Utc::now();
    assert!(
        announced.iter().all(|next_try| Some(recovered) < *next_try),
        "both went on by {recovered}, not before {announced:?}"
    );
    // And what they say is so. The scene's own session at the source was ended, too.
    let source = stage.source.connect().await?;
    source.run("UPDATE t SET v = 'after'").await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&["public.t"]))
        .await
}
