//! Enum labels that were renamed at the source, which nothing but `pg_enum.oid` tells from new ones.

use std::time::Duration;

use anyhow::Result;
use bunny_tests::content::TablePair;
use bunny_tests::stage::Mirror;
use serde_json::json;

use crate::lifecycle::ended;
use crate::scene::Scene;

pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits until a table is set aside for a reason that holds `words`.
pub async fn stopped(mirror: &Mirror, table: &str, words: &str) -> Result<()> {
    mirror
        .wait_until(&format!("{table} stopped: {words}"), LIMIT, |mirror, _| {
            let tables = mirror["tables"].as_array().cloned().unwrap_or_default();
            tables.iter().any(|found| {
                let error = found["error_message"].as_str().unwrap_or_default();
                found["source_table"] == table
                    && found["status"] == "ERRORED"
                    && error.contains(words)
            })
        })
        .await
}

/// Empties and loads a table anew.
pub async fn synced_again(scene: &Scene, mirror: &Mirror, table: &str) -> Result<()> {
    let resync = format!("/v1/mirrors/{}/resync/{table}", mirror.name);
    let truncate = json!({"strategy": "truncate"});
    let accepted = scene.api.post(&resync, truncate).await?.expect(202)?;
    let command = ended(&scene.api, mirror, &scene.stage, &accepted).await?;
    anyhow::ensure!(command["state"] == "done", "{command}");
    Ok(())
}

/// A label's new name is not added beside the former one, which older rows would keep; and rows
/// of before a rename are written under the name of before.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_label_is_not_a_new_one() -> Result<()> {
    let scene = Scene::new("schema_labels").await?;
    for (kind, tables) in [
        ("alone", &["alone"][..]),
        ("shared", &["one", "two"]),
        ("quick", &["quick"]),
    ] {
        scene
            .source
            .run(&format!("CREATE TYPE {kind}_mood AS ENUM ('sad', 'glad')"))
            .await?;
        for table in tables {
            scene
                .source
                .run(&format!(
                    "CREATE TABLE {table} (id int PRIMARY KEY, m {kind}_mood);
                     INSERT INTO {table} SELECT g, 'sad' FROM generate_series(1, 20) g"
                ))
                .await?;
        }
    }
    let (api, stage) = (&scene.api, &scene.stage);
    let additive = ["public.alone", "public.one", "public.two"];
    let additive = stage
        .create_mirror(api, "additive", &additive, json!({}))
        .await?;
    let all = json!({"schema_changes": "all"});
    let all = stage
        .create_mirror(api, "all", &["public.quick"], all)
        .await?;
    additive.wait_running().await?;
    all.wait_running().await?;

    // Nothing but its sync has told of the labels before.
    scene
        .source
        .run("ALTER TYPE alone_mood RENAME VALUE 'sad' TO 'blue'; UPDATE alone SET m = 'blue' WHERE id = 1")
        .await?;
    stopped(&additive, "public.alone", "was renamed at the source").await?;

    // The sync of one table adds the new name, for which it has a use; the other's rows of before
    // have the former one.
    scene
        .source
        .run("ALTER TYPE shared_mood RENAME VALUE 'sad' TO 'blue'")
        .await?;
    synced_again(&scene, &additive, "public.one").await?;
    scene
        .source
        .run("UPDATE two SET m = 'blue' WHERE id = 1")
        .await?;
    stopped(&additive, "public.two", "both are here").await?;
    synced_again(&scene, &additive, "public.two").await?;
    let shared = TablePair::all(&["public.one", "public.two"]);
    stage.assert_converges(&additive, &shared).await?;

    // Rows of both names in one transaction, and so in one batch.
    let quick = [TablePair::same("public.quick")];
    scene
        .source
        .run("UPDATE quick SET m = 'glad' WHERE id = 1")
        .await?;
    stage.assert_converges(&all, &quick).await?;
    scene
        .source
        .run("BEGIN; UPDATE quick SET m = 'sad' WHERE id < 5; ALTER TYPE quick_mood RENAME VALUE 'sad' TO 'blue';
              UPDATE quick SET m = 'blue' WHERE id > 15; COMMIT;")
        .await?;
    stage.assert_converges(&all, &quick).await
}
