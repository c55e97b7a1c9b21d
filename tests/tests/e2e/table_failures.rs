//! What goes wrong with one table stays with it, and says where it was.

use anyhow::{Context, Result};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::stage::Stage;
use serde_json::json;

use crate::failures::{LIMIT, post, wait_table};

/// Peers whose users own their tables and may do no more than a mirror needs.
pub async fn limited_peers(stage: &Stage, api: &Api) -> Result<String> {
    let role = format!("{}_r", stage.name);
    for (name, url, more) in [
        ("source", &stage.source, "REPLICATION"),
        ("destination", &stage.destination, ""),
    ] {
        let role = format!("{role}_{name}");
        url.connect()
            .await?
            .run(&format!(
                "CREATE ROLE \"{role}\" LOGIN {more} PASSWORD 'limited';
                 GRANT CREATE ON DATABASE \"{}\" TO \"{role}\"; GRANT ALL ON SCHEMA public TO \"{role}\";
                 GRANT SET ON PARAMETER session_replication_role TO \"{role}\";",
                url.database
            ))
            .await?;
        let peer = json!({
            "name": name, "host": url.host, "port": url.port, "user": role,
            "password": "limited", "database": url.database, "ssl_mode": "disable",
        });
        api.post("/v1/peers", peer).await?.expect(201)?;
    }
    Ok(role)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_one_table_stays_with_it() -> Result<()> {
    let stage = Stage::new("table_failures").await?;
    stage.migrate()?;
    let _bunny = stage.start(Role::Up)?;
    let api = stage.api().await?;
    let role = limited_peers(&stage, &api).await?;
    let (at_source, at_destination) = (format!("{role}_source"), format!("{role}_destination"));
    let source = stage.source.connect().await?;
    let destination = stage.destination.connect().await?;
    let names = ["good", "closed", "denied", "dropped"];
    for name in names {
        source
            .run(&format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, v text); ALTER TABLE {name} OWNER TO \"{at_source}\";
                 INSERT INTO {name} SELECT g, 'v' FROM generate_series(1, 100) g;"
            ))
            .await?;
    }
    let tables = names.map(|name| format!("public.{name}"));
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let mirror = stage
        .create_mirror(&api, "mirror", &tables, json!({}))
        .await?;
    mirror.wait_running().await?;
    // A quiet mirror says how far it is before the first change comes.
    mirror
        .wait_until("an applied_lsn", LIMIT, |_, metrics| {
            metrics["apply"]["applied_lsn"].is_string()
        })
        .await?;
    let goes_on = async |value: &str| -> Result<()> {
        source
            .run(&format!("UPDATE good SET v = '{value}'"))
            .await?;
        stage
            .assert_converges(&mirror, &TablePair::all(&["public.good"]))
            .await
    };

    // The source does not let a table be copied any more.
    source
        .run(&format!("REVOKE SELECT ON closed FROM \"{at_source}\""))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/resync/public.closed",
        json!({"strategy": "truncate"}),
    )
    .await?;
    wait_table(
        &mirror,
        "public.closed",
        "ERRORED",
        &["permission denied", "retry"],
    )
    .await?;
    goes_on("one").await?;
    source
        .run(&format!("GRANT SELECT ON closed TO \"{at_source}\""))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/retry",
        json!({"table_name": "public.closed"}),
    )
    .await?;
    wait_table(&mirror, "public.closed", "LIVE", &[]).await?;

    // The destination does not let it be written.
    destination
        .run(&format!(
            "REVOKE INSERT, UPDATE ON denied FROM \"{at_destination}\""
        ))
        .await?;
    source
        .run("UPDATE denied SET v = 'w' WHERE id < 50")
        .await?;
    let words = [
        "permission denied",
        "POST /v1/mirrors/mirror/retry",
        "goes on from offset",
    ];
    wait_table(&mirror, "public.denied", "ERRORED", &words).await?;
    goes_on("two").await?;
    destination
        .run(&format!(
            "GRANT INSERT, UPDATE ON denied TO \"{at_destination}\""
        ))
        .await?;
    post(
        &api,
        "/v1/mirrors/mirror/retry",
        json!({"table_name": "public.denied"}),
    )
    .await?;
    wait_table(&mirror, "public.denied", "LIVE", &[]).await?;

    // It is gone there.
    destination.run("DROP TABLE dropped").await?;
    source
        .run("UPDATE dropped SET v = 'w' WHERE id < 50")
        .await?;
    wait_table(&mirror, "public.dropped", "ERRORED", &["does not exist"]).await?;
    goes_on("three").await?;
    post(
        &api,
        "/v1/mirrors/mirror/resync/public.dropped",
        json!({"strategy": "truncate"}),
    )
    .await?;
    wait_table(&mirror, "public.dropped", "LIVE", &[]).await?;

    // The disk is full there, as far as its answers go: nobody's fault, so all wait and say so.
    destination
        .run("CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                  RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END$$;
              CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE OR DELETE ON good FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
              ALTER TABLE good ENABLE ALWAYS TRIGGER full_disk;")
        .await?;
    source.run("UPDATE good SET v = 'four'").await?;
    mirror
        .wait_until("waiting for room", LIMIT, |mirror, _| {
            let error = mirror["error_message"].as_str().unwrap_or_default();
            mirror["status"] == "RUNNING"
                && mirror["health"] == "DEGRADED"
                && mirror["error_count"].as_i64() > Some(1)
                && error.contains("No space left on device")
        })
        .await?;
    assert_log_says_where(&api).await?;
    destination.run("DROP FUNCTION full_disk CASCADE").await?;
    post(&api, "/v1/mirrors/mirror/retry", json!({})).await?;
    stage
        .assert_converges(&mirror, &TablePair::all(&tables))
        .await?;
    stage
        .assert_topics_hold(&mirror, &TablePair::all(&tables))
        .await
        .map(drop)
}

/// Which batch it was, where it stands in the log and at the source, and how far apply was.
async fn assert_log_says_where(api: &Api) -> Result<()> {
    let logs = async |search: &str| {
        let path = format!("/v1/mirrors/mirror/logs?search={search}");
        api.get(&path).await?.expect(200)
    };
    let undone = logs("a%20batch%20was%20undone").await?;
    let entry = &undone["logs"][0];
    let message = entry["message"].as_str().context("no batch was undone")?;
    assert!(
        message.contains("100 changes of public.good") && message.contains("No space left"),
        "{message}"
    );
    let details = &entry["details"];
    assert_eq!(details["tables"][0]["table"], "public.good", "{details}");
    let offsets = (&details["first_offset"], &details["next_offset"]);
    assert!(offsets.0.as_i64() < offsets.1.as_i64(), "{details}");
    assert!(
        details["first_lsn"].is_string() && details["duration_ms"].is_u64(),
        "{details}"
    );
    let failed = logs("No%20space%20left").await?;
    let mut entries = failed["logs"].as_array().into_iter().flatten();
    let failure = entries
        .find(|entry| entry["details"]["role"] == "apply")
        .with_context(|| format!("no failure of apply: {failed}"))?;
    let place = &failure["details"]["last_report"];
    assert!(
        place["phase"].is_string() && place["lsn"].is_string() && place["offset"].is_i64(),
        "{failure}"
    );
    Ok(())
}
