//! The whole bench at a hundredth of its size or less: every measure runs, and contents agree.
//! Nobody looks at the figures, so the measures run side by side.

use std::process::Command;

use anyhow::Result;
use bunny_tests::services::Services;
use serde_json::Value;

/// Runs one measure in a single round; what it found.
fn bench(measure: &str, scale: &str, arguments: &[&str]) -> Result<Value> {
    let services = Services::shared()?;
    let json =
        std::env::temp_dir().join(format!("bunny-bench-{}-{measure}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([measure, "--scale", scale, "--rounds", "1", "--no-warm-up"])
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .env("BUNNY_TEST_SERVICES", services.directory())
        .status()?;
    assert!(status.success(), "bench {measure} ended with {status}");
    let report = serde_json::from_slice(&std::fs::read(&json)?)?;
    std::fs::remove_file(&json)?;
    Ok(report)
}

/// What a contestant was measured at, in the order of its laps.
fn measures_of<'a>(report: &'a Value, contestant: &str) -> Vec<&'a str> {
    let laps = report["laps"].as_array().into_iter().flatten();
    laps.filter(|lap| lap["contestant"] == contestant)
        .filter_map(|lap| lap["measure"].as_str())
        .collect()
}

#[test]
#[ignore = "needs servers: scripts/with-services"]
fn drains_at_a_hundredth() {
    let report = bench("drains", "0.01", &["--batches", "10000"]).unwrap();
    let drains = [
        "small_transactions",
        "inserts",
        "updates",
        "deletes",
        "mixed",
        "one_transaction",
        "hot_rows",
    ];
    for contestant in [
        "native",
        "live_10000",
        "capture alone",
        "apply alone",
        "pg_recvlogical",
    ] {
        assert_eq!(measures_of(&report, contestant), drains, "{contestant}");
    }
}

#[test]
#[ignore = "needs servers: scripts/with-services"]
fn snapshots_at_a_hundredth() {
    let report = bench("snapshot", "0.01", &[]).unwrap();
    let loads = ["snapshot accounts", "snapshot mixed"];
    assert_eq!(measures_of(&report, "mirror"), loads);
    assert_eq!(measures_of(&report, "native"), loads);
}

#[test]
#[ignore = "needs servers: scripts/with-services"]
fn latencies_of_two_seconds() {
    let report = bench("latency", "0.01", &["--seconds", "2"]).unwrap();
    let latencies = report["latencies"].as_array().unwrap();
    assert_eq!(latencies.len(), 4, "two rates, native and mirror");
}

#[test]
#[ignore = "needs servers: scripts/with-services"]
fn growth_at_a_thousandth() {
    let sizes = ["--tables", "2", "--mirrors", "2", "--backlogs", "1000000"];
    let report = bench("growth", "0.001", &sizes).unwrap();
    let figures = report["growth_figures"].as_array().unwrap();
    let axes: Vec<(&str, u64, u64)> = figures
        .iter()
        .map(|size| {
            let number = |name: &str| size[name].as_u64().unwrap();
            let axis = size["axis"].as_str().unwrap();
            (axis, number("size"), number("rows"))
        })
        .collect();
    let expected = [
        ("tables", 2, 2_000),
        ("mirrors", 2, 2_000),
        ("events", 1_000, 1_000),
    ];
    assert_eq!(axes, expected);
    for size in figures {
        for memory in ["peak_mib", "rest_mib"] {
            for role in ["capture", "apply"] {
                let mib = size[memory][role].as_f64().unwrap();
                assert!(mib > 0.0, "{memory} of {role} in {size}");
            }
        }
        assert!(size["total_us_a_row"].as_f64().unwrap() > 0.0, "{size}");
        assert_eq!(size["cpu_ratio"], 1.0, "each is alone on its axis: {size}");
    }
    assert_eq!(report["growth"].as_array().unwrap().len(), expected.len());
}
