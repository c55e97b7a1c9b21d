//! `bunny tail`, with Kafka's address and the topics' prefix only.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bunny_tests::clients::{Program, output_of};
use bunny_tests::stage::Stage;
use serde_json::{Value, json};

use crate::scene::Scene;

const LIMIT: Duration = Duration::from_secs(60);

/// The events that `bunny tail` prints with these arguments and `--json`, to the present end.
fn events(stage: &Stage, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = stage.reader(&["tail", "mirror", "--json", "--no-follow"])?;
    let printed = output_of(command.args(arguments))?;
    let lines = printed.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Exit code and stderr.
fn refusal(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = command.stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), errors))
}

fn text<'v>(event: &'v Value, pointer: &str) -> Result<&'v str> {
    let value = event.pointer(pointer).and_then(Value::as_str);
    value.with_context(|| format!("no {pointer} in {event}"))
}

fn offset(event: &Value) -> Result<String> {
    Ok(event["offset"].as_i64().context("no offset")?.to_string())
}

async fn history(scene: &Scene) -> Result<()> {
    for change in [
        "INSERT INTO users VALUES (1, 'Ada', 0.5, '\\x0102', repeat('x', 9000))",
        "BEGIN; UPDATE users SET name = E'two\\nlines' WHERE id = 1; INSERT INTO notes VALUES ('a'); COMMIT",
        "UPDATE users SET id = 2",
        "DELETE FROM users",
        "TRUNCATE users, notes",
    ] {
        scene.source.run(change).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_what_is_committed_from_where_it_is_asked() -> Result<()> {
    let mut scene = Scene::new("tail").await?;
    scene
        .source
        .run(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text, score float8, photo bytea, body text);
             ALTER TABLE users ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE notes (entry text);",
        )
        .await?;
    let mirror = scene
        .running_mirror(&["public.users", "public.notes"], json!({}))
        .await?;
    history(&scene).await?;
    mirror
        .wait_for_lsn(scene.source.current_lsn().await?)
        .await?;
    // It needs none of what runs beside Kafka.
    scene.bunny.kill9();
    let stage = &scene.stage;

    let all = events(stage, &["--from", "earliest"])?;
    let ops: Vec<&str> = all
        .iter()
        .filter_map(|event| event["op"].as_str())
        .collect();
    assert_eq!(all[0]["event"], "GenerationStarted", "{}", all[0]);
    assert_eq!(ops, ["c", "u", "c", "u", "d", "t"]);
    assert_eq!(all.len(), 7);
    assert_eq!(
        all[1]["after"],
        json!({"id": 1, "name": "Ada", "score": 0.5, "photo": "\\x0102", "body": "x".repeat(9000)})
    );
    assert_eq!(all[2]["unchanged"], json!(["body"]));
    assert_eq!(
        (&all[2]["source"]["last"], &all[3]["source"]["last"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(
        (&all[4]["before"], &all[4]["after"]["id"]),
        (&json!({"id": 1}), &json!(2))
    );

    // Places: the last events, an offset, a position, a time, and the end.
    assert_eq!(events(stage, &["-n", "2"])?, all[5..]);
    assert_eq!(events(stage, &[])?, all);
    assert_eq!(events(stage, &["--from", &offset(&all[3])?])?, all[3..]);
    for pointer in ["/source/commit_lsn", "/source/commit_ts"] {
        let place = text(&all[3], pointer)?;
        assert_eq!(events(stage, &["--from", place])?, all[2..], "{place}");
    }
    assert_eq!(events(stage, &["--from", "0/1"])?, all);
    assert_eq!(events(stage, &["--from", "1d"])?, all[1..]);
    for place in ["latest", "FFFFFFFF/0", "9999-01-01T00:00:00Z"] {
        assert_eq!(events(stage, &["--from", place])?, all[..0], "{place}");
    }
    let of_notes = events(stage, &["--table", "public.notes"])?;
    assert_eq!(of_notes, [&all[0..1], &all[3..4], &all[6..7]].concat());
    let lines = output_of(&mut stage.reader(&["tail", "MIRROR", "--no-follow"])?)?;
    assert_eq!(lines.lines().count(), 7, "{lines}");
    let topic = format!("{}.mirror.changes", stage.name);
    let of_topic = output_of(&mut stage.reader(&["tail", &topic, "--no-follow"])?)?;
    assert_eq!(of_topic, lines);
    assert!(lines.contains("name='two\\nlines'"), "{lines}");

    // Wrong settings: code 2, and what would be right.
    let tail = ["tail", "mirror", "--no-follow"];
    let (code, said) = refusal(&mut stage.reader(&["tail", "nothere"])?)?;
    assert!(
        code == Some(2) && said.contains("there are mirror") && said.contains("source_mirror"),
        "{said}"
    );
    let (code, said) = refusal(stage.reader(&tail)?.env("BUNNY_TOPIC_PREFIX", "nothere"))?;
    assert!(
        code == Some(2) && said.contains("BUNNY_TOPIC_PREFIX"),
        "{said}"
    );
    let (code, said) = refusal(stage.reader(&tail)?.env_remove("BUNNY_KAFKA_BROKERS"))?;
    assert!(
        code == Some(2) && said.contains("BUNNY_KAFKA_BROKERS"),
        "{said}"
    );
    let wrong = "no.such.setting=1";
    let (code, said) = refusal(stage.reader(&tail)?.env("BUNNY_KAFKA_CONFIG", wrong))?;
    assert!(
        code == Some(2) && said.contains("no.such.setting"),
        "{said}"
    );
    for place in ["yesterday", "123456789"] {
        let (code, said) = refusal(stage.reader(&tail)?.args(["--from", place]))?;
        assert!(code == Some(2) && said.contains("--from"), "{said}");
    }

    // Following: what comes is shown when it comes; a signal, and a reader who leaves, end it.
    let arguments = ["tail", "mirror", "-n", "1"];
    let mut followed = Program::start(
        &stage.services,
        stage.reader(&arguments)?,
        stage.directory(),
        "tail",
    )?;
    followed
        .wait_output(LIMIT, |lines| lines.contains("TRUNCATE"))
        .await?;
    let mut piped = stage
        .reader(&["tail", "mirror", "-n", "1"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let head = Command::new("head")
        .args(["-n", "1"])
        .stdin(piped.stdout.take().context("no pipe")?)
        .output()?;
    let shown = String::from_utf8_lossy(&head.stdout).into_owned();
    scene.bunny.restart()?;
    for n in 0.. {
        scene
            .source
            .run(&format!("INSERT INTO notes VALUES ('later {n}')"))
            .await?;
        let lines = followed
            .wait_output(LIMIT, |lines| lines.contains(&format!("later {n}'")))
            .await?;
        let left = piped.try_wait()?;
        if let Some(status) = left {
            assert!(status.success(), "{status}");
            assert!(
                shown.contains("TRUNCATE  public.users, public.notes"),
                "{shown}"
            );
            assert!(
                lines.contains("INSERT    public.notes  entry='later 0'"),
                "{lines}"
            );
            break;
        }
        ensure!(n < 100, "a reader who left was written to 100 times");
    }
    followed.signal("INT")?;
    let status = followed.wait_exit(LIMIT).await?;
    assert!(status.success(), "{status}: {}", followed.errors());
    Ok(())
}
