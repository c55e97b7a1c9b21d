//! The API asked by a fuzzer that knows nothing but the API's own OpenAPI document: no answer
//! is an error of ours, none is missing, each is of the form that the document says.
//!
//! Twice: with names out of nowhere, and with those of a mirror, peers and a user that exist. All answers are recorded:
//! none tells a secret, nor does the log, and afterwards the API holds no more than it did (`fuzz_leaks`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::api::Api;
use bunny_tests::bunny::Role;
use bunny_tests::content::TablePair;
use bunny_tests::contract::close;
use bunny_tests::services::repository;
use bunny_tests::stage::Stage;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::fuzz_leaks::{self, Held};

/// The tool asks for some thousands of things.
const LIMIT: Duration = Duration::from_secs(1800);
/// Longer than any answer may take: a create examines servers that may not be there.
const ANSWER_SECONDS_MAX: &str = "60";

/// What is not tried with names that exist: it would take away what the rest is tried on, or
/// void the token.
const LEFT_OUT: [&str; 5] = [
    "delete_mirrors_name",
    "delete_peers_name",
    "put_peers_name",
    "delete_users_username",
    "post_auth_change_password",
];

/// 501 and 503 are answers that the contract knows. Methods that the document does not name are not
/// tried: those left out of it would be.
const CONFIGURATION: &str = r#"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "501", "503"]

[phases.coverage]
unexpected-methods = []
"#;

