//! The requests of the published guide, "Creating Your First Mirror", word for word, and the
//! fields of its answers.

use anyhow::{Context, Result, ensure};
use bunny_tests::content::TablePair;
use bunny_tests::contract::{Answered, Contract};
use bunny_tests::stage::CONVERGE;
use serde_json::{Value, json};

use crate::scene::Scene;

const CREATE: &str = r#"{
    "name": "prod_to_staging",
    "source_peer": "source_db",
    "destination_peer": "dest_db",
    "do_initial_snapshot": true,
    "max_batch_size": 1000,
    "idle_timeout_seconds": 60,
    "snapshot_num_rows_per_partition": 250000,
    "snapshot_max_parallel_workers": 8,
    "snapshot_num_tables_in_parallel": 4,
    "replicate_indexes": true,
    "replicate_foreign_keys": true,
    "resync_strategy": "truncate",
    "table_mappings": [
      {
        "source_table": "public.users",
        "destination_table": "public.users",
        "partition_key": "id"
      },
      {
        "source_table": "public.orders",
        "destination_table": "public.orders",
        "partition_key": "user_id"
      }
    ]
  }"#;

/// The guide's example of mappings, with every field there is.
const MAPPINGS: &str = r#"[
  {
    "source_table": "public.users",
    "destination_table": "public.users"
  },
  {
    "source_table": "public.orders",
    "destination_table": "public.orders",
    "partition_key": "user_id",
    "exclude_columns": ["internal_notes", "debug_info"]
  },
  {
    "source_table": "analytics.events",
    "destination_table": "public.events"
  }
]"#;

const TABLES: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, name text);
    CREATE TABLE orders (id bigint PRIMARY KEY, user_id bigint, total numeric, internal_notes text, debug_info text);
    CREATE INDEX ON orders (user_id);
    CREATE SCHEMA analytics;
    CREATE TABLE analytics.events (id bigint PRIMARY KEY, what text);
    INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 500) g;
    INSERT INTO orders SELECT g, g % 500, g * 1.5, 'note', 'debug' FROM generate_series(1, 900) g;
    INSERT INTO analytics.events SELECT g, 'event' FROM generate_series(1, 50) g;";

