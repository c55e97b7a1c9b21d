//! The whole bench at a hundredth of its size: every measure runs, and contents agree.

use std::process::Command;

use serde_json::Value;

#[test]
#[ignore = "needs servers: scripts/with-services"]
fn every_measure_at_a_hundredth() {
    let json = std::env::temp_dir().join(format!("bunny-bench-{}.json", std::process::id()));
    let status = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([
            "--scale",
            "0.01",
            "--rounds",
            "1",
            "--seconds",
            "2",
            "--no-warm-up",
        ])
        .args(["--batches", "10000", "--json"])
        .arg(&json)
        .status()
        .unwrap();
    assert!(status.success(), "bench ended with {status}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();

    let laps = report["laps"].as_array().unwrap();
    let of = |contestant: &str| -> Vec<&str> {
        let laps = laps.iter().filter(|lap| lap["contestant"] == contestant);
        laps.map(|lap| lap["measure"].as_str().unwrap()).collect()
    };
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
        "live_10000",
        "capture alone",
        "apply alone",
        "pg_recvlogical",
    ] {
        assert_eq!(of(contestant), drains, "{contestant}");
    }
    let loads = ["snapshot accounts", "snapshot mixed"];
    assert_eq!(of("mirror"), loads);
    assert_eq!(of("native"), [&drains[..], &loads].concat());
    let latencies = report["latencies"].as_array().unwrap();
    assert_eq!(latencies.len(), 4, "two rates, native and mirror");
}