async fn schemathesis() -> Result<PathBuf> {
    let script = repository().join("scripts/install-schemathesis");
    let output = Command::new(script)
        .stderr(Stdio::inherit())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "schemathesis could not be installed"
    );
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Gives the recording of all that was asked and answered (HAR).
async fn fuzz(tool: &Path, api: &Api, document: &Value, seed: u64) -> Result<String> {
    let place = std::env::temp_dir().join(format!("bunny-fuzz-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&place)?;
    std::fs::write(place.join("openapi.json"), document.to_string())?;
    std::fs::write(place.join("schemathesis.toml"), CONFIGURATION)?;
    let header = format!("Authorization: Bearer {}", api.token().context("no token")?);
    let mut run = Command::new(tool);
    run.current_dir(&place)
        .args(["run", "openapi.json", "--url", api.base(), "-H", &header])
        .args(["--checks", "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "40"])
        .args(["--request-timeout", ANSWER_SECONDS_MAX, "--generation-database", "none"])
        .args(["--continue-on-failure", "--suppress-health-check", "all", "--no-color"])
        .args(["--seed", &seed.to_string()])
        // Secrets that are told would else be masked in what is recorded.
        .args(["--report", "har", "--report-har-path", "recording.har", "--output-sanitize", "false"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, run.output())
        .await
        .context("the fuzzer hangs")??;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let recording = std::fs::read_to_string(place.join("recording.har"));
    std::fs::remove_dir_all(&place)?;
    println!("{told}");
    ensure!(
        output.status.success(),
        "schemathesis, seed {seed}, ended with {}: {told}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    recording.context("the fuzzer recorded nothing")
}

/// The document with names in the paths that exist.
fn with_known_names(mut document: Value) -> Value {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, operations) in paths {
        let names = |name: &str| match name {
            "name" if path.contains("/mirrors/") => json!(["mirror", "paused"]),
            "name" => json!(["source", "destination"]),
            "table" => json!(["public.t", "public.u", "public.unknown"]),
            "username" => json!(["admin", "ann"]),
            _ => Value::Null,
        };
        let operations = operations.as_object_mut().into_iter().flatten();
        operations
            .filter_map(|(_, operation)| operation.get_mut("parameters")?.as_array_mut())
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .for_each(|parameter| {
                let known = names(parameter["name"].as_str().unwrap_or_default());
                if !known.is_null() {
                    parameter["schema"] = json!({"type": "string", "enum": known});
                }
            });
    }
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (_, operations) in paths {
        if let Some(operations) = operations.as_object_mut() {
            operations.retain(|_, operation| {
                !LEFT_OUT
                    .iter()
                    .any(|left_out| operation["operationId"] == *left_out)
            });
        }
    }
    document
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_finds_no_error_of_ours() -> Result<()> {
    let tool = schemathesis().await?;
    let stage = Stage::new("fuzz").await?;
    stage.migrate()?;
    let _workers = [stage.start(Role::Capture)?, stage.start(Role::Apply)?];
    let settings = [
        ("BUNNY_JWT_SECRET", fuzz_leaks::JWT_SECRET),
        ("BUNNY_LOG", "debug"),
    ];
    let mut bunny = stage.start_with(Role::Api, &settings)?;
    let pid = bunny.pid().context("no process")?;
    let api = stage.api().await?;
    fuzz_leaks::create_peers(&stage, &api).await?;
    let source = stage.source.connect().await?;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY);
              INSERT INTO t SELECT g, 'v' FROM generate_series(1, 500) g; INSERT INTO u SELECT * FROM t;")
        .await?;
    let ann = json!({"username": "ann", "password": fuzz_leaks::USER_PASSWORD, "role": "viewer"});
    api.post("/v1/users", ann).await?.expect(201)?;
    let mirror = stage
        .create_mirror(&api, "mirror", &["public.t", "public.u"], json!({}))
        .await?;
    mirror.wait_running().await?;
    stage
        .create_mirror(&api, "paused", &["public.p"], json!({}))
        .await?
        .wait_running()
        .await?;

    let slot_name = mirror.get().await?["slot_name"].clone();

    let seed = std::env::var("BUNNY_FUZZ_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("seed {seed}");
    let mut document = api.get("/openapi.json").await?.expect(200)?;
    // Nothing is answered that is not documented.
    close(&mut document);
    let known = with_known_names(document.clone());
    let before = Held::by(&stage, pid).await?;
    let secrets = fuzz_leaks::secrets(&stage).await?;
    let mut recordings = vec![fuzz(&tool, &api, &known, seed).await?];
    // Some of what it has opened by now it keeps: clients of Kafka.
    let warm = before.with_any_others().wait_no_more(&stage, pid).await?;

    // What is asked rightly works still.
    let mappings = json!([
        {"source_table": "public.t", "destination_table": "public.t"},
        {"source_table": "public.u", "destination_table": "public.u"},
    ]);
    let path = "/v1/mirrors/mirror/tables";
    let listed = api
        .request(
            reqwest::Method::PUT,
            path,
            Some(json!({ "table_mappings": mappings })),
        )
        .await?;
    ensure!([200, 202].contains(&listed.status), "{listed:?}");
    let _ = api.post("/v1/mirrors/mirror/resume", json!({})).await?;
    api.post("/v1/mirrors/mirror/retry", json!({}))
        .await?
        .expect(202)?;
    source
        .run("UPDATE t SET v = 'after'; UPDATE u SET v = 'after'")
        .await?;
    let pairs = TablePair::all(&["public.t", "public.u"]);
    stage.assert_converges(&mirror, &pairs).await?;

    // The tool may find the mirror's name by itself, and delete it.
    recordings.push(fuzz(&tool, &api, &document, seed).await?);
    assert!(bunny.is_running());
    warm.wait_no_more(&stage, pid).await?;
    let slot_name = slot_name.as_str().context("no slot")?;
    let mut told = 0;
    for answer in recordings
        .iter()
        .map(|recording| fuzz_leaks::answers(recording))
    {
        for answer in answer? {
            fuzz_leaks::assert_untold(&secrets, &answer, "an answer")?;
            told += usize::from(answer.contains(slot_name));
        }
    }
    // Only the API knows the name: so the answers are there.
    ensure!(told > 0, "the recording holds no answers");
    let log = stage.log_of(Role::Api)?;
    fuzz_leaks::assert_untold(&secrets, &log, "the log of the API")?;
    let panic = log.lines().find(|line| line.contains("panicked at"));
    assert!(panic.is_none(), "{panic:?}");
    Ok(())
}
