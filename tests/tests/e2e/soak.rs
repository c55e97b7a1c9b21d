//! Three destinations of one capture for ten minutes: random pauses, resyncs, replays, checkpoints,
//! windows of retention and deaths under writers that hardly stop. The change topic is trimmed
//! again and again, so what is replayed is now there and now not. In between one of the attached goes
//! back to a moment of which it is known what the source held, and on from there. Readers from outside
//! run all the while and see each event before it is trimmed.
//!
//! `BUNNY_SOAK_SEED` names a sequence (printed by every run), `BUNNY_SOAK_SECONDS` its length.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bunny_tests::content;
use bunny_tests::database::Session;
use bunny_tests::load::{self, Load};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fan_out::{Attached, FanOut, ended, fan_out};
use crate::soak_readers::Readers;

const NAMES: [&str; 3] = ["mirror", "second", "third"];
/// Until everything has come to rest, however much is under way.
const REST: Duration = Duration::from_secs(300);
/// Hours of retention: what is applied goes, or stays for longer than this takes.
const NO_WINDOW: u32 = 0;
const WINDOW: u32 = 168;
/// Until what a moment needs is known to be there, or is not.
const KNOWN: Duration = Duration::from_secs(20);
const CLOCK: &str =
    r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
/// Between two wishes.
const BREATH: Duration = Duration::from_millis(1500);

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// What one destination is asked for, and with what.
fn wish(random: &mut StdRng) -> (Method, String, Value) {
    let tables = load::TABLES.map(|table| table.to_owned());
    let table = tables.choose(random).cloned().unwrap_or_default();
    let strategy = ["truncate", "swap"][random.random_range(0..2)];
    let hours = [NO_WINDOW, WINDOW][random.random_range(0..2)];
    let (action, body) = match random.random_range(0..14) {
        0..3 => ("/pause".to_owned(), json!({})),
        3..5 => ("/resume".to_owned(), json!({})),
        5..7 => (format!("/resync/{table}"), json!({"strategy": strategy})),
        7 => ("/resync".to_owned(), json!({"strategy": strategy})),
        8 => (
            "/replay".to_owned(),
            json!({"tables": [table], "strategy": strategy}),
        ),
        9 => ("/replay".to_owned(), json!({"strategy": strategy})),
        10..12 => ("/checkpoint".to_owned(), json!({})),
        _ => {
            let window = json!({"topic_retention_hours": hours});
            return (Method::PATCH, String::new(), window);
        }
    };
    (Method::POST, action, body)
}

/// Whatever is asked for, it is done or refused for a reason; nothing else.
async fn ask(fan: &FanOut, names: &[&str], random: &mut StdRng) -> Result<()> {
    let name = names.choose(random).copied().unwrap_or_default();
    let (method, action, body) = wish(random);
    let path = format!("/v1/mirrors/{name}{action}");
    let answer = fan.api.request(method, &path, Some(body.clone())).await?;
    println!("{path} {body}: {}", answer.status);
    ensure!(
        [202, 409].contains(&answer.status),
        "{path} {body}: {} {}",
        answer.status,
        answer.body
    );
    Ok(())
}