/// As `curl` sends it: the text itself, with the header the guide gives.
async fn send(
    scene: &Scene,
    token: &str,
    method: reqwest::Method,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, Value)> {
    let mut request = reqwest::Client::new()
        .request(method.clone(), format!("{}{path}", scene.api.base()))
        .header("Authorization", format!("Bearer {token}"));
    if let Some(body) = body {
        request = request
            .header("Content-Type", "application/json")
            .body(body.to_owned());
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type");
    let content_type = content_type
        .context("no content type")?
        .to_str()?
        .to_owned();
    let answer = response.json().await?;
    Contract::kept()?.check(&Answered {
        method: &method.as_str().to_lowercase(),
        path,
        status,
        content_type: &content_type,
        body: &answer,
    })?;
    Ok((status, answer))
}

/// Every field of `documented` is there, of the same type.
fn has_all(answer: &Value, documented: &Value, place: &str) -> Result<()> {
    match (answer, documented) {
        (Value::Object(answer), Value::Object(documented)) => {
            for (name, wanted) in documented {
                let found = answer
                    .get(name)
                    .with_context(|| format!("{place}.{name} is missing"))?;
                has_all(found, wanted, &format!("{place}.{name}"))?;
            }
        }
        (Value::Array(answer), Value::Array(documented)) => {
            for wanted in documented {
                let found = answer
                    .first()
                    .with_context(|| format!("{place} is empty"))?;
                has_all(found, wanted, place)?;
            }
        }
        _ => ensure!(
            std::mem::discriminant(answer) == std::mem::discriminant(documented),
            "{place} is {answer}, documented as {documented}"
        ),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_guide_works_word_for_word() -> Result<()> {
    let scene = Scene::new("seed").await?;
    scene.source.run(TABLES).await?;
    for (name, url) in [
        ("source_db", &scene.stage.source),
        ("dest_db", &scene.stage.destination),
    ] {
        let peer = json!({"name": name, "host": url.host, "port": url.port, "user": url.user,
            "password": url.password, "database": url.database, "ssl_mode": "disable"});
        scene.api.post("/v1/peers", peer).await?.expect(201)?;
    }
    let token = scene
        .stage
        .api()
        .await?
        .token()
        .context("no token")?
        .to_owned();
    let get = reqwest::Method::GET;
    let post = reqwest::Method::POST;

    let (status, answer) = send(&scene, &token, post.clone(), "/v1/mirrors", Some(CREATE)).await?;
    ensure!(status == 201, "{answer}");
    assert_eq!(
        answer["message"],
        "Mirror 'prod_to_staging' created successfully"
    );

    let path = "/v1/mirrors/prod_to_staging";
    let deadline = std::time::Instant::now() + CONVERGE;
    let mut phases = Vec::new();
    let mirror = loop {
        let (status, mirror) = send(&scene, &token, get.clone(), path, None).await?;
        ensure!(status == 200, "{mirror}");
        let phase = format!("{} {}", mirror["status"], mirror["current_phase"]);
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        if mirror["status"] == "RUNNING" && mirror["current_phase"] == "CDC" {
            break mirror;
        }
        ensure!(std::time::Instant::now() < deadline, "{phases:?}: {mirror}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let known = [
        "\"SETUP\" \"SETUP\"",
        "\"SNAPSHOT\" \"SNAPSHOT\"",
        "\"RUNNING\" \"CDC\"",
    ];
    ensure!(
        phases.iter().all(|phase| known.contains(&phase.as_str())),
        "{phases:?}"
    );
    let documented = json!({
        "name": "prod_to_staging", "source_peer": "source_db", "destination_peer": "dest_db",
        "status": "RUNNING", "current_phase": "CDC",
        "tables": [{"source_table": "public.users", "destination_table": "public.users", "partition_key": "id", "exclude_columns": []}],
        "config": {"do_initial_snapshot": true, "max_batch_size": 1000, "idle_timeout_seconds": 60}
    });
    has_all(&mirror, &documented, "mirror")?;
    for field in ["name", "source_peer", "destination_peer"] {
        assert_eq!(mirror[field], documented[field]);
    }
    for field in [
        "source_table",
        "destination_table",
        "partition_key",
        "exclude_columns",
    ] {
        assert_eq!(mirror["tables"][0][field], documented["tables"][0][field]);
    }
    for field in [
        "do_initial_snapshot",
        "max_batch_size",
        "idle_timeout_seconds",
    ] {
        assert_eq!(mirror["config"][field], documented["config"][field]);
    }

    scene
        .source
        .run("UPDATE users SET name = 'Ada' WHERE id = 1")
        .await?;
    let last_sync = async || -> Result<Value> {
        Ok(send(
            &scene,
            &token,
            get.clone(),
            &format!("{path}/metrics"),
            None,
        )
        .await?
        .1)
    };
    let metrics = loop {
        let metrics = last_sync().await?;
        if metrics["last_sync_time"].is_string() && metrics["lag_bytes"] == 0 {
            break metrics;
        }
        ensure!(std::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let documented = json!({
        "mirror_name": "prod_to_staging", "status": "RUNNING", "current_phase": "CDC",
        "lag_bytes": 2048, "lag_seconds": 1.2, "total_rows_synced": 1_500_000, "last_sync_time": "2026-01-24T10:30:00Z"
    });
    has_all(&metrics, &documented, "metrics")?;
    assert_eq!(metrics["mirror_name"], "prod_to_staging");
    ensure!(
        metrics["last_sync_time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z')),
        "{metrics}"
    );

    // The guide's mappings, with excluded columns and another schema, in a second mirror.
    let (status, answer) = send(&scene, &token, reqwest::Method::DELETE, path, None).await?;
    ensure!(status == 202, "{answer}");
    while send(&scene, &token, get.clone(), path, None).await?.0 != 404 {
        ensure!(std::time::Instant::now() < deadline, "not deleted");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let mut second: Value = serde_json::from_str(CREATE)?;
    second["table_mappings"] = serde_json::from_str(MAPPINGS)?;
    second["on_existing_rows"] = json!("truncate");
    let destination = scene.stage.destination.connect().await?;
    destination.run("DROP TABLE orders").await?;
    let (status, answer) = send(
        &scene,
        &token,
        post,
        "/v1/mirrors",
        Some(&second.to_string()),
    )
    .await?;
    ensure!(status == 201, "{answer}");
    loop {
        let (_, mirror) = send(&scene, &token, get.clone(), path, None).await?;
        if mirror["status"] == "RUNNING" && mirror["current_phase"] == "CDC" {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{mirror}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    bunny_tests::content::assert_same(
        &scene.source,
        &destination,
        &[TablePair::same("public.users")],
    )
    .await?;
    assert_eq!(
        destination
            .number("SELECT count(*) FROM public.events")
            .await?,
        50
    );
    assert_eq!(
        destination.number("SELECT count(*) FROM orders").await?,
        900
    );
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders' AND column_name IN ('internal_notes', 'debug_info')";
    assert_eq!(
        destination.number(columns).await?,
        0,
        "excluded columns came along"
    );
    Ok(())
}