/// Nobody wants to keep what is applied, until what has been applied is trimmed.
async fn trim(fan: &FanOut) -> Result<()> {
    let (before, _) = fan.watermarks("changes", 0).await?;
    for name in NAMES {
        fan.patch(name, json!({"topic_retention_hours": NO_WINDOW}))
            .await?;
    }
    let deadline = Instant::now() + REST;
    while fan.watermarks("changes", 0).await?.0 <= before {
        ensure!(
            Instant::now() < deadline,
            "nothing is trimmed above {before}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for name in NAMES {
        fan.patch(name, json!({"topic_retention_hours": WINDOW}))
            .await?;
    }
    Ok(())
}

/// What a session's tables hold, in the order of [`load::TABLES`].
async fn contents(session: &Session) -> Result<Vec<String>> {
    let mut contents = Vec::new();
    for pair in load::pairs() {
        let columns = content::columns(session, &pair).await?;
        let table = content::qualified(&pair.source);
        contents.push(content::fingerprint(session, &table, &columns).await?);
    }
    Ok(contents)
}

/// One of the attached goes back to a moment, is as the source was then, and goes on, while the other
/// is asked for this and that and processes die. Whether the moment could still be gone back to: a
/// window that was nothing until now lets the copy go that was to be the beginning.
async fn goes_back(
    fan: &mut FanOut,
    attached: &[Attached; 2],
    random: &mut StdRng,
) -> Result<bool> {
    for name in NAMES {
        fan.patch(name, json!({"topic_retention_hours": WINDOW}))
            .await?;
    }
    let checkpoint = fan.ask("/v1/mirrors/mirror/checkpoint", json!({})).await?;
    ended(fan, "mirror", &checkpoint).await?;
    if let Some(load) = fan.load.take() {
        load.advance(20).await;
        load.stop().await;
    }
    let lsn = fan.source.current_lsn().await?.to_string();
    let timestamp = fan.source.text(CLOCK).await?;
    let wanted = contents(&fan.source).await?;
    fan.load = Some(Load::start(&fan.stage.source, 2, 40));
    fan.advance(40).await;

    let (one, other) = match random.random() {
        true => (&attached[0], &attached[1]),
        false => (&attached[1], &attached[0]),
    };
    let until = [json!({"lsn": lsn}), json!({"timestamp": timestamp})];
    let body = json!({"until": until[random.random_range(0..2)]});
    let path = format!("/v1/mirrors/{}", one.mirror.name);
    let deadline = Instant::now() + KNOWN;
    // Refused until it is known of the new copies that they are there.
    let accepted = loop {
        let answer = fan
            .api
            .post(&format!("{path}/replay"), body.clone())
            .await?;
        println!("{path}/replay {body}: {}", answer.status);
        if answer.status != 409 {
            break answer.expect(202)?;
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for _ in 0..random.random_range(0..4) {
        ask(fan, &[&other.mirror.name], random).await?;
        match random.random_range(0..3) {
            0 => fan.apply.restart()?,
            1 => fan.capture.restart()?,
            _ => tokio::time::sleep(BREATH).await,
        }
    }
    ended(fan, &one.mirror.name, &accepted).await?;
    let paused = |mirror: &Value, _: &Value| mirror["status"] == "PAUSED";
    one.mirror.wait_until("PAUSED", REST, paused).await?;
    let found = contents(&one.destination.connect().await?).await?;
    ensure!(found == wanted, "{body}: {found:?}, not {wanted:?}");
    fan.ask(&format!("{path}/resume"), json!({})).await?;
    Ok(true)
}

/// Resumes who is paused and waits until nothing is under way.
async fn rest(fan: &FanOut, attached: &[Attached; 2]) -> Result<()> {
    let mirrors = attached.iter().map(|one| &one.mirror).chain([&fan.owner]);
    for mirror in mirrors {
        let path = format!("/v1/mirrors/{}/resume", mirror.name);
        let resumed = fan.api.post(&path, json!({})).await?;
        ensure!([202, 409].contains(&resumed.status), "{}", resumed.body);
        mirror
            .wait_until("at rest", REST, |mirror, _| {
                let tables = mirror["tables"].as_array().into_iter().flatten();
                mirror["status"] == "RUNNING"
                    && mirror["current_phase"] == "CDC"
                    && tables.into_iter().all(|table| table["status"] == "LIVE")
            })
            .await
            .with_context(|| fan.stage.logs_tail())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_destinations_under_pauses_resyncs_replays_and_deaths() -> Result<()> {
    let seed = setting("BUNNY_SOAK_SEED").unwrap_or_else(|| rand::rng().random());
    let length = Duration::from_secs(setting("BUNNY_SOAK_SECONDS").unwrap_or(600));
    println!("BUNNY_SOAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fan = fan_out("soak_fan").await?;
    let second = fan.attach("second", load::pairs(), json!({})).await?;
    let third = fan.attach("third", load::pairs(), json!({})).await?;
    let attached = [second, third];
    for one in &attached {
        one.mirror.wait_running().await?;
    }
    let mut readers = Readers::start(&fan).await?;
    let started = Instant::now();
    let mut rests = 0;
    let mut moments = 0;
    while started.elapsed() < length {
        for _ in 0..12 {
            tokio::time::sleep(BREATH).await;
            ask(&fan, &NAMES, &mut random).await?;
            match random.random_range(0..6) {
                0 => fan.apply.restart()?,
                1 => fan.capture.restart()?,
                2 | 3 => readers.kill_one(&fan.stage, &mut random)?,
                _ => {}
            }
        }
        rest(&fan, &attached).await?;
        let went_back = goes_back(&mut fan, &attached, &mut random).await;
        moments += u32::from(went_back.with_context(|| format!("BUNNY_SOAK_SEED={seed}"))?);
        rest(&fan, &attached).await?;
        trim(&fan).await?;
        rests += 1;
    }
    fan.settle(&[&attached[0], &attached[1]])
        .await
        .with_context(|| format!("BUNNY_SOAK_SEED={seed}"))?;
    let (trimmed, _) = fan.watermarks("changes", 0).await?;
    ensure!(trimmed > 0, "the change topic begins where it began");
    ensure!(moments > 0, "no moment was gone back to");
    // What a subscriber begins with now that the copies of before are gone.
    let checkpoint = fan.ask("/v1/mirrors/mirror/checkpoint", json!({})).await?;
    ended(&fan, "mirror", &checkpoint).await?;
    let load = fan.load.take().context("there is no load")?;
    load.stop().await;
    // What came within the ten minutes, most of which is trimmed by now.
    let seen = readers.end(&fan).await;
    let seen = seen.with_context(|| format!("BUNNY_SOAK_SEED={seed}"))?;
    // Nothing twice on the topic, and a subscriber of it has what the source has.
    fan.stage
        .assert_topics_hold(&fan.owner, &load::pairs())
        .await
        .with_context(|| format!("BUNNY_SOAK_SEED={seed}"))?;
    println!(
        "at rest {rests} times in {:?}, at {moments} moments, trimmed up to {trimmed}; {seen}",
        started.elapsed()
    );
    Ok(())
}
